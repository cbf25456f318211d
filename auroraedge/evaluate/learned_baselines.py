"""Classical baselines that are fitted on a train split at run time: image classes, and boxes from local contrast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from auroraedge.data.pack import PackItem
from auroraedge.evaluate.detection import (
    F_IOU,
    ImageBoxes,
    LabelledBox,
    Quad,
    best_confidence,
    iou_matrix,
    match_class,
)
from auroraedge.evaluate.features import Array, SoftmaxRegression, image_features
from auroraedge.evaluate.predictor import ImageSource, decode, make_result
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import InspectionResult

BACKGROUND = "(background)"


class ClassBaseline:
    """HOG, LBP and grey statistics with a softmax regression; for `classify` recipes. The reference is not used."""

    name = "baseline-features-softmax"

    def __init__(self, items: Sequence[PackItem]) -> None:
        """Fits on the image labels of `items` (at least one)."""
        features = np.stack([image_features(item.load()) for item in items])
        self._model = SoftmaxRegression(l2=0.003).fit(features, [item.image_label for item in items])

    def inspect(
        self, image: ImageSource, recipe: Recipe, *, reference: ImageSource | None = None, image_name: str = ""
    ) -> InspectionResult:
        """The most probable class with its probability. Raises InvalidImageError."""
        rgb = decode(image)
        share = self._model.probabilities(image_features(rgb)[None])[0]
        best = int(np.argmax(share))
        return make_result(
            recipe,
            rgb,
            predictor=self.name,
            ng_probability=None,
            predicted_class=self._model.classes[best],
            class_probability=float(share[best]),
            image_name=image_name,
        )


@dataclass(frozen=True, kw_only=True)
class ContrastSettings:
    """`scales_px` are blur radii (sigma) after shrinking to `longest_px`; thresholds are robust standard deviations."""

    longest_px: int = 800
    scales_px: tuple[float, ...] = (4.0, 12.0)
    thresholds: tuple[float, ...] = (3.0, 5.0)
    min_area_px2: int = 12
    candidates_per_map: int = 12
    merge_iou: float = 0.3


def candidates(rgb: NDArray[np.uint8], settings: ContrastSettings) -> tuple[list[Quad], Array]:
    """Regions darker or brighter than their surroundings: boxes in source pixels, and features float64 [m, 14]."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    factor = min(1.0, settings.longest_px / max(grey.shape))
    if factor < 1:
        grey = cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    pixels = cv2.GaussianBlur(grey.astype(np.float32) / 255, (0, 0), 0.8)
    h, w = pixels.shape
    gradient = np.hypot(cv2.Sobel(pixels, cv2.CV_32F, 1, 0), cv2.Sobel(pixels, cv2.CV_32F, 0, 1))
    boxes: list[Quad] = []
    rows: list[list[float]] = []
    for sigma in settings.scales_px:
        contrast = pixels - cv2.GaussianBlur(pixels, (0, 0), sigma)
        noise = 1.4826 * float(np.median(np.abs(contrast))) + 1e-4
        for sign in (-1.0, 1.0):
            for threshold in settings.thresholds:
                raw = (sign * contrast > threshold * noise).astype(np.uint8)
                mask = cv2.morphologyEx(raw, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
                _, regions, stats, centres = cv2.connectedComponentsWithStats(mask, connectivity=8)
                order = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[: settings.candidates_per_map]
                for index in order:
                    x, y, bw, bh, area = (int(value) for value in stats[index])
                    if area < settings.min_area_px2:
                        break
                    window = np.s_[y : y + bh, x : x + bw]
                    inside = regions[window] == index
                    margin = max(1, min(bw, bh) // 8)
                    boxes.append(
                        (
                            max(0, x - margin) / factor,
                            max(0, y - margin) / factor,
                            min(w, x + bw + margin) / factor,
                            min(h, y + bh + margin) / factor,
                        )
                    )
                    values = contrast[window][inside]
                    rows.append(
                        [
                            sign,
                            sigma,
                            np.log(area),
                            np.log(bw / bh),
                            abs(np.log(bw / bh)),
                            area / (bw * bh),
                            float(np.mean(values)) / noise,
                            float(np.abs(values).max()) / noise,
                            float(np.mean(pixels[window][inside])),
                            float(np.mean(gradient[window][inside])),
                            float(np.std(pixels[window])),
                            min(x, y, w - x - bw, h - y - bh) / max(h, w),
                            abs(centres[index][0] / w - 0.5),
                            abs(centres[index][1] / h - 0.5),
                        ]
                    )
    return boxes, np.array(rows, dtype=np.float64).reshape(len(rows), 14)


class ContrastBaseline:
    """Local-contrast regions, each put into a defect class or the background by a softmax regression.

    Confidences are shifted (in log-odds) so that 0.5 is the threshold with the best F-score on the fitted images; they
    are an order, not calibrated. P(NG) is that of the strongest region. The image as a whole is not looked at, on
    purpose: in sets whose good and defective images come from different shots, that alone would tell them apart.
    """

    name = "baseline-contrast-softmax"

    def __init__(self, items: Sequence[PackItem], settings: ContrastSettings | None = None) -> None:
        """Fits on `items` (at least one with a box). Images without boxes give background regions."""
        self.settings = settings or ContrastSettings()
        regions = [candidates(item.load(), self.settings) for item in items]
        truths = [[LabelledBox(label=o.label, box=o.bbox) for o in item.objects] for item in items]
        labels = [_labels_of(boxes, truth) for (boxes, _), truth in zip(regions, truths, strict=True)]
        self._model = SoftmaxRegression(l2=0.001).fit(
            np.vstack([rows for _, rows in regions]), [label for one in labels for label in one]
        )
        self._odds_at_half = 0.0
        images = [
            ImageBoxes(truth=truth, predicted=self._classified(boxes, rows))
            for (boxes, rows), truth in zip(regions, truths, strict=True)
        ]
        known = [label for label in self._model.classes if label != BACKGROUND]
        matches = [match_class(images, label, F_IOU) for label in known]
        lowest_kept, _ = best_confidence(matches)
        # Half way to the strongest region that is left out: at the very last kept one, new images would fall short.
        below = max((float(c) for m in matches for c in m.confidence if c < lowest_kept), default=lowest_kept)
        self._odds_at_half = (_log_odds(lowest_kept) + _log_odds(below)) / 2

    def _classified(self, boxes: Sequence[Quad], rows: Array) -> list[LabelledBox]:
        if not boxes:
            return []
        found = [
            LabelledBox(label=label, box=box, confidence=1 / (1 + math.exp(self._odds_at_half - _log_odds(share[k]))))
            for box, share in zip(boxes, self._model.probabilities(rows).tolist(), strict=True)
            for k, label in enumerate(self._model.classes)
            if label != BACKGROUND
        ]
        return _suppress(found, self.settings.merge_iou)

    def inspect(
        self, image: ImageSource, recipe: Recipe, *, reference: ImageSource | None = None, image_name: str = ""
    ) -> InspectionResult:
        """Boxes of all non-background regions above the recipe's confidences. Raises InvalidImageError."""
        rgb = decode(image)
        found = [box for box in self._classified(*candidates(rgb, self.settings)) if box.label in recipe.label_names]
        return make_result(
            recipe,
            rgb,
            predictor=self.name,
            ng_probability=max((box.confidence for box in found), default=0.0),
            boxes=[(box.label, box.box, box.confidence) for box in found],
            image_name=image_name,
        )


def _log_odds(share: float) -> float:
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share))


def _labels_of(boxes: Sequence[Quad], truth: Sequence[LabelledBox]) -> list[str]:
    """The class of the true box that each region overlaps by more than a third, else the background."""
    if not truth:
        return [BACKGROUND] * len(boxes)
    overlaps = iou_matrix(boxes, [box.box for box in truth])
    return [truth[int(np.argmax(row))].label if row.max() > 0.33 else BACKGROUND for row in overlaps]


def _suppress(boxes: Sequence[LabelledBox], iou: float) -> list[LabelledBox]:
    """Greedy non-maximum suppression over all classes: of boxes that overlap more than `iou` the strongest stays."""
    kept: list[LabelledBox] = []
    for box in sorted(boxes, key=lambda b: -b.confidence):
        if not kept or iou_matrix([box.box], [k.box for k in kept]).max() <= iou:
            kept.append(box)
    return kept
