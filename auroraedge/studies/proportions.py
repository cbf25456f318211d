"""Proportions with intervals, and exact tests for counts. No SciPy: serving does not need it.

Legend: k of n counted; a cluster is a part that was rated several times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict


class Share(BaseModel):
    """A proportion with its interval. `value` is None where there was nothing to count.

    effective: size of the independent sample that is worth as much; ratings of one part share their luck.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0
    total: int = 0
    effective: float | None = None


def z_of(level: float) -> float:
    """The two-sided quantile of the standard normal distribution, 1.96 for level 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson_bounds(p: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's score interval for the proportion p in n, which need not be whole.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    z = z_of(level)
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(max(0.0, p * (1 - p)) / n + z * z / (4 * n * n))
    return (0.0 if p == 0 else max(0.0, centre - half)), (1.0 if p == 1 else min(1.0, centre + half))


def share(count: int, total: int, level: float = 0.95) -> Share:
    """count of total independent trials, with Wilson's interval."""
    if not 0 <= count <= total:
        raise ValueError(f"{count} of {total} is not a proportion")
    if total == 0:
        return Share(value=None)
    low, high = wilson_bounds(count / total, total, level)
    return Share(value=count / total, low=low, high=high, count=count, total=total, effective=float(total))


def clustered_share(counts: Sequence[int], totals: Sequence[int], level: float = 0.95) -> Share:
    """A proportion over clusters, with Wilson's interval on the effective sample size n / deff.

    deff = v / (p (1 - p) / n) with the linearised variance v = K / (K - 1) * sum_i (x_i - p n_i)^2 / n^2, kept between
    1 and the mean cluster size; where every rating is the same (p is 0 or 1) nothing can be learnt about the clusters,
    and the larger end is taken. Source: Korn and Graubard, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", Survey Methodology 24 (1998).
    """
    x, n = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    x, n = x[n > 0], n[n > 0]
    total = float(n.sum())
    if total == 0:
        return Share(value=None)
    clusters, p = len(n), float(x.sum()) / total
    largest = total / clusters
    if clusters < 2 or p in (0.0, 1.0):
        deff = largest
    else:
        variance = clusters / (clusters - 1) * float(((x - p * n) ** 2).sum()) / total**2
        deff = min(largest, max(1.0, variance / (p * (1 - p) / total)))
    effective = total / deff
    low, high = wilson_bounds(p, effective, level)
    return Share(value=p, low=low, high=high, count=int(x.sum()), total=int(total), effective=effective)


def _log_choose(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
    lgamma = np.vectorize(math.lgamma, otypes=[np.float64])
    return math.lgamma(n + 1) - lgamma(k + 1.0) - lgamma(n - k + 1.0)


def fisher_p(k1: int, n1: int, k2: int, n2: int) -> float:
    """Two-sided P of Fisher's exact test that k1 of n1 and k2 of n2 come from one rate.

    The sum of the hypergeometric probabilities that are no larger than the observed one. Its false-alarm rate is at
    most the level, whatever the rate is.
    """
    successes = k1 + k2
    low, high = max(0, successes - n2), min(n1, successes)
    k = np.arange(low, high + 1)
    log_p = _log_choose(n1, k) + _log_choose(n2, successes - k)
    log_p -= math.lgamma(n1 + n2 + 1) - math.lgamma(successes + 1) - math.lgamma(n1 + n2 - successes + 1)
    p = np.exp(log_p)
    # Equal probabilities differ in the last digits.
    return float(min(1.0, p[p <= p[k1 - low] * (1 + 1e-7)].sum()))


def ks_p(statistic: float, n1: int, n2: int) -> float:
    """P that two samples of one distribution have Kolmogorov-Smirnov distances of at least `statistic`.

    Smirnov's limit, which errs on the large side for small samples and where values are tied: never too many alarms.
    Source: N. V. Smirnov, "Table for estimating the goodness of fit of empirical distributions", Annals of Mathematical
    Statistics 19 (1948).
    """
    x = math.sqrt(n1 * n2 / (n1 + n2)) * statistic
    if x < 0.2:
        return 1.0
    terms = [2 * (-1) ** (j - 1) * math.exp(-2 * j * j * x * x) for j in range(1, 101)]
    return min(1.0, max(0.0, math.fsum(terms)))


def ks_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The largest distance between the distribution functions of two samples."""
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, both, "right") / len(a) - np.searchsorted(b, both, "right") / len(b)).max())


def stability_index(expected: NDArray[np.float64], actual: NDArray[np.float64], bins: int = 10) -> float:
    """Population stability index: sum over bins of (a - e) ln(a / e), with bins at the quantiles of `expected`.

    Below 0.1 is taken as no change, above 0.25 as a large one. Half a count in each bin keeps empty ones finite.
    """
    edges = np.unique(np.quantile(expected, np.arange(1, bins) / bins))
    e = np.bincount(np.searchsorted(edges, expected, "left"), minlength=len(edges) + 1) + 0.5
    a = np.bincount(np.searchsorted(edges, actual, "left"), minlength=len(edges) + 1) + 0.5
    e, a = e / e.sum(), a / a.sum()
    return float(((a - e) * np.log(a / e)).sum())
