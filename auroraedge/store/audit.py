"""The audit trail, which only grows. Triggers refuse changes; a chain of hashes shows those made around them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from auroraedge.errors import InvalidRequestError
from auroraedge.store.database import Database
from auroraedge.store.rows import dump_json, plain
from auroraedge.store.schema import audit
from auroraedge.store.types import AuditEntry

_PAGE = 500


def entry_hash(previous: str, row: dict[str, Any]) -> str:
    """SHA-256 over the hash before it and the entry's own values."""
    at: datetime = row["at"]
    content = [
        previous,
        at.astimezone(UTC).isoformat(timespec="microseconds"),
        *(row[name] for name in ("who", "action", "subject", "old", "new", "why", "origin")),
    ]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def append_audit(
    connection: sa.Connection,
    *,
    at: datetime,
    who: str,
    action: str,
    subject: str,
    old: Any,
    new: Any,
    why: str,
    origin: str = "",
) -> AuditEntry:
    """Appends an entry in the caller's write transaction: what it tells and the entry are committed together."""
    if not who.strip():
        raise InvalidRequestError("A change needs the name of who makes it.", field="who")
    previous = connection.scalar(sa.select(audit.c.sha256).order_by(audit.c.number.desc()).limit(1)) or ""
    row: dict[str, Any] = {
        "at": at,
        "who": plain(who),
        "action": plain(action),
        "subject": plain(subject),
        "old": None if old is None else dump_json(old),
        "new": None if new is None else dump_json(new),
        "why": plain(why),
        "origin": origin,
    }
    row["sha256"] = entry_hash(previous, row)
    number = connection.scalar(sa.insert(audit).values(row).returning(audit.c.number))
    assert number is not None
    return AuditEntry(
        number=number,
        at=at,
        who=row["who"],
        action=row["action"],
        subject=row["subject"],
        old=old,
        new=new,
        why=row["why"],
        sha256=row["sha256"],
        origin=origin,
    )


def entry_of(row: sa.Row[Any]) -> AuditEntry:
    return AuditEntry(
        number=row.number,
        at=row.at,
        who=row.who,
        action=row.action,
        subject=row.subject,
        old=None if row.old is None else json.loads(row.old),
        new=None if row.new is None else json.loads(row.new),
        why=row.why,
        sha256=row.sha256,
        origin=row.origin,
    )


def read_audit(
    database: Database, *, subject: str | None = None, limit: int | None = None, newest_first: bool = True
) -> Iterator[AuditEntry]:
    """Entries in pages."""
    number = audit.c.number
    query = sa.select(audit).order_by(number.desc() if newest_first else number)
    if subject is not None:
        query = query.where(audit.c.subject == subject)
    place: int | None = None
    left = limit
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        page = query.limit(size)
        if place is not None:
            page = page.where(number < place if newest_first else number > place)
        with database.read() as connection:
            found = connection.execute(page).all()
        for row in found:
            yield entry_of(row)
        if len(found) < size:
            return
        place = found[-1].number
        left = None if left is None else left - len(found)


def broken_links(database: Database) -> list[int]:
    """Numbers of the entries whose hash does not follow from the entry and the one before it."""
    found: list[int] = []
    previous = ""
    place = 0
    while True:
        query = sa.select(audit).where(audit.c.number > place).order_by(audit.c.number).limit(_PAGE)
        with database.read() as connection:
            page = connection.execute(query).all()
        for row in page:
            if entry_hash(previous, dict(row._mapping)) != row.sha256:
                found.append(row.number)
            previous = row.sha256
        if len(page) < _PAGE:
            return found
        place = page[-1].number
