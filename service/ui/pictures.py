"""Pictures for a browser: by content hash alone, in formats that browsers show, and small ones for lists."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np

from auroraedge.errors import AuroraEdgeError
from auroraedge.inspection.images import ImageLimits, decode_image
from auroraedge.store import Store

ADDRESS = re.compile(r"[0-9a-f]{64}")
# Longest sides in pixels that may be asked for; 0 is the picture itself.
SIZES = (0, 320, 960)
_LIMITS = ImageLimits(max_bytes=512 * 1024 * 1024, max_pixels=256_000_000)
_CACHE_BYTES = 64 * 1024 * 1024
_SHOWN_AS_THEY_ARE = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"BM", "image/bmp"))


@dataclass(frozen=True, kw_only=True)
class BrowserPicture:
    content: bytes
    media_type: str


def media_type_of(content: bytes) -> str:
    """Of formats that every browser shows; "" for others."""
    for start, name in _SHOWN_AS_THEY_ARE:
        if content.startswith(start):
            return name
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else ""


class Pictures:
    """Reads pictures of a store. Thread-safe; small ones are kept in memory, least used out first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._small: OrderedDict[tuple[str, int], BrowserPicture] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, sha256: str, size: int = 0) -> BrowserPicture | None:
        """None for what is no address, was never stored, is no longer kept, or cannot be decoded."""
        if not ADDRESS.fullmatch(sha256) or size not in SIZES:
            return None
        with self._lock:
            found = self._small.get((sha256, size))
            if found is not None:
                self._small.move_to_end((sha256, size))
                return found
        content = self._store.image(sha256)
        if content is None:
            return None
        media_type = media_type_of(content)
        if size == 0 and media_type:
            return BrowserPicture(content=content, media_type=media_type)
        try:
            pixels = decode_image(content, _LIMITS).pixels
        except AuroraEdgeError:
            return None
        picture = _encode(pixels, size)
        if size:
            self._keep((sha256, size), picture)
        return picture

    def _keep(self, key: tuple[str, int], picture: BrowserPicture) -> None:
        with self._lock:
            if key in self._small:
                return
            self._small[key] = picture
            self._bytes += len(picture.content)
            while self._bytes > _CACHE_BYTES:
                _, oldest = self._small.popitem(last=False)
                self._bytes -= len(oldest.content)


def _encode(rgb: np.ndarray, size: int) -> BrowserPicture:
    """PNG at full size, JPEG of at most `size` pixels otherwise."""
    height, width = rgb.shape[:2]
    factor = size / max(height, width) if size else 1.0
    if factor < 1.0:
        shape = (max(1, round(width * factor)), max(1, round(height * factor)))
        rgb = cv2.resize(rgb, shape, interpolation=cv2.INTER_AREA)
    suffix, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 88]) if size else (".png", [])
    done, data = cv2.imencode(suffix, rgb[..., ::-1], options)
    assert done
    return BrowserPicture(content=data.tobytes(), media_type="image/jpeg" if size else "image/png")
