"""AuroraEdgeError <-> google.rpc.Status, and the client's retries."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2

from auroraedge.client.retry import RetryPolicy
from auroraedge.client.status import CODE_BY_REASON, error_from_status, error_from_transport, status_from_error
from auroraedge.errors import (
    AuroraEdgeError,
    DeadlineExceededError,
    ImageTooLargeError,
    InvalidImageError,
    InvalidRequestError,
    QueueFullError,
    RecipeNotFoundError,
    ServerUnavailableError,
    error_classes,
)


def details(error: AuroraEdgeError, kind: type) -> list:
    found = []
    for detail in status_from_error(error).details:
        if detail.Is(kind.DESCRIPTOR):
            message = kind()
            detail.Unpack(message)
            found.append(message)
    return found


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_every_error_comes_back_as_itself(cls: type[AuroraEdgeError]) -> None:
    error = cls("Schräg: 破.", field="frame.raw", remedy="Do this.")
    error.retry_after_s = 1.25
    back = error_from_status(status_from_error(error))
    assert type(back) is cls
    assert (back.message, back.field, back.remedy, back.retry_after_s) == (error.message, "frame.raw", "Do this.", 1.25)
    assert str(back) == str(error)


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_exactly_one_error_info_and_a_known_code(cls: type[AuroraEdgeError]) -> None:
    (info,) = details(cls("m"), error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (cls.reason, "auroraedge")
    assert info.reason == info.reason.upper()
    assert info.metadata["message"] == "m"
    assert code_pb2.Code.Name(status_from_error(cls("m")).code) == cls.grpc_code
    assert hasattr(grpc.StatusCode, cls.grpc_code)


def test_the_table_covers_the_tree() -> None:
    assert set(CODE_BY_REASON) == set(error_classes())
    assert CODE_BY_REASON["QUEUE_FULL"] == code_pb2.RESOURCE_EXHAUSTED
    assert CODE_BY_REASON["INVALID_IMAGE"] == code_pb2.INVALID_ARGUMENT
    assert CODE_BY_REASON["RECIPE_NOT_FOUND"] == code_pb2.NOT_FOUND
    assert CODE_BY_REASON["ENGINE_INCOMPATIBLE"] == code_pb2.FAILED_PRECONDITION


def test_bad_request_names_the_field_only_for_invalid_arguments() -> None:
    (bad,) = details(InvalidImageError("No.", field="frame"), error_details_pb2.BadRequest)
    assert [(v.field, v.reason) for v in bad.field_violations] == [("frame", "INVALID_IMAGE")]
    assert details(InvalidImageError("No."), error_details_pb2.BadRequest) == []
    assert details(RecipeNotFoundError("No.", field="recipe_id"), error_details_pb2.BadRequest) == []


def test_retry_info_only_where_a_retry_helps() -> None:
    assert details(InvalidImageError("No."), error_details_pb2.RetryInfo) == []
    full = QueueFullError("Full.")
    full.retry_after_s = 0.5
    (retry,) = details(full, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 500


def test_long_texts_stay_below_the_metadata_limit() -> None:
    error = InvalidImageError("m" * 100_000, field="f" * 100_000, remedy="r" * 100_000)
    status = status_from_error(error)
    assert len(status.SerializeToString()) + len(status.message) < 8 * 1024
    assert type(error_from_status(status)) is InvalidImageError


def test_reason_of_a_newer_server_falls_back_to_the_code() -> None:
    status = status_from_error(InvalidRequestError("Too new.", field="frame"))
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    info.reason = "BORN_TOMORROW"
    status.details[0].Pack(info)
    back = error_from_status(status)
    assert type(back) is InvalidRequestError
    assert (back.message, back.field) == ("Too new.", "frame")


@pytest.mark.parametrize(
    ("code", "message", "cls"),
    [
        (code_pb2.UNAVAILABLE, "failed to connect to all addresses", ServerUnavailableError),
        (code_pb2.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceededError),
        (code_pb2.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 5)", ImageTooLargeError),
        (code_pb2.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", QueueFullError),
        (code_pb2.UNIMPLEMENTED, "", AuroraEdgeError),
    ],
)
def test_errors_of_grpc_itself(code: int, message: str, cls: type[AuroraEdgeError]) -> None:
    error = error_from_transport(code, message)
    assert type(error) is cls
    assert error.message


def test_only_refused_work_is_retried_and_only_so_often() -> None:
    policy = RetryPolicy(attempts=3, first_delay_s=0.1, factor=2, jitter=0)
    budget = policy.start(None)
    assert budget.delay_after(InvalidRequestError("x")) is None
    assert policy.start(None).delay_after(ImageTooLargeError("x")) is None
    assert policy.start(None).delay_after(DeadlineExceededError("x")) is None
    budget = policy.start(None)
    assert [budget.delay_after(ServerUnavailableError("x")) for _ in range(3)] == [0.1, 0.2, None]


def test_retry_info_is_a_lower_bound_and_the_timeout_an_upper_one() -> None:
    policy = RetryPolicy(attempts=3, first_delay_s=0.1, jitter=0.5)
    full = QueueFullError("x")
    full.retry_after_s = 2.0
    delay = policy.start(100).delay_after(full)
    assert delay is not None and 2.0 <= delay <= 3.0
    assert policy.start(1.5).delay_after(full) is None


@pytest.mark.parametrize(
    ("message", "repeats"),
    [
        ("The actor died unexpectedly before finishing this task.", True),
        ("The actor 8f1e is unavailable: the network. The task may or may not have been executed.", True),
        ("ray.exceptions.ActorDiedError: ...", True),
        ("division by zero", False),
    ],
)
def test_a_replica_that_died_is_unavailable(message: str, repeats: bool) -> None:
    error = error_from_transport(code_pb2.INTERNAL, message)
    assert isinstance(error, ServerUnavailableError) == repeats
