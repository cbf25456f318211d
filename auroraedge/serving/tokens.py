"""Access tokens: made here, shown once, kept only as salted hashes in a file that others cannot read.

A token is 256 random bits, so guessing is hopeless and a single SHA-256 over salt and token is as strong as a slow
password hash, at microseconds a call.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from auroraedge.errors import InvalidRequestError
from auroraedge.serving.settings import Scope

log = logging.getLogger("auroraedge.security")

_MARK = "aet"
# How often a running server looks whether the file has changed: a revoked token lives this much longer at most.
_LOOK_EVERY_S = 1.0

TokenName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")]


class Token(BaseModel):
    """One token as the file has it. Several may have one name: they are the same client, e.g. while tokens change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: TokenName
    scopes: tuple[Scope, ...] = Field(min_length=1)
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    def state(self, now: datetime) -> str:
        """valid, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "valid"


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(default=1, ge=1, le=1)
    tokens: tuple[Token, ...] = ()


def _digest(salt: str, text: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + text.encode()).hexdigest()


def _check_permissions(path: Path, status: os.stat_result) -> None:
    """Group may read (mounted secrets are like that); nobody else may do anything."""
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "is no regular file"
    elif status.st_mode & 0o027:
        problem = f"has mode {stat.S_IMODE(status.st_mode):04o}: others can read or change it"
    elif status.st_uid not in (os.geteuid(), 0):
        problem = f"belongs to user {status.st_uid}, who could change it"
    if problem:
        raise InvalidRequestError(f"{path} {problem}.", field="tokens", remedy=f"chmod 600 {path}, as its owner.")


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file. Raises InvalidRequestError where it cannot be read, trusted or understood."""
    try:
        with path.open("rb") as file:
            # The open file and not the name: what is checked is what is read.
            _check_permissions(path, os.fstat(file.fileno()))
            return _Document.model_validate_json(file.read()).tokens
    except OSError as error:
        raise InvalidRequestError(
            f"{path} cannot be read: {error.strerror}.",
            field="tokens",
            remedy=f"Create it: python -m service token add NAME --tokens {path}",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(
            f"{path} is no token file: {where} {first['msg']}.", field="tokens", remedy="Restore it from a backup."
        ) from error


@contextmanager
def _change(path: Path) -> Iterator[list[Token]]:
    """The tokens to change in place; written back as a whole, one writer at a time."""
    folder = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        tokens = list(read_tokens(path)) if path.exists() else []
        yield tokens
        document = json.dumps(_Document(tokens=tuple(tokens)).model_dump(mode="json"), indent=2)
        handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                if path.exists():
                    # A group that reads the file (a service account) must still read it afterwards.
                    before = path.stat()
                    os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
                    if os.geteuid() == 0:
                        os.fchown(file.fileno(), before.st_uid, before.st_gid)
                file.write(document + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            os.fsync(folder)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    finally:
        os.close(folder)


def add_token(path: Path, name: str, scopes: tuple[Scope, ...], *, lifetime: timedelta | None) -> tuple[str, Token]:
    """Makes a token and adds its hash to `path`. Returns the token itself, which is kept nowhere, and its entry.

    Raises InvalidRequestError for a name or scope that cannot be used.
    """
    text_id, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_hex(16)
    text = f"{_MARK}_{text_id}_{secret}"
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        token = Token(
            id=text_id,
            name=name,
            scopes=scopes,
            salt=salt,
            sha256=_digest(salt, text),
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequestError(f"{first['msg']}.", field=str(first["loc"][0])) from error
    with _change(path) as tokens:
        tokens.append(token)
    return text, token


def revoke_tokens(path: Path, id_or_name: str) -> list[Token]:
    """Revokes the token of that id, or all tokens of that name. Raises InvalidRequestError when none is valid."""
    read_tokens(path)
    now = datetime.now(UTC).replace(microsecond=0)
    revoked: list[Token] = []
    with _change(path) as tokens:
        for place, token in enumerate(tokens):
            if id_or_name in (token.id, token.name) and token.revoked_at is None:
                tokens[place] = token.model_copy(update={"revoked_at": now})
                revoked.append(tokens[place])
    if not revoked:
        raise InvalidRequestError(
            f"No token that is not revoked already has the id or name '{id_or_name}'.",
            field="token",
            remedy="See `python -m service token list`.",
        )
    return revoked


class TokenRefused(Exception):
    """`reason`: malformed, unknown, wrong, expired or revoked. For the log; the client is told no more than no."""

    def __init__(self, reason: str, token_id: str = "") -> None:
        super().__init__(reason)
        self.reason, self.token_id = reason, token_id


class TokenFile:
    """The tokens that a running server accepts. Follows changes of the file; thread-safe."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidRequestError for a file that cannot be used."""
        self._path = path
        self._lock = threading.Lock()
        self._by_id = {token.id: token for token in read_tokens(path)}
        self._stamp = self._stat()
        self._looked = time.monotonic()
        # Compared with when there is no such id, so that the answer takes as long.
        self._nobody = Token(
            id="0" * 12, name="nobody", scopes=("read",), salt="0" * 32, sha256="0" * 64, created_at=datetime.now(UTC)
        )

    def _stat(self) -> tuple[int, ...]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode

    def _follow(self) -> None:
        with self._lock:
            if time.monotonic() - self._looked < _LOOK_EVERY_S:
                return
            self._looked = time.monotonic()
            try:
                stamp = self._stat()
                if stamp == self._stamp:
                    return
                self._by_id = {token.id: token for token in read_tokens(self._path)}
                self._stamp = stamp
                log.info("Tokens read again: %d entries.", len(self._by_id))
            except (OSError, InvalidRequestError) as error:
                # The line goes on with the tokens it had; a half-restored file must not stop production.
                log.error("The token file cannot be used; the tokens read before stay in force. %s", error)

    def check(self, text: str) -> Token:
        """The entry of a valid token. Raises TokenRefused."""
        self._follow()
        parts = text.split("_", 2)
        if len(parts) != 3 or parts[0] != _MARK or len(text) > 256:
            raise TokenRefused("malformed")
        token = self._by_id.get(parts[1], self._nobody)
        right = hmac.compare_digest(_digest(token.salt, text), token.sha256)
        if not right or token is self._nobody:
            raise TokenRefused("unknown" if token is self._nobody else "wrong", parts[1][:12])
        state = token.state(datetime.now(UTC))
        if state != "valid":
            raise TokenRefused(state, token.id)
        return token

    def still_valid(self, token_id: str) -> bool:
        """Whether a token that was right at the start of a call is neither expired nor revoked since."""
        return self.find(token_id) is not None

    def find(self, token_id: str) -> Token | None:
        """The entry with this id, if it is neither expired nor revoked."""
        self._follow()
        token = self._by_id.get(token_id)
        return token if token is not None and token.state(datetime.now(UTC)) == "valid" else None
