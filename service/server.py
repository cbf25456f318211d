"""The server's life: bind, load and warm the engine, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from auroraedge import __version__
from auroraedge._proto.inference import open_inference_pb2, open_inference_pb2_grpc
from auroraedge._proto.inspection.v1 import service_pb2, service_pb2_grpc
from auroraedge.client.models import ServerInfo, ServerLimits, ServerStatus
from auroraedge.errors import AuroraEdgeError
from auroraedge.inspection.images import ImageLimits
from auroraedge.runtime import Inspector
from auroraedge.runtime.inspector import DEFAULT_ENGINE
from service import STARTED_AT
from service.admin_service import AdminServicer
from service.administration import Administration
from service.config import ServiceConfig
from service.delivery import Deliveries
from service.engines import Engines, warm_up
from service.frames import MAX_REGIONS, Intake
from service.jobs import MAX_ITEMS
from service.kserve import OpenInferenceServicer
from service.listening import bind, unlink_socket
from service.memory import settle
from service.observer import Counts, Observers
from service.operations import Operations
from service.recipes import RecipeBook
from service.recorder import Recorder
from service.results_service import ResultsServicer
from service.scheduler import Scheduler
from service.security import Login
from service.servicer import InspectionServicer
from service.shared_memory import SharedMemoryBroker
from service.wellformed import WellFormed

if TYPE_CHECKING:
    from auroraedge.store import Store

log = logging.getLogger("auroraedge.service")

KSERVE_NAME = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
MakeInspector = Callable[..., Inspector]
SERVICE_NAMES = tuple(service.full_name for service in service_pb2.DESCRIPTOR.services_by_name.values())
SERVICE_NAME = service_pb2.DESCRIPTOR.services_by_name["InspectionService"].full_name
# Python hands over between the worker and the event loop after so many seconds at the latest; its own 5 ms are too
# long for a refusal.
_SWITCH_S = 0.0005
# Frames are copied while they are received, so calls beyond the queue must be bounded too; health checks, streams and
# refused calls need places of their own.
_SPARE_CALLS = 64


def image_limits(config: ServiceConfig) -> ImageLimits:
    return ImageLimits(max_bytes=config.max_message_bytes, max_pixels=config.max_pixels)


def open_inspector(config: ServiceConfig, path: Path | None = None) -> Inspector:
    """`path`: another package than the settings name."""
    return Inspector.open(path or config.engine, threads=config.threads, limits=image_limits(config))


def _rss_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def engine_folders(config: ServiceConfig) -> list[Path]:
    """Where SwapEngine may find packages: the folders of the settings, and that of the embedded engine."""
    return [*config.engines, DEFAULT_ENGINE.parent]


def open_store(config: ServiceConfig) -> Store | None:
    """The result store of the settings. Raises StoreError: a server that cannot keep results does not start."""
    if config.store_address is None:
        return None
    from auroraedge.store import Store

    logging.getLogger("alembic").setLevel(logging.WARNING)
    return Store.open(config.store_address, images=config.store_images, busy_timeout_s=config.store_timeout_ms / 1000.0)


class InspectionServer:
    """The gRPC server of one process. `start`, then `drain`; both inside one event loop."""

    def __init__(self, config: ServiceConfig, *, make_inspector: MakeInspector = open_inspector) -> None:
        """Raises RecipeError for a recipe file that cannot be used, InvalidRequestError for a token file.

        make_inspector: opens the engine of the settings, or (with a path) another package.
        """
        self._config, self._make_inspector = config, make_inspector
        self._recipes = RecipeBook(config.recipes)
        self.shared_memory = (
            SharedMemoryBroker(
                config.shared_memory_bytes,
                config.shared_memory_bytes // 2,
                socket_path=config.shared_memory_socket,
                idle_s=config.shared_memory_idle_seconds,
            )
            if config.shared_memory_mb
            else None
        )
        self._intake = Intake(limits=image_limits(config), memory=self.shared_memory)
        self.counts = Counts()
        self.observer = Observers([self.counts])
        self._servicer = InspectionServicer(config, self._recipes, self._intake, self.observer)
        self._health = health.aio.HealthServicer()
        self.operations = Operations(
            config,
            alive=lambda: self.scheduler is None or self.scheduler.alive,
            ready=lambda: self._info is not None and not self.draining,
        )
        self.observer.add(self.operations.metrics)
        self.observer.add(self.operations.pulse)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_send_message_length", config.max_message_bytes),
                ("grpc.max_receive_message_length", config.max_message_bytes),
                # Otherwise a second server on the same port starts without a word and takes half the frames.
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=config.queue_frames + config.max_batch + _SPARE_CALLS,
            interceptors=[
                self.operations.interceptor,
                Login(config, on_failure=self.operations.metrics.login_refused),
                WellFormed(),
            ],
        )
        self.scheduler: Scheduler | None = None
        self.store: Store | None = None
        self._recorder: Recorder | None = None
        self._deliveries: Deliveries | None = None
        self.administration: Administration | None = None
        # Set when a client asks for the drain; the value is its time limit in seconds, None for the setting.
        self.drain_wanted: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self.draining = False
        self._info: ServerInfo | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """host:port, or unix:/path where there is no TCP."""
        if not self._config.tcp:
            return f"unix:{self._config.unix_socket}"
        return self._config.model_copy(update={"port": self.port}).address

    @property
    def servicer(self) -> InspectionServicer:
        """The handlers of InspectionService."""
        return self._servicer

    @property
    def info(self) -> ServerInfo:
        """Of a server that has started."""
        assert self._info is not None
        return self._info

    @property
    def ready_line(self) -> str:
        engine = f"engine {self.info.engine_sha256[:12]} ({self.info.target})"
        return (
            f"AuroraEdge is ready on {self.address}: model {self.info.model_id}, {engine}, "
            f"started in {self.info.start_seconds:.2f} s"
        )

    async def start(self) -> None:
        """Listens at once (health: NOT_SERVING), and serves once the engine is loaded and warm.

        Raises InvalidRequestError when the address cannot be bound, and EngineError from the engine.
        """
        service_pb2_grpc.add_InspectionServiceServicer_to_server(self._servicer, self._server)
        service_pb2_grpc.add_ResultsServiceServicer_to_server(ResultsServicer(lambda: self.store), self._server)
        service_pb2_grpc.add_AdminServiceServicer_to_server(
            AdminServicer(lambda: self.administration, self.status), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if self._config.kserve:
            adapter = OpenInferenceServicer(self._servicer, self._recipes, self.operations.ready)
            open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(adapter, self._server)
            names.append(KSERVE_NAME)
        if self._config.reflection:
            reflection.enable_server_reflection(names, self._server)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self.port, certificates = bind(self._server, self._config)
        if certificates is not None:
            self.operations.metrics.watch_certificate(lambda: certificates.expires_at.timestamp())
        await self.operations.start()
        if self.shared_memory is not None:
            await self.shared_memory.start()
        await self._server.start()
        await self.open()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self.operations.serving(self.info)

    async def open(self) -> None:
        """Opens store and engine and lets the servicer work; alone, for another transport (service/ray_serve.py).

        Raises StoreError and EngineError.
        """
        config = self._config
        store = self.store = await asyncio.to_thread(open_store, config)
        self._recipes.replace(await asyncio.to_thread(self._recipes.read, store))
        inspector = await asyncio.to_thread(self._make_inspector, config)
        await asyncio.to_thread(warm_up, inspector, self._recipes.all)
        if store is not None:
            await asyncio.to_thread(self._note_engine, store, inspector)
        scheduler = self.scheduler = Scheduler(
            inspector,
            max_frames=config.queue_frames,
            max_bytes=config.queue_bytes,
            max_batch=config.max_batch,
            max_batch_wait_s=config.max_batch_wait_ms / 1000.0,
            observer=self.observer,
        )
        self._recorder = Recorder(
            store, on_failure=config.store_failure, timeout_s=config.store_timeout_ms / 1000.0, observer=self.observer
        )
        await self._recorder.look_up()
        self._deliveries = Deliveries(scheduler, self._recorder, keep_images=config.keep_images, observer=self.observer)
        self.administration = Administration(
            scheduler=scheduler,
            recipes=self._recipes,
            engines=Engines(
                scheduler,
                open_engine=lambda path: self._make_inspector(config, path),
                recipes=lambda: self._recipes.all,
                store=store,
                on_change=self._use_engine,
            ),
            engine_folders=engine_folders(config),
            engine_path=config.engine,
            store=store,
            begin_drain=self._want_drain,
        )
        self._use_engine(inspector)
        self._servicer.open_for_work(scheduler, self._deliveries, lambda: self.info)

    def _note_engine(self, store: Store, inspector: Inspector) -> None:
        engine = inspector.engine
        store.record_engine(
            engine_sha256=engine.engine_sha256,
            model_id=engine.model_id,
            target=engine.target,
            who="service",
            why="start of the service",
            details={"precision": dict(engine.precision)},
        )

    def _use_engine(self, inspector: Inspector) -> None:
        self._info = self._describe(inspector)
        self.observer.engine_changed(self._info.model_id, self._info.engine_sha256, self._info.target)

    def _want_drain(self, timeout_s: float | None) -> None:
        if not self.drain_wanted.done():
            self.drain_wanted.set_result(timeout_s)

    async def reload(self) -> None:
        """Reads recipe folders and the engine's package again (SIGHUP). What fails is logged and changes nothing."""
        administration = self.administration
        if administration is None:
            return
        for name, change in (
            ("recipes", administration.reload_recipes(who="service", why="SIGHUP")),
            ("engine", administration.reload_engine(who="service", why="SIGHUP")),
        ):
            try:
                await change
            except AuroraEdgeError as error:
                log.error("The %s are as before: %s", name, error)

    async def status(self) -> ServerStatus:
        """What the server is doing, now."""
        counts, scheduler, recorder, memory = self.counts, self.scheduler, self._recorder, self.shared_memory
        state: Literal["starting", "serving", "draining"] = "starting" if scheduler is None else "serving"
        info = self._info
        return ServerStatus(
            state="draining" if self.draining else state,
            started_at=datetime.now(UTC) - timedelta(seconds=time.monotonic() - STARTED_AT),
            server_version=__version__,
            model_id=info.model_id if info else "",
            engine_sha256=info.engine_sha256 if info else "",
            queue_frames=scheduler.waiting if scheduler else 0,
            queue_bytes=scheduler.waiting_bytes if scheduler else 0,
            computing=scheduler.computing if scheduler else 0,
            streams=counts.streams,
            verdicts=dict(counts.verdicts),
            refused=dict(counts.refusals),
            dropped=counts.drops["stale"],
            replayed=counts.replays,
            store=recorder.state if recorder else "none",
            store_error=recorder.error if recorder else "",
            last_seq=recorder.last_seq if recorder else 0,
            shared_memory_leases=memory.leases if memory else 0,
            shared_memory_bytes=memory.leased_bytes if memory else 0,
            rss_bytes=_rss_bytes(),
        )

    async def drain(self, timeout_s: float | None = None) -> None:
        """Refuses new calls, lets running ones finish within `timeout_s` (None: drain_seconds), frees the engine."""
        timeout_s = self._config.drain_seconds if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        self.draining = True
        self.operations.stopping()
        await self._health.enter_graceful_shutdown()
        self._servicer.drain()
        await self._server.stop(timeout_s)
        unlink_socket(self._config)
        finished = True
        if self.scheduler is not None:
            finished = await self.scheduler.stop(max(0.1, deadline - time.monotonic()))
        if self._deliveries is not None and self._recorder is not None:
            # What was computed is stored, whether or not its client still listens.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._deliveries.finish(), max(1.0, deadline - time.monotonic()))
            finished = await self._recorder.close(max(1.0, deadline - time.monotonic())) and finished
        if self.shared_memory is not None:
            await self.shared_memory.stop()
        if self.scheduler is not None and finished:
            self.scheduler.inspector.close()
            if self.store is not None:
                self.store.close()
        await self.operations.stop()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", *SERVICE_NAMES, *((KSERVE_NAME,) if self._config.kserve else ())):
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
                max_regions=MAX_REGIONS,
                max_items=MAX_ITEMS,
                shared_memory_bytes=self.shared_memory.total_bytes if self.shared_memory else 0,
                shared_memory_client_bytes=self.shared_memory.client_bytes if self.shared_memory else 0,
            ),
        )


async def run_until_stopped(server: InspectionServer) -> None:
    """Serves until SIGTERM, SIGINT or AdminService.Drain, then drains; a second signal ends the process as it would any
    other. SIGHUP reads recipes and engine again."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()
    sys.setswitchinterval(_SWITCH_S)

    def on_signal(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        stop.set()

    def on_hangup() -> None:
        task = asyncio.create_task(server.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            settle()
            print(server.ready_line, flush=True)
            await asyncio.wait((stopping, server.drain_wanted), return_when=asyncio.FIRST_COMPLETED)
    finally:
        starting.cancel()
        stopping.cancel()
        for task in reloads:
            task.cancel()
        await server.drain(server.drain_wanted.result() if server.drain_wanted.done() else None)
