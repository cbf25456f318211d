"""Settings of the operator's page, from the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, DirectoryPath, Field, FilePath, ValidationError, model_validator

from auroraedge.errors import InvalidRequestError
from auroraedge.serving.settings import is_loopback

# Read where the option is not given; the same as of the store's and the server's commands.
_VARIABLES = {"store": "AURORAEDGE_STORE", "images": "AURORAEDGE_STORE_IMAGES", "tokens": "AURORAEDGE_TOKENS"}


class UiConfig(BaseModel):
    """Every field is a command-line option of the same name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str = Field(min_length=1, description="the result store: a folder, a database file, or postgresql://...")
    images: Path | None = Field(default=None, description="folder of the store's pictures; none: beside SQLite")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="TCP port; 0 takes a free one")
    server: str = Field(default="127.0.0.1:50051", description="gRPC server whose state is shown")
    server_ca: FilePath | None = Field(default=None, description="certificates (PEM) that sign the gRPC server's own")
    server_token: FilePath | None = Field(default=None, description="file with the token for the gRPC server")
    recipes: tuple[DirectoryPath, ...] = Field(
        default=(), description="folder of recipe files, beside the built-in ones; may be given several times"
    )
    tokens: FilePath | None = Field(default=None, description="token file, the same as the gRPC server's")
    tls_cert: FilePath | None = Field(default=None, description="certificate chain (PEM) for HTTPS")
    tls_key: FilePath | None = Field(default=None, description="private key (PEM) of the certificate")
    allow_insecure: bool = Field(
        default=False, description="listen on an address that other machines reach, without HTTPS or login"
    )
    session_key: Path | None = Field(
        default=None,
        description="file of the key that signs logins, made if missing; none: a restart ends them",
    )
    session_hours: float = Field(default=12.0, gt=0, le=24 * 366, description="hours that a login lasts")
    title: str = Field(default="", max_length=60, description="name of the plant or line, shown on every page")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: give both or none")
        if not self.allow_insecure and not is_loopback(self.host):
            missing = [
                name
                for name, given in (("--tokens", self.tokens), ("--tls-cert and --tls-key", self.tls_key))
                if given is None
            ]
            if missing:
                raise ValueError(
                    f"{self.host} can be reached from other machines, and {' and '.join(missing)} is missing. "
                    "Listen on 127.0.0.1, give them, or pass --allow-insecure on a network that you trust"
                )
        return self

    @property
    def https(self) -> bool:
        return self.tls_cert is not None

    def url(self, port: int) -> str:
        """Where the page is found. A wildcard address is shown as the local one."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.https else 'http'}://{shown}:{port}/"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.ui",
        description="The AuroraEdge operator's page.",
        argument_default=argparse.SUPPRESS,
    )
    for name, field in UiConfig.model_fields.items():
        options: dict[str, Any] = {"dest": name, "help": field.description}
        if field.annotation is bool:
            options["action"] = "store_true"
        elif name == "recipes":
            options |= {"action": "append", "metavar": "DIR"}
        else:
            options["metavar"] = "VALUE"
        if name in _VARIABLES:
            options["help"] += f" (default: ${_VARIABLES[name]})"
        elif field.default not in (None, False, ()):
            options["help"] += f" (default: {field.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    return parser


def config_from_arguments(arguments: Sequence[str] | None = None) -> UiConfig:
    """The settings on the command line. Raises InvalidRequestError naming the option; --help exits."""
    values = {name: os.environ[variable] for name, variable in _VARIABLES.items() if os.environ.get(variable)}
    values |= vars(_parser().parse_args(arguments))
    try:
        return UiConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}" if first["loc"] else "--host"
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidRequestError(f"{message}.", field=option, remedy="See `python -m service.ui --help`.") from error
