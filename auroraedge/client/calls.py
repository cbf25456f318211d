"""The unary calls of both clients: for each the message, the method, and what the response becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from auroraedge._proto.inspection.v1 import admin_pb2 as admin
from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1 import results_pb2 as stored
from auroraedge._proto.inspection.v1.service_pb2_grpc import (
    AdminServiceStub,
    InspectionServiceStub,
    ResultsServiceStub,
)
from auroraedge.client import convert, convert_stored, transport
from auroraedge.client.models import (
    EngineSwap,
    FrameInput,
    ItemInput,
    RecipeChange,
    ResultPage,
    ResultQuery,
    ServerInfo,
    ServerStatus,
    StoredImage,
    StoredResult,
)
from auroraedge.errors import AuroraEdgeError, error_classes
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Answer, InspectionResult

T = TypeVar("T")
Outcome = InspectionResult | Answer | AuroraEdgeError


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """repeatable: the server may do it twice without harm, so it may be sent again when no answer came."""

    service: str
    method: str
    message: Any
    result: Callable[[Any], T]
    repeatable: bool = True


class Stubs:
    """The stubs of all services on one channel."""

    def __init__(self, channel: Any) -> None:
        self.inspection = InspectionServiceStub(channel)
        self.results = ResultsServiceStub(channel)
        self.admin = AdminServiceStub(channel)

    def method(self, call: Call[Any]) -> transport.Method:
        method: transport.Method = getattr(getattr(self, call.service), call.method)
        return method


def _inspection(method: str, message: Any, result: Callable[[Any], T]) -> Call[T]:
    return Call(service="inspection", method=method, message=message, result=result)


def inspect(frame: FrameInput) -> Call[InspectionResult]:
    message = transport.inspect_request(transport.with_request_id(frame))
    return _inspection("Inspect", message, lambda r: convert.result_from_proto(transport.expect(r, "result")))


def ask(frame: FrameInput, prompt: str) -> Call[Answer]:
    message = transport.inspect_request(frame, prompt=prompt)
    return _inspection("Inspect", message, lambda r: convert.answer_from_proto(transport.expect(r, "answer")))


def inspect_many(frame: FrameInput, items: Sequence[ItemInput | str]) -> Call[list[Outcome]]:
    message = transport.many_request(transport.with_request_id(frame), items)
    return _inspection("InspectMany", message, lambda r: [_outcome(outcome) for outcome in r.outcomes])


def _outcome(message: pb.InspectOutcome) -> Outcome:
    match message.WhichOneof("outcome"):
        case "result":
            return convert.result_from_proto(message.result)
        case "answer":
            return convert.answer_from_proto(message.answer)
        case _:
            error = message.error
            cls = error_classes().get(error.reason, AuroraEdgeError)
            return cls(error.message, field=error.field, remedy=error.remedy)


def recipes() -> Call[list[Recipe]]:
    return _inspection(
        "ListRecipes", pb.ListRecipesRequest(), lambda r: [convert.recipe_from_proto(recipe) for recipe in r.recipes]
    )


def server_info() -> Call[ServerInfo]:
    return _inspection("GetServerInfo", pb.GetServerInfoRequest(), convert.server_info_from_proto)


def acquire(slot_bytes: int, slots: int) -> Call[pb.AcquireSharedMemoryResponse]:
    message = pb.AcquireSharedMemoryRequest(slot_bytes=slot_bytes, slots=slots)
    return _inspection("AcquireSharedMemory", message, lambda r: r)


def release(lease_id: str) -> Call[None]:
    return _inspection("ReleaseSharedMemory", pb.ReleaseSharedMemoryRequest(lease_id=lease_id), lambda r: None)


# --- stored results --------------------------------------------------------------------------------------------------


def _results(method: str, message: Any, result: Callable[[Any], T]) -> Call[T]:
    return Call(service="results", method=method, message=message, result=result)


def stored_result(result_id: str, request_id: str) -> Call[StoredResult]:
    if request_id:
        message = stored.GetResultRequest(request_id=request_id)
    else:
        message = stored.GetResultRequest(result_id=result_id)
    return _results("GetResult", message, lambda r: convert_stored.stored_from_proto(r.result))


def results_page(
    query: ResultQuery, *, page_size: int, page_token: str, newest_first: bool, after_seq: int, count: bool
) -> Call[ResultPage]:
    message = stored.ListResultsRequest(
        filter=convert_stored.filter_to_proto(query),
        page_size=page_size,
        page_token=page_token,
        newest_first=newest_first,
        after_seq=after_seq,
        count=count,
    )
    return _results("ListResults", message, convert_stored.page_from_proto)


def image(image_sha256: str) -> Call[StoredImage]:
    return _results("GetImage", stored.GetImageRequest(image_sha256=image_sha256), convert_stored.image_from_proto)


# --- administration --------------------------------------------------------------------------------------------------


def _admin(method: str, message: Any, result: Callable[[Any], T], *, repeatable: bool = False) -> Call[T]:
    return Call(service="admin", method=method, message=message, result=result, repeatable=repeatable)


def reload_recipes(reason: str) -> Call[list[RecipeChange]]:
    return _admin(
        "ReloadRecipes",
        admin.ReloadRecipesRequest(reason=reason),
        lambda r: [convert_stored.change_from_proto(change) for change in r.changes],
        repeatable=True,
    )


def put_recipe(recipe: Recipe, replaces_version: int, reason: str) -> Call[Recipe]:
    message = convert.recipe_to_proto(recipe)
    message.version, message.sha256 = 0, ""
    request = admin.PutRecipeRequest(recipe=message, replaces_version=replaces_version, reason=reason)
    return _admin("PutRecipe", request, lambda r: convert.recipe_from_proto(r.recipe))


def swap_engine(engine: str, engine_sha256: str, reason: str) -> Call[EngineSwap]:
    request = admin.SwapEngineRequest(engine=engine, engine_sha256=engine_sha256, reason=reason)
    return _admin("SwapEngine", request, convert_stored.swap_from_proto)


def status() -> Call[ServerStatus]:
    return _admin("GetStatus", admin.GetStatusRequest(), convert_stored.status_from_proto, repeatable=True)


def drain(timeout_s: float, reason: str) -> Call[int]:
    return _admin("Drain", admin.DrainRequest(timeout_seconds=timeout_s, reason=reason), lambda r: int(r.remaining))
