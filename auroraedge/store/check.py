"""Examines a store, and mends what can be mended without guessing.

Mended: a picture's file without a row (deleted), a row whose file is gone or damaged (marked as removed), defects and
the verdict after review that do not agree with the documents they come from (derived again). Never mended, only told:
a damaged document, a broken audit trail, missing triggers, a damaged database file.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from auroraedge.errors import StoreDamagedError
from auroraedge.store.audit import broken_links
from auroraedge.store.recording import defect_values
from auroraedge.store.rows import load_result, select_in
from auroraedge.store.schema import audit, defects, images, results, reviews

if TYPE_CHECKING:
    from auroraedge.store.store import Store

_PAGE = 500
# A file that is being written is at most this old; older ones were left by a crash.
_PART_S = 3600.0
# Findings of one kind that are told one by one.
_TOLD = 100
_TRIGGERS = ("audit", "recipes", "engines", "studies", "reviews", "results", "defects")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be. `mended`: it now is."""

    kind: str
    subject: str
    message: str
    can_mend: bool
    mended: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The outcome of a check. `counts`: findings by kind, of which `findings` tells at most 100 each."""

    results: int
    images: int
    files: int
    audit_entries: int
    counts: dict[str, int] = field(default_factory=dict)
    mended: dict[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Nothing was found, or everything that was is mended."""
        return sum(self.counts.values()) == sum(self.mended.values())


def check(store: Store, *, mend: bool = False, deep: bool = False, who: str = "check") -> CheckReport:
    """Examines the database, the documents, the audit trail and the files.

    deep: reads every picture and compares it with its hash. Mending is audited.
    """
    run = _Check(store, mend=mend, deep=deep)
    for step in (run.database_file, run.triggers, run.trail, run.documents, run.pictures, run.litter):
        run.attempt(step)
    report = run.report()
    if report.mended:
        store.audit(
            who=who, action="store.mend", subject="store", new=report.mended, why="auroraedge store check --mend"
        )
    return report


class _Check:
    def __init__(self, store: Store, *, mend: bool, deep: bool) -> None:
        self._store = store
        self._database = store.database
        self._mend = mend
        self._deep = deep
        self._counts: Counter[str] = Counter()
        self._mended: Counter[str] = Counter()
        self._findings: list[Finding] = []
        self._results = self._images = self._files = 0

    def report(self) -> CheckReport:
        entries = 0
        with contextlib.suppress(StoreDamagedError), self._database.read() as connection:
            entries = int(connection.scalar(sa.select(sa.func.count()).select_from(audit)) or 0)
        return CheckReport(
            results=self._results,
            images=self._images,
            files=self._files,
            audit_entries=entries,
            counts=dict(sorted(self._counts.items())),
            mended=dict(sorted(self._mended.items())),
            findings=tuple(self._findings),
        )

    def _found(self, kind: str, subject: str, message: str, *, can_mend: bool) -> bool:
        """Notes a finding; True when it is to be mended now."""
        mends = can_mend and self._mend
        self._counts[kind] += 1
        if mends:
            self._mended[kind] += 1
        if self._counts[kind] <= _TOLD:
            self._findings.append(Finding(kind=kind, subject=subject, message=message, can_mend=can_mend, mended=mends))
        return mends

    def attempt(self, step: Callable[[], None]) -> None:
        """Runs one step; damage that keeps it from going on is a finding, and the other steps still run."""
        try:
            step()
        except StoreDamagedError as error:
            self._found("database", step.__name__, error.message, can_mend=False)

    # -- the database ----------------------------------------------------------------------------------------------

    def database_file(self) -> None:
        """What the database itself says about its pages and references; PostgreSQL watches its own."""
        if not self._database.is_sqlite:
            return
        with self._database.read() as connection:
            for row in connection.exec_driver_sql("PRAGMA integrity_check(100)"):
                if row[0] != "ok":
                    self._found("database", str(self._database.path), str(row[0]), can_mend=False)
            for row in connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(_TOLD):
                self._found("database", f"{row[0]} {row[1]}", f"refers to nothing in {row[2]}", can_mend=False)

    def triggers(self) -> None:
        """The triggers that keep history are there and switched on."""
        sqlite = "SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'"
        postgres = (
            "SELECT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
            "WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND c.relnamespace = current_schema()::regnamespace"
        )
        with self._database.read() as connection:
            rows = connection.exec_driver_sql(sqlite if self._database.is_sqlite else postgres)
            found = Counter(row[0] for row in rows)
        for table in _TRIGGERS:
            if found[table] < _expected_triggers(table, self._database.is_sqlite):
                self._found("triggers", table, "a trigger that keeps its history is missing or off", can_mend=False)

    def trail(self) -> None:
        for number in broken_links(self._database):
            message = "was changed after it was written, or one before it was changed or removed"
            self._found("audit", f"audit entry {number}", message, can_mend=False)

    # -- documents -------------------------------------------------------------------------------------------------

    def documents(self) -> None:
        """Every result can be read and agrees with the columns, defects and reviews beside it."""
        place = 0
        while True:
            query = sa.select(results).where(results.c.seq > place).order_by(results.c.seq).limit(_PAGE)
            with self._database.read() as connection:
                page = connection.execute(query).all()
                seqs = [row.seq for row in page]
                written: dict[int, list[sa.Row[Any]]] = {}
                for row in select_in(connection, sa.select(defects).order_by(defects.c.position), defects.c.seq, seqs):
                    written.setdefault(row.seq, []).append(row)
                newest: dict[int, sa.Row[Any]] = {}
                for row in select_in(connection, sa.select(reviews), reviews.c.seq, seqs):
                    if row.seq not in newest or (row.at, row.number) > (newest[row.seq].at, newest[row.seq].number):
                        newest[row.seq] = row
            for row in page:
                self._document(row, written.get(row.seq, []), newest.get(row.seq))
            self._results += len(page)
            if len(page) < _PAGE:
                return
            place = page[-1].seq

    def _document(self, row: sa.Row[Any], written: Sequence[sa.Row[Any]], review: sa.Row[Any] | None) -> None:
        subject = f"result {row.result_id}"
        try:
            result = load_result(row.document, row.seq)
        except StoreDamagedError as error:
            self._found("document", subject, error.message, can_mend=False)
            return
        if (result.result_id, result.verdict.value, result.created_at) != (row.result_id, row.verdict, row.created_at):
            self._found("document", subject, "its columns do not agree with its document", can_mend=False)
        expected = defect_values(row.seq, result)
        if [dict(defect._mapping) for defect in written] != expected and self._found(
            "defects", subject, "its list of defects does not agree with its document", can_mend=True
        ):
            with self._database.write() as connection:
                connection.execute(sa.delete(defects).where(defects.c.seq == row.seq))
                if expected:
                    connection.execute(sa.insert(defects), expected)
        decided = (review.verdict, review.number) if review is not None else (result.verdict.value, None)
        if (row.effective_verdict, row.review_number) != decided and self._found(
            "review", subject, "its verdict after review is not the newest review's", can_mend=True
        ):
            with self._database.write() as connection:
                # Under the lock, from what is there now: a person may have decided in the meantime.
                latest = sa.select(reviews).where(reviews.c.seq == row.seq).order_by(reviews.c.at, reviews.c.number)
                all_reviews = connection.execute(latest).all()
                verdict = all_reviews[-1].verdict if all_reviews else result.verdict.value
                number = all_reviews[-1].number if all_reviews else None
                values = {"effective_verdict": verdict, "review_number": number}
                connection.execute(sa.update(results).where(results.c.seq == row.seq).values(values))

    # -- pictures --------------------------------------------------------------------------------------------------

    def pictures(self) -> None:
        """Every picture that should be there is, in full."""
        kept = sa.select(images).where(images.c.removed_at.is_(None)).order_by(images.c.sha256)
        place = ""
        while True:
            with self._database.read() as connection:
                page = connection.execute(kept.where(images.c.sha256 > place).limit(_PAGE)).all()
            for row in page:
                problem = self._problem(row)
                if problem and self._found("picture", f"picture {row.sha256}", problem, can_mend=True):
                    self._give_up(row)
            self._images += len(page)
            if len(page) < _PAGE:
                return
            place = page[-1].sha256

    def _problem(self, row: sa.Row[Any]) -> str | None:
        folder = self._store.images
        if folder is None:
            return None
        name = f"{row.sha256}{row.suffix}"
        if not self._deep:
            try:
                size = folder.path(name).stat().st_size
            except FileNotFoundError:
                return "its file is missing"
            return None if size == row.size_bytes else f"its file has {size} bytes, not {row.size_bytes}"
        content = folder.read(name)
        if content is None:
            return "its file is missing"
        return None if hashlib.sha256(content).hexdigest() == row.sha256 else "its file was changed"

    def _give_up(self, row: sa.Row[Any]) -> None:
        """Marks a picture as removed, unless it was recorded again in the meantime."""
        with self._database.write() as connection:
            if self._problem(row):
                gone = {"removed_at": datetime.now(UTC)}
                connection.execute(sa.update(images).where(images.c.sha256 == row.sha256).values(gone))
                if self._store.images is not None:
                    self._store.images.remove(f"{row.sha256}{row.suffix}")

    def litter(self) -> None:
        """Files that no row names: left by a crash between writing a picture and committing its result."""
        folder = self._store.images
        if folder is None:
            return
        batch: list[Path] = []
        for entry in folder.files():
            self._files += 1
            if entry.name.endswith(".part") and entry.name.startswith("."):
                self._part(Path(entry.path))
                continue
            batch.append(Path(entry.path))
            if len(batch) == _PAGE:
                self._orphans(batch)
                batch = []
        self._orphans(batch)

    def _part(self, path: Path) -> None:
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:  # it was renamed to its place just now
            return
        if age > _PART_S and self._found("orphan", path.name, "a file that was never finished", can_mend=True):
            path.unlink(missing_ok=True)

    def _orphans(self, paths: Sequence[Path]) -> None:
        if not paths:
            return
        query = sa.select(images.c.sha256, images.c.suffix).where(images.c.removed_at.is_(None))

        def unknown(connection: sa.Connection) -> list[Path]:
            shas = {path.name.partition(".")[0] for path in paths}
            named = {f"{row.sha256}{row.suffix}" for row in select_in(connection, query, images.c.sha256, shas)}
            return [path for path in paths if path.name not in named]

        with self._database.read() as connection:
            if not unknown(connection):
                return
        # Again under the write lock: what a recorder has just written it will find missing and write again.
        with self._database.write() as connection:
            for path in unknown(connection):
                if self._found("orphan", path.name, "a file that no result names", can_mend=True):
                    path.unlink(missing_ok=True)


def _expected_triggers(table: str, is_sqlite: bool) -> int:
    if is_sqlite:
        return {"results": 1, "defects": 1}.get(table, 2)
    return {"reviews": 3, "defects": 1}.get(table, 2)
