"""Looks at everything that settings point to, before a server starts with them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from auroraedge.errors import AuroraEdgeError
from auroraedge.inspection.recipe import list_recipes
from auroraedge.serving.certificates import check_authorities, check_pair
from auroraedge.serving.settings import ServiceConfig, is_loopback
from auroraedge.serving.sources import Settings
from auroraedge.serving.tokens import read_tokens

Level = Literal["ok", "warning", "error"]
_SOON = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class Finding:
    setting: str
    level: Level
    text: str


def _certificate(config: ServiceConfig) -> Iterator[tuple[Level, str]]:
    assert config.tls_cert is not None and config.tls_key is not None
    begin, end = check_pair(config.tls_cert, config.tls_key)
    now = datetime.now(UTC)
    until = f"valid until {end:%Y-%m-%d %H:%M} UTC"
    if now < begin:
        yield "error", f"not valid before {begin:%Y-%m-%d %H:%M} UTC"
    elif now >= end:
        yield "error", f"expired on {end:%Y-%m-%d %H:%M} UTC"
    else:
        yield "warning" if end - now < _SOON else "ok", until
    if config.tls_key.stat().st_mode & stat.S_IROTH:
        yield "warning", f"{config.tls_key} can be read by every user"


def _authorities(config: ServiceConfig) -> Iterator[tuple[Level, str]]:
    assert config.tls_client_ca is not None
    yield "ok", f"{check_authorities(config.tls_client_ca)} authorities"


def _tokens(config: ServiceConfig) -> Iterator[tuple[Level, str]]:
    assert config.tokens is not None
    tokens = read_tokens(config.tokens)
    now = datetime.now(UTC)
    valid = [token for token in tokens if token.state(now) == "valid"]
    yield "ok" if valid else "warning", f"{len(valid)} valid of {len(tokens)}"
    for token in valid:
        if token.expires_at is not None and token.expires_at - now < _SOON:
            yield "warning", f"'{token.name}' ({token.id}) expires on {token.expires_at:%Y-%m-%d}"


def _engine(config: ServiceConfig) -> Iterator[tuple[Level, str]]:
    assert config.engine is not None
    if (config.engine / "manifest.json").is_file():
        yield "ok", str(config.engine)
    else:
        yield "error", f"{config.engine} is no engine package: it has no manifest.json"


def _recipes(config: ServiceConfig) -> Iterator[tuple[Level, str]]:
    yield "ok", f"{len(list_recipes(config.recipes))} recipes with the built-in ones"


def _store(config: ServiceConfig) -> Iterator[tuple[Level, str]]:
    address = config.store_address
    if address is None:
        yield "warning", "results are not kept; a repeated request id is inspected again"
    elif "://" in address and not address.startswith("sqlite:"):
        yield "ok", f"{address} (not asked now)"
    else:
        path = Path(address.removeprefix("sqlite:").replace("///", "", 1) if address.startswith("sqlite:") else address)
        folder = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        if not os.access(folder, os.W_OK):
            yield "error", f"{folder} is not writable for this user"
        else:
            yield "ok", str(path)


def _socket(config: ServiceConfig) -> Iterator[tuple[Level, str]]:
    assert config.unix_socket is not None
    folder = config.unix_socket.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield "error", f"{folder} is not there, or not writable for this user"
    elif config.unix_socket_mode & 0o002:
        yield "warning", f"mode {config.unix_socket_mode:04o} lets every user of this host in"
    else:
        yield "ok", f"mode {config.unix_socket_mode:04o}"


def _exposure(config: ServiceConfig) -> Iterator[tuple[Level, str]]:
    if config.tcp and config.allow_insecure and not is_loopback(config.host) and not config.protected:
        lacks = "encryption" if config.has_login else "login" if config.tls_cert else "encryption or login"
        yield "warning", f"{config.host} can be reached from other machines without {lacks}"


def _http(config: ServiceConfig) -> Iterator[tuple[Level, str]]:
    if config.http_port is not None and not is_loopback(config.http_host):
        yield "warning", f"metrics can be read at {config.http_host} without a login; let only the monitoring reach it"


def findings(settings: Settings) -> list[Finding]:
    """What is right and wrong about the files, folders and exposure that `settings` name."""
    config = settings.config
    checks: list[tuple[str, bool, Callable[[ServiceConfig], Iterator[tuple[Level, str]]]]] = [
        ("host", True, _exposure),
        ("unix_socket", config.unix_socket is not None, _socket),
        ("tls_cert", config.tls_cert is not None, _certificate),
        ("tls_client_ca", config.tls_client_ca is not None, _authorities),
        ("tokens", config.tokens is not None, _tokens),
        ("engine", config.engine is not None, _engine),
        ("recipes", True, _recipes),
        ("store", True, _store),
        ("http_host", True, _http),
    ]
    found: list[Finding] = []
    if settings.file is not None and settings.file.stat().st_mode & stat.S_IWOTH:
        found.append(Finding(setting="config", level="error", text=f"{settings.file} can be changed by every user"))
    for setting, wanted, check in checks:
        if not wanted:
            continue
        try:
            found += [Finding(setting=setting, level=level, text=text) for level, text in check(config)]
        except AuroraEdgeError as error:
            found.append(Finding(setting=setting, level="error", text=f"{error.message} {error.remedy}"))
        except OSError as error:
            found.append(Finding(setting=setting, level="error", text=str(error)))
    return found
