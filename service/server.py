"""The server's life: bind, load and warm the engine, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime

import grpc
import grpc.aio
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from auroraedge import __version__
from auroraedge._proto.inspection.v1 import service_pb2, service_pb2_grpc
from auroraedge.client.models import ServerInfo, ServerLimits
from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.images import ImageLimits
from auroraedge.inspection.recipe import Recipe
from auroraedge.runtime import Inspector
from service import STARTED_AT
from service.config import ServiceConfig
from service.recipes import RecipeBook
from service.scheduler import Scheduler
from service.servicer import InspectionServicer

log = logging.getLogger("auroraedge.service")

SERVICE_NAME = service_pb2.DESCRIPTOR.services_by_name["InspectionService"].full_name
# Frames are copied while they are received, so calls beyond the queue must be bounded too; health checks, streams and
# refused calls need places of their own.
_SPARE_CALLS = 64


def image_limits(config: ServiceConfig) -> ImageLimits:
    return ImageLimits(max_bytes=config.max_message_bytes, max_pixels=config.max_pixels)


def open_inspector(config: ServiceConfig) -> Inspector:
    return Inspector.open(config.engine, threads=config.threads, limits=image_limits(config))


def warm_up(inspector: Inspector, recipe: Recipe) -> None:
    """One inspection of a grey frame, so that the first real one finds every graph loaded and its memory allocated."""
    frame = np.full((256, 256, 3), 128, np.uint8)
    inspector.inspect(frame, recipe, reference=None if recipe.golden_reference == "none" else frame)


class InspectionServer:
    """The gRPC server of one process. `start`, then `drain`; both inside one event loop."""

    def __init__(
        self, config: ServiceConfig, *, make_inspector: Callable[[ServiceConfig], Inspector] = open_inspector
    ) -> None:
        """Raises RecipeError for a recipe file that cannot be used."""
        self._config, self._make_inspector = config, make_inspector
        self._recipes = RecipeBook(config.recipes)
        self._servicer = InspectionServicer(config, self._recipes, image_limits(config))
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_send_message_length", config.max_message_bytes),
                ("grpc.max_receive_message_length", config.max_message_bytes),
                # Otherwise a second server on the same port starts without a word and takes half the frames.
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=config.queue_frames + config.max_batch + _SPARE_CALLS,
        )
        self._inspector: Inspector | None = None
        self.scheduler: Scheduler | None = None
        self.draining = False
        self._info: ServerInfo | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return self._config.model_copy(update={"port": self.port}).address

    @property
    def ready_line(self) -> str:
        assert self._info is not None
        engine = f"engine {self._info.engine_sha256[:12]} ({self._info.target})"
        return (
            f"AuroraEdge is ready on {self.address}: model {self._info.model_id}, {engine}, "
            f"started in {self._info.start_seconds:.2f} s"
        )

    async def start(self) -> None:
        """Listens at once (health: NOT_SERVING), and serves once the engine is loaded and warm.

        Raises InvalidRequestError when the address cannot be bound, and EngineError from the engine.
        """
        service_pb2_grpc.add_InspectionServiceServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            self.port = self._server.add_insecure_port(self._config.address)
        except RuntimeError as error:
            raise InvalidRequestError(
                f"{self._config.address} cannot be bound.",
                field="--port",
                remedy="Stop the program that uses it, or choose another address; port 0 takes a free one.",
            ) from error
        await self._server.start()
        inspector = await asyncio.to_thread(self._make_inspector, self._config)
        self._inspector = inspector
        if self._recipes.all:
            await asyncio.to_thread(warm_up, inspector, self._recipes.all[0])
        self.scheduler = Scheduler(
            inspector,
            max_frames=self._config.queue_frames,
            max_bytes=self._config.queue_bytes,
            max_batch=self._config.max_batch,
        )
        self._info = self._describe(inspector)
        self._servicer.open_for_work(self.scheduler, self._info)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Refuses new calls, lets running ones finish within drain_seconds, and frees the engine."""
        deadline = time.monotonic() + self._config.drain_seconds
        self.draining = True
        await self._health.enter_graceful_shutdown()
        self._servicer.drain()
        await self._server.stop(self._config.drain_seconds)
        finished = True
        if self.scheduler is not None:
            finished = await self.scheduler.stop(max(0.1, deadline - time.monotonic()))
        if self._inspector is not None and finished:
            self._inspector.close()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)

    def _describe(self, inspector: Inspector) -> ServerInfo:
        engine, config = inspector.engine, self._config
        return ServerInfo(
            server_version=__version__,
            model_id=engine.model_id,
            engine_sha256=engine.engine_sha256,
            target=engine.target,
            precision=dict(engine.precision),
            ready_at=datetime.now(UTC),
            start_seconds=time.monotonic() - STARTED_AT,
            limits=ServerLimits(
                max_message_bytes=config.max_message_bytes,
                max_pixels=config.max_pixels,
                queue_frames=config.queue_frames,
                queue_bytes=config.queue_bytes,
                max_batch=config.max_batch,
                stream_window=config.stream_window,
                max_new_tokens=config.max_new_tokens,
            ),
        )


async def run_until_stopped(server: InspectionServer) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends the process as it would any other."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            print(server.ready_line, flush=True)
            await stopping
    finally:
        starting.cancel()
        stopping.cancel()
        await server.drain()
