"""Settings of the server, from the command line."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, DirectoryPath, Field, ValidationError, model_validator

from auroraedge.errors import InvalidRequestError


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches. Other names than localhost are not resolved: not loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ServiceConfig(BaseModel):
    """Every field is a command-line option of the same name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=50051, ge=0, le=65535, description="TCP port; 0 takes a free one")
    allow_insecure: bool = Field(
        default=False, description="listen on an address that other machines reach, without encryption or login"
    )
    engine: Path | None = Field(default=None, description="engine package (a folder); none: the embedded engine")
    recipes: tuple[DirectoryPath, ...] = Field(
        default=(), description="folder of recipe files, beside the built-in ones; may be given several times"
    )
    threads: int | None = Field(default=None, ge=1, le=1024, description="CPU threads of the engine; none: all cores")
    max_message_mb: int = Field(default=64, ge=1, le=1024, description="largest request or reply in MiB")
    max_megapixels: int = Field(default=64, ge=1, le=1000, description="largest frame in millions of pixels")
    queue_frames: int = Field(default=32, ge=1, le=10_000, description="frames that may wait")
    queue_mb: int = Field(default=256, ge=1, le=65_536, description="MiB of frames that may wait")
    max_batch: int = Field(default=8, ge=1, le=256, description="frames that one batch takes")
    stream_window: int = Field(default=4, ge=1, le=256, description="frames of one camera session taken at a time")
    max_new_tokens: int = Field(default=256, ge=1, le=4096, description="most tokens of one generated answer")
    drain_seconds: float = Field(
        default=30.0, ge=0, le=3600, description="time that running calls have to finish at shutdown"
    )

    @model_validator(mode="after")
    def _not_open_by_accident(self) -> Self:
        if not self.allow_insecure and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from other machines, and the server has neither encryption nor login. "
                "Listen on 127.0.0.1, or pass --allow-insecure on a network that you trust"
            )
        return self

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def max_message_bytes(self) -> int:
        return self.max_message_mb * 1024 * 1024

    @property
    def max_pixels(self) -> int:
        return self.max_megapixels * 1_000_000

    @property
    def queue_bytes(self) -> int:
        return self.queue_mb * 1024 * 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="The AuroraEdge inspection server (gRPC).",
        argument_default=argparse.SUPPRESS,
    )
    for name, field in ServiceConfig.model_fields.items():
        options: dict[str, Any] = {"dest": name, "help": field.description}
        if field.annotation is bool:
            options["action"] = "store_true"
        elif name == "recipes":
            options |= {"action": "append", "metavar": "DIR"}
        else:
            options["metavar"] = "VALUE"
        if field.default not in (None, False, ()):
            options["help"] += f" (default: {field.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    return parser


def config_from_arguments(arguments: Sequence[str] | None = None) -> ServiceConfig:
    """The settings on the command line. Raises InvalidRequestError naming the option; --help exits."""
    values = vars(_parser().parse_args(arguments))
    try:
        return ServiceConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}" if first["loc"] else "--host"
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidRequestError(f"{message}.", field=option, remedy="See `python -m service --help`.") from error
