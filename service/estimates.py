"""How long work takes, learned from the work that was done. Not thread-safe."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

_KEYS = 512
_SAMPLES = 8
_FIRST_GUESS_S = 0.05
# An estimate that nothing has confirmed for so long does not refuse work: one frame goes through and renews it.
_STALE_S = 10.0


@dataclass
class _Estimate:
    mean_s: float
    samples: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    at: float = 0.0


class Estimates:
    """Seconds of work by its kind: e.g. recipe and size of the frame."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[Hashable, _Estimate] = OrderedDict()
        self._overall = _FIRST_GUESS_S

    def expected_s(self, kind: Hashable) -> float:
        """The mean of late; of all work for a kind that is new."""
        found = self._known.get(kind)
        return self._overall if found is None else found.mean_s

    def least_s(self, kind: Hashable) -> float:
        """The shortest of late: less than this cannot be hoped for. 0 for a kind that is new or long unseen."""
        found = self._known.get(kind)
        if found is None or self._clock() - found.at > _STALE_S:
            return 0.0
        return min(found.samples)

    def learn(self, kind: Hashable, seconds: float) -> None:
        self._overall += 0.2 * (seconds - self._overall)
        found = self._known.get(kind)
        if found is None:
            found = self._known[kind] = _Estimate(mean_s=seconds)
            if len(self._known) > _KEYS:
                self._known.popitem(last=False)
        found.mean_s += 0.2 * (seconds - found.mean_s)
        found.samples.append(seconds)
        found.at = self._clock()
        self._known.move_to_end(kind)

    def forget(self) -> None:
        """Another engine takes other times."""
        self._known.clear()
