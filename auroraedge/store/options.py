"""Options that every command on a store shares, and their values: addresses, times, ages, sizes."""

from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from auroraedge.errors import InvalidRequestError

if TYPE_CHECKING:
    from auroraedge.store import ResultFilter, Store

StoreOption = Annotated[
    str | None,
    typer.Option("--store", "-s", envvar="AURORAEDGE_STORE", help="Folder, database file, or postgresql://... URL."),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option("--images", envvar="AURORAEDGE_STORE_IMAGES", help="Folder of the pictures; else beside SQLite."),
]
WhoOption = Annotated[str | None, typer.Option("--who", help="Name for the audit trail; else the login name.")]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="2026-03-04T06:00 (local time unless it has a zone), or an age: 8h, 7d.")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="Likewise; not included.")]
LotOption = Annotated[list[str] | None, typer.Option("--lot", help="May be repeated, like the next ones.")]
LineOption = Annotated[list[str] | None, typer.Option("--line")]
StationOption = Annotated[list[str] | None, typer.Option("--station")]
CameraOption = Annotated[list[str] | None, typer.Option("--camera")]
JobOption = Annotated[list[str] | None, typer.Option("--job")]
PartOption = Annotated[list[str] | None, typer.Option("--part")]
FilterRecipeOption = Annotated[list[str] | None, typer.Option("--recipe", "-r", help="Recipe id.")]

_AGE = re.compile(r"^(\d+(?:\.\d+)?)\s*(min|h|d|w)$")
_AGE_HOURS = {"min": 1 / 60, "h": 1.0, "d": 24.0, "w": 168.0}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?$", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def open_store(url: str | None, images: Path | None, *, create: bool = False) -> Store:
    """The store of the options. Raises InvalidRequestError when none is named."""
    from auroraedge.store import Store

    if not url:
        raise InvalidRequestError(
            "No store is named.", field="store", remedy="Name one with --store PATH, or set AURORAEDGE_STORE."
        )
    return Store.open(url, images=images, create=create)


def login(who: str | None) -> str:
    """Who to name in the audit trail."""
    if who:
        return who
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def parse_moment(text: str | None, field: str) -> datetime | None:
    """A point in time: ISO 8601, in local time where no zone is given, or how long ago: 30min, 8h, 7d, 2w."""
    if text is None:
        return None
    age = _AGE.match(text.strip())
    if age:
        return datetime.now(UTC) - timedelta(hours=float(age[1]) * _AGE_HOURS[age[2]])
    try:
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidRequestError(
            f"'{text}' is no time.", field=field, remedy="Write 2026-03-04T06:00, or an age such as 8h or 7d."
        ) from error


def parse_days(text: str | None, field: str) -> float | None:
    """A number of days; 'forever' is None."""
    if text is None or text.strip().lower() in ("forever", "none"):
        return None
    try:
        days = float(text.strip().removesuffix("d"))
    except ValueError as error:
        raise InvalidRequestError(
            f"'{text}' is no number of days.", field=field, remedy="Write e.g. 30, or forever."
        ) from error
    if not 0 <= days < 1e5:
        raise InvalidRequestError(f"{text} days are out of range.", field=field, remedy="Write e.g. 30, or forever.")
    return days


def parse_size(text: str | None, field: str) -> int | None:
    """Bytes: 500MB (10^6), 500MiB (2^20), 20G, 1048576."""
    if text is None:
        return None
    found = _SIZE.match(text.strip())
    if not found:
        raise InvalidRequestError(f"'{text}' is no size.", field=field, remedy="Write e.g. 20GB or 500MiB.")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** _POWERS.get((found[2] or "").lower(), 0))


def build_filter(
    *,
    since: str | None = None,
    until: str | None = None,
    verdicts: Sequence[str] | None = None,
    **values: Any,
) -> ResultFilter:
    """The filter of the options; empty lists set no condition. `verdicts` are those after review."""
    from auroraedge.inspection.results import Verdict
    from auroraedge.store import ResultFilter

    chosen = None
    if verdicts:
        try:
            chosen = tuple(Verdict(name.upper()) for name in verdicts)
        except ValueError as error:
            known = ", ".join(verdict.value for verdict in Verdict)
            raise InvalidRequestError(f"{error}.", field="verdict", remedy=f"Verdicts: {known}.") from error
    given = {name: value for name, value in values.items() if value not in (None, [], ())}
    return ResultFilter(
        since=parse_moment(since, "since"),
        until=parse_moment(until, "until"),
        effective_verdicts=chosen,
        **given,
    )
