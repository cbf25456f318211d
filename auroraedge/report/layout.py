"""What each kind of report shows, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from auroraedge.errors import InvalidRequestError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`heading` names the kind. `sections` in order: trend, charts, parts, groups, ng, review, ok, every, table.

    sign: lines for names and signatures, on paper only.
    """

    name: str
    heading: str
    sections: tuple[str, ...]
    groups: tuple[str, ...] = ("recipe_id", "lot", "line", "station", "camera")
    table_rows: int = 5000
    sign: tuple[str, ...] = ()


_ALL = (
    Layout(
        name="batch",
        heading="Inspection report",
        sections=("charts", "trend", "parts", "groups", "ng", "review", "ok", "table"),
    ),
    # For the hand-over: what happened when, what is still to decide, and no long tables.
    Layout(
        name="shift",
        heading="Shift report",
        sections=("trend", "review", "charts", "parts", "groups", "ng"),
        groups=("line", "station", "camera", "lot", "recipe_id"),
        table_rows=0,
        sign=("Handed over by", "Taken over by"),
    ),
    # For the release of a lot: parts, defects, evidence.
    Layout(
        name="lot",
        heading="Lot report",
        sections=("parts", "charts", "groups", "ng", "review", "ok", "trend", "table"),
        groups=("lot", "recipe_id", "line", "station", "camera"),
        sign=("Inspected by", "Released by"),
    ),
    # For one part or a few: every image with every defect.
    Layout(
        name="part",
        heading="Part report",
        sections=("parts", "every", "charts", "groups", "table"),
        groups=("recipe_id", "station", "camera"),
        table_rows=1000,
        sign=("Checked by",),
    ),
)
LAYOUTS = {layout.name: layout for layout in _ALL}


def layout_of(name: str) -> Layout:
    """Raises InvalidRequestError."""
    if name not in LAYOUTS:
        raise InvalidRequestError(
            f"There is no template '{name}'.", field="template", remedy=f"Templates: {', '.join(LAYOUTS)}."
        )
    return LAYOUTS[name]
