"""Between rows and typed values, and the queries that several modules share."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from auroraedge.errors import StoreDamagedError
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Defect, InspectionResult, Verdict
from auroraedge.store.schema import images, results, reviews
from auroraedge.store.types import EngineRecord, Purpose, ResultFilter, Review, StoredResult, StudyRecord

# Values in one IN (...): SQLite takes at most 32,766 parameters, older builds 999.
_CHUNK = 500
_DEFECTS: TypeAdapter[tuple[Defect, ...]] = TypeAdapter(tuple[Defect, ...])
_TEXT_FILTERS = ("lot", "line", "station", "camera", "job", "part_id", "recipe_id")

_review = reviews.alias("review")
_REVIEW_COLUMNS = [
    _review.c[name].label(f"review_{name}") for name in ("at", "reviewer", "verdict", "reason", "defects")
]


def plain(text: str) -> str:
    """`text` without the null character, which PostgreSQL cannot keep."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def dump_json(value: Any) -> str:
    """JSON with sorted keys: the same value is the same text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def dump_defects(defects: Sequence[Defect]) -> str:
    return _DEFECTS.dump_json(tuple(defects)).decode()


def chunks(values: Collection[Any], size: int = _CHUNK) -> Iterator[list[Any]]:
    """`values` in lists of at most `size`."""
    ordered = list(values)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


class SelectIn:
    """`query` for the rows whose `column` is one of many values, composed once for all its uses.

    Composing a statement of SQLAlchemy takes longer than SQLite takes to run it.
    """

    def __init__(self, query: sa.Select[Any], column: sa.ColumnElement[Any]) -> None:
        self._query = query.where(column.in_(sa.bindparam("wanted", expanding=True)))

    def rows(self, connection: sa.Connection, values: Collection[Any], **parameters: Any) -> Iterator[sa.Row[Any]]:
        """The rows for `values`; `parameters` are those of the query itself."""
        for chunk in chunks(values):
            yield from connection.execute(self._query, {"wanted": chunk, **parameters})


def select_in(
    connection: sa.Connection, query: sa.Select[Any], column: sa.ColumnElement[Any], values: Collection[Any]
) -> Iterator[sa.Row[Any]]:
    """The rows of `query` whose `column` is one of many values."""
    return SelectIn(query, column).rows(connection, values)


# Word for word the condition of the index on request ids: with a parameter neither database would use it.
HAS_REQUEST_ID = sa.text("results.request_id <> ''")


def select_results(page: sa.Select[Any] | None = None) -> sa.Select[Any]:
    """Results with what `stored_result` needs: the newest review, and whether the picture is kept.

    page: a selection from the table with order and limit, which is made before anything is joined to it.
    The caller orders the outcome again: by `page.seq`.
    """
    source = results if page is None else page.subquery("page")
    kept = sa.and_(source.c.image_sha256 == images.c.sha256, images.c.removed_at.is_(None))
    return sa.select(
        source.c.seq,
        source.c.stored_at,
        source.c.image_sha256,
        source.c.reference_sha256,
        source.c.principal,
        source.c.request_id,
        source.c.fingerprint,
        source.c.purpose,
        source.c.document,
        source.c.review_number,
        images.c.sha256.is_not(None).label("has_image"),
        *_REVIEW_COLUMNS,
    ).select_from(source.outerjoin(images, kept).outerjoin(_review, source.c.review_number == _review.c.number))


def conditions(where: ResultFilter) -> list[sa.ColumnElement[bool]]:
    """The filter as conditions on the table of results."""
    c = results.c
    found: list[sa.ColumnElement[bool]] = []
    if where.since is not None:
        found.append(c.created_at >= where.since)
    if where.until is not None:
        found.append(c.created_at < where.until)
    for name in _TEXT_FILTERS:
        value = getattr(where, name)
        if isinstance(value, str):
            found.append(c[name] == plain(value))
        elif value is not None:
            found.append(c[name].in_([plain(v) for v in value]))
    if where.verdicts is not None:
        found.append(c.verdict.in_([Verdict(v).value for v in where.verdicts]))
    if where.effective_verdicts is not None:
        found.append(c.effective_verdict.in_([Verdict(v).value for v in where.effective_verdicts]))
    if where.engine_sha256 is not None:
        found.append(c.engine_sha256 == where.engine_sha256)
    if where.simulated is not None:
        found.append(c.is_simulated.is_(where.simulated))
    if where.reviewed is not None:
        found.append(c.review_number.is_not(None) if where.reviewed else c.review_number.is_(None))
    if where.purposes is not None:
        found.append(c.purpose.in_([Purpose(p).value for p in where.purposes]))
    return found


def load_result(document: str, seq: int) -> InspectionResult:
    try:
        return InspectionResult.model_validate_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreDamagedError(f"Result number {seq} cannot be read: {where}: {first['msg']}.") from error


def load_recipe(document: str) -> Recipe:
    try:
        return Recipe.model_validate_json(document)
    except ValidationError as error:
        raise StoreDamagedError(f"A stored recipe cannot be read: {error.errors()[0]['msg']}.") from error


def load_defects(document: str | None) -> tuple[Defect, ...] | None:
    try:
        return None if document is None else _DEFECTS.validate_json(document)
    except ValidationError as error:
        raise StoreDamagedError(f"A stored review cannot be read: {error.errors()[0]['msg']}.") from error


def stored_result(row: sa.Row[Any]) -> StoredResult:
    """The result of a row of `select_results`."""
    result = load_result(row.document, row.seq)
    review = None
    if row.review_number is not None:
        review = Review(
            number=row.review_number,
            result_id=result.result_id,
            at=row.review_at,
            reviewer=row.review_reviewer,
            verdict=Verdict(row.review_verdict),
            reason=row.review_reason,
            defects=load_defects(row.review_defects),
        )
    return StoredResult(
        seq=row.seq,
        result=result,
        stored_at=row.stored_at,
        has_image=bool(row.has_image),
        image_sha256=row.image_sha256,
        reference_sha256=row.reference_sha256,
        review=review,
        principal=row.principal,
        fingerprint=row.fingerprint,
        purpose=Purpose(row.purpose),
    )


def review_of(row: sa.Row[Any], result_id: str) -> Review:
    return Review(
        number=row.number,
        result_id=result_id,
        at=row.at,
        reviewer=row.reviewer,
        verdict=Verdict(row.verdict),
        reason=row.reason,
        defects=load_defects(row.defects),
    )


def engine_of(row: sa.Row[Any]) -> EngineRecord:
    return EngineRecord(
        number=row.number,
        at=row.at,
        engine_sha256=row.engine_sha256,
        model_id=row.model_id,
        target=row.target,
        who=row.who,
        why=row.why,
        details=json.loads(row.details),
    )


def study_of(row: sa.Row[Any]) -> StudyRecord:
    return StudyRecord(
        number=row.number,
        study_id=row.study_id,
        at=row.at,
        kind=row.kind,
        name=row.name,
        who=row.who,
        passed=row.passed,
        document=json.loads(row.document),
    )
