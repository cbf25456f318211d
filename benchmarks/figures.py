"""Medians with intervals, and what a run says against an earlier one.

Samples of a timing are skewed and drift with the machine, so nothing is assumed of their distribution: intervals come
from a bootstrap over blocks of neighbouring rounds (Kuensch 1989), which keeps their drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.suite import Document, Measurement

RESAMPLES = 2000
# A change below this share is not reported as a regression, however certain: it is below what another build of the
# same compiler or another place in memory does.
LEAST_CHANGE = 0.05
_TIMES = ("ms", "s")

Finding = Literal["slower", "faster", "same", "new", "gone"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median and its 95 % interval."""

    middle: float
    low: float
    high: float


def _resampled(samples: np.ndarray, rng: np.random.Generator, percentile: float = 50.0) -> np.ndarray:
    count = len(samples)
    block = max(1, round(count ** (1 / 3)))
    starts = rng.integers(0, count, (RESAMPLES, -(-count // block)))
    index = (starts[..., None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count] % count
    return np.percentile(samples[index], percentile, axis=1)


def median_interval(samples: Sequence[float], seed: int = 0) -> Interval:
    """Of one sample the interval is the sample: nothing is known of its noise."""
    values = np.asarray(samples, dtype=np.float64)
    found = _resampled(values, np.random.default_rng(seed))
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(middle=float(np.median(values)), low=float(low), high=float(high))


def ratio_interval(over: Sequence[float], under: Sequence[float], *, paired: bool = False, seed: int = 0) -> Interval:
    """Of median(over) / median(under). paired: of the median of the ratios round by round, which drift cannot bend."""
    a, b = np.asarray(over, dtype=np.float64), np.asarray(under, dtype=np.float64)
    if paired and len(a) == len(b):
        return median_interval(a / b, seed)
    rng = np.random.default_rng(seed)
    found = _resampled(a, rng) / _resampled(b, rng)
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(middle=float(np.median(a) / np.median(b)), low=float(low), high=float(high))


def _speed(new: Document, old: Document) -> Interval:
    """How much slower the machine was in the newer run, by the probe; 1 where a run has none.

    The fifth fastest tells the machine undisturbed: a median would take a busy hour for a slow machine.
    """
    if not new.probe_ms or not old.probe_ms:
        return Interval(middle=1.0, low=1.0, high=1.0)
    rng = np.random.default_rng(0)
    a, b = np.asarray(new.probe_ms), np.asarray(old.probe_ms)
    low, high = np.percentile(_resampled(a, rng, 20.0) / _resampled(b, rng, 20.0), [2.5, 97.5])
    middle = float(np.percentile(a, 20) / np.percentile(b, 20))
    return Interval(middle=middle, low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure against the baseline.

    ratio: new / old of the medians; for times and rates after taking out how fast the machine was (the probe of both
    runs), whose own noise widens the interval. sure: there are samples enough for the interval to mean something.
    """

    measurement: Measurement
    finding: Finding
    ratio: Interval | None = None
    sure: bool = True


def compare(new: Document, old: Document) -> list[Change]:
    """Every figure of either document. A regression is one whose whole interval lies beyond LEAST_CHANGE.

    A contender is flagged only where both runs have at least five samples; with fewer it is 'same' and not sure.
    """
    speed = _speed(new, old)
    changes = []
    for measurement in new.measurements:
        before = old.find(measurement.case, measurement.contender, measurement.metric)
        if before is None:
            changes.append(Change(measurement=measurement, finding="new"))
            continue
        found = ratio_interval(measurement.samples, before.samples)
        ratio = found
        if measurement.unit in _TIMES:
            low, high = found.low / speed.high, found.high / speed.low
            ratio = Interval(middle=found.middle / speed.middle, low=low, high=high)
        elif measurement.unit.endswith("/s"):
            low, high = found.low * speed.low, found.high * speed.high
            ratio = Interval(middle=found.middle * speed.middle, low=low, high=high)
        sure = min(len(measurement.samples), len(before.samples)) >= 5
        worse, better = ratio.low > 1 + LEAST_CHANGE, ratio.high < 1 - LEAST_CHANGE
        if measurement.better == "more":
            worse, better = ratio.high < 1 - LEAST_CHANGE, ratio.low > 1 + LEAST_CHANGE
        finding: Finding = "slower" if worse and sure else "faster" if better and sure else "same"
        changes.append(Change(measurement=measurement, finding=finding, ratio=ratio, sure=sure))
    for measurement in old.measurements:
        if new.find(measurement.case, measurement.contender, measurement.metric) is None:
            changes.append(Change(measurement=measurement, finding="gone"))
    return changes


def same_machine(new: Document, old: Document) -> list[str]:
    """What differs between the machines and versions of two runs, in words; empty where nothing that matters does."""
    differing = []
    for key in ("cpu", "cpu_flags", "cores", "python"):
        a, b = new.environment.get(key), old.environment.get(key)
        if a != b and b is not None:
            differing.append(f"{key}: {a}, was {b}")
    packages, before = new.environment.get("packages", {}), old.environment.get("packages", {})
    for name in sorted(packages.keys() | before.keys()):
        if packages.get(name) != before.get(name):
            differing.append(f"{name}: {packages.get(name, 'none')}, was {before.get(name, 'none')}")
    return differing
