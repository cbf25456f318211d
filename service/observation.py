"""The outermost interceptor: measures, traces and logs every call, those that are refused too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio

from auroraedge._proto.inspection.v1 import inspection_pb2 as pb
from service.logs import begin_call
from service.metrics import Metrics
from service.principal import current_principal
from service.tracing import Tracing, trace_id
from service.wrapping import Around, wrapped

log = logging.getLogger("auroraedge.access")

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
# Asked every few seconds by machines; a line for each would bury the others.
_QUIET = ("/grpc.health.", "/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady")


_see: ContextVar[Callable[[Any], None] | None] = ContextVar("see", default=None)


def seen(response: Any) -> None:
    """Shows a response of ours that is sent in the terms of another protocol."""
    see = _see.get()
    if see is not None:
        see(response)


def results_in(response: Any) -> Iterator[pb.InspectionResult]:
    """The inspection results that a response carries."""
    if isinstance(response, pb.InspectManyResponse):
        for outcome in response.outcomes:
            if outcome.HasField("result"):
                yield outcome.result
    elif isinstance(
        response, pb.InspectResponse | pb.InspectProgressiveResponse | pb.InspectStreamResponse
    ) and response.HasField("result"):
        yield response.result


def _request_id(request: Any, metadata: Any) -> str:
    """The client's id: info.request_id of our messages, id of an Open Inference request, or x-request-id."""
    inner = getattr(request, "request", request)
    found = getattr(getattr(inner, "info", None), "request_id", "") or getattr(inner, "id", "")
    return str(found or next((value for key, value in metadata or () if key == "x-request-id"), ""))[:256]


class Observation(grpc.aio.ServerInterceptor):
    def __init__(self, metrics: Metrics, tracing: Tracing | None = None, *, log_every_call: bool = False) -> None:
        """`log_every_call`: otherwise calls that succeed are logged at debug level only."""
        self._metrics, self._tracing = metrics, tracing
        self._level = logging.INFO if log_every_call else logging.DEBUG

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            # No label for names that anybody may invent.
            self._metrics.call_began("unknown")
            self._metrics.call_ended("unknown", "UNIMPLEMENTED", 0.0)
            return None
        details = handler_call_details
        return wrapped(handler, self._around(details.method, details.invocation_metadata, handler))

    def _around(self, method: str, metadata: Any, handler: Any) -> Around:
        streaming = handler.request_streaming or handler.response_streaming

        @asynccontextmanager
        async def observed(context: Any, request: Any) -> AsyncIterator[Callable[[Any], None]]:
            started = time.perf_counter()
            tracing = self._tracing
            span = None if tracing is None else tracing.begin(method, metadata)
            facts = begin_call(
                rpc=method.rpartition("/")[2],
                request_id=_request_id(request, metadata),
                peer=context.peer(),
                trace_id="" if span is None else trace_id(span),
            )
            self._metrics.call_began(method)

            def see(response: Any) -> None:
                for result in results_in(response):
                    if tracing is not None:
                        tracing.result(span, result)
                    if not streaming and result.verdict:
                        facts["verdict"] = pb.Verdict.Name(result.verdict).removeprefix("VERDICT_")

            _see.set(see)
            code = "OK"
            try:
                yield see
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            except BaseException:
                code = "INTERNAL"
                raise
            finally:
                number = context.code()
                if number:
                    number = number.value[0] if isinstance(number, grpc.StatusCode) else number
                    code = _CODES.get(number, "UNKNOWN")
                seconds = time.perf_counter() - started
                principal = current_principal().name
                if principal:
                    facts["principal"] = principal
                self._metrics.call_ended(method, code, seconds, reason=facts.get("reason", ""), streaming=streaming)
                if tracing is not None:
                    tracing.end(span, grpc.StatusCode[code].value[0], facts)
                quiet = method.startswith(_QUIET)
                level = logging.DEBUG if quiet else self._level if code == "OK" else logging.INFO
                log.log(level, "%s %s", method, code, extra={"code": code, "ms": round(seconds * 1000, 3)})

        return observed
