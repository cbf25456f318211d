"""The figures of a report, from its entries alone. Torch-free, no I/O, the same for the same entries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from auroraedge.inspection.recipe import Recipe, Severity
from auroraedge.inspection.results import Defect, InspectionResult, StageTimings, Verdict
from auroraedge.report.inputs import InputItem

_Z95 = 1.959963984540054
STAGES: tuple[tuple[str, str], ...] = (
    ("decode_ms", "Decode image"),
    ("preprocess_ms", "Prepare views"),
    ("vision_ms", "Vision encoder"),
    ("prefill_ms", "Fusion and prefill"),
    ("verdict_ms", "Start to verdict"),
    ("generate_ms", "Defect details"),
    ("total_ms", "Total"),
)
GROUP_FIELDS: tuple[tuple[str, str], ...] = (
    ("recipe_id", "Recipe"),
    ("lot", "Lot"),
    ("line", "Line"),
    ("station", "Station"),
    ("camera", "Camera"),
)
_SEVERITY_RANK = {Severity.CRITICAL: 0, Severity.MAJOR: 1, Severity.MINOR: 2}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image of the report and its result."""

    item: InputItem
    result: InspectionResult


@dataclass(frozen=True, kw_only=True)
class Share:
    """`count` of `total`, with the Wilson 95 % interval of the share (all 0..1; 0..1 whole range for total 0)."""

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        return self.count / self.total if self.total else None


def wilson(count: int, total: int) -> Share:
    """The Wilson score interval at 95 % (Wilson 1927), which stays inside 0..1 and is honest for small samples."""
    if total == 0:
        return Share(count=0, total=0, low=0.0, high=1.0)
    p, z2 = count / total, _Z95**2
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    # At the ends the formula gives exactly 0 or 1, but only up to rounding.
    low = 0.0 if count == 0 else max(0.0, middle - half)
    high = 1.0 if count == total else min(1.0, middle + half)
    return Share(count=count, total=total, low=low, high=high)


def verdict_counts(entries: Iterable[Entry]) -> dict[Verdict, int]:
    found = Counter(entry.result.verdict for entry in entries)
    return {verdict: found.get(verdict, 0) for verdict in Verdict}


def first_pass_yield(entries: Iterable[Entry]) -> Share:
    """OK among the images that got a verdict: a part in REVIEW has not passed, an ERROR says nothing of the part."""
    counts = verdict_counts(entries)
    return wilson(counts[Verdict.OK], counts[Verdict.OK] + counts[Verdict.NG] + counts[Verdict.REVIEW])


def origin(entry: Entry, field: str) -> str:
    """Where an image belongs: its recipe, or a field of its RequestInfo."""
    value: str = entry.result.recipe_id if field == "recipe_id" else getattr(entry.result.request, field)
    return value


@dataclass(frozen=True, kw_only=True)
class GroupYield:
    """Yield of one recipe, lot, line, station or camera."""

    name: str
    counts: dict[Verdict, int]
    share: Share


def yield_by(entries: Sequence[Entry], field: str) -> list[GroupYield]:
    """Yield by `origin`, worst first; empty when that tells nothing: no values at all, or a single recipe."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(origin(entry, field), []).append(entry)
    if set(groups) <= {""} or (field == "recipe_id" and len(groups) == 1):
        return []
    rows = [
        GroupYield(name=name, counts=verdict_counts(members), share=first_pass_yield(members))
        for name, members in groups.items()
    ]
    return sorted(rows, key=lambda row: (1.0 if row.share.value is None else row.share.value, row.name))


@dataclass(frozen=True, kw_only=True)
class ParetoRow:
    """One defect kind. `cumulative`: share of all defects up to and with this row, 0..1."""

    label: str
    count: int
    images: int
    severity: Severity | None
    cumulative: float


def _found(result: InspectionResult) -> list[tuple[str, Severity | None]]:
    """The defects of a result; for a recipe that classifies, the class of a part that did not pass."""
    if result.defects:
        return [(defect.label, defect.severity) for defect in result.defects]
    if result.predicted_class is not None and result.verdict in (Verdict.NG, Verdict.REVIEW):
        return [(result.predicted_class, None)]
    return []


def pareto(entries: Iterable[Entry]) -> list[ParetoRow]:
    """Defect kinds, most frequent first."""
    counts: Counter[str] = Counter()
    images: Counter[str] = Counter()
    severities: dict[str, Severity | None] = {}
    for entry in entries:
        found = _found(entry.result)
        counts.update(label for label, _ in found)
        images.update({label for label, _ in found})
        severities.update(found)
    total, so_far, rows = sum(counts.values()), 0, []
    for label, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        so_far += count
        rows.append(
            ParetoRow(
                label=label,
                count=count,
                images=images[label],
                severity=severities[label],
                cumulative=so_far / total,
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Defects by place: `cells` float64 [rows, columns], each defect spread over its box with a sum of 1."""

    recipe_id: str
    cells: np.ndarray
    defects: int
    aspect: float


def heat_map(entries: Iterable[Entry], long_side: int = 24) -> HeatMap | None:
    """Where defects lie in the frame, for the recipe with most located defects (parts of other recipes look different).

    Positions are relative to each frame's own size. None when no defect has a place.
    """
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    aspects: dict[str, list[float]] = {}
    for entry in entries:
        result = entry.result
        w, h = result.image_width, result.image_height
        for defect in result.defects:
            if defect.box is None or w <= 0 or h <= 0:
                continue
            box = defect.box
            boxes.setdefault(result.recipe_id, []).append((box.x1 / w, box.y1 / h, box.x2 / w, box.y2 / h))
            aspects.setdefault(result.recipe_id, []).append(w / h)
    if not boxes:
        return None
    recipe_id = min(boxes, key=lambda key: (-len(boxes[key]), key))
    aspect = float(np.median(aspects[recipe_id]))
    columns = long_side if aspect >= 1 else max(4, round(long_side * aspect))
    rows = long_side if aspect < 1 else max(4, round(long_side / aspect))
    cells = np.zeros((rows, columns))
    for x1, y1, x2, y2 in boxes[recipe_id]:
        share_x, share_y = _shares(x1, x2, columns), _shares(y1, y2, rows)
        cells += np.outer(share_y, share_x)
    return HeatMap(recipe_id=recipe_id, cells=cells, defects=len(boxes[recipe_id]), aspect=aspect)


def _shares(low: float, high: float, count: int) -> np.ndarray:
    """float64 [count]: how an interval of 0..1 spreads over `count` equal cells; sums to 1, also for a point."""
    edges = np.arange(count + 1) / count
    low, high = min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
    covered = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0.0, None)
    if covered.sum() <= 0:
        covered = np.zeros(count)
        covered[min(count - 1, int(low * count))] = 1.0
    return covered / covered.sum()


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """Percentiles of one stage in milliseconds."""

    name: str
    title: str
    p50: float
    p95: float
    p99: float
    largest: float


def measured(entries: Iterable[Entry]) -> list[StageTimings]:
    """Timings of the images that got a verdict."""
    return [
        e.result.timings for e in entries if e.result.verdict is not Verdict.ERROR and e.result.timings.total_ms > 0
    ]


def stage_rows(entries: Iterable[Entry]) -> list[StageRow]:
    """Percentiles (linear interpolation) of each stage that was measured."""
    timings, rows = measured(entries), []
    for name, title in STAGES:
        values = np.array([getattr(timing, name) for timing in timings])
        if values.size == 0 or values.max() <= 0:
            continue
        p50, p95, p99 = (float(np.percentile(values, q)) for q in (50, 95, 99))
        rows.append(StageRow(name=name, title=title, p50=p50, p95=p95, p99=p99, largest=float(values.max())))
    return rows


def worst_first(entries: Iterable[Entry]) -> list[Entry]:
    """By NG probability, then the worst severity, then the number of defects, then the name."""
    return sorted(
        entries,
        key=lambda e: (
            -(e.result.ng_probability or 0.0),
            min((_SEVERITY_RANK[d.severity] for d in e.result.defects), default=3),
            -len(e.result.defects),
            e.item.name,
        ),
    )


def worst_defects(defects: Iterable[Defect]) -> list[Defect]:
    """Most severe first, then most confident."""
    return sorted(defects, key=lambda d: (_SEVERITY_RANK[d.severity], -d.confidence, d.label))


def all_labels(recipes: Iterable[Recipe]) -> list[str]:
    """Labels of the recipes in their order, each once."""
    return list(dict.fromkeys(label for recipe in recipes for label in recipe.label_names))


def label_titles(recipes: Iterable[Recipe], language: str) -> dict[str, str]:
    """Display names by label in `language`, where the recipes give one."""
    return {spec.name: spec.title[language] for recipe in recipes for spec in recipe.labels if spec.title.get(language)}
