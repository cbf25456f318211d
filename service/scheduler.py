"""The bounded queue between the RPC handlers and the one thread that runs the model.

Handlers run in the event loop and do no model work; they submit Work and wait. The worker thread takes Work in order,
drops what has expired, and hands neighbouring frames to the engine as one batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from auroraedge.errors import AuroraEdgeError, DeadlineExceededError, QueueFullError, ServerUnavailableError

if TYPE_CHECKING:
    from auroraedge.runtime import InspectionJob, Inspector

log = logging.getLogger("auroraedge.service")

# RetryInfo: never less than one frame's time, never so long that a camera gives up.
_RETRY_S = (0.02, 10.0)


def unexpected() -> AuroraEdgeError:
    """What a client is told about a fault of ours; the details are in the server's log only."""
    return AuroraEdgeError("The server failed unexpectedly.", remedy="Report this with the log of the server.")


@dataclass(eq=False, kw_only=True)
class Work:
    """One thing for the worker: either a `job`, which may share a batch, or a `call`, which runs alone.

    deadline: time.monotonic() after which nobody waits for the result; None waits for ever.
    """

    job: InspectionJob | None = None
    call: Callable[[Inspector, Work], Any] | None = None
    size_bytes: int
    deadline: float | None = None
    cancelled: bool = field(default=False, init=False)
    # Set by Scheduler.run, which resolves it in its own loop.
    future: asyncio.Future[Any] | None = field(default=None, init=False)

    @property
    def expired(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


class Scheduler:
    """Must be made inside the event loop that submits to it."""

    def __init__(self, inspector: Inspector, *, max_frames: int, max_bytes: int, max_batch: int) -> None:
        self._inspector = inspector
        self._max_frames, self._max_bytes, self._max_batch = max_frames, max_bytes, max_batch
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        # All below: guarded by _changed.
        self._waiting: deque[Work] = deque()
        self._waiting_bytes = 0
        self._stopping = False
        self._seconds_each = 0.05
        # Touched in the event loop only.
        self._room: deque[asyncio.Future[None]] = deque()
        self._thread = threading.Thread(target=self._work, name="inspection-worker", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Works in the queue, without those being computed."""
        return len(self._waiting)

    async def run(self, work: Work, *, wait_for_room: bool = False) -> Any:
        """Queues `work` and returns its result; cancelling this call frees its place.

        Raises QueueFullError (unless `wait_for_room`), DeadlineExceededError when the deadline passed before the work
        began, ServerUnavailableError while stopping, and whatever the work raises.
        """
        work.future = self._loop.create_future()
        try:
            while not self._admit(work, refuse=not wait_for_room):
                room = self._loop.create_future()
                self._room.append(room)
                await room
            return await work.future
        except asyncio.CancelledError:
            self._cancel(work)
            raise

    async def stop(self, timeout_s: float) -> bool:
        """Takes nothing more, finishes what is queued, ends the thread. False: it was still busy after `timeout_s`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._wake()
        await asyncio.to_thread(self._thread.join, timeout_s)
        return not self._thread.is_alive()

    def _admit(self, work: Work, *, refuse: bool) -> bool:
        with self._changed:
            if self._stopping:
                error = ServerUnavailableError("The server is shutting down.")
                error.retry_after_s = 1.0
                raise error
            # A frame larger than the whole allowance is still taken when it is the only one.
            fits = not self._waiting or self._waiting_bytes + work.size_bytes <= self._max_bytes
            if len(self._waiting) < self._max_frames and fits:
                self._waiting.append(work)
                self._waiting_bytes += work.size_bytes
                self._changed.notify()
                return True
            if refuse:
                full = QueueFullError(f"{len(self._waiting)} frames ({self._waiting_bytes} bytes) are waiting already.")
                # By then about half the queue is free, for however many clients were refused.
                full.retry_after_s = min(max(self._seconds_each * len(self._waiting) / 2, _RETRY_S[0]), _RETRY_S[1])
                raise full
            return False

    def _cancel(self, work: Work) -> None:
        with self._changed:
            work.cancelled = True
            if work in self._waiting:
                self._waiting.remove(work)
                self._waiting_bytes -= work.size_bytes
        self._wake()

    def _wake(self) -> None:
        while self._room:
            room = self._room.popleft()
            if not room.done():
                room.set_result(None)

    # --- the worker thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while batch := self._take():
            started = time.monotonic()
            self._execute(batch)
            each = (time.monotonic() - started) / len(batch)
            with self._changed:
                self._seconds_each += 0.2 * (each - self._seconds_each)

    def _take(self) -> list[Work]:
        """The next works to run together; empty when the thread shall end."""
        batch: list[Work] = []
        expired: list[Work] = []
        with self._changed:
            while not batch:
                while not self._waiting:
                    if self._stopping:
                        return []
                    self._changed.wait()
                while self._waiting and len(batch) < self._max_batch:
                    alone = self._waiting[0].job is None
                    if batch and alone:
                        break
                    work = self._waiting.popleft()
                    self._waiting_bytes -= work.size_bytes
                    (expired if work.expired else batch).append(work)
                    if batch and alone:
                        break
                self._post(self._wake)
                for work in expired:
                    self._resolve(work, DeadlineExceededError("The deadline passed while the frame was waiting."))
                expired.clear()
        return batch

    def _execute(self, batch: list[Work]) -> None:
        try:
            if batch[0].call is not None:
                outcomes = [batch[0].call(self._inspector, batch[0])]
            else:
                outcomes = self._inspector.inspect_batch([work.job for work in batch if work.job is not None])
        except AuroraEdgeError as error:
            outcomes = [error] * len(batch)
        except Exception:
            if len(batch) > 1:
                # One frame must not take its neighbours with it.
                for work in batch:
                    self._execute([work])
                return
            log.exception("An inspection failed unexpectedly.")
            outcomes = [unexpected()]
        for work, outcome in zip(batch, outcomes, strict=True):
            self._resolve(work, outcome)

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

    def _post(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop was closed under us (shutdown after the drain time): nobody waits for this any more.
            log.warning("An inspection ended after the server had stopped.")
