"""From a frame to the model's 256x256 views, and from boxes on views back to the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from auroraedge.config import GRID, IMAGE_SIZE, PATCH_SIZE
from auroraedge.errors import ImageTooLargeError, InvalidRequestError, ReferenceRequiredError
from auroraedge.inspection.recipe import Tiling
from auroraedge.inspection.results import Box, Defect, Region


@dataclass(frozen=True)
class View:
    """A rectangle of the source image, in pixels, that is stretched to 256x256."""

    x: int
    y: int
    w: int
    h: int

    def to_source(self, box: tuple[float, float, float, float], width: int, height: int) -> Box:
        """A box in 0..1 of this view, in source pixels clipped to the image."""
        x1, y1, x2, y2 = box
        return Box(
            x1=min(max(self.x + x1 * self.w, 0.0), width),
            y1=min(max(self.y + y1 * self.h, 0.0), height),
            x2=min(max(self.x + x2 * self.w, 0.0), width),
            y2=min(max(self.y + y2 * self.h, 0.0), height),
        )


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """Evenly spread starts of windows of `size` that cover `length` with at least `overlap` between neighbours."""
    if size >= length:
        return [0]
    count = 1 + -(-(length - size) // (size - overlap))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def plan_views(width: int, height: int, tiling: Tiling) -> list[View]:
    """The views of a frame of `width` x `height` pixels, row by row. Raises ImageTooLargeError beyond max_views."""
    if tiling.mode == "whole":
        return [View(0, 0, width, height)]
    side = tiling.size_px or min(width, height)
    w, h = min(side, width), min(side, height)
    xs = _starts(width, w, min(tiling.overlap_px, w // 2))
    ys = _starts(height, h, min(tiling.overlap_px, h // 2))
    if len(xs) * len(ys) > tiling.max_views:
        raise ImageTooLargeError(
            f"A frame of {width}x{height} px needs {len(xs) * len(ys)} views; the recipe allows {tiling.max_views}.",
            field="image",
            remedy="Raise tiling.max_views or tiling.size_px in the recipe, or crop the frame.",
        )
    return [View(x, y, w, h) for y in ys for x in xs]


def place_regions(regions: Sequence[Region], width: int, height: int) -> tuple[Region, ...]:
    """The regions of interest of a frame, each with a name.

    Raises InvalidRequestError for a region that does not lie in the frame, and for a name that is given twice.
    """
    placed: list[Region] = []
    for index, region in enumerate(regions):
        if region.x + region.width > width or region.y + region.height > height:
            raise InvalidRequestError(
                f"The region x={region.x} y={region.y} width={region.width} height={region.height} does not lie in the "
                f"frame of {width}x{height} pixels.",
                field=f"regions[{index}]",
                remedy="Give regions in pixels of the frame.",
            )
        name = region.name or f"region-{index + 1}"
        if any(name == other.name for other in placed):
            raise InvalidRequestError(f"Two regions are named '{name}'.", field=f"regions[{index}].name")
        placed.append(region.model_copy(update={"name": name}))
    return tuple(placed)


def plan_region_views(regions: Sequence[Region], tiling: Tiling) -> list[list[View]]:
    """The views of each region, planned as if it were a frame. Raises ImageTooLargeError beyond max_views in all."""
    plans = [
        [View(view.x + region.x, view.y + region.y, view.w, view.h) for view in plan]
        for region in regions
        for plan in [plan_views(region.width, region.height, tiling)]
    ]
    count = sum(map(len, plans))
    if count > tiling.max_views:
        raise ImageTooLargeError(
            f"The {len(plans)} regions need {count} views; the recipe allows {tiling.max_views}.",
            field="regions",
            remedy="Send fewer or smaller regions, or raise tiling.max_views or tiling.size_px in the recipe.",
        )
    return plans


def composite(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: grey frame, grey golden sample, and their signed difference around 128.

    One encoder pass then sees frame and golden sample in register, at no cost over a plain frame.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    golden = cv2.cvtColor(reference, cv2.COLOR_RGB2GRAY)
    difference = cv2.addWeighted(grey, 0.5, golden, -0.5, 127.5)
    return cv2.merge([grey, golden, difference])


def check_reference(image: np.ndarray, reference: np.ndarray) -> None:
    """Raises ReferenceRequiredError unless the golden sample has the frame's size."""
    if reference.shape[:2] != image.shape[:2]:
        (h, w), (rh, rw) = image.shape[:2], reference.shape[:2]
        raise ReferenceRequiredError(
            f"The golden reference has {rw}x{rh} pixels, the frame {w}x{h}.", field="reference"
        )


def resize_view(pixels: np.ndarray, size: int = IMAGE_SIZE) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [size, size, 3]; area averaging when shrinking, so that thin traces do not alias."""
    h, w = pixels.shape[:2]
    if (h, w) == (size, size):
        return pixels
    shrinking = h * w > size * size
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def render_view(image: np.ndarray, view: View, reference: np.ndarray | None = None) -> np.ndarray:
    """uint8 [256, 256, 3] of a view of `image` (uint8 RGB [H, W, 3]), composed with the golden sample where given."""
    rows, columns = slice(view.y, view.y + view.h), slice(view.x, view.x + view.w)
    crop = image[rows, columns]
    if reference is not None:
        crop = composite(crop, reference[rows, columns])
    return resize_view(np.ascontiguousarray(crop))


def contrast(views: Sequence[np.ndarray]) -> float:
    """Standard deviation of the first channel over all of `views`, uint8 [256, 256, 3] each."""
    # OpenCV sums whole numbers and needs no copy of the channel.
    moments = [cv2.meanStdDev(pixels) for pixels in views]
    means, deviations = (np.array([float(m[i][0][0]) for m in moments]) for i in (0, 1))
    return float(np.sqrt(max(0.0, (deviations**2 + means**2).mean() - means.mean() ** 2)))


def mirror_images(pixels: np.ndarray) -> list[np.ndarray]:
    """A view and its mirror images: itself first, then left-right, top-bottom, both. uint8 [256, 256, 3] each."""
    return [pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1]]


def patchify(views: np.ndarray) -> np.ndarray:
    """uint8 [B, 256, 256, 3] -> uint8 [B, 256, 768]: patches row by row; inside one, row, column, channel.

    This is the order of transformers' Siglip2ImageProcessor (`convert_image_to_patches`).
    """
    b = views.shape[0]
    split = views.reshape(b, GRID, PATCH_SIZE, GRID, PATCH_SIZE, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(split.reshape(b, GRID * GRID, PATCH_SIZE * PATCH_SIZE * 3))


def merge_defects(defects: Sequence[Defect], merge_iou: float) -> list[Defect]:
    """Removes the copies of a defect that overlapping views report.

    The most confident stays. A same-label box is a copy when its IoU exceeds `merge_iou`, or when more than 70 % of
    the smaller box lies in the other (a defect cut by a view's border); then the larger outline is kept.
    """
    kept: list[Defect] = []
    for defect in sorted(defects, key=lambda d: -d.confidence):
        assert defect.box is not None
        for index, other in enumerate(kept):
            assert other.box is not None
            if other.label != defect.label:
                continue
            common = other.box.intersection(defect.box)
            smaller = min(other.box.area, defect.box.area)
            if other.box.iou(defect.box) > merge_iou or (smaller > 0 and common / smaller > 0.7):
                if defect.box.area > other.box.area * 1.5:
                    kept[index] = other.model_copy(update={"box": defect.box})
                break
        else:
            kept.append(defect)
    return kept
