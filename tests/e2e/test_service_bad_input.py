"""Everything a camera, a script or an attacker may send: the exact status and reason, and a server that still serves.

Each case runs against the inspector of the tests and, where the checkout has it, against the embedded engine.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from PIL import Image
from service_harness import encoded, frame, running_server

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceStub
from auroraedge.client import InspectionClient
from auroraedge.inspection.results import Verdict
from auroraedge.runtime import DEFAULT_ENGINE, Inspector

RECIPE = "magnetic_tile"


@pytest.fixture(scope="module", params=["statistics", "engine"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    inspector = None
    if request.param == "engine":
        if not (DEFAULT_ENGINE / "manifest.json").is_file():
            pytest.skip("the embedded engine is not in this checkout")
        inspector = Inspector.open(threads=1)
    with running_server(inspector) as running:
        yield running.address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[InspectionClient]:
    with InspectionClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[InspectionServiceStub]:
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", 64 * 2**20)]) as channel:
        yield InspectionServiceStub(channel)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A grey 8-bit PNG with any header and any chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def file(data: bytes) -> pb.InspectRequest:
    return pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(encoded=data))


def raw(width: int, height: int, stride: int, pixels: int, pixel_format: int = 2) -> pb.InspectRequest:
    image = pb.RawImage(width=width, height=height, stride=stride, pixels=bytes(pixels))
    image.pixel_format = pixel_format  # type: ignore[assignment]
    return pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(raw=image))


GOOD = encoded(frame())
JPEG = encoded(frame(), "JPEG", quality=95)
# 16 million times smaller than what it claims, and 100 MB of nothing in a text chunk.
BOMB = png(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(1000))))
TEXT_BOMB = png(8, 8, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100 * 2**20))), chunk(b"IDAT", b""))


def hundred_megapixels() -> bytes:
    return encoded(Image.new("1", (10_000, 10_000)))


REFUSED: dict[str, tuple[Any, str, str, str]] = {
    "no frame": (pb.InspectRequest(recipe_id=RECIPE), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame"),
    "frame without a source": (
        pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame()),
        "INVALID_ARGUMENT",
        "INVALID_IMAGE",
        "frame",
    ),
    "empty bytes": (file(b""), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame"),
    "text instead of an image": (file(b"part 7 is fine\n" * 99), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame"),
    "truncated PNG": (file(GOOD[: len(GOOD) // 2]), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame"),
    "truncated JPEG": (file(JPEG[: len(JPEG) * 2 // 3]), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame"),
    "only a PNG signature": (file(GOOD[:8]), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame"),
    "PNG of 0x0 pixels": (file(png(0, 0)), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame"),
    "GIF": (file(encoded(frame(), "GIF")), "INVALID_ARGUMENT", "UNSUPPORTED_IMAGE_FORMAT", "frame"),
    "decompression bomb": (file(BOMB), "INVALID_ARGUMENT", "IMAGE_TOO_LARGE", "frame"),
    "text chunk bomb": (file(TEXT_BOMB), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame"),
    "100 megapixels": (hundred_megapixels, "INVALID_ARGUMENT", "IMAGE_TOO_LARGE", "frame"),
    "raw of 0x0 pixels": (raw(0, 0, 0, 0), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame.raw"),
    "raw with a short stride": (raw(8, 4, 23, 92), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame.raw.stride"),
    "raw with too few bytes": (raw(8, 4, 24, 95), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame.raw.pixels"),
    "raw with too many bytes": (raw(8, 4, 24, 97), "INVALID_ARGUMENT", "INVALID_IMAGE", "frame.raw.pixels"),
    "raw of impossible size": (raw(2**31, 2**31, 0, 9), "INVALID_ARGUMENT", "IMAGE_TOO_LARGE", "frame.raw"),
    "raw without a format": (
        raw(8, 4, 0, 96, 0),
        "INVALID_ARGUMENT",
        "UNSUPPORTED_IMAGE_FORMAT",
        "frame.raw.pixel_format",
    ),
    "raw of a format to come": (
        raw(8, 4, 0, 96, 9),
        "INVALID_ARGUMENT",
        "UNSUPPORTED_IMAGE_FORMAT",
        "frame.raw.pixel_format",
    ),
    "recipe that is missing": (
        pb.InspectRequest(recipe_id="no_such", frame=pb.Frame(encoded=GOOD)),
        "NOT_FOUND",
        "RECIPE_NOT_FOUND",
        "recipe_id",
    ),
    "recipe id that is a path": (
        pb.InspectRequest(recipe_id="../../etc/passwd.yaml", frame=pb.Frame(encoded=GOOD)),
        "NOT_FOUND",
        "RECIPE_NOT_FOUND",
        "recipe_id",
    ),
    "label that is unknown": (
        pb.InspectRequest(recipe_id=RECIPE, frame=pb.Frame(encoded=GOOD), prompt="is there a rabbit?"),
        "INVALID_ARGUMENT",
        "UNKNOWN_LABEL",
        "label",
    ),
    "golden sample that is missing": (
        pb.InspectRequest(recipe_id="pcb", frame=pb.Frame(encoded=GOOD)),
        "INVALID_ARGUMENT",
        "REFERENCE_REQUIRED",
        "reference",
    ),
    "golden sample that is no image": (
        pb.InspectRequest(recipe_id="pcb", frame=pb.Frame(encoded=GOOD), reference=pb.Frame(encoded=b"x")),
        "INVALID_ARGUMENT",
        "INVALID_IMAGE",
        "reference",
    ),
    "golden sample of another size": (
        pb.InspectRequest(
            recipe_id="pcb", frame=pb.Frame(encoded=GOOD), reference=pb.Frame(encoded=encoded(frame(65, 48)))
        ),
        "INVALID_ARGUMENT",
        "REFERENCE_REQUIRED",
        "reference",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_status_and_reason_and_the_server_still_serves(
    stub: InspectionServiceStub, client: InspectionClient, case: str
) -> None:
    message, code, reason, field = REFUSED[case]
    with pytest.raises(grpc.RpcError) as caught:
        stub.Inspect(file(message()) if callable(message) else message, timeout=60)
    assert caught.value.code().name == code, caught.value.details()
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert [detail.Unpack(info) for detail in status.details].count(True) == 1, "exactly one ErrorInfo"
    assert (info.reason, info.domain, info.metadata["field"]) == (reason, "auroraedge", field)
    assert info.metadata["remedy"]
    assert client.inspect(GOOD, RECIPE).verdict is not Verdict.ERROR


def test_the_same_in_a_session_and_the_session_goes_on(stub: InspectionServiceStub) -> None:
    def messages() -> Iterator[pb.InspectStreamRequest]:
        yield pb.InspectStreamRequest(session=pb.StreamSession(recipe_id=RECIPE))
        for number, case in enumerate(REFUSED):
            message = REFUSED[case][0]
            request = file(message()) if callable(message) else message
            for sequence, content in ((number * 2, request), (number * 2 + 1, file(GOOD))):
                yield pb.InspectStreamRequest(frame=pb.StreamFrame(sequence=sequence, request=content))

    _, *results = stub.InspectStream(messages(), timeout=120)  # the first response opens the session
    assert [response.sequence for response in results] == list(range(2 * len(REFUSED)))
    for number, (case, (_, _, reason, field)) in enumerate(REFUSED.items()):
        bad, good = results[2 * number].result, results[2 * number + 1].result
        assert bad.verdict == pb.VERDICT_ERROR, case
        assert good.verdict in (pb.VERDICT_OK, pb.VERDICT_NG, pb.VERDICT_REVIEW), case
        if case != "label that is unknown":  # a session answers no prompts at all
            assert (bad.error.reason, bad.error.field) == (reason, field), case


# --- unusual, but images ---------------------------------------------------------------------------------------------


def agree(client: InspectionClient, data: bytes, pixels: np.ndarray, tolerance: float = 0.0) -> None:
    """The file gets the same verdict as the upright RGB pixels that it shows."""
    served, expected = client.inspect(data, RECIPE), client.inspect(pixels, RECIPE)
    assert (served.image_height, served.image_width) == pixels.shape[:2]
    assert served.ng_probability == pytest.approx(expected.ng_probability, abs=tolerance)
    if tolerance == 0:
        assert [defect.box for defect in served.defects] == [defect.box for defect in expected.defects]


def test_16_bit_png_is_scaled_by_its_bit_depth(client: InspectionClient) -> None:
    grey = frame()[:, :, 0]
    agree(client, encoded(Image.fromarray(grey.astype(np.uint16) * 257)), np.repeat(grey[:, :, None], 3, axis=2))


def test_cmyk_jpeg_is_read_in_its_colours(client: InspectionClient) -> None:
    data = encoded(Image.fromarray(frame()).convert("CMYK"), "JPEG", quality=100)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    agree(client, data, frame(), tolerance=0.1)


def test_transparent_pixels_are_black(client: InspectionClient) -> None:
    pixels = frame()
    alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    alpha[:, 32:] = 0
    shown = pixels.copy()
    shown[:, 32:] = 0
    agree(client, encoded(np.concatenate([pixels, alpha], axis=2)), shown)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_rotation_is_applied_and_boxes_are_upright(client: InspectionClient, orientation: int) -> None:
    stored = frame()
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.rot90(stored, {3: 2, 6: -1, 8: 1}[orientation])
    agree(client, encoded(stored, "PNG", exif=exif), np.ascontiguousarray(upright))


def test_prose_of_a_refusal_helps(client: InspectionClient, stub: InspectionServiceStub) -> None:
    """What a person sees who knows nothing of error details: the plain gRPC message names field, cause and remedy."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Inspect(file(b"x" * 100), timeout=60)
    text = caught.value.details()
    assert text.startswith("frame: ") and "not an image" in text and "JPEG, PNG" in text
