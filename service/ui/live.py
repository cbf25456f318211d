"""What happens now: new results, counters and trend, sent to every open page by server-sent events.

One task reads the store for all pages, and only while a page is open. Of several new results of one camera between two
looks the page gets the newest, and the counters get all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from auroraedge.errors import AuroraEdgeError
from auroraedge.inspection.results import Verdict
from auroraedge.report.statistics import wilson
from auroraedge.store import ResultFilter, Store, StoredResult
from service.ui.queries import SOURCE_FIELDS

log = logging.getLogger("auroraedge.ui")

LOOK_S = 0.4
COUNT_S = 2.0
PING_S = 10.0
# Hours that counters and trend may cover, and the minutes of one column of the trend.
WINDOWS = {1: 5, 8: 30, 24: 60}
# A page that is so far behind takes the newest and goes on.
_MOST_AT_ONCE = 500
_MOST_PAGES = 100
_CLOSED_COLUMN_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the trend. A column that is over changes only by reviews."""

    start: datetime
    counts: dict[str, int]


class Figures:
    """Counters and trend of a window that ends now. Thread-safe by replacing, never changing, what it keeps."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[tuple[int, datetime], tuple[float, Column]] = {}

    def read(self, hours: int, now: datetime | None = None) -> dict[str, Any]:
        """{"counts", "total", "yield", "trend", "waiting"} of the last `hours`, in whole columns."""
        now = now or datetime.now(UTC)
        minutes = WINDOWS[hours]
        step = timedelta(minutes=minutes)
        newest = datetime.fromtimestamp(now.timestamp() // (minutes * 60) * minutes * 60, UTC)
        starts = [newest - step * i for i in reversed(range(hours * 60 // minutes))]
        columns = [self._column(start, minutes, open_end=start == newest) for start in starts]
        counts = {verdict.value: sum(c.counts[verdict.value] for c in columns) for verdict in Verdict}
        judged = counts["OK"] + counts["NG"] + counts["REVIEW"]
        share = wilson(counts["OK"], judged)
        return {
            "hours": hours,
            "minutes": minutes,
            "since": starts[0].isoformat(),
            "counts": counts,
            "total": sum(counts.values()),
            "yield": {"value": share.value, "low": share.low, "high": share.high, "total": judged},
            "trend": [{"start": c.start.isoformat(), **c.counts} for c in columns],
            "waiting": self._store.count(ResultFilter(effective_verdicts=(Verdict.REVIEW,))),
        }

    def _column(self, start: datetime, minutes: int, *, open_end: bool) -> Column:
        key, moment = (minutes, start), time.monotonic()
        kept = self._kept.get(key)
        if kept is not None and not open_end and moment - kept[0] < _CLOSED_COLUMN_S:
            return kept[1]
        # The clock of a camera's host may be ahead: the newest column has no end.
        until = None if open_end else start + timedelta(minutes=minutes)
        found = self._store.verdict_counts(ResultFilter(since=start, until=until), effective=True)
        column = Column(start=start, counts={verdict.value: n for verdict, n in found.items()})
        if not open_end:
            fresh = {k: v for k, v in self._kept.items() if moment - v[0] < 2 * _CLOSED_COLUMN_S}
            self._kept = {**fresh, key: (moment, column)}
        return column

    def forget(self) -> None:
        """After a review."""
        self._kept = {}


@dataclass(eq=False, kw_only=True)
class Page:
    """One open page. The queue holds (event, data, seq); a page that does not read them is let go."""

    hours: int
    queue: asyncio.Queue[tuple[str, Any, int] | None] = field(default_factory=lambda: asyncio.Queue(maxsize=64))


class Live:
    """The hub. All methods in the server's event loop; the store is read in threads."""

    def __init__(self, store: Store, *, look_s: float = LOOK_S) -> None:
        self.figures = Figures(store)
        self._store, self._look_s = store, look_s
        self._pages: set[Page] = set()
        self._task: asyncio.Task[None] | None = None
        self._seq = 0
        self._counted: dict[int, dict[str, Any]] = {}
        self._recount = False
        self._failing = False

    @property
    def full(self) -> bool:
        return len(self._pages) >= _MOST_PAGES

    def changed(self) -> None:
        """A review was recorded here: the figures are old."""
        self.figures.forget()
        self._recount = True

    async def stop(self) -> None:
        for page in list(self._pages):
            self._let_go(page)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def events(self, hours: int) -> AsyncIterator[tuple[str, Any, int]]:
        """Events of one page until it goes: "result" (StoredResult), "figures", "trouble" (text), "ping"."""
        page = Page(hours=hours)
        if not self._pages:
            self._seq = await asyncio.to_thread(self._store.last_seq)
            self._counted = {}
        self._pages.add(page)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())
        self._recount = True
        try:
            while True:
                try:
                    event = await asyncio.wait_for(page.queue.get(), PING_S)
                except TimeoutError:
                    event = ("ping", {}, 0)
                if event is None:
                    return
                yield event
        finally:
            self._pages.discard(page)

    def _let_go(self, page: Page) -> None:
        self._pages.discard(page)
        with contextlib.suppress(asyncio.QueueFull):
            if page.queue.full():
                page.queue.get_nowait()
            page.queue.put_nowait(None)

    def _send(self, event: str, data: Any, seq: int = 0, *, hours: int | None = None) -> None:
        for page in list(self._pages):
            if hours is None or page.hours == hours:
                try:
                    page.queue.put_nowait((event, data, seq))
                except asyncio.QueueFull:
                    self._let_go(page)

    async def _follow(self) -> None:
        counted_at = 0.0
        while self._pages:
            try:
                fresh = await asyncio.to_thread(self._fresh)
                for stored in fresh:
                    self._send("result", stored, stored.seq)
                if self._recount or time.monotonic() - counted_at >= COUNT_S:
                    self._recount = False
                    for hours in {page.hours for page in self._pages}:
                        figures = await asyncio.to_thread(self.figures.read, hours)
                        if figures != self._counted.get(hours) or counted_at == 0.0 or fresh:
                            self._counted[hours] = figures
                        self._send("figures", self._counted[hours], hours=hours)
                    counted_at = time.monotonic()
                if self._failing:
                    self._failing = False
                    self._send("recovered", {})
            except AuroraEdgeError as error:
                # The page says so and goes on trying: an old verdict must not look like the present one.
                if not self._failing:
                    log.warning("the store cannot be read: %s", error)
                self._failing = True
                self._send("trouble", {"message": error.message})
            await asyncio.sleep(self._look_s)

    def _fresh(self) -> list[StoredResult]:
        """The newest result of each camera among those since the last look."""
        last = self._store.last_seq()
        if last - self._seq > _MOST_AT_ONCE:
            self._seq = last - _MOST_AT_ONCE
        newest: dict[tuple[str, ...], StoredResult] = {}
        for stored in self._store.results(after_seq=self._seq) if last > self._seq else ():
            newest[tuple(getattr(stored.result.request, name) for name in SOURCE_FIELDS)] = stored
            self._seq = stored.seq
        self._seq = max(self._seq, last)
        return sorted(newest.values(), key=lambda stored: stored.seq)


def encode_event(event: str, data: Any, seq: int = 0) -> bytes:
    """One server-sent event."""
    number = f"id: {seq}\n" if seq else ""
    return f"{number}event: {event}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
