"""What is known about a part besides its picture: from the file's name, a sidecar file, or the trigger message."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from auroraedge.errors import InvalidRequestError
from auroraedge.ingest.settings import INFO_FIELDS

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """One release of a camera. at: monotonic seconds."""

    id: str
    info: Mapping[str, Any] = field(default_factory=dict)
    at: float


def trigger_from(text: str, at: float) -> Trigger:
    """From `T-17`, or from a JSON object with trigger_id, part_id, lot, ... Raises InvalidRequestError."""
    text = text.strip()
    if not text.startswith("{"):
        return Trigger(id=text[:256], at=at)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"The trigger is no JSON: {error}.", field="trigger", remedy="Send an id, or a JSON object."
        ) from error
    info = _fields(content, "trigger")
    return Trigger(id=str(info.get("trigger_id", ""))[:256], info=info, at=at)


def name_fields(pattern: str, relative: str) -> dict[str, str]:
    """The named groups of `pattern` in a path with forward slashes. Raises InvalidRequestError where there is none."""
    if not pattern:
        return {}
    found = re.search(pattern, relative)
    if found is None:
        raise InvalidRequestError(
            f"'{relative}' does not match the pattern.", field="pattern", remedy="Correct the file name or the pattern."
        )
    return {name: value for name, value in found.groupdict().items() if value}


def sidecar_of(image: Path, kind: Literal["none", "json", "csv"]) -> Path | None:
    """The file beside `image` that describes it: NAME.png.json, or NAME.json. None while there is none."""
    if kind == "none":
        return None
    for candidate in (image.with_name(f"{image.name}.{kind}"), image.with_suffix(f".{kind}")):
        if candidate.is_file():
            return candidate
    return None


def sidecar_fields(path: Path) -> dict[str, Any]:
    """A JSON object, or a CSV file with a header and one row. Raises InvalidRequestError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is larger than 1 MiB")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return _fields(json.loads(text), path.name)
        rows = list(csv.DictReader(text.splitlines()))
        if len(rows) != 1:
            raise ValueError(f"it has {len(rows)} rows instead of one")
        return _fields(rows[0], path.name)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(
            f"{path.name} cannot be used: {error}.", field="sidecar", remedy=f"Known fields: {', '.join(INFO_FIELDS)}."
        ) from error


def _fields(content: Any, where: str) -> dict[str, Any]:
    """The fields that we know; others belong to whoever wrote them."""
    if not isinstance(content, dict):
        raise InvalidRequestError(
            f"{where} is no JSON object.", field=where, remedy="Write one object with the fields."
        )
    known = {name: value for name, value in content.items() if name in INFO_FIELDS and value is not None}
    for name, value in known.items():
        if not isinstance(value, str | int | float):
            raise InvalidRequestError(f"'{name}' is neither text nor number.", field=where, remedy="Correct it.")
    return known
