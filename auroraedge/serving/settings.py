"""Settings of the server. Every field is a key of the file, an AURORAEDGE_* variable and a command-line option."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, DirectoryPath, Field, model_validator
from pydantic_core import PydanticCustomError

Scope = Literal["inspect", "read", "admin"]
SCOPES: tuple[Scope, ...] = ("inspect", "read", "admin")

_PASSWORD_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches. Other names than localhost are not resolved: not loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def state_folder() -> Path:
    """Where the server keeps what must outlive it: systemd's StateDirectory, else the user's."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "auroraedge"


def _words(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _folders(value: Any) -> Any:
    """One text is a list as in PATH."""
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


def _file_mode(value: Any) -> int:
    """YAML reads 0660 as octal already and "0660" as text; a number is the mode itself."""
    try:
        mode = int(value, 8) if isinstance(value, str) else int(value)
    except ValueError as error:
        raise ValueError(f"'{value}' is no file mode; write it as in chmod, e.g. 0660") from error
    if not 0 <= mode <= 0o777:
        raise ValueError(f"{mode:o} is no file mode; write it as in chmod, e.g. 0660")
    return mode


Words = BeforeValidator(_words)
Folders = BeforeValidator(_folders)


class ServiceConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    # --- where it listens
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=50051, ge=0, le=65535, description="TCP port; 0 takes a free one")
    tcp: bool = Field(default=True, description="listen on host and port; without it only on the unix socket")
    unix_socket: Path | None = Field(default=None, description="unix socket to listen on as well; none: no socket")
    unix_socket_mode: Annotated[int, BeforeValidator(_file_mode)] = Field(
        default=0o600, description="file mode of the unix socket, as in chmod: who may connect"
    )
    unix_socket_scopes: Annotated[tuple[Scope, ...], Words] = Field(
        default=SCOPES, description="what a client of the unix socket may do without a token"
    )
    allow_insecure: bool = Field(
        default=False, description="listen on an address that other machines reach, without encryption or login"
    )
    # --- who may call
    tls_cert: Path | None = Field(default=None, description="PEM file of the server's certificate and its chain")
    tls_key: Path | None = Field(default=None, description="PEM file of its private key")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of the authorities whose client certificates are let in; all need one then"
    )
    client_cert_scopes: Annotated[tuple[Scope, ...], Words] = Field(
        default=("inspect", "read"), description="what a client certificate allows where no tokens are set up"
    )
    client_cert_admins: Annotated[tuple[str, ...], Words] = Field(
        default=(), description="common names of client certificates that may do everything; may be repeated"
    )
    tokens: Path | None = Field(
        default=None, description="file of token hashes (python -m service token); calls need a token then"
    )
    reflection: bool = Field(default=True, description="describe the API to tools such as grpcurl")
    kserve: bool = Field(default=True, description="answer the Open Inference Protocol (KServe v2) on the same port")
    # --- what it works with
    engine: Path | None = Field(default=None, description="engine package (a folder); none: the embedded engine")
    recipes: Annotated[tuple[DirectoryPath, ...], Folders] = Field(
        default=(), description="folder of recipe files, beside the built-in ones; may be given several times"
    )
    threads: int | None = Field(default=None, ge=1, le=1024, description="CPU threads of the engine; none: all cores")
    engines: Annotated[tuple[DirectoryPath, ...], Folders] = Field(
        default=(), description="folder of engine packages that SwapEngine may name; may be given several times"
    )
    # --- where results are kept
    store: str | None = Field(
        default=None,
        description="where results are committed before they are answered: a folder, a database file, a postgresql:// "
        'address, or "none" to keep nothing (default: the state folder)',
    )
    store_images: Path | None = Field(default=None, description="folder of the kept frames; none: beside the store")
    keep_images: Literal["all", "not-ok", "none"] = Field(
        default="not-ok", description="frames that the store keeps: all, not-ok (every verdict but OK), none"
    )
    store_failure: Literal["review", "error"] = Field(
        default="review", description="verdict of a frame whose result cannot be stored: review or error, never OK"
    )
    store_timeout_ms: int = Field(
        default=1000, ge=10, le=60_000, description="wait for a store that another program has locked, in milliseconds"
    )
    # --- limits
    max_message_mb: int = Field(default=64, ge=1, le=1024, description="largest request or reply in MiB")
    max_megapixels: int = Field(default=64, ge=1, le=1000, description="largest frame in millions of pixels")
    queue_frames: int = Field(default=12, ge=1, le=10_000, description="frames that may wait")
    queue_mb: int = Field(default=256, ge=1, le=65_536, description="MiB of frames that may wait")
    max_batch: int = Field(default=2, ge=1, le=256, description="frames that one batch takes")
    max_batch_wait_ms: float = Field(
        default=0.0, ge=0, le=1000, description="wait for company of a frame that comes alone, in milliseconds"
    )
    stream_window: int = Field(default=4, ge=1, le=256, description="frames of one camera session taken at a time")
    max_new_tokens: int = Field(default=256, ge=1, le=4096, description="most tokens of one generated answer")
    shared_memory_mb: int = Field(
        default=512, ge=0, le=65_536, description="MiB of memory lent to clients on this host for frames; 0: none"
    )
    shared_memory_socket: Path | None = Field(
        default=None,
        description="unix socket that hands shared memory out, open to user and group; none: one for this user alone",
    )
    shared_memory_idle_seconds: float = Field(
        default=60.0, ge=1, le=86_400, description="life of a lease of shared memory without a frame"
    )
    drain_seconds: float = Field(
        default=30.0, ge=0, le=3600, description="time that running calls have to finish at shutdown"
    )
    # --- how it is watched
    hang_seconds: float = Field(
        default=120.0,
        ge=1,
        le=86_400,
        description="a batch that takes longer counts as hung: /livez fails, systemd restarts",
    )
    http_port: int | None = Field(
        default=None, ge=0, le=65535, description="port of /metrics, /livez and /readyz; 0 takes a free one; none: off"
    )
    http_host: str = Field(default="127.0.0.1", description="address of /metrics, /livez and /readyz")
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/@]+/?$",
        description="OpenTelemetry collector (OTLP over gRPC), e.g. http://127.0.0.1:4317; none: no traces",
    )
    trace_ratio: float = Field(
        default=1.0, ge=0, le=1, description="share of the calls that are traced where the caller has not decided"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe messages that are logged: debug, info, warning, error"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="text, or json with one object a line")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        def refuse(field: str, message: str) -> None:
            raise PydanticCustomError("setting", "{text}", {"field": field, "text": message})

        for name, value in self:
            if isinstance(value, str) and _PASSWORD_IN_URL.search(value):
                refuse(name, "Passwords are read from files only (for PostgreSQL: ~/.pgpass or PGPASSFILE)")
        if (self.tls_cert is None) != (self.tls_key is None):
            refuse("tls_key" if self.tls_key is None else "tls_cert", "tls_cert and tls_key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            refuse("tls_client_ca", "client certificates need tls_cert and tls_key, too")
        if not self.tcp and self.unix_socket is None:
            refuse("tcp", "without TCP the server needs a unix_socket to listen on")
        if self.tcp and not self.allow_insecure and not is_loopback(self.host) and not self.protected:
            lacks = "neither encryption (tls_cert, tls_key) nor login (tokens or tls_client_ca)"
            if self.has_login:
                lacks = "no encryption (tls_cert and tls_key)"
            elif self.tls_cert:
                lacks = "no login (tokens or tls_client_ca)"
            refuse(
                "host",
                f"{self.host} can be reached from other machines, and the server has {lacks}. "
                "Set that up, listen on 127.0.0.1, or pass --allow-insecure on a network that you trust",
            )
        return self

    @property
    def has_login(self) -> bool:
        """Whether callers over TCP say who they are."""
        return self.tokens is not None or self.tls_client_ca is not None

    @property
    def protected(self) -> bool:
        """Encrypted, and with a login."""
        return self.tls_cert is not None and self.has_login

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def store_address(self) -> str | None:
        """Where results are kept: the setting, else the state folder; None: nowhere."""
        if self.store is not None:
            return None if self.store.lower() == "none" else self.store
        return str(state_folder() / "store.db")

    @property
    def max_message_bytes(self) -> int:
        return self.max_message_mb * 1024 * 1024

    @property
    def max_pixels(self) -> int:
        return self.max_megapixels * 1_000_000

    @property
    def queue_bytes(self) -> int:
        return self.queue_mb * 1024 * 1024

    @property
    def shared_memory_bytes(self) -> int:
        return self.shared_memory_mb * 1024 * 1024
