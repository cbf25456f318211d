"""report.html: one page that needs no network, from typed figures through an autoescaping template."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import auroraedge
from auroraedge.inspection.palette import VERDICT_STYLES, with_extra_labels
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Verdict
from auroraedge.report import charts, statistics
from auroraedge.report.gallery import PageLimits, build_gallery
from auroraedge.report.inputs import SkippedFile
from auroraedge.report.statistics import Entry

_NBSP = "\N{NO-BREAK SPACE}"
_COLUMNS = (("part_id", "Part"), *statistics.GROUP_FIELDS)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the outputs are made of. `planned`: images of the source, inspected or not yet."""

    title: str
    generated_at: datetime
    source: str
    references: str | None
    recipes: tuple[Recipe, ...]
    model_id: str
    engine_sha256: str
    entries: tuple[Entry, ...]
    skipped: tuple[SkippedFile, ...] = ()
    notes: tuple[str, ...] = ()
    planned: int
    language: str = "en"

    @property
    def is_complete(self) -> bool:
        return len(self.entries) >= self.planned

    @property
    def generated_text(self) -> str:
        moment = self.generated_at.astimezone(UTC)
        return f"{moment:%Y-%m-%d %H:%M} UTC"


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


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _findings(report: Report, rows: Sequence[statistics.ParetoRow], titles: dict[str, str]) -> list[str]:
    """What a reader in a hurry has to know, in sentences."""
    counts = statistics.verdict_counts(report.entries)
    found = []
    if rows:
        top, total = rows[0], sum(row.count for row in rows)
        found.append(
            f"Most frequent defect: {titles.get(top.label, top.label)}, {top.count} of {total} "
            f"({top.count / total:.0%}), in {_plural(top.images, 'image')}."
        )
    critical = sum(any(d.severity.value == "critical" for d in e.result.defects) for e in report.entries)
    if critical:
        found.append(f"{_plural(critical, 'image')} with a critical defect.")
    if counts[Verdict.REVIEW]:
        found.append(f"{_plural(counts[Verdict.REVIEW], 'image')} for a person to decide (REVIEW).")
    failed = counts[Verdict.ERROR]
    if failed:
        found.append(f"{_plural(failed, 'image')} could not be inspected and {'is' if failed == 1 else 'are'} not OK.")
    return found


def _remarks(report: Report) -> list[str]:
    """Conditions under which the figures were made."""
    remarks = list(report.notes)
    simulated = sum(entry.result.is_simulated for entry in report.entries)
    if simulated:
        remarks.append(f"{_plural(simulated, 'result')} from a simulated camera or model, not from a part.")
    warnings = Counter(warning for entry in report.entries for warning in entry.result.warnings)
    remarks += [f"{warning} ({_plural(count, 'image')})" for warning, count in sorted(warnings.items())]
    return remarks


def _columns(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """The columns of the table that say where an image comes from, as far as they tell something."""
    found = []
    for name, title in _COLUMNS:
        values = {statistics.origin(entry, name) for entry in entries}
        if values - {""} and (name != "recipe_id" or len(values) > 1):
            found.append((name, title))
    return found


def _failures(report: Report) -> list[dict[str, str]]:
    rows = [
        {"name": e.item.name, "reason": e.result.error.message, "remedy": e.result.error.remedy}
        for e in report.entries
        if e.result.error is not None
    ]
    return rows + [{"name": s.name, "reason": s.reason, "remedy": ""} for s in report.skipped]


def _charts(report: Report, rows: list[statistics.ParetoRow], titles: dict[str, str]) -> dict[str, Any]:
    heat = statistics.heat_map(report.entries)
    stages = statistics.stage_rows(report.entries)
    total = next((row for row in stages if row.name == "total_ms"), None)
    values = [timing.total_ms for timing in statistics.measured(report.entries)]
    pairs = [(e.result.ng_probability, e.result.verdict) for e in report.entries if e.result.ng_probability is not None]
    used = {e.result.thresholds for e in report.entries if e.result.thresholds and e.result.error is None}
    thresholds = next(iter(used)) if len(used) == 1 else None
    return {
        "pareto": charts.pareto_chart(rows, titles) if rows else None,
        "heat": charts.heat_chart(heat) if heat else None,
        "heat_info": heat,
        "latency": charts.latency_chart(values, total.p50, total.p95, total.p99) if total else None,
        "stages": stages,
        "probability": charts.probability_chart(pairs, thresholds) if pairs else None,
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("auroraedge.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    environment.filters["ms"] = milliseconds
    environment.globals["swatch"] = charts.swatch
    environment.globals["plural"] = _plural
    return environment


def render_page(report: Report, limits: PageLimits | None = None) -> bytes:
    """The page as UTF-8 bytes; the same report gives the same bytes."""
    limits = limits or PageLimits()
    environment = _environment()
    titles = statistics.label_titles(report.recipes, report.language)
    labels = statistics.all_labels(report.recipes)
    rows = statistics.pareto(report.entries)
    styles = with_extra_labels(labels, {row.label for row in rows})
    loader = environment.loader
    assert loader is not None
    script = loader.get_source(environment, "report.js")[0]
    style = loader.get_source(environment, "report.css")[0]
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    groups = [(title, statistics.yield_by(report.entries, name)) for name, title in statistics.GROUP_FIELDS]
    created = sorted(entry.result.created_at for entry in report.entries)
    sections = build_gallery(report.entries, styles, limits)
    page = environment.get_template("report.html.j2").render(
        report=report,
        script=Markup(script),
        style=Markup(style),
        script_hash=script_hash,
        version=auroraedge.__version__,
        counts=statistics.verdict_counts(report.entries),
        verdicts=[Verdict.OK, Verdict.NG, Verdict.REVIEW, Verdict.ERROR],
        verdict_styles=VERDICT_STYLES,
        share=statistics.first_pass_yield(report.entries),
        findings=_findings(report, rows, titles),
        remarks=_remarks(report),
        charts=_charts(report, rows, titles),
        pareto=rows,
        groups=[(title, members) for title, members in groups if members],
        sections={section.verdict.value: section for section in sections},
        carded={card.number for section in sections for card in section.cards},
        columns=_columns(report.entries),
        origin=statistics.origin,
        has_class=any(e.result.predicted_class for e in report.entries),
        rows=list(enumerate(report.entries, start=1))[: limits.table_rows],
        failures=_failures(report),
        titles=titles,
        styles=styles,
        span=f"{created[0]:%Y-%m-%d %H:%M} to {created[-1]:%Y-%m-%d %H:%M} UTC" if created else "",
    )
    return page.encode()
