"""Metrics, logs, traces, probes and the service manager of a running server."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from service_harness import RunningServer, StatisticsInspector, encoded, frame, running_server

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceStub
from auroraedge.errors import InvalidRequestError, MissingDependencyError
from auroraedge.inspection.results import InspectionResult, StageTimings, Verdict
from service.config import ServiceConfig
from service.logs import JsonFormatter, TextFormatter, begin_call, configure, note
from service.metrics import GpuCollector, Metrics
from service.systemd import notify, watchdog_interval_s
from service.tracing import Tracing

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "magnetic_tile"
INSPECT = "/auroraedge.inspection.v1.InspectionService/Inspect"


def request(**more: Any) -> pb.InspectRequest:
    info = pb.RequestInfo(request_id=more.pop("request_id", "r-1"))
    return pb.InspectRequest(
        **({"recipe_id": RECIPE, "frame": pb.Frame(encoded=encoded(frame())), "info": info} | more)
    )


@contextmanager
def stub(running: RunningServer) -> Iterator[InspectionServiceStub]:
    with grpc.insecure_channel(running.address) as channel:
        yield InspectionServiceStub(channel)


def url(running: RunningServer, path: str) -> str:
    return f"http://127.0.0.1:{running.server.operations.http.port}{path}"


def scrape(running: RunningServer) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = httpx.get(url(running, "/metrics")).text
    return samples(text)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[(name, tuple(sorted(labels.items())))]


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_calls_and_work_are_counted() -> None:
    with running_server(http_port=0) as running, stub(running) as client:
        before = scrape(running)
        assert value(before, "auroraedge_ready") == 1
        assert value(before, "auroraedge_results_total", verdict="NG", recipe="") == 0
        for _ in range(3):
            client.Inspect(request(), timeout=10)
        with pytest.raises(grpc.RpcError):
            client.Inspect(request(recipe_id="nothing"), timeout=10)
        found = scrape(running)
        assert value(found, "auroraedge_rpcs_total", method=INSPECT, code="OK") == 3
        assert value(found, "auroraedge_rpcs_total", method=INSPECT, code="NOT_FOUND") == 1
        assert value(found, "auroraedge_errors_total", reason="RECIPE_NOT_FOUND") == 1
        assert value(found, "auroraedge_rpc_seconds_count", method=INSPECT) == 4
        assert value(found, "auroraedge_rpcs_running", method=INSPECT) == 0
        assert value(found, "auroraedge_queue_limit_frames") == ServiceConfig().queue_frames
        assert value(found, "auroraedge_results_total", verdict="OK", recipe=RECIPE) == 3
        assert value(found, "auroraedge_inspection_seconds_count") == 3
        assert 1 <= value(found, "auroraedge_batch_frames_count") <= 3
        assert value(found, "auroraedge_batch_frames_sum") == 3
        assert value(found, "auroraedge_queue_frames") == value(found, "auroraedge_computing_frames") == 0
        assert value(found, "process_resident_memory_bytes") > 10e6
        assert value(found, "process_cpu_seconds_total") > 0
        build = next(dict(labels) for name, labels in found if name == "auroraedge_build_info")
        assert (build["model_id"], build["engine_sha256"], build["target"]) == ("statistics", "5" * 12, "test")


def test_an_observer_of_the_service_counts_verdicts_stages_and_the_store() -> None:
    metrics = Metrics()
    timings = StageTimings(decode_ms=2, vision_ms=30, total_ms=40, queue_ms=10, service_ms=55)
    metrics.finished(InspectionResult(verdict=Verdict.NG, recipe_id="pcb", timings=timings))
    metrics.replayed()
    metrics.dropped("stale")
    metrics.batch_done(4, 0.1)
    metrics.queue_changed(3, 1000, 4)
    metrics.committed(4, 0.005)
    metrics.store_failed("STORE_FULL")
    found = samples(generate_latest(metrics.registry).decode())
    assert value(found, "auroraedge_results_total", verdict="NG", recipe="pcb") == 1
    assert value(found, "auroraedge_stage_seconds_sum", stage="vision") == pytest.approx(0.03)
    assert value(found, "auroraedge_stage_seconds_count", stage="prefill") == 0
    assert value(found, "auroraedge_inspection_seconds_sum") == pytest.approx(0.055)
    assert value(found, "auroraedge_dropped_frames_total", why="stale") == 1
    assert value(found, "auroraedge_batch_frames_sum") == 4
    assert (value(found, "auroraedge_queue_frames"), value(found, "auroraedge_computing_frames")) == (3, 4)
    assert value(found, "auroraedge_stored_results_total") == 4
    assert value(found, "auroraedge_store_failures_total", reason="STORE_FULL") == 1


def test_unknown_methods_get_no_label_of_their_own() -> None:
    with running_server(http_port=0) as running, grpc.insecure_channel(running.address) as channel:
        for name in ("/a/b", "/c/d"):
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                channel.unary_unary(name)(b"", timeout=10)
        found = scrape(running)
        assert value(found, "auroraedge_rpcs_total", method="unknown", code="UNIMPLEMENTED") == 2
        assert not any(("method", "/a/b") in labels for _, labels in found)


def test_gpus_are_measured_as_far_as_they_can() -> None:
    def unsupported(handle: int) -> float:
        raise RuntimeError("not supported")

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=50 + handle),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=1e9, total=2e9),
        nvmlDeviceGetTemperature=lambda handle, kind: 60,
        nvmlDeviceGetPowerUsage=unsupported,
    )
    registry = CollectorRegistry()
    assert GpuCollector.register(registry, nvml)
    found = samples(generate_latest(registry).decode())
    assert value(found, "auroraedge_gpu_utilization_ratio", gpu="1") == 0.51
    assert value(found, "auroraedge_gpu_memory_used_bytes", gpu="0") == 1e9
    assert not any("power" in name for name, _ in found)


# --- HTTP ------------------------------------------------------------------------------------------------------------


def test_probes_follow_the_life_of_the_server() -> None:
    with running_server(http_port=0) as running:
        assert httpx.get(url(running, "/livez")).status_code == 200
        assert httpx.get(url(running, "/readyz")).status_code == 200
        running.server.draining = True
        assert httpx.get(url(running, "/readyz")).status_code == 503
        assert httpx.get(url(running, "/livez")).status_code == 200
        assert running.server.scheduler is not None
        running.run(running.server.scheduler.stop(5))
        assert httpx.get(url(running, "/livez")).status_code == 503, "nothing is computed any more"


def test_an_engine_that_hangs_is_seen() -> None:
    inspector = StatisticsInspector()
    with running_server(inspector, http_port=0, hang_seconds=1.0) as running, stub(running) as client:
        client.Inspect(request(), timeout=10)
        inspector.gate.clear()
        hung = client.Inspect.future(request(request_id="r-2"), timeout=30)
        deadline = time.monotonic() + 10
        while httpx.get(url(running, "/livez")).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert httpx.get(url(running, "/livez")).status_code == 503
        inspector.gate.set()
        assert hung.result().result.verdict == pb.VERDICT_OK
        assert httpx.get(url(running, "/livez")).status_code == 200


def test_health_is_told_for_each_service() -> None:
    with running_server() as running, grpc.insecure_channel(running.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        names = ["InspectionService", "ResultsService", "AdminService"]
        for name in ("", "inference.GRPCInferenceService", *(f"auroraedge.inspection.v1.{name}" for name in names)):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING, name


def test_http_answers_nothing_else() -> None:
    with running_server(http_port=0) as running:
        assert httpx.get(url(running, "/")).status_code == 404
        assert httpx.get(url(running, "/../../etc/passwd")).status_code == 404
        assert httpx.post(url(running, "/metrics")).status_code == 405
        head = httpx.head(url(running, "/metrics"))
        assert (head.status_code, head.text) == (200, "")
        openmetrics = httpx.get(
            url(running, "/metrics"), headers={"accept": "application/openmetrics-text; version=1.0.0"}
        )
        assert openmetrics.text.endswith("# EOF\n")
        port = running.server.operations.http.port
        with socket.create_connection(("127.0.0.1", port)) as endless:
            endless.settimeout(4)  # less than the time that a slow request has
            with suppress(ConnectionError):
                endless.sendall(b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 40_000)
            with suppress(ConnectionError):
                assert endless.recv(100) == b"", "a request without an end is not answered"
        assert httpx.get(url(running, "/livez")).status_code == 200
        with pytest.raises(InvalidRequestError, match="http-port"), running_server(http_port=port):
            pass


# --- logs ------------------------------------------------------------------------------------------------------------


def test_every_line_of_a_call_has_its_request_id(tmp_path: Path) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure("info", "json", stream)
        with running_server(log_format="json") as running, stub(running) as client:
            client.Inspect(request(request_id='a"\n{'), timeout=10)
            with pytest.raises(grpc.RpcError):
                client.Inspect(request(recipe_id="nothing"), timeout=10, metadata=(("x-request-id", "unused"),))
            client.GetServerInfo(pb.GetServerInfoRequest(), timeout=10, metadata=(("x-request-id", "from-header"),))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    access = [line for line in lines if line["logger"] == "auroraedge.access"]
    assert [line["request_id"] for line in access] == ['a"\n{', "r-1", "from-header"]
    assert [line["code"] for line in access] == ["OK", "NOT_FOUND", "OK"]
    assert access[0]["verdict"] == "OK" and access[0]["ms"] > 0 and access[0]["rpc"] == "Inspect"
    assert access[1]["reason"] == "RECIPE_NOT_FOUND"
    assert access[0]["peer"].startswith("ipv4:127.0.0.1")


def test_formats() -> None:
    async def line(formatter: logging.Formatter) -> str:
        begin_call(rpc="Inspect", request_id="r", principal="")
        note(reason="X")
        try:
            raise ValueError("why")
        except ValueError:
            record = logging.getLogger("a").makeRecord(
                "a", logging.ERROR, "f", 1, "failed %d", (7,), sys.exc_info(), extra={"login": "wrong"}
            )
        return formatter.format(record)

    shown = json.loads(asyncio.run(line(JsonFormatter())))
    assert (shown["message"], shown["level"], shown["request_id"], shown["reason"]) == ("failed 7", "error", "r", "X")
    assert shown["login"] == "wrong" and "ValueError: why" in shown["exception"] and "principal" not in shown
    text = asyncio.run(line(TextFormatter()))
    first, *rest = text.splitlines()
    assert 'failed 7 [rpc="Inspect" request_id="r" reason="X" login="wrong"]' in first
    assert rest[-1] == "ValueError: why"


# --- traces ----------------------------------------------------------------------------------------------------------

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_spans_continue_the_callers_trace_and_have_the_stages() -> None:
    exporter = InMemorySpanExporter()
    with running_server() as running:
        running.server.operations.interceptor._tracing = Tracing(exporter, ratio=0.0, at_once=True)
        with stub(running) as client:
            sampled = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
            client.Inspect(request(), timeout=10, metadata=sampled)
            with pytest.raises(grpc.RpcError):
                client.Inspect(request(recipe_id="nothing"), timeout=10, metadata=sampled)
            client.Inspect(request(), timeout=10, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-00"),))
            client.Inspect(request(), timeout=10)  # ratio 0
    spans = exporter.get_finished_spans()
    calls = [span for span in spans if span.name.endswith("/Inspect")]
    assert len(calls) == 2, "only the calls whose caller decided to trace"
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    assert all(f"{span.parent.span_id:016x}" == PARENT for span in calls)
    good, bad = calls
    assert good.attributes["rpc.grpc.status_code"] == 0 and good.attributes["auroraedge.request_id"] == "r-1"
    assert bad.status.status_code is StatusCode.ERROR
    assert bad.attributes["auroraedge.reason"] == "RECIPE_NOT_FOUND"
    inspection = next(span for span in spans if span.name == "inspection")
    assert inspection.parent.span_id == good.context.span_id
    assert inspection.attributes["auroraedge.verdict"] == "OK"


def test_stages_lie_inside_the_inspection() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, at_once=True)
    call = tracing.begin(INSPECT, ())
    timings = pb.StageTimings(queue_ms=5, decode_ms=1, vision_ms=20, store_ms=4, total_ms=25, service_ms=40)
    tracing.result(call, pb.InspectionResult(verdict=pb.VERDICT_NG, timings=timings))
    tracing.result(call, pb.InspectionResult(verdict=pb.VERDICT_NG, is_partial=True))
    tracing.end(call, 0, {})
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"queue", "decode", "vision", "store", "inspection", INSPECT[1:]}
    whole = spans["inspection"]
    assert (whole.end_time - whole.start_time) == 40_000_000
    for name, milliseconds in {"queue": 5, "decode": 1, "vision": 20, "store": 4}.items():
        span = spans[name]
        assert span.end_time - span.start_time == milliseconds * 1_000_000
        assert whole.start_time <= span.start_time <= span.end_time <= whole.end_time
        assert span.parent.span_id == whole.context.span_id
    assert spans["store"].end_time == whole.end_time


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_traces_arrive_at_a_collector() -> None:
    collector = Collector()
    receiver = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    try:
        with running_server(otlp_endpoint=f"http://127.0.0.1:{port}") as running, stub(running) as client:
            client.Inspect(request(), timeout=10)
        # Draining sends what is left.
        resources = [resource for message in collector.requests for resource in message.resource_spans]
        names = [span.name for r in resources for scope in r.scope_spans for span in scope.spans]
        assert "inspection" in names and INSPECT[1:] in names
        attributes = {pair.key: pair.value.string_value for pair in resources[0].resource.attributes}
        assert attributes["service.name"] == "auroraedge"
    finally:
        receiver.stop(0)


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(MissingDependencyError, match="telemetry"):
        Tracing.to_collector("http://127.0.0.1:1", 1.0)


# --- the service manager ---------------------------------------------------------------------------------------------


def test_systemd_hears_ready_alive_and_stopping(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(30)
        environment = os.environ | {
            "NOTIFY_SOCKET": str(path),
            "WATCHDOG_USEC": "200000",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, str(ROOT / "tests/e2e/service_harness.py"), "0", "--port", "0"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server:
            heard: list[str] = []
            while heard.count("WATCHDOG=1") < 3 or not any(line.startswith("READY=1") for line in heard):
                heard.append(manager.recv(4096).decode())
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
            manager.setblocking(False)
            rest = []
            while True:
                try:
                    rest.append(manager.recv(4096).decode())
                except BlockingIOError:
                    break
    ready = next(line for line in heard if line.startswith("READY=1"))
    assert re.search(r"STATUS=Serving statistics, engine 5{12}", ready)
    assert any(line.startswith("STOPPING=1") for line in rest)


def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    assert not notify("READY=1")
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    assert watchdog_interval_s() == 5.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None


def test_a_dead_worker_starves_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    from service import systemd

    sent: list[str] = []
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setattr(systemd, "notify", lambda *lines: sent.extend(lines))
    started = time.monotonic()

    async def run() -> None:
        task = asyncio.create_task(systemd.feed_watchdog(lambda: time.monotonic() - started < 0.05))
        await asyncio.sleep(0.2)
        task.cancel()

    asyncio.run(run())
    assert 3 <= len(sent) <= 7
