"""The RPC handlers: they check the request, submit the work and send the answer. No model work happens here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceServicer
from auroraedge.client import convert
from auroraedge.client.models import ServerInfo
from auroraedge.errors import InvalidRequestError, ServerUnavailableError
from auroraedge.inspection.images import ImageLimits
from auroraedge.inspection.prompts import parse_prompt
from service.config import ServiceConfig
from service.jobs import compares, job_from
from service.recipes import RecipeBook
from service.reporting import reports_errors, reports_stream_errors
from service.scheduler import Scheduler, Work
from service.session import CameraSession

if TYPE_CHECKING:
    from auroraedge.runtime import Inspector

DEFAULT_NEW_TOKENS = 64


def _deadline(context: Any) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


class InspectionServicer(InspectionServiceServicer):
    """Answers UNAVAILABLE until `open_for_work` is called."""

    def __init__(self, config: ServiceConfig, recipes: RecipeBook, limits: ImageLimits) -> None:
        self._config, self._recipes, self._limits = config, recipes, limits
        self._scheduler: Scheduler | None = None
        self._info: ServerInfo | None = None
        self._draining = asyncio.Event()

    def open_for_work(self, scheduler: Scheduler, info: ServerInfo) -> None:
        self._scheduler, self._info = scheduler, info

    def drain(self) -> None:
        """Ends camera sessions after the frames that they have sent."""
        self._draining.set()

    @property
    def scheduler(self) -> Scheduler:
        if self._scheduler is None:
            error = ServerUnavailableError("The server is warming up.", remedy="Retry in a moment.")
            error.retry_after_s = 0.5
            raise error
        return self._scheduler

    @reports_errors
    async def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectResponse:
        scheduler = self.scheduler
        recipe = self._recipes.get(request.recipe_id, request.recipe_version)
        job = job_from(request, recipe, self._limits)
        if not request.prompt:
            work = Work(job=job, size_bytes=request.ByteSize(), deadline=_deadline(context))
            return pb.InspectResponse(result=convert.result_to_proto(await scheduler.run(work)))
        prompt = parse_prompt(request.prompt, recipe, reference=compares(job))

        def ask(inspector: Inspector, _: Work) -> Any:
            return inspector.ask(job.image, prompt, recipe, reference=job.reference, request=job.request)

        work = Work(call=ask, size_bytes=request.ByteSize(), deadline=_deadline(context))
        answer = await scheduler.run(work)
        return pb.InspectResponse(answer=convert.answer_to_proto(answer))

    @reports_stream_errors
    async def InspectStream(
        self, requests: AsyncIterator[pb.InspectStreamRequest], context: Any
    ) -> AsyncGenerator[pb.InspectStreamResponse, None]:
        session = CameraSession(
            self.scheduler,
            self._recipes,
            self._limits,
            window=self._config.stream_window,
            deadline=_deadline(context),
            draining=self._draining,
        )
        async with aclosing(session.responses(requests)) as responses:
            async for response in responses:
                yield response

    @reports_stream_errors
    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncGenerator[pb.GenerateResponse, None]:
        scheduler = self.scheduler
        recipe = self._recipes.get(request.recipe_id, request.recipe_version)
        limit = self._config.max_new_tokens
        if request.max_new_tokens > limit:
            raise InvalidRequestError(
                f"{request.max_new_tokens} tokens are asked for; the limit is {limit}.",
                field="max_new_tokens",
                remedy="Ask for fewer.",
            )
        job = job_from(request, recipe, self._limits)
        prompt = parse_prompt(request.prompt, recipe, reference=compares(job))
        tokens: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def generate(inspector: Inspector, work: Work) -> None:
            events = inspector.generate(
                job.image,
                prompt,
                recipe,
                reference=job.reference,
                max_new_tokens=request.max_new_tokens or min(DEFAULT_NEW_TOKENS, limit),
            )
            for event in events:
                if work.cancelled or work.expired:
                    return
                loop.call_soon_threadsafe(tokens.put_nowait, event)

        work = Work(call=generate, size_bytes=request.ByteSize(), deadline=_deadline(context))
        running = asyncio.create_task(scheduler.run(work))
        running.add_done_callback(lambda _: tokens.put_nowait(None))
        try:
            while (event := await tokens.get()) is not None:
                yield convert.token_to_proto(event)
            await running
        finally:
            running.cancel()

    @reports_errors
    async def ListRecipes(self, request: pb.ListRecipesRequest, context: Any) -> pb.ListRecipesResponse:
        return pb.ListRecipesResponse(recipes=[convert.recipe_to_proto(recipe) for recipe in self._recipes.all])

    @reports_errors
    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        assert self.scheduler is not None and self._info is not None
        return convert.server_info_to_proto(self._info)
