"""One request, one inspection, one row: from a checked job to a result that is stored.

A request that is repeated under its request id, while the first is at work or years later, gets the first one's answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import cv2

from auroraedge.errors import (
    AuroraEdgeError,
    DeadlineExceededError,
    InvalidImageError,
    InvalidRequestError,
    QueueFullError,
    RequestIdConflictError,
    error_classes,
)
from auroraedge.inspection.images import DecodedImage
from auroraedge.inspection.raw import RawFrame
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import (
    ErrorDetail,
    InspectionResult,
    RequestInfo,
    Verdict,
    error_result,
)
from auroraedge.runtime.frames import ImageSource
from service.frames import content_sha256, in_request_terms
from service.observer import Observer
from service.recorder import Recorder
from service.scheduler import Scheduler, Work

if TYPE_CHECKING:
    from auroraedge.store import NewResult

log = logging.getLogger("auroraedge.service")

KeepImages = Literal["all", "not-ok", "none"]
# Hashing more than this is left to a thread.
_QUICK_BYTES = 256 * 1024


async def sha256_of(source: ImageSource) -> str:
    """Hash of what a frame of a request shows. Raises what reading a frame in shared memory raises."""
    if isinstance(source, DecodedImage):
        return source.sha256
    assert isinstance(source, bytes | RawFrame)
    if isinstance(source, bytes) and len(source) <= _QUICK_BYTES:
        return hashlib.sha256(source).hexdigest()
    return await asyncio.to_thread(content_sha256, source)


async def fingerprint_of(
    image: ImageSource,
    reference: ImageSource | None,
    *,
    recipe: Sequence[str],
    version: int,
    regions: Iterable[Any],
    part: str,
) -> str:
    """What makes a request the same request: frame, golden sample, recipe and version asked for, regions, part."""
    content = {
        "image": await sha256_of(image),
        "reference": "" if reference is None else await sha256_of(reference),
        "recipe": list(recipe),
        "version": version,
        "regions": [[one.name, one.x, one.y, one.width, one.height] for one in regions],
        "part": part,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """A result, and the error behind verdict ERROR where the frame itself was at fault."""

    result: InspectionResult
    error: AuroraEdgeError | None = None

    def unary(self) -> InspectionResult:
        """The result for a call that answers with a status when there is no verdict. Raises the error."""
        if self.error is not None:
            raise self.error
        return self.result


@dataclass(frozen=True, kw_only=True)
class Order:
    """One frame to inspect and to keep."""

    work: Work
    principal: str
    info: RequestInfo
    fingerprint: str = ""
    image: ImageSource
    reference: ImageSource | None = None
    image_name: str = ""
    recipe: Recipe | None = None
    arrived: float = field(default_factory=time.monotonic)
    wait_for_room: bool = False
    # In a camera session a failure is a result of its own; a call ends with a status instead.
    in_band: bool = False


@dataclass(eq=False)
class _Running:
    fingerprint: str
    work: Work
    task: asyncio.Task[Delivered]
    waiting: int = 0


class Deliveries:
    def __init__(
        self, scheduler: Scheduler, recorder: Recorder, *, keep_images: KeepImages = "not-ok", observer: Observer
    ) -> None:
        self._scheduler, self._recorder, self._observer = scheduler, recorder, observer
        self._keep = keep_images
        self._running: dict[tuple[str, str], _Running] = {}

    @property
    def recorder(self) -> Recorder:
        return self._recorder

    @property
    def early_verdicts(self) -> bool:
        """Whether a verdict may be told before its result is stored: not while nothing can be stored."""
        return self._recorder.state != "failing"

    async def inspect(self, order: Order) -> Delivered:
        """The result of a frame, stored. Raises what Scheduler.run raises where no result can be given (try again), and
        RequestIdConflictError."""
        if not order.info.request_id:
            return await self._perform(order)
        key = (order.principal, order.info.request_id)
        while True:
            running = self._running.get(key)
            joined = running is not None
            if running is None:
                task = asyncio.create_task(self._once(order))
                running = self._running[key] = _Running(order.fingerprint, order.work, task)
                task.add_done_callback(lambda task: self._ended(key, task))
            elif running.fingerprint != order.fingerprint:
                raise RequestIdConflictError(
                    f"The request id '{order.info.request_id}' is in use for another request.",
                    field="info.request_id",
                )
            try:
                delivered = await self._attend(running)
            except (DeadlineExceededError, QueueFullError):
                # That was the other call's deadline, or its bad luck.
                if joined:
                    continue
                raise
            except asyncio.CancelledError:
                if joined and running.task.cancelled() and not _cancelling():
                    continue
                raise
            return self._joined(delivered) if joined else delivered

    async def finish(self) -> None:
        """Waits for what nobody waits for any more but has begun."""
        while self._running:
            await asyncio.wait([running.task for running in self._running.values()])

    async def _attend(self, running: _Running) -> Delivered:
        running.waiting += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.waiting -= 1
            # What has begun is finished and stored, since the client will ask again; what has not is nobody's.
            if not running.waiting and not running.task.done() and running.work.begun_at is None:
                running.task.cancel()

    def _ended(self, key: tuple[str, str], task: asyncio.Task[Delivered]) -> None:
        del self._running[key]
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, AuroraEdgeError):
            log.error("A delivery failed unexpectedly.", exc_info=error)

    def _joined(self, delivered: Delivered) -> Delivered:
        receipt = delivered.result.receipt
        if receipt is None or receipt.replayed or not receipt.stored:
            return delivered
        self._observer.replayed()
        result = delivered.result.model_copy(update={"receipt": receipt.model_copy(update={"replayed": True})})
        return Delivered(result=result, error=delivered.error)

    async def _once(self, order: Order) -> Delivered:
        found = await self._recorder.find(order.principal, order.info.request_id, order.fingerprint)
        return await self._perform(order) if found is None else Delivered(result=found, error=error_of(found))

    async def _perform(self, order: Order) -> Delivered:
        error: AuroraEdgeError | None = None
        try:
            result: InspectionResult = await self._scheduler.run(order.work, wait_for_room=order.wait_for_room)
        except InvalidRequestError as invalid:
            error = in_request_terms(invalid)
            result = await self._failed(order, error)
        except AuroraEdgeError as other:
            if not order.in_band:
                raise
            error = in_request_terms(other)
            result = await self._failed(order, error)
        result = await self.keep(
            result, order.work, order.arrived, principal=order.principal, fingerprint=order.fingerprint,
            image=order.image, reference=order.reference,
        )  # fmt: skip
        return Delivered(result=result, error=error)

    async def _failed(self, order: Order, error: AuroraEdgeError) -> InspectionResult:
        result = error_result(error, order.recipe, request=order.info, image_name=order.image_name)
        engine = self._scheduler.inspector.engine
        changes = {"model_id": engine.model_id, "engine_sha256": engine.engine_sha256}
        with suppress(AuroraEdgeError):  # the frame is gone from shared memory; that is what the error says
            changes["image_sha256"] = await sha256_of(order.image)
        return result.model_copy(update=changes)

    async def keep(
        self,
        result: InspectionResult,
        work: Work | None,
        arrived: float,
        *,
        principal: str,
        fingerprint: str = "",
        image: ImageSource | None = None,
        reference: ImageSource | None = None,
        consumes_id: bool = True,
    ) -> InspectionResult:
        """Stores a result and returns it as it is to be given.

        consumes_id: the result is the answer to its request id for good; else the id may still get another.
        """
        if work is not None and work.begun_at is not None:
            queue_ms = (work.begun_at - arrived) * 1000.0
            result = result.model_copy(update={"timings": result.timings.model_copy(update={"queue_ms": queue_ms})})
        if self._recorder.store is not None:
            given = result.request
            new = await self._entry(result, principal, fingerprint, image, reference, consumes_id)
            result = await self._recorder.record(new)
            if result.request.request_id != given.request_id:
                result = result.model_copy(update={"request": given})
        timings = result.timings.model_copy(update={"service_ms": (time.monotonic() - arrived) * 1000.0})
        result = result.model_copy(update={"timings": timings})
        if not (result.receipt and result.receipt.replayed):
            self._observer.finished(result)
        return result

    async def _entry(
        self,
        result: InspectionResult,
        principal: str,
        fingerprint: str,
        image: ImageSource | None,
        reference: ImageSource | None,
        consumes_id: bool,
    ) -> NewResult:
        from auroraedge.store import NewResult

        request_id = result.request.request_id
        final = consumes_id and (result.error is None or _is_final(result.error))
        if request_id and not final:
            # The next attempt may succeed, so this one must not be the answer for good.
            info = result.request.model_copy(update={"request_id": ""})
            note = f"An attempt at request '{request_id}'."
            result = result.model_copy(update={"request": info, "warnings": (*result.warnings, note)})
        kept: list[bytes | None] = [None, None]
        unusable = result.error is not None and result.error.reason in _UNUSABLE
        if self._keeps(result) and not unusable:
            kept = [await _picture(image), await _picture(reference) if result.reference_used else None]
        return NewResult(result=result, image=kept[0], reference=kept[1], fingerprint=fingerprint, principal=principal)

    def _keeps(self, result: InspectionResult) -> bool:
        store = self._recorder.store
        if store is None or store.images is None or self._keep == "none":
            return False
        return self._keep == "all" or result.verdict is not Verdict.OK


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _subclass_reasons(cls: type[AuroraEdgeError]) -> frozenset[str]:
    return frozenset(reason for reason, found in error_classes().items() if issubclass(found, cls))


# Frames that are no pictures are not kept: the store would fill up with whatever anyone sends.
_UNUSABLE = _subclass_reasons(InvalidImageError)
_FINAL = _subclass_reasons(InvalidRequestError) - _subclass_reasons(RequestIdConflictError)


def _is_final(detail: ErrorDetail) -> bool:
    """Whether the same request fails the same way for ever."""
    cls = error_classes().get(detail.reason)
    return detail.reason in _FINAL and cls is not None and cls.grpc_code == "INVALID_ARGUMENT"


def error_of(result: InspectionResult) -> AuroraEdgeError | None:
    """The error that a stored ERROR result was made from."""
    if result.verdict is not Verdict.ERROR or result.error is None:
        return None
    cls = error_classes().get(result.error.reason, AuroraEdgeError)
    return cls(result.error.message, field=result.error.field, remedy=result.error.remedy)


async def _picture(source: ImageSource | None) -> bytes | None:
    """The bytes to keep: a file as it came, raw pixels as a PNG."""
    if source is None or isinstance(source, bytes):
        return source
    assert isinstance(source, DecodedImage | RawFrame)

    def encode() -> bytes | None:
        pixels = source.pixels if isinstance(source, DecodedImage) else source.rgb()
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        if source.verify is not None:
            source.verify()  # a slot that holds another frame by now must not be kept as the one that was judged
        # Fast rather than small: retention bounds the disk, and the line does not wait.
        done, data = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        return data.tobytes() if done else None

    try:
        return await asyncio.to_thread(encode)
    except AuroraEdgeError:
        return None
