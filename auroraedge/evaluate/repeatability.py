"""The same part again: alone, and in a batch of any size and company, it must get the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from auroraedge.data.pack import PackItem, image_bytes
from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import InspectionResult
from auroraedge.runtime import InspectionJob, Inspector


class RepeatabilityReport(BaseModel):
    """Compared with the first inspection of each part.

    inspections: repetitions that were compared. verdicts, classes, boxes: those that differ in their verdict, class, or
    in any label, box or confidence of their defects. largest_difference: of P(NG). largest_batch: parts in one batch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    created_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    set_name: str = ""
    split: str = ""
    recipe_id: str
    model_id: str
    engine_sha256: str
    parts: int
    alone: int
    in_batches: int
    largest_batch: int
    inspections: int
    verdicts: int
    classes: int
    boxes: int
    largest_difference: float

    def summary(self) -> str:
        return (
            f"{self.parts} parts, {self.inspections} repetitions ({self.alone} times alone, {self.in_batches} times in "
            f"batches of up to {self.largest_batch}): {self.verdicts} other verdicts, {self.classes} other classes, "
            f"{self.boxes} other lists of defects, P(NG) differs by at most {self.largest_difference:.1e}"
        )


def pack_jobs(items: Sequence[PackItem], recipe: Recipe) -> list[InspectionJob]:
    """A job an image, with its golden sample where the recipe uses one."""
    uses = recipe.golden_reference != "none"
    return [
        InspectionJob(
            image=image_bytes(item.path),
            recipe=recipe,
            reference=image_bytes(item.reference) if uses and item.reference is not None else None,
        )
        for item in items
    ]


def measure_repeatability(
    inspector: Inspector, jobs: Sequence[InspectionJob], *, times: int, batches: int, seed: int = 0
) -> RepeatabilityReport:
    """Each job once, then `times` more alone and `batches` times in a batch of a drawn size with drawn neighbours.

    Raises InvalidRequestError without a job, and the error of a part that cannot be inspected.
    """
    if not jobs:
        raise InvalidRequestError("There is no part to inspect.", field="jobs", remedy="Name a split that has images.")
    first = [_alone(inspector, job) for job in jobs]
    again: list[tuple[int, InspectionResult]] = []
    for _ in range(times):
        again += [(index, _alone(inspector, job)) for index, job in enumerate(jobs)]
    rng = np.random.default_rng(seed)
    largest = 0
    for _ in range(batches):
        order = rng.permutation(len(jobs)).tolist()
        while order:
            size = int(rng.integers(2, 17))
            batch, order = order[:size], order[size:]
            largest = max(largest, len(batch))
            for index, outcome in zip(batch, inspector.inspect_batch([jobs[i] for i in batch]), strict=True):
                if isinstance(outcome, AuroraEdgeError):
                    raise outcome
                again.append((index, outcome))
    pairs = [(first[index], result) for index, result in again]
    info = inspector.engine
    return RepeatabilityReport(
        recipe_id=jobs[0].recipe.id,
        model_id=info.model_id,
        engine_sha256=info.engine_sha256,
        parts=len(jobs),
        alone=times,
        in_batches=batches,
        largest_batch=largest,
        inspections=len(pairs),
        verdicts=sum(a.verdict is not b.verdict for a, b in pairs),
        classes=sum(a.predicted_class != b.predicted_class for a, b in pairs),
        boxes=sum(a.defects != b.defects for a, b in pairs),
        largest_difference=max((_difference(a, b) for a, b in pairs), default=0.0),
    )


def _alone(inspector: Inspector, job: InspectionJob) -> InspectionResult:
    return inspector.inspect(job.image, job.recipe, reference=job.reference)


def _difference(a: InspectionResult, b: InspectionResult) -> float:
    if a.ng_probability is None or b.ng_probability is None:
        return 0.0 if a.ng_probability is b.ng_probability else 1.0
    return abs(a.ng_probability - b.ng_probability)
