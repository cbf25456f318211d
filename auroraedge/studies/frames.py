"""What a frame looks like, in figures that change when the light, the lens or the camera does."""

from __future__ import annotations

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict

from auroraedge.inspection.images import decode_image

METRICS = ("brightness", "contrast", "sharpness")


class FrameStatistics(BaseModel):
    """Of the grey picture. brightness, contrast: mean and standard deviation of the grey levels, 0..255.

    sharpness: log10 of the variance of the Laplacian (plus 1), which falls when the picture is out of focus. Source:
    Pertuz et al., "Analysis of focus measure operators for shape-from-focus", Pattern Recognition 46 (2013), LAP4.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    brightness: float
    contrast: float
    sharpness: float
    width: int
    height: int

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"


def frame_statistics(image: bytes) -> FrameStatistics:
    """The statistics of an encoded picture. Raises InvalidImageError."""
    pixels = decode_image(image).pixels
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    mean, deviation = cv2.meanStdDev(grey)
    edges = cv2.Laplacian(grey, cv2.CV_32F)
    return FrameStatistics(
        brightness=float(mean[0, 0]),
        contrast=float(deviation[0, 0]),
        sharpness=float(np.log10(1.0 + float(edges.var(dtype=np.float64)))),
        width=int(grey.shape[1]),
        height=int(grey.shape[0]),
    )
