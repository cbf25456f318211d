"""The RPC handlers: they check the request, submit the work and send the answer. No model work happens here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceServicer
from auroraedge.client import convert
from auroraedge.client.models import ServerInfo
from auroraedge.errors import AuroraEdgeError, InvalidRequestError, ServerUnavailableError, SharedMemoryError
from auroraedge.inspection.prompts import parse_prompt
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import InspectionResult, error_result
from service.config import ServiceConfig
from service.delivery import Deliveries, Order, fingerprint_of
from service.fairness import Priority
from service.frames import Intake
from service.jobs import ManyJob, Outcome, compares, job_from, many_to_proto
from service.observer import Observer
from service.principal import current_principal
from service.recipes import RecipeBook
from service.reporting import reports_errors, reports_stream_errors
from service.scheduler import Scheduler, Work
from service.session import CameraSession, announce_early
from service.shared_memory import SharedMemoryBroker

if TYPE_CHECKING:
    from auroraedge.runtime import Inspector

DEFAULT_NEW_TOKENS = 64


def _deadline(context: Any) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def client_of(context: Any) -> str:
    """Whose share of the engine a call takes: its principal's, or its connection's where nobody logs in."""
    name = current_principal().name
    return f"name:{name}" if name else f"peer:{context.peer()}"


def priority_of(number: int) -> Priority:
    """Normal where none is set, or one that this server does not know."""
    return Priority(number) if number in Priority._value2member_map_ else Priority.NORMAL


class InspectionServicer(InspectionServiceServicer):
    """Answers UNAVAILABLE until `open_for_work` is called."""

    def __init__(
        self, config: ServiceConfig, recipes: RecipeBook, intake: Intake, observer: Observer | None = None
    ) -> None:
        self._config, self._recipes, self._intake = config, recipes, intake
        self.observer = observer or Observer()
        self._scheduler: Scheduler | None = None
        self._deliveries: Deliveries | None = None
        self._info: Callable[[], ServerInfo] | None = None
        self._draining = asyncio.Event()
        self._streams = 0

    def open_for_work(self, scheduler: Scheduler, deliveries: Deliveries, info: Callable[[], ServerInfo]) -> None:
        self._scheduler, self._deliveries, self._info = scheduler, deliveries, info

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

    @property
    def deliveries(self) -> Deliveries:
        assert self.scheduler is not None and self._deliveries is not None
        return self._deliveries

    async def _order(self, request: pb.InspectRequest, context: Any) -> tuple[Order, Recipe]:
        """The checked order behind a request; its work does not know yet how to be done."""
        arrived = time.monotonic()
        recipe = self._recipes.get(request.recipe_id, request.recipe_version)
        job = job_from(request, recipe, self._intake)
        size = request.ByteSize()
        work = Work(
            job=job,
            size_bytes=size,
            deadline=_deadline(context),
            client=client_of(context),
            priority=priority_of(request.priority),
            kind=(recipe.id, size.bit_length(), len(job.regions)),
        )
        fingerprint = ""
        if job.request.request_id:
            fingerprint = await fingerprint_of(
                job.image, job.reference, recipe=[recipe.id], version=request.recipe_version, regions=job.regions,
                part=job.request.part_id,
            )  # fmt: skip
        order = Order(
            work=work,
            principal=current_principal().name,
            info=job.request,
            fingerprint=fingerprint,
            image=job.image,
            reference=job.reference,
            image_name=job.image_name,
            recipe=recipe,
            arrived=arrived,
        )
        return order, recipe

    @reports_errors
    async def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectResponse:
        scheduler = self.scheduler
        if not request.prompt:
            order, _ = await self._order(request, context)
            delivered = await self.deliveries.inspect(order)
            return pb.InspectResponse(result=convert.result_to_proto(delivered.unary()))
        recipe = self._recipes.get(request.recipe_id, request.recipe_version)
        job = job_from(request, recipe, self._intake)
        prompt = parse_prompt(request.prompt, recipe, reference=compares(job))

        def ask(inspector: Inspector, _: Work) -> Any:
            return inspector.ask(
                job.image, prompt, recipe, reference=job.reference, request=job.request, regions=job.regions
            )

        answer = await scheduler.run(self._work(request, context, call=ask, kind=(recipe.id, "ask", prompt.kind)))
        return pb.InspectResponse(answer=convert.answer_to_proto(answer))

    def _work(self, request: Any, context: Any, **more: Any) -> Work:
        return Work(
            size_bytes=request.ByteSize(),
            deadline=_deadline(context),
            client=client_of(context),
            priority=priority_of(request.priority),
            **more,
        )

    @reports_stream_errors
    async def InspectProgressive(
        self, request: pb.InspectProgressiveRequest, context: Any
    ) -> AsyncGenerator[pb.InspectProgressiveResponse, None]:
        assert self.scheduler is not None
        wanted = request.request
        if wanted.prompt:
            raise InvalidRequestError("A prompt has no early verdict.", field="request.prompt", remedy="Use Inspect.")
        order, _ = await self._order(wanted, context)
        results: asyncio.Queue[InspectionResult | None] = asyncio.Queue()
        announce_early(order.work, results.put_nowait, self.deliveries)
        running = asyncio.create_task(self.deliveries.inspect(order))
        running.add_done_callback(lambda _: results.put_nowait(None))
        try:
            while (early := await results.get()) is not None:
                yield pb.InspectProgressiveResponse(result=convert.result_to_proto(early))
            delivered = await running
            yield pb.InspectProgressiveResponse(result=convert.result_to_proto(delivered.unary()))
        finally:
            running.cancel()

    @reports_errors
    async def InspectMany(self, request: pb.InspectManyRequest, context: Any) -> pb.InspectManyResponse:
        scheduler, deliveries, arrived = self.scheduler, self.deliveries, time.monotonic()
        many = ManyJob(request, self._recipes, self._intake)
        fingerprints = await self._fingerprints(request, many)
        found = await self._found(many, fingerprints)
        if found is not None:
            return many_to_proto(found)
        kind = ("many", request.ByteSize().bit_length(), len(request.items))
        work = self._work(request, context, call=lambda inspector, _: many.run(inspector), kind=kind)
        outcomes: list[Outcome] = await scheduler.run(work)
        principal = current_principal().name

        async def kept(index: int, outcome: Outcome) -> Outcome:
            if not isinstance(outcome, InspectionResult):
                return outcome
            try:
                return await deliveries.keep(
                    outcome, work, arrived, principal=principal, fingerprint=fingerprints[index],
                    image=many.image, reference=many.reference,
                )  # fmt: skip
            except AuroraEdgeError as error:
                return error_result(error, request=outcome.request, image_name=outcome.image_name)

        # Together, so that one commit holds them all.
        return many_to_proto(list(await asyncio.gather(*(kept(i, outcome) for i, outcome in enumerate(outcomes)))))

    async def _fingerprints(self, request: pb.InspectManyRequest, many: ManyJob) -> list[str]:
        if not any(info.request_id for info in many.infos):
            return [""] * len(many.infos)
        return [
            await fingerprint_of(
                many.image, many.reference, recipe=[item.recipe_id, item.prompt], version=item.recipe_version,
                regions=item.regions or request.regions, part=info.part_id,
            )
            for item, info in zip(request.items, many.infos, strict=True)
        ]  # fmt: skip

    async def _found(self, many: ManyJob, fingerprints: list[str]) -> list[Outcome] | None:
        """The outcomes of a repeated request; None unless all of them are in the store."""
        recorder, principal = self.deliveries.recorder, current_principal().name
        found: list[Outcome] = []
        for info, fingerprint in zip(many.infos, fingerprints, strict=True):
            result = await recorder.find(principal, info.request_id, fingerprint)
            if result is None:
                return None
            found.append(result)
        return found

    @property
    def _memory(self) -> SharedMemoryBroker:
        if self._intake.memory is None:
            raise SharedMemoryError("This server lends no shared memory.")
        return self._intake.memory

    @reports_errors
    async def AcquireSharedMemory(
        self, request: pb.AcquireSharedMemoryRequest, context: Any
    ) -> pb.AcquireSharedMemoryResponse:
        memory = self._memory
        lease = await memory.acquire(request.slot_bytes, request.slots, owner=self._intake.owner, peer=context.peer())
        return pb.AcquireSharedMemoryResponse(
            lease_id=lease.id,
            socket_path=str(memory.socket_path),
            segment_bytes=lease.segment_bytes,
            data_offset=lease.data_offset,
            slot_bytes=lease.slot_bytes,
            slots=lease.slots,
            idle_seconds=memory.idle_s,
        )

    @reports_errors
    async def RenewSharedMemory(
        self, request: pb.RenewSharedMemoryRequest, context: Any
    ) -> pb.RenewSharedMemoryResponse:
        self._memory.renew(request.lease_id, owner=self._intake.owner)
        return pb.RenewSharedMemoryResponse(idle_seconds=self._memory.idle_s)

    @reports_errors
    async def ReleaseSharedMemory(
        self, request: pb.ReleaseSharedMemoryRequest, context: Any
    ) -> pb.ReleaseSharedMemoryResponse:
        self._memory.release(request.lease_id, owner=self._intake.owner)
        return pb.ReleaseSharedMemoryResponse()

    @reports_stream_errors
    async def InspectStream(
        self, requests: AsyncIterator[pb.InspectStreamRequest], context: Any
    ) -> AsyncGenerator[pb.InspectStreamResponse, None]:
        assert self.scheduler is not None
        session = CameraSession(
            self.scheduler,
            self.deliveries,
            self._recipes,
            self._intake,
            window=self._config.stream_window,
            deadline=_deadline(context),
            draining=self._draining,
            client=client_of(context),
            principal=current_principal().name,
            observer=self.observer,
        )
        self._count_streams(1)
        try:
            async with aclosing(session.responses(requests)) as responses:
                async for response in responses:
                    yield response
        finally:
            self._count_streams(-1)

    def _count_streams(self, change: int) -> None:
        self._streams += change
        self.observer.streams_changed(self._streams)

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
        job = job_from(request, recipe, self._intake)
        prompt = parse_prompt(request.prompt, recipe, reference=compares(job))
        tokens: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def steps(inspector: Inspector) -> Iterator[Any]:
            return inspector.generate(
                job.image,
                prompt,
                recipe,
                reference=job.reference,
                max_new_tokens=request.max_new_tokens or min(DEFAULT_NEW_TOKENS, limit),
            )

        def on_step(event: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(tokens.put_nowait, event)

        work = self._work(request, context, steps=steps, on_step=on_step, kind=(recipe.id, "generate"))
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
        return convert.server_info_to_proto(self._info())
