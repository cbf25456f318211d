"""What is kept, and for how long: by age, by verdict, and by the size of all pictures.

A picture stays while any result that shows it, or was compared with it, needs it. Pictures of results that wait for a
person are never removed. Results themselves are small and stay for good unless the policy says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.results import Verdict
from auroraedge.store.rows import chunks, select_in
from auroraedge.store.schema import images, results

if TYPE_CHECKING:
    from auroraedge.store.store import Store

# Rows handled in one write transaction: other writers get their turn in between.
_BATCH = 500
# Pictures chosen by one query when the size is the limit.
_PASS = 20_000
# The order in which pictures go when the size is the limit, after review; within one the oldest go first.
_RANKS = {Verdict.OK: 0, Verdict.ERROR: 1, Verdict.REVIEW: 2, Verdict.NG: 3}
_WAITING_RANK = 4
_PICTURES: sa.Select[Any] = sa.select(images.c.sha256, images.c.size_bytes, images.c.suffix)


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """How long to keep what. Days count from `created_at`; None is for good. Verdicts are those after review.

    The defaults keep NG for a year, decided REVIEW half a year, OK and ERROR a month, all results for good.
    max_image_bytes: beyond it the oldest pictures go: OK first, then ERROR, decided REVIEW, NG; None sets no limit.
    result_days: age at which whole results go with their pictures; those that wait for a person stay.
    """

    ok_days: float | None = 30.0
    ng_days: float | None = 365.0
    review_days: float | None = 180.0
    error_days: float | None = 30.0
    max_image_bytes: int | None = None
    result_days: float | None = None

    def __post_init__(self) -> None:
        for name in ("ok_days", "ng_days", "review_days", "error_days", "max_image_bytes", "result_days"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InvalidRequestError(f"{name} is {value}; it must not be negative.", field=name)

    def days(self, verdict: Verdict) -> float | None:
        """How long the pictures of results with this verdict stay."""
        found: float | None = getattr(self, f"{verdict.value.lower()}_days")
        return found


@dataclass(frozen=True, kw_only=True)
class RetentionReport:
    """What a run took away and what is left. over_limit_bytes: what the size limit asks for but nothing may give.

    dry_run: nothing was done; the figures are what would be done.
    """

    dry_run: bool
    images_removed: int
    bytes_removed: int
    results_removed: int
    images_left: int
    bytes_left: int
    over_limit_bytes: int


def retain(
    store: Store, policy: RetentionPolicy, *, now: datetime | None = None, dry_run: bool = False, who: str = "retention"
) -> RetentionReport:
    """Applies the policy, or with dry_run tells what it would do.

    A run that is cut short goes on with the next; at most one batch of files then has no row, which `check` mends.
    """
    run = _Run(store, policy, now or datetime.now(UTC), dry_run)
    run.by_age()
    if policy.result_days is not None:
        run.old_results()
    if policy.max_image_bytes is not None:
        run.by_size(policy.max_image_bytes)
    report = run.report()
    if not dry_run and (report.images_removed or report.results_removed):
        store.audit(
            who=who,
            action="store.retain",
            subject="store",
            new={
                "images_removed": report.images_removed,
                "bytes_removed": report.bytes_removed,
                "results_removed": report.results_removed,
                "policy": asdict(policy),
            },
            why="retention policy",
        )
    return report


def _waiting() -> sa.ColumnElement[bool]:
    return sa.and_(results.c.effective_verdict == Verdict.REVIEW.value, results.c.review_number.is_(None))


def _holding(policy: RetentionPolicy, now: datetime) -> sa.ColumnElement[bool]:
    """Results that still need their pictures."""
    young: list[sa.ColumnElement[bool]] = []
    for verdict in Verdict:
        days = policy.days(verdict)
        mine = results.c.effective_verdict == verdict.value
        young.append(mine if days is None else sa.and_(mine, results.c.created_at >= now - timedelta(days=days)))
    kept = sa.or_(*young)
    if policy.result_days is not None:
        kept = sa.and_(kept, results.c.created_at >= now - timedelta(days=policy.result_days))
    return sa.or_(_waiting(), kept)


# Written so that PostgreSQL joins: a subquery inside an OR it would run for every picture.
def _is_used(by: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Pictures that a result for which `by` holds shows, or was compared with."""
    users = (results.c.image_sha256, results.c.reference_sha256)
    return images.c.sha256.in_(sa.union_all(*(sa.select(column).where(column.is_not(None), by) for column in users)))


def _is_unused(by: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Pictures that no result for which `by` holds shows, or was compared with."""
    users = (results.c.image_sha256, results.c.reference_sha256)
    return sa.and_(*(~sa.exists().where(column == images.c.sha256, by) for column in users))


class _Run:
    def __init__(self, store: Store, policy: RetentionPolicy, now: datetime, dry_run: bool) -> None:
        self._store = store
        self._policy = policy
        self._now = now
        self._dry_run = dry_run
        self._images = 0
        self._bytes = 0
        self._results = 0
        self._over = 0

    def report(self) -> RetentionReport:
        count, size = self._kept()
        pending_images, pending_bytes = (self._images, self._bytes) if self._dry_run else (0, 0)
        return RetentionReport(
            dry_run=self._dry_run,
            images_removed=self._images,
            bytes_removed=self._bytes,
            results_removed=self._results,
            images_left=count - pending_images,
            bytes_left=size - pending_bytes,
            over_limit_bytes=self._over,
        )

    def by_age(self) -> None:
        """Pictures that no result needs any more, batch by batch."""
        unneeded = _is_unused(_holding(self._policy, self._now))
        query = _PICTURES.where(images.c.removed_at.is_(None), unneeded)
        place = ""
        while True:
            page = query.where(images.c.sha256 > place).order_by(images.c.sha256).limit(_BATCH)
            with self._transaction() as connection:
                found = connection.execute(page).all()
                self._remove(connection, found)
            self._unlink(found)
            if len(found) < _BATCH:
                return
            place = found[-1].sha256

    def old_results(self) -> None:
        """Results beyond their age, with their defects and reviews. Their pictures went with `by_age`."""
        assert self._policy.result_days is not None
        limit = self._now - timedelta(days=self._policy.result_days)
        old = sa.and_(results.c.created_at < limit, ~_waiting())
        if self._dry_run:
            with self._store.database.read() as connection:
                self._results = int(connection.scalar(sa.select(sa.func.count()).select_from(results).where(old)) or 0)
            return
        while True:
            with self._store.database.write() as connection:
                seqs = connection.scalars(sa.select(results.c.seq).where(old).limit(_BATCH)).all()
                if seqs:
                    connection.execute(sa.delete(results).where(results.c.seq.in_(seqs)))
            self._results += len(seqs)
            if len(seqs) < _BATCH:
                break
        # Addresses that nothing knows any more.
        unknown = sa.and_(images.c.removed_at.is_not(None), _is_unused(sa.true()))
        while True:
            with self._store.database.write() as connection:
                shas = connection.scalars(sa.select(images.c.sha256).where(unknown).limit(_BATCH)).all()
                if shas:
                    connection.execute(sa.delete(images).where(images.c.sha256.in_(shas)))
            if len(shas) < _BATCH:
                return

    def by_size(self, limit: int) -> None:
        """The least important pictures, within one verdict the oldest first, until the rest fits."""
        while True:
            _, size = self._kept()
            excess = size - limit - (self._bytes if self._dry_run else 0)
            self._over = max(0, excess)
            if excess <= 0:
                return
            with self._store.database.read() as connection:
                last_seq = int(connection.scalar(sa.select(sa.func.max(results.c.seq))) or 0)
                chosen = self._least_important(connection, excess)
            before = self._images
            for chunk in chunks(chosen, _BATCH):
                with self._transaction() as connection:
                    # Since the choice was made a result may have come that shows the same picture.
                    still = _PICTURES.where(
                        images.c.sha256.in_([row.sha256 for row in chunk]),
                        images.c.removed_at.is_(None),
                        _is_unused(sa.or_(results.c.seq > last_seq, _waiting())),
                    )
                    found = connection.execute(still).all()
                    self._remove(connection, found)
                self._unlink(found)
            if self._dry_run:
                self._over = max(0, excess - sum(row.size_bytes for row in chosen))
                return
            if self._images == before:
                return

    def _least_important(self, connection: sa.Connection, excess: int) -> list[sa.Row[Any]]:
        verdict = results.c.effective_verdict
        ranks = [(verdict == known.value, place) for known, place in _RANKS.items()]
        rank = sa.case((_waiting(), _WAITING_RANK), *ranks, else_=0)
        users = [
            sa.select(column.label("sha256"), rank.label("rank"), results.c.created_at).where(column.is_not(None))
            for column in (results.c.image_sha256, results.c.reference_sha256)
        ]
        every = sa.union_all(*users).subquery()
        highest, newest = sa.func.max(every.c.rank).label("rank"), sa.func.max(every.c.created_at).label("newest")
        worth = sa.select(every.c.sha256, highest, newest).group_by(every.c.sha256).subquery()
        query = (
            _PICTURES.join(worth, worth.c.sha256 == images.c.sha256)
            .where(images.c.removed_at.is_(None), worth.c.rank < _WAITING_RANK)
            .order_by(worth.c.rank, worth.c.newest, images.c.sha256)
        )
        # In a dry run what would have gone by age is still there.
        aged = _is_used(_holding(self._policy, self._now))
        query = query.where(aged) if self._dry_run else query.limit(_PASS)
        chosen = []
        for row in connection.execution_options(yield_per=_BATCH).execute(query):
            if excess <= 0:
                break
            chosen.append(row)
            excess -= row.size_bytes
        return chosen

    def _transaction(self) -> AbstractContextManager[sa.Connection]:
        return self._store.database.read() if self._dry_run else self._store.database.write()

    def _remove(self, connection: sa.Connection, found: Sequence[sa.Row[Any]]) -> None:
        """Marks pictures as removed; their files go when that is committed."""
        self._images += len(found)
        self._bytes += sum(row.size_bytes for row in found)
        if found and not self._dry_run:
            gone = images.c.sha256.in_([row.sha256 for row in found])
            connection.execute(sa.update(images).where(gone).values(removed_at=self._now))

    def _unlink(self, found: Sequence[sa.Row[Any]]) -> None:
        """Takes away the files of pictures that are committed as removed.

        Under the write lock: a recorder looks for its file there before it commits, and writes it again if need be.
        """
        folder = self._store.images
        if not found or folder is None or self._dry_run:
            return
        query = sa.select(images.c.sha256, images.c.suffix).where(images.c.removed_at.is_not(None))
        with self._store.database.write() as connection:
            for row in select_in(connection, query, images.c.sha256, [row.sha256 for row in found]):
                folder.remove(f"{row.sha256}{row.suffix}")

    def _kept(self) -> tuple[int, int]:
        """Count and bytes of the pictures that are kept."""
        query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(images.c.size_bytes), 0))
        with self._store.database.read() as connection:
            count, size = connection.execute(query.where(images.c.removed_at.is_(None))).one()
        return int(count), int(size)
