"""The filter of a page's address: query parameters to a ResultFilter and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.results import Verdict
from auroraedge.store import ResultFilter

TEXT_FIELDS = ("line", "station", "camera", "lot", "part_id", "job", "recipe_id")
_LONGEST = 256


def _moment(text: str, field: str) -> datetime | None:
    """2026-03-04T06:00 or with seconds and zone; the local time of this machine where no zone is given."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidRequestError(f"'{text[:40]}' is no time.", field=field, remedy="Use the date field.") from error


@dataclass(frozen=True, kw_only=True)
class PageFilter:
    """What is filtered, as typed by a person. Empty values set no condition."""

    values: dict[str, str]

    @classmethod
    def of(cls, query: Mapping[str, str]) -> PageFilter:
        names = (*TEXT_FIELDS, "since", "until", "verdict", "reviewed")
        found = {name: query.get(name, "").strip()[:_LONGEST] for name in names}
        return cls(values={name: value for name, value in found.items() if value})

    def __getitem__(self, name: str) -> str:
        return self.values.get(name, "")

    def to_filter(self) -> ResultFilter:
        """Raises InvalidRequestError for a value that means nothing."""
        verdict = self["verdict"]
        if verdict and verdict not in Verdict.__members__:
            raise InvalidRequestError(f"'{verdict[:40]}' is no verdict.", field="verdict", remedy="Use OK, NG, ...")
        if self["reviewed"] not in ("", "yes", "no"):
            raise InvalidRequestError(f"'{self['reviewed'][:40]}' is not yes or no.", field="reviewed")
        until = _moment(self["until"], "until")
        texts: dict[str, Any] = {name: self[name] for name in TEXT_FIELDS if self[name]}
        return ResultFilter(
            since=_moment(self["since"], "since"),
            # The field has minutes; the minute that is named belongs to it.
            until=until + timedelta(minutes=1) if until is not None and len(self["until"]) == 16 else until,
            effective_verdicts=(Verdict(verdict),) if verdict else None,
            reviewed={"yes": True, "no": False}.get(self["reviewed"]),
            **texts,
        )
