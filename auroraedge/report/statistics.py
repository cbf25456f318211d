"""The figures of a report, gathered from one pass over its entries. No I/O; the same entries give the same figures.

Memory does not grow with the results, but for 40 bytes of timings each and the names of parts.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from auroraedge.inspection.recipe import Recipe, Severity
from auroraedge.inspection.results import Defect, InspectionResult, Verdict
from auroraedge.report.inputs import InputItem
from auroraedge.store.types import Review

_Z95 = 1.959963984540054
STAGES: tuple[tuple[str, str], ...] = (
    ("decode_ms", "Decode image"),
    ("preprocess_ms", "Prepare views"),
    ("vision_ms", "Vision encoder"),
    ("prefill_ms", "Fusion and prefill"),
    ("verdict_ms", "Start to verdict"),
    ("generate_ms", "Defect details"),
    ("total_ms", "Total"),
    ("queue_ms", "Wait in the queue"),
    ("store_ms", "Commit to the store"),
    ("service_ms", "In the service, all together"),
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
    """One result of the report. `number`: its row, from 1.

    image_sha256, reference_sha256: addresses of the pictures in a result store; None where the files of `item` count.
    """

    item: InputItem
    result: InspectionResult
    number: int = 0
    review: Review | None = None
    image_sha256: str | None = None
    reference_sha256: str | None = None

    @property
    def verdict(self) -> Verdict:
        """The reviewer's verdict, else the model's."""
        return self.review.verdict if self.review else self.result.verdict

    @property
    def defects(self) -> tuple[Defect, ...]:
        """The reviewer's defects where one gave them, none on a part that a person passed, else the model's."""
        if self.review is None:
            return self.result.defects
        if self.review.defects is not None:
            return self.review.defects
        return () if self.review.verdict is Verdict.OK else self.result.defects

    @property
    def moment(self) -> datetime:
        """When the frame was taken, where that is known, else when it was inspected."""
        return self.result.request.captured_at or self.result.created_at


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


Counts = dict[Verdict, int]


def no_counts() -> Counts:
    return dict.fromkeys(Verdict, 0)


def yield_of(counts: Counts) -> Share:
    """OK among the images that got a verdict: a part in REVIEW has not passed, an ERROR says nothing of the part."""
    return wilson(counts[Verdict.OK], counts[Verdict.OK] + counts[Verdict.NG] + counts[Verdict.REVIEW])


def origin(entry: Entry, name: str) -> str:
    """Where an image belongs: its recipe, or a field of its RequestInfo."""
    value: str = entry.result.recipe_id if name == "recipe_id" else getattr(entry.result.request, name)
    return value


@dataclass(frozen=True, kw_only=True)
class GroupYield:
    """Yield of one recipe, lot, line, station or camera."""

    name: str
    counts: Counts
    share: Share


@dataclass(frozen=True, kw_only=True)
class ParetoRow:
    """One defect kind. `cumulative`: share of all defects up to and with this row, 0..1."""

    label: str
    count: int
    images: int
    severity: Severity | None
    cumulative: float


def _found(entry: Entry) -> list[tuple[str, Severity | None]]:
    """The defects of a result; for a recipe that classifies, the class of a part that did not pass."""
    if entry.defects:
        return [(defect.label, defect.severity) for defect in entry.defects]
    result = entry.result
    if result.predicted_class is not None and entry.verdict in (Verdict.NG, Verdict.REVIEW):
        return [(result.predicted_class, None)]
    return []


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Defects by place: `cells` float64 [rows, columns], each defect spread over its box with a sum of 1."""

    recipe_id: str
    cells: np.ndarray
    defects: int
    aspect: float


@dataclass(kw_only=True)
class _HeatGrid:
    cells: np.ndarray
    aspect: float
    defects: int = 0


def _new_grid(aspect: float, long_side: int = 24) -> _HeatGrid:
    columns = long_side if aspect >= 1 else max(4, round(long_side * aspect))
    rows = long_side if aspect < 1 else max(4, round(long_side / aspect))
    return _HeatGrid(cells=np.zeros((rows, columns)), aspect=aspect)


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


@dataclass(frozen=True, kw_only=True)
class Takt:
    """Times against the takt: `late` of `total` images took longer than `takt_ms`. slowest_ms: the longest."""

    takt_ms: float
    share: Share
    p99_ms: float
    slowest_ms: float


def badness(entry: Entry) -> tuple[float, int, int, str, int]:
    """Sorts the worst first: by NG probability, then the worst severity, the number of defects, the name."""
    return (
        -(entry.result.ng_probability or 0.0),
        min((_SEVERITY_RANK[d.severity] for d in entry.defects), default=3),
        -len(entry.defects),
        entry.item.name,
        entry.number,
    )


class Best:
    """The `most` entries with the smallest keys of any number, in order."""

    def __init__(self, most: int, key: Callable[[Entry], tuple[float, int, int, str, int]] = badness) -> None:
        self._most, self._key = most, key
        self._kept: list[Entry] = []
        self.total = 0

    def add(self, entry: Entry) -> None:
        self.total += 1
        self._kept.append(entry)
        if len(self._kept) >= 4 * self._most + 64:
            self._prune()

    def _prune(self) -> None:
        self._kept.sort(key=self._key)
        del self._kept[self._most :]

    def entries(self) -> list[Entry]:
        self._prune()
        return list(self._kept)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A frame that could not be inspected."""

    name: str
    reason: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many entries are kept for pictures and tables; counts are of all."""

    ng: int = 60
    review: int = 60
    ok: int = 12
    rows: int = 5000
    failures: int = 500
    parts: int = 100_000


# What the worst image of a part makes of the part.
_PART_RANK = {Verdict.OK: 0, Verdict.ERROR: 1, Verdict.REVIEW: 2, Verdict.NG: 3}


@dataclass(kw_only=True)
class Figures:
    """All that a report shows of its entries. `add` each once, in the order of the report."""

    limits: Limits = field(default_factory=Limits)
    takt_ms: float | None = None

    def __post_init__(self) -> None:
        limits = self.limits
        self.total = 0
        self.counts = no_counts()
        self.model_counts = no_counts()
        self.decisions: Counter[tuple[Verdict, Verdict]] = Counter()
        self.reviewers: Counter[str] = Counter()
        self.critical = 0
        self.simulated = 0
        self.partial = 0
        self.warnings: Counter[str] = Counter()
        self.recipes: Counter[tuple[str, int, str]] = Counter()
        self.engines: Counter[tuple[str, str]] = Counter()
        self.thresholds: dict[tuple[str, int, str], object] = {}
        self.has_class = False
        self.earliest: datetime | None = None
        self.latest: datetime | None = None
        self.newest: datetime | None = None
        self.hours: dict[int, Counts] = {}
        self.rows: list[Entry] = []
        self.failures: list[Failure] = []
        self.worst = {
            Verdict.NG: Best(limits.ng),
            Verdict.REVIEW: Best(limits.review),
            Verdict.OK: Best(limits.ok),
        }
        self.parts: dict[str, Verdict] = {}
        self.parts_complete = True
        self._groups: dict[str, dict[str, Counts]] = {name: {} for name, _ in GROUP_FIELDS}
        self._named: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._label_images: Counter[str] = Counter()
        self._severities: dict[str, Severity | None] = {}
        self._grids: dict[str, _HeatGrid] = {}
        self._times = {name: array("f") for name, _ in STAGES}
        self._probabilities = {verdict: np.zeros(100, dtype=np.int64) for verdict in Verdict}

    def add(self, entry: Entry) -> None:
        result, verdict = entry.result, entry.verdict
        self.total += 1
        self.counts[verdict] += 1
        self.model_counts[result.verdict] += 1
        if entry.review is not None:
            self.decisions[result.verdict, verdict] += 1
            self.reviewers[entry.review.reviewer] += 1
        if len(self.rows) < self.limits.rows:
            self.rows.append(entry)
        if verdict in self.worst:
            self.worst[verdict].add(entry)
        self.critical += any(d.severity is Severity.CRITICAL for d in entry.defects)
        self.simulated += result.is_simulated
        self.partial += result.is_partial
        self.has_class = self.has_class or result.predicted_class is not None
        self.warnings.update(result.warnings)
        self._add_identity(result)
        self._add_moment(entry)
        self._add_origin(entry)
        self._add_defects(entry)
        if result.error is not None and len(self.failures) < self.limits.failures:
            error = result.error
            self.failures.append(Failure(name=entry.item.name, reason=error.message, remedy=error.remedy))
        if result.verdict is not Verdict.ERROR and result.timings.total_ms > 0:
            for name, values in self._times.items():
                values.append(getattr(result.timings, name))
        if result.ng_probability is not None:
            self._probabilities[verdict][min(99, int(result.ng_probability * 100))] += 1

    def _add_identity(self, result: InspectionResult) -> None:
        recipe = (result.recipe_id, result.recipe_version, result.recipe_sha256)
        self.recipes[recipe] += 1
        if recipe not in self.thresholds and result.thresholds is not None:
            self.thresholds[recipe] = result.thresholds
        if result.engine_sha256 or result.model_id:
            self.engines[result.model_id, result.engine_sha256] += 1

    def _add_moment(self, entry: Entry) -> None:
        moment = entry.moment
        self.earliest = moment if self.earliest is None else min(self.earliest, moment)
        self.latest = moment if self.latest is None else max(self.latest, moment)
        for known in (entry.result.created_at, entry.review.at if entry.review else None):
            if known is not None and (self.newest is None or known > self.newest):
                self.newest = known
        self.hours.setdefault(int(moment.timestamp() // 3600), no_counts())[entry.verdict] += 1

    def _add_origin(self, entry: Entry) -> None:
        for name, groups in self._groups.items():
            value = origin(entry, name)
            counts = groups.get(value)
            if counts is None:
                counts = groups[value] = no_counts()
            counts[entry.verdict] += 1
        part = entry.result.request.part_id
        if part:
            self._named["part_id"] += 1
            before = self.parts.get(part)
            if before is None and len(self.parts) >= self.limits.parts:
                self.parts_complete = False
            elif before is None or _PART_RANK[entry.verdict] > _PART_RANK[before]:
                self.parts[part] = entry.verdict

    def _add_defects(self, entry: Entry) -> None:
        found = _found(entry)
        if found:
            self._labels.update(label for label, _ in found)
            self._label_images.update({label for label, _ in found})
            self._severities.update(found)
        w, h = entry.result.image_width, entry.result.image_height
        if w <= 0 or h <= 0:
            return
        for defect in entry.defects:
            if defect.box is None:
                continue
            grid = self._grids.get(entry.result.recipe_id)
            if grid is None:
                grid = self._grids[entry.result.recipe_id] = _new_grid(w / h)
            box = defect.box
            rows, columns = grid.cells.shape
            grid.cells += np.outer(_shares(box.y1 / h, box.y2 / h, rows), _shares(box.x1 / w, box.x2 / w, columns))
            grid.defects += 1

    # -- what is shown --

    @property
    def share(self) -> Share:
        """The first-pass yield after review."""
        return yield_of(self.counts)

    @property
    def reviewed(self) -> int:
        return sum(self.decisions.values())

    @property
    def overturned(self) -> int:
        """Reviews that changed OK into NG or NG into OK."""
        wrong = ((Verdict.OK, Verdict.NG), (Verdict.NG, Verdict.OK))
        return sum(self.decisions[pair] for pair in wrong)

    @property
    def labels(self) -> list[str]:
        """All labels that were found, in alphabetical order."""
        return sorted(self._labels)

    def part_counts(self) -> Counts:
        """Parts by the worst verdict of their images."""
        found = Counter(self.parts.values())
        return {verdict: found[verdict] for verdict in Verdict}

    def yield_by(self, name: str) -> list[GroupYield]:
        """Yield by `origin`, worst first; empty when that tells nothing: no values at all, or a single recipe."""
        groups = self._groups[name]
        if set(groups) <= {""} or (name == "recipe_id" and len(groups) == 1):
            return []
        rows = [GroupYield(name=key, counts=counts, share=yield_of(counts)) for key, counts in groups.items()]
        return sorted(rows, key=lambda row: (1.0 if row.share.value is None else row.share.value, row.name))

    def columns(self) -> set[str]:
        """The fields of origin that tell something."""
        found = {"part_id"} if self._named["part_id"] else set()
        for name, groups in self._groups.items():
            if set(groups) - {""} and (name != "recipe_id" or len(groups) > 1):
                found.add(name)
        return found

    def pareto(self) -> list[ParetoRow]:
        """Defect kinds, most frequent first."""
        total, so_far, rows = sum(self._labels.values()), 0, []
        for label, count in sorted(self._labels.items(), key=lambda pair: (-pair[1], pair[0])):
            so_far += count
            rows.append(
                ParetoRow(
                    label=label,
                    count=count,
                    images=self._label_images[label],
                    severity=self._severities[label],
                    cumulative=so_far / total,
                )
            )
        return rows

    def heat_map(self) -> HeatMap | None:
        """Where defects lie, for the recipe with most located ones (parts of other recipes look different)."""
        if not self._grids:
            return None
        name = min(self._grids, key=lambda key: (-self._grids[key].defects, key))
        grid = self._grids[name]
        return HeatMap(recipe_id=name, cells=grid.cells, defects=grid.defects, aspect=grid.aspect)

    def times(self, name: str) -> np.ndarray:
        """float32 [measured images]: milliseconds of a stage."""
        return np.frombuffer(self._times[name], dtype=np.float32)

    def stage_rows(self) -> list[StageRow]:
        """Percentiles (linear interpolation) of each stage that was measured."""
        rows = []
        for name, title in STAGES:
            values = self.times(name)
            if values.size == 0 or values.max() <= 0:
                continue
            p50, p95, p99 = (float(v) for v in np.percentile(values.astype(np.float64), (50, 95, 99)))
            rows.append(StageRow(name=name, title=title, p50=p50, p95=p95, p99=p99, largest=float(values.max())))
        return rows

    def response_times(self) -> np.ndarray:
        """Milliseconds until the line had its answer: with queue and store where a server measured them."""
        service, total = self.times("service_ms"), self.times("total_ms")
        return np.where(service > 0, service, total)

    def takt(self) -> Takt | None:
        values = self.response_times()
        if self.takt_ms is None or values.size == 0:
            return None
        late = int((values > self.takt_ms).sum())
        return Takt(
            takt_ms=self.takt_ms,
            share=wilson(late, int(values.size)),
            p99_ms=float(np.percentile(values.astype(np.float64), 99)),
            slowest_ms=float(values.max()),
        )

    def probabilities(self, bins: int = 20) -> dict[Verdict, np.ndarray]:
        """Images by NG probability in equal bins, for each verdict; empty when none has a probability."""
        if not any(values.sum() for values in self._probabilities.values()):
            return {}
        return {verdict: values.reshape(bins, -1).sum(axis=1) for verdict, values in self._probabilities.items()}


def worst_defects(defects: Iterable[Defect]) -> list[Defect]:
    """Most severe first, then most confident."""
    return sorted(defects, key=lambda d: (_SEVERITY_RANK[d.severity], -d.confidence, d.label))


def all_labels(recipes: Iterable[Recipe]) -> list[str]:
    """Labels of the recipes in their order, each once."""
    return list(dict.fromkeys(label for recipe in recipes for label in recipe.label_names))


def label_titles(recipes: Iterable[Recipe], language: str) -> dict[str, str]:
    """Display names by label in `language`, where the recipes give one."""
    return {spec.name: spec.title[language] for recipe in recipes for spec in recipe.labels if spec.title.get(language)}
