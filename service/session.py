"""One camera session (InspectStream): frames in, results out in the same order, bad frames reported in band.

At most `window` frames are under way: taken, and their result not yet sent. With the policy EVERY_FRAME the session
reads no further until one of them is answered, so that flow control holds the camera back. With LATEST_FRAME it reads
on; a frame that has not begun when a newer one comes is dropped, counted and reported.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import convert
from auroraedge.errors import AuroraEdgeError, InvalidRequestError, ServerUnavailableError
from auroraedge.inspection.images import DecodedImage, decode_image
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import InspectionResult, Region, RequestInfo, error_result
from service.delivery import Deliveries, Order, fingerprint_of
from service.fairness import Priority
from service.frames import Intake, in_request_terms, regions_from
from service.jobs import job_from
from service.observer import Observer
from service.recipes import RecipeBook
from service.scheduler import Scheduler, Work, unexpected

if TYPE_CHECKING:
    from auroraedge.runtime import Inspector

log = logging.getLogger("auroraedge.service")


def announce_early(work: Work, tell: Callable[[InspectionResult], None], deliveries: Deliveries) -> None:
    """Makes the work of a job tell its verdict as soon as it is known, in the event loop that this is called in."""
    loop = asyncio.get_running_loop()
    job, work.job = work.job, None
    assert job is not None

    def announce(early: InspectionResult) -> None:
        if deliveries.early_verdicts:
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(tell, early.model_copy(update={"is_partial": True}))

    def inspect(inspector: Inspector, _: Work) -> InspectionResult:
        return inspector.inspect(
            job.image,
            job.recipe,
            reference=job.reference,
            request=job.request,
            image_name=job.image_name,
            regions=job.regions,
            on_verdict=announce,
        )

    work.call = inspect


@dataclass(eq=False, kw_only=True)
class _Pending:
    """A frame on its way. Its results arrive in `results`; the last is not partial, or None for a dropped frame."""

    sequence: int
    request: pb.InspectRequest
    arrived: float = field(default_factory=time.monotonic)
    results: asyncio.Queue[InspectionResult | None] = field(default_factory=asyncio.Queue)
    work: Work | None = None
    task: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        return self.work is not None and self.work.begun_at is not None


class CameraSession:
    def __init__(
        self,
        scheduler: Scheduler,
        deliveries: Deliveries,
        recipes: RecipeBook,
        intake: Intake,
        *,
        window: int,
        deadline: float | None,
        draining: asyncio.Event,
        client: str,
        principal: str,
        observer: Observer,
    ) -> None:
        self._scheduler, self._deliveries, self._recipes, self._intake = scheduler, deliveries, recipes, intake
        self._window, self._deadline, self._draining = window, deadline, draining
        self._client, self._principal, self._observer = client, principal, observer
        self._frames: asyncio.Queue[_Pending | None] = asyncio.Queue()
        self._under_way = 0
        self._freed = asyncio.Event()
        # LATEST_FRAME: the newest frame that was taken, and the one that waits for a place.
        self._newest: _Pending | None = None
        self._parked: _Pending | None = None
        self._received = self._answered = self._dropped = 0
        self._dropped_sequences: list[int] = []
        self._info = RequestInfo()
        self._recipe: Recipe | None = None
        self._recipe_version = 0
        self._reference: DecodedImage | None = None
        self._early_verdict = self._latest = False
        self._priority = pb.PRIORITY_UNSPECIFIED
        self._regions: tuple[Region, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()

    async def responses(
        self, requests: AsyncIterator[pb.InspectStreamRequest]
    ) -> AsyncGenerator[pb.InspectStreamResponse, None]:
        """Raises an AuroraEdgeError for a session that cannot be opened or a message that is no frame."""
        messages = aiter(requests)
        opening = await anext(messages, None)
        if opening is None:
            return
        if opening.WhichOneof("content") != "session":
            raise InvalidRequestError(
                "The first message does not open a session.", field="session", remedy="Send a StreamSession first."
            )
        await self._open(opening.session)
        reader = asyncio.create_task(self._read(messages))
        reader.add_done_callback(lambda _: self._frames.put_nowait(None))
        try:
            yield self._response()
            while (pending := await self._frames.get()) is not None:
                partial = True
                while partial and (result := await pending.results.get()) is not None:
                    partial = result.is_partial
                    self._answered += not partial
                    yield self._response(pending.sequence, result)
                self._release()
            if self._dropped_sequences:
                yield self._response()
            await reader
        finally:
            reader.cancel()
            for task in self._tasks:
                task.cancel()

    def _response(self, sequence: int = 0, result: InspectionResult | None = None) -> pb.InspectStreamResponse:
        credits = self._window - self._under_way
        if self._latest and self._newest is not None and not self._newest.begun:
            credits = 0
        response = pb.InspectStreamResponse(
            sequence=sequence,
            result=None if result is None else convert.result_to_proto(result),
            status=pb.StreamStatus(
                credits=max(0, credits), received=self._received, answered=self._answered, dropped=self._dropped
            ),
            dropped_sequences=sorted(self._dropped_sequences),
        )
        self._dropped_sequences.clear()
        return response

    # --- in ----------------------------------------------------------------------------------------------------------

    async def _open(self, session: pb.StreamSession) -> None:
        self._info = convert.request_info_from_proto(session.info)
        if session.recipe_id:
            self._recipe = self._recipes.get(session.recipe_id, session.recipe_version)
            self._recipe_version = session.recipe_version
        self._regions = regions_from(session.regions, "session.regions")
        reference = self._intake.reference(session)
        if reference is not None:
            # Once for the session and not once a frame; in a thread, because a large one takes long.
            decoded = await asyncio.to_thread(decode_image, reference, self._intake.limits, "reference")
            self._reference = decoded.detached()
        self._early_verdict = session.early_verdict
        self._latest = session.policy == pb.STREAM_POLICY_LATEST_FRAME
        self._priority = session.priority

    async def _read(self, messages: AsyncIterator[pb.InspectStreamRequest]) -> None:
        draining = asyncio.create_task(self._draining.wait())
        try:
            while True:
                if not self._latest:
                    await self._place()
                message = await self._next(messages, draining)
                if message is None:
                    break
                if message.WhichOneof("content") != "frame":
                    raise InvalidRequestError(
                        "A message after the first is not a frame.", field="frame", remedy="Send a StreamFrame."
                    )
                self._received += 1
                self._take(_Pending(sequence=message.frame.sequence, request=message.frame.request))
            while self._parked is not None:
                await self._place()
        finally:
            draining.cancel()

    async def _place(self) -> None:
        """Returns when a frame may be taken."""
        while self._under_way >= self._window:
            self._freed.clear()
            await self._freed.wait()

    async def _next(
        self, messages: AsyncIterator[pb.InspectStreamRequest], draining: asyncio.Task[bool]
    ) -> pb.InspectStreamRequest | None:
        """The next message; None at the end of the stream."""
        reading = asyncio.ensure_future(anext(messages, None))
        await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            # gRPC offers no way to stop a read; it ends with the call, and nobody looks at what it brings.
            reading.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise ServerUnavailableError(
                "The server is shutting down; the frames sent so far have their results.",
                remedy="Open the session again in a moment.",
            )
        return reading.result()

    def _take(self, pending: _Pending) -> None:
        if self._latest:
            if self._newest is not None and not self._newest.begun:
                self._drop_newest()
            if self._under_way >= self._window:
                if self._parked is not None:
                    self._count_drop(self._parked)
                self._parked = pending
                return
            self._newest = pending
        self._start(pending)

    def _start(self, pending: _Pending) -> None:
        self._under_way += 1
        pending.task = asyncio.create_task(self._inspect(pending))
        self._tasks.add(pending.task)
        pending.task.add_done_callback(self._tasks.discard)
        self._frames.put_nowait(pending)

    def _drop_newest(self) -> None:
        pending, self._newest = self._newest, None
        assert pending is not None and pending.task is not None
        if pending.task.done():  # it failed before its turn, and has its result
            return
        pending.task.cancel()
        pending.results.put_nowait(None)
        self._count_drop(pending)

    def _count_drop(self, pending: _Pending) -> None:
        self._dropped += 1
        self._dropped_sequences.append(pending.sequence)
        self._observer.dropped("stale")

    def _release(self) -> None:
        self._under_way -= 1
        if self._parked is not None:
            self._newest, self._parked = self._parked, None
            self._start(self._newest)
        self._freed.set()

    # --- one frame ---------------------------------------------------------------------------------------------------

    async def _inspect(self, pending: _Pending) -> None:
        """Puts the result of one frame, whatever happens, into `pending`."""
        request, info = pending.request, self._info
        recipe = None if request.recipe_id else self._recipe
        try:
            info = self._with_defaults(convert.request_info_from_proto(request.info))
            recipe_id = request.recipe_id or (self._recipe.id if self._recipe else "")
            recipe = self._recipes.get(recipe_id, request.recipe_version)
            if request.prompt:
                raise InvalidRequestError(
                    "A session answers no prompts.", field="frame.request.prompt", remedy="Use Inspect for prompts."
                )
            order = await self._order(pending, recipe, info)
            result = (await self._deliveries.inspect(order)).result
        except AuroraEdgeError as error:
            result = await self._failure(in_request_terms(error), recipe, info, pending)
        except Exception:
            log.exception("A frame of a camera session failed unexpectedly.")
            result = await self._failure(unexpected(), recipe, info, pending)
        pending.results.put_nowait(result)

    async def _order(self, pending: _Pending, recipe: Recipe, info: RequestInfo) -> Order:
        request = pending.request
        job = job_from(request, recipe, self._intake)
        job = replace(
            job,
            request=info,
            reference=self._reference if job.reference is None else job.reference,
            regions=job.regions or self._regions,
        )
        size, number = request.ByteSize(), request.priority or self._priority
        work = pending.work = Work(
            job=job,
            size_bytes=size,
            deadline=self._deadline,
            client=self._client,
            priority=Priority(number) if number in Priority._value2member_map_ else Priority.NORMAL,
            kind=(recipe.id, size.bit_length(), len(job.regions)),
        )
        if self._early_verdict:
            announce_early(work, pending.results.put_nowait, self._deliveries)
        fingerprint = ""
        if info.request_id:
            fingerprint = await fingerprint_of(
                job.image, job.reference, recipe=[recipe.id], version=request.recipe_version or self._recipe_version,
                regions=job.regions, part=info.part_id,
            )  # fmt: skip
        return Order(
            work=work,
            principal=self._principal,
            info=info,
            fingerprint=fingerprint,
            image=job.image,
            reference=job.reference,
            image_name=job.image_name,
            recipe=recipe,
            arrived=pending.arrived,
            wait_for_room=True,
            in_band=True,
        )

    async def _failure(
        self, error: AuroraEdgeError, recipe: Recipe | None, info: RequestInfo, pending: _Pending
    ) -> InspectionResult:
        """The stored ERROR result of a frame that never came to its inspection."""
        # Not under its request id: the frame may be sent again, better.
        result = error_result(error, recipe, request=info, image_name=pending.request.image_name[:1024])
        try:
            return await self._deliveries.keep(
                result, None, pending.arrived, principal=self._principal, consumes_id=False
            )
        except AuroraEdgeError as unstored:
            log.warning("An ERROR result is not stored: %s", unstored.message)
            return result

    def _with_defaults(self, info: RequestInfo) -> RequestInfo:
        own = {name: value for name, value in info if value not in ("", None)}
        return self._info.model_copy(update=own)
