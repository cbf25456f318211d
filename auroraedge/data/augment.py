"""Augmentation that keeps boxes right: crops, flips and rotations, tone, registration error of the golden sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np


@dataclass(frozen=True)
class SceneObject:
    """A defect in pixels of its scene; x2 and y2 exclusive."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """uint8 RGB image [H, W, 3], the aligned golden sample of the same shape or None, and what is on it.

    image_class: the one class of the whole image where the source gives no boxes.
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...] = ()
    reference: np.ndarray | None = None
    image_class: str | None = None


def crop_scene(scene: Scene, x: int, y: int, w: int, h: int, *, least_visible: float = 0.5) -> tuple[Scene, bool]:
    """The part inside the rectangle, and whether it is unambiguous.

    Boxes are clipped; those with less than `least_visible` of their area inside are dropped. A crop that drops a box
    of which more than 15 % is still visible is ambiguous: its truth is neither 'there' nor 'not there'.
    """
    kept, clear = [], True
    for item in scene.objects:
        clipped = SceneObject(
            item.label, max(item.x1 - x, 0.0), max(item.y1 - y, 0.0), min(item.x2 - x, w), min(item.y2 - y, h)
        )
        if clipped.x2 <= clipped.x1 or clipped.y2 <= clipped.y1:
            continue
        visible = clipped.area / max(item.area, 1e-9)
        # Of a defect larger than the crop, a part that fills much of the crop is a defect in its own right.
        if visible >= least_visible or clipped.area > 0.1 * w * h:
            kept.append(clipped)
        elif visible > 0.15:
            clear = False
    window = (slice(y, y + h), slice(x, x + w))
    reference = None if scene.reference is None else scene.reference[window]
    return replace(scene, image=scene.image[window], objects=tuple(kept), reference=reference), clear


def dihedral(scene: Scene, k: int) -> Scene:
    """One of the eight symmetries of the square: bit 2 transposes, then bit 0 flips x and bit 1 flips y."""
    height, width = scene.image.shape[:2]
    image, reference, objects = scene.image, scene.reference, scene.objects
    if k & 4:
        image = image.swapaxes(0, 1)
        reference = None if reference is None else reference.swapaxes(0, 1)
        objects = tuple(SceneObject(o.label, o.y1, o.x1, o.y2, o.x2) for o in objects)
        height, width = width, height
    if k & 1:
        image = image[:, ::-1]
        reference = None if reference is None else reference[:, ::-1]
        objects = tuple(SceneObject(o.label, width - o.x2, o.y1, width - o.x1, o.y2) for o in objects)
    if k & 2:
        image = image[::-1]
        reference = None if reference is None else reference[::-1]
        objects = tuple(SceneObject(o.label, o.x1, height - o.y2, o.x2, height - o.y1) for o in objects)
    return replace(scene, image=image, reference=reference, objects=objects)


def adjust_tone(scene: Scene, rng: np.random.Generator, *, gain: float, offset: float, blur: float = 0.0) -> Scene:
    """Random contrast (1 +- gain), brightness (+- offset grey levels) and, with probability 0.2, blur up to `blur` px.

    The golden sample gets the same contrast and brightness: both come from one camera.
    """
    a = 1.0 + rng.uniform(-gain, gain)
    b = rng.uniform(-offset, offset) + 127.5 * (1 - a)
    table = np.clip(np.arange(256) * a + b, 0, 255).astype(np.uint8)
    sigma = rng.uniform(0.3, blur) if blur > 0.3 and rng.random() < 0.2 else 0.0

    def apply(pixels: np.ndarray) -> np.ndarray:
        out = cv2.LUT(np.ascontiguousarray(pixels), table)
        return cv2.GaussianBlur(out, (0, 0), sigma) if sigma else out

    reference = None if scene.reference is None else apply(scene.reference)
    return replace(scene, image=apply(scene.image), reference=reference)


def shift_reference(scene: Scene, rng: np.random.Generator, most_px: int = 1) -> Scene:
    """Moves the golden sample by up to `most_px` pixels: registration is never perfect."""
    if scene.reference is None:
        return scene
    dx, dy = (int(v) for v in rng.integers(-most_px, most_px + 1, size=2))
    matrix = np.array([[1, 0, dx], [0, 1, dy]], dtype=np.float32)
    h, w = scene.reference.shape[:2]
    pixels = np.ascontiguousarray(scene.reference)
    moved = cv2.warpAffine(pixels, matrix, (w, h), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return replace(scene, reference=moved)
