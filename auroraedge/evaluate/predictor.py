"""What the evaluation asks of a predictor: one method. The runtime's Inspector and the baselines both have it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from auroraedge.errors import InvalidImageError
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Box, Defect, InspectionResult, Verdict

ImageSource = bytes | Path | NDArray[np.uint8]


class Predictor(Protocol):
    """Inspects one image. `image` and `reference`: an encoded file's bytes, its path, or uint8 RGB [H, W, 3]."""

    def inspect(
        self, image: ImageSource, recipe: Recipe, *, reference: ImageSource | None = None, image_name: str = ""
    ) -> InspectionResult:
        """The verdict and defects. Raises AuroraEdgeError for input that cannot be inspected."""
        ...


def decode(image: ImageSource, field: str = "image") -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] of an image given in any of the ways a predictor accepts. Raises InvalidImageError."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InvalidImageError(f"uint8 RGB [H, W, 3] is expected, not {image.dtype} {image.shape}.", field=field)
        return image
    data = image.read_bytes() if isinstance(image, Path) else image
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:
        bgr = None
    if bgr is None:
        raise InvalidImageError("The bytes are not a complete image.", field=field)
    return np.ascontiguousarray(bgr[..., ::-1], dtype=np.uint8)


def make_result(
    recipe: Recipe,
    rgb: NDArray[np.uint8],
    *,
    predictor: str,
    ng_probability: float | None,
    boxes: Iterable[tuple[str, tuple[float, float, float, float], float]] = (),
    predicted_class: str | None = None,
    class_probability: float | None = None,
    reference_used: bool = False,
    image_name: str = "",
) -> InspectionResult:
    """A baseline's answer as a result. The recipe's thresholds decide.

    `boxes` are (label, (x1, y1, x2, y2) in source pixels, confidence); they are cut to the image.
    `ng_probability` None (a classification) gives NG: every class of a `classify` recipe is a defect.
    """
    h, w = rgb.shape[:2]
    thresholds = recipe.thresholds
    if ng_probability is None or ng_probability >= thresholds.ng_above:
        verdict = Verdict.NG
    else:
        verdict = Verdict.OK if ng_probability < thresholds.ok_below else Verdict.REVIEW
    defects = tuple(
        Defect(
            label=label,
            severity=recipe.label(label).severity,
            box=Box(x1=max(0.0, x1), y1=max(0.0, y1), x2=min(float(w), x2), y2=min(float(h), y2)),
            confidence=confidence,
        )
        for label, (x1, y1, x2, y2), confidence in sorted(boxes, key=lambda box: -box[2])
        if confidence >= recipe.min_confidence(label)
    )
    return InspectionResult(
        verdict=verdict,
        ng_probability=ng_probability,
        recipe_id=recipe.id,
        recipe_version=recipe.version,
        recipe_sha256=recipe.sha256,
        thresholds=thresholds,
        defects=defects,
        predicted_class=predicted_class,
        class_probability=class_probability,
        model_id=predictor,
        image_sha256=hashlib.sha256(rgb.tobytes()).hexdigest(),
        image_width=w,
        image_height=h,
        image_name=image_name,
        reference_used=reference_used,
    )
