"""Image files and arrays to uint8 RGB, behind checked limits. What cameras deliver besides is in raw.py.

Accepted files: JPEG, PNG, BMP, TIFF and WebP; of a file with several pictures (pages, animation) the first one.

- Orientation (EXIF, or XMP) is applied: pixels come upright, and boxes refer to the upright picture.
- 16-bit and 12-bit samples are scaled by their bit depth, never by their content: 16 bit to the high byte (v >> 8), as
  OpenCV does. A sensor that fills 12 of 16 bits therefore looks dark; shift its pixels before sending them.
- Transparent pixels are composited on `ALPHA_BACKGROUND`.
- Palette, 1-bit, greyscale, CMYK and YCbCr become RGB. Colour profiles and gamma tags are not applied.

JPEG has no checksum: a flipped byte inside its pixel data can only be seen in the picture. Files that end early are
refused in every format.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from auroraedge.errors import AuroraEdgeError, ImageTooLargeError, InvalidImageError, UnsupportedImageError
from auroraedge.inspection.raw import RawFrame, raw_frame

# What shows through transparent pixels: black, like the unlit surroundings of a part.
ALPHA_BACKGROUND = (0, 0, 0)

# The plugins are called directly: Image.open warns about a decompression bomb, or raises, by a global limit before
# anyone sees the size, and it would choose among every format that Pillow knows.
_PLUGINS: tuple[tuple[str, tuple[bytes, ...], type[ImageFile.ImageFile]], ...] = (
    ("JPEG", (b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),
    ("PNG", (b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    ("BMP", (b"BM",), BmpImagePlugin.BmpImageFile),
    ("TIFF", (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), TiffImagePlugin.TiffImageFile),
    ("WebP", (b"RIFF",), WebPImagePlugin.WebPImageFile),
)
# Known by their first bytes only to say what the file is: (offset, bytes, name).
_OTHER_FORMATS = (
    (0, b"GIF8", "GIF"),
    (0, b"%PDF", "PDF"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"8BPS", "Photoshop"),
    (4, b"ftyp", "HEIF, AVIF or video"),
    (128, b"DICM", "DICOM"),
)
_REMEDY = "Convert it to JPEG, PNG, BMP, TIFF or WebP with 8 or 16 bits a channel."
# Chunks that cannot change a pixel. Any other (text, EXIF, transparency, animation) goes the slow way.
_PLAIN_PNG_CHUNKS = frozenset(
    (b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tIME", b"sBIT", b"bKGD", b"gAMA", b"cHRM", b"sRGB", b"iCCP")
)
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image may cost. The size is read from the header: nothing larger is ever decoded."""

    max_bytes: int = 256 * 1024 * 1024  # of an encoded file
    max_pixels: int = 64_000_000  # width * height
    max_side: int = 32_768  # pixels

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_pixels, self.max_side) < 1:
            raise ValueError(f"image limits must be positive: {self}")


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImage:
    """Upright pixels, uint8 RGB [H, W, 3], C-contiguous.

    sha256: of the file's bytes as given; of the pixels for an array: [H, W] if grey, RGB [H, W, 3] otherwise, rows
    without padding, so that a camera's frame has one hash however it was sent; of a RawFrame: see there.
    verify: set where the pixels lie in memory that another process may write to (see RawFrame); call it after reading
    them, or take `detached` ones.
    """

    pixels: NDArray[np.uint8]
    sha256: str
    verify: Callable[[], None] | None = None

    def detached(self) -> DecodedImage:
        """This image on memory of its own. Raises what `verify` does."""
        if self.verify is None:
            return self
        copy = replace(self, pixels=self.pixels.copy(), verify=None)
        self.verify()
        return copy

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])


ImageSource = bytes | bytearray | memoryview | Path | str | np.ndarray | RawFrame | DecodedImage


def decode_image(source: ImageSource, limits: ImageLimits | None = None, field: str = "image") -> DecodedImage:
    """The pixels of an image file (its bytes or its path), of a RawFrame, or of an array, uint8 [H, W], [H, W, 1] or
    RGB [H, W, 3].

    An array is not copied if it is C-contiguous RGB. A DecodedImage is returned as it is. `field` names the input in
    errors. Thread-safe. Raises InvalidImageError (missing, empty, truncated, not an image, an array of another dtype
    or shape), UnsupportedImageError (a file format or pixel type that is not read), ImageTooLargeError.
    """
    limits = limits or ImageLimits()
    if isinstance(source, DecodedImage):
        return source
    if isinstance(source, RawFrame):
        return _from_raw(source, limits)
    if isinstance(source, np.ndarray):
        return _from_array(source, limits, field)
    if isinstance(source, str | Path):
        data = _read_file(Path(source), limits, field)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)  # no copy of bytes
    else:
        raise InvalidImageError(
            f"An object of type {type(source).__name__} is not an image.",
            field=field,
            remedy="Pass a path, the bytes of an image file, or a uint8 array.",
        )
    _check_bytes(len(data), limits, field)
    return DecodedImage(pixels=_decode(data, limits, field), sha256=hashlib.sha256(data).hexdigest())


def raw_image(
    data: bytes | bytearray | memoryview,
    width: int,
    height: int,
    stride: int = 0,
    pixel_format: str = "RGB8",
    limits: ImageLimits | None = None,
    field: str = "image",
) -> DecodedImage:
    """Uncompressed camera pixels as a frame; the arguments and errors of `raw_frame`, and ImageTooLargeError."""
    limits = limits or ImageLimits()
    check_size(width, height, limits, field)
    return decode_image(raw_frame(data, width, height, stride, pixel_format, field), limits, field)


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_bytes(count: int, limits: ImageLimits, field: str) -> None:
    if count == 0:
        raise InvalidImageError("The image has no bytes.", field=field)
    if count > limits.max_bytes:
        raise ImageTooLargeError(
            f"The image file has {count:,} bytes; the limit is {limits.max_bytes:,}.",
            field=field,
            remedy="Compress, crop or downscale the frame, or raise the byte limit.",
        )


def check_size(width: int, height: int, limits: ImageLimits, field: str) -> None:
    """Raises InvalidImageError for an empty image and ImageTooLargeError for one above the limits."""
    if width < 1 or height < 1:
        raise InvalidImageError(f"An image of {width}x{height} pixels is empty.", field=field)
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise ImageTooLargeError(
            f"The image has {width}x{height} = {width * height:,} pixels; the limits are {limits.max_pixels:,} pixels "
            f"and {limits.max_side:,} a side.",
            field=field,
        )


def _read_file(path: Path, limits: ImageLimits, field: str) -> bytes:
    remedy = "Check the path and its permissions."
    try:
        if path.exists() and not path.is_file():  # opening a pipe or a device could block for ever
            raise InvalidImageError(f"{path} is not a file.", field=field, remedy="Name one image file.")
        with path.open("rb") as file:
            _check_bytes(os.fstat(file.fileno()).st_size, limits, field)
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        what = getattr(error, "strerror", None) or str(error)
        raise InvalidImageError(f"The image file {path} cannot be read: {what}.", field=field, remedy=remedy) from error


def _from_raw(frame: RawFrame, limits: ImageLimits) -> DecodedImage:
    check_size(frame.width, frame.height, limits, frame.field)
    pixels = frame.rgb()
    lent = frame.verify is not None and np.may_share_memory(pixels, frame.rows)
    # The hash of BGR8 is that of its RGB, which is at hand.
    digest = hashlib.sha256(pixels.data).hexdigest() if frame.pixel_format == "BGR8" else frame.sha256()
    image = DecodedImage(pixels=pixels, sha256=digest, verify=frame.verify if lent else None)
    if frame.verify is not None:
        frame.verify()
    return image


def _from_array(array: np.ndarray, limits: ImageLimits, field: str) -> DecodedImage:
    where = f"An array of dtype {array.dtype} and shape {array.shape}"
    remedy = "Pass a uint8 array of shape [H, W] (grey) or [H, W, 3] (RGB)."
    if array.dtype != np.uint8:
        if array.dtype.kind == "f" and array.size and not bool(np.isfinite(array).all()):
            where += ", with NaN or infinite values,"
        elif array.dtype == np.uint16:
            remedy = "Scale it to 8 bits by its bit depth, such as (pixels >> 8).astype(np.uint8) for 16 bits."
        raise InvalidImageError(f"{where} is not an image.", field=field, remedy=remedy)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise InvalidImageError(f"{where} is not an image.", field=field, remedy=remedy)
    check_size(array.shape[1], array.shape[0], limits, field)
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(array.data).hexdigest()
    grey = array.ndim == 2 or array.shape[2] == 1
    return DecodedImage(pixels=_grey_to_rgb(array) if grey else array, sha256=digest)


# --- files -----------------------------------------------------------------------------------------------------------


def _decode(data: bytes, limits: ImageLimits, field: str) -> NDArray[np.uint8]:
    """Upright uint8 RGB [H, W, 3]. The header is parsed by Pillow; the pixels by OpenCV where that is the same."""
    name, plugin = _plugin(data, field)
    try:
        with plugin(io.BytesIO(data)) as image:
            check_size(*image.size, limits, field)
            fast = _decode_fast(data, name, image)
            if fast is not None:
                return fast
            image.load()
            return _upright(_to_rgb(image, field), _orientation(image))
    except AuroraEdgeError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        # Pillow asks its own limit in TIFF and WebP files, which matters where ours is above 178 megapixels.
        raise ImageTooLargeError(f"The {name} file is too large for this process: {error}", field=field) from error
    except NotImplementedError as error:
        raise UnsupportedImageError(
            f"This kind of {name} is not supported: {error}.", field=field, remedy=_REMEDY
        ) from error
    except Exception as error:  # OSError, SyntaxError, ValueError, zlib.error, ...: Pillow's errors have no common base
        detail = str(error).rstrip(".")
        raise InvalidImageError(f"The {name} file is truncated or damaged: {detail}.", field=field) from error


def _plugin(data: bytes, field: str) -> tuple[str, type[ImageFile.ImageFile]]:
    for name, starts, plugin in _PLUGINS:
        if data.startswith(starts) and (name != "WebP" or data[8:12] == b"WEBP"):
            return name, plugin
    for offset, start, name in _OTHER_FORMATS:
        if data.startswith(start, offset):
            raise UnsupportedImageError(f"The file is {name}, which is not read.", field=field, remedy=_REMEDY)
    raise InvalidImageError(f"The {len(data):,} bytes are not an image file.", field=field)


def _decode_fast(data: bytes, name: str, image: ImageFile.ImageFile) -> NDArray[np.uint8] | None:
    """The picture decoded by OpenCV, 1.5 to 10 times as fast and the same in every bit; None where that is not sure."""
    orientation = 1
    if name == "JPEG":
        # The end marker is asked for because older OpenCVs fill what is missing with grey instead of failing.
        plain = image.mode in ("L", "RGB") and data.endswith(b"\xff\xd9")
        orientation = _orientation(image) if plain else 1
    elif name == "PNG":
        plain = _is_plain_png(data)
    else:
        plain = name == "BMP" and _is_plain_bmp(data, image)
    if not plain:
        return None
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        rgb: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None  # Pillow says what is wrong
    if rgb is None or rgb.dtype != np.uint8 or rgb.shape != (image.height, image.width, 3):
        return None
    return _upright(rgb, orientation)


def _is_plain_png(data: bytes) -> bool:
    """Complete, grey or RGB, 1 or 8 bits a channel, without a chunk that changes what is seen."""
    if len(data) < 33 or data[24] not in (1, 8) or data[25] not in (0, 2):
        return False
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind not in _PLAIN_PNG_CHUNKS:
            return False
        position += 12 + length
        if kind == b"IEND":
            return position <= len(data)
    return False


def _is_plain_bmp(data: bytes, image: ImageFile.ImageFile) -> bool:
    """Complete, 24 bits a pixel, uncompressed."""
    if image.mode != "RGB" or len(data) < 54:
        return False
    start, header, bits, compression = struct.unpack_from("<10xII10xHI", data)
    stride = (image.width * 3 + 3) // 4 * 4
    return header >= 40 and bits == 24 and compression == 0 and len(data) >= start + stride * image.height


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 if there is none, or none that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata fails in as many ways as Pillow has parsers, and says nothing of the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undoes an EXIF orientation (CIPA DC-008, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _to_rgb(image: Image.Image, field: str) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] of a loaded picture of any mode that is read."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _grey16_to_rgb(image)
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image if mode == "RGBA" else image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*ALPHA_BACKGROUND, 255))
        return np.array(Image.alpha_composite(background, rgba).convert("RGB"))
    if mode in ("1", "L"):
        return _grey_to_rgb(np.asarray(image.convert("L")))
    if mode in ("P", "RGB", "RGBX", "CMYK", "YCbCr"):
        return np.array(image.convert("RGB"))
    raise UnsupportedImageError(f"Pixels of type {mode} are not supported.", field=field, remedy=_REMEDY)


def _grey16_to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image).astype(np.uint16)
    bits = 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = int(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])
        # Pillow turns this one round for 8 bits, but not for 16.
        if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            values = (2**bits - 1) - values
    grey = (values >> (bits - 8)).astype(np.uint8)
    rgb = _grey_to_rgb(grey)
    transparent: Any = image.info.get("transparency")
    if isinstance(transparent, int):
        rgb[values == transparent] = ALPHA_BACKGROUND
    return rgb


def _grey_to_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W] or [H, W, 1] -> [H, W, 3]."""
    rgb: Any = cv2.cvtColor(np.ascontiguousarray(grey), cv2.COLOR_GRAY2RGB)
    return rgb
