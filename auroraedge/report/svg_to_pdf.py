"""Draws the charts of the page into a PDF: just the elements and classes that charts.py writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from auroraedge.report.pdf import Document

_PT_PER_MM = 72 / 25.4


@dataclass(frozen=True, kw_only=True)
class _Style:
    """As in report.css on paper; widths in the units of the drawing."""

    fill: str = ""
    stroke: str = ""
    width: float = 1.0
    dash: bool = False


_STYLES = {
    "grid": _Style(stroke="#cccccc", width=0.8),
    "bar": _Style(fill="#3a6ea5"),
    "cum": _Style(stroke="#000000", width=1.6),
    "halo": _Style(stroke="#ffffff", width=4),
    "whisker": _Style(stroke="#777777", width=0.8),
    "dot": _Style(fill="#ffffff", stroke="#000000", width=1.4),
    "mark": _Style(stroke="#000000", width=1.4, dash=True),
    "takt": _Style(stroke="#b03a00", width=2.4),
    "ground": _Style(fill="#fbfbf7"),
    "edge": _Style(stroke="#555555", width=1.2),
    "key": _Style(stroke="#999999", width=0.4),
    "v-ok": _Style(fill="#006e56"),
    "v-review": _Style(fill="#f0c419"),
    "v-ng": _Style(fill="#b03a00"),
    "v-error": _Style(fill="#545464"),
}
_NONE = _Style()


class SvgPainter:
    """`clean` makes text printable with the fonts at hand."""

    def __init__(self, pdf: Document, clean: Callable[[str], str]) -> None:
        self._pdf = pdf
        self._clean = clean

    def height(self, svg: str, width_mm: float) -> float:
        """Millimetres that the drawing is high at this width."""
        _, _, w, h = (float(v) for v in ElementTree.fromstring(svg).attrib["viewBox"].split())
        return width_mm * h / w

    def draw(self, svg: str, x_mm: float, y_mm: float, width_mm: float) -> None:
        root = ElementTree.fromstring(svg)
        self._x, self._y = x_mm, y_mm
        self._scale = width_mm / float(root.attrib["viewBox"].split()[2])
        self._children(root)

    def _children(self, parent: ElementTree.Element) -> None:
        for element in parent:
            if element.tag == "g":
                self._children(element)
            elif element.tag in ("rect", "line", "text", "polyline", "circle"):
                getattr(self, f"_{element.tag}")(element)

    def _style(self, element: ElementTree.Element) -> str:
        """Sets colours and line; returns what to paint: D, F, DF."""
        style = _STYLES.get(element.attrib.get("class", ""), _NONE)
        fill, pdf = element.attrib.get("fill") or style.fill, self._pdf
        if fill:
            pdf.set_fill_color(fill)
        if style.stroke:
            pdf.set_draw_color(style.stroke)
            pdf.set_line_width(max(0.1, style.width * self._scale))
        pdf.set_dash_pattern(dash=5 * self._scale, gap=3 * self._scale) if style.dash else pdf.set_dash_pattern()
        return ("D" if style.stroke else "") + ("F" if fill else "")

    def _at(self, element: ElementTree.Element, *names: str) -> list[float]:
        offsets = {"x": self._x, "y": self._y}
        return [
            offsets.get(name.strip("c12"), 0.0) * (name[0] in "xyc") + float(element.attrib[name]) * self._scale
            for name in names
        ]

    def _rect(self, element: ElementTree.Element) -> None:
        paint = self._style(element)
        x, y = self._at(element, "x", "y")
        w, h = (float(element.attrib[name]) * self._scale for name in ("width", "height"))
        if paint:
            self._pdf.rect(x, y, w, h, style=paint)
        if element.attrib.get("class") == "v-ng":
            self._hatch(x, y, w, h)

    def _hatch(self, x: float, y: float, w: float, h: float) -> None:
        """NG is hatched, so that it differs from OK in grey too."""
        pdf = self._pdf
        pdf.set_draw_color("#ffffff")
        pdf.set_line_width(0.15)
        with pdf.rect_clip(x, y, w, h):
            offset = -h
            while offset < w:
                pdf.line(x + offset, y + h, x + offset + h, y)
                offset += 1.0

    def _line(self, element: ElementTree.Element) -> None:
        self._style(element)
        self._pdf.line(*self._at(element, "x1", "y1", "x2", "y2"))

    def _circle(self, element: ElementTree.Element) -> None:
        paint = self._style(element)
        x, y = self._at(element, "cx", "cy")
        self._pdf.circle(x, y, float(element.attrib["r"]) * self._scale, style=paint)

    def _polyline(self, element: ElementTree.Element) -> None:
        self._style(element)
        points = [pair.split(",") for pair in element.attrib["points"].split()]
        self._pdf.polyline([(self._x + float(x) * self._scale, self._y + float(y) * self._scale) for x, y in points])

    def _text(self, element: ElementTree.Element) -> None:
        classes = element.attrib.get("class", "").split()
        pdf, text = self._pdf, self._clean(element.text or "")
        size = (11.5 if "s" in classes else 13) * self._scale * _PT_PER_MM * 1.06
        pdf.set_font("report", "B" if "b" in classes else "", size)
        pdf.set_text_color("#444444" if classes == ["t", "s"] else "#000000")
        x, y = self._at(element, "x", "y")
        width = pdf.measure(text)
        anchor = element.attrib.get("text-anchor", "start")
        pdf.put(x - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor], y, text)
