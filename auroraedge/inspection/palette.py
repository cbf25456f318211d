"""Colours and line patterns for verdicts and labels, the same in pictures and in reports.

Nothing is told by hue alone: a label has a colour and a line pattern, a verdict a colour, a glyph and its word. The
label colours are those of Okabe and Ito (Color Universal Design, 2008), which stay apart in every common form of colour
blindness.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from auroraedge.inspection.results import Verdict

Rgb = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class LabelStyle:
    """How the boxes of one label are drawn. `dash`: lengths on and off in line widths; empty for a solid line."""

    color: Rgb
    dash: tuple[float, ...]

    @property
    def hex(self) -> str:
        return "#{:02x}{:02x}{:02x}".format(*self.color)


@dataclass(frozen=True, kw_only=True)
class VerdictStyle:
    """Banner and badge of one verdict. Text on `color` in `ink` has a contrast above 4.5:1."""

    color: Rgb
    ink: Rgb
    glyph: str


_COLORS: tuple[Rgb, ...] = (
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (0, 114, 178),
)
# Four patterns and seven colours share no factor: 28 labels before a combination returns.
_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 2), (1.2, 1.8), (6, 2, 1.2, 2))

VERDICT_STYLES: dict[Verdict, VerdictStyle] = {
    Verdict.OK: VerdictStyle(color=(0, 110, 86), ink=(255, 255, 255), glyph="✓"),
    Verdict.NG: VerdictStyle(color=(176, 58, 0), ink=(255, 255, 255), glyph="✕"),
    Verdict.REVIEW: VerdictStyle(color=(240, 196, 25), ink=(20, 20, 20), glyph="?"),
    Verdict.ERROR: VerdictStyle(color=(84, 84, 100), ink=(255, 255, 255), glyph="!"),
}


def label_styles(labels: Iterable[str]) -> dict[str, LabelStyle]:
    """A style for each label, by its position: pass the recipe's labels, so that all pictures of a recipe agree."""
    unique = dict.fromkeys(labels)
    return {
        label: LabelStyle(color=_COLORS[index % len(_COLORS)], dash=_DASHES[index % len(_DASHES)])
        for index, label in enumerate(unique)
    }


def ink_on(color: Rgb) -> Rgb:
    """Black or white, whichever reads better on `color` (WCAG relative luminance)."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 0.05 * 1.05 else (255, 255, 255)


def with_extra_labels(known: Iterable[str], found: Iterable[str]) -> dict[str, LabelStyle]:
    """Styles of the known labels, then of those found beyond them in alphabetical order."""
    ordered = list(dict.fromkeys(known))
    return label_styles([*ordered, *sorted(set(found) - set(ordered))])
