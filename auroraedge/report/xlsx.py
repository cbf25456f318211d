"""report.xlsx: overview with native charts, images, defects. Rows go to disk as they come."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from auroraedge.errors import MissingDependencyError
from auroraedge.report.journal import part_of, sync
from auroraedge.report.page import VERDICTS, View
from auroraedge.report.statistics import Entry, Share, yield_of
from auroraedge.report.tables import image_row
from auroraedge.report.words import Words

# Rows of a sheet that Excel can open, less the heading.
MOST_ROWS = 1_048_575
_IMAGES: tuple[tuple[str, str, int], ...] = (
    ("file", "File", 34),
    ("verdict", "Verdict", 10),
    ("model_verdict", "Model", 10),
    ("ng_probability", "NG probability", 12),
    ("defects", "Defects", 9),
    ("labels", "Kinds", 26),
    ("predicted_class", "Class", 14),
    ("part_id", "Part", 16),
    ("lot", "Lot", 12),
    ("line", "Line", 10),
    ("station", "Station", 10),
    ("camera", "Camera", 10),
    ("recipe_id", "Recipe", 16),
    ("total_ms", "ms", 9),
    ("created_at", "Time", 26),
    ("error_message", "Reason", 30),
    ("reviewer", "Person", 14),
    ("review_reason", "Reason", 30),
)
_DEFECTS: tuple[tuple[str, int], ...] = (
    ("File", 34),
    ("Verdict", 10),
    ("Defect", 18),
    ("Severity", 10),
    ("Confidence", 11),
    ("x1", 9),
    ("y1", 9),
    ("x2", 9),
    ("y2", 9),
    ("Part", 16),
    ("Lot", 12),
)


def need_xlsxwriter() -> None:
    """Raises MissingDependencyError."""
    try:
        import xlsxwriter  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "A spreadsheet needs the package 'xlsxwriter', which is not installed.",
            remedy="Install it: pip install 'auroraedge[report]'; or leave xlsx out: images.csv opens in Excel too.",
        ) from error


class Workbook:
    """A writer of tables.py. Cells hold text as text: nothing in them is run as a formula or opened as a link."""

    def __init__(self, path: Path, t: Words) -> None:
        import xlsxwriter

        self.path, self._t = path, t
        self._folder = part_of(path.with_name(f"{path.name}.rows"))
        self._folder.mkdir(exist_ok=True)
        settings = {
            "constant_memory": True,
            "tmpdir": str(self._folder),
            "strings_to_formulas": False,
            "strings_to_urls": False,
            "strings_to_numbers": False,
            "nan_inf_to_errors": True,
        }
        self._book = xlsxwriter.Workbook(str(part_of(path)), settings)
        self._head = self._book.add_format({"bold": True, "bottom": 1, "bg_color": "#EEF0F3"})
        self._bold = self._book.add_format({"bold": True})
        self._title = self._book.add_format({"bold": True, "font_size": 16})
        self._wrap = self._book.add_format({"text_wrap": True, "valign": "top"})
        self._share = self._book.add_format({"num_format": "0.0%", "align": "right"})
        self._whole = self._book.add_format({"num_format": "#,##0"})
        self._tenth = self._book.add_format({"num_format": "0.0"})
        self._summary = self._book.add_worksheet(t("Summary"))
        self._images = self._sheet(t("Images"), [(t(title), width) for _, title, width in _IMAGES])
        self._defects = self._sheet(t("Defects"), [(t(title), width) for title, width in _DEFECTS])
        self._image_rows = self._defect_rows = 0

    def _sheet(self, name: str, columns: list[tuple[str, int]]) -> Any:
        sheet = self._book.add_worksheet(name)
        sheet.freeze_panes(1, 1)
        for index, (title, width) in enumerate(columns):
            sheet.set_column(index, index, width)
            sheet.write_string(0, index, title, self._head)
        sheet.set_landscape()
        sheet.repeat_rows(0)
        sheet.fit_to_pages(1, 0)
        return sheet

    def _put(self, sheet: Any, row: int, column: int, value: Any, style: Any = None) -> None:
        if value is None or value == "":
            return
        if isinstance(value, str):
            # What XML cannot hold, and what a cell cannot.
            text = "".join(ch if ch >= " " or ch in "\t\n" else " " for ch in value)[:32_000]
            sheet.write_string(row, column, text, style)
        else:
            sheet.write_number(row, column, value, style)

    def add(self, entry: Entry) -> None:
        if self._image_rows < MOST_ROWS:
            self._image_rows += 1
            values = image_row(entry)
            for column, (name, _, _) in enumerate(_IMAGES):
                style = self._share if name == "ng_probability" else self._tenth if name == "total_ms" else None
                self._put(self._images, self._image_rows, column, values[name], style)
        result = entry.result
        for defect in entry.defects:
            if self._defect_rows >= MOST_ROWS:
                return
            self._defect_rows += 1
            row, box = self._defect_rows, defect.box
            self._put(self._defects, row, 0, entry.item.name)
            self._put(self._defects, row, 1, entry.verdict.value)
            self._put(self._defects, row, 2, defect.label)
            self._put(self._defects, row, 3, self._t(defect.severity.value))
            self._put(self._defects, row, 4, defect.confidence, self._share)
            for column, value in enumerate((box.x1, box.y1, box.x2, box.y2) if box else (), start=5):
                self._put(self._defects, row, column, value, self._tenth)
            self._put(self._defects, row, 9, result.request.part_id)
            self._put(self._defects, row, 10, result.request.lot)

    def finish(self, view: View) -> None:
        for sheet, rows, columns in (
            (self._images, self._image_rows, len(_IMAGES)),
            (self._defects, self._defect_rows, len(_DEFECTS)),
        ):
            if rows:
                sheet.autofilter(0, 0, rows, columns - 1)
        self._overview(view)
        # The clock is not part of a report: the same results give the same file.
        created = view.report.generated_at.astimezone(UTC).replace(tzinfo=None)
        self._book.set_properties(
            {"title": view.report.title[:255], "author": "AuroraEdge", "created": max(created, datetime(1980, 1, 1))}
        )
        self._book.close()
        self._folder.rmdir()
        sync(part_of(self.path))

    def _line(self, row: int, name: str, counts: Any, share: Share) -> None:
        self._put(self._summary, row, 0, name, self._bold)
        for column, verdict in enumerate(VERDICTS, start=1):
            self._put(self._summary, row, column, counts[verdict], self._whole)
        for column, value in enumerate((share.value, share.low, share.high), start=5):
            self._put(self._summary, row, column, value if share.total else None, self._share)

    def _heads(self, row: int, *titles: str) -> None:
        for column, title in enumerate(titles):
            self._put(self._summary, row, column, title or " ", self._head)

    def _overview(self, view: View) -> None:
        t, figures, report, sheet = self._t, view.figures, view.report, self._summary
        sheet.set_column(0, 0, 34)
        sheet.set_column(1, 8, 13)
        sheet.set_landscape()
        sheet.fit_to_pages(1, 0)
        row = 0
        self._put(sheet, row, 0, report.title, self._title)
        lines = [f"AuroraEdge · {t(report.layout.heading)}"]
        lines += [t("as of {time}", time=report.generated_text)] if report.generated_text else []
        lines += [t("Inspected {span}", span=view.span)] if view.span else []
        lines += [f"{t('Source')}: {report.source}", *view.findings, *view.remarks]
        if not report.is_complete:
            lines.insert(0, f"{t('Not complete:')} {figures.total} / {report.planned}")
        for name, rows in ((t("Images"), figures.total), (t("Defects"), sum(r.count for r in view.rows))):
            if rows > MOST_ROWS:
                text = "Only the first {n} rows fit into a sheet; the CSV files have all."
                lines.append(f"{name}: {t(text, n=t.count(MOST_ROWS))}")
        for line in lines:
            row += 1
            self._put(sheet, row, 0, line)
        row += 2
        verdicts = [verdict.value for verdict in VERDICTS]
        heads = (*verdicts, t("Yield"), "95 % −", "95 % +")
        self._heads(row, "", *heads)
        row += 1
        self._line(row, t("Images"), figures.counts, figures.share)
        if figures.parts:
            row += 1
            counts = figures.part_counts()
            self._line(row, t("Parts"), counts, yield_of(counts))
        for title, members in view.groups:
            row += 2
            self._heads(row, title, *heads)
            for member in members[:1000]:
                row += 1
                self._line(row, member.name or t("(none)"), member.counts, member.share)
        row = self._pareto(view, row + 2)
        row = self._trend(view, row + 2)
        row += 2
        self._heads(row, t("Time by stage"), "p50", "p95", "p99", "max")
        for stage in figures.stage_rows():
            row += 1
            self._put(sheet, row, 0, t(stage.title))
            for column, value in enumerate((stage.p50, stage.p95, stage.p99, stage.largest), start=1):
                self._put(sheet, row, column, value, self._tenth)
        row += 2
        self._heads(row, t("Not inspected, and why"), t("Reason"))
        for failure in view.failures:
            row += 1
            self._put(sheet, row, 0, failure.name)
            self._put(sheet, row, 1, f"{failure.reason} {failure.remedy}".strip())
        row += 2
        self._heads(row, t("How this report was made"), "SHA-256")
        for (id, version, sha), count in figures.recipes.most_common(20):
            row += 1
            self._put(sheet, row, 0, f"{t('Recipe')} {id or t('none')} v{version} ({t.count(count)})")
            self._put(sheet, row, 1, sha)
        for (model, engine), count in figures.engines.most_common(20):
            row += 1
            self._put(sheet, row, 0, f"{t('Engine')} {model or t('unknown')} ({t.count(count)})")
            self._put(sheet, row, 1, engine)

    def _pareto(self, view: View, row: int) -> int:
        t, first = self._t, row + 1
        self._heads(row, t("Which defects"), t("Count"), t("Images"), t("Cumulative"))
        for item in view.rows[:1000]:
            row += 1
            self._put(self._summary, row, 0, view.titles.get(item.label, item.label))
            self._put(self._summary, row, 1, item.count, self._whole)
            self._put(self._summary, row, 2, item.images, self._whole)
            self._put(self._summary, row, 3, item.cumulative, self._share)
        if row >= first:
            last = min(row, first + 11)
            name = self._summary.get_name()
            bars = self._book.add_chart({"type": "column"})
            bars.add_series(
                {
                    "name": t("Count"),
                    "categories": [name, first, 0, last, 0],
                    "values": [name, first, 1, last, 1],
                    "fill": {"color": "#3A6EA5"},
                }
            )
            line = self._book.add_chart({"type": "line"})
            line.add_series(
                {
                    "name": t("Cumulative"),
                    "categories": [name, first, 0, last, 0],
                    "values": [name, first, 3, last, 3],
                    "y2_axis": True,
                    "line": {"color": "#16191D", "width": 1.5},
                    "marker": {"type": "circle", "size": 4},
                }
            )
            bars.combine(line)
            bars.set_title({"name": t("Which defects"), "overlay": False, "name_font": {"size": 12}})
            line.set_y2_axis({"min": 0, "max": 1, "num_format": "0%"})
            bars.set_legend({"position": "bottom"})
            self._summary.insert_chart(0, 9, bars, {"x_offset": 10, "y_offset": 10})
        return row

    def _trend(self, view: View, row: int) -> int:
        if view.trend is None:
            return row
        t, first = self._t, row + 1
        unit = t(f"Trend by {view.trend.unit}")
        self._heads(row, unit, *(verdict.value for verdict in VERDICTS), t("Yield"), "95 % −", "95 % +")
        day = ""
        for step in view.trend.steps:
            row += 1
            day = step.day or day
            self._line(row, f"{day} {step.name}", step.counts, step.share)
        name = self._summary.get_name()
        bars = self._book.add_chart({"type": "column", "subtype": "stacked"})
        for column, (verdict, color) in enumerate(
            zip(VERDICTS, ("#006E56", "#B03A00", "#F0C419", "#545464"), strict=True), start=1
        ):
            series = {
                "name": verdict.value,
                "categories": [name, first, 0, row, 0],
                "values": [name, first, column, row, column],
                "fill": {"color": color},
            }
            if verdict.value == "NG":  # differs from OK in grey too
                series = {**series, "pattern": {"pattern": "wide_upward_diagonal", "fg_color": color}}
                series.pop("fill")
            bars.add_series(series)
        bars.set_title({"name": unit, "overlay": False, "name_font": {"size": 12}})
        bars.set_legend({"position": "bottom"})
        self._summary.insert_chart(16, 9, bars, {"x_offset": 10, "y_offset": 10})
        return row

    def drop(self) -> None:
        for sheet in self._book.worksheets():
            # xlsxwriter removes its files of rows only where a workbook is closed, which would write one.
            handle = getattr(sheet, "row_data_fh", None)
            if handle is not None:
                handle.close()
        self._book.fileclosed = True
        shutil.rmtree(self._folder, ignore_errors=True)
        part_of(self.path).unlink(missing_ok=True)
