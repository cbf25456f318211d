"""Who may do what: tokens become signed session cookies; scopes decide; failed logins are slowed down.

Scopes are the service's, and none includes another: `read` sees, `inspect` reviews results and exports training sets,
`admin` changes recipes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from auroraedge.errors import InvalidRequestError

READ, INSPECT, ADMIN = "read", "inspect", "admin"
ALL_SCOPES = frozenset({READ, INSPECT, ADMIN})

_KEY_BYTES = 32
# Failed logins of one address within the window, after which it waits. Generous to a typo, hopeless for guessing.
_FAILURES, _WINDOW_S, _ADDRESSES = 5, 60.0, 4096


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who a token belongs to. `key`: a fingerprint of the token, which a session is bound to."""

    name: str
    scopes: frozenset[str]
    key: str = ""


class Tokens(Protocol):
    """Both calls go by the present state of the token file, so that a revoked token ends its sessions."""

    def identify(self, token: str) -> Caller | None:
        """Whose token this is; None for an unknown one."""

    def find(self, key: str) -> Caller | None:
        """The caller with this token fingerprint, if the token is still valid."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A browser that is logged in. `person`: the name for reviews and the audit trail. expires: seconds since 1970."""

    caller: str
    key: str
    person: str
    csrf: str
    expires: float
    scopes: frozenset[str] = frozenset()

    def may(self, scope: str) -> bool:
        return scope in self.scopes

    @property
    def recorded_name(self) -> str:
        """What the audit trail records: the person, and the token's owner where that is another name."""
        if not self.person or self.person == self.caller:
            return self.caller
        return f"{self.person} ({self.caller})" if self.caller else self.person


def load_key(path: Path | None) -> bytes:
    """The signing key: from the file, made with access for this user alone if missing; None makes a passing one.

    Raises InvalidRequestError for a file that cannot be used.
    """
    if path is None:
        return secrets.token_bytes(_KEY_BYTES)
    try:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            key = path.read_bytes()
        else:
            key = secrets.token_bytes(_KEY_BYTES)
            with os.fdopen(handle, "wb") as file:
                file.write(key)
    except OSError as error:
        raise InvalidRequestError(
            f"The key file {path} cannot be used ({error.strerror}).", field="--session-key", remedy="Name another."
        ) from error
    if len(key) < _KEY_BYTES:
        raise InvalidRequestError(
            f"The key file {path} holds {len(key)} bytes, not {_KEY_BYTES} or more.",
            field="--session-key",
            remedy="Delete it: a new one is made at the next start.",
        )
    return key


class Sessions:
    """Makes and reads session cookies. `tokens` None: no login, everyone may do everything (loopback only)."""

    def __init__(
        self, tokens: Tokens | None, key: bytes, *, lifetime_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.tokens = tokens
        self._key, self._lifetime_s, self._clock = key, lifetime_s, clock

    @property
    def lifetime_s(self) -> float:
        return self._lifetime_s

    def _signature(self, payload: str) -> str:
        return hmac.new(self._key, payload.encode(), hashlib.sha256).hexdigest()

    def open(self, caller: Caller | None, person: str) -> Session:
        """A new session. `caller` None where there are no tokens."""
        return Session(
            caller=caller.name if caller else "",
            key=caller.key if caller else "",
            person=" ".join(person.split())[:80],
            csrf=secrets.token_urlsafe(24),
            expires=self._clock() + self._lifetime_s,
            scopes=caller.scopes if caller else ALL_SCOPES,
        )

    def write(self, session: Session) -> str:
        """The cookie's value. It holds no token."""
        content = {
            "c": session.caller,
            "k": session.key,
            "p": session.person,
            "x": session.csrf,
            "e": round(session.expires, 3),
        }
        packed = json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()
        payload = base64.urlsafe_b64encode(packed).decode().rstrip("=")
        return f"{payload}.{self._signature(payload)}"

    def read(self, cookie: str | None) -> Session | None:
        """The session of a cookie; None if it is forged, expired, or its token was withdrawn."""
        payload, dot, signature = (cookie or "").rpartition(".")
        # Bytes: a cookie may hold any character, and compare_digest refuses text beyond ASCII.
        if not dot or not hmac.compare_digest(signature.encode(), self._signature(payload).encode()):
            return None
        content = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        if content["e"] < self._clock():
            return None
        session = Session(
            caller=content["c"], key=content["k"], person=content["p"], csrf=content["x"], expires=content["e"]
        )
        if self.tokens is None:
            # A key file may outlive a change from tokens to none; such a session starts anew.
            return None if session.key else _with_scopes(session, ALL_SCOPES)
        caller = self.tokens.find(session.key) if session.key else None
        # Scopes come from the token file of today, not from the day of the login.
        return None if caller is None else _with_scopes(session, caller.scopes)


def _with_scopes(session: Session, scopes: frozenset[str]) -> Session:
    return Session(
        caller=session.caller,
        key=session.key,
        person=session.person,
        csrf=session.csrf,
        expires=session.expires,
        scopes=scopes,
    )


class LoginLimiter:
    """Counts failed logins by address. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def _recent(self, address: str) -> list[float]:
        since = self._clock() - _WINDOW_S
        return [moment for moment in self._failures.get(address, []) if moment > since]

    def wait_s(self, address: str) -> float:
        """Seconds that this address must wait before it may try; 0: now."""
        with self._lock:
            recent = self._recent(address)
            return 0.0 if len(recent) < _FAILURES else max(0.0, recent[-_FAILURES] + _WINDOW_S - self._clock())

    def failed(self, address: str) -> None:
        with self._lock:
            self._failures[address] = [*self._recent(address), self._clock()][-_FAILURES:]
            self._failures.move_to_end(address)
            while len(self._failures) > _ADDRESSES:
                self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        with self._lock:
            self._failures.pop(address, None)
