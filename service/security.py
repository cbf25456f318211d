"""Login: which caller may call which RPC.

Every RPC of every service on the port is in METHOD_SCOPES; one that is not is refused, whoever calls. A token is looked
at before a byte of the request's message is read, so that a stranger cannot make the server buffer 64 MiB.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from auroraedge.errors import (
    AuroraEdgeError,
    PermissionDeniedError,
    TooManyFailedLoginsError,
    UnauthenticatedError,
)
from auroraedge.serving.settings import SCOPES, Scope, ServiceConfig, is_loopback
from auroraedge.serving.tokens import TokenFile, TokenRefused
from service.principal import Principal, set_principal
from service.reporting import abort_with
from service.wrapping import Around, as_stream, wrapped

log = logging.getLogger("auroraedge.security")

_INSPECT: frozenset[Scope] = frozenset({"inspect"})
_READ: frozenset[Scope] = frozenset({"read"})
_ADMIN: frozenset[Scope] = frozenset({"admin"})
_ANY: frozenset[Scope] = frozenset(SCOPES)
# No login: load balancers and orchestrators ask these, and the answer says nothing but yes or no.
_OPEN = None


def _methods(service: str, scopes: frozenset[Scope] | None, *names: str) -> dict[str, frozenset[Scope] | None]:
    return {f"/{service}/{name}": scopes for name in names}


_V1 = "auroraedge.inspection.v1"
_OIP = "inference.GRPCInferenceService"

# Any one of the scopes is enough.
METHOD_SCOPES: dict[str, frozenset[Scope] | None] = (
    _methods(
        f"{_V1}.InspectionService",
        _INSPECT,
        "Inspect",
        "InspectProgressive",
        "InspectMany",
        "InspectStream",
        "Generate",
        "AcquireSharedMemory",
        "RenewSharedMemory",
        "ReleaseSharedMemory",
    )
    | _methods(f"{_V1}.InspectionService", _ANY, "ListRecipes", "GetServerInfo")
    | _methods(f"{_V1}.ResultsService", _READ, "GetResult", "ListResults", "GetImage")
    | _methods(f"{_V1}.AdminService", _ADMIN, "ReloadRecipes", "PutRecipe", "SwapEngine", "Drain")
    | _methods(f"{_V1}.AdminService", _READ | _ADMIN, "GetStatus")
    | _methods("grpc.health.v1.Health", _OPEN, "Check", "Watch", "List")
    | _methods("grpc.reflection.v1alpha.ServerReflection", _ANY, "ServerReflectionInfo")
    | _methods(_OIP, _OPEN, "ServerLive", "ServerReady")
    | _methods(_OIP, _ANY, "ModelReady", "ServerMetadata", "ModelMetadata", "RepositoryIndex")
    | _methods(_OIP, _INSPECT, "ModelInfer")
)


class FailedLogins:
    """Counts failed logins by address: a burst is answered, then a few a minute. Only failures are ever held back."""

    BURST = 10
    PER_SECOND = 0.2
    _ADDRESSES = 4096

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Counts one failure; returns 0, or the seconds for which the address has to wait."""
        now = self._clock()
        left, at = self._left.pop(address, (float(self.BURST), now))
        left = min(float(self.BURST), left + (now - at) * self.PER_SECOND)
        allowed = left >= 1
        self._left[address] = (left - 1 if allowed else left, now)
        while len(self._left) > self._ADDRESSES:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self.PER_SECOND


def address_of(peer: str) -> str:
    """The host of a gRPC peer: "ipv4:10.0.0.7:4711" -> "10.0.0.7"."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind


def _certificate_name(context: Any) -> str:
    """Common name of the client's certificate, else its first alternative name; TLS has verified it by now."""
    found = context.auth_context()
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        for value in found.get(key, ()):
            return bytes(value).decode("utf-8", "replace")
    return ""


class Login(grpc.aio.ServerInterceptor):
    """Refuses calls of those who may not make them; the handlers of the others find their Principal set."""

    def __init__(self, config: ServiceConfig, *, on_failure: Callable[[str], None] = lambda reason: None) -> None:
        """Raises InvalidRequestError when the token file cannot be used. `on_failure` counts, by reason."""
        self._config, self._on_failure = config, on_failure
        self._tokens = None if config.tokens is None else TokenFile(config.tokens)
        self._failures = FailedLogins()

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None  # UNIMPLEMENTED
        if method not in METHOD_SCOPES:
            return self._refusing(handler, PermissionDeniedError(f"{method} is open to nobody."))
        allowed = METHOD_SCOPES[method]
        if allowed is None:
            return handler
        text = self._token_of(handler_call_details.invocation_metadata)
        tokens = self._tokens
        if tokens is None:
            return wrapped(handler, self._admitting(self._without_token, allowed, method))
        if not text:
            known = wrapped(handler, self._admitting(self._without_token, allowed, method))
            return as_stream(known, self._known_by_socket)
        try:
            token = tokens.check(text)
        except TokenRefused as refused:
            return self._refusing(handler, UnauthenticatedError("The token is not accepted."), refused)
        principal = Principal(name=token.name, scopes=frozenset(token.scopes), method="token", token_id=token.id)
        try:
            principal.require(allowed, method)
        except PermissionDeniedError as error:
            return self._refusing(handler, error)
        return wrapped(
            handler,
            self._admitting(lambda context: principal, allowed, method),
            lambda requests: _WhileValid(requests, tokens, token.id),
        )

    @staticmethod
    def _token_of(metadata: Any) -> str:
        for key, value in metadata or ():
            if key == "authorization":
                kind, _, text = str(value).partition(" ")
                return text.strip() if kind.lower() == "bearer" else "?"
        return ""

    def _without_token(self, context: Any) -> Principal:
        """Who calls, where no token is asked for."""
        config = self._config
        if context.peer().startswith("unix"):
            return Principal(name="unix", scopes=frozenset(config.unix_socket_scopes), method="unix")
        if config.tls_client_ca is not None:
            name = _certificate_name(context)
            scopes = SCOPES if name and name in config.client_cert_admins else config.client_cert_scopes
            return Principal(name=name or "certificate", scopes=frozenset(scopes), method="certificate")
        # Whoever reaches an open server may use it, but only someone on this machine may change it.
        return Principal(scopes=_ANY if is_loopback(config.host) else _INSPECT | _READ)

    async def _known_by_socket(self, context: Any) -> None:
        if not context.peer().startswith("unix"):
            await self._refuse(context, UnauthenticatedError("The call has no token."), "missing", "")

    def _admitting(self, identify: Callable[[Any], Principal], allowed: frozenset[Scope], method: str) -> Around:
        @asynccontextmanager
        async def admitted(context: Any, request: Any) -> AsyncIterator[Callable[[Any], None]]:
            principal = identify(context)
            try:
                principal.require(allowed, method)
            except PermissionDeniedError as error:
                await self._refuse(context, error, "scope", "")
            set_principal(principal)
            yield lambda response: None

        return admitted

    def _refusing(self, handler: Any, error: AuroraEdgeError, refused: TokenRefused | None = None) -> Any:
        """A handler that refuses every call, without reading what it brings."""
        reason = refused.reason if refused else "scope"

        async def refuse(context: Any) -> None:
            await self._refuse(context, error, reason, refused.token_id if refused else "")

        return as_stream(handler, refuse)

    async def _refuse(self, context: Any, error: AuroraEdgeError, reason: str, token_id: str) -> None:
        self._on_failure(reason)
        address = address_of(context.peer())
        if isinstance(error, UnauthenticatedError) and (wait_s := self._failures.wait_s(address)):
            # Not logged one by one, or whoever sends nonsense fills the disk; the metrics count all of them.
            held = TooManyFailedLoginsError("Too many failed logins from this address.")
            held.retry_after_s = wait_s
            await abort_with(context, held)
        log.warning(
            "Refused: %s",
            error.message,
            extra={"peer": context.peer(), "login": reason, "token_id": token_id},
        )
        await abort_with(context, error)


class _WhileValid:
    """The messages of a client stream, for as long as its token is valid."""

    def __init__(self, requests: AsyncIterator[Any], tokens: TokenFile, token_id: str) -> None:
        self._requests, self._tokens, self._token_id = aiter(requests), tokens, token_id

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._requests)
        if not self._tokens.still_valid(self._token_id):
            raise UnauthenticatedError("The token has expired or was revoked.")
        return message
