"""The server's command line. The settings themselves are in auroraedge/serving/settings.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin

from auroraedge.errors import InvalidRequestError
from auroraedge.serving.settings import ServiceConfig, is_loopback
from auroraedge.serving.sources import ConfigError, Settings, load_settings, nearest

__all__ = ["ServiceConfig", "config_from_arguments", "is_loopback", "settings_from_arguments"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="The AuroraEdge inspection server (gRPC).",
        epilog="An option wins over its variable (--port: AURORAEDGE_PORT), the variable over the file. "
        "Other commands: python -m service config, python -m service token.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="settings in YAML (default: $AURORAEDGE_CONFIG)")
    for name, field in ServiceConfig.model_fields.items():
        options: dict[str, Any] = {"dest": name, "help": field.description}
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(field.annotation) is tuple:
            options |= {"action": "extend", "metavar": "DIR" if name == "recipes" else "VALUE", "type": _items(name)}
        else:
            options["metavar"] = "VALUE"
        if field.default not in (None, False, ()):
            default = f"{field.default:04o}" if name.endswith("_mode") else field.default
            options["help"] += f" (default: {','.join(default) if isinstance(default, tuple) else default})"
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    return parser


def _items(name: str) -> Any:
    """A list option may be repeated; names may also be joined by commas."""
    return lambda text: [text] if name == "recipes" else [part for part in text.split(",") if part]


def settings_from_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """The settings in force and their origins. Raises ConfigError naming the option; --help exits."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest:
        options = (option for action in parser._actions for option in action.option_strings)
        name = rest[0].partition("=")[0]
        raise ConfigError(
            [(name, f"unrecognized option{nearest(name, options)}")], remedy="See `python -m service --help`."
        )
    values = vars(parsed)
    file = values.pop("config", None)
    return load_settings(values, file=None if file is None else Path(file))


def config_from_arguments(arguments: Sequence[str] | None = None) -> ServiceConfig:
    """The settings in force. Raises InvalidRequestError naming the option; --help exits."""
    try:
        return settings_from_arguments(arguments).config
    except InvalidRequestError as error:
        error.remedy = "See `python -m service --help`."
        raise
