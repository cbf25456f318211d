"""What the generators return, and the noise they share. Torch-free (numpy, cv2).

Everything is a pure function of the np.random.Generator that is passed in: one seed, one picture.
Boxes are (x1, y1, x2, y2) in pixels, origin top left, x2 and y2 exclusive, as in the inspection pack.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class SyntheticPart:
    """One generated part.

    image: uint8 [H, W, 3] or [H, W]. reference: the aligned defect-free image of the same shape, or None.
    objects: (label, box). image_label: "ok", "defective" or the class of the whole image. kind: "board",
    "ground_surface" or "rolled_surface".
    """

    image: np.ndarray
    reference: np.ndarray | None
    objects: tuple[tuple[str, Box], ...]
    image_label: str
    kind: str


def white_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Uniform noise of mean 0 and variance 1, float32 [H, W]; close to normal once it is blurred."""
    raw = rng.integers(0, 256, size=(height, width), dtype=np.uint8)
    return (raw.astype(np.float32) - 127.5) * (1 / 73.9)


def smooth_noise(
    rng: np.random.Generator, height: int, width: int, sigma_x: float, sigma_y: float | None = None
) -> np.ndarray:
    """Correlated noise of mean about 0 and standard deviation about 1, float32 [H, W].

    sigma_x, sigma_y: correlation length in pixels. Long ones are drawn on a coarse grid, so that they cost little.
    """
    sigma_y = sigma_x if sigma_y is None else sigma_y
    step_x, step_y = max(1, int(sigma_x / 2)), max(1, int(sigma_y / 2))
    w, h = -(-width // step_x) + 8, -(-height // step_y) + 8
    field = cv2.GaussianBlur(white_noise(rng, h, w), (0, 0), sigmaX=sigma_x / step_x, sigmaY=sigma_y / step_y)
    # The standard deviation of white noise after a Gaussian blur, in closed form per axis.
    gain = np.sqrt(_blur_power(sigma_x / step_x) * _blur_power(sigma_y / step_y))
    field = cv2.resize(field[4:-4, 4:-4], (width, height), interpolation=cv2.INTER_CUBIC)
    return field * np.float32(1 / gain)


def _blur_power(sigma: float) -> float:
    """Sum of the squares of a normalised Gaussian kernel of this sigma."""
    kernel = cv2.getGaussianKernel(int(sigma * 8) | 1, sigma)
    return float((kernel**2).sum())


def expose(
    rng: np.random.Generator, latent: np.ndarray, *, registration_px: float = 0.0, noise: float = 1.0
) -> np.ndarray:
    """One binarised photograph of a board, bool [H, W]: True is copper.

    latent: copper coverage, uint8 [H, W], 255 is copper. The optics blur it, the sensor adds fine noise, the lighting
    slow drift and the threshold is a little off each time: that makes the dithered one-pixel edges of the real pairs.
    registration_px: standard deviation of the shift of the whole picture in pixels; noise: factor of all the rest.
    """
    height, width = latent.shape
    dx, dy = rng.normal(0.0, registration_px, size=2) if registration_px else (0.0, 0.0)
    soft = latent
    if dx or dy:
        matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        soft = cv2.warpAffine(latent, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    soft = cv2.GaussianBlur(soft, (0, 0), 1.2)
    # Everything below is uint8 with its middle at 128, which is several times as fast as float.
    step = 12
    drift = smooth_noise(rng, -(-height // step), -(-width // step), 24.0 / step)
    slow = np.clip(drift * 32 + 128, 0, 255).astype(np.uint8)
    slow = cv2.resize(slow, (width, height), interpolation=cv2.INTER_CUBIC)
    fine = cv2.blur(rng.integers(0, 256, size=(height, width), dtype=np.uint8), (2, 2))
    by_slow, by_fine = noise * rng.uniform(0.95, 2.2), noise * rng.uniform(0.35, 0.75)
    middle = 127.5 + noise * rng.normal(0.0, 7.5)
    threshold = cv2.addWeighted(slow, by_slow, fine, by_fine, middle - 128 * by_slow - 127.5 * by_fine)
    # A flat area never flips: only pixels near an edge are uncertain.
    return soft > np.clip(threshold, 38, 217)
