"""What an engine says of annotated images, before any calibration: the costly half of calib.verdict, kept on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from auroraedge.data.pack import PackItem, Truth, load_image
from auroraedge.errors import DatasetError
from auroraedge.evaluate.perturb import AS_TAKEN, Perturbation, moved_box, perturbed_pixels
from auroraedge.evaluate.samples import evenly
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Box, Defect
from auroraedge.runtime import InspectionJob, Inspector

MATCH_IOU = 0.33
_GOLDEN = "golden sample, moved by a pixel"


@dataclass(frozen=True, kw_only=True)
class Examined:
    """One image under one condition (a perturbation's name).

    features: see RecipeCalibration. confidences, hits: of each defect, most confident first, its raw confidence and
    whether it finds a new true box. boxes: true ones.
    """

    key: str
    group: str
    condition: str
    features: dict[str, float]
    confidences: list[float]
    hits: list[bool]
    defective: bool
    boxes: int


def matched(defects: Sequence[Defect], truth: Sequence[tuple[str, Box]]) -> list[bool]:
    """For each defect, most confident first, whether it finds a new true box of its label (IoU above 0.33)."""
    free = list(truth)
    hits = []
    for defect in defects:
        assert defect.box is not None
        options = [(defect.box.iou(box), i) for i, (label, box) in enumerate(free) if label == defect.label]
        best = max(options, default=(0.0, -1))
        hits.append(best[0] > MATCH_IOU)
        if hits[-1]:
            free.pop(best[1])
    return hits


def _truth(item: PackItem, change: Perturbation) -> list[tuple[str, Box]]:
    boxes = [o.bbox for o in item.objects]
    if change.place is not None:
        matrix = change.place(item.height, item.width)
        boxes = [moved_box(box, matrix, item.height, item.width) for box in boxes]
    return [
        (o.label, Box(x1=x1, y1=y1, x2=x2, y2=y2))
        for o, (x1, y1, x2, y2) in zip(item.objects, boxes, strict=True)
        if x2 > x1 and y2 > y1
    ]


class Kept:
    """Examined images in a file of JSON lines; None keeps nothing. What a kill cut short is examined again."""

    def __init__(self, path: Path | None, identity: dict[str, str]) -> None:
        self._done: dict[tuple[str, str], Examined] = {}
        self._path = path
        if path is None:
            return
        if path.is_file():
            header, *lines = path.read_text(encoding="utf-8").split("\n")
            if json.loads(header) != identity:
                raise DatasetError(
                    f"{path} was examined with another engine or recipe.", field="keep", remedy="Name another folder."
                )
            for line in lines[:-1]:
                found = Examined(**json.loads(line))
                self._done[found.key, found.condition] = found
            path.write_text("\n".join([header, *lines[:-1], ""]), encoding="utf-8")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(identity) + "\n", encoding="utf-8")

    def get(self, key: str, condition: str) -> Examined | None:
        return self._done.get((key, condition))

    def add(self, found: Examined) -> Examined:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")
        return found


def _identity(inspector: Inspector, recipe: Recipe, exposure: float | None) -> dict[str, str]:
    """What the figures depend on: not the thresholds, which are chosen from them."""
    meaning = recipe.model_dump(mode="json", include={"id", "tiling", "reference_shift_px", "merge_iou", "labels"})
    return {
        "weights_sha256": inspector.engine.weights_sha256,
        "precision": json.dumps(inspector.engine.precision, sort_keys=True),
        "recipe": json.dumps(meaning, sort_keys=True),
        "exposure": repr(exposure),
    }


def examine_set(
    inspector: Inspector,
    items: Sequence[PackItem],
    recipe: Recipe,
    console: Console,
    conditions: Sequence[Perturbation] = (AS_TAKEN,),
    keep: Path | None = None,
    limit: int | None = None,
    exposure: float | None = None,
) -> list[Examined]:
    """Every image under every condition; golden samples also against themselves moved by one pixel, as good parts.

    limit: at most so many images, evenly spread, under the conditions other than AS_TAKEN. exposure: of the inspector's
    calibration, which the figures depend on. keep: a file that holds what is done; the same call goes on from it.
    Raises DatasetError for another one's file.
    """
    kept = Kept(keep, _identity(inspector, recipe, exposure))
    jobs = list(_jobs(items, conditions, limit))
    found = []
    for item, change, name in track(jobs, description=recipe.id, console=console):
        done = kept.get(item.file, name)
        found.append(done or kept.add(_examine(inspector, item, recipe, change, name)))
    return found


def _jobs(
    items: Sequence[PackItem], conditions: Sequence[Perturbation], limit: int | None
) -> Iterator[tuple[PackItem, Perturbation, str]]:
    for change in conditions:
        for item in items if change is AS_TAKEN else evenly(items, limit):
            yield item, change, change.name
            if item.reference is not None:
                yield item, change, f"{_GOLDEN}, {change.name}"


def _examine(inspector: Inspector, item: PackItem, recipe: Recipe, change: Perturbation, condition: str) -> Examined:
    golden = condition.startswith(_GOLDEN)
    if golden:
        assert item.reference is not None
        image = load_image(item.reference)
        matrix = np.array([[1, 0, 1], [0, 1, 1]], dtype=np.float32)
        reference = np.asarray(
            cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8
        )
        truth: list[tuple[str, Box]] = []
    else:
        image, reference, truth = load_image(item.path), item.reference, _truth(item, change)  # type: ignore[assignment]
    job = InspectionJob(image=perturbed_pixels(image, item.file, change), recipe=recipe, reference=reference)
    features, defects = inspector.examine(job)
    defects = sorted(defects, key=lambda d: -d.confidence)
    return Examined(
        key=item.file,
        group=item.group,
        condition=condition,
        features={name: float(x) for name, x in features.items()},
        confidences=[d.confidence for d in defects],
        hits=matched(defects, truth),
        defective=not golden and item.truth is Truth.DEFECTIVE,
        boxes=len(truth),
    )
