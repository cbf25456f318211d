"""What both clients share: channel options, requests from Python values, and errors from failed calls."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from google.rpc import status_pb2

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import convert
from auroraedge.client.models import (
    FrameInput,
    ImageInput,
    ItemInput,
    Priority,
    StreamPolicy,
    StreamStatus,
)
from auroraedge.client.retry import RetryPolicy
from auroraedge.client.status import DETAILS_KEY, error_from_status, error_from_transport
from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from auroraedge.inspection.results import InspectionResult, Region, RequestInfo, error_result

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_MESSAGE_MB = 64


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """How a client talks to its server. timeout_s: of one call with its retries; None waits for ever.

    token: sent with every call. root_certificates: PEM file of the authorities that the server's certificate is checked
    against; given, or with `encrypted` (then the system's), the connection is encrypted. certificate, key: PEM files of
    this client, where the server asks for one.
    """

    address: str = DEFAULT_ADDRESS
    timeout_s: float | None = 30.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_message_mb: int = DEFAULT_MESSAGE_MB
    token: str = ""
    encrypted: bool = False
    root_certificates: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None for a connection without encryption. Raises InvalidRequestError for a file that cannot be read."""
        if not self.encrypted and self.root_certificates is None:
            return None
        parts = (self.root_certificates, self.key, self.certificate)
        return grpc.ssl_channel_credentials(*(None if path is None else _read(path) for path in parts))

    def channel_options(self) -> list[tuple[str, int | str]]:
        size = self.max_message_mb * 1024 * 1024
        return [
            # Several addresses (ipv4:A:50051,B:50051, or a DNS name with several) are used in turn, and not the first.
            ("grpc.lb_policy_name", "round_robin"),
            ("grpc.max_send_message_length", size),
            ("grpc.max_receive_message_length", size),
            # gRPC waits 1 s before it first connects again; a server that restarts on a line is back sooner.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]


def _read(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}.", field="certificate") from error


def error_from_rpc(error: Any) -> AuroraEdgeError:
    """The error behind a grpc.RpcError of either client."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            return error_from_status(status_pb2.Status.FromString(value))
    return error_from_transport(error.code().value[0], error.details() or "")


def _fill(message: Any, frame: FrameInput) -> None:
    """The fields that InspectRequest, InspectManyRequest and GenerateRequest have in common."""
    message.priority = priority_number(frame.priority)
    if frame.request:
        message.info.CopyFrom(convert.request_info_to_proto(frame.request))
    convert.fill_frame(message.frame, frame.image, pixel_format=frame.pixel_format)
    if frame.reference is not None:
        convert.fill_frame(message.reference, frame.reference, pixel_format=frame.pixel_format, field="reference")


def priority_number(priority: Priority | None) -> Any:
    return pb.PRIORITY_UNSPECIFIED if priority is None else pb.Priority.Value(f"PRIORITY_{priority.upper()}")


def with_request_id(frame: FrameInput) -> FrameInput:
    """The frame with a request id, so that a repeated call is known to the server as the one it has answered."""
    request = frame.request or RequestInfo()
    if request.request_id:
        return frame
    return replace(frame, request=request.model_copy(update={"request_id": uuid.uuid4().hex}))


def default_name(frame: FrameInput) -> str:
    return frame.image_name or (Path(frame.image).name if isinstance(frame.image, str | Path) else "")


def fill_inspect_request(message: pb.InspectRequest, frame: FrameInput, *, prompt: str = "") -> None:
    message.recipe_id, message.recipe_version = frame.recipe_id, frame.recipe_version
    message.image_name, message.prompt = default_name(frame), prompt
    message.regions.extend(_regions(frame.regions))
    _fill(message, frame)


def inspect_request(frame: FrameInput, *, prompt: str = "") -> pb.InspectRequest:
    message = pb.InspectRequest()
    fill_inspect_request(message, frame, prompt=prompt)
    return message


def progressive_request(frame: FrameInput) -> pb.InspectProgressiveRequest:
    message = pb.InspectProgressiveRequest()
    fill_inspect_request(message.request, with_request_id(frame))
    return message


def generate_request(frame: FrameInput, prompt: str, max_new_tokens: int) -> pb.GenerateRequest:
    message = pb.GenerateRequest(
        recipe_id=frame.recipe_id,
        recipe_version=frame.recipe_version,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
    )
    _fill(message, frame)
    return message


def many_request(frame: FrameInput, items: Iterable[ItemInput | str]) -> pb.InspectManyRequest:
    """A text among the items is the id of a recipe to inspect with."""
    wanted = [ItemInput(recipe_id=item) if isinstance(item, str) else item for item in items]
    message = pb.InspectManyRequest(
        image_name=default_name(frame),
        regions=_regions(frame.regions),
        items=[
            pb.InspectItem(
                recipe_id=item.recipe_id,
                recipe_version=item.recipe_version,
                prompt=item.prompt,
                regions=_regions(item.regions),
                request_id=item.request_id,
            )
            for item in wanted
        ],
    )
    _fill(message, frame)
    return message


def _regions(regions: Sequence[Region]) -> list[pb.Region]:
    return [convert.region_to_proto(region) for region in regions]


def as_frame_input(frame: FrameInput | ImageInput) -> FrameInput:
    return frame if isinstance(frame, FrameInput) else FrameInput(image=frame)


def session_message(
    recipe_id: str,
    *,
    recipe_version: int,
    reference: ImageInput | None,
    request: RequestInfo | None,
    early_verdict: bool,
    policy: StreamPolicy,
    priority: Priority | None,
    regions: Sequence[Region],
) -> pb.InspectStreamRequest:
    session = pb.StreamSession(
        info=convert.request_info_to_proto(request) if request else None,
        recipe_id=recipe_id,
        recipe_version=recipe_version,
        early_verdict=early_verdict,
        policy=pb.StreamPolicy.Value(f"STREAM_POLICY_{policy.upper()}"),
        priority=priority_number(priority),
        regions=_regions(regions),
    )
    message = pb.InspectStreamRequest(session=session)
    if reference is not None:
        convert.fill_frame(message.session.reference, reference, field="reference")
    return message


class StreamLedger:
    """Numbers the frames of one stream and slips in the results of frames that could not even be sent.

    A frame that cannot be read on the client's side must not end the stream either: it gets its ERROR result here, in
    its place among the server's results.
    """

    def __init__(self, on_status: Callable[[StreamStatus], None] | None = None) -> None:
        self._on_status = on_status
        self._unsent: dict[int, InspectionResult] = {}
        self._next = 0
        self._sequence = 0

    def message(self, frame: FrameInput) -> pb.InspectStreamRequest | None:
        """The message of the next frame; None when it cannot be sent."""
        sequence, self._sequence = self._sequence, self._sequence + 1
        message = pb.InspectStreamRequest(frame=pb.StreamFrame(sequence=sequence))
        try:
            fill_inspect_request(message.frame.request, frame)
        except AuroraEdgeError as error:
            self._unsent[sequence] = error_result(error, request=frame.request, image_name=default_name(frame))
            return None
        return message

    def results(self, response: pb.InspectStreamResponse) -> list[InspectionResult]:
        """The results that are due with this response, in the order of their frames."""
        if self._on_status is not None and response.HasField("status"):
            self._on_status(stream_status(response))
        if not response.HasField("result"):
            return []
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


def stream_status(response: pb.InspectStreamResponse) -> StreamStatus:
    status = response.status
    return StreamStatus(
        credits=status.credits,
        received=status.received,
        answered=status.answered,
        dropped=status.dropped,
        dropped_sequences=tuple(response.dropped_sequences),
    )


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
