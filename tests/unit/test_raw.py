"""Camera pixels: unpacking and demosaicing against references that share no code with what they check."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auroraedge.errors import AuroraEdgeError, InvalidImageError
from auroraedge.inspection.images import decode_image
from auroraedge.inspection.raw import PIXEL_FORMATS, RawFrame, raw_frame

MONO = [name for name in PIXEL_FORMATS if name.startswith("MONO")]
BAYER = [name for name in PIXEL_FORMATS if name.startswith("BAYER")]
# Colour index (red 0, green 1, blue 2) of the pixel in row y, column x, by the first two letters of the name.
PHASE = {"RG": ((0, 1), (1, 2)), "GB": ((1, 2), (0, 1)), "GR": ((1, 0), (2, 1)), "BG": ((2, 1), (1, 0))}


def depth(name: str) -> int:
    return int("".join(c for c in name if c.isdigit()))


def packed(samples: np.ndarray, name: str) -> bytes:
    """Samples [H, W] as a camera sends them, by the text of PFNC: a string of bits for packed formats."""
    bits = depth(name)
    if name.endswith("P"):
        each = (samples[..., None] >> np.arange(bits)) & 1
        return np.packbits(each.reshape(len(samples), -1).astype(np.uint8), axis=1, bitorder="little").tobytes()
    return samples.astype("<u2" if bits > 8 else "u1").tobytes()


def random_samples(seed: int, height: int, width: int, bits: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, (height, width), dtype=np.uint16)


def bilinear(samples: np.ndarray, pattern: str) -> np.ndarray:
    """Each missing colour is the rounded mean of its 2 or 4 nearest samples, the frame mirrored at its border."""
    h, w = samples.shape
    mirrored = np.pad(samples.astype(int), 1, mode="reflect")
    rgb = np.zeros((h, w, 3), np.uint8)
    for y in range(h):
        for x in range(w):
            own = PHASE[pattern][y % 2][x % 2]
            near = mirrored[y : y + 3, x : x + 3]
            cross = [near[0, 1], near[2, 1], near[1, 0], near[1, 2]]
            diagonal = [near[0, 0], near[0, 2], near[2, 0], near[2, 2]]
            for colour in range(3):
                if colour == own:
                    values = [near[1, 1]]
                elif own == 1:  # green: the other two are left and right or above and below
                    beside = PHASE[pattern][y % 2][(x + 1) % 2] == colour
                    values = cross[2:] if beside else cross[:2]
                else:
                    values = cross if colour == 1 else diagonal
                rgb[y, x, colour] = (sum(values) + len(values) // 2) // len(values)
    return rgb


@given(
    name=st.sampled_from(MONO),
    width=st.integers(1, 23),
    height=st.integers(1, 9),
    padding=st.integers(0, 9),
    seed=st.integers(0, 2**32 - 1),
)
@example(name="MONO10P", width=1, height=1, padding=0, seed=0)
@example(name="MONO12P", width=7, height=3, padding=0, seed=1)
@settings(max_examples=150, deadline=None)
def test_grey_samples_are_cut_to_their_high_eight_bits(
    name: str, width: int, height: int, padding: int, seed: int
) -> None:
    samples = random_samples(seed, height, width, depth(name))
    data = packed(samples, name)
    row = len(data) // height
    wide = np.full((height, row + padding), 0xEE, np.uint8)
    wide[:, :row] = np.frombuffer(data, np.uint8).reshape(height, row)
    shown = wide.tobytes()[: (row + padding) * height - padding]  # the last row's padding may be left out
    image = decode_image(raw_frame(shown, width, height, row + padding, name))
    expected = (samples >> (depth(name) - 8)).astype(np.uint8)
    assert np.array_equal(image.pixels, np.repeat(expected[..., None], 3, axis=2))
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert image.pixels.flags.c_contiguous


@pytest.mark.parametrize("name", BAYER)
@pytest.mark.parametrize("size", [(6, 9), (7, 8), (4, 4), (5, 13), (2, 2), (3, 2), (2, 6)])
def test_bayer_patterns_are_interpolated(name: str, size: tuple[int, int]) -> None:
    samples = random_samples(7, *size, depth(name))
    rgb = raw_frame(packed(samples, name), size[1], size[0], 0, name).rgb()
    assert np.array_equal(rgb, bilinear(samples >> (depth(name) - 8), name[6:8]))


@pytest.mark.parametrize("name", [f"BAYER_{pattern}8" for pattern in PHASE])
def test_colours_come_out_where_they_were(name: str) -> None:
    """A red, a green, a blue and a yellow quarter through each filter: the orientation of every pattern."""
    scene = np.zeros((16, 20, 3), np.uint8)
    quarters = {(0, 0): (250, 0, 0), (0, 10): (0, 250, 0), (8, 0): (0, 0, 250), (8, 10): (250, 250, 0)}
    for (y, x), colour in quarters.items():
        scene[y : y + 8, x : x + 10] = colour
    ys, xs = np.mgrid[0:16, 0:20]
    filters = np.array(PHASE[name[6:8]])[ys % 2, xs % 2]
    samples = np.take_along_axis(scene, filters[..., None], axis=2)[..., 0]
    rgb = raw_frame(samples.tobytes(), 20, 16, 0, name).rgb()
    for (y, x), colour in quarters.items():
        assert np.array_equal(rgb[y + 4, x + 5], colour)
        assert np.array_equal(rgb[y + 2 : y + 6, x + 2 : x + 8].reshape(-1, 3), np.tile(colour, (24, 1)))


def test_a_single_row_has_no_pattern_but_a_picture() -> None:
    for width, height in ((1, 1), (5, 1), (1, 5)):
        assert raw_frame(bytes(width * height), width, height, 0, "BAYER_RG8").rgb().shape == (height, width, 3)


@pytest.mark.parametrize("name", ["MONO10", "MONO12", "BAYER_GR10", "BAYER_BG12"])
def test_samples_above_their_depth_are_refused(name: str) -> None:
    """They are samples in the high bits, or of another depth; cut to 8 bits they would be a wrong picture."""
    samples = np.full((4, 4), 2 ** depth(name) - 1, np.uint16)
    assert raw_frame(packed(samples, name), 4, 4, 0, name).rgb().max() == 255
    samples[3, 2] += 1
    with pytest.raises(InvalidImageError, match=str(2 ** depth(name) - 1)) as caught:
        raw_frame(packed(samples, name), 4, 4, 0, name, "frame.raw").rgb()
    assert caught.value.field == "frame.raw.pixels"


def test_equal_pictures_have_equal_hashes_where_the_format_says_the_same() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    plain = decode_image(rgb)
    assert decode_image(raw_frame(rgb.tobytes(), 7, 5, 0, "RGB8")).sha256 == plain.sha256
    assert decode_image(raw_frame(rgb[..., ::-1].tobytes(), 7, 5, 0, "BGR8")).sha256 == plain.sha256
    assert np.array_equal(decode_image(raw_frame(rgb[..., ::-1].tobytes(), 7, 5, 0, "BGR8")).pixels, rgb)


def test_rgb_without_padding_is_not_copied() -> None:
    memory = np.zeros(4 * 5 * 3, np.uint8)
    rgb = raw_frame(memory, 5, 4, 0, "RGB8").rgb()
    memory[0] = 9
    assert rgb[0, 0, 0] == 9 and not rgb.flags.writeable


def test_pixels_that_change_while_they_are_read_are_refused() -> None:
    """What is converted is checked at once; what is lent stays to be checked by its user."""

    def changed() -> None:
        raise InvalidImageError("written to")

    for name in ("BGR8", "RGB8"):
        with pytest.raises(InvalidImageError, match="written to"):
            decode_image(raw_frame(bytes(12), 2, 2, 0, name, verify=changed))
    looked: list[bool] = []
    lent = decode_image(raw_frame(bytearray(12), 2, 2, 0, "RGB8", verify=lambda: looked.append(True)))
    assert lent.verify is not None and len(looked) == 1
    own = lent.detached()
    assert len(looked) == 2 and own.verify is None and not np.may_share_memory(own.pixels, lent.pixels)
    assert decode_image(raw_frame(bytearray(12), 2, 2, 0, "BGR8", verify=lambda: None)).verify is None


@given(
    data=st.binary(max_size=200),
    width=st.integers(-3, 40),
    height=st.integers(-3, 40),
    stride=st.integers(-8, 100),
    name=st.sampled_from([*PIXEL_FORMATS, "", "MONO9", "BAYER_XX8", "RGB8P"]),
)
@settings(max_examples=400, deadline=None)
def test_anything_is_a_picture_or_an_error_that_names_a_field(
    data: bytes, width: int, height: int, stride: int, name: str
) -> None:
    try:
        frame = raw_frame(data, width, height, stride, name)
        assert isinstance(frame, RawFrame)
        rgb = frame.rgb()
    except AuroraEdgeError as error:
        assert error.field.startswith("image")
    else:
        assert rgb.shape == (height, width, 3) and rgb.dtype == np.uint8
