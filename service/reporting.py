"""Errors of handlers as google.rpc.Status: every RPC of the servicer is wrapped by one of these two."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio

from auroraedge.client.status import DETAILS_KEY, status_from_error
from auroraedge.errors import AuroraEdgeError
from service.frames import in_request_terms
from service.logs import note
from service.scheduler import unexpected

log = logging.getLogger("auroraedge.service")

_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def abort_with(context: Any, error: AuroraEdgeError) -> NoReturn:
    """Ends the call with the google.rpc.Status of `error`."""
    note(reason=error.reason)
    status = status_from_error(error)
    await context.abort(
        _CODES[status.code], status.message, trailing_metadata=((DETAILS_KEY, status.SerializeToString()),)
    )
    raise AssertionError("abort always raises")


def _public(servicer: Any, error: Exception, method: str) -> AuroraEdgeError:
    if isinstance(error, AuroraEdgeError):
        public = in_request_terms(error)
    else:
        log.exception("%s failed unexpectedly.", method)
        public = unexpected()
    observer = getattr(servicer, "observer", None)
    if observer is not None:
        observer.refused(public.reason)
    return public


def reports_errors(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """For a handler that returns one response."""

    @functools.wraps(method)
    async def handler(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except grpc.aio.AbortError:
            raise  # ended already, by a handler that this one asked
        except Exception as error:  # the boundary: whatever it is, the client gets a status
            public = _public(self, error, method.__name__)
        await abort_with(context, public)

    return handler


def reports_stream_errors(method: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., AsyncIterator[Any]]:
    """For a handler that yields responses."""

    @functools.wraps(method)
    async def handler(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            # Closed here and now when the call ends early, so that its frames leave the queue at once.
            async with aclosing(method(self, request, context)) as responses:
                async for response in responses:
                    yield response
            return
        except grpc.aio.AbortError:
            raise  # ended already, by a handler that this one asked
        except Exception as error:  # the boundary: whatever it is, the client gets a status
            public = _public(self, error, method.__name__)
        await abort_with(context, public)

    return handler
