"""The words, numbers and times of a report in its language. English texts are the keys; see languages.py."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.results import Verdict
from auroraedge.report.languages import TEXTS

_NBSP = "\N{NO-BREAK SPACE}"
GLOSSES = {
    Verdict.OK: "passed",
    Verdict.NG: "rejected",
    Verdict.REVIEW: "to decide",
    Verdict.ERROR: "not inspected",
}


def percent(value: float | None, digits: int = 1) -> str:
    """A share as text. Rounding never turns "almost all" into 100 % or "hardly any" into 0 %."""
    if value is None:
        return "n/a"
    text = f"{value * 100:.{digits}f}"
    if value < 1 and float(text) >= 100:
        return f">{_NBSP}{100 - 10**-digits:.{digits}f}{_NBSP}%"
    if value > 0 and float(text) <= 0:
        return f"<{_NBSP}{10**-digits:.{digits}f}{_NBSP}%"
    return f"{text}{_NBSP}%"


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def zone(name: str) -> tzinfo:
    """The time zone of this name. Raises InvalidRequestError."""
    if name == "UTC":  # without the time zones of the system, which small containers lack
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidRequestError(
            f"There is no time zone '{name}' on this machine.",
            field="time_zone",
            remedy="Name one as in Europe/Berlin or Asia/Shanghai; where none works, pip install tzdata.",
        ) from error


class Words:
    """Calling it translates. A language without texts has English headings, and labels where the recipe has them."""

    def __init__(self, language: str = "en", time_zone: str = "UTC") -> None:
        self.language = language
        self.base = language.replace("_", "-").partition("-")[0].lower()
        self.html_language = {"zh": "zh-Hans"}.get(self.base, self.base if self.base in TEXTS else "en")
        self.time_zone = time_zone
        self._zone = zone(time_zone)
        self._texts = TEXTS.get(self.base, {})

    def __call__(self, text: str, **values: object) -> str:
        found = self._texts.get(text, text)
        return found.format(**values) if values else found

    def plural(self, one: str, many: str, count: int, **values: object) -> str:
        """`one` or `many`, which hold {n}."""
        return self(one if count == 1 else many, n=self.count(count), **values)

    def gloss(self, verdict: Verdict) -> str:
        return self(GLOSSES[verdict])

    def _number(self, text: str) -> str:
        return text.replace(".", ",") if self.base == "de" else text

    def percent(self, value: float | None, digits: int = 1) -> str:
        return self("n/a") if value is None else self._number(percent(value, digits))

    def interval(self, low: float, high: float) -> str:
        return self("{low} to {high}", low=self.percent(low), high=self.percent(high))

    def ms(self, value: float) -> str:
        return self._number(milliseconds(value))

    def decimal(self, value: float, form: str = ".3g") -> str:
        return self._number(format(value, form))

    def count(self, value: int) -> str:
        text = f"{value:,}"
        return text.replace(",", ".") if self.base == "de" else text

    def date(self, moment: datetime) -> str:
        return f"{moment.astimezone(self._zone):{'%d.%m.%Y' if self.base == 'de' else '%Y-%m-%d'}}"

    def time(self, moment: datetime) -> str:
        return f"{self.date(moment)} {moment.astimezone(self._zone):%H:%M}"

    def local(self, moment: datetime) -> datetime:
        return moment.astimezone(self._zone)

    def clock(self, moment: datetime, form: str) -> str:
        """A moment of the report's time zone in strftime's form."""
        return moment.astimezone(self._zone).strftime(form)

    def span(self, first: datetime, last: datetime) -> str:
        """From and until, with the time zone; the date once where it is the same day."""
        end = self.clock(last, "%H:%M") if self.date(first) == self.date(last) else self.time(last)
        return f"{self('{low} to {high}', low=self.time(first), high=end)} {self.time_zone}"
