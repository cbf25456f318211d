"""Plots of studies as inline SVG. Colours are classes of the page, so they follow light, dark and print."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 640.0, 200.0, 140.0, 26.0, 30.0


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One estimate. `kind` is its class on the page; `text` stands at its right. A head has no value."""

    label: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    text: str = ""
    kind: str = "plain"
    is_head: bool = False


@dataclass(frozen=True, kw_only=True)
class Zone:
    """A stretch of the axis with a meaning: good, marginal or bad."""

    low: float
    high: float
    kind: str


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


def clip_middle(text: str, cells: int) -> str:
    """`text` cut in the middle: names of a shift often differ at the end."""
    if clip_text(text, cells) == text:
        return text
    tail = clip_text(text[::-1], cells // 2).rstrip("…")[::-1]
    return clip_text(text, cells - cells // 2) + tail


def _text(x: float, y: float, content: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{kind}"/>'


def interval_plot(
    title: str,
    bars: Sequence[Bar],
    *,
    axis: tuple[float, float],
    ticks: Sequence[float],
    zones: Sequence[Zone] = (),
    percent: bool = True,
) -> Markup:
    """Points with whiskers, one below the other, over the zones that say what is good."""
    low, high = axis
    span = _WIDTH - _LEFT - _RIGHT
    bottom = _TOP + _ROW * len(bars)

    def x(value: float) -> float:
        return _LEFT + span * (min(max(value, low), high) - low) / (high - low)

    parts = [
        f'<rect x="{_n(x(zone.low))}" y="{_n(_TOP - 4)}" width="{_n(x(zone.high) - x(zone.low))}" '
        f'height="{_n(bottom - _TOP + 8)}" class="zone-{zone.kind}"/>'
        for zone in zones
    ]
    for tick in ticks:
        label = f"{tick:.0%}".replace("%", " %") if percent else f"{tick:g}"
        parts.append(_line(x(tick), _TOP - 4, x(tick), bottom + 4, "grid"))
        parts.append(_text(x(tick), _TOP - 10, label, "t s", "middle"))
    for index, bar in enumerate(bars):
        y = _TOP + _ROW * (index + 0.5)
        if bar.is_head:
            parts.append(_text(4, y + 5, clip_text(bar.label, 44), "t b"))
            continue
        parts.append(f"<g><title>{escape(bar.label)}: {escape(bar.text)}</title>")
        parts.append(_text(_LEFT - 10, y + 4.5, clip_text(bar.label, 26), "t", "end"))
        if bar.value is not None:
            if bar.low is not None and bar.high is not None:
                parts.append(_line(x(bar.low), y, x(bar.high), y, f"whisker {bar.kind}"))
                parts += [_line(x(end), y - 5, x(end), y + 5, f"whisker {bar.kind}") for end in (bar.low, bar.high)]
            parts.append(f'<circle cx="{_n(x(bar.value))}" cy="{_n(y)}" r="5" class="point {bar.kind}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 12, y + 4.5, bar.text, "t s") + "</g>")
    height = bottom + 12
    return Markup(
        f'<svg viewBox="0 0 {_n(_WIDTH)} {_n(height)}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
