"""The inspection service on Ray Serve: the same servicer and login in every replica, behind Ray's gRPC proxies.

    python -m service.ray_serve --replicas 2 --port 50051 --config service.yaml     # see docs/scale-out.md

Ray's proxy takes the call and gives it to a replica; a replica that dies with a call makes it fail with INTERNAL, which
our clients take as "send it again". The request id and the one store that all replicas share keep that harmless.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
import grpc.aio

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1 import results_pb2, service_pb2_grpc
from auroraedge.errors import InvalidRequestError, MissingDependencyError
from auroraedge.serving.sources import load_settings
from service.config import ServiceConfig
from service.results_service import ResultsServicer
from service.security import Login
from service.server import InspectionServer

try:
    from ray import serve
    from ray.serve.config import gRPCOptions
except ImportError as error:
    raise MissingDependencyError(
        "Ray Serve is not installed.", remedy="Install it: pip install 'auroraedge[ray]'"
    ) from error

log = logging.getLogger("auroraedge.service")

APPLICATION = "auroraedge"
_PACKAGE = "auroraedge.inspection.v1"
# Ray's proxies learn from these which calls there are. AdminService is left out: a call would change one replica only.
SERVICES = tuple(
    f"auroraedge._proto.inspection.v1.service_pb2_grpc.add_{name}Servicer_to_server"
    for name in ("InspectionService", "ResultsService")
)


class _Collector:
    """What generated code takes for a server: keeps the handlers by method."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The older of the two ways in which generated code registers; the other one says the same."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


class _Context:
    """Ray's context with the rest of what our handlers use of gRPC's. Ray passes no deadline on: there is none here."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.aborted = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: Any) -> None:
        self._context.set_trailing_metadata(list(metadata))

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Ray has no way to send it."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        self._context.set_code(code)
        self._context.set_details(details)
        self._context.set_trailing_metadata(list(trailing_metadata))
        self.aborted = True
        raise grpc.aio.AbortError


async def _one(request: Any) -> AsyncIterator[Any]:
    yield request


class Replica:
    """One engine with its scheduler, in a process of its own. settings: the fields of ServiceConfig."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._config = ServiceConfig(**settings)
        self._ready: asyncio.Task[dict[str, Any]] | None = None
        self._server: InspectionServer | None = None

    async def _open(self) -> dict[str, Any]:
        server = self._server = InspectionServer(self._config)
        await server.open()
        collector = _Collector()
        service_pb2_grpc.add_InspectionServiceServicer_to_server(server.servicer, collector)
        service_pb2_grpc.add_ResultsServiceServicer_to_server(ResultsServicer(lambda: server.store), collector)
        login = Login(self._config, on_failure=server.operations.metrics.login_refused)

        self._interceptors = (login,)
        return collector.handlers

    async def _handler(self, method: str, context: _Context) -> Any:
        if self._ready is None:
            self._ready = asyncio.ensure_future(self._open())
        handler = (await asyncio.shield(self._ready))[method]
        details = SimpleNamespace(method=method, invocation_metadata=context.invocation_metadata())
        for interceptor in self._interceptors:
            inner = handler

            async def continuation(_: Any, inner: Any = inner) -> Any:
                return inner

            handler = await interceptor.intercept_service(continuation, details)
        return handler

    async def check_health(self) -> None:
        """Ray replaces a replica whose check fails. The first one waits until the engine is loaded and warm."""
        if self._ready is None:
            self._ready = asyncio.ensure_future(self._open())
        await asyncio.shield(self._ready)
        server = self._server
        if server is None or server.scheduler is None or not server.scheduler.alive:
            raise RuntimeError("the scheduler has ended")

    def pid(self) -> int:
        return os.getpid()

    async def _unary(self, method: str, request: Any, grpc_context: Any, empty: Any) -> Any:
        context = _Context(grpc_context)
        response = empty
        try:
            handler = await self._handler(f"/{_PACKAGE}.{method}", context)
            if handler.unary_unary is not None:
                response = await handler.unary_unary(request, context)
            else:  # a refusal, which needs no request
                async for _ in handler.stream_stream(_one(request), context):
                    pass
        except grpc.aio.AbortError:
            # Returned, not raised: of an exception Ray sends the code, but not the details behind it.
            return empty
        return response

    async def _stream(self, method: str, requests: Any, grpc_context: Any) -> AsyncIterator[Any]:
        """Yields the responses. Of an error Ray sends code and text; the google.rpc.Status is lost."""
        context = _Context(grpc_context)
        handler = await self._handler(f"/{_PACKAGE}.{method}", context)
        if handler.stream_stream is not None:
            source = requests if hasattr(requests, "__aiter__") else _one(requests)
            responses = handler.stream_stream(source, context)
        else:
            responses = handler.unary_stream(requests, context)
        async for response in responses:
            yield response

    # --- the calls, by the names that Ray looks for

    async def Inspect(self, request: pb.InspectRequest, grpc_context: Any) -> pb.InspectResponse:
        return await self._unary("InspectionService/Inspect", request, grpc_context, pb.InspectResponse())

    async def InspectMany(self, request: pb.InspectManyRequest, grpc_context: Any) -> pb.InspectManyResponse:
        return await self._unary("InspectionService/InspectMany", request, grpc_context, pb.InspectManyResponse())

    async def InspectProgressive(self, request: pb.InspectProgressiveRequest, grpc_context: Any) -> AsyncIterator[Any]:
        async for response in self._stream("InspectionService/InspectProgressive", request, grpc_context):
            yield response

    async def InspectStream(self, requests: Any, grpc_context: Any) -> AsyncIterator[Any]:
        async for response in self._stream("InspectionService/InspectStream", requests, grpc_context):
            yield response

    async def Generate(self, request: pb.GenerateRequest, grpc_context: Any) -> AsyncIterator[Any]:
        async for response in self._stream("InspectionService/Generate", request, grpc_context):
            yield response

    async def ListRecipes(self, request: pb.ListRecipesRequest, grpc_context: Any) -> pb.ListRecipesResponse:
        return await self._unary("InspectionService/ListRecipes", request, grpc_context, pb.ListRecipesResponse())

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, grpc_context: Any) -> pb.GetServerInfoResponse:
        return await self._unary("InspectionService/GetServerInfo", request, grpc_context, pb.GetServerInfoResponse())

    async def GetResult(self, request: Any, grpc_context: Any) -> Any:
        return await self._unary("ResultsService/GetResult", request, grpc_context, results_pb2.GetResultResponse())

    async def ListResults(self, request: Any, grpc_context: Any) -> Any:
        return await self._unary("ResultsService/ListResults", request, grpc_context, results_pb2.ListResultsResponse())

    async def GetImage(self, request: Any, grpc_context: Any) -> Any:
        return await self._unary("ResultsService/GetImage", request, grpc_context, results_pb2.GetImageResponse())


def application(config: ServiceConfig, *, replicas: int, cpus: float, gpus: float = 0.0) -> Any:
    """The Ray Serve application. cpus, gpus: what Ray reserves for one replica. Raises InvalidRequestError."""
    if replicas > 1 and config.store_address is None:
        raise InvalidRequestError(
            "Several replicas need one store.",
            field="store",
            remedy="Name a PostgreSQL database (or, for replicas on one host, an SQLite file): a repeated request is "
            "answered from it, whichever replica it comes to.",
        )
    # A lease of shared memory belongs to one process, and the next call may come to another.
    settings = config.model_dump(exclude_defaults=True) | {"shared_memory_mb": 0, "http_port": None}
    deployment = serve.deployment(
        Replica,
        name="Inspection",
        num_replicas=replicas,
        # The replica's own queue decides, and answers with RetryInfo; Ray's limit only keeps a flood from the replicas.
        max_ongoing_requests=config.queue_frames + config.max_batch + 16,
        max_queued_requests=4 * config.queue_frames,
        health_check_period_s=2,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=config.drain_seconds,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )
    return deployment.bind(settings)


def start(config: ServiceConfig, *, replicas: int = 2, cpus: float = 1.0, gpus: float = 0.0, http_port: int = 0) -> Any:
    """Deploys on the Ray cluster that this process is connected to and waits until every replica serves.

    The gRPC proxies listen on config.port of every node. Returns the deployment's handle.
    """
    app = application(config, replicas=replicas, cpus=cpus, gpus=gpus)
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": "127.0.0.1", "port": http_port or config.port + 1},
        grpc_options=gRPCOptions(port=config.port, grpc_servicer_functions=list(SERVICES)),
    )
    return serve.run(app, name=APPLICATION, route_prefix="/auroraedge")


def main() -> int:
    import ray

    parser = argparse.ArgumentParser(prog="python -m service.ray_serve", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config", type=Path, help="settings of the service in YAML; AURORAEDGE_* variables count, too"
    )
    parser.add_argument("--address", help="Ray cluster to join, e.g. auto; none: a cluster on this machine alone")
    parser.add_argument("--port", type=int, default=50051, help="gRPC port of the proxies (default: 50051)")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--cpus", type=float, default=1.0, help="CPUs of one replica")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of one replica; parts of one are allowed")
    options = parser.parse_args()
    config = load_settings({"port": options.port}, file=options.config)
    ray.init(address=options.address, include_dashboard=False)
    start(config.config, replicas=options.replicas, cpus=options.cpus, gpus=options.gpus)
    print(f"AuroraEdge is ready on port {options.port} of every node: {options.replicas} replicas", flush=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    if options.address is None:
        serve.shutdown()
        ray.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
