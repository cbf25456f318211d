"""Who makes the call that is being handled."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from auroraedge.errors import PermissionDeniedError
from auroraedge.serving.settings import SCOPES, Scope


@dataclass(frozen=True, kw_only=True)
class Principal:
    """A caller. name: of its token or client certificate, "unix" on the unix socket, empty where nobody logs in."""

    name: str = ""
    scopes: frozenset[Scope] = frozenset(SCOPES)
    method: Literal["none", "token", "certificate", "unix"] = "none"
    token_id: str = ""

    def require(self, allowed: frozenset[Scope], method: str) -> None:
        """Raises PermissionDeniedError unless the caller has one of the scopes."""
        if not self.scopes & allowed:
            names = " or ".join(scope for scope in SCOPES if scope in allowed)
            raise PermissionDeniedError(f"{method} needs the scope {names}; '{self.name}' does not have it.")


_current: ContextVar[Principal | None] = ContextVar("principal", default=None)


def current_principal() -> Principal:
    """The caller of the RPC that this task handles; outside of one, a local caller without a name."""
    return _current.get() or Principal()


def set_principal(principal: Principal) -> None:
    _current.set(principal)
