"""OpenTelemetry traces: a span for each call, in the trace of the caller, and one for each stage of each inspection.

Off unless otlp_endpoint is set; needs the extra `telemetry` then.
"""

from __future__ import annotations

import time
from typing import Any

from auroraedge import __version__
from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from auroraedge.errors import MissingDependencyError
from service.metrics import STAGES

_NS_PER_MS = 1_000_000


class Tracing:
    def __init__(self, exporter: Any, ratio: float = 1.0, *, at_once: bool = False) -> None:
        """Spans go to `exporter`: in batches, or one by one (`at_once`, for tests).

        ratio: share of the calls that are traced where the caller's traceparent has not decided already.
        """
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "auroraedge", "service.version": __version__})
        self._provider = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False
        )
        self._provider.add_span_processor((SimpleSpanProcessor if at_once else BatchSpanProcessor)(exporter))
        self._tracer = self._provider.get_tracer("auroraedge.service", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_collector(cls, endpoint: str, ratio: float) -> Tracing:
        """Spans go to an OTLP/gRPC collector. Raises MissingDependencyError without the extra `telemetry`."""
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise MissingDependencyError(
                "Traces need OpenTelemetry, which is not installed.",
                field="otlp_endpoint",
                remedy="Install it: pip install 'auroraedge[telemetry]'",
            ) from error
        return cls(OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=5), ratio)

    def begin(self, method: str, metadata: Any) -> Any:
        """The span of a call, inside the trace that its metadata names (W3C traceparent)."""
        from opentelemetry.trace import SpanKind

        carrier = {key: value for key, value in metadata or () if key in ("traceparent", "tracestate")}
        service, _, name = method.lstrip("/").partition("/")
        return self._tracer.start_span(
            method.lstrip("/"),
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        )

    def result(self, call: Any, result: pb.InspectionResult) -> None:
        """The span of one inspection and of its stages, below the span of its call.

        The stages are laid end to end, because the result has their durations and not their beginnings.
        """
        if result.is_partial or not call.is_recording():
            return
        from opentelemetry.trace import set_span_in_context

        timings = result.timings
        stages = {stage: round(getattr(timings, f"{stage}_ms") * _NS_PER_MS) for stage in STAGES}
        stages = {stage: duration for stage, duration in stages.items() if duration > 0}
        whole = max(
            sum(stages.values()),
            round((timings.service_ms or timings.queue_ms + timings.total_ms + timings.store_ms) * _NS_PER_MS),
        )
        end = time.time_ns()
        span = self._tracer.start_span(
            "inspection",
            context=set_span_in_context(call),
            start_time=end - whole,
            attributes={
                "auroraedge.request_id": result.request.request_id,
                "auroraedge.part_id": result.request.part_id,
                "auroraedge.result_id": result.result_id,
                "auroraedge.recipe": result.recipe_id,
                "auroraedge.verdict": pb.Verdict.Name(result.verdict).removeprefix("VERDICT_"),
                "auroraedge.engine": result.engine_sha256[:12],
            },
        )
        at = end - whole
        inside = set_span_in_context(span)
        for stage, duration in stages.items():
            # The commit is the last thing that happens; what is between is the service's own work.
            start = end - duration if stage == "store" else at
            self._tracer.start_span(stage, context=inside, start_time=start).end(start + duration)
            at = start + duration
        span.end(end)

    def end(self, span: Any, code: int, facts: dict[str, Any]) -> None:
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("rpc.grpc.status_code", code)
        for name in ("request_id", "principal", "reason"):
            if name in facts:
                span.set_attribute(f"auroraedge.{name}", facts[name])
        if code != 0:
            span.set_status(Status(StatusCode.ERROR, str(facts.get("reason", ""))))
        span.end()

    def shut_down(self) -> None:
        """Sends what is left; at most a few seconds."""
        self._provider.force_flush(3000)
        self._provider.shutdown()


def trace_id(span: Any) -> str:
    """The trace's id in hexadecimal, to find the trace of a log line."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""
