"""Runs migrations inside the transaction that the store has open, so that a failed one leaves nothing behind."""

from __future__ import annotations

from alembic import context

from auroraedge.store.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True, render_as_batch=False)
context.run_migrations()
