"""The images that an evaluation shows: the annotated ones, and good ones made from templates. File names stay hidden.

A set whose images are all defective says nothing about overkill. Its templates are defect-free, but a template against
itself is trivially easy, so two harder kinds of good sample are made as well (`SampleKind`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from auroraedge.data.pack import PackItem, Truth, image_bytes
from auroraedge.evaluate.schema import SampleInfo, SampleKind, TruthBox
from auroraedge.inspection.recipe import Recipe

MAX_IDENTICAL = 50  # a template against itself is a sanity check; more of them say nothing new
CROP_STEP_PX = 16
CROP_CLEARANCE_PX = 4

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image to inspect. `load` gives the encoded image and its encoded reference (or None)."""

    info: SampleInfo
    load: Callable[[], tuple[bytes, bytes | None]]


def evenly(items: Sequence[PackItem], limit: int | None) -> list[PackItem]:
    """`limit` items spread evenly over `items`, or all."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def annotated_samples(items: Sequence[PackItem], recipe: Recipe) -> list[Sample]:
    """The items as they are; the reference is handed over unless the recipe uses none."""
    return [_annotated(item, recipe) for item in items]


def _annotated(item: PackItem, recipe: Recipe) -> Sample:
    reference = None if recipe.golden_reference == "none" else item.reference
    return Sample(
        info=_info(item, SampleKind.ANNOTATED, item.truth),
        load=lambda: (image_bytes(item.path), None if reference is None else image_bytes(reference)),
    )


def _info(item: PackItem, kind: SampleKind, truth: Truth) -> SampleInfo:
    made = kind is not SampleKind.ANNOTATED
    return SampleInfo(
        key=f"{kind.value}:{item.file}",
        kind=kind,
        file=item.file,
        split=item.split,
        group=item.group,
        truth=truth,
        image_label="ok" if made else item.image_label,
        objects=() if made else tuple(TruthBox(label=o.label, box=o.bbox) for o in item.objects),
        extra=item.extra,
    )


def good_samples(items: Sequence[PackItem], recipe: Recipe) -> list[Sample]:
    """Good samples from the templates of `items`, none where there is no template. Equal templates count once."""
    if recipe.golden_reference == "none":
        return []
    distinct: dict[str, PackItem] = {}
    for item in items:
        pixels = item.load_reference()
        if pixels is not None:
            distinct.setdefault(_digest(pixels), item)
    chosen = list(distinct.values())
    identical = [_identical(item) for item in evenly(chosen, MAX_IDENTICAL)]
    side = recipe.tiling.size_px or 256
    crops = [_crop(item, window) for item in chosen if (window := free_window(item, side)) is not None]
    return identical + [_perturbed(item) for item in chosen] + crops


def _identical(item: PackItem) -> Sample:
    def load() -> tuple[bytes, bytes]:
        assert item.reference is not None
        data = image_bytes(item.reference)
        return data, data

    return Sample(info=_info(item, SampleKind.TEMPLATE_IDENTICAL, Truth.GOOD), load=load)


def _perturbed(item: PackItem) -> Sample:
    def load() -> tuple[bytes, bytes]:
        template = item.load_reference()
        assert template is not None and item.reference is not None
        return _png(perturb(template)), image_bytes(item.reference)

    return Sample(info=_info(item, SampleKind.TEMPLATE_PERTURBED, Truth.GOOD), load=load)


def _crop(item: PackItem, window: tuple[int, int, int, int]) -> Sample:
    x1, y1, x2, y2 = window

    def load() -> tuple[bytes, bytes]:
        template = item.load_reference()
        assert template is not None
        return _png(item.load()[y1:y2, x1:x2]), _png(template[y1:y2, x1:x2])

    return Sample(info=_info(item, SampleKind.CROP, Truth.GOOD), load=load)


def perturb(template: Pixels) -> Pixels:
    """A good board as a second shot would show it: `template` moved by one pixel, its edges noisy. uint8 RGB [H, W, 3].

    The shift is one of the eight neighbours. Blur (sigma 1 px) and smooth noise then move each edge by about a pixel;
    a template of two grey levels is cut back to two, as the data set was. The draw is seeded by the pixels themselves.
    """
    rng = np.random.default_rng(int(_digest(template)[:16], 16))
    dx, dy = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if (x, y) != (0, 0)][int(rng.integers(8))]
    h, w = template.shape[:2]
    moved = np.pad(template, ((1, 1), (1, 1), (0, 0)), mode="edge")[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
    levels = np.unique(template)
    noise = cv2.GaussianBlur(rng.normal(size=(h, w)).astype(np.float32), (0, 0), 1.5)
    noise = noise * (25.0 / max(float(noise.std()), 1e-6))
    soft = cv2.GaussianBlur(moved.astype(np.float32), (0, 0), 1.0) + np.asarray(noise)[..., None]
    if len(levels) <= 2:
        low, high = float(levels[0]), float(levels[-1])
        return np.where(soft > (low + high) / 2, high, low).astype(np.uint8)
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8)


def free_window(item: PackItem, side: int) -> tuple[int, int, int, int] | None:
    """A `side` x `side` window of `item` that keeps 4 px clear of every annotated box, or None where there is none.

    Of the windows on a 16-pixel grid one is picked by the file's name, so that the choice is fixed but not always the
    same corner.
    """
    free = []
    for y in range(0, item.height - side + 1, CROP_STEP_PX):
        for x in range(0, item.width - side + 1, CROP_STEP_PX):
            if all(
                o.bbox[2] + CROP_CLEARANCE_PX <= x
                or o.bbox[0] - CROP_CLEARANCE_PX >= x + side
                or o.bbox[3] + CROP_CLEARANCE_PX <= y
                or o.bbox[1] - CROP_CLEARANCE_PX >= y + side
                for o in item.objects
            ):
                free.append((x, y, x + side, y + side))
    if not free:
        return None
    return free[int(hashlib.sha256(item.file.encode()).hexdigest()[:8], 16) % len(free)]


def _digest(pixels: Pixels) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _png(rgb: Pixels) -> bytes:
    done, data = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))
    assert done
    return bytes(data)
