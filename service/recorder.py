"""Results go to the store before anybody is told of them.

One thread commits; whatever has gathered while the last commit was under way goes into the next one, so that the disk's
sync is paid by many. A result that cannot be stored is given as REVIEW or ERROR (a setting), never as OK; the next one
tries again, so that the service recovers with the store.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from auroraedge.errors import AuroraEdgeError, StoreError, StoreUnavailableError
from auroraedge.inspection.results import ErrorDetail, InspectionResult, Receipt, Verdict
from service.observer import Observer

if TYPE_CHECKING:
    from auroraedge.store import NewResult, Store, StoredResult

log = logging.getLogger("auroraedge.service")

StoreState = Literal["none", "writing", "failing"]
# Results of one commit: bounds the time for which a commit holds the store's write lock.
_GROUP = 128
# A store that fails is tried again after so many seconds; what comes in between does not wait for it.
_RETRY_S = 1.0
# Request ids that are remembered, so that the store is asked only about those that it may have. An older one, or one of
# another server on the same store, is found when its result is to be stored: it is inspected once more, and the answer
# is the stored one all the same.
_REMEMBERED = 200_000
# Beyond the store's own time-out: then nobody knows whether the commit will succeed.
_PATIENCE_S = 10.0


@dataclass(eq=False)
class _Entry:
    new: NewResult
    future: asyncio.Future[StoredResult]
    begun: bool = False
    abandoned: bool = False


class Recorder:
    """Must be made inside the event loop that uses it. `store` None: nothing is kept, and no result has a receipt."""

    def __init__(
        self,
        store: Store | None,
        *,
        on_failure: Literal["review", "error"] = "review",
        timeout_s: float = 1.0,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self._on_failure, self._patience_s = on_failure, timeout_s + _PATIENCE_S
        self._observer = observer or Observer()
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._entries: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._error: AuroraEdgeError | None = None
        self._next_try = 0.0
        self.last_seq = 0
        # By hash, oldest first; two ids of one hash cost a question to the store and nothing else.
        self._remembered: dict[int, None] = {}
        self._thread: threading.Thread | None = None
        if store is not None:
            self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
            self._thread.start()

    async def look_up(self) -> None:
        """What the store has already: call it once, before `find`. Raises StoreError."""
        if self.store is None:
            return
        self.last_seq = await asyncio.to_thread(self.store.last_seq)
        recent = await asyncio.to_thread(self.store.recent_requests, _REMEMBERED)
        for key in reversed(recent):
            self._remember(*key)

    def _remember(self, principal: str, request_id: str) -> None:
        self._remembered[hash((principal, request_id))] = None
        if len(self._remembered) > _REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    @property
    def state(self) -> StoreState:
        return "none" if self.store is None else "failing" if self._error is not None else "writing"

    @property
    def error(self) -> str:
        """Why the last commit failed; empty when it did not."""
        error = self._error
        return "" if error is None else f"{error.reason}: {error.message}"

    async def find(self, principal: str, request_id: str, fingerprint: str) -> InspectionResult | None:
        """The answer given earlier to this request, as far as it is remembered. Raises RequestIdConflictError.

        A store that cannot be read answers None: then the result cannot be stored either, and is degraded.
        """
        if self.store is None or hash((principal, request_id)) not in self._remembered:
            return None
        try:
            found = await asyncio.to_thread(self.store.find, request_id, principal=principal, fingerprint=fingerprint)
        except StoreError as error:
            log.warning("The store cannot be read: %s", error.message)
            return None
        return None if found is None else self._given_again(found)

    async def record(self, new: NewResult) -> InspectionResult:
        """The result as it is to be given: with its receipt; as it was given before, for a repeated request; or
        degraded, when it cannot be stored.

        Raises RequestIdConflictError, and StoreUnavailableError when it is not known whether the result was stored.
        """
        if self.store is None:
            return new.result
        started = self._clock()
        entry = _Entry(new, self._loop.create_future())
        self._entries.put(entry)
        try:
            stored = await asyncio.wait_for(asyncio.shield(entry.future), self._patience_s)
        except TimeoutError:
            with self._lock:
                entry.abandoned = not entry.begun
            if not entry.abandoned:
                raise StoreUnavailableError(
                    "The store does not answer; whether the result was stored is not known.",
                    remedy="Send the request again with the same request_id: it is answered once and stored once.",
                ) from None
            return self._degraded(new.result, StoreUnavailableError("The store does not answer."))
        except (StoreError, OSError) as error:
            return self._degraded(new.result, error)
        if new.result.request.request_id:
            self._remember(new.principal, new.result.request.request_id)
        if stored.replayed:
            return self._given_again(stored)
        timings = stored.result.timings.model_copy(update={"store_ms": (self._clock() - started) * 1000.0})
        receipt = Receipt(stored=True, seq=stored.seq, stored_at=stored.stored_at)
        return stored.result.model_copy(update={"timings": timings, "receipt": receipt})

    async def close(self, timeout_s: float) -> bool:
        """Commits what is left and ends the thread. False: it was still busy after `timeout_s`."""
        if self._thread is None:
            return True
        self._entries.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)
        return not self._thread.is_alive()

    def _given_again(self, found: StoredResult) -> InspectionResult:
        self._observer.replayed()
        receipt = Receipt(stored=True, seq=found.seq, stored_at=found.stored_at, replayed=True)
        return found.result.model_copy(update={"receipt": receipt})

    def _degraded(self, result: InspectionResult, error: Exception) -> InspectionResult:
        reason = error.reason if isinstance(error, AuroraEdgeError) else "STORE_UNAVAILABLE"
        message = error.message if isinstance(error, AuroraEdgeError) else str(error)
        warning = f"Not stored ({reason}); the inspection said {result.verdict}."
        changes: dict[str, Any] = {"receipt": Receipt(stored=False), "warnings": (*result.warnings, warning)}
        if self._on_failure == "error" or result.verdict is Verdict.ERROR:
            # No probability and no defects either: whoever reads those only must not find an answer.
            detail = result.error or ErrorDetail(
                reason=reason, message=message, remedy="Mend the store, then inspect the part again."
            )
            changes |= {"verdict": Verdict.ERROR, "error": detail, "ng_probability": None, "defects": ()}
            changes |= {"regions": (), "text": warning}
        else:
            regions = tuple(region.model_copy(update={"verdict": Verdict.REVIEW}) for region in result.regions)
            changes |= {"verdict": Verdict.REVIEW, "regions": regions}
        return result.model_copy(update=changes)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        going_on = True
        while going_on:
            group: list[_Entry] = []
            entry = self._entries.get()
            while entry is not None:
                group.append(entry)
                if len(group) >= _GROUP:
                    break
                try:
                    entry = self._entries.get_nowait()
                except queue.Empty:
                    break
            going_on = entry is not None
            with self._lock:
                group = [entry for entry in group if not entry.abandoned]
                for one in group:
                    one.begun = True
            if group:
                self._commit(group)

    def _commit(self, group: list[_Entry]) -> None:
        assert self.store is not None
        if self._error is not None and self._clock() < self._next_try:
            self._settle([(entry, self._error) for entry in group])
            return
        started = self._clock()
        try:
            outcomes = self.store.record_group([entry.new for entry in group])
        except Exception as error:
            if not isinstance(error, StoreError) and len(group) > 1:
                # One result that cannot be kept must not take the others with it.
                for entry in group:
                    self._commit([entry])
                return
            self._failed(group, error)
            return
        if self._error is not None:
            log.warning("The store works again.")
            self._error = None
        found = [outcome for outcome in outcomes if not isinstance(outcome, AuroraEdgeError)]
        self.last_seq = max([self.last_seq, *(stored.seq for stored in found)])
        self._observer.committed(len(found), self._clock() - started)
        self._settle(list(zip(group, outcomes, strict=True)))

    def _failed(self, group: list[_Entry], error: Exception) -> None:
        if not isinstance(error, AuroraEdgeError):
            log.error("The store failed unexpectedly.", exc_info=error)
            error = StoreError("The store failed unexpectedly.", remedy="See the log of the server.")
        if isinstance(error, StoreError):
            if self._error is None:
                log.error("Results cannot be stored and are given as %s: %s", self._on_failure.upper(), error)
            self._error = error
            self._next_try = self._clock() + _RETRY_S
        self._observer.store_failed(error.reason)
        if not isinstance(error, StoreError):
            error = StoreError(error.message, remedy=error.remedy)
        self._settle([(entry, error) for entry in group])

    def _settle(self, outcomes: list[tuple[_Entry, StoredResult | AuroraEdgeError]]) -> None:
        def settle() -> None:
            for entry, outcome in outcomes:
                if entry.future.done():
                    continue
                if isinstance(outcome, AuroraEdgeError):
                    entry.future.set_exception(outcome)
                    # Nobody may be waiting any more.
                    entry.future.exception()
                else:
                    entry.future.set_result(outcome)

        # The loop is closed when the process was told to end at once; the commit stands, and a retry will find it.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(settle)
