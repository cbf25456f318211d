"""report.pdf: the report on A4 pages, with its fonts embedded. The same report gives the same bytes."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path

from fpdf import FPDF
from fpdf.enums import TableBordersLayout
from fpdf.fonts import FontFace

import auroraedge
from auroraedge.inspection.palette import VERDICT_STYLES
from auroraedge.inspection.results import Box
from auroraedge.report.charts import clip_text
from auroraedge.report.fonts import REMEDY, Fonts, find_fonts
from auroraedge.report.gallery import Card, Section
from auroraedge.report.page import HEADINGS, VERDICTS, View
from auroraedge.report.statistics import Counts, Share, yield_of
from auroraedge.report.svg_to_pdf import SvgPainter

_MARGIN, _WIDTH, _BOTTOM = 12.0, 186.0, 280.0
_DIM, _RULE = "#555555", "#bbbbbb"
# fontTools tells at length what it leaves out of a subset.
logging.getLogger("fontTools").setLevel(logging.ERROR)
# Pictures and rows on paper: a report that somebody prints.
_PICTURES = {"ng": 24, "review": 24, "ok": 6, "every": 60}
_ROWS = 200


class Document(FPDF):
    """A4 with a running foot."""

    def __init__(self, foot: str, page_text: str, fonts: Fonts) -> None:
        super().__init__(format="A4", unit="mm")
        self._foot, self._page_text = foot, page_text
        self.set_margin(_MARGIN)
        self.set_auto_page_break(True, margin=297 - _BOTTOM)
        pairs = [("report", fonts.regular, fonts.bold), ("other", fonts.other, fonts.other_bold)]
        for family, regular, bold in pairs:
            for style, found in (("", regular), ("B", bold)):
                if found is not None:
                    self.add_font(family, style, found.path, collection_font_number=found.number)
        if fonts.other is not None:
            self.set_fallback_fonts(["other"], exact_match=True)
        self.covered = [
            set(getattr(font, "cmap", {})) for key, font in self.fonts.items() if key in ("report", "other")
        ]

    def _runs(self, text: str) -> list[tuple[str, str]]:
        """The text in pieces of one font: FPDF.text and get_string_width take no second one."""
        if len(self.covered) < 2:
            return [("report", text)]
        runs: list[tuple[str, str]] = []
        for ch in text:
            family = "report" if ord(ch) in self.covered[0] else "other"
            if runs and runs[-1][0] == family:
                runs[-1] = (family, runs[-1][1] + ch)
            else:
                runs.append((family, ch))
        return runs

    def measure(self, text: str) -> float:
        """Millimetres that `put` takes."""
        style, size, total = self.font_style, self.font_size_pt, 0.0
        for family, run in self._runs(text):
            self.set_font(family, style, size)
            total += self.get_string_width(run)
        self.set_font("report", style, size)
        return total

    def put(self, x: float, y: float, text: str) -> None:
        """The text with its base line at y."""
        style, size = self.font_style, self.font_size_pt
        for family, run in self._runs(text):
            self.set_font(family, style, size)
            self.text(x, y, run)
            x += self.get_string_width(run)
        self.set_font("report", style, size)

    def footer(self) -> None:
        self.set_y(-11)
        self.set_font("report", "", 7)
        self.set_text_color(_DIM)
        self.cell(_WIDTH / 2, 5, self._foot)
        text = self._page_text.replace("%n", str(self.page_no())).replace("%t", "{nb}")
        self.cell(_WIDTH / 2, 5, text, align="R")


class _Painter:
    """Lays the report out, from top to bottom."""

    def __init__(self, view: View, fonts: Fonts) -> None:
        self.view, self.t, self.figures, self.report = view, view.t, view.figures, view.report
        self.missing: set[str] = set()
        t = self.t
        foot = f"AuroraEdge {auroraedge.__version__} · {view.report.title[:80]} · {view.report.generated_text}"
        pdf = self.pdf = Document("", t("Page {n} of {total}", n="%n", total="%t"), fonts)
        self._known: set[int] = set().union(*pdf.covered)
        pdf._foot = self.clean(foot)
        pdf.set_creation_date(view.report.generated_at)
        pdf.set_title(view.report.title)
        pdf.set_creator(f"AuroraEdge {auroraedge.__version__}")
        pdf.set_lang(t.html_language)
        pdf.add_page()
        self.svg = SvgPainter(pdf, self.clean)

    def clean(self, text: str) -> str:
        """The text with what no font has replaced, and line breaks as spaces."""
        shown = []
        for ch in text.replace("\N{NO-BREAK SPACE}", " "):
            if ch in "\r\n\t":
                ch = " "
            elif ord(ch) not in self._known:
                self.missing.add(ch)
                ch = "\N{REPLACEMENT CHARACTER}" if 0xFFFD in self._known else "?"
            shown.append(ch)
        return "".join(shown)

    # -- pieces

    def font(self, size: float, bold: bool = False, color: str = "#000000") -> None:
        self.pdf.set_font("report", "B" if bold else "", size)
        self.pdf.set_text_color(color)

    def room(self, height: float) -> None:
        """A new page unless this many millimetres are left."""
        if self.pdf.get_y() + height > _BOTTOM:
            self.pdf.add_page()

    def heading(self, text: str, hint: str = "", keep: float = 20) -> None:
        self.pdf.ln(3)
        self.room(keep)
        self.font(11.5, True)
        self.pdf.cell(_WIDTH, 6, self.clean(text), new_x="LMARGIN", new_y="NEXT")
        if hint:
            self.paragraph(hint)

    def paragraph(self, text: str, size: float = 7.5, color: str = _DIM) -> None:
        self.font(size, color=color)
        self.pdf.multi_cell(_WIDTH, size * 0.5, self.clean(text), align="L", new_x="LMARGIN", new_y="NEXT")

    def fit(self, text: str, width: float) -> str:
        """The text, cut where it is wider than `width` millimetres."""
        text = self.clean(text)
        if self.pdf.measure(text) <= width:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if self.pdf.measure(text[:middle] + "…") <= width:
                low = middle
            else:
                high = middle - 1
        return text[:low] + "…"

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[float], numeric: int) -> None:
        """`numeric`: the columns from this one on are numbers."""
        self.font(7.5)
        self.pdf.set_fill_color("#ffffff")  # which heads would be filled with
        self.pdf.set_draw_color(_RULE)
        self.pdf.set_line_width(0.1)
        self.pdf.set_dash_pattern()
        aligns = ["LEFT" if index < numeric else "RIGHT" for index in range(len(heads))]
        with self.pdf.table(
            col_widths=tuple(widths),
            width=sum(widths),
            align="LEFT",
            text_align=tuple(aligns),
            line_height=3.9,
            padding=(0.4, 1),
            borders_layout=TableBordersLayout.HORIZONTAL_LINES,
            headings_style=FontFace(emphasis="BOLD", color=_DIM),
        ) as table:
            for row in (heads, *rows):
                cells = table.row()
                for cell in row:
                    cells.cell(self.clean(cell))

    def verdict_row(self, name: str, counts: Counts, share: Share) -> list[str]:
        t = self.t
        interval = t.interval(share.low, share.high) if share.total else ""
        numbers = [t.count(counts[verdict]) for verdict in VERDICTS]
        return [clip_text(name, 60), *numbers, t.percent(share.value), interval]

    def verdict_table(self, rows: list[list[str]]) -> None:
        t = self.t
        heads = ["", *(verdict.value for verdict in VERDICTS), t("Yield"), t("95 % interval")]
        self.table(heads, rows, (58, 19, 19, 19, 19, 20, 32), 1)

    # -- sections

    def top(self) -> None:
        pdf, t, report = self.pdf, self.t, self.report
        self.font(8, color=_DIM)
        pdf.cell(_WIDTH, 4, self.clean(f"AuroraEdge · {t(report.layout.heading)}"), new_x="LMARGIN", new_y="NEXT")
        self.font(17, True)
        pdf.multi_cell(_WIDTH, 7.5, self.clean(report.title), align="L", new_x="LMARGIN", new_y="NEXT")
        when = t("Inspected {span}", span=self.view.span) if self.view.span else ""
        as_of = t("as of {time}", time=report.generated_text) if report.generated_text else ""
        self.paragraph(" · ".join(part for part in (when, as_of) if part), 8.5, "#000000")
        recipes = ", ".join(f"{id or t('none')} v{version}" for id, version, _ in list(self.figures.recipes)[:6])
        engine = report.engine_sha256[:12] or t("unknown")
        self.paragraph(
            f"{t('Recipe')}: {recipes or t('none')} · {t('Model')}: {report.model_id or t('unknown')} · "
            f"{t('Engine')}: {engine} · {t('Source')}: {report.source}"
        )
        if not report.is_complete:
            text = t(
                "{n} of {total} images inspected. Run the same command again to continue where it stopped.",
                n=t.count(self.figures.total),
                total=t.count(report.planned),
            )
            pdf.ln(1)
            pdf.set_fill_color("#f0c419")
            self.font(8.5, True)
            pdf.multi_cell(
                _WIDTH, 6, self.clean(f"{t('Not complete:')} {text}"), fill=True, new_x="LMARGIN", new_y="NEXT"
            )

    def hero(self) -> None:
        pdf, t, figures = self.pdf, self.t, self.figures
        pdf.ln(3)
        y = pdf.get_y()
        share = figures.share
        self.font(9, True)
        pdf.put(_MARGIN, y + 4, self.clean(t("First-pass yield")))
        self.font(26, True)
        pdf.put(_MARGIN, y + 15, self.clean(t.percent(share.value)))
        self.font(7.5, color=_DIM)
        if share.total:
            of = t("{n} of {total} OK", n=t.count(share.count), total=t.count(share.total))
            interval = t("95 % interval {interval}", interval=t.interval(share.low, share.high))
            pdf.put(_MARGIN, y + 19.5, self.clean(of))
            pdf.put(_MARGIN, y + 23, self.clean(interval))
        else:
            pdf.put(_MARGIN, y + 19.5, self.clean(t("No image has a verdict.")))
        left, width = _MARGIN + 62, 29.5
        for index, verdict in enumerate(VERDICTS):
            x, style = left + index * (width + 2), VERDICT_STYLES[verdict]
            pdf.set_draw_color(_RULE)
            pdf.set_line_width(0.2)
            pdf.rect(x, y, width, 20)
            pdf.set_fill_color(*style.color)
            pdf.rect(x, y, 2.2, 20, style="F")
            self.font(8, True)
            pdf.put(x + 4.5, y + 4.6, self.clean(f"{style.glyph} {verdict.value}"))
            self.font(14, True)
            pdf.put(x + 4.5, y + 11.2, t.count(figures.counts[verdict]))
            self.font(6.6, color=_DIM)
            part = self.clean(t.percent(figures.counts[verdict] / figures.total)) if figures.total else "–"
            pdf.put(x + 4.5, y + 14.8, part)
            pdf.put(x + 4.5, y + 18, self.fit(t.gloss(verdict), width - 5))
        pdf.set_y(y + 25)
        for line in self.view.findings:
            self.paragraph(f"▸ {line}", 8.5, "#000000")

    def charts(self) -> None:
        t, charts, pdf = self.t, self.view.charts, self.pdf
        titles = (
            ("pareto", "Which defects", "No defects were found."),
            ("heat", "Where on the part", "No defect has a place."),
            ("probability", "How sure the model was", "No image has a probability."),
            ("latency", "How fast", "No times were measured."),
        )
        width = (_WIDTH - 4) / 2
        pdf.ln(3)
        for first in (0, 2):
            pair = titles[first : first + 2]
            heights = [self.svg.height(str(charts[n]), width - 4) if charts[n] else 12.0 for n, _, _ in pair]
            height = max(heights) + 9
            self.room(height)
            top = pdf.get_y()
            for column, (name, title, nothing) in enumerate(pair):
                x = _MARGIN + column * (width + 4)
                pdf.set_draw_color(_RULE)
                pdf.set_line_width(0.2)
                pdf.set_dash_pattern()
                pdf.rect(x, top, width, height - 1)
                self.font(9.5, True)
                pdf.put(x + 2, top + 5, self.clean(t(title)))
                chart = charts[name]
                if chart:
                    self.svg.draw(str(chart), x + 2, top + 7, width - 4)
                else:
                    self.font(8, color=_DIM)
                    pdf.put(x + 2, top + 12, self.clean(t(nothing)))
            pdf.set_y(top + height + 1)
        heat, takt = self.figures.heat_map(), self.figures.takt()
        lines = [t("Pareto: bars are shares of all defects, the line adds them up.")] if self.view.rows else []
        if heat:
            text = "{n} located defects of recipe {recipe}, each spread over its box."
            lines.append(t(text, n=t.count(heat.defects), recipe=heat.recipe_id))
        if takt:
            lines.append(
                t(
                    "Takt {takt} ms: {late} of {total} images took longer, the slowest {slowest} ms.",
                    takt=t.ms(takt.takt_ms),
                    late=t.count(takt.share.count),
                    total=t.count(takt.share.total),
                    slowest=t.ms(takt.slowest_ms),
                )
            )
        if lines:
            self.paragraph(" ".join(lines))

    def trend(self) -> None:
        chart, trend, t = self.view.charts["trend"], self.view.trend, self.t
        if chart is None or trend is None:
            return
        hint = t("Bars: images by verdict; line: yield with its 95 % interval.")
        height = self.svg.height(str(chart), _WIDTH)
        self.heading(t(f"Trend by {trend.unit}"), f"{hint} {t('Time zone {zone}.', zone=t.time_zone)}", height + 14)
        self.svg.draw(str(chart), _MARGIN, self.pdf.get_y(), _WIDTH)
        self.pdf.set_y(self.pdf.get_y() + height + 1)

    def parts(self) -> None:
        figures, t = self.figures, self.t
        if not figures.parts:
            return
        counts = figures.part_counts()
        self.heading(f"{t('Parts')} ({t.count(len(figures.parts))})", t("A part has the worst verdict of its images."))
        if not figures.parts_complete:
            self.paragraph(t("Only the first {n} parts are counted.", n=t.count(len(figures.parts))))
        self.verdict_table(
            [
                self.verdict_row(t("Parts"), counts, yield_of(counts)),
                self.verdict_row(t("Images"), figures.counts, figures.share),
            ]
        )

    def groups(self) -> None:
        figures, t = self.figures, self.t
        for title, members in self.view.groups:
            self.heading(title, keep=24)
            rows = members[:20]
            self.verdict_table([self.verdict_row(row.name or t("(none)"), row.counts, row.share) for row in rows])
            if len(members) > len(rows):
                self.paragraph(t("Showing {n} of {total}.", n=len(rows), total=t.count(len(members))))
        if figures.reviewed:
            text = "Yield, charts and lists use the reviewed verdict. The model alone: yield {share}."
            model = yield_of(figures.model_counts)
            self.heading(t("Decisions of people"), t(text, share=t.percent(model.value)), 30)
            rows_ = [
                [m.value, p.value, t.count(figures.decisions[m, p])]
                for m in VERDICTS
                for p in VERDICTS
                if figures.decisions[m, p]
            ]
            self.table([t("Model"), t("Person"), t("Images")], rows_, (30, 30, 30), 2)
        stages = figures.stage_rows()
        if stages:
            self.heading(t("Time by stage"), keep=30)
            times = [[t(s.title), *(t.ms(v) for v in (s.p50, s.p95, s.p99, s.largest))] for s in stages]
            self.table([t("Milliseconds"), "p50", "p95", "p99", "max"], times, (66, 24, 24, 24, 24), 1)

    def gallery(self, name: str) -> None:
        section = self.view.sections[name]
        if not section.total:
            return
        t = self.t
        cards = section.cards[: _PICTURES[name]]
        hint = t(HEADINGS[name][1])
        if len(cards) < section.total:
            hint += " " + self.view.cut("Showing {n} of {total}; images.csv has all.", len(cards), section.total)
        self.heading(f"{t(HEADINGS[name][0])} ({t.count(section.total)})", hint, 70 if cards else 20)
        pairs = any(card.reference for card in cards) or name == "every"
        columns = 2 if pairs else 3
        width = (_WIDTH - 4 * (columns - 1)) / columns
        for first in range(0, len(cards), columns):
            row = cards[first : first + columns]
            texts = [self.card_lines(card, name == "every") for card in row]
            height = 42 + 3.5 * max(len(lines) for lines in texts) + 3
            self.room(height)
            top = self.pdf.get_y() + 1
            for column, (card, lines) in enumerate(zip(row, texts, strict=True)):
                self.card(card, lines, _MARGIN + column * (width + 4), top, width, height - 2)
            self.pdf.set_y(top + height)
        self.without(section)

    def without(self, section: Section) -> None:
        t = self.t
        if section.without:
            one, many = "{n} image of these has no stored picture.", "{n} images of these have no stored picture."
            self.paragraph(t.plural(one, many, section.without))
        if section.unreadable:
            names = ", ".join(section.unreadable[:20])
            more = len(section.unreadable) - 20
            text = t("No picture, because the file has changed or is gone since:")
            self.paragraph(f"{text} {names}" + (f" {t('and {n} more', n=more)}" if more > 0 else ""))

    def card_lines(self, card: Card, full: bool) -> list[tuple[str, str]]:
        """Kind and text of each line below a picture."""
        t, result, entry = self.t, card.result, card.entry
        lines = [("title", entry.item.name)]
        facts = [] if result.ng_probability is None else [f"{t('NG probability')} {t.percent(result.ng_probability)}"]
        lines.append(("dim", " · ".join([*facts, t.time(entry.moment)])))
        request = result.request
        origin = [
            f"{t(n)} {v}" for n, v in (("part", request.part_id), ("lot", request.lot), ("line", request.line)) if v
        ]
        if origin:
            lines.append(("dim", " · ".join(origin)))
        if entry.review is not None:
            said = t("Reviewed: the model said {verdict}.", verdict=result.verdict.value)
            lines.append(("text", said))
            lines.append(("text", f"{entry.review.reviewer}, {t.time(entry.review.at)}: {entry.review.reason}"))
        titles = self.view.titles
        if full:
            for defect in card.defects[:12]:
                where = self.place(defect.box)
                label = titles.get(defect.label, defect.label)
                text = f"{label}, {t(defect.severity.value)}, {t.percent(defect.confidence, 0)}, {where}"
                lines.append((f"label {defect.label}", text))
        else:
            for group in card.by_label[:4]:
                worst = group[0]
                mark = " ▲" if worst.severity.value == "critical" else ""
                count = f" ×{len(group)}" if len(group) > 1 else ""
                text = f"{titles.get(worst.label, worst.label)}{mark}{count}  {t.percent(worst.confidence, 0)}"
                lines.append((f"label {worst.label}", text))
        words = result.text or result.answer_text
        if words:
            lines.append(("mark", t("Written by the model, not checked")))
            lines += [("model", line) for line in words.splitlines()[:2]]
        return lines

    def place(self, box: Box | None) -> str:
        return f"{box.x1:.0f}, {box.y1:.0f}, {box.x2:.0f}, {box.y2:.0f}" if box else self.t("no place")

    def card(self, card: Card, lines: list[tuple[str, str]], x: float, y: float, width: float, height: float) -> None:
        pdf, box = self.pdf, 40.0
        pdf.set_draw_color(_RULE)
        pdf.set_line_width(0.2)
        pdf.set_dash_pattern()
        pdf.rect(x, y, width, height)
        pictures = [card.image] + ([card.reference] if card.reference else [])
        each = width / len(pictures)
        for index, picture in enumerate(pictures):
            scale = min((each - 2) / card.width, (box - 2) / card.height)
            w, h = card.width * scale, card.height * scale
            left, top = x + index * each + (each - w) / 2, y + 1 + (box - 2 - h) / 2
            pdf.image(io.BytesIO(picture), left, top, w, h)
            if index == 0:
                self.boxes(card, left, top, scale)
            else:
                self.font(6, color="#ffffff")
                text = self.clean(self.t("Golden sample"))
                pdf.set_fill_color("#333333")
                pdf.rect(left, top, pdf.measure(text) + 2, 3.2, style="F")
                pdf.put(left + 1, top + 2.4, text)
        line_y = y + box + 3
        for kind, text in lines:
            self.card_line(card, kind, text, x + 2, line_y, width - 4)
            line_y += 3.5

    def card_line(self, card: Card, kind: str, text: str, x: float, y: float, width: float) -> None:
        pdf = self.pdf
        if kind == "title":
            style = VERDICT_STYLES[card.entry.verdict]
            self.font(6.5, True, "#{:02x}{:02x}{:02x}".format(*style.ink))
            badge = self.clean(f"{style.glyph} {card.entry.verdict.value}")
            wide = pdf.measure(badge) + 2
            pdf.set_fill_color(*style.color)
            pdf.rect(x, y - 2.6, wide, 3.4, style="F")
            pdf.put(x + 1, y, badge)
            self.font(7, True)
            pdf.put(x + wide + 1.5, y, self.fit(text, width - wide - 1.5))
            return
        if kind.startswith("label "):
            style_ = self.view.styles[kind.removeprefix("label ")]
            self.stroke(style_.hex, style_.dash, 0.8)
            pdf.line(x, y - 0.9, x + 4.5, y - 0.9)
            pdf.set_dash_pattern()
            self.font(7)
            pdf.put(x + 6, y, self.fit(text, width - 6))
            return
        self.font({"mark": 5.5, "dim": 6.3}.get(kind, 6.8), color=_DIM if kind in ("dim", "mark") else "#000000")
        pdf.put(x, y, self.fit(text.upper() if kind == "mark" else text, width))

    def stroke(self, color: str, dash: tuple[float, ...], width: float) -> None:
        self.pdf.set_draw_color(color)
        self.pdf.set_line_width(width)
        if dash:
            self.pdf.set_dash_pattern(dash=dash[0] * width * 1.3, gap=dash[1] * width * 1.3)
        else:
            self.pdf.set_dash_pattern()

    def boxes(self, card: Card, left: float, top: float, scale: float) -> None:
        for defect in sorted(card.defects, key=lambda d: (d.confidence, d.label)):
            box = defect.box
            if box is None:
                continue
            x1, y1 = max(box.x1 * scale - 0.3, 0), max(box.y1 * scale - 0.3, 0)
            x2, y2 = min(box.x2, card.width) * scale + 0.3, min(box.y2, card.height) * scale + 0.3
            style = self.view.styles[defect.label]
            self.stroke("#000000", (), 0.75)
            self.pdf.rect(left + x1, top + y1, max(x2 - x1, 0.5), max(y2 - y1, 0.5))
            self.stroke(style.hex, style.dash, 0.4)
            self.pdf.rect(left + x1, top + y1, max(x2 - x1, 0.5), max(y2 - y1, 0.5))
        self.pdf.set_dash_pattern()

    def rows(self) -> None:
        t, view = self.t, self.view
        shown = self.report.entries[: min(_ROWS, self.report.layout.table_rows)]
        if not shown:
            return
        hint = ""
        if len(shown) < self.figures.total:
            hint = t("Showing {n} of {total}.", n=len(shown), total=t.count(self.figures.total))
        self.heading(f"{t('All images')} ({t.count(self.figures.total)})", hint, 30)
        rows = [
            [
                str(entry.number),
                clip_text(entry.item.name, 44),
                entry.verdict.value + (f" ({t('reviewed')})" if entry.review else ""),
                clip_text(", ".join(dict.fromkeys(view.titles.get(d.label, d.label) for d in entry.defects)), 40),
                clip_text(entry.result.request.part_id, 24),
                "" if entry.result.ng_probability is None else t.percent(entry.result.ng_probability),
                t.ms(entry.result.timings.total_ms) if entry.result.timings.total_ms else "",
            ]
            for entry in shown
        ]
        heads = ["#", t("File"), t("Verdict"), t("Defects"), t("Part"), t("NG prob."), "ms"]
        self.table(heads, rows, (11, 56, 27, 44, 20, 16, 12), 5)

    def failures(self) -> None:
        view, t = self.view, self.t
        if not view.failures:
            return
        shown = view.failures[:60]
        self.heading(f"{t('Not inspected, and why')} ({t.count(view.failed)})", keep=24)
        rows = [[clip_text(f.name, 60), clip_text(f.reason, 240), clip_text(f.remedy, 160)] for f in shown]
        self.table([t("File"), t("Reason"), t("What to do")], rows, (50, 80, 56), 3)
        if len(shown) < view.failed:
            self.paragraph(t("Showing {n} of {total}.", n=len(shown), total=t.count(view.failed)))

    def notes(self) -> None:
        t, figures = self.t, self.figures
        self.heading(t("How this report was made"), keep=40)
        for line in self.view.remarks:
            self.paragraph(f"▸ {line}", 8, "#000000")
        rows = []
        for (id, version, sha), count in figures.recipes.most_common(20):
            images = t.plural("{n} image", "{n} images", count)
            rows.append([f"{t('Recipe')} {id or t('none')} v{version}", f"{images}\nSHA-256 {sha or t('unknown')}"])
        for (model, engine), count in figures.engines.most_common(20):
            images = t.plural("{n} image", "{n} images", count)
            rows.append([f"{t('Engine')} {model or t('unknown')}", f"{images}\nSHA-256 {engine or t('unknown')}"])
        rows.append(
            [
                t("First-pass yield"),
                t(
                    "OK / (OK + NG + REVIEW), with the Wilson 95 % score interval. Images without a verdict (ERROR) "
                    "are not counted. It is the share that was passed; how often the model is right has to be measured "
                    "on parts with a known state."
                ),
            ]
        )
        rows.append(
            [
                t("Reviewed parts"),
                t(
                    "Where a person decided, that verdict counts, and the defects that the person gave. The list of "
                    "images names the model's verdict too."
                ),
            ]
        )
        self.table(["", ""], rows, (46, 140), 2)
        if self.missing:
            shown = " ".join(f"U+{ord(ch):04X}" for ch in sorted(self.missing)[:12])
            self.paragraph(f"{len(self.missing)} characters have no glyph in the fonts at hand ({shown}). {REMEDY}")

    def sign(self) -> None:
        lines, t, pdf = self.report.layout.sign, self.t, self.pdf
        if not lines:
            return
        self.room(24)
        y = pdf.get_y() + 16
        width = (_WIDTH - 10 * (len(lines) - 1)) / len(lines)
        pdf.set_draw_color("#000000")
        pdf.set_line_width(0.2)
        for index, line in enumerate(lines):
            x = _MARGIN + index * (width + 10)
            pdf.line(x, y, x + width, y)
            self.font(7, color=_DIM)
            pdf.put(x, y + 3.5, self.clean(f"{t(line)}, {t('date')}"))

    def all(self) -> None:
        self.top()
        self.hero()
        if not self.figures.total:
            self.heading(
                self.t("Nothing to report"), self.t("Nothing was found in {source}.", source=self.report.source)
            )
        else:
            named = {"trend": self.trend, "charts": self.charts, "parts": self.parts, "groups": self.groups}
            for section in self.report.layout.sections:
                if section in named:
                    named[section]()
                elif section == "table":
                    self.rows()
                else:
                    self.gallery(section)
        self.failures()
        self.notes()
        self.sign()


def render_pdf(view: View, font: Path | None = None) -> bytes:
    """The PDF; texts that no font can show are marked and named at the end. Raises MissingDependencyError."""
    painter = _Painter(view, find_fonts(view.t, font))
    painter.all()
    return bytes(painter.pdf.output())
