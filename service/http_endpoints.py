"""/metrics, /livez and /readyz on a port of their own: GET only, one request a connection, no dependencies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from prometheus_client.exposition import choose_encoder

from auroraedge.errors import InvalidRequestError
from service.metrics import Metrics

log = logging.getLogger("auroraedge.service")

_REQUEST_S = 5.0
_REQUEST_BYTES = 8192
# Scrapers are few; whoever opens more connections than this waits for nobody.
_CONNECTIONS = 32
_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 400: "Bad Request", 503: "Service Unavailable"}


class HttpEndpoints:
    def __init__(self, metrics: Metrics, *, alive: Callable[[], bool], ready: Callable[[], bool]) -> None:
        self._metrics, self._alive, self._ready = metrics, alive, ready
        self._server: asyncio.Server | None = None
        self._connections = 0
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listens; `port` 0 takes a free one. Raises InvalidRequestError when that is not possible."""
        try:
            self._server = await asyncio.start_server(self._handle, host, port, limit=_REQUEST_BYTES)
        except OSError as error:
            raise InvalidRequestError(
                f"{host}:{port} cannot be bound.",
                field="--http-port",
                remedy="Stop the program that uses it, or choose another one; 0 takes a free one.",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= _CONNECTIONS:
                async with asyncio.timeout(_REQUEST_S):
                    await self._respond(reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            log.debug("An HTTP client was too slow, too long or went away.")
        finally:
            self._connections -= 1
            writer.close()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.split("\r\n")
        method, _, target = request.partition(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path = target.partition(" ")[0].partition("?")[0]
        kind, more = "text/plain; charset=utf-8", ""
        if method not in ("GET", "HEAD"):
            status, body, more = 405, b"GET only\n", "Allow: GET, HEAD\r\n"
        elif path == "/metrics":
            encode, kind = choose_encoder(headers.get("accept", ""))
            # In a thread: some gauges ask the driver of the GPU or /proc.
            status, body = 200, await asyncio.to_thread(encode, self._metrics.registry)
        elif path in ("/livez", "/readyz"):
            good = self._alive() if path == "/livez" else self._ready()
            status, body = (200, b"ok\n") if good else (503, b"not ok\n")
        else:
            status, body = 404, b"/metrics, /livez, /readyz\n"
        lines_out = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"Cache-Control: no-store\r\n{more}Connection: close\r\n\r\n"
        )
        writer.write(lines_out.encode("latin-1") + (b"" if method == "HEAD" else body))
        await writer.drain()
