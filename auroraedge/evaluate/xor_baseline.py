"""Classical comparison of a binary board image with its template: no learning, the floor that a model must beat.

The difference (XOR) of image and template marks every defect, but also every edge that is a pixel off. So:
 1. the template is registered block by block (a shift field), because a board may be turned or stretched a little;
 2. a difference within one pixel of a template edge is dropped; the rest is joined to blobs;
 3. a blob counts when it is large and thick enough (misregistered edges leave long thin slivers);
 4. its kind follows from topology. Added copper that touches no / one / several pieces of template copper is spurious
    copper / a spur / a short. Removed copper that touches no / one / several pieces of template background is a pin
    hole / a mousebite / an open.
This is the template comparison of W.-Y. Wu, M.-J. J. Wang, C.-M. Liu, "Automated inspection of printed circuit boards
through machine vision", Computers in Industry 28 (1996), with registration added. The constants below were chosen on
300 images of DeepPCB's train split.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from auroraedge.errors import ReferenceRequiredError
from auroraedge.evaluate.predictor import ImageSource, decode, make_result
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import InspectionResult
from auroraedge.inspection.views import check_reference

ADDED_KINDS = ("spurious_copper", "spur", "short")
REMOVED_KINDS = ("pin_hole", "mousebite", "open")
XOR_KINDS = frozenset(ADDED_KINDS + REMOVED_KINDS)

Mask = NDArray[np.uint8]  # 0 or 1, [H, W]


@dataclass(frozen=True, kw_only=True)
class XorSettings:
    """Lengths in pixels, areas in square pixels of the source image."""

    max_shift_px: int = 8
    block_px: int = 32
    shift_penalty: float = 0.0003
    join_px: int = 3
    min_area_px2: int = 15
    area_scale_px2: float = 60.0
    deep_area_scale_px2: float = 12.0
    min_thickness_px: float = 2.15
    reach_px: int = 2
    context_px: int = 8
    min_touch_px: int = 2
    margin_px: int = 10
    min_side_px: int = 24


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A difference region: its tight box, and `strength` (>= 1 counts as a defect)."""

    added: bool
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    strength: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight (x1, y1, x2, y2), x2 and y2 exclusive."""
        return (
            int(self.columns.min()),
            int(self.rows.min()),
            int(self.columns.max()) + 1,
            int(self.rows.max()) + 1,
        )


def _disc(radius: int) -> Mask:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), dtype=np.uint8)


def _square(radius: int) -> Mask:
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)


def _dilated(mask: Mask, kernel: Mask) -> Mask:
    return np.asarray(cv2.dilate(mask, kernel), dtype=np.uint8)


def _eroded(mask: Mask, kernel: Mask) -> Mask:
    return np.asarray(cv2.erode(mask, kernel), dtype=np.uint8)


def register(image: Mask, template: Mask, settings: XorSettings) -> Mask:
    """`template` warped onto `image`: per block the shift with the fewest differing pixels, smoothed between blocks."""
    h, w = image.shape
    reach = settings.max_shift_px
    padded = np.pad(template, reach, mode="edge")
    grid = (-(-w // settings.block_px), -(-h // settings.block_px))
    shifts = np.array([(dx, dy) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)])
    costs = []
    for dx, dy in shifts:
        differs = image ^ padded[reach + dy : reach + dy + h, reach + dx : reach + dx + w]
        costs.append(cv2.resize(differs.astype(np.float32), grid, interpolation=cv2.INTER_AREA).reshape(grid[::-1]))
    cost = np.stack(costs)
    overall = shifts[np.argmin(cost.mean(axis=(1, 2)) + 1e-5 * np.hypot(*shifts.T))]
    cost = np.stack([cv2.blur(one, (3, 3)).reshape(grid[::-1]) for one in cost])
    cost += settings.shift_penalty * np.hypot(*(shifts - overall).T)[:, None, None]
    best = shifts[np.argmin(cost, axis=0)].astype(np.float32)
    shift_x, shift_y = (cv2.resize(cv2.medianBlur(best[..., axis].copy(), 3), (w, h)) for axis in (0, 1))
    rows, columns = np.mgrid[:h, :w].astype(np.float32)
    source, edge = template * np.uint8(255), cv2.BORDER_REPLICATE
    warped = cv2.remap(source, columns + shift_x, rows + shift_y, cv2.INTER_LINEAR, borderMode=edge)
    return np.asarray(warped > 127, dtype=np.uint8)


def find_blobs(image: Mask, template: Mask, settings: XorSettings) -> list[Blob]:
    """Difference regions of `image` from the registered `template` that are large and thick enough to be defects."""
    found: list[Blob] = []
    near, far = _square(1), _square(2)
    differences = (
        (True, image & (1 - _dilated(template, near)), image & (1 - _dilated(template, far))),
        (False, (1 - image) & _eroded(template, near), (1 - image) & _eroded(template, far)),
    )
    for added, outside, deep in differences:
        joined = _dilated(outside, _disc(settings.join_px))
        count, regions, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
        area = np.bincount(regions[outside > 0], minlength=count)
        deep_area = np.bincount(regions[deep > 0], minlength=count)
        strength = area / settings.area_scale_px2 + deep_area / settings.deep_area_scale_px2
        for index in np.flatnonzero((strength >= 1) & (area >= settings.min_area_px2)):
            if index == 0:
                continue
            x, y, w, h = stats[index, :4]
            window = np.s_[y : y + h, x : x + w]
            rows, columns = np.nonzero((regions[window] == index) & (outside[window] > 0))
            length = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
            if len(rows) >= settings.min_thickness_px * length:
                found.append(Blob(added=added, rows=rows + y, columns=columns + x, strength=float(strength[index])))
    return found


def blob_kind(blob: Blob, template: Mask, settings: XorSettings) -> str:
    """One of the six kinds, from how many pieces of template copper (or background) around the blob it touches."""
    x1, y1, x2, y2 = blob.box
    around, (h, w) = settings.context_px, template.shape
    top, left = max(0, y1 - around), max(0, x1 - around)
    context = template[top : min(h, y2 + around), left : min(w, x2 + around)]
    if not blob.added:
        context = 1 - context
    grown = np.zeros_like(context)
    grown[blob.rows - top, blob.columns - left] = 1
    # One pixel was dropped along every edge, so a blob that touches ends `reach_px` short of its neighbour.
    grown = _dilated(grown, _disc(settings.reach_px))
    count, pieces = cv2.connectedComponents(context, connectivity=8 if blob.added else 4)
    touched = np.bincount(pieces[(grown > 0) & (context > 0)], minlength=count)[1:]
    kinds = ADDED_KINDS if blob.added else REMOVED_KINDS
    return kinds[min(int(np.count_nonzero(touched >= settings.min_touch_px)), 2)]


class XorBaseline:
    """Predicts the six DeepPCB kinds by comparing with the template. Needs a reference of the image's size."""

    name = "baseline-xor"

    def __init__(self, settings: XorSettings | None = None) -> None:
        self.settings = settings or XorSettings()

    def inspect(
        self, image: ImageSource, recipe: Recipe, *, reference: ImageSource | None = None, image_name: str = ""
    ) -> InspectionResult:
        """Boxes carry the source's usual margin of 10 px. Raises ReferenceRequiredError without a reference.

        Confidence 1 - 0.5^strength is an order, not a calibrated probability; P(NG) is that of the strongest blob.
        """
        if reference is None:
            raise ReferenceRequiredError("The comparison needs the defect-free template.", field="reference")
        rgb, golden = decode(image), decode(reference, "reference")
        check_reference(rgb, golden)
        # Copper is black in the data set.
        frame, template = ((pixels[..., 1] < 128).astype(np.uint8) for pixels in (rgb, golden))
        template = register(frame, template, self.settings)
        boxes = [
            (blob_kind(blob, template, self.settings), self._outline(blob), 1 - 0.5**blob.strength)
            for blob in find_blobs(frame, template, self.settings)
        ]
        return make_result(
            recipe,
            rgb,
            predictor=self.name,
            ng_probability=max((confidence for _, _, confidence in boxes), default=0.0),
            boxes=boxes,
            reference_used=True,
            image_name=image_name,
        )

    def _outline(self, blob: Blob) -> tuple[float, float, float, float]:
        x1, y1, x2, y2 = blob.box
        grow_x = max(self.settings.margin_px, (self.settings.min_side_px - (x2 - x1)) / 2)
        grow_y = max(self.settings.margin_px, (self.settings.min_side_px - (y2 - y1)) / 2)
        return x1 - grow_x, y1 - grow_y, x2 + grow_x, y2 + grow_y
