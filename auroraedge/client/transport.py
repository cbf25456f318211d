"""What both clients share: channel options, requests from Python values, and errors from failed calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.rpc import status_pb2

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import convert
from auroraedge.client.models import FrameInput, ImageInput
from auroraedge.client.retry import RetryPolicy
from auroraedge.client.status import DETAILS_KEY, error_from_status, error_from_transport
from auroraedge.errors import AuroraEdgeError
from auroraedge.inspection.results import InspectionResult, RequestInfo, error_result

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_MESSAGE_MB = 64


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """How a client talks to its server. timeout_s: of one call with its retries; None waits for ever."""

    address: str = DEFAULT_ADDRESS
    timeout_s: float | None = 30.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_message_mb: int = DEFAULT_MESSAGE_MB

    def channel_options(self) -> list[tuple[str, int]]:
        size = self.max_message_mb * 1024 * 1024
        return [
            ("grpc.max_send_message_length", size),
            ("grpc.max_receive_message_length", size),
            # gRPC waits 1 s before it first connects again; a server that restarts on a line is back sooner.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]


def error_from_rpc(error: Any) -> AuroraEdgeError:
    """The error behind a grpc.RpcError of either client."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            return error_from_status(status_pb2.Status.FromString(value))
    return error_from_transport(error.code().value[0], error.details() or "")


def request_fields(frame: FrameInput) -> dict[str, Any]:
    """The fields that InspectRequest and GenerateRequest have in common."""

    def converted(image: ImageInput, field: str) -> pb.Frame:
        return convert.frame_to_proto(image, pixel_format=frame.pixel_format, field=field)

    return {
        "info": convert.request_info_to_proto(frame.request) if frame.request else None,
        "recipe_id": frame.recipe_id,
        "recipe_version": frame.recipe_version,
        "frame": converted(frame.image, "frame"),
        "reference": None if frame.reference is None else converted(frame.reference, "reference"),
    }


def default_name(frame: FrameInput) -> str:
    return frame.image_name or (Path(frame.image).name if isinstance(frame.image, str | Path) else "")


def inspect_request(frame: FrameInput, *, prompt: str = "") -> pb.InspectRequest:
    return pb.InspectRequest(image_name=default_name(frame), prompt=prompt, **request_fields(frame))


def as_frame_input(frame: FrameInput | ImageInput) -> FrameInput:
    return frame if isinstance(frame, FrameInput) else FrameInput(image=frame)


def session_message(
    recipe_id: str,
    *,
    recipe_version: int,
    reference: ImageInput | None,
    request: RequestInfo | None,
    early_verdict: bool,
) -> pb.InspectStreamRequest:
    session = pb.StreamSession(
        info=convert.request_info_to_proto(request) if request else None,
        recipe_id=recipe_id,
        recipe_version=recipe_version,
        reference=None if reference is None else convert.frame_to_proto(reference, field="reference"),
        early_verdict=early_verdict,
    )
    return pb.InspectStreamRequest(session=session)


class StreamLedger:
    """Numbers the frames of one stream and slips in the results of frames that could not even be sent.

    A frame that cannot be read on the client's side must not end the stream either: it gets its ERROR result here, in
    its place among the server's results.
    """

    def __init__(self) -> None:
        self._unsent: dict[int, InspectionResult] = {}
        self._next = 0
        self._sequence = 0

    def message(self, frame: FrameInput) -> pb.InspectStreamRequest | None:
        """The message of the next frame; None when it cannot be sent."""
        sequence, self._sequence = self._sequence, self._sequence + 1
        try:
            request = inspect_request(frame)
        except AuroraEdgeError as error:
            self._unsent[sequence] = error_result(error, request=frame.request, image_name=default_name(frame))
            return None
        return pb.InspectStreamRequest(frame=pb.StreamFrame(sequence=sequence, request=request))

    def results(self, response: pb.InspectStreamResponse) -> list[InspectionResult]:
        """The results that are due with this response, in the order of their frames."""
        due = self._unsent_before(response.sequence)
        result = convert.result_from_proto(response.result)
        if not result.is_partial:
            self._next = response.sequence + 1
        return [*due, result]

    def rest(self) -> list[InspectionResult]:
        """The results that are due after the server's last one."""
        return self._unsent_before(self._sequence)

    def _unsent_before(self, end: int) -> list[InspectionResult]:
        due = [self._unsent.pop(number) for number in range(self._next, end) if number in self._unsent]
        self._next = max(self._next, end)
        return due


def expect(response: pb.InspectResponse, outcome: str) -> Any:
    """The `outcome` field of a response; an error when the server sent something else."""
    sent = response.WhichOneof("outcome")
    if sent != outcome:
        raise AuroraEdgeError(
            f"The server sent {sent or 'nothing'} instead of {outcome}.",
            remedy="Bring client and server to the same version of AuroraEdge.",
        )
    return getattr(response, outcome)


Method = Callable[..., Any]
