"""The tables. Changes of this file go with a migration in `migrations/versions`; a test compares the two.

Documents (results, recipes) are kept as the JSON they were given as; the columns beside them are what is searched for.
Times are UTC: `timestamptz` in PostgreSQL, text "YYYY-MM-DD HH:MM:SS.ffffff" in SQLite, which sorts like the time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept in UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# SQLite numbers rows by itself only where the column is exactly INTEGER.
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _number() -> sa.Column[int]:
    return sa.Column("number", BigId, primary_key=True, autoincrement=True)


# Facts about the store itself: its id, when it was made.
meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

# Pictures by content. removed_at: retention took the file away; the row stays, so that the address is still known.
images = sa.Table(
    "images",
    metadata,
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("suffix", sa.Text, nullable=False),
    sa.Column("stored_at", UtcDateTime, nullable=False),
    sa.Column("removed_at", UtcDateTime),
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("seq", BigId, primary_key=True, autoincrement=True),
    sa.Column("result_id", sa.Text, nullable=False, unique=True),
    sa.Column("stored_at", UtcDateTime, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("principal", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("effective_verdict", sa.Text, nullable=False),
    sa.Column("review_number", BigId),
    sa.Column("ng_probability", sa.Float(53)),
    sa.Column("part_id", sa.Text, nullable=False),
    sa.Column("lot", sa.Text, nullable=False),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("station", sa.Text, nullable=False),
    sa.Column("camera", sa.Text, nullable=False),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("recipe_id", sa.Text, nullable=False),
    sa.Column("recipe_version", sa.Integer, nullable=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("engine_sha256", sa.Text, nullable=False),
    sa.Column("is_simulated", sa.Boolean, nullable=False),
    sa.Column("verdict_ms", sa.Float(53), nullable=False),
    sa.Column("total_ms", sa.Float(53), nullable=False),
    sa.Column("frame_sha256", sa.Text, nullable=False),
    sa.Column("image_sha256", sa.Text, sa.ForeignKey("images.sha256")),
    sa.Column("reference_sha256", sa.Text, sa.ForeignKey("images.sha256")),
    sa.Column("document", sa.Text, nullable=False),
    sa.Index("ix_results_created_at", "created_at"),
    sa.Index("ix_results_effective_verdict_seq", "effective_verdict", "seq"),
    sa.Index("ix_results_lot_seq", "lot", "seq"),
    sa.Index("ix_results_part_id_seq", "part_id", "seq"),
    sa.Index("ix_results_frame_sha256", "frame_sha256"),
    sa.Index("ix_results_image_sha256", "image_sha256"),
    sa.Index("ix_results_reference_sha256", "reference_sha256"),
    # One row a request: a repeated one finds the first.
    sa.Index(
        "uq_results_principal_request_id",
        "principal",
        "request_id",
        unique=True,
        sqlite_where=sa.text("request_id <> ''"),
        postgresql_where=sa.text("request_id <> ''"),
    ),
    sqlite_autoincrement=True,
)

defects = sa.Table(
    "defects",
    metadata,
    sa.Column("seq", BigId, sa.ForeignKey("results.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("severity", sa.Text, nullable=False),
    sa.Column("confidence", sa.Float(53), nullable=False),
    sa.Column("x1", sa.Float(53)),
    sa.Column("y1", sa.Float(53)),
    sa.Column("x2", sa.Float(53)),
    sa.Column("y2", sa.Float(53)),
    sa.Index("ix_defects_label", "label"),
)

# Append-only while the result is there.
reviews = sa.Table(
    "reviews",
    metadata,
    _number(),
    sa.Column("seq", BigId, sa.ForeignKey("results.seq", ondelete="CASCADE"), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("reviewer", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("defects", sa.Text),
    sa.Index("ix_reviews_seq", "seq"),
    sqlite_autoincrement=True,
)

recipes = sa.Table(
    "recipes",
    metadata,
    sa.Column("recipe_id", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

engines = sa.Table(
    "engines",
    metadata,
    _number(),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("engine_sha256", sa.Text, nullable=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

studies = sa.Table(
    "studies",
    metadata,
    _number(),
    sa.Column("study_id", sa.Text, nullable=False, unique=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("passed", sa.Boolean),
    sa.Column("document", sa.Text, nullable=False),
    sa.Index("ix_studies_kind_name_number", "kind", "name", "number"),
    sqlite_autoincrement=True,
)

# Append-only: triggers refuse UPDATE and DELETE. Each hash covers the one before it.
audit = sa.Table(
    "audit",
    metadata,
    _number(),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("old", sa.Text),
    sa.Column("new", sa.Text),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Index("ix_audit_subject_number", "subject", "number"),
    sa.Index(
        "uq_audit_origin",
        "origin",
        unique=True,
        sqlite_where=sa.text("origin <> ''"),
        postgresql_where=sa.text("origin <> ''"),
    ),
    sqlite_autoincrement=True,
)

# Columns of a result that may change after it was recorded.
MUTABLE_RESULT_COLUMNS = frozenset({"effective_verdict", "review_number"})
