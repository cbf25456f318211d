"""Hand-made image features and a softmax regression in NumPy: the parts of the classical baselines.

Legend: n images, d features, K classes. Grey images are uint8 [H, W].
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Array = NDArray[np.float64]

_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def _uniform_table() -> NDArray[np.int64]:
    """Bin of each of the 256 codes: 0..57 for those with at most two changes around the circle, 58 for the rest."""
    table = np.full(256, 58, dtype=np.int64)
    place = 0
    for code in range(256):
        bits = [(code >> k) & 1 for k in range(8)]
        if sum(bits[k] != bits[k - 1] for k in range(8)) <= 2:
            table[code], place = place, place + 1
    return table


_LBP_BIN = _uniform_table()


def lbp_histogram(grey: Grey) -> Array:
    """Relative frequency of the 59 uniform local binary patterns (8 neighbours at distance 1), float64 [59].

    Source: Ojala, Pietikainen, Maenpaa, "Multiresolution gray-scale and rotation invariant texture classification
    with local binary patterns", PAMI 24 (2002).
    """
    h, w = grey.shape
    centre = grey[1:-1, 1:-1]
    codes = np.zeros(centre.shape, dtype=np.int64)
    for bit, (dy, dx) in enumerate(_NEIGHBOURS):
        codes |= (grey[1 + dy : h - 1 + dy, 1 + dx : w - 1 + dx] >= centre).astype(np.int64) << bit
    return np.bincount(_LBP_BIN[codes].ravel(), minlength=59) / max(1, codes.size)


def hog(grey: Grey, side: int = 64, cell: int = 16, bins: int = 9) -> Array:
    """Histograms of gradient direction, unsigned, one a cell, L2-normalised over the image; float64 [cells * bins].

    Source: Dalal and Triggs, "Histograms of oriented gradients for human detection", CVPR 2005, without overlapping
    blocks.
    """
    small = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    gx, gy = cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1)
    strength = np.hypot(gx, gy)
    direction = ((np.arctan2(gy, gx) % np.pi) / np.pi * bins).astype(np.int64) % bins
    per_side = side // cell
    rows, columns = np.indices(small.shape) // cell
    place = (rows * per_side + columns) * bins + direction
    histogram = np.bincount(place.ravel(), weights=strength.ravel(), minlength=per_side * per_side * bins)
    return np.asarray(histogram / (np.linalg.norm(histogram) + 1e-6), dtype=np.float64)


def grey_statistics(grey: Grey) -> Array:
    """Mean, spread, percentiles, and percentiles of gradient and of local contrast at three scales, 0..1; [30]."""
    pixels = grey.astype(np.float32) / 255
    levels = (1, 5, 25, 50, 75, 95, 99)
    figures = [pixels.mean(), pixels.std(), *np.percentile(pixels, levels)]
    gradient = np.hypot(cv2.Sobel(pixels, cv2.CV_32F, 1, 0), cv2.Sobel(pixels, cv2.CV_32F, 0, 1))
    figures += [gradient.mean(), *np.percentile(gradient, (50, 95))]
    for sigma in (1.5, 4.0, 10.0):
        contrast = pixels - cv2.GaussianBlur(pixels, (0, 0), sigma)
        figures += [contrast.std(), contrast.min(), contrast.max(), *np.percentile(contrast, (0.5, 5, 99.5))]
    return np.array(figures, dtype=np.float64)


def image_features(rgb: NDArray[np.uint8]) -> Array:
    """HOG, LBP at two scales and grey statistics of a uint8 RGB image of at least 8 x 8 pixels, float64 [d]."""
    grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    half = np.asarray(cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.concatenate([hog(grey), lbp_histogram(grey), lbp_histogram(half), grey_statistics(grey)])


class SoftmaxRegression:
    """Multinomial logistic regression on standardised features, classes weighted by 1 / sqrt(frequency).

    Loss: weighted mean cross-entropy + l2 / 2 * |W|^2, minimised from zero by gradient descent with Nesterov momentum
    and the step 1 / L, L = largest eigenvalue of X^T X / n / 2 + l2, the bound of the Hessian (Boehning,
    "Multinomial logistic regression algorithm", 1992). Deterministic.
    """

    def __init__(self, l2: float = 0.01, steps: int = 400) -> None:
        self.l2, self.steps = l2, steps
        self.classes: tuple[str, ...] = ()

    def fit(self, features: Array, labels: Sequence[str]) -> SoftmaxRegression:
        """`features` float64 [n, d], `labels` n class names; at least one image. Returns itself."""
        self.classes = tuple(sorted(set(labels)))
        index = np.array([self.classes.index(label) for label in labels])
        self._mean, self._scale = features.mean(axis=0), features.std(axis=0) + 1e-9
        x = self._inputs(features)
        target = np.eye(len(self.classes))[index]
        importance = 1 / np.sqrt(target.sum(axis=0))[index]
        importance /= importance.mean()
        spread = np.linalg.eigvalsh((x * importance[:, None]).T @ x / len(x))[-1]
        step = 1 / (spread / 2 + self.l2)
        weight = previous = np.zeros((x.shape[1], len(self.classes)))
        for count in range(self.steps):
            ahead = weight + count / (count + 3) * (weight - previous)
            gap = (_softmax(x @ ahead) - target) * importance[:, None]
            decay = self.l2 * ahead
            decay[-1] = 0  # the bias is not shrunk
            previous, weight = weight, ahead - step * (x.T @ gap / len(x) + decay)
        self._weight = weight
        return self

    def probabilities(self, features: Array) -> Array:
        """float64 [n, K] in the order of `classes`."""
        return _softmax(self._inputs(features) @ self._weight)

    def _inputs(self, features: Array) -> Array:
        # Clipping keeps one odd image from owning the score; 8 standard deviations are beyond any ordinary feature.
        scaled = np.clip((features - self._mean) / self._scale, -8, 8)
        return np.hstack([scaled, np.ones((len(scaled), 1))])


def _softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), dtype=np.float64)
