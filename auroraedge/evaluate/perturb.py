"""What a line does to a picture: lamps age, lenses go out of focus, parts lie askew, cameras are noisy and compress.

Each perturbation has one fixed strength, mild enough that a person would not change a verdict for it. Only the frame is
perturbed; its golden sample stays as it was taken, as on a line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from auroraedge.evaluate.predictor import decode
from auroraedge.evaluate.samples import Sample
from auroraedge.evaluate.schema import TruthBox

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """apply: uint8 RGB [H, W, 3] and a generator -> the same shape. place: the affine map [2, 3] that moves the part in
    a frame of H x W, where it moves."""

    name: str
    apply: Callable[[Pixels, np.random.Generator], Pixels]
    place: Callable[[int, int], NDArray[np.float64]] | None = None


def tone(name: str, *, gain: float = 1.0, offset: float = 0.0, gamma: float = 1.0) -> Perturbation:
    """Grey g becomes 255 (g / 255)^gamma, its contrast times `gain` around 127.5, and `offset` grey levels brighter."""
    grey = 255.0 * (np.arange(256) / 255.0) ** gamma
    table = np.clip(np.rint((grey - 127.5) * gain + 127.5 + offset), 0, 255).astype(np.uint8)
    return Perturbation(name=name, apply=lambda pixels, rng: np.asarray(cv2.LUT(pixels, table), dtype=np.uint8))


def blur(name: str, sigma_px: float) -> Perturbation:
    """A Gaussian of `sigma_px`."""
    return Perturbation(
        name=name, apply=lambda pixels, rng: np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma_px), dtype=np.uint8)
    )


def noise(name: str, sigma: float) -> Perturbation:
    """Gaussian noise of `sigma` grey levels, independent by pixel, the same in all three channels."""

    def apply(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        drawn = rng.normal(0.0, sigma, pixels.shape[:2])[..., None]
        return np.clip(np.rint(pixels + drawn), 0, 255).astype(np.uint8)

    return Perturbation(name=name, apply=apply)


def jpeg(name: str, quality: int) -> Perturbation:
    """Compressed at `quality` (1..100) and decoded again."""

    def apply(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        bgr = np.ascontiguousarray(pixels[..., ::-1])
        done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert done
        return decode(data.tobytes())

    return Perturbation(name=name, apply=apply)


def moved(name: str, *, dx: float = 0.0, dy: float = 0.0, degrees: float = 0.0) -> Perturbation:
    """The part lies (dx, dy) px further and turned around the middle by `degrees`; the border's pixels are repeated."""

    def place(height: int, width: int) -> NDArray[np.float64]:
        turned = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
        return np.asarray(turned, dtype=np.float64) + np.array([[0.0, 0.0, dx], [0.0, 0.0, dy]])

    def apply(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        h, w = pixels.shape[:2]
        warped = cv2.warpAffine(pixels, place(h, w), (w, h), borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(warped, dtype=np.uint8)

    return Perturbation(name=name, apply=apply, place=place)


AS_TAKEN = Perturbation(name="as taken", apply=lambda pixels, rng: pixels)
PERTURBATIONS: dict[str, Perturbation] = {
    each.name: each
    for each in (
        tone("brighter by 20", offset=20),
        tone("darker by 20", offset=-20),
        tone("contrast x 1.2", gain=1.2),
        tone("contrast x 0.8", gain=0.8),
        blur("blur, sigma 1 px", 1.0),
        noise("noise, sigma 6", 6.0),
        jpeg("JPEG, quality 60", 60),
        moved("moved by (3, 2) px", dx=3, dy=2),
        moved("turned by 1 degree", degrees=1.0),
    )
}


def perturbed_pixels(pixels: Pixels, key: str, perturbation: Perturbation) -> Pixels:
    """`pixels` under a perturbation; what it draws is seeded by its name and `key`, so that every run sees the same."""
    digest = hashlib.sha256(f"{perturbation.name}\0{key}".encode()).hexdigest()
    return perturbation.apply(np.ascontiguousarray(pixels), np.random.default_rng(int(digest[:16], 16)))


def moved_box(
    box: tuple[float, float, float, float], matrix: NDArray[np.float64], height: int, width: int
) -> tuple[float, float, float, float]:
    """A box (x1, y1, x2, y2) whose centre an affine map [2, 3] of few degrees moves, clipped to the frame.

    The extent is kept: the outline of a turned box would be larger than that of the turned defect in it.
    """
    x1, y1, x2, y2 = box
    cx, cy = matrix @ np.array([(x1 + x2) / 2, (y1 + y2) / 2, 1.0])
    w, h = (x2 - x1) / 2, (y2 - y1) / 2
    return max(cx - w, 0.0), max(cy - h, 0.0), min(cx + w, float(width)), min(cy + h, float(height))


def perturbed_sample(sample: Sample, perturbation: Perturbation, height: int, width: int) -> Sample:
    """The sample with its frame (of height x width px) perturbed and its boxes moved along."""
    if perturbation is AS_TAKEN:
        return sample

    def load() -> tuple[bytes, bytes | None]:
        image, reference = sample.load()
        changed = perturbed_pixels(decode(image), sample.info.key, perturbation)
        done, data = cv2.imencode(".png", np.ascontiguousarray(changed[..., ::-1]))
        assert done
        return data.tobytes(), reference

    info = sample.info
    if perturbation.place is not None:
        matrix = perturbation.place(height, width)
        objects = tuple(TruthBox(label=o.label, box=moved_box(o.box, matrix, height, width)) for o in info.objects)
        info = info.model_copy(update={"objects": objects})
    return replace(sample, info=info, load=load)
