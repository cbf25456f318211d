"""Typed result of an evaluation. JSON-able; holds every raw prediction, so each figure can be computed again."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from auroraedge.data.pack import Truth
from auroraedge.evaluate.metrics import Estimate, VerdictScores
from auroraedge.inspection.results import InspectionResult


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SampleKind(StrEnum):
    """What was shown. All but `annotated` are good samples made for sets that have a template and no good image.

    template_identical: the template as image and reference, trivially easy. template_perturbed: the template, shifted
    by a pixel and with noisy edges, against the clean one. crop: a part of a real image that holds no annotated box,
    against the same part of its template; real imaging noise, but smaller than a frame.
    """

    ANNOTATED = "annotated"
    TEMPLATE_IDENTICAL = "template_identical"
    TEMPLATE_PERTURBED = "template_perturbed"
    CROP = "crop"


class TruthBox(_Model):
    """A true defect; `box` is (x1, y1, x2, y2) in source pixels, x2 and y2 exclusive."""

    label: str
    box: tuple[float, float, float, float]


class SampleInfo(_Model):
    """What is known of one inspected image. `key` names it within the set."""

    key: str
    kind: SampleKind
    file: str
    split: str
    group: str
    truth: Truth
    image_label: str
    objects: tuple[TruthBox, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)


class Prediction(_Model):
    """One inspected sample."""

    sample: SampleInfo
    result: InspectionResult


class BoxScores(_Model):
    """Scores of one defect class (or of any-label boxes) at IoU > 0.33, and its average precision."""

    truth: int
    predicted: int
    precision: Estimate
    recall: Estimate
    f_score: Estimate
    ap33: float | None
    ap50: float | None


class DetectionScores(_Model):
    """Box scores over the annotated images; good samples made from templates are left out.

    `micro` sums over classes; `any_label` ignores the class (localisation alone). mAP is that of the boxes that were
    reported: boxes below the recipe's defect_confidence are not, so a recipe with defect_confidence 0 gives the full
    curve. `best_confidence`: the threshold with the best micro F-score on these images and that score, for setting a
    recipe on a validation split.
    """

    images: int
    iou: float
    micro: BoxScores
    any_label: BoxScores
    per_class: dict[str, BoxScores]
    map33: Estimate
    map50: Estimate
    recall_by_size: dict[str, Estimate]
    f_score_by_subset: dict[str, Estimate]
    best_confidence: float
    best_confidence_f_score: float | None


class ClassScores(_Model):
    """Image classes. `confusion[i][j]`: images of class `labels[i]` taken for `labels[j]`."""

    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate


class GoodScores(_Model):
    """Good samples of one kind: called NG, not called OK (strict), and boxes reported a sample."""

    samples: int
    overkill_rate: Estimate
    strict_overkill_rate: Estimate
    false_boxes_per_sample: float


class PredictorScores(_Model):
    """All scores of one predictor. None: the set has no truth for them."""

    predictor: str
    description: str = ""
    images: int
    errors: int
    verdict: VerdictScores | None = None
    good_by_kind: dict[str, GoodScores] = Field(default_factory=dict)
    presumed_good: GoodScores | None = None
    image_class: ClassScores | None = None
    detection: DetectionScores | None = None
    roc_auc: float | None = None
    expected_calibration_error: float | None = None
    calibration_error: Estimate | None = None
    calibration_floor: Estimate | None = None


class EvalReport(_Model):
    """One evaluation of a predictor on one split of one set, with a classical baseline beside it.

    `difference`: model minus baseline on the same images, bootstrap interval over groups drawn for both alike.
    """

    schema_version: int = 1
    created_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    set_name: str
    split: str
    recipe_id: str
    recipe_sha256: str
    seed: int
    limit: int | None = None
    interrupted: bool = False
    groups: int
    versions: dict[str, str] = Field(default_factory=dict)
    model: PredictorScores
    baseline: PredictorScores | None = None
    difference: dict[str, Estimate] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    baseline_predictions: tuple[Prediction, ...] = ()
