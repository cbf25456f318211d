"""One look at every image: size, colour mode, hash of its pixels, and a thumbnail to compare it with the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from auroraedge.data.importers import RawItem
from auroraedge.data.pack import image_bytes, load_image
from auroraedge.errors import AuroraEdgeError

THUMBNAIL = 64


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What an image file holds. error: why it cannot be used, else "" and the other fields are set.

    mode: 'grey 8-bit', 'colour 8-bit', 'grey 16-bit', ...; a colour file whose channels are equal is 'grey'.
    pixels_sha256: of the decoded RGB pixels and their shape. thumbnail: float32 [64, 64] grey.
    """

    error: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    pixels_sha256: str = ""
    thumbnail: NDArray[np.float32] | None = None


def probe_image(path: Path) -> Probe:
    """Decodes one file. Never raises for a bad one."""
    try:
        rgb = load_image(path)
        raw = cv2.imdecode(np.frombuffer(image_bytes(path), np.uint8), cv2.IMREAD_UNCHANGED)
    except (AuroraEdgeError, cv2.error) as error:
        return Probe(error=getattr(error, "message", str(error)))
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    is_grey = bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all())
    bits = 8 if raw is None else raw.dtype.itemsize * 8
    digest = hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).hexdigest()
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32)
    return Probe(
        width=rgb.shape[1],
        height=rgb.shape[0],
        mode=f"{'grey' if is_grey else 'colour'} {bits}-bit",
        pixels_sha256=digest,
        thumbnail=small,
    )


def probe_all(items: Sequence[RawItem], each: Callable[[], None] = lambda: None) -> list[Probe]:
    """A probe an item, in order. each: called after every image, for a progress bar."""
    found = []
    for item in items:
        found.append(probe_image(item.path))
        each()
    return found
