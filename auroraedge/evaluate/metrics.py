"""Image-level metrics, confidence intervals and calibration error. NumPy only.

Legend: n images, K classes. A statistic for the bootstrap is a function of one weight an image (float64 [n], how often
the image is drawn), so that no replicate copies data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from auroraedge.inspection.results import Verdict

Weights = NDArray[np.float64]
Statistic = Callable[[Weights], float]

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


class Estimate(BaseModel):
    """A figure with its 95 % interval. `value` is None where it is undefined (nothing to count)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float | None
    low: float | None = None
    high: float | None = None
    numerator: int | None = None
    denominator: int | None = None
    interval: Literal["wilson", "cluster_bootstrap", "simulation", "none"] = "none"


def wilson(successes: int, total: int, z: float = Z_95) -> Estimate:
    """The proportion successes / total with Wilson's score interval.

    centre = (p + z^2/2n) / (1 + z^2/n), half width = z / (1 + z^2/n) * sqrt(p(1-p)/n + z^2/4n^2).
    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    The interval takes the images as independent; images of one part are not, so it is then somewhat too narrow.
    Raises ValueError unless 0 <= successes <= total.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} of {total} is not a proportion")
    if total == 0:
        return Estimate(value=None, numerator=0, denominator=0)
    p, scale = successes / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    # At 0 and at `total` the bounds are exactly 0 and 1; rounding may leave 1e-17.
    return Estimate(
        value=p,
        low=0.0 if successes == 0 else max(0.0, centre - half),
        high=1.0 if successes == total else min(1.0, centre + half),
        numerator=successes,
        denominator=total,
        interval="wilson",
    )


def cluster_bootstrap(
    statistic: Statistic, groups: Sequence[str], *, replicates: int = 1000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """`statistic` over all images, with a percentile interval from resampling whole groups with replacement.

    Images of one group (one part, one place) share their luck, so groups are drawn and not images.
    Source: Davison and Hinkley, "Bootstrap Methods and their Application" (1997), 3.8 (resampling clusters) and 5.3
    (percentile method). Replicates where the statistic is undefined (nan) are left out. With one group, or a
    statistic that is undefined over all images, there is no interval. A figure without any error has an interval of
    width zero: that is a limit of the method and not certainty.
    """
    n = len(groups)
    value = statistic(np.ones(n)) if n else math.nan
    names, member = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    if math.isnan(value):
        return Estimate(value=None)
    if len(names) < 2:
        return Estimate(value=value)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates).astype(np.float64)
    results = np.array([statistic(counts[member]) for counts in drawn])
    results = results[~np.isnan(results)]
    if len(results) < replicates / 2:
        return Estimate(value=value)
    low, high = np.quantile(results, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value=value, low=float(low), high=float(high), interval="cluster_bootstrap")


def confusion_matrix(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str], weights: Weights | None = None
) -> NDArray[np.float64]:
    """float64 [K, K]: weight of the images of true class (row) taken for a class (column), in the order of `labels`.

    Raises ValueError for a class that `labels` lacks.
    """
    index = {label: position for position, label in enumerate(labels)}
    unknown = sorted((set(truth) | set(predicted)) - set(index))
    if unknown:
        raise ValueError(f"classes without a row: {', '.join(unknown)}")
    rows = np.array([index[label] for label in truth], dtype=np.int64)
    columns = np.array([index[label] for label in predicted], dtype=np.int64)
    return _confusion(rows, columns, len(labels), np.ones(len(rows)) if weights is None else weights)


def _confusion(rows: NDArray[np.int64], columns: NDArray[np.int64], size: int, weights: Weights) -> Weights:
    counts = np.bincount(rows * size + columns, weights=weights, minlength=size * size)
    return np.asarray(counts, dtype=np.float64).reshape(size, size)


def accuracy(confusion: NDArray[np.float64]) -> float:
    """Trace over sum: the share of images given their true class; nan without images."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else math.nan


def balanced_accuracy(confusion: NDArray[np.float64]) -> float:
    """Mean recall over the classes that occur in the truth; nan without images.

    Source: Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010 (for K classes the
    macro-averaged recall, as in scikit-learn's balanced_accuracy_score).
    """
    support = confusion.sum(axis=1)
    present = support > 0
    return float(np.mean(np.diag(confusion)[present] / support[present])) if present.any() else math.nan


def macro_f1(confusion: NDArray[np.float64]) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); nan without images.

    The mean runs over the classes that occur in truth or prediction, as scikit-learn's f1_score(average="macro").
    Source: van Rijsbergen, "Information Retrieval" (1979), chapter 7, averaged over classes.
    """
    hits, involved = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1)
    present = involved > 0
    return float(np.mean(2 * hits[present] / involved[present])) if present.any() else math.nan


def class_statistic(
    truth: Sequence[str],
    predicted: Sequence[str],
    labels: Sequence[str],
    figure: Callable[[NDArray[np.float64]], float],
) -> Statistic:
    """`figure` of the confusion matrix as a function of the images' weights, for `cluster_bootstrap`."""
    index = {label: position for position, label in enumerate(labels)}
    rows = np.array([index[label] for label in truth], dtype=np.int64)
    columns = np.array([index[label] for label in predicted], dtype=np.int64)
    return lambda weights: figure(_confusion(rows, columns, len(labels), weights))


class VerdictScores(BaseModel):
    """OK / NG decisions against the truth.

    escape_rate: defective images called OK, of all defective ones. overkill_rate: good images called NG, of all good
    ones. In these primary figures REVIEW and ERROR are neither, but stay in the denominator. The strict figures take
    REVIEW and ERROR as NG (someone has to look at the part): the escape rate is the same by definition.
    decided_accuracy: right verdicts of the images with verdict OK or NG.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    good: int
    defective: int
    counts: dict[str, dict[str, int]]
    escape_rate: Estimate
    overkill_rate: Estimate
    review_rate: Estimate
    error_rate: Estimate
    decided_accuracy: Estimate
    strict_escape_rate: Estimate
    strict_overkill_rate: Estimate
    strict_accuracy: Estimate
    strict_balanced_accuracy: Estimate


def verdict_scores(
    defective: Sequence[bool], verdicts: Sequence[Verdict], groups: Sequence[str], *, seed: int = 0
) -> VerdictScores:
    """Escapes, overkill, review and accuracy of `verdicts` for images that are `defective` or good.

    Balanced accuracy is None unless both kinds occur. Terms: escape = missed defect that leaves the line, overkill =
    good part rejected (false reject), as usual in automatic inspection. Raises ValueError for unequal lengths.
    """
    if not len(defective) == len(verdicts) == len(groups):
        raise ValueError("defective, verdicts and groups must have one entry an image")
    names = {False: "good", True: "defective"}
    counts = {kind: {verdict.value: 0 for verdict in Verdict} for kind in names.values()}
    for is_defective, verdict in zip(defective, verdicts, strict=True):
        counts[names[is_defective]][Verdict(verdict).value] += 1
    good, bad = counts["good"], counts["defective"]
    n_good, n_bad, n = sum(good.values()), sum(bad.values()), len(verdicts)
    passed, missed = good["OK"], bad["OK"]
    truth = [names[is_defective] for is_defective in defective]
    strict = ["good" if verdict == Verdict.OK else "defective" for verdict in verdicts]
    balanced = class_statistic(truth, strict, ["good", "defective"], balanced_accuracy)
    return VerdictScores(
        good=n_good,
        defective=n_bad,
        counts=counts,
        escape_rate=wilson(missed, n_bad),
        overkill_rate=wilson(good["NG"], n_good),
        review_rate=wilson(good["REVIEW"] + bad["REVIEW"], n),
        error_rate=wilson(good["ERROR"] + bad["ERROR"], n),
        decided_accuracy=wilson(passed + bad["NG"], passed + good["NG"] + missed + bad["NG"]),
        strict_escape_rate=wilson(missed, n_bad),
        strict_overkill_rate=wilson(n_good - passed, n_good),
        strict_accuracy=wilson(passed + n_bad - missed, n),
        strict_balanced_accuracy=(
            cluster_bootstrap(balanced, groups, seed=seed) if n_good and n_bad else Estimate(value=None)
        ),
    )


def roc_auc(defective: ArrayLike, ng_probability: ArrayLike) -> float:
    """P(a defective image scores above a good one), ties half: the area under the ROC curve; nan with one kind only.

    Mann-Whitney U over the number of pairs. Source: Fawcett, "An introduction to ROC analysis", Pattern Recognition
    Letters 27 (2006).
    """
    truth, score = np.asarray(defective, dtype=bool), np.asarray(ng_probability, dtype=np.float64)
    n_bad, n_good = int(truth.sum()), int((~truth).sum())
    if not n_bad or not n_good:
        return math.nan
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    rank = (last - (count - 1) / 2)[place]  # mean rank of ties, from 1
    return float((rank[truth].sum() - n_bad * (n_bad + 1) / 2) / (n_bad * n_good))


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """ECE = sum over bins of (n_b / n) * |accuracy_b - mean confidence_b|, equal-width bins (lo, hi]; nan when empty.

    `confidence` float [n] in 0..1 of the class that was chosen, `correct` bool [n].
    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599, eq. 3.
    """
    p, hit = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if p.shape != hit.shape:
        raise ValueError("confidence and correct must have one entry an image")
    if p.size == 0:
        return math.nan
    if p.min() < 0 or p.max() > 1:
        raise ValueError("confidence must be in 0..1")
    edges = np.arange(1, bins) / bins
    where = np.searchsorted(edges, p, side="left")
    gap = np.bincount(where, weights=hit, minlength=bins) - np.bincount(where, weights=p, minlength=bins)
    return float(np.abs(gap).sum() / p.size)


def calibration_estimate(
    confidence: ArrayLike, correct: ArrayLike, groups: Sequence[str], *, seed: int = 0
) -> Estimate:
    """`expected_calibration_error` with a bootstrap interval over groups; `calibration_floor` is what to hold it to.

    Raises ValueError as `expected_calibration_error` does.
    """
    p, hit = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)

    def statistic(weights: Weights) -> float:
        drawn = np.repeat(np.arange(len(p)), weights.astype(np.int64))
        return expected_calibration_error(p[drawn], hit[drawn])

    return cluster_bootstrap(statistic, groups, seed=seed)


def calibration_floor(confidence: ArrayLike, *, draws: int = 2000, seed: int = 0) -> Estimate:
    """The error that a perfectly calibrated model would show on as many images with the same confidences.

    Bins of few images never match their mean confidence, so with a few hundred images even a model that is right as
    often as it says has an error well above 0. Each draw makes image i correct with probability `confidence[i]`
    (images independent) and takes `expected_calibration_error`; the value is the mean over the draws, the interval
    their 2.5 and 97.5 percentiles. Source: Broecker and Smith, "Increasing the Reliability of Reliability Diagrams",
    Weather and Forecasting 22 (2007), consistency resampling.
    """
    p = np.asarray(confidence, dtype=np.float64)
    if p.size == 0:
        return Estimate(value=None, interval="simulation")
    rng = np.random.default_rng(seed)
    errors = [expected_calibration_error(p, rng.random(p.size) < p) for _ in range(draws)]
    low, high = np.percentile(errors, (2.5, 97.5))
    return Estimate(value=float(np.mean(errors)), low=float(low), high=float(high), interval="simulation")
