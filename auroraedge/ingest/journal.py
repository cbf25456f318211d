"""What must survive a kill: the ledger of done files, the spool of frames, the outbox of results. One SQLite file.

The bytes of spooled frames lie in files beside it. A result is moved to the outbox in the same transaction that takes
its frame off the spool or marks its file done, so that after a crash a frame is either sent again, under the request
id that it had (the server answers it from its store), or its result is in the outbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from auroraedge.errors import InvalidRequestError, StoreDamagedError
from auroraedge.ingest.frames import FileOrigin, Frame
from auroraedge.inspection.results import RequestInfo

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
  source TEXT NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  request_id TEXT NOT NULL, failed INTEGER NOT NULL, PRIMARY KEY (source, path)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spool (
  id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL, file TEXT NOT NULL, bytes INTEGER NOT NULL,
  request TEXT NOT NULL, image_name TEXT NOT NULL, recipe TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS spool_source ON spool (source, id);
CREATE TABLE IF NOT EXISTS outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, created REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS outbox_sink ON outbox (sink, id);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class Message:
    """A result in the outbox. key: the same in every attempt. created: seconds since the epoch."""

    id: int
    key: str
    body: dict[str, Any]
    created: float


class Journal:
    """Thread-safe. Every call is on disk when it returns."""

    def __init__(self, folder: Path, *, spool_bytes: int) -> None:
        """Raises InvalidRequestError for a folder that cannot be used, or that another process uses."""
        self.folder, self._limit = folder, spool_bytes
        self._lock = threading.RLock()
        try:
            (folder / "spool").mkdir(parents=True, exist_ok=True)
            self._guard = (folder / "lock").open("a")
        except OSError as error:
            raise InvalidRequestError(
                f"{folder} cannot be written: {error.strerror}.", field="state", remedy="Name another folder."
            ) from error
        if fcntl is not None:
            try:
                fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._guard.close()
                raise InvalidRequestError(
                    f"Another ingest uses {folder}.", field="state", remedy="Give each a state folder of its own."
                ) from error
        self._db = sqlite3.connect(folder / "journal.db", check_same_thread=False, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise InvalidRequestError(
                    f"{folder} was written by a newer AuroraEdge.",
                    field="state",
                    remedy="Update, or name another folder.",
                )
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_VERSION}")
        except sqlite3.DatabaseError as error:
            self.close()
            raise StoreDamagedError(
                f"{folder / 'journal.db'} cannot be read: {error}.",
                field="state",
                remedy="Move the folder away and start.",
            ) from error
        except InvalidRequestError:
            self.close()
            raise
        self._taken: set[int] = set()
        self._sweep()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._guard.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _sweep(self) -> None:
        """Removes frame files without a row: their row was never written, or is done with."""
        known = {name for (name,) in self._db.execute("SELECT file FROM spool")}
        for path in (self.folder / "spool").iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)

    # --- files

    def file_state(self, source: str, origin: FileOrigin) -> str | None:
        """'done' or 'failed' for a file that was dealt with and has not changed since; None for one to inspect."""
        with self._lock:
            row = self._db.execute(
                "SELECT size, mtime_ns, failed FROM files WHERE source=? AND path=?", (source, origin.relative)
            ).fetchone()
        if row is None or (row[0], row[1]) != (origin.size, origin.mtime_ns):
            return None
        return "failed" if row[2] else "done"

    def forget_files(self, source: str, paths: Sequence[str]) -> None:
        with self._transaction() as db:
            db.executemany("DELETE FROM files WHERE source=? AND path=?", [(source, path) for path in paths])

    def known_files(self, source: str) -> list[str]:
        with self._lock:
            return [path for (path,) in self._db.execute("SELECT path FROM files WHERE source=?", (source,))]

    # --- spool

    def spool(self, frame: Frame) -> bool:
        """Puts a frame on the spool; False when the spool is full."""
        name = f"{secrets.token_hex(8)}.frame"
        path = self.folder / "spool" / name
        with self._lock:
            if self.spooled_bytes() + len(frame.data) > self._limit:
                return False
        with path.open("wb") as file:
            file.write(frame.data)
            file.flush()
            os.fsync(file.fileno())
        with self._transaction() as db:
            db.execute(
                "INSERT INTO spool (source, file, bytes, request, image_name, recipe) VALUES (?,?,?,?,?,?)",
                (frame.source, name, len(frame.data), frame.request.model_dump_json(), frame.image_name, frame.recipe),
            )
        return True

    def take(self, source: str) -> Frame | None:
        """The oldest frame on the spool that no other worker has."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, file, request, image_name, recipe FROM spool WHERE source=? ORDER BY id LIMIT ?",
                (source, len(self._taken) + 1),
            ).fetchall()
            row = next((row for row in rows if row[0] not in self._taken), None)
            if row is None:
                return None
            self._taken.add(row[0])
        try:
            data = (self.folder / "spool" / row[1]).read_bytes()
        except OSError:
            data = b""  # damaged disk: the server refuses it, and the result says ERROR for this part
        return Frame(
            source=source,
            data=data,
            request=RequestInfo.model_validate_json(row[2]),
            image_name=row[3],
            recipe=row[4],
            at=time.monotonic(),
            spool_id=row[0],
        )

    def give_back(self, frame: Frame) -> None:
        with self._lock:
            self._taken.discard(frame.spool_id or 0)

    def spooled(self, source: str) -> int:
        with self._lock:
            return self._db.execute("SELECT COUNT(*) FROM spool WHERE source=?", (source,)).fetchone()[0]

    def spooled_bytes(self) -> int:
        with self._lock:
            return self._db.execute("SELECT COALESCE(SUM(bytes), 0) FROM spool").fetchone()[0]

    # --- results

    def finish(self, frame: Frame, *, failed: bool, sinks: Sequence[str], key: str, body: dict[str, Any]) -> None:
        """The frame is done and its result is in the outbox of `sinks`, both or neither."""
        text, gone = json.dumps(body, ensure_ascii=False), None
        with self._transaction() as db:
            if frame.origin is not None:
                db.execute(
                    "INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?)",
                    (
                        frame.source,
                        frame.origin.relative,
                        frame.origin.size,
                        frame.origin.mtime_ns,
                        frame.request.request_id,
                        int(failed),
                    ),
                )
            if frame.spool_id is not None:
                gone = db.execute("SELECT file FROM spool WHERE id=?", (frame.spool_id,)).fetchone()
                db.execute("DELETE FROM spool WHERE id=?", (frame.spool_id,))
            now = time.time()
            db.executemany(
                "INSERT INTO outbox (sink, key, body, created) VALUES (?,?,?,?)",
                [(sink, key, text, now) for sink in sinks],
            )
        self.give_back(frame)
        if gone is not None:
            (self.folder / "spool" / gone[0]).unlink(missing_ok=True)

    def messages(self, sink: str, *, after: int = 0, limit: int = 100) -> list[Message]:
        """The oldest messages for `sink` behind position `after`."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, key, body, created FROM outbox WHERE sink=? AND id>? ORDER BY id LIMIT ?",
                (sink, after, limit),
            ).fetchall()
        return [Message(id=row[0], key=row[1], body=json.loads(row[2]), created=row[3]) for row in rows]

    def delivered(self, ids: Sequence[int]) -> None:
        with self._transaction() as db:
            db.executemany("DELETE FROM outbox WHERE id=?", [(each,) for each in ids])

    def waiting(self, sink: str) -> int:
        with self._lock:
            return self._db.execute("SELECT COUNT(*) FROM outbox WHERE sink=?", (sink,)).fetchone()[0]

    def bury(self, sink: str, messages: Sequence[Message], reason: str) -> None:
        """Moves messages to dead-SINK.jsonl. After a kill in between they may be in both."""
        with self._lock:
            with (self.folder / f"dead-{sink}.jsonl").open("a", encoding="utf-8") as file:
                for message in messages:
                    line = {"key": message.key, "reason": reason, "created": message.created, "body": message.body}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.delivered([message.id for message in messages])

    # --- counters

    def next_number(self, name: str) -> int:
        """0 at first, then 1, 2, ... over all runs."""
        with self._transaction() as db:
            row = db.execute("SELECT value FROM counters WHERE name=?", (name,)).fetchone()
            value = 0 if row is None else row[0] + 1
            db.execute("INSERT OR REPLACE INTO counters VALUES (?,?)", (name, value))
        return value
