"""Stored results and administration: protobuf <-> what clients see. The server's half takes the store's own objects."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from auroraedge._proto.inspection.v1 import admin_pb2 as admin
from auroraedge._proto.inspection.v1 import results_pb2 as stored_pb
from auroraedge.client import convert
from auroraedge.client.models import (
    EngineSwap,
    RecipeChange,
    ResultPage,
    ResultQuery,
    Review,
    ServerStatus,
    StoredImage,
    StoredResult,
)
from auroraedge.inspection.results import Receipt

_TEXTS = ("lot", "line", "station", "camera", "job", "part_id", "recipe_id", "engine_sha256")


# --- stored results --------------------------------------------------------------------------------------------------


def stored_to_proto(row: Any) -> stored_pb.StoredResult:
    """An auroraedge.store.StoredResult (clients know nothing of the store), with its receipt in the result."""
    receipt = Receipt(stored=True, seq=row.seq, stored_at=row.stored_at, replayed=row.replayed)
    message = stored_pb.StoredResult(
        result=convert.result_to_proto(row.result.model_copy(update={"receipt": receipt})),
        effective_verdict=convert.verdict_to_proto(row.effective_verdict),
        has_image=row.has_image,
        image_sha256=row.image_sha256 or "",
        reference_sha256=row.reference_sha256 or "",
    )
    if row.review is not None:
        review = row.review
        message.review.CopyFrom(
            stored_pb.Review(
                verdict=convert.verdict_to_proto(review.verdict),
                reviewer=review.reviewer,
                reason=review.reason,
                created_at=convert.timestamp(review.at),
                defects_corrected=review.defects is not None,
                defects=[convert.defect_to_proto(defect) for defect in review.defects or ()],
            )
        )
    return message


def stored_from_proto(message: stored_pb.StoredResult) -> StoredResult:
    review = None
    if message.HasField("review"):
        theirs = message.review
        corrected = tuple(convert.defect_from_proto(defect) for defect in theirs.defects)
        review = Review(
            verdict=convert.verdict_from_proto(theirs.verdict),
            reviewer=theirs.reviewer,
            reason=theirs.reason,
            created_at=convert.moment(theirs.created_at, "review.created_at"),
            defects=corrected if theirs.defects_corrected else None,
        )
    return StoredResult(
        result=convert.result_from_proto(message.result),
        effective_verdict=convert.verdict_from_proto(message.effective_verdict),
        review=review,
        has_image=message.has_image,
        image_sha256=message.image_sha256,
        reference_sha256=message.reference_sha256,
    )


def filter_to_proto(query: ResultQuery) -> stored_pb.ResultFilter:
    message = stored_pb.ResultFilter(
        **{name: getattr(query, name) for name in _TEXTS},
        verdicts=[convert.verdict_to_proto(verdict) for verdict in query.verdicts],
        simulated=query.simulated,
        reviewed=query.reviewed,
    )
    for name in ("since", "until"):
        if getattr(query, name) is not None:
            getattr(message, name).CopyFrom(convert.timestamp(getattr(query, name)))
    return message


def query_from_proto(message: stored_pb.ResultFilter) -> ResultQuery:
    """Raises InvalidRequestError for an unknown verdict or a timestamp that is none."""
    moments: dict[str, datetime | None] = {
        name: convert.moment(getattr(message, name), f"filter.{name}") if message.HasField(name) else None
        for name in ("since", "until")
    }
    return ResultQuery(
        **{name: getattr(message, name) for name in _TEXTS},
        **moments,  # type: ignore[arg-type]
        verdicts=tuple(convert.verdict_from_proto(verdict) for verdict in message.verdicts),
        simulated=message.simulated if message.HasField("simulated") else None,
        reviewed=message.reviewed if message.HasField("reviewed") else None,
    )


def store_conditions(query: ResultQuery) -> dict[str, Any]:
    """The arguments of auroraedge.store.ResultFilter that say the same."""
    given: dict[str, Any] = {name: getattr(query, name) or None for name in _TEXTS}
    given |= {name: getattr(query, name) for name in ("since", "until", "simulated", "reviewed")}
    return given | {"effective_verdicts": query.verdicts or None}


def page_from_proto(message: stored_pb.ListResultsResponse) -> ResultPage:
    return ResultPage(
        results=tuple(stored_from_proto(result) for result in message.results),
        next_page_token=message.next_page_token,
        total=message.total if message.HasField("total") else None,
    )


def image_from_proto(message: stored_pb.GetImageResponse) -> StoredImage:
    return StoredImage(data=message.data, content_type=message.content_type)


# --- administration --------------------------------------------------------------------------------------------------


def change_to_proto(change: RecipeChange) -> admin.RecipeChange:
    kind = admin.RecipeChangeKind.Value(f"RECIPE_CHANGE_KIND_{change.kind.upper()}")
    return admin.RecipeChange(kind=kind, **change.model_dump(exclude={"kind"}))


def change_from_proto(message: admin.RecipeChange) -> RecipeChange:
    names = [name for name in RecipeChange.model_fields if name != "kind"]
    kind = _word(admin.RecipeChangeKind, "RECIPE_CHANGE_KIND", message.kind)
    return RecipeChange(kind=kind, **{name: getattr(message, name) for name in names})  # type: ignore[arg-type]


def swap_from_proto(message: admin.SwapEngineResponse) -> EngineSwap:
    return EngineSwap(**{name: getattr(message, name) for name in EngineSwap.model_fields})


def status_to_proto(status: ServerStatus) -> admin.GetStatusResponse:
    return admin.GetStatusResponse(
        state=admin.ServerState.Value(f"SERVER_STATE_{status.state.upper()}"),
        store=admin.StoreState.Value(f"STORE_STATE_{status.store.upper()}"),
        started_at=convert.timestamp(status.started_at),
        **status.model_dump(exclude={"state", "store", "started_at"}),
    )


def status_from_proto(message: admin.GetStatusResponse) -> ServerStatus:
    special = {"state", "store", "started_at", "verdicts", "refused"}
    names = [name for name in ServerStatus.model_fields if name not in special]
    return ServerStatus(
        state=_word(admin.ServerState, "SERVER_STATE", message.state),  # type: ignore[arg-type]
        store=_word(admin.StoreState, "STORE_STATE", message.store),  # type: ignore[arg-type]
        started_at=convert.moment(message.started_at, "started_at"),
        verdicts=dict(message.verdicts),
        refused=dict(message.refused),
        **{name: getattr(message, name) for name in names},
    )


def _word(wrapper: Any, prefix: str, number: int) -> str:
    return convert.enum_name(wrapper, prefix, number).lower()
