"""The page of an agreement study: one file that needs no network; the same study gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import auroraedge
from auroraedge.inspection.palette import VERDICT_STYLES
from auroraedge.inspection.results import Verdict
from auroraedge.studies.agreement import KAPPA_LIMITS, LIMITS, AgreementReport, Appraiser
from auroraedge.studies.kappa import Kappa
from auroraedge.studies.plots import Bar, Zone, clip_middle, interval_plot
from auroraedge.studies.proportions import Share

_NBSP = "\N{NO-BREAK SPACE}"
# Parts that the page lists one by one; the JSON has all.
_ROWS = 60
_SIGNS = {"acceptable": "✓", "marginal": "?", "unacceptable": "✕"}
_WORDS = {"effectiveness": "effectiveness", "miss_rate": "miss rate", "false_alarm_rate": "false-alarm rate"}


def percent(value: float | None, digits: int = 1) -> str:
    """A share as text; rounding never makes 100 % of almost all, or 0 % of hardly any."""
    if value is None:
        return "n/a"
    text = f"{value * 100:.{digits}f}"
    if value < 1 and float(text) >= 100:
        return f">{_NBSP}{100 - 10**-digits:.{digits}f}{_NBSP}%"
    if value > 0 and float(text) <= 0:
        return f"<{_NBSP}{10**-digits:.{digits}f}{_NBSP}%"
    return f"{text}{_NBSP}%"


def share_text(found: Share | None) -> str:
    """A share with its counts and interval."""
    if found is None or found.value is None:
        return "n/a"
    return f"{percent(found.value)} ({found.count}/{found.total}), {percent(found.low)} to {percent(found.high)}"


def kappa_text(found: Kappa | None) -> str:
    """A kappa with its interval."""
    if found is None:
        return "n/a"
    if found.value is None:
        return "undefined: one category"
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f}, {found.low:.3f} to {found.high:.3f}"


def kappa_word(found: Kappa | None) -> str:
    """AIAG's word for a kappa."""
    if found is None or found.value is None:
        return ""
    good, poor = KAPPA_LIMITS
    return "good" if found.value > good else "poor" if found.value < poor else "fair"


def reason_of(appraiser: Appraiser) -> str:
    """Which figures keep the grade down."""
    worst = [_WORDS[name] for name, grade in appraiser.grades.items() if grade == appraiser.grade]
    return "" if appraiser.grade == "acceptable" else ", ".join(worst)


def _share_bar(label: str, found: Share | None, kind: str) -> Bar:
    if found is None or found.value is None:
        return Bar(label=label, text="n/a")
    text = f"{percent(found.value)} ({found.count}/{found.total})"
    return Bar(label=label, value=found.value, low=found.low, high=found.high, text=text, kind=kind)


def _kappa_bar(label: str, found: Kappa | None) -> Bar:
    if found is None or found.value is None:
        return Bar(label=label, text="undefined" if found else "n/a")
    return Bar(
        label=label,
        value=found.value,
        low=found.low,
        high=found.high,
        text=f"{found.value:.2f} {kappa_word(found)}",
        kind={"good": "good", "fair": "marginal", "poor": "bad"}[kappa_word(found)],
    )


def _kind(appraiser: Appraiser, name: str) -> str:
    return {"acceptable": "good", "marginal": "marginal", "unacceptable": "bad"}.get(
        appraiser.grades.get(name, ""), "plain"
    )


def _agreement_plot(report: AgreementReport) -> Markup:
    people = report.appraisers
    bars: list[Bar] = []
    if any(a.within for a in people):
        bars += [Bar(label="Repeats its own answer in every trial", is_head=True)]
        bars += [_share_bar(a.name, a.within, "plain") for a in people]
    if report.has_standard:
        bars += [Bar(label="Agrees with the standard in every trial", is_head=True)]
        bars += [_share_bar(a.name, a.effectiveness, _kind(a, "effectiveness")) for a in people]
    if report.between or report.all_standard:
        bars += [Bar(label="All appraisers in every trial", is_head=True)]
        bars += [_share_bar("with each other", report.between, "plain")] if report.between else []
        bars += [_share_bar("with the standard", report.all_standard, "plain")] if report.all_standard else []
    good, marginal = LIMITS["effectiveness"]
    lows = [bar.low for bar in bars if bar.low is not None]
    start = min(0.5, int(min(lows, default=0.5) * 10) / 10)
    zones = (
        Zone(low=start, high=marginal, kind="bad"),
        Zone(low=marginal, high=good, kind="marginal"),
        Zone(low=good, high=1.0, kind="good"),
    )
    ticks = [tick / 10 for tick in range(round(start * 10), 11) if start >= 0.4 or tick % 2 == 0]
    return interval_plot("Agreement by parts", bars, axis=(start, 1.0), ticks=ticks, zones=zones)


def _kappa_plot(report: AgreementReport) -> Markup:
    people = report.appraisers
    bars: list[Bar] = []
    if any(a.within_kappa for a in people):
        bars += [Bar(label="Trials of one appraiser (Fleiss)", is_head=True)]
        bars += [_kappa_bar(a.name, a.within_kappa) for a in people]
    if report.has_standard:
        bars += [Bar(label="With the standard (Cohen)", is_head=True)]
        bars += [_kappa_bar(a.name, a.standard_kappa) for a in people]
        bars += [_kappa_bar("all together", report.all_standard_kappa)] if len(people) > 1 else []
    if report.pairs:
        bars += [Bar(label="With each other (Cohen; all: Fleiss)", is_head=True)]
        bars += [
            _kappa_bar(f"{clip_middle(p.first, 11)} – {clip_middle(p.second, 11)}", p.kappa) for p in report.pairs[:15]
        ]
        bars += [_kappa_bar("all together", report.between_kappa)]
    lows = [bar.low for bar in bars if bar.low is not None]
    start = -1.0 if min(lows, default=0.0) < -0.2 else -0.2 if min(lows, default=0.0) < 0 else 0.0
    good, poor = KAPPA_LIMITS
    zones = (
        Zone(low=start, high=poor, kind="bad"),
        Zone(low=poor, high=good, kind="marginal"),
        Zone(low=good, high=1.0, kind="good"),
    )
    ticks = [-1.0, -0.5, 0.0, 0.5, 1.0] if start == -1.0 else [tick / 5 for tick in range(round(start * 5), 6)]
    return interval_plot("Kappa", bars, axis=(start, 1.0), ticks=ticks, zones=zones, percent=False)


def _rate_plot(report: AgreementReport, name: str, title: str) -> Markup:
    bars = [_share_bar(a.name, getattr(a, name), _kind(a, name)) for a in report.appraisers]
    highest = max((bar.high for bar in bars if bar.high is not None), default=0.1)
    end = next(limit for limit in (0.2, 0.4, 0.6, 1.0) if limit >= min(1.0, highest))
    good, marginal = LIMITS[name]
    zones = (
        Zone(low=0.0, high=good, kind="good"),
        Zone(low=good, high=marginal, kind="marginal"),
        Zone(low=marginal, high=end, kind="bad"),
    )
    return interval_plot(title, bars, axis=(0.0, end), ticks=[end * step / 4 for step in range(5)], zones=zones)


def environment() -> Environment:
    """Escapes everything by itself."""
    found = Environment(
        loader=PackageLoader("auroraedge.studies", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["percent"] = percent
    found.filters["share"] = share_text
    found.filters["kappa"] = kappa_text
    return found


def render_page(report: AgreementReport, *, generated_at: datetime, facts: Sequence[tuple[str, str]] = ()) -> bytes:
    """The page as UTF-8. facts: what else to name, e.g. recipe and engine."""
    loader = environment()
    assert loader.loader is not None
    style = loader.loader.get_source(loader, "study.css")[0]
    wrong = [row for row in report.rows if row.wrong]
    context: dict[str, Any] = {
        "report": report,
        "facts": facts,
        "style": Markup(style),
        "version": auroraedge.__version__,
        "generated": f"{generated_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "agreement_plot": _agreement_plot(report),
        "kappa_plot": _kappa_plot(report),
        "miss_plot": _rate_plot(report, "miss_rate", "Miss rate") if report.has_standard else None,
        "alarm_plot": _rate_plot(report, "false_alarm_rate", "False-alarm rate") if report.has_standard else None,
        "signs": _SIGNS,
        "reason_of": reason_of,
        "kappa_word": kappa_word,
        "limits": LIMITS,
        "kappa_limits": KAPPA_LIMITS,
        "glyphs": {verdict: VERDICT_STYLES[verdict].glyph for verdict in Verdict},
        "wrong": wrong[:_ROWS],
        "wrong_total": len(wrong),
        "trials": max((a.trials for a in report.appraisers), default=0),
        "verdicts": report.categories,
    }
    return loader.get_template("agreement.html.j2").render(**context).encode()
