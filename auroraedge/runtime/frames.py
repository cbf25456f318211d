"""A frame on its way through the engine: the job, its decoded pixels, its views, and what the engine made of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from auroraedge.errors import AuroraEdgeError, ReferenceRequiredError
from auroraedge.inspection.alignment import align_reference
from auroraedge.inspection.grammar import ParsedItem
from auroraedge.inspection.grounding import mirrored_mean
from auroraedge.inspection.images import DecodedImage, ImageLimits, decode_image
from auroraedge.inspection.prompts import Prompt, PromptKind, build_prompt
from auroraedge.inspection.raw import RawFrame
from auroraedge.inspection.recipe import Recipe, Tiling
from auroraedge.inspection.results import Region, RequestInfo, new_result_id
from auroraedge.inspection.views import (
    View,
    check_reference,
    contrast,
    mirror_images,
    patchify,
    place_regions,
    plan_region_views,
    plan_views,
    render_view,
)
from auroraedge.runtime.engine import Encoded
from auroraedge.runtime.generation import Row

ImageSource = bytes | str | Path | np.ndarray | RawFrame | DecodedImage
# Views that are inspected together: bounds the memory of a batch, and beyond it a CPU gains nothing.
MAX_VIEWS = 32
# Times that a frame is made brighter or darker at most.
MOST_EXPOSURE = 4.0
_WHOLE = Tiling()


@dataclass(frozen=True, kw_only=True)
class InspectionJob:
    """One frame to inspect. regions: only these parts of it, each judged as a frame of its own; none: all of it."""

    image: ImageSource
    recipe: Recipe
    reference: ImageSource | None = None
    request: RequestInfo = field(default_factory=RequestInfo)
    image_name: str = ""
    regions: tuple[Region, ...] = ()

    @property
    def compares(self) -> bool:
        """Whether the frame is seen beside its golden sample; one that the recipe does not ask for is left alone."""
        return self.reference is not None and self.recipe.golden_reference != "none"


@dataclass(frozen=True, kw_only=True)
class FrameItem:
    """One thing to find out about a frame: the recipe's inspection, or the answer to `prompt`.

    regions as in InspectionJob. request: None for the frame's own.
    """

    recipe: Recipe
    prompt: str | Prompt | None = None
    regions: tuple[Region, ...] = ()
    request: RequestInfo | None = None


@dataclass(kw_only=True, eq=False)
class ViewSet:
    """The views of a frame under one tiling; several prompts share it, and what the encoder says of it."""

    parts: list[list[View]]  # by region; one part without regions
    regions: tuple[Region, ...]
    patches: np.ndarray  # uint8 [views * copies, 256, 768]
    copies: int  # each view is seen once, or in its four mirror images; the first copy is the view itself
    contrasts: list[float]  # by part: standard deviation of the views' grey levels
    reference_used: bool
    preprocess_ms: float
    encoded: Encoded | None = None  # kept where more prompts may follow

    @property
    def plan(self) -> list[View]:
        return [view for part in self.parts for view in part]

    @property
    def slices(self) -> list[slice]:
        """The views of each part."""
        ends = np.cumsum([len(part) for part in self.parts]).tolist()
        return [slice(end - len(part), end) for part, end in zip(self.parts, ends, strict=True)]

    def region_of(self, view: int) -> Region | None:
        if not self.regions:
            return None
        return next(region for region, part in zip(self.regions, self.slices, strict=True) if view < part.stop)


class LoadedFrame:
    """A frame, decoded, with its golden sample and its views as far as they were asked for."""

    def __init__(self, image: ImageSource, reference: ImageSource | None, limits: ImageLimits) -> None:
        """Raises AuroraEdgeError for a frame that cannot be decoded."""
        self.began = time.perf_counter()
        self._reference, self._limits = reference, limits
        self.image = decode_image(image, limits)
        self.decode_ms = elapsed_ms(self.began)
        self._golden: DecodedImage | AuroraEdgeError | None = None
        self._aligned: dict[int, np.ndarray] = {}
        self._views: dict[tuple[object, ...], ViewSet] = {}

    def verify(self) -> None:
        """Raises where pixels that another process may write to have changed; call it once the views are cut."""
        for image in (self.image, self._golden):
            if isinstance(image, DecodedImage) and image.verify is not None:
                image.verify()

    def views(
        self, recipe: Recipe, regions: Sequence[Region] = (), *, whole: bool = False, exposure: float | None = None
    ) -> ViewSet:
        """The views that `recipe` asks for, of the whole frame or of its regions; the same object for equal ones.

        whole: one plain view of the frame or region, whatever the tiling. exposure: mean grey level that a frame
        without a golden sample is brought to, see RecipeCalibration. Raises AuroraEdgeError.
        """
        golden = self._golden_for(recipe)
        tiling = _WHOLE if whole else recipe.tiling
        if tiling.mode == "whole":
            tiling = _WHOLE.model_copy(update={"mirrored": tiling.mirrored, "max_views": tiling.max_views})
        shift = recipe.reference_shift_px if golden is not None else None
        wanted = exposure if golden is None else None
        key = (tiling, tuple(regions), shift, wanted)
        if key not in self._views:
            self._views[key] = self._cut(tiling, regions, golden, shift or 0, wanted)
        return self._views[key]

    def _golden_for(self, recipe: Recipe) -> DecodedImage | None:
        if recipe.golden_reference == "none":
            return None
        if self._reference is None:
            if recipe.golden_reference == "required":
                raise ReferenceRequiredError(f"Recipe '{recipe.id}' compares with a golden sample.", field="reference")
            return None
        if self._golden is None:
            started = time.perf_counter()
            try:
                golden = decode_image(self._reference, self._limits, field="reference")
                check_reference(self.image.pixels, golden.pixels)
                self._golden = golden
            except AuroraEdgeError as error:
                self._golden = error
            self.decode_ms += elapsed_ms(started)
        if isinstance(self._golden, AuroraEdgeError):
            raise self._golden
        return self._golden

    def _cut(
        self,
        tiling: Tiling,
        regions: Sequence[Region],
        golden: DecodedImage | None,
        shift: int,
        exposure: float | None,
    ) -> ViewSet:
        started = time.perf_counter()
        image = self.image
        placed = place_regions(regions, image.width, image.height)
        parts = plan_region_views(placed, tiling) if placed else [plan_views(image.width, image.height, tiling)]
        sample = None
        if golden is not None:
            if shift not in self._aligned:
                moved = align_reference(image.pixels, golden.pixels, shift) if shift else golden.pixels
                self._aligned[shift] = moved
            sample = self._aligned[shift]
        shown: list[np.ndarray] = []
        contrasts: list[float] = []
        copies = 4 if tiling.mirrored else 1
        for part in parts:
            seen = [render_view(image.pixels, view, sample) for view in part]
            # With a golden sample a uniform frame is no riddle: it differs from the sample or is as uniform.
            contrasts.append(255.0 if sample is not None else contrast(seen))
            if exposure is not None:
                table = exposure_table(seen, exposure)
                seen = [np.asarray(cv2.LUT(pixels, table), dtype=np.uint8) for pixels in seen]
            shown += [copy for pixels in seen for copy in mirror_images(pixels)] if tiling.mirrored else seen
        return ViewSet(
            parts=parts,
            regions=placed,
            patches=patchify(np.stack(shown)),
            copies=copies,
            contrasts=contrasts,
            reference_used=golden is not None,
            preprocess_ms=elapsed_ms(started),
        )


@dataclass
class Prepared:
    """One prompt on a job that is decoded and cut into views; filled in on its way through the engine."""

    job: InspectionJob
    image: DecodedImage
    views: ViewSet
    prompt: Prompt
    began: float
    decode_ms: float
    result_id: str = field(default_factory=new_result_id)
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
    def plan(self) -> list[View]:
        return self.views.plan

    @property
    def copies(self) -> int:
        return self.views.copies

    @property
    def rows(self) -> list[Row]:
        """The answer on each view."""
        return self.all_rows[:: self.copies]

    @property
    def evidence(self) -> np.ndarray | None:
        """[views, 256, 1 + labels + 4], the mean over mirror images."""
        if self.all_evidence is None or self.copies == 1:
            return self.all_evidence
        return mirrored_mean(self.all_evidence.reshape(-1, self.copies, *self.all_evidence.shape[1:]))

    @property
    def worst(self) -> int:
        """The view that looks most defective to the decoder."""
        logits = [row.verdict_logit or 0.0 for row in self.rows]
        return max(range(len(logits)), key=logits.__getitem__)


def elapsed_ms(since: float) -> float:
    return (time.perf_counter() - since) * 1000.0


def exposure_table(views: Sequence[np.ndarray], exposure: float) -> np.ndarray:
    """uint8 [256]: scales grey levels so that the mean over `views` becomes `exposure`, as a brighter lamp would.

    By at most `MOST_EXPOSURE` either way: what is nearly black holds noise and no part.
    """
    mean = float(np.mean([pixels.mean() for pixels in views]))
    factor = float(np.clip(exposure / max(mean, 1.0), 1 / MOST_EXPOSURE, MOST_EXPOSURE))
    return np.minimum(np.rint(np.arange(256) * factor), 255).astype(np.uint8)


def prepare(
    job: InspectionJob,
    limits: ImageLimits,
    prompt: Prompt | None = None,
    *,
    whole: bool = False,
    exposure: float | None = None,
) -> Prepared:
    """Decodes the job's images and renders its views; the arguments and errors of `prepare_on`."""
    frame = LoadedFrame(job.image, job.reference, limits)
    item = prepare_on(frame, job, prompt, whole=whole, exposure=exposure)
    frame.verify()
    return item


def prepare_on(
    frame: LoadedFrame,
    job: InspectionJob,
    prompt: Prompt | None = None,
    *,
    whole: bool = False,
    exposure: float | None = None,
) -> Prepared:
    """One prompt on a frame; None is the one of the recipe's task.

    whole: one plain view of the whole frame, whatever the recipe's tiling. exposure: see LoadedFrame.views. Raises
    AuroraEdgeError for input that cannot be inspected.
    """
    recipe = job.recipe
    views = frame.views(recipe, job.regions, whole=whole, exposure=exposure)
    if prompt is None:
        kind = PromptKind.CLASSIFY if recipe.task == "classify" else PromptKind.INSPECT
        prompt = build_prompt(kind, recipe.label_names, reference=views.reference_used)
    return Prepared(
        job=job, image=frame.image, views=views, prompt=prompt, began=frame.began, decode_ms=frame.decode_ms
    )


def in_batches(items: Sequence[Prepared], max_views: int = MAX_VIEWS) -> Iterator[list[Prepared]]:
    """Neighbouring items with at most `max_views` views (copies counted) together; an item with more goes alone."""
    batch: list[Prepared] = []
    views = 0
    for item in items:
        count = len(item.views.patches)
        if batch and views + count > max_views:
            yield batch
            batch, views = [], 0
        batch.append(item)
        views += count
    if batch:
        yield batch
