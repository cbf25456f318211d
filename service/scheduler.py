"""The bounded queue between the RPC handlers and the one thread that runs the model.

Handlers run in the event loop and do no model work; they submit Work and wait. The worker takes work in the order of
service/fairness.py, drops what has expired, hands neighbouring frames to the engine as one batch, and advances token
streams by one token between batches, so that a long answer holds nobody up. All times are of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from auroraedge.errors import AuroraEdgeError, DeadlineExceededError, QueueFullError, ServerUnavailableError
from service.estimates import Estimates
from service.fairness import FairQueue, Priority
from service.observer import Observer

if TYPE_CHECKING:
    from auroraedge.runtime import InspectionJob, Inspector

log = logging.getLogger("auroraedge.service")

# RetryInfo: never so short that a client hammers the server, never so long that a camera gives up.
_RETRY_S = (0.02, 10.0)
# For so long after a client found no place, the others leave it its share of the places.
_SHARING_S = 2.0
# Token streams that are under way or wait; each costs the frames one token's time a batch.
MAX_GENERATIONS = 16


def unexpected() -> AuroraEdgeError:
    """What a client is told about a fault of ours; the details are in the server's log only."""
    return AuroraEdgeError("The server failed unexpectedly.", remedy="Report this with the log of the server.")


@dataclass(eq=False, kw_only=True)
class Work:
    """One thing for the worker: a `job`, which may share a batch, a `call`, which runs alone, or `steps`, a generator
    that is advanced between batches and whose values go to `on_step` (in the worker).

    deadline: time.monotonic() after which nobody waits for the result; None waits for ever. client: whose share it
    takes. kind: works of the same kind take about the same time.
    """

    job: InspectionJob | None = None
    call: Callable[[Inspector, Work], Any] | None = None
    steps: Callable[[Inspector], Iterator[Any]] | None = None
    on_step: Callable[[Any], None] | None = None
    size_bytes: int
    deadline: float | None = None
    client: str = ""
    priority: Priority = Priority.NORMAL
    kind: Hashable = None
    cancelled: bool = field(default=False, init=False)
    # Set by Scheduler.run; the future is resolved in the scheduler's own loop.
    future: asyncio.Future[Any] | None = field(default=None, init=False)
    cost_s: float = field(default=0.0, init=False)
    queued_at: float = field(default=0.0, init=False)
    begun_at: float | None = field(default=None, init=False)

    @property
    def queue_ms(self) -> float:
        """Wait until its turn, in milliseconds; 0 before that."""
        return 0.0 if self.begun_at is None else (self.begun_at - self.queued_at) * 1000.0


@dataclass(eq=False)
class _Generation:
    work: Work
    steps: Iterator[Any]
    inspector: Inspector


class Scheduler:
    """Must be made inside the event loop that submits to it."""

    def __init__(
        self,
        inspector: Inspector,
        *,
        max_frames: int,
        max_bytes: int,
        max_batch: int,
        max_batch_wait_s: float = 0.0,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_frames, self._max_bytes, self._max_batch = max_frames, max_bytes, max_batch
        self._max_batch_wait_s = max_batch_wait_s
        self._observer = observer or Observer()
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        # All below: guarded by _changed.
        self._inspector = inspector
        self._queue: FairQueue[Work] = FairQueue(clock)
        self._waiting_bytes = 0
        self._stopping = False
        self._estimates = Estimates(clock)
        self._busy_until = 0.0
        self._computing = 0
        self._frame_s = 0.05
        self._next_ticket = 0.0
        self._turned_away: dict[str, float] = {}
        self._generations = 0
        self._retiring: list[tuple[Inspector, asyncio.Future[None]]] = []
        # Touched in the worker only.
        self._generating: deque[_Generation] = deque()
        # Touched in the event loop only.
        self._room: deque[asyncio.Future[None]] = deque()
        self._thread = threading.Thread(target=self._work, name="inspection-worker", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Works in the queue, without those being computed."""
        return len(self._queue)

    @property
    def waiting_bytes(self) -> int:
        return self._waiting_bytes

    @property
    def computing(self) -> int:
        """Frames in the engine."""
        return self._computing

    @property
    def inspector(self) -> Inspector:
        """The one that new work will meet."""
        return self._inspector

    async def run(self, work: Work, *, wait_for_room: bool = False) -> Any:
        """Queues `work` and returns its result; cancelling this call frees its place.

        Raises QueueFullError (unless `wait_for_room`), DeadlineExceededError when the deadline cannot be met or passed
        before the work began, ServerUnavailableError while stopping, and whatever the work raises.
        """
        work.future = self._loop.create_future()
        try:
            while not self._admit(work, refuse=not wait_for_room):
                room = self._loop.create_future()
                self._room.append(room)
                await room
            return await work.future
        except asyncio.CancelledError:
            self.withdraw(work)
            raise

    def withdraw(self, work: Work) -> bool:
        """Takes work back that nobody waits for any more. True: it had not begun, and never will."""
        with self._changed:
            work.cancelled = True
            waited = work.begun_at is None and work.cost_s > 0 and work in self._queue
            if waited:
                self._leave(work)
        if waited:
            self._observer.dropped("cancelled")
            self._report()
        self._wake()
        return waited

    async def swap(self, inspector: Inspector) -> Inspector:
        """From the next batch on `inspector` does the work. Returns the old one, once nothing uses it any more."""
        with self._changed:
            old, self._inspector = self._inspector, inspector
            retired: asyncio.Future[None] = self._loop.create_future()
            self._retiring.append((old, retired))
            self._estimates.forget()
            self._changed.notify()
        await retired
        return old

    async def stop(self, timeout_s: float) -> bool:
        """Takes nothing more, finishes what is queued, ends the thread. False: it was still busy after `timeout_s`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._wake()
        await asyncio.to_thread(self._thread.join, timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """False once the worker has ended, by `stop` or by a fault of ours: nothing is computed any more."""
        return self._thread.is_alive()

    # --- admission ---------------------------------------------------------------------------------------------------

    def _admit(self, work: Work, *, refuse: bool) -> bool:
        with self._changed:
            if self._stopping:
                error = ServerUnavailableError("The server is shutting down.")
                error.retry_after_s = 1.0
                raise error
            now = self._clock()
            work.cost_s = max(1e-6, self._estimates.expected_s(work.kind))
            self._check_deadline(work, now)
            if self._fits(work, now):
                work.queued_at = now
                self._queue.push(work)
                self._waiting_bytes += work.size_bytes
                self._generations += work.steps is not None
                self._changed.notify()
            elif refuse:
                full = QueueFullError(f"{len(self._queue)} frames ({self._waiting_bytes} bytes) are waiting already.")
                full.retry_after_s = self._ticket_s(now)
                raise full
            else:
                return False
        self._report()
        return True

    def _check_deadline(self, work: Work, now: float) -> None:
        if work.deadline is None:
            return
        left = work.deadline - now
        if left <= 0:
            raise DeadlineExceededError("The deadline has passed.")
        least = self._estimates.least_s(work.kind)
        # The wait is an expectation: refuse what misses its deadline clearly, and let the worker drop the rest.
        wait = 0.8 * (max(0.0, self._busy_until - now) + self._queue.wait_s(work))
        if least and wait + least > left:
            error = DeadlineExceededError(
                f"The deadline is in {left * 1000:.0f} ms; the wait is about {wait * 1000:.0f} ms and the work "
                f"takes {least * 1000:.0f} ms at least."
            )
            raise error

    def _fits(self, work: Work, now: float) -> bool:
        fits = self._has_place(work, now)
        if not fits:
            self._turned_away[work.client] = now
        return fits

    def _has_place(self, work: Work, now: float) -> bool:
        waiting = len(self._queue)
        if work.steps is not None and self._generations >= MAX_GENERATIONS:
            return False
        # A frame larger than the whole allowance is still taken when it is the only one.
        if waiting and (waiting >= self._max_frames or self._waiting_bytes + work.size_bytes > self._max_bytes):
            return False
        for name, at in list(self._turned_away.items()):
            if now - at > _SHARING_S:
                del self._turned_away[name]
        if not self._turned_away or 2 * waiting < self._max_frames:
            return True
        # Some found no place: until they do, nobody takes more than its share of them.
        sharing = self._turned_away.keys() | self._queue.clients | {work.client}
        return self._queue.held_by(work.client) < -(-self._max_frames // len(sharing))

    def _ticket_s(self, now: float) -> float:
        """When a refused client should come again: places come free one by one, so each is told another time."""
        self._next_ticket = max(self._next_ticket, now) + self._frame_s
        self._next_ticket = min(self._next_ticket, now + _RETRY_S[1])
        return max(self._next_ticket - now, _RETRY_S[0])

    def _leave(self, work: Work) -> None:
        self._queue.remove(work)
        self._waiting_bytes -= work.size_bytes
        self._generations -= work.steps is not None

    def _report(self) -> None:
        self._observer.queue_changed(len(self._queue), self._waiting_bytes, self._computing)

    def _wake(self) -> None:
        while self._room:
            room = self._room.popleft()
            if not room.done():
                room.set_result(None)

    # --- the worker thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            if batch:
                self._compute(batch)
            self._advance()
            self._retire()
        self._retire()

    def _take(self) -> list[Work] | None:
        """The next works to run together; none when only token streams are under way; None: the thread shall end."""
        batch: list[Work] = []
        expired: list[Work] = []
        with self._changed:
            while not batch:
                self._fill(batch, expired)
                if batch or self._generating or self._retiring:
                    break
                if expired:
                    self._give_up(expired)
                elif self._stopping:
                    return None
                else:
                    self._changed.wait()
            self._linger(batch, expired)
            self._give_up(expired)
            self._computing = len(batch)
            inspector_s = sum(work.cost_s for work in batch)
            self._busy_until = self._clock() + inspector_s
        if batch:
            self._report()
            self._post(self._wake)
        return batch

    def _fill(self, batch: list[Work], expired: list[Work]) -> None:
        def joins(work: Work) -> bool:
            if not batch:
                return True
            if work.job is None or batch[0].job is None:
                return False
            # Company takes longer: nobody may miss a deadline for it.
            deadlines = [other.deadline for other in batch if other.deadline is not None]
            total = sum(other.cost_s for other in batch) + work.cost_s
            return not deadlines or self._clock() + total <= min(deadlines)

        while len(batch) < self._max_batch and (work := self._queue.pop(joins)) is not None:
            self._waiting_bytes -= work.size_bytes
            now = self._clock()
            if work.deadline is not None and now >= work.deadline:
                self._generations -= work.steps is not None
                expired.append(work)
                continue
            work.begun_at = now
            batch.append(work)
            if work.job is None:
                return

    def _linger(self, batch: list[Work], expired: list[Work]) -> None:
        """Waits a little for company, where the engine is faster with it."""
        until = self._clock() + self._max_batch_wait_s
        while batch and batch[0].job is not None and len(batch) < self._max_batch and not self._stopping:
            left = until - self._clock()
            if left <= 0 or len(self._queue):
                return
            self._changed.wait(left)
            self._fill(batch, expired)

    def _give_up(self, expired: list[Work]) -> None:
        for work in expired:
            self._observer.dropped("expired")
            self._resolve(work, DeadlineExceededError("The deadline passed while the frame was waiting."))
        if expired:
            self._post(self._wake)
        expired.clear()

    def _compute(self, batch: list[Work]) -> None:
        with self._changed:
            inspector = self._inspector
        started = self._clock()
        done: list[tuple[Work, Any]] = []
        if batch[0].steps is not None:
            self._begin(batch[0], inspector)
        else:
            done = self._execute(batch, inspector)
        seconds = self._clock() - started
        expected = sum(work.cost_s for work in batch)
        with self._changed:
            for work in batch:
                self._estimates.learn(work.kind, seconds * work.cost_s / expected)
            self._frame_s += 0.2 * (seconds / len(batch) - self._frame_s)
            self._computing = 0
            self._busy_until = 0.0
        # Told only now: a client that sends its next frame at once must not be refused for the work that it waited for.
        for work, outcome in done:
            self._resolve(work, outcome)
        self._observer.batch_done(len(batch), seconds)
        self._report()

    def _execute(self, batch: list[Work], inspector: Inspector) -> list[tuple[Work, Any]]:
        """Every work with its result, or its error."""
        outcomes: Sequence[Any]
        try:
            if batch[0].call is not None:
                outcomes = [batch[0].call(inspector, batch[0])]
            else:
                outcomes = inspector.inspect_batch([work.job for work in batch if work.job is not None])
        except AuroraEdgeError as error:
            outcomes = [error] * len(batch)
        except Exception:
            if len(batch) > 1:
                # One frame must not take its neighbours with it.
                return [found for work in batch for found in self._execute([work], inspector)]
            log.exception("An inspection failed unexpectedly.")
            outcomes = [unexpected()]
        return list(zip(batch, outcomes, strict=True))

    # --- token streams -----------------------------------------------------------------------------------------------

    def _begin(self, work: Work, inspector: Inspector) -> None:
        assert work.steps is not None
        try:
            generation = _Generation(work, iter(work.steps(inspector)), inspector)
        except Exception as error:
            self._end(work, error)
            return
        if self._step(generation):
            self._generating.append(generation)

    def _advance(self) -> None:
        """One token of one stream; the streams take turns."""
        if self._generating:
            generation = self._generating.popleft()
            if self._step(generation):
                self._generating.append(generation)

    def _step(self, generation: _Generation) -> bool:
        """True: there is more to come."""
        work, steps = generation.work, generation.steps
        gone = work.cancelled or (work.deadline is not None and self._clock() >= work.deadline)
        try:
            if not gone:
                value = next(steps)
                if work.on_step is not None:
                    work.on_step(value)
                return True
        except StopIteration:
            self._end(work, None)
            return False
        except Exception as error:
            self._end(work, error)
            return False
        if isinstance(steps, Generator):
            steps.close()
        self._end(work, None if work.cancelled else DeadlineExceededError("The deadline passed during the answer."))
        return False

    def _end(self, work: Work, error: Exception | None) -> None:
        with self._changed:
            self._generations -= 1
        if error is not None and not isinstance(error, AuroraEdgeError):
            log.error("An answer failed unexpectedly.", exc_info=error)
            error = unexpected()
        self._resolve(work, error)

    # --- ends --------------------------------------------------------------------------------------------------------

    def _retire(self) -> None:
        """Hands back engines that nothing uses any more."""
        with self._changed:
            busy = {id(generation.inspector) for generation in self._generating}
            idle = [entry for entry in self._retiring if id(entry[0]) not in busy]
            self._retiring = [entry for entry in self._retiring if id(entry[0]) in busy]
        for _, retired in idle:
            self._post(lambda retired=retired: retired.done() or retired.set_result(None))  # type: ignore[misc]

    def _resolve(self, work: Work, outcome: Any) -> None:
        future = work.future
        assert future is not None

        def settle() -> None:
            if future.done():
                return
            if isinstance(outcome, AuroraEdgeError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self._post(settle)

    def _post(self, callback: Callable[[], Any]) -> None:
        # The loop may have been closed under us (shutdown after the drain time): nobody waits for this any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)
