"""RPC handlers of any of the four kinds, wrapped by interceptors."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import grpc

# Around(context, request) is entered before the handler runs; it yields what each response is shown to. The request is
# None where the client sends a stream.
Around = Callable[[Any, Any], AbstractAsyncContextManager[Callable[[Any], None]]]


def behaviour(handler: Any) -> Callable[..., Any]:
    """The function that handles the calls of a grpc.RpcMethodHandler."""
    found = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    assert found is not None
    return found


def replaced(handler: Any, function: Callable[..., Any]) -> Any:
    """The same handler with another function."""
    name = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    make = getattr(grpc, f"{name}_rpc_method_handler")
    return make(function, handler.request_deserializer, handler.response_serializer)


def wrapped(
    handler: Any, around: Around, requests: Callable[[AsyncIterator[Any]], AsyncIterator[Any]] | None = None
) -> Any:
    """`handler` with `around` around it; `requests` wraps the messages of a client stream.

    Handlers are coroutines or async generators. A coroutine that writes its stream itself (context.write) is wrapped
    as it is, and its responses are not seen.
    """
    inner = behaviour(handler)

    def first(request: Any) -> Any:
        return None if handler.request_streaming else request

    def prepared(request: Any) -> Any:
        return requests(request) if requests is not None and handler.request_streaming else request

    if inspect.isasyncgenfunction(inner):

        async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
            async with around(context, first(request)) as see, aclosing(inner(prepared(request), context)) as responses:
                async for response in responses:
                    see(response)
                    yield response

        return replaced(handler, streaming)

    async def single(request: Any, context: Any) -> Any:
        async with around(context, first(request)) as see:
            response = await inner(prepared(request), context)
            if response is not None:
                see(response)
            return response

    return replaced(handler, single)


def as_stream(handler: Any, before: Callable[[Any], Any]) -> Any:
    """`handler` so that `before(context)` runs before even the first message of the call is received.

    On the wire a unary call is a stream of one message, so a handler of streams can answer it.
    """
    inner = behaviour(handler)

    async def gate(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        await before(context)
        request: Any = requests
        if not handler.request_streaming:
            request = await anext(aiter(requests), None)
            if request is None:
                await context.abort(grpc.StatusCode.INTERNAL, "The call has no request message.")
        if handler.response_streaming:
            async with aclosing(inner(request, context)) as responses:
                async for response in responses:
                    yield response
        else:
            yield await inner(request, context)

    return grpc.stream_stream_rpc_method_handler(gate, handler.request_deserializer, handler.response_serializer)
