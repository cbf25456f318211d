"""Verdicts over time: by the hour, or in longer steps where hours would be too many to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from auroraedge.report.statistics import Counts, Share, no_counts, yield_of
from auroraedge.report.words import Words

_MOST = 72


@dataclass(frozen=True, kw_only=True)
class Step:
    """One bar. `day` is set where a new day begins."""

    name: str
    day: str
    counts: Counts
    share: Share


@dataclass(frozen=True, kw_only=True)
class Trend:
    """`unit`: hour, day, week or month. Steps without images are there too, so that a standstill shows."""

    unit: str
    steps: tuple[Step, ...]


def _start(moment: datetime, unit: str) -> datetime:
    moment = moment.replace(minute=0, second=0, microsecond=0)
    if unit == "hour":
        return moment
    moment = moment.replace(hour=0)
    if unit == "week":
        return moment - timedelta(days=moment.weekday())
    return moment.replace(day=1) if unit == "month" else moment


def _next(moment: datetime, unit: str) -> datetime:
    if unit == "month":
        return (moment.replace(day=28) + timedelta(days=4)).replace(day=1)
    return moment + {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}[unit]


def trend_of(hours: Mapping[int, Counts], t: Words) -> Trend | None:
    """The trend of counts by hours since 1970 in UTC; None without any. The steps follow the report's time zone."""
    if not hours:
        return None
    length = max(hours) - min(hours) + 1
    unit = "hour" if length <= _MOST else "day" if length <= 24 * _MOST else "week" if length <= 168 * 104 else "month"
    buckets: dict[datetime, Counts] = {}
    for hour in sorted(hours):
        moment = datetime.fromtimestamp(hour * 3600, UTC)
        # In hours, UTC tells apart the two that have one name when clocks are set back.
        start = moment if unit == "hour" else _start(t.local(moment), unit)
        counts = buckets.setdefault(start, no_counts())
        for verdict, count in hours[hour].items():
            counts[verdict] += count
    moments, last = [min(buckets)], max(buckets)
    while moments[-1] < last and len(moments) <= 5 * _MOST:
        moments.append(_next(moments[-1], unit))
    if moments[-1] < last:  # a clock that was wrong by decades: without the empty steps
        moments = sorted(buckets)
    steps, before = [], ""
    for moment in moments:
        counts = buckets.get(moment, no_counts())
        if unit == "hour":
            name, day = t.clock(moment, "%H:%M"), t.clock(moment, "%d.%m." if t.base == "de" else "%m-%d")
        else:
            name, day = t.clock(moment, "%d.%m." if t.base == "de" else "%m-%d"), t.clock(moment, "%Y")
        if unit == "month":
            name = t.clock(moment, "%m")
        steps.append(Step(name=name, day=day if day != before else "", counts=counts, share=yield_of(counts)))
        before = day
    return Trend(unit=unit, steps=tuple(steps))
