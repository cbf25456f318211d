"""One camera session (InspectStream): frames in, results out in the same order, bad frames reported in band."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.client import convert
from auroraedge.errors import AuroraEdgeError, InvalidRequestError, ServerUnavailableError
from auroraedge.inspection.images import DecodedImage, ImageLimits, decode_image
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import InspectionResult, RequestInfo, error_result
from auroraedge.runtime import InspectionJob
from service.jobs import in_request_terms, job_from, reference_of
from service.recipes import RecipeBook
from service.scheduler import Scheduler, Work, unexpected

if TYPE_CHECKING:
    from auroraedge.runtime import Inspector

log = logging.getLogger("auroraedge.service")


@dataclass(eq=False, kw_only=True)
class _Pending:
    """A frame on its way. Its results arrive in `results`; the one that is not partial is the last."""

    sequence: int
    results: asyncio.Queue[InspectionResult] = field(default_factory=asyncio.Queue)


class CameraSession:
    def __init__(
        self,
        scheduler: Scheduler,
        recipes: RecipeBook,
        limits: ImageLimits,
        *,
        window: int,
        deadline: float | None,
        draining: asyncio.Event,
    ) -> None:
        self._scheduler, self._recipes, self._limits = scheduler, recipes, limits
        self._deadline, self._draining = deadline, draining
        self._slots = asyncio.Semaphore(window)
        self._tasks: set[asyncio.Task[None]] = set()
        self._info = RequestInfo()
        self._recipe: Recipe | None = None
        self._reference: DecodedImage | None = None
        self._early_verdict = False

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
        frames: asyncio.Queue[_Pending | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(messages, frames))
        reader.add_done_callback(lambda _: frames.put_nowait(None))
        try:
            while (pending := await frames.get()) is not None:
                partial = True
                while partial:
                    result = await pending.results.get()
                    partial = result.is_partial
                    yield pb.InspectStreamResponse(sequence=pending.sequence, result=convert.result_to_proto(result))
                self._slots.release()
            await reader
        finally:
            reader.cancel()
            for task in self._tasks:
                task.cancel()

    async def _open(self, session: pb.StreamSession) -> None:
        self._info = convert.request_info_from_proto(session.info)
        if session.recipe_id:
            self._recipe = self._recipes.get(session.recipe_id, session.recipe_version)
        reference = reference_of(session, self._limits)
        if reference is not None:
            # Once for the session and not once a frame; in a thread, because a large one takes long.
            self._reference = await asyncio.to_thread(decode_image, reference, self._limits, "reference")
        self._early_verdict = session.early_verdict

    async def _read(
        self, messages: AsyncIterator[pb.InspectStreamRequest], frames: asyncio.Queue[_Pending | None]
    ) -> None:
        draining = asyncio.create_task(self._draining.wait())
        try:
            while True:
                await self._slots.acquire()
                message = await self._next(messages, draining)
                if message is None:
                    return
                if message.WhichOneof("content") != "frame":
                    raise InvalidRequestError(
                        "A message after the first is not a frame.", field="frame", remedy="Send a StreamFrame."
                    )
                pending = _Pending(sequence=message.frame.sequence)
                task = asyncio.create_task(self._inspect(message.frame.request, pending))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                frames.put_nowait(pending)
        finally:
            draining.cancel()

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

    async def _inspect(self, request: pb.InspectRequest, pending: _Pending) -> None:
        """Puts the result of one frame, whatever happens, into `pending`."""
        info = self._info
        recipe = None if request.recipe_id else self._recipe
        try:
            info = self._with_defaults(convert.request_info_from_proto(request.info))
            recipe_id = request.recipe_id or (self._recipe.id if self._recipe else "")
            recipe = self._recipes.get(recipe_id, request.recipe_version)
            if request.prompt:
                raise InvalidRequestError(
                    "A session answers no prompts.", field="frame.request.prompt", remedy="Use Inspect for prompts."
                )
            job = job_from(request, recipe, self._limits)
            job = replace(job, request=info, reference=self._reference if job.reference is None else job.reference)
            result = await self._scheduler.run(self._work(job, request.ByteSize(), pending), wait_for_room=True)
        except AuroraEdgeError as error:
            result = error_result(in_request_terms(error), recipe, request=info, image_name=request.image_name)
        except Exception:
            log.exception("A frame of a camera session failed unexpectedly.")
            result = error_result(unexpected(), recipe, request=info, image_name=request.image_name)
        pending.results.put_nowait(result)

    def _work(self, job: InspectionJob, size_bytes: int, pending: _Pending) -> Work:
        if not self._early_verdict:
            return Work(job=job, size_bytes=size_bytes, deadline=self._deadline)
        loop = asyncio.get_running_loop()

        def announce(early: InspectionResult) -> None:
            partial = early.model_copy(update={"is_partial": True})
            loop.call_soon_threadsafe(pending.results.put_nowait, partial)

        def inspect(inspector: Inspector, _: Work) -> InspectionResult:
            return inspector.inspect(
                job.image,
                job.recipe,
                reference=job.reference,
                request=job.request,
                image_name=job.image_name,
                on_verdict=announce,
            )

        return Work(call=inspect, size_bytes=size_bytes, deadline=self._deadline)

    def _with_defaults(self, info: RequestInfo) -> RequestInfo:
        own = {name: value for name, value in info if value not in ("", None)}
        return self._info.model_copy(update=own)
