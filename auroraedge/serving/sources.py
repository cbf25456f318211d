"""Where settings come from, in rising precedence: defaults, the file, AURORAEDGE_* variables, the command line.

The file is YAML with the keys of ServiceConfig; relative paths in it start at its folder. An unknown key is refused
wherever it comes from, so that a misspelt limit is not a limit that silently does not hold.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from auroraedge.errors import InvalidRequestError
from auroraedge.serving.settings import ServiceConfig

PREFIX = "AURORAEDGE_"
FILE_VARIABLE = f"{PREFIX}CONFIG"
# Variables of the command line and of the tests that share the prefix.
_OTHERS = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "CONFIG", "ENGINE", "RECIPE", "SERVER", "STORE", "STORE_IMAGES", "PACK",
        "TOKEN_FILE", "CLIENT_CA", "CLIENT_CERT", "CLIENT_KEY",
    )
)  # fmt: skip
# What Kubernetes sets for a Service whose name starts with "auroraedge".
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")
_LINK_VALUE = re.compile(r"^(tcp|udp|sctp)://")


class ConfigError(InvalidRequestError):
    """Settings that the server cannot start with; `problems` has all of them."""

    def __init__(self, problems: list[tuple[str, str]], *, remedy: str = "") -> None:
        (name, message), *rest = problems
        more = "".join(f"\n  {other}: {text}." for other, text in rest)
        super().__init__(f"{message}.{more}", field=name, remedy=remedy or "See docs/operations.md.")
        self.problems = problems


class _Environment(ServiceConfig, BaseSettings):
    # Lists are read by the fields' own validators, as they come (a:b or a,b), and not as JSON.
    model_config = SettingsConfigDict(env_prefix=PREFIX, enable_decoding=False, env_ignore_empty=True)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings in force. `origins`: where each value that is not the default comes from."""

    config: ServiceConfig
    origins: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?', or nothing."""
    found = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is there twice; YAML itself takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _is_path(annotation: Any) -> bool:
    return annotation is Path or any(_is_path(inner) for inner in get_args(annotation))


def _beside(folder: Path, value: Any) -> Any:
    if isinstance(value, str) and value:
        return str(folder / value)
    return [_beside(folder, item) for item in value] if isinstance(value, list) else value


def read_file(path: Path) -> dict[str, Any]:
    """The keys and values of a settings file. Raises ConfigError for a file that cannot be read or has unknown keys."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise ConfigError([(str(path), f"cannot be read: {error.strerror}")]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([(str(path), f"is not valid YAML: {error}")]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError([(str(path), "must hold a mapping of settings to values")])
    fields = ServiceConfig.model_fields
    unknown = [str(key) for key in content if key not in fields]
    if unknown:
        raise ConfigError([(f"{path}: {key}", f"there is no such setting{nearest(key, fields)}") for key in unknown])
    folder = path.absolute().parent

    def is_path(key: str, value: Any) -> bool:
        if key == "store":
            return str(value).lower() != "none" and "://" not in str(value)
        return _is_path(fields[key].annotation)

    # A key without a value is the default, as an empty variable is.
    return {
        key: _beside(folder, value) if is_path(key, value) else value
        for key, value in content.items()
        if value is not None
    }


def read_environment() -> dict[str, Any]:
    """The settings in AURORAEDGE_* variables. Raises ConfigError for an unknown one."""
    known = {f"{PREFIX}{name.upper()}": name for name in ServiceConfig.model_fields}
    problems, links = [], set()
    for variable, value in os.environ.items():
        if not variable.startswith(PREFIX):
            continue
        if _LINK_VALUE.match(value) or (variable not in known and _SERVICE_LINK.search(variable)):
            links.add(known.get(variable, ""))
        elif variable not in known and variable not in _OTHERS:
            problems.append((variable, f"there is no such setting{nearest(variable, known)}"))
    if problems:
        raise ConfigError(problems)
    values: dict[str, Any] = EnvSettingsSource(_Environment)()
    return {name: value for name, value in values.items() if name in ServiceConfig.model_fields and name not in links}


def _name(key: str, origin: str) -> str:
    """A setting as the user wrote it."""
    if origin == "environment":
        return f"{PREFIX}{key.upper()}"
    if origin in ("command line", "default"):
        return f"--{key.replace('_', '-')}"
    return f"{origin}: {key}"


def load_settings(
    flags: Mapping[str, Any] | None = None, *, file: Path | None = None, environment: bool = True
) -> Settings:
    """The settings of `flags`, AURORAEDGE_* (unless `environment` is false) and `file` (else $AURORAEDGE_CONFIG).

    Raises ConfigError, which names every problem as its source does: --port, AURORAEDGE_PORT, FILE: port.
    """
    if file is None and environment and os.environ.get(FILE_VARIABLE):
        file = Path(os.environ[FILE_VARIABLE])
    layers = [(str(file), read_file(file))] if file is not None else []
    if environment:
        layers.append(("environment", read_environment()))
    layers.append(("command line", dict(flags or {})))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        values |= layer
        origins |= dict.fromkeys(layer, origin)
    try:
        return Settings(config=ServiceConfig.model_validate(values), origins=origins, file=file)
    except ValidationError as error:
        problems = []
        for found in error.errors():
            key = str(found["loc"][0]) if found["loc"] else str(found.get("ctx", {}).get("field", "host"))
            problems.append((_name(key, origins.get(key, "default")), found["msg"].removeprefix("Value error, ")))
        raise ConfigError(problems) from error
