"""Intake: the frame of a request, from wherever it lies, checked but not decoded; nothing here takes long."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import convert
from auroraedge.errors import (
    AuroraEdgeError,
    ImageTooLargeError,
    InvalidImageError,
    InvalidRequestError,
    SharedMemoryError,
)
from auroraedge.inspection.images import ImageLimits, check_size
from auroraedge.inspection.raw import RawFrame, raw_frame
from auroraedge.inspection.results import Region
from service.principal import current_principal
from service.shared_memory import SharedMemoryBroker

MAX_REGIONS = 64


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What frames may be, and the shared memory that they may lie in."""

    limits: ImageLimits
    memory: SharedMemoryBroker | None = None

    @property
    def owner(self) -> str:
        """Whose shared memory it may be: that of the caller of the RPC that is being handled."""
        return current_principal().name

    def source(self, frame: pb.Frame, field: str) -> bytes | RawFrame:
        """The bytes of an image file, undecoded, or checked raw pixels, unconverted.

        Raises InvalidImageError for no frame and for sizes that do not agree, UnsupportedImageError,
        ImageTooLargeError, and SharedMemoryError with its kin.
        """
        match frame.WhichOneof("source"):
            case "encoded":
                return frame.encoded
            case "raw":
                return self._raw(frame.raw, frame.raw.pixels, f"{field}.raw")
            case "shared_memory":
                return self._shared(frame.shared_memory, f"{field}.shared_memory")
            case _:
                raise InvalidImageError("There is no image.", field=field)

    def reference(
        self, request: pb.InspectRequest | pb.GenerateRequest | pb.StreamSession | pb.InspectManyRequest
    ) -> bytes | RawFrame | None:
        return self.source(request.reference, "reference") if request.HasField("reference") else None

    def _raw(self, layout, data, field: str, **more) -> RawFrame:  # type: ignore[no-untyped-def]
        known = pb.PixelFormat.values()
        name = pb.PixelFormat.Name(layout.pixel_format) if layout.pixel_format in known else str(layout.pixel_format)
        check_size(layout.width, layout.height, self.limits, field)
        return raw_frame(
            data, layout.width, layout.height, layout.stride, name.removeprefix("PIXEL_FORMAT_"), field, **more
        )

    def _shared(self, handle: pb.SharedMemoryFrame, field: str) -> bytes | RawFrame:
        if self.memory is None:
            raise SharedMemoryError("This server lends no shared memory.", field=field)
        data, verify = self.memory.frame(handle, owner=self.owner, field=field)
        if handle.HasField("layout"):
            return self._raw(handle.layout, data, f"{field}.layout", verify=verify)
        if handle.size > self.limits.max_bytes:
            raise ImageTooLargeError(
                f"The image file has {handle.size:,} bytes; the limit is {self.limits.max_bytes:,}.", field=field
            )
        # A decoder that reads a file twice must find the same bytes twice.
        copy = data.tobytes()
        verify()
        return copy


def content_sha256(source: bytes | RawFrame) -> str:
    """Hash of what a frame shows, however it was sent: that of the results. Takes milliseconds: not in the event loop.

    Raises what reading a frame in shared memory raises.
    """
    if not isinstance(source, RawFrame):
        return hashlib.sha256(source).hexdigest()
    digest = source.sha256()
    if source.verify is not None:
        source.verify()
    return digest


def regions_from(messages: Iterable[pb.Region], field: str = "regions") -> tuple[Region, ...]:
    """Raises InvalidRequestError for too many regions, an empty one, or an overlong name."""
    regions = list(messages)
    if len(regions) > MAX_REGIONS:
        raise InvalidRequestError(f"There are {len(regions)} regions; the limit is {MAX_REGIONS}.", field=field)
    return tuple(convert.region_from_proto(region, f"{field}[{index}]") for index, region in enumerate(regions))


def in_request_terms(error: AuroraEdgeError) -> AuroraEdgeError:
    """The inspector calls the frame `image`; the request calls it `frame`, and so must the error that names it."""
    if error.field == "image" or error.field.startswith("image."):
        error.field = f"frame{error.field.removeprefix('image')}"
    return error
