"""What the service tells whoever counts: metrics, and the counts of AdminService.GetStatus.

The methods are called from the event loop, from the worker and from the recorder: they must be quick, thread-safe, and
raise nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from auroraedge.inspection.results import InspectionResult

# stale: a newer frame of its camera session came; expired: its deadline passed while it waited; cancelled: its client
# went away while it waited.
Drop = Literal["stale", "expired", "cancelled"]


class Observer:
    """Does nothing; override what you count."""

    def queue_changed(self, frames: int, size_bytes: int, computing: int) -> None:
        """Frames and bytes that wait, and frames that are being computed."""

    def batch_done(self, frames: int, seconds: float) -> None:
        """The engine has finished a batch."""

    def refused(self, reason: str) -> None:
        """A call got an error; reason: that of its ErrorInfo."""

    def dropped(self, why: Drop) -> None:
        """A frame left the queue without a result."""

    def finished(self, result: InspectionResult) -> None:
        """A complete result is ready to be sent; its timings say where the time went."""

    def replayed(self) -> None:
        """An answer was given again to a repeated request id."""

    def committed(self, results: int, seconds: float) -> None:
        """The store has committed a group of results."""

    def store_failed(self, reason: str) -> None:
        """The store could not commit a group; reason as in ErrorInfo."""

    def streams_changed(self, streams: int) -> None:
        """Camera sessions that are open."""

    def engine_changed(self, model_id: str, engine_sha256: str, target: str) -> None:
        """This engine gives the verdicts from now on."""


class Observers(Observer):
    """Passes everything on to several observers."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        self._observers.append(observer)

    def queue_changed(self, frames: int, size_bytes: int, computing: int) -> None:
        for observer in self._observers:
            observer.queue_changed(frames, size_bytes, computing)

    def batch_done(self, frames: int, seconds: float) -> None:
        for observer in self._observers:
            observer.batch_done(frames, seconds)

    def refused(self, reason: str) -> None:
        for observer in self._observers:
            observer.refused(reason)

    def dropped(self, why: Drop) -> None:
        for observer in self._observers:
            observer.dropped(why)

    def finished(self, result: InspectionResult) -> None:
        for observer in self._observers:
            observer.finished(result)

    def replayed(self) -> None:
        for observer in self._observers:
            observer.replayed()

    def committed(self, results: int, seconds: float) -> None:
        for observer in self._observers:
            observer.committed(results, seconds)

    def store_failed(self, reason: str) -> None:
        for observer in self._observers:
            observer.store_failed(reason)

    def streams_changed(self, streams: int) -> None:
        for observer in self._observers:
            observer.streams_changed(streams)

    def engine_changed(self, model_id: str, engine_sha256: str, target: str) -> None:
        for observer in self._observers:
            observer.engine_changed(model_id, engine_sha256, target)


class Counts(Observer):
    """The counts since the start of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.verdicts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()
        self.replays = 0
        self.computing = 0
        self.streams = 0

    def queue_changed(self, frames: int, size_bytes: int, computing: int) -> None:
        self.computing = computing

    def refused(self, reason: str) -> None:
        with self._lock:
            self.refusals[reason] += 1

    def dropped(self, why: Drop) -> None:
        with self._lock:
            self.drops[why] += 1

    def finished(self, result: InspectionResult) -> None:
        with self._lock:
            self.verdicts[result.verdict.value] += 1

    def replayed(self) -> None:
        with self._lock:
            self.replays += 1

    def streams_changed(self, streams: int) -> None:
        self.streams = streams
