"""Fits what turns an engine's figures into probabilities and thresholds, on a validation split.

    python -m calib.verdict --pack DIR [--engine DIR] --out models/nano/calibration.json

Writes calibration.json (runtime.engine.Calibration) and prints, by recipe, the thresholds that the recipe should have.
Never give it a test split: what is chosen here must not be reported there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from auroraedge.data.pack import PackItem, Truth, load_image, load_pack_set
from auroraedge.evaluate.metrics import expected_calibration_error
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.inspection.results import Box, Defect
from auroraedge.runtime import InspectionJob, Inspector
from auroraedge.runtime.engine import Calibration, RecipeCalibration

SETS = {
    "deeppcb": "pcb",
    "magnetic_tile": "magnetic_tile",
    "ball_screw": "ball_screw",
    "steel_strip_xsdd": "steel_strip",
}
FEATURES = ("verdict", "evidence", "presence")
MATCH_IOU = 0.33
# Ridge on the weights: with a few hundred separable images an unpenalised fit would be certain of everything. Chosen by
# five-fold cross-validation on `val` for the least calibration error.
_RIDGE = 0.1
# What the thresholds allow: defective parts called OK, good parts called NG.
_MOST_ESCAPES = 0.01
_MOST_OVERKILL = 0.02


def fit_logistic(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Weights [k] and bias of a ridge-penalised logistic regression by Newton's method.

    x [n, k], y [n] in {0, 1}. The penalty acts on the weights of standardised features. The share of defective parts is
    that of the images: probabilities are calibrated for it.
    """
    mean, scale = x.mean(0), x.std(0) + 1e-9
    design = np.column_stack([(x - mean) / scale, np.ones(len(x))])
    penalty = np.diag([ridge] * x.shape[1] + [1e-6])
    w = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ w, -30, 30)))
        gradient = design.T @ (p - y) + penalty @ w
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + penalty
        step = np.linalg.solve(hessian, gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    weights = w[:-1] / scale
    return weights, float(w[-1] - weights @ mean)


def matched(defects: list[Defect], item: PackItem) -> list[bool]:
    """For each defect, most confident first, whether it finds a new true box of its label (IoU above 0.33)."""
    free = [(o.label, Box(x1=o.bbox[0], y1=o.bbox[1], x2=o.bbox[2], y2=o.bbox[3])) for o in item.objects]
    hits = []
    for defect in defects:
        assert defect.box is not None
        options = [(defect.box.iou(box), i) for i, (label, box) in enumerate(free) if label == defect.label]
        best = max(options, default=(0.0, -1))
        hits.append(best[0] > MATCH_IOU)
        if hits[-1]:
            free.pop(best[1])
    return hits


@dataclass(frozen=True, kw_only=True)
class Examined:
    features: dict[str, float]
    defects: list[Defect]
    hits: list[bool]
    defective: bool
    boxes: int


def examine_set(inspector: Inspector, items: list[PackItem], recipe: Recipe, console: Console) -> list[Examined]:
    """Every image; golden samples also against themselves moved by one pixel, as good parts."""
    found = []
    for item in track(items, description=recipe.id, console=console):
        features, defects = inspector.examine(
            InspectionJob(image=load_image(item.path), recipe=recipe, reference=item.reference)
        )
        defects = sorted(defects, key=lambda d: -d.confidence)
        found.append(
            Examined(
                features=features,
                defects=defects,
                hits=matched(defects, item),
                defective=item.truth is Truth.DEFECTIVE,
                boxes=len(item.objects),
            )
        )
        if item.reference is not None:
            golden = load_image(item.reference)
            matrix = np.array([[1, 0, 1], [0, 1, 1]], dtype=np.float32)
            moved = cv2.warpAffine(golden, matrix, golden.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
            features, defects = inspector.examine(InspectionJob(image=golden, recipe=recipe, reference=moved))
            found.append(
                Examined(features=features, defects=defects, hits=[False] * len(defects), defective=False, boxes=0)
            )
    return found


def calibrate(examined: list[Examined]) -> tuple[RecipeCalibration, dict[str, float]]:
    """The calibration of one recipe and the thresholds that suit it on these images."""
    y = np.array([e.defective for e in examined], dtype=float)
    values: dict[str, float] = {}
    notes: dict[str, float] = {"images": len(examined), "defective": float(y.sum())}
    x = np.array([[e.features.get(name, 0.0) for name in FEATURES] for e in examined])
    if 0 < y.mean() < 1:
        weights, bias = fit_logistic(x, y, _RIDGE)
        values = {name: float(w) for name, w in zip(FEATURES, weights, strict=True)} | {"bias": bias}
        notes |= review_band(out_of_fold(x, y), y)
    confidence = np.array([d.confidence for e in examined for d in e.defects])
    hit = np.array([h for e in examined for h in e.hits], dtype=float)
    if len(hit) and 0 < hit.mean() < 1:
        logit = _logit(confidence)
        weights, _ = fit_logistic(logit[:, None], hit, 0.01)
        slope = max(float(weights[0]), 0.05)
        shift = _offset(slope * logit, hit)
        values |= {"confidence_temperature": 1 / slope, "confidence_bias": shift}
        notes |= _detection_threshold(1 / (1 + np.exp(-(slope * logit + shift))), hit, sum(e.boxes for e in examined))
    return RecipeCalibration(**values), notes


def _offset(logit: np.ndarray, hit: np.ndarray) -> float:
    """The shift that makes the mean confidence the share of hits (the fit above weighs the classes alike)."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(-(logit + middle)))).mean() < hit.mean():
            low = middle
        else:
            high = middle
    return (low + high) / 2


def out_of_fold(x: np.ndarray, y: np.ndarray, folds: int = 5, rounds: int = 5) -> np.ndarray:
    """P(NG) [n] of each image by fits that did not see it, the mean of several partitions."""
    total = np.zeros(len(y))
    for seed in range(rounds):
        order = np.random.default_rng(seed).permutation(len(y))
        order = order[np.argsort(y[order], kind="stable")]  # dealt out class by class: every fold has both
        for fold in range(folds):
            held = np.zeros(len(y), dtype=bool)
            held[order[fold::folds]] = True
            weights, bias = fit_logistic(x[~held], y[~held], _RIDGE)
            total[held] += 1 / (1 + np.exp(-(x[held] @ weights + bias)))
    return total / rounds


def review_band(p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """ok_below and ng_above with at most 1 % escapes and 2 % overkill on these images; between them a person decides.

    Each threshold lies midway, in log-odds, between the image that must be on one side and the next one.
    """
    ok_below = _between(p, np.quantile(p[y == 1], _MOST_ESCAPES, method="lower"), below=True)
    ng_above = _between(p, np.quantile(p[y == 0], 1 - _MOST_OVERKILL, method="higher"), below=False)
    if ok_below > ng_above:  # separable: any place between will do
        ok_below = ng_above = float(_sigmoid((_logit(ok_below) + _logit(ng_above)) / 2))
    between = (p >= ok_below) & (p < ng_above)
    return {
        "ok_below": ok_below,
        "ng_above": ng_above,
        "escape": float((p[y == 1] < ok_below).mean()),
        "overkill": float((p[y == 0] >= ng_above).mean()),
        "review": float(between.mean()),
        "ece": expected_calibration_error(np.where(p >= 0.5, p, 1 - p), (p >= 0.5) == (y == 1)),
    }


def _between(p: np.ndarray, value: float, *, below: bool) -> float:
    others = p[p < value] if below else p[p > value]
    other = (others.max() if below else others.min()) if len(others) else value
    return float(_sigmoid((_logit(value) + _logit(other)) / 2))


def _logit(p: float | np.ndarray) -> np.ndarray:
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _sigmoid(x: float | np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def _detection_threshold(confidence: np.ndarray, hit: np.ndarray, boxes: int) -> dict[str, float]:
    """The lowest confidence whose F-score is within one standard error of the best.

    With few boxes the curve is flat and its peak is chance: a defect that is shown costs less than one that is not.
    """
    order = np.argsort(-confidence)
    hits = np.cumsum(hit[order])
    f = 2 * hits / (np.arange(1, len(order) + 1) + boxes)
    best = float(f.max())
    error = np.sqrt(best * (1 - best) / boxes)
    last = int(np.flatnonzero(f >= best - error).max())
    return {"defect_confidence": float(confidence[order][last]), "f": float(f[last]), "best_f": best}


def choose_label_presence(
    inspector: Inspector, items: list[PackItem], recipe: Recipe, console: Console
) -> tuple[RecipeCalibration, dict[str, float]]:
    """The weight of the head's presence logits with which most classes are right (macro-F1)."""
    scores = {}
    for weight in (0.0, 0.5, 1.0, 2.0):
        inspector.use_calibration(Calibration(recipes={recipe.id: RecipeCalibration(label_presence=weight)}))
        answers = [
            inspector.inspect(load_image(item.path), recipe).predicted_class
            for item in track(items, description=f"{recipe.id} {weight}", console=console)
        ]
        pairs = list(zip([item.image_label for item in items], answers, strict=True))
        f1 = []
        for label in {item.image_label for item in items}:
            right = sum(t == a == label for t, a in pairs)
            f1.append(2 * right / max(1, sum((t == label) + (a == label) for t, a in pairs)))
        scores[weight] = float(np.mean(f1))
    best = max(scores, key=lambda weight: (scores[weight], -abs(weight - 1.0)))
    return RecipeCalibration(label_presence=best), {"label_presence": best, "macro_f1": scores[best]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    console = Console()
    recipes: dict[str, RecipeCalibration] = {}
    if options.out.is_file():
        recipes = dict(Calibration.model_validate_json(options.out.read_text(encoding="utf-8")).recipes)
    with Inspector.open(options.engine) as inspector:
        for name in options.sets:
            recipe = load_recipe(SETS[name])
            items = load_pack_set(options.pack, name, options.split)
            if recipe.task == "classify":
                recipes[recipe.id], notes = choose_label_presence(inspector, items, recipe, console)
            else:
                recipes[recipe.id], notes = calibrate(examine_set(inspector, items, recipe, console))
            console.print(recipe.id, {key: round(value, 4) for key, value in notes.items()})
    text = json.dumps(Calibration(recipes=recipes).model_dump(mode="json"), indent=1)
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
