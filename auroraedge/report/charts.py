"""The charts of the report as inline SVG. Colours come from the page's CSS classes, so they follow light and dark.

Every text that comes from outside goes through `_text`, which escapes it. Numbers are written with a fixed precision,
so the same figures give the same bytes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

from auroraedge.inspection.palette import LabelStyle
from auroraedge.inspection.recipe import Thresholds
from auroraedge.inspection.results import Box, Defect, Verdict
from auroraedge.report.statistics import HeatMap, ParetoRow, Takt
from auroraedge.report.trend import Trend
from auroraedge.report.words import Words

_WIDTH = 560
# Height of a picture in the gallery, as in report.css.
_GALLERY_PX = 290
# ColorBrewer YlOrBr: lightness falls steadily, so it reads in grey and with every colour blindness.
_HEAT = ("#fff7bc", "#fee391", "#fec44f", "#fe9929", "#ec7014", "#cc4c02", "#8c2d04")
# NG is hatched, so that it differs from OK in grey too.
_HATCH = (
    '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="5" height="5" class="hatch"/><line x1="0" y1="0" x2="0" y2="5" class="hatch-line"/></pattern></defs>'
)
_STACK = (Verdict.OK, Verdict.REVIEW, Verdict.NG)
_WIDE = 1160


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def clip_text(text: str, cells: int) -> str:
    """`text` cut with an ellipsis at `cells` columns; East Asian wide characters take two."""
    used = 0
    for index, ch in enumerate(text):
        used += 2 if unicodedata.east_asian_width(ch) in "WF" else 1
        if used > cells:
            return text[: max(0, index - 1)] + "…"
    return text


def _text(x: float, y: float, content: str, kind: str = "t", anchor: str = "start") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def _rect(x: float, y: float, w: float, h: float, attributes: str) -> str:
    return f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(w)}" height="{_n(h)}" {attributes}/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{kind}"/>'


def _svg(height: float, title: str, parts: Sequence[str], width: float = _WIDTH) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def nice_step(largest: float, ticks: int) -> float:
    """A step of 1, 2 or 5 times a power of ten with at most `ticks` steps up to `largest`."""
    raw = max(largest, 1e-9) / ticks
    power = 10 ** int(np.floor(np.log10(raw)))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9)))


def pareto_chart(rows: Sequence[ParetoRow], titles: Mapping[str, str], t: Words, limit: int = 10) -> Markup:
    """Horizontal bars, most frequent first, with the cumulative share as a line; kinds beyond `limit` are one bar."""
    shown = [(titles.get(r.label, r.label), r.label, r.count, r.cumulative) for r in rows[:limit]]
    if len(rows) > limit:
        shown.append((t("{n} other kinds", n=len(rows) - limit), "", sum(r.count for r in rows[limit:]), 1.0))
    left, right, top = 150, 88, 30
    total, most = sum(row.count for row in rows), max(row[2] for row in shown)
    pitch = min(44.0, max(25.0, 250 / len(shown)))
    bar = pitch * 0.64
    span = _WIDTH - left - right
    bottom = top + pitch * len(shown)
    parts = []
    for percent in (0, 25, 50, 75, 100):
        x = left + span * percent / 100
        parts += [_line(x, top - 6, x, bottom, "grid"), _text(x, top - 11, f"{percent} %", "t s", "middle")]
    points = []
    for index, (title, label, count, cumulative) in enumerate(shown):
        y = top + pitch * index + (pitch - bar) / 2
        tip = escape(f"{title} ({label})" if label and label != title else title)
        parts.append(f"<g><title>{tip}: {count} / {total}, {cumulative:.0%}</title>")
        parts.append(_text(left - 8, y + bar / 2 + 4.5, clip_text(title, 18), "t", "end"))
        width = max(1.5, span * count / total)
        parts.append(_rect(left, y, width, bar, 'class="bar"'))
        parts.append("</g>")
        points.append((left + span * cumulative, y + bar / 2))
        parts.append(_text(_WIDTH - 14, y + bar / 2 + 4.5, t.count(count), "t b", "end"))
    path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    parts.append(f'<polyline points="{path}" class="cum"/>')
    parts += [f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3.5" class="dot"/>' for x, y in points]
    parts.append(_text(_WIDTH - 14, top - 11, t("count"), "t s", "end"))
    summary = t("Pareto of {total} defects; the most frequent kind has {most}.", total=total, most=most)
    return _svg(bottom + 6, summary, parts)


def heat_chart(heat: HeatMap, t: Words) -> Markup:
    """The frame as a grid; a darker cell has more defects. An empty cell keeps the light ground."""
    rows, columns = heat.cells.shape
    cell = min(420 / columns, 270 / rows)
    w, h = cell * columns, cell * rows
    x0, y0 = (_WIDTH - 110 - w) / 2 + 10, 16.0
    largest = float(heat.cells.max())
    parts = [_rect(x0, y0, w, h, 'class="ground"')]
    for row in range(rows):
        for column in range(columns):
            value = float(heat.cells[row, column])
            if value < 0.02 * largest:
                continue
            color = _HEAT[min(len(_HEAT) - 1, int(value / largest * len(_HEAT)))]
            parts.append(
                _rect(x0 + column * cell, y0 + row * cell, cell + 0.2, cell + 0.2, f'fill="{color}"').replace(
                    "/>", f"><title>{value:.2f}</title></rect>"
                )
            )
    parts.append(_rect(x0, y0, w, h, 'class="edge"'))
    parts += [_text(x0, y0 - 5, t("top left"), "t s"), _text(x0 + w, y0 + h + 13, t("bottom right"), "t s", "end")]
    key_x, key_y, key_h = _WIDTH - 92.0, y0 + 18, 20.0
    parts.append(_text(_WIDTH - 4, y0 + 6, t("defects in a cell"), "t s", "end"))
    for index, color in enumerate(reversed(_HEAT)):
        y = key_y + index * key_h
        upper = largest * (len(_HEAT) - index) / len(_HEAT)
        parts.append(_rect(key_x, y, 18, key_h, f'fill="{color}" class="key"'))
        parts.append(_text(key_x + 24, y + 6, t.decimal(upper, ".0f" if upper >= 100 else ".2g"), "t s"))
    parts.append(_text(key_x + 24, key_y + len(_HEAT) * key_h + 6, "0", "t s"))
    return _svg(max(y0 + h + 20, key_y + len(_HEAT) * key_h + 14), t("Places of {n} defects.", n=heat.defects), parts)


def _axis(
    left: float, top: float, span: float, height: float, largest: float, unit: str, t: Words
) -> tuple[list[str], float]:
    """Horizontal grid lines with counts; returns the parts and the top of the scale."""
    step = max(1.0, nice_step(largest, 4))
    upper = step * max(1, int(np.ceil(largest / step)))
    parts, value = [], 0.0
    while value <= upper + 1e-9:
        y = top + height * (1 - value / upper)
        parts += [_line(left, y, left + span, y, "grid"), _text(left - 6, y + 4, t.count(round(value)), "t s", "end")]
        value += step
    parts.append(_text(2, top - 14, unit, "t s"))
    return parts, upper


def latency_chart(values_ms: np.ndarray, t: Words, takt: Takt | None = None, bins: int = 28) -> Markup:
    """Histogram of milliseconds an image, with percentiles and takt; what lies far beyond p99 is the last bar."""
    values = np.asarray(values_ms, dtype=np.float64)
    p50, p95, p99 = (float(v) for v in np.percentile(values, (50, 95, 99)))
    upper = max(p99 * 1.15, p50 * 1.3, 1e-3)
    upper = min(upper, float(values.max()) * 1.02) if values.max() > 0 else upper
    if takt is not None:
        # A takt far beyond every time is not drawn to scale: the text names it.
        upper = max(upper, takt.takt_ms * 1.05) if takt.takt_ms < 4 * upper else upper
    step = nice_step(upper, 6)
    upper = step * int(np.ceil(upper / step - 1e-9))
    counts, _ = np.histogram(np.minimum(values, upper * (1 - 1e-9)), bins=bins, range=(0, upper))
    left, top, height, right = 56.0, 34.0, 190.0, 16.0
    span = _WIDTH - left - right
    parts, scale = _axis(left, top, span, height, float(counts.max()), t("images"), t)
    beyond = int((values >= upper).sum())
    for index, count in enumerate(counts):
        if count == 0:
            continue
        bar = max(1.5, height * count / scale)
        x = left + span * index / bins
        low, high = upper * index / bins, upper * (index + 1) / bins
        note = f"{low:.0f} – {high:.0f} ms: {count}" + (f" (> {high:.0f} ms: {beyond})" if index == bins - 1 else "")
        parts.append(_rect(x + 0.5, top + height - bar, span / bins - 1, bar, 'class="bar"'))
        parts[-1] = parts[-1].replace("/>", f"><title>{note}</title></rect>")
    tick = 0.0
    while tick <= upper + 1e-9:
        x = left + span * tick / upper
        last = tick + step > upper + 1e-9
        more = "+" if last and beyond else ""
        parts.append(_text(x, top + height + 16, f"{tick:g}{more}", "t s", "end" if last else "middle"))
        tick += step
    parts.append(_text(left + span / 2, top + height + 32, t("milliseconds an image"), "t s", "middle"))
    edge = -1e9
    marks = [("p50", p50), ("p95", p95), ("p99", p99)]
    if takt is not None and takt.takt_ms <= upper:
        marks.append((t("takt"), takt.takt_ms))
    for name, value in sorted(marks, key=lambda mark: mark[1]):
        x = left + span * min(value, upper) / upper
        kind = "mark" if name.startswith("p") else "takt"
        parts.append(_line(x, top - 4, x, top + height, kind))
        place = max(x, edge + 34)
        parts.append(_text(min(place, _WIDTH - 14), top - 9, name, "t s b", "middle"))
        edge = place
    return _svg(top + height + 40, f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms", parts)


def probability_chart(stacks: Mapping[Verdict, np.ndarray], thresholds: Thresholds | None, t: Words) -> Markup:
    """Histogram of the NG probability by verdict, with the decision thresholds."""
    left, top, height, right = 56.0, 34.0, 190.0, 16.0
    span = _WIDTH - left - right
    bins = len(stacks[Verdict.OK])
    totals = sum(stacks.values())
    parts, scale = _axis(left, top, span, height, float(np.max(totals)), t("images"), t)
    parts.append(_HATCH)
    for index in range(bins):
        base = top + height
        for verdict in _STACK:
            count = int(stacks[verdict][index])
            if count == 0:
                continue
            bar = max(1.5, height * count / scale)
            base -= bar
            kind = verdict.value.lower()
            rect = _rect(left + span * index / bins + 0.5, base, span / bins - 1, bar, f'class="v-{kind}"')
            note = f"{verdict.value}, {index / bins:.0%} to {(index + 1) / bins:.0%}: {count}"
            parts.append(rect.replace("/>", f"><title>{note}</title></rect>"))
    for percent in (0, 20, 40, 60, 80, 100):
        x = left + span * percent / 100
        parts.append(_text(x, top + height + 16, f"{percent} %", "t s", "end" if percent == 100 else "middle"))
    parts.append(_text(left + span / 2, top + height + 32, t("NG probability"), "t s", "middle"))
    if thresholds is not None:
        limits = {thresholds.ok_below: (t("OK below"), "end"), thresholds.ng_above: (t("NG from"), "start")}
        if len(limits) == 1:
            limits = {thresholds.ok_below: (t("limit"), "middle")}
        for value, (name, anchor) in limits.items():
            x = left + span * value
            parts.append(_line(x, top - 4, x, top + height, "mark"))
            parts.append(_text(min(max(x, 30), _WIDTH - 30), top - 9, f"{name} {t.percent(value, 0)}", "t s b", anchor))
    return _svg(top + height + 40, t("NG probability of {n} images.", n=int(np.sum(totals))), parts)


def trend_chart(trend: Trend, t: Words) -> Markup:
    """Images for each hour (or longer step) by verdict, and the yield as a line with its 95 % interval."""
    left, right, top, height = 56.0, 62.0, 34.0, 200.0
    span = _WIDE - left - right
    pitch = span / max(len(trend.steps), 12)
    most = max(sum(step.counts.values()) for step in trend.steps)
    parts, scale = _axis(left, top, span, height, float(most), t("images"), t)
    parts.append(_HATCH)
    for index, step in enumerate(trend.steps):
        base, x = top + height, left + pitch * index
        for verdict in (*_STACK, Verdict.ERROR):
            count = step.counts[verdict]
            if count == 0:
                continue
            bar = max(1.0, height * count / scale)
            base -= bar
            rect = _rect(x + pitch * 0.1, base, pitch * 0.8, bar, f'class="v-{verdict.value.lower()}"')
            parts.append(rect.replace("/>", f"><title>{escape(step.name)}, {verdict.value}: {count}</title></rect>"))
    for percent in (0, 25, 50, 75, 100):
        y = top + height * (1 - percent / 100)
        parts.append(_text(_WIDE - right + 6, y + 4, f"{percent} %", "t s"))
    parts.append(_text(_WIDE - 2, top - 14, t("yield"), "t s", "end"))
    points = []
    for index, step in enumerate(trend.steps):
        if step.share.value is None:
            continue
        x = left + pitch * (index + 0.5)
        low, high = (top + height * (1 - v) for v in (step.share.low, step.share.high))
        parts.append(_line(x, high, x, low, "whisker"))
        points.append((x, top + height * (1 - step.share.value)))
    if points:
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        parts.append(f'<polyline points="{path}" class="halo"/><polyline points="{path}" class="cum"/>')
        parts += [f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3.5" class="dot"/>' for x, y in points]
    every = max(1, int(np.ceil(64 / pitch)))
    for index in range(0, len(trend.steps), every):
        step = trend.steps[index]
        x = left + pitch * (index + 0.5)
        parts.append(_text(x, top + height + 16, step.name, "t s", "middle"))
        if step.day:
            parts.append(_text(x, top + height + 31, step.day, "t s", "middle"))
    return _svg(top + height + 38, t("Images and yield over time."), parts, _WIDE)


def _box_points(box: Box, width: int, height: int) -> str:
    """The rectangle around a box, larger by 1.5 pixels of a gallery picture so that its line leaves the defect free."""
    grow = 1.5 * max(width, height) / _GALLERY_PX
    x1, y1 = max(box.x1 - grow, 0), max(box.y1 - grow, 0)
    x2, y2 = min(box.x2 + grow, width), min(box.y2 + grow, height)
    return f'x="{_n(x1)}" y="{_n(y1)}" width="{_n(max(x2 - x1, 1))}" height="{_n(max(y2 - y1, 1))}"'


def boxes_overlay(width: int, height: int, defects: Sequence[Defect], styles: Mapping[str, LabelStyle]) -> Markup:
    """Boxes as a layer over a picture, in source pixels; lines keep their width at every size of the picture."""
    parts = []
    for defect in sorted(defects, key=lambda d: (d.confidence, d.label)):
        if defect.box is None:
            continue
        style = styles[defect.label]
        place = _box_points(defect.box, width, height)
        dash = f' stroke-dasharray="{" ".join(_n(part * 2.5) for part in style.dash)}"' if style.dash else ""
        parts.append(
            f'<g><title>{escape(defect.label)} {defect.confidence:.0%}</title><rect {place} class="casing"/>'
            f'<rect {place} class="line" stroke="{style.hex}"{dash}/></g>'
        )
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" class="boxes" aria-hidden="true">'
        f"{''.join(parts)}</svg>"
    )


def swatch(style: LabelStyle) -> Markup:
    """A sample of a label's line."""
    dash = f' stroke-dasharray="{" ".join(_n(part * 2.5) for part in style.dash)}"' if style.dash else ""
    return Markup(
        '<svg viewBox="0 0 26 12" class="swatch" aria-hidden="true"><line x1="1" y1="6" x2="25" y2="6" class="casing"/>'
        f'<line x1="2" y1="6" x2="24" y2="6" class="line" stroke="{style.hex}"{dash}/></svg>'
    )
