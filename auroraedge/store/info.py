"""What a store holds, in figures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from auroraedge.inspection.results import Verdict
from auroraedge.store import schema

if TYPE_CHECKING:
    from auroraedge.store.store import Store


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """Figures of a store. verdicts: the model's, of production; other_results: of challenges and studies.

    database_bytes: of the file with its log, or what PostgreSQL says. images_folder: None where none is kept.
    """

    address: str
    images_folder: str | None
    store_id: str
    schema_version: str
    created_at: datetime
    verdicts: dict[str, int]
    other_results: int
    waiting_for_review: int
    reviewed: int
    first_result_at: datetime | None
    last_result_at: datetime | None
    images: int
    image_bytes: int
    database_bytes: int
    recipes: int
    engine_changes: int
    studies: int
    audit_entries: int


def store_info(store: Store) -> StoreInfo:
    """Counts everything; a second or so for a million results."""
    results, images, meta = schema.results.c, schema.images.c, schema.meta.c
    production = results.purpose == "production"
    waiting = sa.and_(results.effective_verdict == Verdict.REVIEW.value, results.review_number.is_(None), production)
    with store.database.read() as connection:

        def count(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(table).where(*conditions)) or 0)

        by_verdict = sa.select(results.verdict, sa.func.count()).where(production).group_by(results.verdict)
        verdicts: dict[str, int] = {row[0]: int(row[1]) for row in connection.execute(by_verdict)}
        span = connection.execute(
            sa.select(
                sa.func.min(results.created_at, type_=schema.UtcDateTime()),
                sa.func.max(results.created_at, type_=schema.UtcDateTime()),
            )
        ).one()
        size = sa.select(sa.func.coalesce(sa.func.sum(images.size_bytes), 0)).where(images.removed_at.is_(None))
        created = connection.scalar(sa.select(meta.value).where(meta.key == "created_at"))
        version = store.database.version_of(connection)
        return StoreInfo(
            address=store.database.shown,
            images_folder=str(store.images.root) if store.images else None,
            store_id=store.store_id,
            schema_version=version or "",
            created_at=datetime.fromisoformat(str(created)),
            verdicts={verdict.value: verdicts.get(verdict.value, 0) for verdict in Verdict},
            other_results=count(schema.results, ~production),
            waiting_for_review=count(schema.results, waiting),
            reviewed=count(schema.results, results.review_number.is_not(None), production),
            first_result_at=span[0],
            last_result_at=span[1],
            images=count(schema.images, images.removed_at.is_(None)),
            image_bytes=int(connection.scalar(size) or 0),
            database_bytes=_database_bytes(store, connection),
            recipes=int(connection.scalar(sa.select(sa.func.count(sa.distinct(schema.recipes.c.recipe_id)))) or 0),
            engine_changes=count(schema.engines),
            studies=count(schema.studies),
            audit_entries=count(schema.audit),
        )


def _database_bytes(store: Store, connection: sa.Connection) -> int:
    path = store.database.path
    if path is None:
        return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar() or 0)
    parts = (path, Path(f"{path}-wal"))
    return sum(part.stat().st_size for part in parts if part.exists())
