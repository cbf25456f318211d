"""Writes the files of a report in one pass over its results, and puts them in place together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.recipe import Recipe
from auroraedge.report import statistics, tables
from auroraedge.report.gallery import PageLimits
from auroraedge.report.inputs import SkippedFile
from auroraedge.report.journal import part_of, sync
from auroraedge.report.layout import layout_of
from auroraedge.report.page import NO_DATE, Report, View, render_page
from auroraedge.report.pictures import Pictures
from auroraedge.report.statistics import Entry, Figures, Limits
from auroraedge.report.words import Words

RESULTS = "results.jsonl"
# The files of each format, in the order in which they are put in place.
FILES = {
    "csv": ("images.csv", "defects.csv"),
    "coco": ("coco.json",),
    "jsonl": (RESULTS,),
    "json": ("summary.json",),
    "xlsx": ("report.xlsx",),
    "pdf": ("report.pdf",),
    "html": ("report.html",),
}
DEFAULT_FORMATS = ("html", "csv", "coco", "jsonl", "json")


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What to write and how. takt_ms: the time that the line has for a part. font: for the PDF, a TrueType or
    OpenType file. time_zone: of all times in the report, as in Europe/Berlin."""

    formats: tuple[str, ...] = DEFAULT_FORMATS
    template: str = "batch"
    title: str | None = None
    language: str = "en"
    time_zone: str = "UTC"
    takt_ms: float | None = None
    font: Path | None = None
    limits: PageLimits = field(default_factory=PageLimits)

    def words(self) -> Words:
        return Words(self.language, self.time_zone)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What is known of a report beside its results. `planned` None: as many as there are.

    find_recipes: gives the recipes of these ids, as far as there are any, where they show only in the results.
    """

    title: str
    source: str
    references: str | None = None
    recipes: tuple[Recipe, ...] = ()
    model_id: str = ""
    engine_sha256: str = ""
    skipped: tuple[SkippedFile, ...] = ()
    notes: tuple[str, ...] = ()
    planned: int | None = None
    generated_at: datetime | None = None
    find_recipes: Callable[[Iterable[str]], tuple[Recipe, ...]] | None = None


def prepare(options: ReportOptions) -> None:
    """Finds out before any work whether the report can be written as asked. Raises InvalidRequestError for an option,
    and MissingDependencyError for a package or a font that is not there."""
    unknown = [name for name in options.formats if name not in FILES]
    if unknown:
        raise InvalidRequestError(
            f"There is no format '{unknown[0]}'.", field="format", remedy=f"Formats: {', '.join(FILES)}, all."
        )
    if options.takt_ms is not None and not options.takt_ms > 0:
        raise InvalidRequestError("The takt time has to be above 0.", field="takt_ms", remedy="Give milliseconds.")
    layout_of(options.template)
    options.words()
    if "xlsx" in options.formats:
        from auroraedge.report.xlsx import need_xlsxwriter

        need_xlsxwriter()
    if "pdf" in options.formats:
        from auroraedge.report.fonts import find_fonts

        find_fonts(options.words(), options.font)


def write_report(
    draft: Draft,
    entries: Iterable[Entry],
    pictures: Pictures,
    out_dir: Path,
    options: ReportOptions,
    *,
    own_results: bool = True,
) -> Report:
    """Reads every entry once, in order, and writes the files of the formats.

    own_results: results.jsonl is the record of the inspections, there already. When anything fails, Ctrl-C included,
    the files of an earlier report stay as they are.
    """
    layout = layout_of(options.template)
    names = [name for key, files in FILES.items() if key in options.formats for name in files]
    limits = options.limits
    keep = max(limits.table_rows if "table" in layout.sections else 0, limits.pictures_every)
    figures = Figures(
        limits=Limits(ng=limits.pictures_ng, review=limits.pictures_review, ok=limits.pictures_ok, rows=keep),
        takt_ms=options.takt_ms,
    )
    t = options.words()
    writers = _writers(names, out_dir, draft, t, own_results)
    parts: list[Path] = [out_dir / name for name in ("summary.json", "report.pdf", "report.html")]
    try:
        for entry in entries:
            figures.add(entry)
            for writer in writers:
                writer.add(entry)
        report = _report(draft, figures, options, names, own_results)
        view = View(report, pictures, limits)
        for writer in writers:
            writer.finish(view)
        if "summary.json" in names:
            _write(out_dir / "summary.json", _summary(report))
        if "report.pdf" in names:
            from auroraedge.report.pdf import render_pdf

            _write(out_dir / "report.pdf", render_pdf(view, options.font))
        if "report.html" in names:
            _write(out_dir / "report.html", render_page(view))
        for name in names:
            if part_of(out_dir / name).exists():
                part_of(out_dir / name).replace(out_dir / name)
    except BaseException:
        for writer in writers:
            writer.drop()
        for path in parts:
            part_of(path).unlink(missing_ok=True)
        raise
    return report


def _writers(names: list[str], out_dir: Path, draft: Draft, t: Words, own_results: bool) -> list[tables.Writer]:
    writers: list[tables.Writer] = []
    if "images.csv" in names:
        writers += [tables.ImagesCsv(out_dir / "images.csv"), tables.DefectsCsv(out_dir / "defects.csv")]
    if "coco.json" in names:
        writers.append(tables.Coco(out_dir / "coco.json", statistics.all_labels(draft.recipes)))
    if RESULTS in names and not own_results:
        writers.append(tables.JsonLines(out_dir / RESULTS))
    if "report.xlsx" in names:
        from auroraedge.report.xlsx import Workbook

        writers.append(Workbook(out_dir / "report.xlsx", t))
    return writers


def _report(draft: Draft, figures: Figures, options: ReportOptions, names: list[str], own_results: bool) -> Report:
    model_id, engine = draft.model_id, draft.engine_sha256
    if not (model_id or engine) and figures.engines:
        model_id, engine = figures.engines.most_common(1)[0][0]
    recipes = draft.recipes
    if draft.find_recipes is not None:
        recipes = draft.find_recipes(sorted({id for id, _, _ in figures.recipes}))
    files = [name for name in names if name != "report.html"]
    if own_results and RESULTS not in files:
        files.append(RESULTS)
    return Report(
        title=options.title or draft.title,
        generated_at=draft.generated_at or figures.newest or NO_DATE,
        source=draft.source,
        references=draft.references,
        recipes=recipes,
        model_id=model_id,
        engine_sha256=engine,
        figures=figures,
        skipped=draft.skipped,
        notes=draft.notes,
        planned=figures.total if draft.planned is None else draft.planned,
        layout=layout_of(options.template),
        words=options.words(),
        files=tuple(files),
        inspected=own_results,
    )


def _summary(report: Report) -> bytes:
    return tables.summary_json(
        report.figures,
        skipped=len(report.skipped),
        is_complete=report.is_complete,
        generated_at=report.generated_at.astimezone(UTC).isoformat(),
    )


def _write(path: Path, content: bytes) -> None:
    part_of(path).write_bytes(content)
    sync(part_of(path))
