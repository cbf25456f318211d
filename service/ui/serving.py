"""The page's life: bind, serve, stop. In a process of its own, or in a thread beside the gRPC server."""

from __future__ import annotations

import logging
import socket
import threading

import uvicorn

from auroraedge.errors import InvalidRequestError, ServerUnavailableError
from auroraedge.store import Store
from service.ui.access import Tokens
from service.ui.app import create_app
from service.ui.config import UiConfig
from service.ui.live import Live

log = logging.getLogger("auroraedge.ui")

_START_S = 20.0
# Open event streams end at once: they have nothing to finish.
_DRAIN_S = 3


class UiServer:
    """The page on an open store, which stays the caller's to close. `run` blocks; or `start` and `stop`."""

    def __init__(self, config: UiConfig, store: Store, tokens: Tokens | None = None) -> None:
        """Binds the address. Raises InvalidRequestError when that, the certificate or the key cannot be used."""
        self._config = config
        self._app = create_app(config, store, tokens)
        try:
            settings = uvicorn.Config(
                self._app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                timeout_graceful_shutdown=_DRAIN_S,
                ssl_certfile=config.tls_cert,
                ssl_keyfile=config.tls_key,
            )
            settings.load()
        except OSError as error:  # ssl.SSLError is one
            raise InvalidRequestError(
                f"The certificate or its key cannot be used ({error}).",
                field="--tls-cert",
                remedy="Give PEM files that belong together.",
            ) from error
        self._socket = _bind(config)
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(settings, self._app.state.desk.live)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return self._config.url(self.port)

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def start(self) -> None:
        """Serves in a thread with an event loop of its own: people looking do not slow the line's calls down."""
        self._thread = threading.Thread(target=self.run, name="operators-page", daemon=True)
        self._thread.start()
        if not self._server.ready.wait(_START_S):
            raise ServerUnavailableError("The operator's page did not start.", remedy="See the log.")

    def stop(self) -> None:
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_DRAIN_S + 5)
            self._thread = None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, live: Live) -> None:
        super().__init__(config)
        self._live = live
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Otherwise open event streams would be waited for until the time is up.
        await self._live.stop()
        await super().shutdown(sockets=sockets)


def _bind(config: UiConfig) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise InvalidRequestError(
            f"{config.host}:{config.port} cannot be bound ({error.strerror}).",
            field="--port",
            remedy="Stop the program that uses it, or choose another address; port 0 takes a free one.",
        ) from error
    return found


def serve_ui(config: UiConfig, store: Store, tokens: Tokens | None = None) -> UiServer:
    """Starts the page beside the caller, e.g. the gRPC server, on the caller's store. `stop` ends it.

    Raises InvalidRequestError when the address cannot be bound or a file cannot be used.
    """
    server = UiServer(config, store, tokens)
    server.start()
    log.info("operator's page on %s", server.url)
    return server
