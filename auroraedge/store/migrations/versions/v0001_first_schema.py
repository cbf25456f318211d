"""The first schema, with the triggers that keep history as it was written."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Tables whose rows nobody may change or take away.
APPEND_ONLY = ("audit", "recipes", "engines", "studies")
# A result is what the model said: only what a person decided about it later may change.
FROZEN = (
    "seq, result_id, stored_at, created_at, purpose, principal, request_id, fingerprint, verdict, ng_probability, "
    "part_id, lot, line, station, camera, job, recipe_id, recipe_version, model_id, engine_sha256, is_simulated, "
    "verdict_ms, total_ms, frame_sha256, image_sha256, reference_sha256, document"
)


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("old", sa.Text(), nullable=True),
        sa.Column("new", sa.Text(), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_subject_number", "audit", ["subject", "number"])
    op.create_index(
        "uq_audit_origin",
        "audit",
        ["origin"],
        unique=True,
        sqlite_where=sa.text("origin <> ''"),
        postgresql_where=sa.text("origin <> ''"),
    )
    op.create_table(
        "engines",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("engine_sha256", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_engines"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "images",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("suffix", sa.Text(), nullable=False),
        sa.Column("stored_at", TIME, nullable=False),
        sa.Column("removed_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("sha256", name="pk_images"),
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_meta"),
    )
    op.create_table(
        "recipes",
        sa.Column("recipe_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("recipe_id", "version", name="pk_recipes"),
    )
    op.create_table(
        "studies",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("study_id", sa.Text(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_studies"),
        sa.UniqueConstraint("study_id", name="uq_studies_study_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_studies_kind_name_number", "studies", ["kind", "name", "number"])
    op.create_table(
        "results",
        sa.Column("seq", NUMBER, autoincrement=True, nullable=False),
        sa.Column("result_id", sa.Text(), nullable=False),
        sa.Column("stored_at", TIME, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("effective_verdict", sa.Text(), nullable=False),
        sa.Column("review_number", NUMBER, nullable=True),
        sa.Column("ng_probability", sa.Float(precision=53), nullable=True),
        sa.Column("part_id", sa.Text(), nullable=False),
        sa.Column("lot", sa.Text(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.Column("station", sa.Text(), nullable=False),
        sa.Column("camera", sa.Text(), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("recipe_id", sa.Text(), nullable=False),
        sa.Column("recipe_version", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("engine_sha256", sa.Text(), nullable=False),
        sa.Column("is_simulated", sa.Boolean(), nullable=False),
        sa.Column("verdict_ms", sa.Float(precision=53), nullable=False),
        sa.Column("total_ms", sa.Float(precision=53), nullable=False),
        sa.Column("frame_sha256", sa.Text(), nullable=False),
        sa.Column("image_sha256", sa.Text(), nullable=True),
        sa.Column("reference_sha256", sa.Text(), nullable=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["image_sha256"], ["images.sha256"], name="fk_results_image_sha256"),
        sa.ForeignKeyConstraint(["reference_sha256"], ["images.sha256"], name="fk_results_reference_sha256"),
        sa.PrimaryKeyConstraint("seq", name="pk_results"),
        sa.UniqueConstraint("result_id", name="uq_results_result_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_results_created_at", "results", ["created_at"])
    op.create_index("ix_results_effective_verdict_seq", "results", ["effective_verdict", "seq"])
    op.create_index("ix_results_frame_sha256", "results", ["frame_sha256"])
    op.create_index("ix_results_image_sha256", "results", ["image_sha256"])
    op.create_index("ix_results_lot_seq", "results", ["lot", "seq"])
    op.create_index("ix_results_part_id_seq", "results", ["part_id", "seq"])
    op.create_index("ix_results_reference_sha256", "results", ["reference_sha256"])
    op.create_index(
        "uq_results_principal_request_id",
        "results",
        ["principal", "request_id"],
        unique=True,
        sqlite_where=sa.text("request_id <> ''"),
        postgresql_where=sa.text("request_id <> ''"),
    )
    op.create_table(
        "defects",
        sa.Column("seq", NUMBER, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("confidence", sa.Float(precision=53), nullable=False),
        sa.Column("x1", sa.Float(precision=53), nullable=True),
        sa.Column("y1", sa.Float(precision=53), nullable=True),
        sa.Column("x2", sa.Float(precision=53), nullable=True),
        sa.Column("y2", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(["seq"], ["results.seq"], name="fk_defects_seq", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq", "position", name="pk_defects"),
    )
    op.create_index("ix_defects_label", "defects", ["label"])
    op.create_table(
        "reviews",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("seq", NUMBER, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("reviewer", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("defects", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["seq"], ["results.seq"], name="fk_reviews_seq", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("number", name="pk_reviews"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_reviews_seq", "reviews", ["seq"])
    if op.get_bind().dialect.name == "sqlite":
        _sqlite_triggers()
    else:
        _postgres_triggers()


def _sqlite_triggers() -> None:
    rules = [(f"{name}_no_{event.lower()}", event, name, "") for name in APPEND_ONLY for event in ("UPDATE", "DELETE")]
    rules += [
        ("reviews_no_update", "UPDATE", "reviews", ""),
        # With its result a review may go: retention. SQLite deletes the result first.
        ("reviews_no_delete", "DELETE", "reviews", "WHEN EXISTS (SELECT 1 FROM results WHERE seq = OLD.seq)"),
        ("results_no_update", f"UPDATE OF {FROZEN}", "results", ""),
        ("defects_no_update", "UPDATE", "defects", ""),
    ]
    for name, event, table, condition in rules:
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} {condition} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def _postgres_triggers() -> None:
    op.execute(
        "CREATE FUNCTION auroraedge_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        "CREATE FUNCTION auroraedge_keep_reviews() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF EXISTS (SELECT 1 FROM results WHERE seq = OLD.seq) THEN "
        "RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation'; END IF; "
        "RETURN OLD; END $$"
    )
    rules = [
        *((table, "UPDATE OR DELETE", "ROW", "auroraedge_append_only") for table in APPEND_ONLY),
        *((table, "TRUNCATE", "STATEMENT", "auroraedge_append_only") for table in (*APPEND_ONLY, "reviews", "results")),
        ("reviews", "UPDATE", "ROW", "auroraedge_append_only"),
        ("reviews", "DELETE", "ROW", "auroraedge_keep_reviews"),
        ("results", f"UPDATE OF {FROZEN}", "ROW", "auroraedge_append_only"),
        ("defects", "UPDATE", "ROW", "auroraedge_append_only"),
    ]
    for number, (table, event, level, function) in enumerate(rules):
        op.execute(
            f"CREATE TRIGGER {table}_keep_{number} BEFORE {event} ON {table} "
            f"FOR EACH {level} EXECUTE FUNCTION {function}()"
        )
