"""Stores with realistic results: generated sample parts, really inspected with the embedded engine."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from auroraedge.data.samples import write_samples
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.results import InspectionResult, RequestInfo, Verdict, new_result_id
from auroraedge.runtime import Inspector
from auroraedge.store import NewResult, Store

CAMERAS = {
    "pcb": ("L1", "AOI-1", "cam-board"),
    "magnetic_tile": ("L2", "grind", "cam-tile"),
    "steel_strip": ("L3", "roll", "cam-strip"),
}


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """One generated part, its golden sample and the engine's result."""

    result: InspectionResult
    image: bytes
    reference: bytes | None


def inspect_samples(folder: Path, *, per_kind: int, seed: int = 7) -> list[Inspected]:
    """Writes sample parts into the empty `folder` and inspects them."""
    write_samples(folder, seed=seed, n_per_kind=per_kind)
    found = []
    with Inspector.open() as inspector, (folder / "manifest.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            recipe = load_recipe(row["recipe"])
            image = (folder / row["image"]).read_bytes()
            reference = (folder / row["reference"]).read_bytes() if row["reference"] else None
            result = inspector.inspect(image, recipe, reference=reference, image_name=Path(row["image"]).name)
            found.append(Inspected(result=result, image=image, reference=reference))
    return found


def as_new(
    part: Inspected, number: int, at: datetime, *, lot: str = "LOT-7", change: Callable[[dict], None] | None = None
) -> NewResult:
    """The part as if it had come by at this time."""
    line, station, camera = CAMERAS[part.result.recipe_id]
    request = RequestInfo(part_id=f"P-{number:05d}", lot=lot, line=line, station=station, camera=camera, captured_at=at)
    values = {"result_id": new_result_id(), "created_at": at, "request": request}
    if change:
        change(values)
    return NewResult(result=part.result.model_copy(update=values), image=part.image, reference=part.reference)


def as_review(values: dict) -> None:
    """What the engine says between its thresholds."""
    values |= {"verdict": Verdict.REVIEW, "ng_probability": 0.71, "text": "REVIEW"}


def fill(
    store: Store, parts: Sequence[Inspected], count: int, *, hours: float = 7.5, every_review: int = 9
) -> list[str]:
    """Records `count` results spread over the last hours; returns their ids. Each ninth waits for a person."""
    now = datetime.now(UTC)
    ids: list[str] = []
    batch: list[NewResult] = []
    for number in range(count):
        at = now - timedelta(hours=hours) * ((count - 1 - number) / max(1, count - 1)) - timedelta(seconds=2)
        part = parts[number % len(parts)]
        change = as_review if every_review and number % every_review == every_review - 1 else None
        batch.append(as_new(part, number, at, lot=f"LOT-{number * 5 // count + 1}", change=change))
        if len(batch) == 500 or number == count - 1:
            ids += [stored.result.result_id for stored in store.record_many(batch)]
            batch = []
    return ids
