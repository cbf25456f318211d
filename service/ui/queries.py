"""Queries of the page that the store's own interface has no call for: read only, one short transaction each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa

from auroraedge.inspection.results import Verdict
from auroraedge.store import AuditEntry, Purpose, ResultFilter, Store, StoredResult, schema
from auroraedge.store.audit import entry_of
from auroraedge.store.rows import conditions, select_results, stored_result

_RESULTS = schema.results.c
SOURCE_FIELDS = ("line", "station", "camera")
# Results, counted from the newest, that lists of cameras and of values are made from: a page on a store of many
# millions opens as fast as on a new one.
_RECENT = 100_000


def _recent() -> sa.ColumnElement[bool]:
    newest = sa.select(sa.func.max(_RESULTS.seq)).scalar_subquery()
    return _RESULTS.seq > newest - _RECENT


def newest_per_camera(store: Store, since: datetime) -> list[StoredResult]:
    """The last production result of every camera that sent one since then, by line, station and camera."""
    where = [_recent(), _RESULTS.created_at >= since, _RESULTS.purpose == Purpose.PRODUCTION.value]
    group = [_RESULTS[name] for name in SOURCE_FIELDS]
    newest = sa.select(sa.func.max(_RESULTS.seq)).where(*where).group_by(*group)
    with store.database.read() as connection:
        numbers = list(connection.scalars(newest))
        rows = connection.execute(select_results().where(_RESULTS.seq.in_(numbers))).all() if numbers else []
    found = [stored_result(row) for row in rows]
    return sorted(found, key=lambda s: tuple(getattr(s.result.request, name) for name in SOURCE_FIELDS))


def known_values(store: Store, column: str, limit: int = 200) -> list[str]:
    """Values of a column among recent results, those used last first; "" left out."""
    value = _RESULTS[column]
    query = sa.select(value).where(_recent(), value != "").group_by(value)
    query = query.order_by(sa.func.max(_RESULTS.seq).desc()).limit(limit)
    with store.database.read() as connection:
        return [str(found) for found in connection.scalars(query)]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Stored probabilities of one recipe, newest first, as arrays [n]. A REVIEW that probability does not explain
    (the frame showed nothing) is `forced`: no threshold turns it into OK.

    p: P(NG). truth: 1 NG, 0 OK by a person's review, -1 where nobody decided.
    """

    p: np.ndarray
    truth: np.ndarray
    forced: np.ndarray
    errors: int
    truncated: bool
    engine_sha256: str


def newest_engine(store: Store, recipe_id: str) -> str:
    """The engine that gave the newest result of a recipe; "" when there is none."""
    query = (
        sa.select(_RESULTS.engine_sha256)
        .where(_RESULTS.recipe_id == recipe_id, _RESULTS.engine_sha256 != "")
        .order_by(_RESULTS.seq.desc())
        .limit(1)
    )
    with store.database.read() as connection:
        return str(connection.scalar(query) or "")


def scores(store: Store, where: ResultFilter, ok_below: dict[int, float], limit: int) -> Scores:
    """ok_below: by recipe version, to tell a REVIEW that the probability explains from one that it does not."""
    query = (
        sa.select(
            _RESULTS.ng_probability,
            _RESULTS.verdict,
            _RESULTS.effective_verdict,
            _RESULTS.review_number,
            _RESULTS.recipe_version,
        )
        .where(*conditions(where))
        .order_by(_RESULTS.seq.desc())
        .limit(limit + 1)
    )
    with store.database.read() as connection:
        rows = connection.execute(query).all()
    truncated = len(rows) > limit
    rows = rows[:limit]
    usable = [row for row in rows if row.ng_probability is not None and row.verdict != Verdict.ERROR.value]
    truths = {Verdict.NG.value: 1, Verdict.OK.value: 0}
    return Scores(
        p=np.array([row.ng_probability for row in usable], dtype=np.float64),
        truth=np.array(
            [-1 if row.review_number is None else truths.get(row.effective_verdict, -1) for row in usable],
            dtype=np.int8,
        ),
        forced=np.array(
            [
                row.verdict == Verdict.REVIEW.value and row.ng_probability < ok_below.get(row.recipe_version, 0.0)
                for row in usable
            ],
            dtype=bool,
        ),
        errors=len(rows) - len(usable),
        truncated=truncated,
        engine_sha256=where.engine_sha256 or "",
    )


def confidences(store: Store, where: ResultFilter, limit: int = 100_000) -> dict[str, np.ndarray]:
    """Confidences of the stored (the model's) defects by label, each float64 [n]."""
    defects = schema.defects.c
    query = (
        sa.select(defects.label, defects.confidence)
        .select_from(schema.defects.join(schema.results, defects.seq == _RESULTS.seq))
        .where(*conditions(where))
        .order_by(defects.seq.desc())
        .limit(limit)
    )
    found: dict[str, list[float]] = {}
    with store.database.read() as connection:
        for row in connection.execute(query):
            found.setdefault(row.label, []).append(row.confidence)
    return {label: np.array(values) for label, values in found.items()}


def latencies(store: Store, limit: int = 1000) -> dict[str, np.ndarray]:
    """Milliseconds to the verdict and in total of the newest results that got one, float64 [n]."""
    query = (
        sa.select(_RESULTS.verdict_ms, _RESULTS.total_ms)
        .where(_RESULTS.verdict != Verdict.ERROR.value, _RESULTS.total_ms > 0)
        .order_by(_RESULTS.seq.desc())
        .limit(limit)
    )
    with store.database.read() as connection:
        rows = connection.execute(query).all()
    return {name: np.array([getattr(row, name) for row in rows]) for name in ("verdict_ms", "total_ms")}


def neighbours(store: Store, seq: int) -> tuple[str, str]:
    """Result ids of the production results before and after a place; "" at the ends."""
    found = []
    for condition, order in ((_RESULTS.seq < seq, _RESULTS.seq.desc()), (_RESULTS.seq > seq, _RESULTS.seq)):
        query = sa.select(_RESULTS.result_id).where(condition, _RESULTS.purpose == Purpose.PRODUCTION.value)
        with store.database.read() as connection:
            found.append(str(connection.scalar(query.order_by(order).limit(1)) or ""))
    return found[0], found[1]


def audit_page(
    store: Store, *, before: int | None, limit: int, who: str = "", action: str = "", subject: str = ""
) -> list[AuditEntry]:
    """Audit entries, the newest first. `action` and `subject` match their beginnings, `who` any part."""
    audit = schema.audit.c
    query = sa.select(schema.audit).order_by(audit.number.desc()).limit(limit)
    if before is not None:
        query = query.where(audit.number < before)
    if who:
        query = query.where(audit.who.contains(who, autoescape=True))
    if action:
        query = query.where(audit.action.startswith(action, autoescape=True))
    if subject:
        query = query.where(audit.subject.startswith(subject, autoescape=True))
    with store.database.read() as connection:
        rows: list[Any] = list(connection.execute(query).all())
    return [entry_of(row) for row in rows]
