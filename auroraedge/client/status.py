"""AuroraEdgeError <-> google.rpc.Status, shared by server and client. Needs no gRPC, only protobuf.

A status has exactly one ErrorInfo (reason, domain, metadata: message, remedy, field), a BadRequest when a field of the
request must change, and a RetryInfo when the same request may be sent again.
"""

from __future__ import annotations

import re

from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

from auroraedge.errors import (
    AuroraEdgeError,
    DeadlineExceededError,
    ImageTooLargeError,
    InvalidRequestError,
    QueueFullError,
    ServerUnavailableError,
    error_classes,
)

DOMAIN = "auroraedge"
# The metadata key under which gRPC carries a serialised google.rpc.Status.
DETAILS_KEY = "grpc-status-details-bin"
# All metadata of a response share 8 KiB by default, and the message is sent twice (also as the plain gRPC message).
_MAX_CHARS = 1000

# The one table: google.rpc code number by reason.
CODE_BY_REASON: dict[str, int] = {reason: code_pb2.Code.Value(cls.grpc_code) for reason, cls in error_classes().items()}

_CLASS_BY_CODE: dict[int, type[AuroraEdgeError]] = {
    code_pb2.INVALID_ARGUMENT: InvalidRequestError,
    code_pb2.RESOURCE_EXHAUSTED: QueueFullError,
    code_pb2.DEADLINE_EXCEEDED: DeadlineExceededError,
    code_pb2.UNAVAILABLE: ServerUnavailableError,
    # A call that nobody here cancelled was cut off by a server that shuts down.
    code_pb2.CANCELLED: ServerUnavailableError,
}


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 1] + "…"


def status_from_error(error: AuroraEdgeError) -> status_pb2.Status:
    """The google.rpc.Status of `error`; texts are cut at 1000 characters, which gRPC's metadata limit demands."""
    code = CODE_BY_REASON.get(error.reason, code_pb2.INTERNAL)
    status = status_pb2.Status(code=code, message=_short(str(error)))
    metadata = {"message": _short(error.message), "remedy": _short(error.remedy)}
    if error.field:
        metadata["field"] = _short(error.field)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.field and code == code_pb2.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_short(error.field), description=_short(error.message), reason=error.reason
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def error_from_status(status: status_pb2.Status) -> AuroraEdgeError:
    """The error behind `status`: the class that its reason names, else the class nearest to its code."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    for detail in status.details:
        if detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
        elif detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    if info.domain == DOMAIN:
        metadata = info.metadata
        cls = error_classes().get(info.reason) or _CLASS_BY_CODE.get(status.code, AuroraEdgeError)
        error = cls(
            metadata.get("message", status.message),
            field=metadata.get("field", ""),
            remedy=metadata.get("remedy", ""),
        )
    else:
        error = error_from_transport(status.code, status.message)
    error.retry_after_s = retry_after_s
    return error


_REPLICA_LOST = re.compile(
    r"\bactor\b.*\b(died|dead|unavailable)\b|\bActor(Died|Unavailable)Error\b", re.IGNORECASE | re.DOTALL
)


def error_from_transport(code: int, message: str) -> AuroraEdgeError:
    """The error behind a status that gRPC itself made, without an ErrorInfo. `code`: google.rpc code number."""
    text = f"{message.rstrip('.') or code_pb2.Code.Name(code)}."
    if code == code_pb2.RESOURCE_EXHAUSTED and "larger than max" in message:
        return ImageTooLargeError(
            text,
            field="frame",
            remedy="Send a compressed or smaller frame, or raise max_message_mb of the client and the server.",
        )
    if code == code_pb2.INTERNAL and _REPLICA_LOST.search(message):
        # Ray Serve's proxy, for a replica that died with the call: request ids make sending it again harmless.
        return ServerUnavailableError(text)
    return _CLASS_BY_CODE.get(code, AuroraEdgeError)(text)
