"""What the server counts and measures, for Prometheus. docs/operations.md lists the metrics."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from auroraedge import __version__
from auroraedge.inspection.results import InspectionResult
from service.observer import Drop, Observer

log = logging.getLogger("auroraedge.service")

# Seconds. A frame takes 5 ms to a second; a queue or a slow disk takes it up to 10.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_FRAMES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STAGES = ("queue", "decode", "preprocess", "vision", "prefill", "generate", "store")


class Metrics(Observer):
    """The metrics of one server; each server of a process has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GpuCollector.register(self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"auroraedge_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"auroraedge_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str, buckets: Any = _SECONDS) -> Histogram:
            return Histogram(f"auroraedge_{name}", text, labels, buckets=buckets, registry=self.registry)

        self._build = gauge("build_info", "1; what is running.", "version", "model_id", "engine_sha256", "target")
        self._ready = gauge("ready", "1 while the server takes work.")
        self._started = gauge("start_time_seconds", "Unix time at which the server became ready.")
        self._certificate = gauge(
            "tls_certificate_expiry_timestamp_seconds", "Unix time at which the server's certificate expires."
        )
        self._calls = counter("rpcs", "Calls that ended, by method and gRPC code.", "method", "code")
        self._call_seconds = histogram("rpc_seconds", "Duration of unary calls.", "method")
        self._running = gauge("rpcs_running", "Calls that are being handled.", "method")
        self._errors = counter("errors", "Calls that failed, by the reason of their ErrorInfo.", "reason")
        self._verdicts = counter("results", "Complete results, by verdict and recipe.", "verdict", "recipe")
        self._result_errors = counter("result_errors", "Results with verdict ERROR, by reason.", "reason")
        self._stages = histogram("stage_seconds", "Duration of one stage of one inspection.", "stage")
        self._inspection_seconds = histogram(
            "inspection_seconds", "One inspection from the arrival of the request until its answer was ready."
        )
        self._replayed = counter("replayed_results", "Answers given again to a repeated request id.")
        self._dropped = counter(
            "dropped_frames", "Frames that left the queue without a result: stale, expired or cancelled.", "why"
        )
        self._batch_seconds = histogram("batch_seconds", "Time that the engine took for one batch.")
        self._batch = histogram("batch_frames", "Frames that one batch took.", buckets=_FRAMES)
        self._queue = gauge("queue_frames", "Frames that wait.")
        self._queue_bytes = gauge("queue_bytes", "Bytes of the frames that wait.")
        self._computing = gauge("computing_frames", "Frames in the engine.")
        self._streams = gauge("streams", "Camera sessions that are open.")
        self._queue_limit = gauge("queue_limit_frames", "Frames that may wait.")
        self._stored = counter("stored_results", "Results that were committed to the store.")
        self._commits = histogram("store_commit_seconds", "Time of one commit of a group of results to the store.")
        self._store_failures = counter("store_failures", "Commits to the store that failed, by reason.", "reason")
        self._logins = counter("refused_logins", "Calls refused for their token or scope, by reason.", "reason")
        # A label value that never came yet is 0 and not absent: rate() and alerts need that.
        for verdict in ("OK", "NG", "REVIEW", "ERROR"):
            self._verdicts.labels(verdict, "")
        for stage in STAGES:
            self._stages.labels(stage)
        for why in ("stale", "expired", "cancelled"):
            self._dropped.labels(why)

    # --- the server's life -------------------------------------------------------------------------------------------

    def set_ready(self, ready: bool) -> None:
        self._ready.set(int(ready))
        if ready:
            self._started.set(time.time())

    def set_queue_limit(self, frames: int) -> None:
        self._queue_limit.set(frames)

    def watch_certificate(self, expires_at: Callable[[], float]) -> None:
        self._certificate.set_function(expires_at)

    # --- calls -------------------------------------------------------------------------------------------------------

    def call_began(self, method: str) -> None:
        self._running.labels(method).inc()

    def call_ended(self, method: str, code: str, seconds: float, *, reason: str = "", streaming: bool = False) -> None:
        self._running.labels(method).dec()
        self._calls.labels(method, code).inc()
        if not streaming:
            self._call_seconds.labels(method).observe(seconds)
        if code != "OK":
            self._errors.labels(reason or code).inc()

    def login_refused(self, reason: str) -> None:
        self._logins.labels(reason).inc()

    # --- work: the methods of service.observer.Observer -------------------------------------------------------------

    def queue_changed(self, frames: int, size_bytes: int, computing: int) -> None:
        self._queue.set(frames)
        self._queue_bytes.set(size_bytes)
        self._computing.set(computing)

    def batch_done(self, frames: int, seconds: float) -> None:
        self._batch.observe(frames)
        self._batch_seconds.observe(seconds)

    def refused(self, reason: str) -> None:
        """Counted where the call ends."""

    def dropped(self, why: Drop) -> None:
        self._dropped.labels(why).inc()

    def finished(self, result: InspectionResult) -> None:
        self._verdicts.labels(result.verdict.value, result.recipe_id).inc()
        if result.error is not None:
            self._result_errors.labels(result.error.reason).inc()
        timings = result.timings
        for stage in STAGES:
            if milliseconds := getattr(timings, f"{stage}_ms"):
                self._stages.labels(stage).observe(milliseconds / 1000)
        self._inspection_seconds.observe((timings.service_ms or timings.queue_ms + timings.total_ms) / 1000)

    def replayed(self) -> None:
        self._replayed.inc()

    def committed(self, results: int, seconds: float) -> None:
        self._stored.inc(results)
        self._commits.observe(seconds)

    def store_failed(self, reason: str) -> None:
        self._store_failures.labels(reason).inc()

    def streams_changed(self, streams: int) -> None:
        self._streams.set(streams)

    def engine_changed(self, model_id: str, engine_sha256: str, target: str) -> None:
        self._build.clear()
        self._build.labels(__version__, model_id, engine_sha256[:12], target).set(1)


class GpuCollector(Collector):
    """Load, memory, temperature and power of the NVIDIA GPUs that NVML knows."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]

    @classmethod
    def register(cls, registry: CollectorRegistry, nvml: Any = None) -> bool:
        """Registers it where the extra `nvml` and a driver are there; says whether they are."""
        try:
            nvml = nvml or importlib.import_module("pynvml")
            nvml.nvmlInit()
            collector = cls(nvml)
        except Exception as error:  # no package, no driver, no permission: there is nothing to measure
            log.debug("No GPU metrics: %s", error)
            return False
        registry.register(collector)
        return True

    def collect(self) -> Iterator[GaugeMetricFamily]:
        nvml = self._nvml
        readings: dict[str, tuple[str, Callable[[Any], float]]] = {
            "utilization_ratio": (
                "Share of the time in which the GPU worked.",
                lambda handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            ),
            "memory_used_bytes": ("Memory in use.", lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            "memory_total_bytes": ("Memory.", lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).total),
            "temperature_celsius": ("Temperature.", lambda handle: nvml.nvmlDeviceGetTemperature(handle, 0)),
            "power_watts": ("Power drawn.", lambda handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        }
        for name, (text, read) in readings.items():
            family = GaugeMetricFamily(f"auroraedge_gpu_{name}", text, labels=["gpu"])
            for index, handle in enumerate(self._handles):
                try:
                    family.add_metric([str(index)], float(read(handle)))
                except Exception:  # not every GPU measures everything (Jetson: no power, no utilisation)
                    continue
            if family.samples:
                yield family
