"""What watches the server: metrics, traces, HTTP endpoints, the service manager. One object for the server to hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from auroraedge.client.models import ServerInfo
from auroraedge.serving.settings import ServiceConfig
from service.http_endpoints import HttpEndpoints
from service.metrics import Metrics
from service.observation import Observation
from service.observer import Observer
from service.systemd import feed_watchdog, notify
from service.tracing import Tracing


class Pulse(Observer):
    """Notices an engine that hangs: a batch that has been in it for too long."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._since: float | None = None

    def queue_changed(self, frames: int, size_bytes: int, computing: int) -> None:
        if not computing:
            self._since = None
        elif self._since is None:
            self._since = self._clock()

    def batch_done(self, frames: int, seconds: float) -> None:
        self._since = None

    @property
    def beats(self) -> bool:
        since = self._since
        return since is None or self._clock() - since < self._limit_s


class Operations:
    def __init__(
        self,
        config: ServiceConfig,
        *,
        alive: Callable[[], bool],
        ready: Callable[[], bool],
        tracing: Tracing | None = None,
    ) -> None:
        """`alive`: the server can still work at all; `ready`: it takes work. Raises MissingDependencyError."""
        self._config, self.ready = config, ready
        self.pulse = Pulse(config.hang_seconds)
        self._alive = lambda: alive() and self.pulse.beats
        self.metrics = Metrics()
        if tracing is None and config.otlp_endpoint is not None:
            tracing = Tracing.to_collector(config.otlp_endpoint, config.trace_ratio)
        self.tracing = tracing
        self.interceptor = Observation(self.metrics, tracing, log_every_call=config.log_format == "json")
        self.http = HttpEndpoints(self.metrics, alive=self._alive, ready=ready)
        self._watchdog: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Before the engine is loaded: /livez answers and the watchdog is fed while that takes its time."""
        if self._config.http_port is not None:
            await self.http.start(self._config.http_host, self._config.http_port)
        self._watchdog = asyncio.create_task(feed_watchdog(self._alive))

    def serving(self, info: ServerInfo) -> None:
        self.metrics.engine_changed(info.model_id, info.engine_sha256, info.target)
        self.metrics.set_queue_limit(info.limits.queue_frames)
        self.metrics.set_ready(True)
        notify("READY=1", f"STATUS=Serving {info.model_id}, engine {info.engine_sha256[:12]}")

    def stopping(self) -> None:
        self.metrics.set_ready(False)
        notify("STOPPING=1", "STATUS=Finishing what it has")

    async def stop(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        await self.http.stop()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.shut_down)
