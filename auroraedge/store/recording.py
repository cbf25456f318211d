"""Recording results: what is new, what repeats an earlier request, what conflicts with one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from auroraedge.errors import AuroraEdgeError, DuplicateResultError, InvalidRequestError, RequestIdConflictError
from auroraedge.inspection.results import InspectionResult
from auroraedge.store import schema
from auroraedge.store.images import Picture
from auroraedge.store.rows import HAS_REQUEST_ID, SelectIn, plain, select_results, stored_result
from auroraedge.store.types import NewResult, Purpose, StoredResult, purpose_of

_RESULTS = schema.results.c
_BY_RESULT = SelectIn(select_results(), _RESULTS.result_id)
BY_REQUEST = SelectIn(
    select_results().where(_RESULTS.principal == sa.bindparam("principal"), HAS_REQUEST_ID), _RESULTS.request_id
)
_INSERT = sa.insert(schema.results).returning(_RESULTS.seq, sort_by_parameter_order=True)

# What becomes of a draft: a row that is there, an error, or the place among the drafts to insert.
Plan = StoredResult | AuroraEdgeError | int


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An entry with what is computed from it, outside of any lock."""

    entry: NewResult
    image: Picture | None
    reference: Picture | None
    document: str
    # Addresses of the pictures; set without a picture where only the address is still known.
    image_sha256: str | None
    reference_sha256: str | None

    @classmethod
    def of(cls, entry: NewResult, *, image_sha256: str | None = None, reference_sha256: str | None = None) -> Draft:
        """Raises InvalidRequestError for a result that could be written but not be read again."""
        document = entry.result.model_dump_json()
        try:
            InspectionResult.model_validate_json(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidRequestError(f"The result cannot be kept as JSON: {first['msg']}.", field=where) from error
        image = Picture.of(entry.image) if entry.image is not None else None
        reference = Picture.of(entry.reference) if entry.reference is not None else None
        return cls(
            entry=entry,
            image=image,
            reference=reference,
            document=document,
            image_sha256=image.sha256 if image else image_sha256,
            reference_sha256=reference.sha256 if reference else reference_sha256,
        )

    @property
    def pictures(self) -> list[Picture]:
        return [picture for picture in (self.image, self.reference) if picture is not None]

    @property
    def purpose(self) -> Purpose:
        return purpose_of(self.entry.result.request.job, self.entry.purpose)

    @property
    def result_id(self) -> str:
        return self.entry.result.result_id

    @property
    def request_key(self) -> tuple[str, str] | None:
        """What a repeated request is known by; None without a request id."""
        request_id = plain(self.entry.result.request.request_id)
        return (plain(self.entry.principal), request_id) if request_id else None


def check_fingerprint(request_id: str, given: str, stored: str) -> None:
    """Raises RequestIdConflictError when the request id was used for another request."""
    if plain(given) != stored:
        raise RequestIdConflictError(
            f"The request id '{request_id}' was used before for another request.", field="info.request_id"
        )


def sort_out(
    connection: sa.Connection, drafts: Sequence[Draft], *, all_or_none: bool
) -> tuple[list[Plan], list[Draft]]:
    """A plan for each draft, and the drafts to insert. Raises the first conflict when all_or_none."""
    by_request, by_result = _existing(connection, drafts)
    plans: list[Plan] = []
    fresh: list[Draft] = []
    new_requests: dict[tuple[str, str], int] = {}
    new_results: dict[str, int] = {}
    for draft in drafts:
        plan: Plan | None
        try:
            plan = _earlier(draft, by_request, by_result)
            if plan is None:
                plan = _twin(draft, fresh, new_requests, new_results)
            if plan is None:
                plan = len(fresh)
                fresh.append(draft)
                new_results[draft.result_id] = plan
                if draft.request_key is not None:
                    new_requests[draft.request_key] = plan
        except AuroraEdgeError as error:
            if all_or_none:
                raise
            plan = error
        plans.append(plan)
    return plans, fresh


def _existing(
    connection: sa.Connection, drafts: Sequence[Draft]
) -> tuple[dict[tuple[str, str], StoredResult], dict[str, StoredResult]]:
    """Stored results with a request id, or a result id, of the drafts."""
    by_request: dict[tuple[str, str], StoredResult] = {}
    by_principal: dict[str, list[str]] = {}
    for draft in drafts:
        if draft.request_key is not None:
            by_principal.setdefault(draft.request_key[0], []).append(draft.request_key[1])
    for principal, ids in by_principal.items():
        for row in BY_REQUEST.rows(connection, ids, principal=principal):
            by_request[(principal, row.request_id)] = stored_result(row)
    by_result = {}
    for row in _BY_RESULT.rows(connection, [draft.result_id for draft in drafts]):
        found = stored_result(row)
        by_result[found.result.result_id] = found
    return by_request, by_result


def _earlier(
    draft: Draft, by_request: dict[tuple[str, str], StoredResult], by_result: dict[str, StoredResult]
) -> StoredResult | None:
    """The row that this draft repeats. Raises RequestIdConflictError or DuplicateResultError."""
    if draft.request_key is not None and draft.request_key in by_request:
        found = by_request[draft.request_key]
        check_fingerprint(draft.request_key[1], draft.entry.fingerprint, found.fingerprint)
        return replace(found, replayed=True)
    same = by_result.get(draft.result_id)
    if same is None:
        return None
    if same.result != draft.entry.result or same.principal != plain(draft.entry.principal):
        raise _duplicate(draft)
    return replace(same, replayed=True)


def _twin(
    draft: Draft, fresh: Sequence[Draft], requests: dict[tuple[str, str], int], results: dict[str, int]
) -> int | None:
    """The place of an entry of the same call that this draft repeats."""
    if draft.request_key is not None and draft.request_key in requests:
        place = requests[draft.request_key]
        check_fingerprint(draft.request_key[1], draft.entry.fingerprint, plain(fresh[place].entry.fingerprint))
        return place
    place_of_result = results.get(draft.result_id)
    if place_of_result is not None:
        twin = fresh[place_of_result]
        if twin.document != draft.document or twin.entry.principal != draft.entry.principal:
            raise _duplicate(draft)
    return place_of_result


def _duplicate(draft: Draft) -> DuplicateResultError:
    return DuplicateResultError(f"Another result is stored as '{draft.result_id}'.", field="result_id")


def insert_results(
    connection: sa.Connection, drafts: Sequence[Draft], moments: Sequence[datetime]
) -> list[StoredResult]:
    """Inserts results and their defects, in order. moments: when each was stored."""
    values = [_result_values(draft, moment) for draft, moment in zip(drafts, moments, strict=True)]
    seqs = [int(row.seq) for row in connection.execute(_INSERT, values)]
    found = [
        values for seq, draft in zip(seqs, drafts, strict=True) for values in defect_values(seq, draft.entry.result)
    ]
    if found:
        connection.execute(sa.insert(schema.defects), found)
    return [
        StoredResult(
            seq=seq,
            result=draft.entry.result,
            stored_at=moment,
            has_image=draft.image is not None,
            image_sha256=draft.image_sha256,
            reference_sha256=draft.reference_sha256,
            principal=draft.entry.principal,
            fingerprint=draft.entry.fingerprint,
            purpose=draft.purpose,
        )
        for seq, draft, moment in zip(seqs, drafts, moments, strict=True)
    ]


def defect_values(seq: int, result: InspectionResult) -> list[dict[str, Any]]:
    """The rows of a result's defects."""
    return [
        {
            "seq": seq,
            "position": position,
            "label": plain(defect.label),
            "severity": defect.severity.value,
            "confidence": defect.confidence,
            "x1": defect.box.x1 if defect.box else None,
            "y1": defect.box.y1 if defect.box else None,
            "x2": defect.box.x2 if defect.box else None,
            "y2": defect.box.y2 if defect.box else None,
        }
        for position, defect in enumerate(result.defects)
    ]


def _result_values(draft: Draft, moment: datetime) -> dict[str, Any]:
    result, entry = draft.entry.result, draft.entry
    request = result.request
    return {
        "result_id": plain(result.result_id),
        "stored_at": moment,
        "created_at": result.created_at,
        "purpose": draft.purpose.value,
        "principal": plain(entry.principal),
        "request_id": plain(request.request_id),
        "fingerprint": plain(entry.fingerprint),
        "verdict": result.verdict.value,
        "effective_verdict": result.verdict.value,
        "ng_probability": result.ng_probability,
        "part_id": plain(request.part_id),
        "lot": plain(request.lot),
        "line": plain(request.line),
        "station": plain(request.station),
        "camera": plain(request.camera),
        "job": plain(request.job),
        "recipe_id": plain(result.recipe_id),
        "recipe_version": result.recipe_version,
        "model_id": plain(result.model_id),
        "engine_sha256": plain(result.engine_sha256),
        "is_simulated": result.is_simulated,
        "verdict_ms": result.timings.verdict_ms,
        "total_ms": result.timings.total_ms,
        "frame_sha256": plain(result.image_sha256),
        "image_sha256": draft.image_sha256,
        "reference_sha256": draft.reference_sha256,
        "document": draft.document,
    }
