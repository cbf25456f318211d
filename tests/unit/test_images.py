"""Image files and camera pixels: what is read, what it becomes, what is refused and how."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from auroraedge.errors import ImageTooLargeError, InvalidImageError, UnsupportedImageError
from auroraedge.inspection import images
from auroraedge.inspection.images import ALPHA_BACKGROUND, DecodedImage, ImageLimits, decode_image, raw_image

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


def picture(height: int = 23, width: int = 37) -> np.ndarray:
    """uint8 RGB without any symmetry, smooth enough for JPEG."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x * 3 + y * 5) % 256], -1).astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of filtered `rows`, written by hand: Pillow and OpenCV write fewer kinds than they read."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    extra = b"".join(chunk(*item) for item in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_format_gives_the_pixels_that_pillow_gives(kind: str, mode: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 90} if kind == "JPEG" else {}
    data = encode(image, kind, **options)
    decoded = decode_image(data)
    assert decoded.pixels.dtype == np.uint8 and decoded.pixels.flags.c_contiguous
    assert (decoded.width, decoded.height) == (37, 23) and decoded.pixels.shape == (23, 37, 3)
    assert np.array_equal(decoded.pixels, by_pillow(data))
    if kind != "JPEG":
        assert np.array_equal(decoded.pixels, np.asarray(image.convert("RGB")))
    assert decoded.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_opencv_and_pillow_agree_in_every_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for pixels in (picture(61, 83), picture(61, 83)[..., 0], picture(61, 83)[..., 0] > 99):
        image = Image.fromarray(pixels) if pixels.dtype == bool else pixels
        if kind == "JPEG" and pixels.dtype == bool:
            continue
        data = encode(image, kind)
        fast = decode_image(data).pixels
        with monkeypatch.context() as patch:
            patch.setattr(images.cv2, "imdecode", lambda *_: None)
            assert np.array_equal(fast, decode_image(data).pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_plain_files_take_the_fast_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = np.full((23, 37, 3), (1, 2, 3), np.uint8)  # RGB, if that is what is asked for
    asked = []
    monkeypatch.setattr(images.cv2, "imdecode", lambda _, flags: asked.append(flags) or marked.copy())
    assert tuple(decode_image(encode(picture(), kind)).pixels[0, 0]) == (1, 2, 3)
    assert [flags & images.cv2.IMREAD_COLOR_RGB for flags in asked] == [images.cv2.IMREAD_COLOR_RGB]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    data = encode(picture(), kind, exif=exif, **options)
    decoded = decode_image(data)
    expected = by_pillow(data)
    assert decoded.pixels.flags.c_contiguous
    assert np.array_equal(decoded.pixels, expected)
    assert decoded.pixels.shape[:2] == ((37, 23) if orientation >= 5 else (23, 37))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0"]
)
def test_damaged_or_senseless_exif_leaves_the_pixels_as_they_are(exif: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_image(encode(picture(), "JPEG", exif=exif)).pixels.shape == (23, 37, 3)


def test_16_bit_grey_keeps_the_high_byte() -> None:
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for data in (encode(grey, "PNG"), encode(grey, "TIFF"), cv2.imencode(".tif", grey)[1].tobytes()):
        pixels = decode_image(data).pixels
        assert np.array_equal(pixels, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_16_bit_rgb_keeps_the_high_byte() -> None:
    rgb = np.random.default_rng(0).integers(0, 65536, (9, 11, 3), dtype=np.uint16)
    for suffix in (".png", ".tif"):
        data = cv2.imencode(suffix, rgb[..., ::-1])[1].tobytes()
        assert np.array_equal(decode_image(data).pixels, (rgb >> 8).astype(np.uint8))


def test_16_bit_tiff_whose_zero_is_white() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 0
    grey = np.array([[0, 256, 65535]], np.uint16)
    data = encode(grey, "TIFF", tiffinfo=tags)
    assert Image.open(io.BytesIO(data)).tag_v2[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] == 0
    assert decode_image(data).pixels[0, :, 0].tolist() == [255, 254, 0]


def test_12_bit_tiff_is_scaled_by_12_bits() -> None:
    packed = bytes([0xFF, 0xF0, 0x00, 0x80, 0x00, 0x10])  # 4095, 0, 2048, 16
    entries = [(256, 4, 4), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1)]
    entries += [(278, 4, 1), (279, 4, len(packed))]
    fields = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    data = b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + b"\0\0\0\0"
    data = data.ljust(200, b"\0") + packed
    assert decode_image(data).pixels[0, :, 0].tolist() == [255, 0, 128, 1]


def test_cmyk_becomes_rgb() -> None:
    solid = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    for kind in ("JPEG", "TIFF"):
        red, green, blue = decode_image(encode(solid, kind)).pixels[8, 8].tolist()
        assert red > 250 and green < 5 and blue < 5, kind


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited(kind: str) -> None:
    rgba = np.full((8, 8, 4), (200, 100, 50, 255), np.uint8)
    rgba[:4, :, 3] = 0
    rgba[4, :, 3] = 128
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = decode_image(encode(rgba, kind, **options)).pixels
    assert np.array_equal(pixels[0, 0], ALPHA_BACKGROUND)
    assert np.abs(pixels[4, 0].astype(int) - (100, 50, 25)).max() <= 1
    assert pixels[7, 0].tolist() == [200, 100, 50]


def test_grey_with_alpha_and_transparent_colours() -> None:
    la = np.zeros((2, 2, 2), np.uint8)
    la[..., 0], la[0, :, 1] = 90, 255
    assert decode_image(encode(Image.fromarray(la, "LA"))).pixels[..., 0].tolist() == [[90, 90], [0, 0]]
    rgb = np.array([[[9, 8, 7], [1, 2, 3]]], np.uint8)
    keyed = decode_image(encode(Image.fromarray(rgb), transparency=(9, 8, 7))).pixels
    assert keyed.tolist() == [[[0, 0, 0], [1, 2, 3]]]
    rows = b"\0" + struct.pack(">HH", 0x1234, 0x5678)
    assert decode_image(png(2, 1, 16, 0, rows, (b"tRNS", b"\x12\x34"))).pixels[0, :, 0].tolist() == [0, 0x56]


def test_palette_with_and_without_transparency() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    for kind in ("PNG", "BMP", "TIFF"):
        assert decode_image(encode(image, kind)).pixels[0].tolist() == colours
    assert decode_image(encode(image, "PNG", transparency=1)).pixels[0].tolist() == [colours[0], [0, 0, 0], colours[2]]


@pytest.mark.parametrize(
    ("depth", "row", "values"), [(1, 0b01000000, [0, 255]), (2, 0b01100000, [85, 170]), (4, 0x3C, [51, 204])]
)
def test_few_bits_a_pixel(depth: int, row: int, values: list[int]) -> None:
    assert decode_image(png(2, 1, depth, 0, bytes([0, row]))).pixels[0, :, 1].tolist() == values


def test_the_first_page_counts() -> None:
    pages = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (10, 200)]
    for kind in ("TIFF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(pages[0], kind, save_all=True, append_images=pages[1:], **options)
        assert decode_image(data).pixels.max() == 10, kind


def test_any_kind_of_source(tmp_path: Path) -> None:
    data = encode(picture())
    path = tmp_path / "part ä 1.png"
    path.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), memoryview(data[::-1])[::-1], path, str(path)):
        decoded = decode_image(source)
        assert np.array_equal(decoded.pixels, picture())
        assert decoded.sha256 == hashlib.sha256(data).hexdigest()
    assert decode_image(decoded) is decoded


def test_arrays() -> None:
    rgb = picture()
    decoded = decode_image(rgb)
    assert np.array_equal(decoded.pixels, rgb) and decoded.sha256 == hashlib.sha256(rgb.tobytes()).hexdigest()
    grey = np.ascontiguousarray(rgb[..., 0])
    for source in (grey, grey[..., None], rgb[..., 0]):
        decoded = decode_image(source)
        assert np.array_equal(decoded.pixels, np.repeat(grey[..., None], 3, axis=2))
        assert decoded.sha256 == hashlib.sha256(grey.tobytes()).hexdigest()
    turned = decode_image(rgb[::-1, ::2, ::-1])
    assert np.array_equal(turned.pixels, rgb[::-1, ::2, ::-1]) and turned.pixels.flags.c_contiguous


def test_raw_pixels_of_every_format() -> None:
    rgb = picture()
    whole = decode_image(rgb)
    for pixel_format, pixels in (("RGB8", rgb), ("BGR8", rgb[..., ::-1])):
        decoded = raw_image(pixels.tobytes(), 37, 23, 0, pixel_format)
        assert np.array_equal(decoded.pixels, rgb) and decoded.sha256 == whole.sha256
        padded = np.full((23, 120), 0xEE, np.uint8)
        padded[:, :111] = pixels.reshape(23, 111)
        for data in (padded.tobytes(), padded.tobytes()[:-9]):
            decoded = raw_image(data, 37, 23, 120, pixel_format)
            assert np.array_equal(decoded.pixels, rgb) and decoded.sha256 == whole.sha256
    grey = np.ascontiguousarray(rgb[..., 1])
    assert np.array_equal(raw_image(bytearray(grey), 37, 23, 37, "MONO8").pixels, decode_image(grey).pixels)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.05, 0.5, 0.95])
def test_a_truncated_file_is_refused(kind: str, part: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(noise, kind)
    with pytest.raises(InvalidImageError) as caught:
        decode_image(data[: int(len(data) * part)], field="frame")
    assert type(caught.value) is InvalidImageError
    assert caught.value.field == "frame" and caught.value.remedy


@pytest.mark.parametrize("position", [0.3, 0.6, 0.98])
def test_a_damaged_png_is_refused(position: float) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = bytearray(encode(noise))
    data[int(len(data) * position)] ^= 0x55
    with pytest.raises(InvalidImageError):
        decode_image(data)


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"BM", b"BMW is no bitmap", b"\xff\xd8\xff", b"RIFF....WEBP"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImageError) as caught:
        decode_image(data)
    assert type(caught.value) is InvalidImageError and caught.value.field == "image" and "JPEG" in caught.value.remedy


@pytest.mark.parametrize(
    "start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"BM", b"II*\0", b"MM\0*", b"RIFF\0\1\0\0WEBPVP8 "]
)
def test_noise_behind_a_known_start_is_refused(start: bytes) -> None:
    rng = np.random.default_rng(3)
    for size in (1, 20, 300):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(InvalidImageError):
                decode_image(start + rng.bytes(size))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encode(Image.new("L", (2, 2)), "GIF"), "GIF"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"\0" * 128 + b"DICM", "DICOM"),
    ],
)
def test_other_formats_are_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImageError, match=name) as caught:
        decode_image(data)
    assert "PNG" in caught.value.remedy


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixel_types_that_are_not_read_are_named(mode: str) -> None:
    with pytest.raises(UnsupportedImageError, match=f"type {mode}"):
        decode_image(encode(Image.new(mode, (4, 4)), "TIFF"))


def test_a_header_of_zero_pixels_is_refused() -> None:
    bitmap = bytearray(encode(picture(), "BMP"))
    bitmap[18:22] = bytes(4)
    for data in (png(0, 4, 8, 2, b""), bytes(bitmap)):
        with pytest.raises(InvalidImageError) as caught:
            decode_image(data)
        assert not isinstance(caught.value, ImageTooLargeError)


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (2_000_000_000, 2_000_000_000), (40_000, 1)])
def test_a_bomb_is_refused_by_its_header(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(images.cv2, "imdecode", touched)
    monkeypatch.setattr(Image.Image, "load", touched)
    with pytest.raises(ImageTooLargeError, match=f"{width}x{height}") as caught:
        decode_image(png(width, height, 8, 2, b"\0" * 1000), field="reference")
    assert caught.value.field == "reference" and "limit" in caught.value.remedy


@pytest.mark.parametrize("kind", FORMATS)
def test_the_pixel_limit_holds_for_every_format(kind: str) -> None:
    data = encode(picture(), kind)
    assert decode_image(data, ImageLimits(max_pixels=37 * 23, max_side=37)).width == 37
    for limits in (ImageLimits(max_pixels=37 * 23 - 1), ImageLimits(max_side=36)):
        with pytest.raises(ImageTooLargeError):
            decode_image(data, limits)


def test_a_real_100_megapixel_file_is_refused() -> None:
    with pytest.raises(ImageTooLargeError, match="100,000,000"):
        decode_image(encode(Image.new("1", (10_000, 10_000))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_the_global_limit_of_pillow_is_neither_asked_nor_changed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Image.open refuses twice as many
    data = encode(Image.new("L", (9, 9)), kind)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    assert decode_image(data).width == 9
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
def test_where_pillow_asks_its_own_limit_the_error_is_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageTooLargeError):
        decode_image(encode(Image.new("L", (9, 9)), kind))


def test_the_byte_limit_and_arrays_beyond_the_limits(tmp_path: Path) -> None:
    data = encode(picture())
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ImageTooLargeError, match="bytes"):
            decode_image(source, ImageLimits(max_bytes=len(data) - 1))
    with pytest.raises(ImageTooLargeError):
        decode_image(picture(), ImageLimits(max_pixels=100))
    with pytest.raises(ImageTooLargeError):
        raw_image(b"", 100_000, 100_000, 0, "MONO8")
    with pytest.raises(ValueError, match="positive"):
        ImageLimits(max_side=0)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.float32), "float32"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4), np.inf, np.float32), "NaN or infinite"),
        (np.zeros((4, 4), np.int8), "int8"),
        (np.zeros((4, 4), bool), "bool"),
        (np.array([["a"]]), "<U1"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\(2, 4, 4, 3\)"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((3, 4, 5), np.uint8), r"\(3, 4, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), "4x0"),
        (np.zeros((4, 0), np.uint8), "0x4"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidImageError, match=message) as caught:
        decode_image(array, field="frame")
    assert caught.value.field == "frame"


def test_a_16_bit_array_is_told_how_to_scale() -> None:
    with pytest.raises(InvalidImageError) as caught:
        decode_image(np.zeros((4, 4), np.uint16))
    assert ">> 8" in caught.value.remedy


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "absent.png", tmp_path, pipe, str(tmp_path / "null\0.png"), ""):
        with pytest.raises(InvalidImageError) as caught:
            decode_image(path, field="reference")
        assert caught.value.field == "reference" and caught.value.remedy
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(InvalidImageError, match="no bytes"):
        decode_image(empty)


def test_other_objects_are_refused() -> None:
    for source in (None, 3, [1, 2], Image.new("L", (2, 2))):
        with pytest.raises(InvalidImageError, match=type(source).__name__):
            decode_image(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "width", "height", "stride", "pixel_format", "field"),
    [
        (12, 2, 2, 5, "RGB8", "image.stride"),
        (12, 2, 2, -6, "RGB8", "image.stride"),
        (11, 2, 2, 0, "RGB8", "image.pixels"),
        (13, 2, 2, 0, "RGB8", "image.pixels"),
        (0, 2, 2, 0, "MONO8", "image.pixels"),
        (13, 2, 2, 8, "BGR8", "image.pixels"),
        (12, 0, 2, 0, "RGB8", "image"),
        (12, 2, -2, 0, "RGB8", "image"),
    ],
)
def test_raw_pixels_that_do_not_agree(
    size: int, width: int, height: int, stride: int, pixel_format: str, field: str
) -> None:
    with pytest.raises(InvalidImageError) as caught:
        raw_image(bytes(size), width, height, stride, pixel_format)
    assert caught.value.field == field


def test_an_unknown_pixel_format_is_named() -> None:
    with pytest.raises(UnsupportedImageError, match="YUV422") as caught:
        raw_image(bytes(4), 2, 2, 0, "YUV422_8")
    assert caught.value.field == "image.pixel_format" and "MONO8" in caught.value.remedy


# --- many at once ----------------------------------------------------------------------------------------------------


def test_threads_do_not_disturb_each_other() -> None:
    good = [encode(picture(20 + i, 30 + i), kind) for i in range(4) for kind in FORMATS]
    expected = [decode_image(data).pixels for data in good]

    def work(index: int) -> bool:
        data = good[index % len(good)]
        if index % 7 == 0:
            with pytest.raises(InvalidImageError):
                decode_image(data[:40])
        return np.array_equal(decode_image(data).pixels, expected[index % len(good)])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(120)))


def test_a_decoded_image_is_what_the_inspector_takes() -> None:
    decoded = DecodedImage(pixels=picture(), sha256="0" * 64)
    assert (decoded.width, decoded.height) == (37, 23)
