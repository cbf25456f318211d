"""A frame on its way through the engine: the job, its decoded pixels, its views, and what the engine made of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from auroraedge.errors import ReferenceRequiredError
from auroraedge.inspection.grammar import ParsedItem
from auroraedge.inspection.images import DecodedImage, ImageLimits, decode_image
from auroraedge.inspection.prompts import Prompt, PromptKind, build_prompt
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import RequestInfo, new_result_id
from auroraedge.inspection.views import View, check_reference, mirror_images, patchify, plan_views, render_view
from auroraedge.runtime.generation import Row

ImageSource = bytes | str | Path | np.ndarray | DecodedImage
# Views that are inspected together: bounds the memory of a batch, and beyond it a CPU gains nothing.
MAX_VIEWS = 32


@dataclass(frozen=True, kw_only=True)
class InspectionJob:
    """One frame to inspect."""

    image: ImageSource
    recipe: Recipe
    reference: ImageSource | None = None
    request: RequestInfo = field(default_factory=RequestInfo)
    image_name: str = ""

    @property
    def compares(self) -> bool:
        """Whether the frame is seen beside its golden sample; one that the recipe does not ask for is left alone."""
        return self.reference is not None and self.recipe.golden_reference != "none"


@dataclass
class Prepared:
    """One prompt on a job that is decoded and cut into views; filled in on its way through the engine."""

    job: InspectionJob
    image: DecodedImage
    plan: list[View]
    patches: np.ndarray  # uint8 [views * copies, 256, 768]; several prompts on a frame share it
    prompt: Prompt
    reference_used: bool
    began: float
    decode_ms: float
    preprocess_ms: float
    result_id: str = field(default_factory=new_result_id)
    contrast: float = 255.0  # standard deviation of the views' grey levels
    copies: int = 1  # each view is seen once, or in its four mirror images; the first copy is the view itself
    all_rows: list[Row] = field(default_factory=list)  # [views * copies], view by view
    all_evidence: np.ndarray | None = None  # [views * copies, 256, 1 + labels + 4]
    all_presence: np.ndarray | None = None  # [views * copies, labels + 1]
    grounded: bool = False  # the list of defects comes from the evidence
    found: dict[int, Sequence[ParsedItem]] = field(default_factory=dict)  # by view, filled on first use
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    verdict_ms: float = 0.0
    generate_ms: float = 0.0

    @property
    def rows(self) -> list[Row]:
        """The answer on each view."""
        return self.all_rows[:: self.copies]

    @property
    def evidence(self) -> np.ndarray | None:
        return None if self.all_evidence is None else self.all_evidence[:: self.copies]

    @property
    def worst(self) -> int:
        """The view that looks most defective to the decoder."""
        logits = [row.verdict_logit or 0.0 for row in self.rows]
        return max(range(len(logits)), key=logits.__getitem__)


def elapsed_ms(since: float) -> float:
    return (time.perf_counter() - since) * 1000.0


def prepare(job: InspectionJob, limits: ImageLimits, prompt: Prompt | None = None, *, whole: bool = False) -> Prepared:
    """Decodes the job's images and renders its views; `prompt` None is the one of the recipe's task.

    whole: one plain view of the whole frame, whatever the recipe's tiling. Raises AuroraEdgeError for input that cannot
    be inspected.
    """
    began = time.perf_counter()
    recipe = job.recipe
    image = decode_image(job.image, limits)
    golden = None
    if recipe.golden_reference == "required" and job.reference is None:
        raise ReferenceRequiredError(f"Recipe '{recipe.id}' compares with a golden sample.", field="reference")
    if job.reference is not None and job.compares:
        golden = decode_image(job.reference, limits, field="reference").pixels
        check_reference(image.pixels, golden)
    decode_ms = elapsed_ms(began)
    started = time.perf_counter()
    plan = [View(0, 0, image.width, image.height)] if whole else plan_views(image.width, image.height, recipe.tiling)
    shown = [render_view(image.pixels, view, golden) for view in plan]
    if recipe.tiling.mirrored and not whole:
        shown = [copy for pixels in shown for copy in mirror_images(pixels)]
    stacked = np.stack(shown)
    patches = patchify(stacked)
    if prompt is None:
        kind = PromptKind.CLASSIFY if recipe.task == "classify" else PromptKind.INSPECT
        prompt = build_prompt(kind, recipe.label_names, reference=golden is not None)
    return Prepared(
        job=job,
        image=image,
        plan=plan,
        patches=patches,
        prompt=prompt,
        reference_used=golden is not None,
        # With a golden sample a uniform frame is no riddle: it differs from the sample or is as uniform.
        contrast=255.0 if golden is not None else float(stacked[..., 0].std()),
        copies=len(shown) // len(plan),
        began=began,
        decode_ms=decode_ms,
        preprocess_ms=elapsed_ms(started),
    )


def in_batches(items: Sequence[Prepared], max_views: int = MAX_VIEWS) -> Iterator[list[Prepared]]:
    """Neighbouring items with at most `max_views` views (copies counted) together; an item with more goes alone."""
    batch: list[Prepared] = []
    views = 0
    for item in items:
        if batch and views + len(item.patches) > max_views:
            yield batch
            batch, views = [], 0
        batch.append(item)
        views += len(item.patches)
    if batch:
        yield batch
