"""Box metrics: matching, precision / recall / F-score, average precision, recall by size. NumPy only.

Legend: D predicted boxes of a class over all images, n images. Boxes are (x1, y1, x2, y2) in source pixels, x2 and y2
exclusive. Matching is done once; every figure is then a weighted sum over images, so that the bootstrap is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auroraedge.evaluate.metrics import Statistic, Weights

Quad = tuple[float, float, float, float]

F_IOU = 0.33  # of the DeepPCB paper, arXiv:1902.06197, section 4
AP_IOU = 0.5
SIZE_EDGES_PX2 = (32.0**2, 96.0**2)  # COCO's small / medium / large
SIZE_NAMES = ("small", "medium", "large")


@dataclass(frozen=True, kw_only=True)
class LabelledBox:
    """A true (confidence 1) or predicted box."""

    label: str
    box: Quad
    confidence: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ImageBoxes:
    """True and predicted boxes of one image."""

    truth: Sequence[LabelledBox]
    predicted: Sequence[LabelledBox]


def iou_matrix(a: Iterable[Quad], b: Iterable[Quad]) -> NDArray[np.float64]:
    """Intersection over union of every box of `a` with every box of `b`, float64 [len(a), len(b)]; 0 for empty boxes.

    Source: the Jaccard index as in Everingham et al., "The PASCAL VOC Challenge", IJCV 88 (2010), 4.2, without its
    "+1" on widths because x2 and y2 are exclusive here.
    """
    p = np.array(list(a), dtype=np.float64).reshape(-1, 1, 4)
    q = np.array(list(b), dtype=np.float64).reshape(1, -1, 4)
    size = np.minimum(p[..., 2:], q[..., 2:]) - np.maximum(p[..., :2], q[..., :2])
    common = np.prod(np.clip(size, 0, None), axis=-1)
    area_p = np.prod(np.clip(p[..., 2:] - p[..., :2], 0, None), axis=-1)
    area_q = np.prod(np.clip(q[..., 2:] - q[..., :2], 0, None), axis=-1)
    union = area_p + area_q - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def match_boxes(truth: Sequence[Quad], predicted: Sequence[Quad], confidence: Sequence[float], iou: float) -> list[int]:
    """Index of the true box that each prediction is matched to, or -1.

    Greedy one-to-one: predictions by falling confidence (equal ones in the order given) each take the free true box
    of greatest IoU, which must exceed `iou`. Source: COCO's evaluation (cocoeval.evaluateImg) for one image and class.
    """
    overlaps = iou_matrix(predicted, truth)
    matched = [-1] * len(predicted)
    free = np.ones(len(truth), dtype=bool)
    for index in np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable"):
        candidates = np.where(free, overlaps[index], -1.0)
        if candidates.size and (best := int(np.argmax(candidates))) >= 0 and candidates[best] > iou:
            matched[index], free[best] = best, False
    return matched


@dataclass(frozen=True, kw_only=True)
class ClassMatches:
    """All boxes of one class after matching. Predictions are sorted by falling confidence."""

    confidence: NDArray[np.float64]  # [D]
    hit: NDArray[np.bool_]  # [D]
    image: NDArray[np.int64]  # [D] index of the prediction's image
    truth_count: NDArray[np.float64]  # [n]
    truth_area: NDArray[np.float64]  # one a true box, square pixels
    truth_found: NDArray[np.bool_]  # one a true box
    truth_image: NDArray[np.int64]  # one a true box


def match_class(images: Sequence[ImageBoxes], label: str | None, iou: float) -> ClassMatches:
    """Matches the boxes of `label` in every image; None matches boxes of any label with each other."""
    confidence: list[float] = []
    hit: list[bool] = []
    owner: list[int] = []
    area: list[float] = []
    found: list[bool] = []
    truth_owner: list[int] = []
    for index, image in enumerate(images):
        truth = [box for box in image.truth if label is None or box.label == label]
        predicted = [box for box in image.predicted if label is None or box.label == label]
        scores = [box.confidence for box in predicted]
        matched = match_boxes([box.box for box in truth], [box.box for box in predicted], scores, iou)
        confidence += scores
        hit += [target >= 0 for target in matched]
        owner += [index] * len(predicted)
        taken = set(matched)
        found += [position in taken for position in range(len(truth))]
        area += [(b.box[2] - b.box[0]) * (b.box[3] - b.box[1]) for b in truth]
        truth_owner += [index] * len(truth)
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")
    truth_image = np.asarray(truth_owner, dtype=np.int64)
    return ClassMatches(
        confidence=np.asarray(confidence, dtype=np.float64)[order],
        hit=np.asarray(hit, dtype=bool)[order],
        image=np.asarray(owner, dtype=np.int64)[order],
        truth_count=np.bincount(truth_image, minlength=len(images)).astype(np.float64),
        truth_area=np.asarray(area, dtype=np.float64),
        truth_found=np.asarray(found, dtype=bool),
        truth_image=truth_image,
    )


def f_counts(matches: Iterable[ClassMatches], weights: Weights) -> tuple[float, float, float]:
    """Weighted (true positives, false positives, false negatives) summed over classes (micro average)."""
    hits = predictions = truths = 0.0
    for item in matches:
        weight = weights[item.image]
        hits += float(weight[item.hit].sum())
        predictions += float(weight.sum())
        truths += float(weights @ item.truth_count)
    return hits, predictions - hits, truths - hits


def f_score(true_positive: float, false_positive: float, false_negative: float) -> float:
    """F = 2 P R / (P + R) = 2 TP / (2 TP + FP + FN); nan with neither truth nor prediction.

    Source: the F-score of arXiv:1902.06197 (DeepPCB), micro-averaged over classes.
    """
    total = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / total if total else math.nan


def average_precision(matches: ClassMatches, weights: Weights) -> float:
    """Area under the precision envelope, every recall step counted (all-point interpolation); nan without truth.

    AP = sum over k of (r_k - r_{k-1}) * max_{j >= k} p_j. Source: PASCAL VOC 2010 development kit, section 3.4.1.
    """
    truths = float(weights @ matches.truth_count)
    if truths <= 0:
        return math.nan
    weight = weights[matches.image]
    drawn = weight > 0
    weight, hit = weight[drawn], matches.hit[drawn]
    if not weight.size:
        return 0.0
    hits = np.cumsum(weight * hit)
    precision = np.maximum.accumulate((hits / np.cumsum(weight))[::-1])[::-1]
    return float(np.sum(np.diff(hits, prepend=0.0) * precision) / truths)


def mean_average_precision(matches: Sequence[ClassMatches], weights: Weights) -> float:
    """Mean of `average_precision` over the classes that occur in the truth; nan without any."""
    values = [value for item in matches if not math.isnan(value := average_precision(item, weights))]
    return float(np.mean(values)) if values else math.nan


def micro_f_statistic(matches: Sequence[ClassMatches]) -> Statistic:
    """Micro F-score as a function of the images' weights."""
    return lambda weights: f_score(*f_counts(matches, weights))


def map_statistic(matches: Sequence[ClassMatches]) -> Statistic:
    """mAP as a function of the images' weights."""
    return lambda weights: mean_average_precision(matches, weights)


def recall_by_size(matches: Iterable[ClassMatches]) -> dict[str, tuple[int, int]]:
    """(found, present) true boxes by area: small < 32^2 <= medium < 96^2 <= large, in source pixels.

    Source of the edges: COCO detection evaluation (cocodataset.org/#detection-eval).
    """
    found = dict.fromkeys(SIZE_NAMES, 0)
    present = dict.fromkeys(SIZE_NAMES, 0)
    for item in matches:
        sizes = np.digitize(item.truth_area, SIZE_EDGES_PX2)
        for index, name in enumerate(SIZE_NAMES):
            chosen = sizes == index
            present[name] += int(chosen.sum())
            found[name] += int(item.truth_found[chosen].sum())
    return {name: (found[name], present[name]) for name in SIZE_NAMES}


def best_confidence(matches: Sequence[ClassMatches]) -> tuple[float, float]:
    """(threshold, micro F-score) of the confidence threshold (boxes at or above it are kept) with the best F-score.

    Exact for one class at a time, because greedy matching by confidence does not change when weaker boxes go.
    For choosing a recipe's `defect_confidence` on a validation split; never on test. (1, nan) without any box.
    """
    confidence = np.concatenate([item.confidence for item in matches]) if matches else np.zeros(0)
    if not confidence.size:
        return 1.0, math.nan
    hit = np.concatenate([item.hit for item in matches])
    truths = sum(float(item.truth_count.sum()) for item in matches)
    order = np.argsort(-confidence, kind="stable")
    ranked, hits = confidence[order], np.cumsum(hit[order])
    scores = 2 * hits / (np.arange(1, len(ranked) + 1) + truths)
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    best = int(np.argmax(np.where(last_of_tie, scores, -1.0)))
    return float(ranked[best]), float(scores[best])
