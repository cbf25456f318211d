"""Uncompressed camera pixels (GenICam PFNC) to uint8 RGB.

- Samples of more than 8 bits are scaled by their bit depth: v >> (bits - 8), as image files are. An unpacked sample
  above its bit depth means that the format is misnamed (samples in the high bits, or another depth): it is refused.
- Packed formats are PFNC's `10p` and `12p`: a row is one string of bits, the first sample in the lowest bits of the
  first byte; rows begin at bytes. (GigE Vision's older `Mono12Packed` orders the bits otherwise and is not read.)
- Bayer patterns are scaled to 8 bits, then interpolated bilinearly; at the frame's border the neighbours are mirrored.

Rows come from the top. Nothing here keeps what it is given: see `RawFrame.verify` for pixels that others can write to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from auroraedge.errors import InvalidImageError, UnsupportedImageError

PixelFormat = Literal[
    "MONO8", "MONO10", "MONO12", "MONO16", "MONO10P", "MONO12P",
    "RGB8", "BGR8",
    "BAYER_RG8", "BAYER_GB8", "BAYER_GR8", "BAYER_BG8",
    "BAYER_RG10", "BAYER_GB10", "BAYER_GR10", "BAYER_BG10",
    "BAYER_RG12", "BAYER_GB12", "BAYER_GR12", "BAYER_BG12",
    "BAYER_RG16", "BAYER_GB16", "BAYER_GR16", "BAYER_BG16",
    "BAYER_RG10P", "BAYER_GB10P", "BAYER_GR10P", "BAYER_BG10P",
    "BAYER_RG12P", "BAYER_GB12P", "BAYER_GR12P", "BAYER_BG12P",
]  # fmt: skip
PIXEL_FORMATS: tuple[str, ...] = get_args(PixelFormat)

# By PFNC's name, the first two colours of the first row. OpenCV's own short names (BayerBG, ...) look at the second
# row and column instead; these constants name all four.
_DEMOSAIC = {
    "RG": cv2.COLOR_BayerRGGB2RGB,
    "GB": cv2.COLOR_BayerGBRG2RGB,
    "GR": cv2.COLOR_BayerGRBG2RGB,
    "BG": cv2.COLOR_BayerBGGR2RGB,
}


@dataclass(frozen=True, kw_only=True)
class _Format:
    """bits: of a sample. samples: of a pixel. pattern: the Bayer pattern's first two colours, or ''."""

    bits: int
    packed: bool
    samples: int
    pattern: str

    @property
    def bits_per_pixel(self) -> int:
        return self.samples * (self.bits if self.packed or self.bits == 8 else 16)

    def row_bytes(self, width: int) -> int:
        return -(-width * self.bits_per_pixel // 8)


def _format(name: str) -> _Format:
    kind, _, rest = name.rpartition("_")
    pattern = rest[:2] if kind == "BAYER" else ""
    digits = "".join(character for character in name if character.isdigit())
    colours = 3 if name in ("RGB8", "BGR8") else 1
    return _Format(bits=int(digits), packed=name.endswith("P"), samples=colours, pattern=pattern)


_FORMATS = {name: _format(name) for name in PIXEL_FORMATS}


@dataclass(frozen=True, kw_only=True, eq=False)
class RawFrame:
    """Checked pixels that are not converted yet: neither copied nor hashed.

    rows: uint8 [H, bytes of a row], rows without their padding, on the memory that was given. verify: raises when that
    memory was written to since the frame was complete; to be called after the pixels were read.
    """

    rows: NDArray[np.uint8]
    width: int
    pixel_format: str
    field: str = "image"
    verify: Callable[[], None] | None = None

    @property
    def height(self) -> int:
        return int(self.rows.shape[0])

    def sha256(self) -> str:
        """Hash of the rows as they were sent; of RGB for BGR8, so that one picture has one hash."""
        if self.pixel_format == "BGR8":
            return hashlib.sha256(self.rgb().data).hexdigest()
        if self.rows.flags.c_contiguous:
            return hashlib.sha256(self.rows.data).hexdigest()
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(row.data)
        return digest.hexdigest()

    def rgb(self) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3], C-contiguous; of RGB8 without padding a view, else a copy. Raises InvalidImageError."""
        spec = _FORMATS[self.pixel_format]
        if spec.samples == 3:
            pixels = np.ascontiguousarray(self.rows).reshape(self.height, self.width, 3)
            return _converted(pixels, cv2.COLOR_BGR2RGB) if self.pixel_format == "BGR8" else pixels
        samples = self._samples(spec)
        return _demosaic(samples, _DEMOSAIC[spec.pattern]) if spec.pattern else _converted(samples, cv2.COLOR_GRAY2RGB)

    def _samples(self, spec: _Format) -> NDArray[np.uint8]:
        """uint8 [H, W]: one sample a pixel, scaled to 8 bits."""
        if spec.bits == 8:
            return self.rows
        if spec.packed:
            return (_unpack12 if spec.bits == 12 else _unpack10)(self.rows, self.width)
        high = self.rows[:, 1::2]
        if spec.bits == 16:
            return np.ascontiguousarray(high)
        # The byte above the sample's bits must be empty: cheaper than the largest sample, and the same question.
        if int(high.max()) >> (spec.bits - 8):
            raise InvalidImageError(
                f"There are samples above {2**spec.bits - 1}, the largest of {spec.bits} bits.",
                field=f"{self.field}.pixels",
                remedy=f"Send the samples in the low {spec.bits} bits, or name the format that the camera is set to.",
            )
        samples = self.rows.view("<u2") if self.rows.flags.c_contiguous else np.ascontiguousarray(self.rows).view("<u2")
        return np.right_shift(samples, spec.bits - 8).astype(np.uint8)


def raw_frame(
    data: bytes | bytearray | memoryview | NDArray[np.uint8],
    width: int,
    height: int,
    stride: int,
    pixel_format: str,
    field: str = "image",
    *,
    verify: Callable[[], None] | None = None,
) -> RawFrame:
    """`height` rows of `width` pixels, `stride` bytes from row to row (0: no padding) in `data`.

    The padding of the last row may be left out. Raises InvalidImageError naming the field that does not agree, and
    UnsupportedImageError for another pixel format.
    """
    spec = _FORMATS.get(pixel_format)
    if spec is None:
        raise UnsupportedImageError(
            f"Pixel format {pixel_format[:64]!r} is not supported.",
            field=f"{field}.pixel_format",
            remedy=f"Send one of {', '.join(PIXEL_FORMATS)}.",
        )
    if width < 1 or height < 1:
        raise InvalidImageError(f"An image of {width}x{height} pixels is empty.", field=field)
    row = spec.row_bytes(width)
    stride = stride or row
    if stride < row:
        raise InvalidImageError(
            f"The stride is {stride} bytes, but a row of {width} pixels has {row}.",
            field=f"{field}.stride",
            remedy="Give the bytes from one row's start to the next one's, or 0 for rows without padding.",
        )
    buffer = np.frombuffer(data, np.uint8)
    least, most = stride * (height - 1) + row, stride * height
    if not least <= buffer.size <= most:
        raise InvalidImageError(
            f"There are {buffer.size} bytes of pixels, but {height} rows of {stride} bytes need {most}.",
            field=f"{field}.pixels",
            remedy="Send stride * height bytes.",
        )
    rows = np.lib.stride_tricks.as_strided(buffer, (height, row), (stride, 1), writeable=False)
    return RawFrame(rows=rows, width=width, pixel_format=pixel_format, field=field, verify=verify)


def _converted(pixels: NDArray[np.uint8], code: int) -> NDArray[np.uint8]:
    rgb: Any = cv2.cvtColor(pixels, code)
    return rgb


def _whole_groups(rows: NDArray[np.uint8], width: int, samples: int, size: int) -> NDArray[np.uint8]:
    """[H, groups, size]: the bytes of a packed row by groups of `samples`; the last group is filled with zeros."""
    groups = -(-width // samples)
    missing = groups * size - rows.shape[1]
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    return rows.reshape(rows.shape[0], groups, size)


def _unpack12(rows: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The high 8 bits of 12: sample 0 is b0 | (b1 & 15) << 8, sample 1 is b1 >> 4 | b2 << 4."""
    group = _whole_groups(rows, width, 2, 3)
    samples = np.empty((*group.shape[:2], 2), np.uint8)
    b0, b1, b2 = (group[..., i] for i in range(3))
    np.bitwise_or(b0 >> 4, b1 << 4, out=samples[..., 0])
    samples[..., 1] = b2
    return np.ascontiguousarray(samples.reshape(len(rows), -1)[:, :width])


def _unpack10(rows: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The high 8 bits of 10: sample i begins at bit 10 * i of its five bytes."""
    group = _whole_groups(rows, width, 4, 5)
    samples = np.empty((*group.shape[:2], 4), np.uint8)
    b0, b1, b2, b3, b4 = (group[..., i] for i in range(5))
    np.bitwise_or(b0 >> 2, b1 << 6, out=samples[..., 0])
    np.bitwise_or(b1 >> 4, b2 << 4, out=samples[..., 1])
    np.bitwise_or(b2 >> 6, b3 << 2, out=samples[..., 2])
    samples[..., 3] = b4
    return np.ascontiguousarray(samples.reshape(len(rows), -1)[:, :width])


def _demosaic(samples: NDArray[np.uint8], code: int) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3]. OpenCV copies the border from the pixels beside it; here it is interpolated, too."""
    height, width = samples.shape
    if min(height, width) < 4:
        # Mirroring about a border's pixel keeps the pattern; a single row or column holds one half of it only.
        return _padded(samples, code, 2)[2:-2, 2:-2].copy()
    rgb = _converted(samples, code)
    rgb[0] = _padded(samples[:4], code, 2)[2, 2:-2]
    rgb[:, 0] = _padded(samples[:, :4], code, 2)[2:-2, 2]
    # From an even row or column, so that the strip has the frame's phase.
    top, left = (height - 4) // 2 * 2, (width - 4) // 2 * 2
    rgb[-1] = _padded(samples[top:], code, 2)[height - 1 - top + 2, 2:-2]
    rgb[:, -1] = _padded(samples[:, left:], code, 2)[2:-2, width - 1 - left + 2]
    return rgb


def _padded(samples: NDArray[np.uint8], code: int, margin: int) -> NDArray[np.uint8]:
    return _converted(np.pad(samples, margin, mode="reflect"), code)
