"""A frame on its way from a source to the server, and the ids that make sending it again harmless."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from auroraedge.inspection.results import RequestInfo


@dataclass(frozen=True, kw_only=True)
class FileOrigin:
    """The file that a frame was read from. `relative`: below the watched folder, with forward slashes."""

    path: Path
    relative: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One image file's bytes with what is known about the part.

    spool_id: its row in the journal; None for frames that are not on the spool. at: monotonic seconds of its arrival.
    problem: why it cannot be inspected; its result is ERROR.
    """

    source: str
    data: bytes = field(repr=False)
    request: RequestInfo
    image_name: str
    recipe: str
    at: float
    origin: FileOrigin | None = None
    spool_id: int | None = None
    problem: AuroraEdgeError | None = None


def file_request_id(source: str, origin: FileOrigin, data: bytes) -> str:
    """The same for every attempt at this file; another for a file that is written again, even under the same name."""
    parts = (source, origin.relative, str(origin.mtime_ns), hashlib.sha256(data).hexdigest())
    return f"{source}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"


def live_request_id(source: str, session: str, number: int) -> str:
    """`session`: new at every start, so that the count may begin again."""
    return f"{source}-{session}-{number:08d}"


def request_info(*layers: dict[str, Any], request_id: str, captured_at: datetime) -> RequestInfo:
    """The fields of all layers, the later ones winning. Raises InvalidRequestError naming the field."""
    values: dict[str, Any] = {"captured_at": captured_at}
    for layer in layers:
        values |= {name: value for name, value in layer.items() if value not in ("", None)}
    for name, value in values.items():
        if isinstance(value, int | float) and name != "exposure_us":
            values[name] = str(value)  # JSON sidecars write serial numbers as numbers
    try:
        return RequestInfo(**(values | {"request_id": request_id}))
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequestError(
            f"{first['msg']}.",
            field=".".join(str(part) for part in first["loc"]),
            remedy="Correct what names the part.",
        ) from error
