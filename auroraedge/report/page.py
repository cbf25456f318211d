"""report.html: one page that needs no network, from typed figures through an autoescaping template."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import auroraedge
from auroraedge.inspection.palette import VERDICT_STYLES, LabelStyle, with_extra_labels
from auroraedge.inspection.recipe import Recipe, Thresholds
from auroraedge.inspection.results import Verdict
from auroraedge.report import charts, statistics
from auroraedge.report.gallery import PageLimits, Section, build_gallery
from auroraedge.report.inputs import SkippedFile
from auroraedge.report.layout import LAYOUTS, Layout
from auroraedge.report.pictures import Pictures
from auroraedge.report.statistics import Entry, Failure, Figures
from auroraedge.report.trend import Trend, trend_of
from auroraedge.report.words import Words, milliseconds, percent

__all__ = ["Report", "View", "milliseconds", "percent", "render_page"]
_COLUMNS = (("part_id", "Part"), *statistics.GROUP_FIELDS)
# The date of a report without results, for files that need one.
NO_DATE = datetime(2000, 1, 1, tzinfo=UTC)
VERDICTS = (Verdict.OK, Verdict.NG, Verdict.REVIEW, Verdict.ERROR)
HEADINGS = {
    "ng": ("Rejected parts", "Worst first. ▲ marks critical defects."),
    "review": ("Review queue", "A person has to decide; the most suspicious first. ▲ marks critical defects."),
    "ok": ("Passed, closest to the limit", "The passed parts with the highest NG probability: look here for escapes."),
    "every": ("Every image", "In the order of inspection. ▲ marks critical defects."),
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the outputs are made of but the pictures. `planned`: images of the source, inspected or not."""

    title: str
    generated_at: datetime
    source: str
    references: str | None = None
    recipes: tuple[Recipe, ...] = ()
    model_id: str = ""
    engine_sha256: str = ""
    figures: Figures
    skipped: tuple[SkippedFile, ...] = ()
    notes: tuple[str, ...] = ()
    planned: int
    layout: Layout = LAYOUTS["batch"]
    words: Words = field(default_factory=Words)
    files: tuple[str, ...] = ()
    inspected: bool = True

    @property
    def entries(self) -> list[Entry]:
        """The first results, as many as are kept for the table."""
        return self.figures.rows

    @property
    def is_complete(self) -> bool:
        return self.figures.total >= self.planned

    @property
    def generated_text(self) -> str:
        """ "" where there is neither a result nor a given time: the clock is not part of a report."""
        if self.generated_at == NO_DATE:
            return ""
        return f"{self.words.time(self.generated_at)} {self.words.time_zone}"


class View:
    """The report as the page and the PDF show it: texts, charts, sections, each made once."""

    def __init__(self, report: Report, pictures: Pictures, limits: PageLimits) -> None:
        self.report = report
        self.figures = report.figures
        self.t = report.words
        self.limits = limits
        self._pictures = pictures

    @cached_property
    def rows(self) -> list[statistics.ParetoRow]:
        return self.figures.pareto()

    @cached_property
    def titles(self) -> dict[str, str]:
        return statistics.label_titles(self.report.recipes, self.t.language)

    @cached_property
    def styles(self) -> dict[str, LabelStyle]:
        return with_extra_labels(statistics.all_labels(self.report.recipes), self.figures.labels)

    @cached_property
    def sections(self) -> dict[str, Section]:
        wanted = self.report.layout.sections
        found = build_gallery(self.figures, wanted, self._pictures, self.styles, self.limits)
        return {section.name: section for section in found}

    @cached_property
    def thresholds(self) -> Thresholds | None:
        """The thresholds, where all results had the same."""
        found = set(self.figures.thresholds.values())
        only = next(iter(found)) if len(found) == 1 else None
        return only if isinstance(only, Thresholds) else None

    @cached_property
    def trend(self) -> Trend | None:
        return trend_of(self.figures.hours, self.t)

    @cached_property
    def charts(self) -> dict[str, Markup | None]:
        figures, t = self.figures, self.t
        heat, stacks, times = figures.heat_map(), figures.probabilities(), figures.response_times()
        shown = self.trend is not None and (len(self.trend.steps) > 1 or self.report.layout.name == "shift")
        return {
            "pareto": charts.pareto_chart(self.rows, self.titles, t) if self.rows else None,
            "heat": charts.heat_chart(heat, t) if heat else None,
            "latency": charts.latency_chart(times, t, figures.takt()) if times.size and times.max() > 0 else None,
            "probability": charts.probability_chart(stacks, self.thresholds, t) if stacks else None,
            "trend": charts.trend_chart(self.trend, t) if self.trend and shown else None,
        }

    @cached_property
    def columns(self) -> list[tuple[str, str]]:
        told = self.figures.columns()
        return [(name, self.t(title)) for name, title in _COLUMNS if name in told]

    @cached_property
    def groups(self) -> list[tuple[str, list[statistics.GroupYield]]]:
        names = dict(statistics.GROUP_FIELDS)
        found = [(self.t(f"Yield by {names[n].lower()}"), self.figures.yield_by(n)) for n in self.report.layout.groups]
        return [(title, members) for title, members in found if members]

    @cached_property
    def failures(self) -> list[Failure]:
        skipped = self.report.skipped[: self.figures.limits.failures]
        rows = [Failure(name=s.name, reason=s.reason, remedy="") for s in skipped]
        return (self.figures.failures + rows)[: self.figures.limits.failures]

    @property
    def failed(self) -> int:
        return self.figures.model_counts[Verdict.ERROR] + len(self.report.skipped)

    @cached_property
    def span(self) -> str:
        figures = self.figures
        return self.t.span(figures.earliest, figures.latest) if figures.earliest and figures.latest else ""

    def cut(self, text: str, shown: int, total: int) -> str:
        """`text` about a list that is cut, without its last half where the files that have all are not written."""
        if "images.csv" not in self.report.files:
            text = "Showing {n} of {total}."
        return self.t(text, n=self.t.count(shown), total=self.t.count(total))

    @cached_property
    def findings(self) -> list[str]:
        """What a reader in a hurry has to know, in sentences."""
        figures, t, found = self.figures, self.t, []
        if self.rows:
            top, total = self.rows[0], sum(row.count for row in self.rows)
            found.append(
                t(
                    "Most frequent defect: {label}, {count} of {total} ({share}), in {images}.",
                    label=self.titles.get(top.label, top.label),
                    count=t.count(top.count),
                    total=t.count(total),
                    share=t.percent(top.count / total, 0),
                    images=t.plural("{n} image", "{n} images", top.images),
                )
            )
        if figures.critical:
            found.append(
                t.plural("{n} image with a critical defect.", "{n} images with a critical defect.", figures.critical)
            )
        if figures.counts[Verdict.REVIEW]:
            found.append(
                t.plural(
                    "{n} image for a person to decide (REVIEW).",
                    "{n} images for a person to decide (REVIEW).",
                    figures.counts[Verdict.REVIEW],
                )
            )
        if figures.counts[Verdict.ERROR]:
            found.append(
                t.plural(
                    "{n} image could not be inspected and is not OK.",
                    "{n} images could not be inspected and are not OK.",
                    figures.counts[Verdict.ERROR],
                )
            )
        takt = figures.takt()
        if takt is not None:
            found.append(
                t(
                    "{late} of {total} images ({share}) took longer than the takt of {takt} ms.",
                    late=t.count(takt.share.count),
                    total=t.count(takt.share.total),
                    share=t.percent(takt.share.value),
                    takt=t.ms(takt.takt_ms),
                )
            )
        if figures.reviewed:
            found.append(
                t(
                    "People reviewed {n} images and changed {changed} between OK and NG; their verdict counts.",
                    n=t.count(figures.reviewed),
                    changed=t.count(figures.overturned),
                )
            )
        return found

    @cached_property
    def remarks(self) -> list[str]:
        """Conditions under which the figures were made."""
        figures, t = self.figures, self.t
        found = list(self.report.notes)
        if figures.simulated:
            found.append(
                t.plural(
                    "{n} result from a simulated camera or model, not from a part.",
                    "{n} results from a simulated camera or model, not from a part.",
                    figures.simulated,
                )
            )
        if figures.partial:
            found.append(
                t.plural(
                    "{n} result is partial: its details were cut off by a deadline.",
                    "{n} results are partial: their details were cut off by a deadline.",
                    figures.partial,
                )
            )
        if len(figures.engines) > 1:
            found.append(t("{n} engines gave these verdicts: compare them with care.", n=len(figures.engines)))
        common = figures.warnings.most_common(20)
        found += [f"{text} ({t.plural('{n} image', '{n} images', count)})" for text, count in sorted(common)]
        return found


def _environment(t: Words) -> Environment:
    environment = Environment(
        loader=PackageLoader("auroraedge.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = t.percent
    environment.filters["ms"] = t.ms
    environment.filters["count"] = t.count
    environment.globals["t"] = t
    environment.globals["swatch"] = charts.swatch
    return environment


def render_page(view: View) -> bytes:
    """The page as UTF-8 bytes; the same report gives the same bytes."""
    report, figures = view.report, view.figures
    environment = _environment(view.t)
    loader = environment.loader
    assert loader is not None
    script = loader.get_source(environment, "report.js")[0]
    style = loader.get_source(environment, "report.css")[0]
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rows_shown = min(view.limits.table_rows, report.layout.table_rows)
    page = environment.get_template("report.html.j2").render(
        report=report,
        view=view,
        figures=figures,
        script=Markup(script),
        style=Markup(style),
        script_hash=script_hash,
        version=auroraedge.__version__,
        verdicts=VERDICTS,
        verdict_styles=VERDICT_STYLES,
        headings=HEADINGS,
        carded={card.number for section in view.sections.values() for card in section.cards},
        origin=statistics.origin,
        yield_of=statistics.yield_of,
        rows=report.entries[:rows_shown] if "table" in report.layout.sections else [],
    )
    return page.encode()
