"""Has anything changed? A window of production against a baseline, with a stated rate of false alarms.

All tests of one check share the level alpha (Bonferroni): if nothing has changed, at most alpha of the checks alarm.

- Input statistics: Kolmogorov-Smirnov on the frames of the window and of the baseline. Alarm only where the population
  stability index is also 0.25 or more, because a large window finds differences that do not matter.
- Frame size: Fisher's exact test on the share of frames with a size that the baseline lacks.
- Verdict rates: Fisher's exact test. Where the rate wanders between parts of the baseline more than chance allows
  (lots, products), the limits of Laney's p'-chart instead: the normal limits widened by sigma_z.
- Golden parts that were photographed anew: exact sign test of each statistic, part by part. Alarm only where the
  median change is also 5 % or more.

Sources: Laney, "Improved control charts for attributes", Quality Engineering 14 (2002); Dunn, "Multiple comparisons
among means", JASA 56 (1961).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict

from auroraedge.inspection.results import Verdict
from auroraedge.studies.frames import METRICS, FrameStatistics
from auroraedge.studies.proportions import Share, fisher_p, ks_distance, ks_p, share, stability_index

RATES = (Verdict.NG, Verdict.REVIEW, Verdict.ERROR)
# Tests of one check, whether or not there is enough to run each: the level of one never depends on the data.
TESTS = len(METRICS) + 1 + len(RATES) + len(METRICS)
PSI_LIMIT, PSI_WATCH = 0.25, 0.1
CHANGE_LIMIT = 0.05
MIN_FRAMES = 20
MIN_RESULTS = 30
# Blocks of the baseline from which the wandering of a rate is estimated, and the fewest results in one.
_BLOCKS, _MIN_BLOCKS, _BLOCK_SIZE = 40, 10, 50
# Values of a statistic that a baseline keeps.
_KEPT = 2000

Outcome = Literal["ok", "watch", "alarm", "skipped"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GoldenFrame(_Model):
    """A golden part as it was at the baseline."""

    ng_probability: float | None
    verdict: Verdict
    frame_sha256: str
    statistics: FrameStatistics | None


class Window(_Model):
    """What production looked like for a while. samples: sorted values of each statistic; sigma_z: by verdict, 1 where
    the rate wanders no more than chance allows, None where there is too little to tell."""

    since: AwareDatetime | None
    until: AwareDatetime | None
    results: int
    verdicts: dict[str, int]
    frames: int
    samples: dict[str, tuple[float, ...]]
    sizes: dict[str, int]
    sigma_z: dict[str, float | None]


class Baseline(_Model):
    """What is normal: a window of production, and the golden parts."""

    name: str
    recipe_id: str
    recipe_sha256: str
    model_id: str
    engine_sha256: str
    where: dict[str, tuple[str, ...]]
    window: Window
    golden: dict[str, GoldenFrame]


class DriftTest(_Model):
    """One comparison. before, now: means, or rates with intervals in `before_share` and `now_share`."""

    name: str
    title: str
    outcome: Outcome
    reason: str = ""
    method: str = ""
    p_value: float | None = None
    effect: float | None = None
    effect_name: str = ""
    before: float | None = None
    now: float | None = None
    before_count: int = 0
    now_count: int = 0
    before_share: Share | None = None
    now_share: Share | None = None


def window_of(
    verdicts: Sequence[Verdict],
    frames: Sequence[FrameStatistics],
    *,
    since: AwareDatetime | None = None,
    until: AwareDatetime | None = None,
) -> Window:
    """A window from the verdicts in the order of production and the statistics of (some of) its frames."""
    counts = Counter(verdicts)
    samples = {}
    for name in METRICS:
        values = np.sort(np.array([getattr(frame, name) for frame in frames], dtype=np.float64))
        if len(values) > _KEPT:
            values = values[np.linspace(0, len(values) - 1, _KEPT).round().astype(int)]
        samples[name] = tuple(float(f"{value:.6g}") for value in values)
    return Window(
        since=since,
        until=until,
        results=len(verdicts),
        verdicts={verdict.value: counts[verdict] for verdict in Verdict},
        frames=len(frames),
        samples=samples,
        sizes=dict(sorted(Counter(frame.size for frame in frames).items())),
        sigma_z={verdict.value: sigma_z(verdicts, verdict) for verdict in RATES},
    )


def sigma_z(verdicts: Sequence[Verdict], which: Verdict) -> float | None:
    """Laney's sigma_z: how much more the rate of `which` wanders from block to block than chance allows; at least 1.

    z_i = (p_i - p) / sqrt(p (1 - p) / n_i), sigma_z = mean moving range / 1.128. None with fewer than 10 blocks of 50,
    or when the verdict never or always occurs.
    """
    blocks = min(_BLOCKS, len(verdicts) // _BLOCK_SIZE)
    if blocks < _MIN_BLOCKS:
        return None
    hits = np.array([verdict is which for verdict in verdicts], dtype=np.float64)
    p = float(hits.mean())
    if p in (0.0, 1.0):
        return None
    parts = np.array_split(hits, blocks)
    z = np.array([(part.mean() - p) / math.sqrt(p * (1 - p) / len(part)) for part in parts])
    return max(1.0, float(np.abs(np.diff(z)).mean()) / 1.128)


def compare(baseline: Window, now: Window, alpha: float) -> list[DriftTest]:
    """The tests of production. alpha: of the whole check, with those of the golden parts."""
    level = alpha / TESTS
    tests = [_input_test(name, baseline, now, level) for name in METRICS]
    tests.append(_size_test(baseline, now, level))
    tests += [_rate_test(verdict, baseline, now, level) for verdict in RATES]
    return tests


def _too_few(name: str, title: str, before: int, now: int, least: int, what: str) -> DriftTest | None:
    if min(before, now) >= least:
        return None
    where = "the baseline has" if before < now else "the window has"
    reason = f"{where} {min(before, now)} {what}; {least} are needed"
    return DriftTest(name=name, title=title, outcome="skipped", reason=reason, before_count=before, now_count=now)


def _input_test(name: str, baseline: Window, now: Window, level: float) -> DriftTest:
    title = name.capitalize()
    few = _too_few(name, title, baseline.frames, now.frames, MIN_FRAMES, "stored frames")
    if few is not None:
        return few
    a, b = np.array(baseline.samples[name]), np.array(now.samples[name])
    distance = ks_distance(a, b)
    p = ks_p(distance, len(a), len(b))
    psi = stability_index(a, b)
    outcome: Outcome = "ok"
    if p < level:
        outcome = "alarm" if psi >= PSI_LIMIT else "watch" if psi >= PSI_WATCH else "ok"
    return DriftTest(
        name=name,
        title=title,
        outcome=outcome,
        reason="" if outcome == "ok" else f"{title.lower()} went from {a.mean():.4g} to {b.mean():.4g} on average",
        method="Kolmogorov-Smirnov",
        p_value=p,
        effect=psi,
        effect_name="PSI",
        before=float(a.mean()),
        now=float(b.mean()),
        before_count=len(a),
        now_count=len(b),
    )


def _size_test(baseline: Window, now: Window, level: float) -> DriftTest:
    few = _too_few("size", "Frame size", baseline.frames, now.frames, MIN_FRAMES, "stored frames")
    if few is not None:
        return few
    new = {size: count for size, count in now.sizes.items() if size not in baseline.sizes}
    count = sum(new.values())
    p = fisher_p(count, now.frames, 0, baseline.frames)
    outcome: Outcome = "alarm" if p < level else "watch" if count else "ok"
    listed = ", ".join(sorted(new))
    return DriftTest(
        name="size",
        title="Frame size",
        outcome=outcome,
        reason=f"{count} of {now.frames} frames have a new size: {listed}" if count else "",
        method="Fisher's exact test",
        p_value=p,
        before=0.0,
        now=count / now.frames,
        before_count=baseline.frames,
        now_count=now.frames,
    )


def _rate_test(verdict: Verdict, baseline: Window, now: Window, level: float) -> DriftTest:
    name, title = f"rate_{verdict.value}", f"{verdict.value} rate"
    few = _too_few(name, title, baseline.results, now.results, MIN_RESULTS, "results")
    if few is not None:
        return few
    k0, n0, k1, n1 = baseline.verdicts[verdict.value], baseline.results, now.verdicts[verdict.value], now.results
    wander = baseline.sigma_z.get(verdict.value)
    if wander is not None and wander > 1:
        pooled = (k0 + k1) / (n0 + n1)
        spread = wander * math.sqrt(pooled * (1 - pooled) * (1 / n0 + 1 / n1))
        p = math.erfc(abs(k1 / n1 - k0 / n0) / spread / math.sqrt(2)) if spread else 1.0
        method = f"p'-chart, sigma_z {wander:.2f}"
    else:
        p, method = fisher_p(k1, n1, k0, n0), "Fisher's exact test"
    before, after = share(k0, n0), share(k1, n1)
    return DriftTest(
        name=name,
        title=title,
        outcome="alarm" if p < level else "ok",
        reason=f"{verdict.value} went from {k0 / n0:.2%} to {k1 / n1:.2%}" if p < level else "",
        method=method,
        p_value=p,
        effect=k1 / n1 - k0 / n0,
        effect_name="difference",
        before=k0 / n0,
        now=k1 / n1,
        before_count=n0,
        now_count=n1,
        before_share=before,
        now_share=after,
    )


def compare_golden(before: Mapping[str, GoldenFrame], now: Mapping[str, GoldenFrame], alpha: float) -> list[DriftTest]:
    """The statistics of golden parts that were photographed anew; the same picture again tells nothing."""
    pairs = [
        (before[part].statistics, frame.statistics)
        for part, frame in now.items()
        if part in before and before[part].frame_sha256 != frame.frame_sha256
    ]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return [_golden_test(name, known, alpha / TESTS) for name in METRICS]


def _golden_test(name: str, pairs: Sequence[tuple[FrameStatistics, FrameStatistics]], level: float) -> DriftTest:
    title = f"Golden parts' {name}"
    changes = [(getattr(a, name), getattr(b, name)) for a, b in pairs]
    changes = [(a, b) for a, b in changes if a != b]
    # With all parts on one side P is 2 * 0.5^n: fewer parts could never alarm.
    least = math.ceil(math.log2(2 / level))
    if len(changes) < least:
        reason = f"{len(changes)} golden parts have a new picture; {least} are needed"
        return DriftTest(name=f"golden_{name}", title=title, outcome="skipped", reason=reason, now_count=len(changes))
    n, up = len(changes), sum(b > a for a, b in changes)
    tail = sum(math.comb(n, k) for k in range(min(up, n - up) + 1)) / 2**n
    p = min(1.0, 2 * tail)
    change = float(np.median([(b - a) / max(abs(a), 1e-9) for a, b in changes]))
    outcome: Outcome = "ok"
    if p < level:
        outcome = "alarm" if abs(change) >= CHANGE_LIMIT else "watch"
    return DriftTest(
        name=f"golden_{name}",
        title=title,
        outcome=outcome,
        reason="" if outcome == "ok" else f"{name} of the golden parts changed by {change:+.1%} (median)",
        method="sign test",
        p_value=p,
        effect=change,
        effect_name="median change",
        before=float(np.mean([a for a, _ in changes])),
        now=float(np.mean([b for _, b in changes])),
        before_count=n,
        now_count=n,
    )
