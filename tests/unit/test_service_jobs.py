"""Frames of a request: pixels come out as they went in, and what does not fit together is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import convert
from auroraedge.errors import AuroraEdgeError, ImageTooLargeError, InvalidImageError, UnsupportedImageError
from auroraedge.inspection.images import ImageLimits, decode_image
from auroraedge.inspection.recipe import load_recipe
from service.frames import Intake, in_request_terms
from service.jobs import compares, job_from

INTAKE = Intake(limits=ImageLimits())


def source(frame: pb.Frame) -> np.ndarray:
    """The pixels as the inspector will see them."""
    return decode_image(INTAKE.source(frame, "frame")).pixels


PIXELS = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


def test_arrays_come_back_as_rgb() -> None:
    assert np.array_equal(source(convert.frame_to_proto(PIXELS)), PIXELS)
    assert np.array_equal(source(convert.frame_to_proto(PIXELS, pixel_format="bgr8")), PIXELS[:, :, ::-1])
    grey = PIXELS[:, :, 1]  # not contiguous
    assert np.array_equal(source(convert.frame_to_proto(grey)), np.repeat(grey[:, :, None], 3, axis=2))


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 9), height=st.integers(1, 9), padding=st.integers(0, 5), cut=st.booleans(), grey=st.booleans()
)
def test_padded_rows_are_read_right(width: int, height: int, padding: int, cut: bool, grey: bool) -> None:
    channels = 1 if grey else 3
    row = width * channels
    padded = np.random.default_rng(1).integers(0, 256, (height, row + padding), dtype=np.uint8)
    data = padded.tobytes()
    if cut:  # the last row may come without its padding
        data = data[: len(data) - padding]
    raw = pb.RawImage(width=width, height=height, stride=row + padding, pixels=data)
    raw.pixel_format = pb.PIXEL_FORMAT_MONO8 if grey else pb.PIXEL_FORMAT_RGB8
    image = source(pb.Frame(raw=raw))
    expected = np.broadcast_to(padded[:, :row].reshape(height, width, channels), (height, width, 3))
    assert np.array_equal(image, expected)


def raw_frame(**changes: object) -> pb.Frame:
    values: dict[str, object] = {
        "width": 4,
        "height": 5,
        "stride": 12,
        "pixel_format": pb.PIXEL_FORMAT_RGB8,
        "pixels": bytes(60),
    }
    return pb.Frame(raw=pb.RawImage(**(values | changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frame", "error", "field"),
    [
        (pb.Frame(), InvalidImageError, "frame"),
        (raw_frame(width=0), InvalidImageError, "frame.raw"),
        (raw_frame(height=0), InvalidImageError, "frame.raw"),
        (raw_frame(stride=11), InvalidImageError, "frame.raw.stride"),
        (raw_frame(pixels=bytes(59)), InvalidImageError, "frame.raw.pixels"),
        (raw_frame(pixels=bytes(61)), InvalidImageError, "frame.raw.pixels"),
        (raw_frame(width=2**32 - 1, height=2**32 - 1, stride=0), ImageTooLargeError, "frame.raw"),
        (raw_frame(pixel_format=0), UnsupportedImageError, "frame.raw.pixel_format"),
        (raw_frame(pixel_format=77), UnsupportedImageError, "frame.raw.pixel_format"),
    ],
)
def test_frames_that_cannot_be_used(frame: pb.Frame, error: type[AuroraEdgeError], field: str) -> None:
    with pytest.raises(error) as caught:
        source(frame)
    assert (type(caught.value), caught.value.field) == (error, field)


def test_file_bytes_are_not_touched() -> None:
    assert INTAKE.source(pb.Frame(encoded=b"anything"), "frame") == b"anything"


def test_errors_of_the_inspector_name_the_field_of_the_request() -> None:
    fields = ["image", "image.pixels", "imagery", "reference", ""]
    named = [in_request_terms(InvalidImageError("No.", field=field)).field for field in fields]
    assert named == ["frame", "frame.pixels", "imagery", "reference", ""]


def test_golden_sample_counts_only_where_the_recipe_compares() -> None:
    request = pb.InspectRequest(frame=pb.Frame(encoded=b"a"), reference=pb.Frame(encoded=b"b"))
    assert compares(job_from(request, load_recipe("pcb"), INTAKE))
    assert not compares(job_from(request, load_recipe("magnetic_tile"), INTAKE))
    request.ClearField("reference")
    assert not compares(job_from(request, load_recipe("pcb"), INTAKE))
