"""Bytes that are no message get INVALID_ARGUMENT with the reason, and no traceback in the log for each of them.

gRPC's own answer would be UNKNOWN, as for a fault of ours.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from auroraedge.errors import InvalidRequestError
from service.reporting import abort_with
from service.wrapping import behaviour


class _Malformed:
    """Stands for a message that could not be read."""


def _error() -> InvalidRequestError:
    return InvalidRequestError(
        "The request is not a message of this method.",
        remedy="Send protobuf of the server's version of auroraedge/inspection/v1; GetServerInfo says which that is.",
    )


def _tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except (DecodeError, ValueError, RecursionError):
            return _Malformed()

    return deserialize


async def _well_formed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, _Malformed):
            raise _error()
        yield request


class WellFormed(grpc.aio.ServerInterceptor):
    """The innermost interceptor: the others see the same request as before, or one without any field."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        inner = behaviour(handler)
        streams = handler.request_streaming

        if inspect.isasyncgenfunction(inner):

            async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
                if isinstance(request, _Malformed):
                    await abort_with(context, _error())
                async with aclosing(inner(_well_formed(request) if streams else request, context)) as responses:
                    async for response in responses:
                        yield response

            return self._replaced(handler, streaming)

        async def single(request: Any, context: Any) -> Any:
            if isinstance(request, _Malformed):
                await abort_with(context, _error())
            return await inner(_well_formed(request) if streams else request, context)

        return self._replaced(handler, single)

    @staticmethod
    def _replaced(handler: Any, function: Callable[..., Any]) -> Any:
        first = "stream" if handler.request_streaming else "unary"
        second = "stream" if handler.response_streaming else "unary"
        make = getattr(grpc, f"{first}_{second}_rpc_method_handler")
        return make(function, _tolerant(handler.request_deserializer), handler.response_serializer)
