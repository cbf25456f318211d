"""Typed results of an inspection. Field names follow OPC UA Machine Vision (40100-1) where it has one."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from auroraedge.errors import AuroraEdgeError
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.recipe import Recipe, Severity, Thresholds


class Verdict(StrEnum):
    OK = "OK"
    NG = "NG"
    REVIEW = "REVIEW"
    ERROR = "ERROR"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Box(_Model):
    """A box in source-image pixels: origin top left, x2 and y2 exclusive."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def width(self) -> float:
        return max(0.0, self.x2 - self.x1)

    @property
    def height(self) -> float:
        return max(0.0, self.y2 - self.y1)

    @property
    def area(self) -> float:
        return self.width * self.height

    def intersection(self, other: Box) -> float:
        """Common area in square pixels."""
        w = min(self.x2, other.x2) - max(self.x1, other.x1)
        h = min(self.y2, other.y2) - max(self.y1, other.y1)
        return max(0.0, w) * max(0.0, h)

    def iou(self, other: Box) -> float:
        """Intersection over union, 0..1."""
        common = self.intersection(other)
        union = self.area + other.area - common
        return common / union if union > 0 else 0.0


class Defect(_Model):
    label: str
    severity: Severity
    box: Box | None = None
    confidence: float = Field(ge=0, le=1)
    region: str = Field(default="", description="Name of the region of interest that it was found in.")


class Region(_Model):
    """A region of interest in pixels of the frame. An empty name becomes "region-N", N being its place from 1."""

    name: str = Field(default="", max_length=64)
    x: int = Field(ge=0)
    y: int = Field(ge=0)
    width: int = Field(ge=1)
    height: int = Field(ge=1)


class RegionVerdict(_Model):
    """The verdict on one region of interest."""

    region: Region
    verdict: Verdict
    ng_probability: float = Field(ge=0, le=1)
    views: int = 0


class StageTimings(_Model):
    """Milliseconds of one inspection. `verdict_ms`: from the start until OK/NG was known.

    queue_ms, store_ms and service_ms are the server's: the wait before the start, the commit to the store, and all of
    it from the arrival of the request until the answer was ready. total_ms is without them.
    """

    decode_ms: float = 0.0
    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    verdict_ms: float = 0.0
    generate_ms: float = 0.0
    total_ms: float = 0.0
    queue_ms: float = 0.0
    store_ms: float = 0.0
    service_ms: float = 0.0


class RequestInfo(_Model):
    """Where a frame comes from. All optional; carried unchanged into the result."""

    request_id: str = Field(default="", max_length=256)
    part_id: str = Field(default="", max_length=256)
    lot: str = Field(default="", max_length=256)
    line: str = Field(default="", max_length=256)
    station: str = Field(default="", max_length=256)
    camera: str = Field(default="", max_length=256)
    job: str = Field(default="", max_length=256)
    exposure_us: float | None = Field(default=None, ge=0)
    captured_at: AwareDatetime | None = None
    trigger_id: str = Field(default="", max_length=256)


class ErrorDetail(_Model):
    reason: str
    message: str
    remedy: str = ""
    field: str = ""

    @classmethod
    def of(cls, error: AuroraEdgeError) -> ErrorDetail:
        return cls(reason=error.reason, message=error.message, remedy=error.remedy, field=error.field)


class Receipt(_Model):
    """The store's confirmation of a result. `replayed`: the answer given earlier to the same request id."""

    stored: bool
    seq: int = 0
    stored_at: AwareDatetime | None = None
    replayed: bool = False


def new_result_id() -> str:
    return str(uuid.uuid4())


def _now() -> datetime:
    return datetime.now(UTC)


class InspectionResult(_Model):
    """The verdict on one frame, what it rests on, and who gave it."""

    result_id: str = Field(default_factory=new_result_id)
    created_at: AwareDatetime = Field(default_factory=_now)
    request: RequestInfo = RequestInfo()
    verdict: Verdict
    ng_probability: float | None = Field(default=None, ge=0, le=1, description="Calibrated P(part is defective).")
    recipe_id: str = ""
    recipe_version: int = 0
    recipe_sha256: str = ""
    thresholds: Thresholds | None = None
    defects: tuple[Defect, ...] = ()
    predicted_class: str | None = None
    class_probability: float | None = Field(default=None, ge=0, le=1)
    answer_text: str = Field(default="", description="The model's answer as generated, one line a view.")
    text: str = Field(default="", description="The result in words.")
    model_id: str = ""
    engine_sha256: str = ""
    image_sha256: str = ""
    image_width: int = 0
    image_height: int = 0
    image_name: str = ""
    reference_used: bool = False
    views: int = 0
    is_partial: bool = False
    is_simulated: bool = False
    timings: StageTimings = StageTimings()
    warnings: tuple[str, ...] = ()
    error: ErrorDetail | None = None
    regions: tuple[RegionVerdict, ...] = Field(default=(), description="One a region of interest, if there are any.")
    receipt: Receipt | None = Field(default=None, description="Set by the service once the result is stored.")


class Answer(_Model):
    """The answer to one prompt about a frame. Boxes are in source pixels, probabilities in 0..1."""

    kind: PromptKind
    prompt: str = Field(description="The prompt as the model read it.")
    text: str
    verdict: Verdict | None = Field(default=None, description="OK also means absent; None for a free prompt.")
    ng_probability: float | None = Field(default=None, ge=0, le=1)
    defects: tuple[Defect, ...] = ()
    count: int | None = Field(default=None, ge=0)
    predicted_class: str | None = None
    timings: StageTimings = StageTimings()
    request: RequestInfo = RequestInfo()
    recipe_id: str = ""
    recipe_version: int = 0
    recipe_sha256: str = ""
    model_id: str = ""
    engine_sha256: str = ""
    image_sha256: str = ""
    image_width: int = 0
    image_height: int = 0


class GeneratedToken(_Model):
    """One token of an answer; `text` is what it adds, `done` is true on the last."""

    text: str
    token_id: int
    index: int
    done: bool


def error_result(
    error: AuroraEdgeError,
    recipe: Recipe | None = None,
    *,
    request: RequestInfo | None = None,
    image_name: str = "",
) -> InspectionResult:
    """The result of a failed inspection: verdict ERROR, never OK."""
    return InspectionResult(
        verdict=Verdict.ERROR,
        request=request or RequestInfo(),
        recipe_id=recipe.id if recipe else "",
        recipe_version=recipe.version if recipe else 0,
        recipe_sha256=recipe.sha256 if recipe else "",
        thresholds=recipe.thresholds if recipe else None,
        image_name=image_name,
        text=str(error),
        error=ErrorDetail.of(error),
    )
