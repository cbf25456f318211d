"""Fits what turns an engine's figures into probabilities and thresholds, on a validation split.

    python -m calib.verdict --pack DIR [--engine DIR] --out models/nano/calibration.json [--notes FILE] [--keep DIR]

Writes calibration.json (runtime.engine.Calibration) and prints, by recipe, the thresholds that the recipe should have.
Never give it a test split: what is chosen here must not be reported there.

Each image is also examined under some perturbations (evaluate.perturb), as a camera may take it another day: what is
chosen must hold for those, too. All choices are made out of fold, and the images of one part stay in one fold:
  1. which figures P(NG) is computed from, and how much ridge: the least log loss
  2. a slope and an offset of the log-odds (Platt, in "Advances in Large Margin Classifiers", 1999)
  3. thresholds with at most 1 % escapes and 2 % overkill, smoothed (see `smooth_quantile`)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from auroraedge.data.pack import PackItem, load_image, load_pack_set
from auroraedge.evaluate.metrics import Estimate, calibration_estimate, expected_calibration_error, wilson
from auroraedge.evaluate.perturb import AS_TAKEN, PERTURBATIONS
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.runtime import Inspector
from auroraedge.runtime.engine import Calibration, RecipeCalibration
from calib.examine import Examined, examine_set

# Mean grey level that frames are scaled to. Tiles were tried as taken and at 90: out of fold the ROC area on `val` is
# 0.993 and 0.996, the log loss 0.083 and 0.067; an offset to 80 instead of a factor was worse (0.985, 0.111).
EXPOSURES = {"magnetic_tile": 90.0}
SETS = {
    "deeppcb": "pcb",
    "magnetic_tile": "magnetic_tile",
    "ball_screw": "ball_screw",
    "steel_strip_xsdd": "steel_strip",
}
FEATURES = ("verdict", "evidence", "presence")
# What P(NG) may be computed from: with forty defective parts a figure that tells nothing new only adds variance.
FEATURE_SETS = (FEATURES, ("evidence", "presence"), ("verdict", "presence"), ("verdict", "evidence"))
# On the weights: with a few hundred separable images an unpenalised fit would be certain of everything.
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
FOLDS, ROUNDS = 5, 5
# Not all of PERTURBATIONS: the others tell whether this generalises.
EXAMINED_UNDER = ("brighter by 20", "darker by 20")
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
        p = _sigmoid(np.clip(design @ w, -30, 30))
        gradient = design.T @ (p - y) + penalty @ w
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + penalty
        step = np.linalg.solve(hessian, gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    weights = w[:-1] / scale
    return weights, float(w[-1] - weights @ mean)


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """How P(NG) is computed, the out-of-fold log-odds [n] that tell how good it is, and what was chosen on them."""

    weights: dict[str, float]
    bias: float
    log_odds: np.ndarray
    notes: dict[str, Any]


def out_of_fold(x: np.ndarray, y: np.ndarray, groups: Sequence[str], ridge: float) -> np.ndarray:
    """Log-odds [n] of each image by fits that saw no image of its group, the mean of several partitions."""
    total = np.zeros(len(y))
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    defective = np.array([y[member == i].max() for i in range(len(names))])
    for seed in range(ROUNDS):
        order = np.random.default_rng(seed).permutation(len(names))
        order = order[np.argsort(defective[order], kind="stable")]  # dealt out kind by kind: every fold has both
        for fold in range(FOLDS):
            held = np.isin(member, order[fold::FOLDS])
            weights, bias = fit_logistic(x[~held], y[~held], ridge)
            total[held] += x[held] @ weights + bias
    return total / ROUNDS


def log_loss(log_odds: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0.0, np.where(y == 1, -log_odds, log_odds))))


def fit_verdicts(examined: Sequence[Examined]) -> Verdicts:
    """Figures, ridge, slope and offset, each chosen out of fold; the fit is then made on all images."""
    y = np.array([e.defective for e in examined], dtype=float)
    groups = [e.group for e in examined]
    candidates = []
    for names in FEATURE_SETS:
        x = np.array([[e.features.get(name, 0.0) for name in names] for e in examined])
        for ridge in RIDGES:
            # The ridge is for as many images as there are; copies of them are no further evidence.
            held = out_of_fold(x, y, groups, ridge * len({e.condition for e in examined}))
            candidates.append((log_loss(held, y), names, ridge, x, held))
    loss, names, ridge, x, held = min(candidates, key=lambda c: c[0])
    weights, bias = fit_logistic(x, y, ridge * len({e.condition for e in examined}))
    slope_, offset = fit_logistic(held[:, None], y, 1e-3)
    slope = float(np.clip(slope_[0], 0.2, 1.5))  # a fit on separable images would make it certain of everything
    log_odds = slope * held + offset
    return Verdicts(
        weights={name: float(w) * slope for name, w in zip(names, weights, strict=True)},
        bias=bias * slope + offset,
        log_odds=log_odds,
        notes={"figures": list(names), "ridge": ridge, "log_loss": loss, "slope": slope, "offset": offset},
    )


def smooth_quantile(values: np.ndarray, share: float) -> float:
    """The value below which `share` of the kernel density of `values` lies: a quantile that few values do not fool.

    Gaussian kernels with Silverman's width 0.9 min(sd, IQR / 1.34) n^(-1/5) ("Density Estimation", 1986, eq. 3.31).
    With forty parts a share of 1 % lies below the lowest that was seen, by a margin that the spread sets.
    """
    spread = np.subtract(*np.percentile(values, [75, 25])) / 1.34
    width = max(0.9 * min(float(values.std()), float(spread)) * len(values) ** -0.2, 1e-6)
    low, high = float(values.min() - 10 * width), float(values.max() + 10 * width)
    for _ in range(60):
        middle = (low + high) / 2
        if _normal_cdf((middle - values) / width).mean() < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    """The logistic approximation, good to 0.01 (Bowling et al., JIEM 2 (2009))."""
    return _sigmoid(0.07056 * x**3 + 1.5976 * x)


def review_band(log_odds: np.ndarray, y: np.ndarray, distinct: float = 1.0) -> dict[str, float]:
    """ok_below and ng_above with at most 1 % escapes and 2 % overkill; between them a person decides.

    distinct: share of the images that are different parts. Copies of one part narrow the kernels as if they were new
    ones, so every so many-th of the sorted log-odds stands for them.
    """
    step = max(1, round(1 / distinct))
    bad, good = np.sort(log_odds[y == 1])[::step], np.sort(log_odds[y == 0])[::-step]
    low = smooth_quantile(bad, _MOST_ESCAPES)
    high = -smooth_quantile(-good, _MOST_OVERKILL)
    if low > high:  # separable: any place between will do
        low = high = (low + high) / 2
    p, ok_below, ng_above = _sigmoid(log_odds), float(_sigmoid(low)), float(_sigmoid(high))
    return {
        "ok_below": ok_below,
        "ng_above": ng_above,
        "escape": float((p[y == 1] < ok_below).mean()),
        "overkill": float((p[y == 0] >= ng_above).mean()),
        "review": float(((p >= ok_below) & (p < ng_above)).mean()),
    }


def calibration_error(p: np.ndarray, y: np.ndarray, groups: Sequence[str]) -> Estimate:
    """ECE of P(NG), with a bootstrap interval over groups."""
    return calibration_estimate(np.where(p >= 0.5, p, 1 - p), (p >= 0.5) == (y == 1), groups)


def calibrate(examined: Sequence[Examined]) -> tuple[RecipeCalibration, dict[str, Any]]:
    """The calibration of one recipe and the thresholds that suit it on these images."""
    y = np.array([e.defective for e in examined], dtype=float)
    as_taken = np.array([e.condition.endswith(AS_TAKEN.name) for e in examined])
    shown = as_taken.copy()
    values: dict[str, Any] = {}
    notes: dict[str, Any] = {"images": int(as_taken.sum()), "defective": int(y[as_taken].sum())}
    if 0 < y.mean() < 1:
        fit = fit_verdicts(examined)
        values = dict.fromkeys(FEATURES, 0.0) | fit.weights | {"bias": fit.bias}
        notes |= fit.notes | review_band(fit.log_odds, y, float(as_taken.mean()))
        notes |= _as_taken(fit.log_odds[as_taken], y[as_taken], np.array([e.group for e in examined])[as_taken], notes)
        shown &= _sigmoid(fit.log_odds) >= notes["ok_below"]  # a part that is OK lists no defects
    listed = [e for e, own in zip(examined, shown, strict=True) if own]
    confidence = np.array([c for e in listed for c in e.confidences])
    hit = np.array([h for e in listed for h in e.hits], dtype=float)
    if len(hit) and 0 < hit.mean() < 1:
        logit = _logit(confidence)
        weights, _ = fit_logistic(logit[:, None], hit, 0.01)
        slope = max(float(weights[0]), 0.05)
        shift = _offset(slope * logit, hit)
        boxes = sum(e.boxes for e, own in zip(examined, as_taken, strict=True) if own)
        values |= {"confidence_temperature": 1 / slope, "confidence_bias": shift}
        notes |= _detection_threshold(_sigmoid(slope * logit + shift), hit, boxes)
    return RecipeCalibration(**values), notes


def _as_taken(log_odds: np.ndarray, y: np.ndarray, groups: Sequence[str], band: dict[str, Any]) -> dict[str, Any]:
    """What the chosen thresholds do to the images as they were taken, out of fold, with intervals."""
    p = _sigmoid(log_odds)
    bad, good = p[y == 1], p[y == 0]
    between = (p >= band["ok_below"]) & (p < band["ng_above"])
    figures = {
        "ece": calibration_error(p, y, groups),
        "escape_as_taken": wilson(int((bad < band["ok_below"]).sum()), len(bad)),
        "overkill_as_taken": wilson(int((good >= band["ng_above"]).sum()), len(good)),
        "review_as_taken": wilson(int(between.sum()), len(p)),
    }
    return {name: figure.model_dump(mode="json", exclude_none=True) for name, figure in figures.items()}


def _offset(logit: np.ndarray, hit: np.ndarray) -> float:
    """The shift that makes the mean confidence the share of hits (the fit above weighs the classes alike)."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if _sigmoid(logit + middle).mean() < hit.mean():
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _logit(p: float | np.ndarray) -> np.ndarray:
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _sigmoid(x: float | np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))))


def _detection_threshold(confidence: np.ndarray, hit: np.ndarray, boxes: int) -> dict[str, float]:
    """Half of the best F-score: above it, calibrated confidences list what maximises the expected F-score.

    Source: Lipton, Elkan, Naryanaswamy, "Optimal thresholding of classifiers to maximize F1 measure" (ECML 2014,
    arXiv 1402.1892). With few boxes the curve over thresholds is flat and where its peak lies is chance; its height is
    far less so.
    """
    order = np.argsort(-confidence)
    hits = np.cumsum(hit[order])
    f = 2 * hits / (np.arange(1, len(order) + 1) + boxes)
    best = float(f.max())
    threshold = best / 2
    shown = int((confidence >= threshold).sum())
    return {"defect_confidence": threshold, "f": float(f[shown - 1]) if shown else 0.0, "best_f": best}


def choose_label_presence(
    inspector: Inspector, items: list[PackItem], recipe: Recipe, console: Console
) -> tuple[RecipeCalibration, dict[str, Any]]:
    """The weight of the head's presence logits with which most classes are right (macro-F1)."""
    scores, errors = {}, {}
    for weight in (0.0, 0.5, 1.0, 2.0):
        inspector.use_calibration(Calibration(recipes={recipe.id: RecipeCalibration(label_presence=weight)}))
        results = [
            inspector.inspect(load_image(item.path), recipe)
            for item in track(items, description=f"{recipe.id} {weight}", console=console)
        ]
        pairs = [(item.image_label, result.predicted_class) for item, result in zip(items, results, strict=True)]
        f1 = []
        for label in {item.image_label for item in items}:
            right = sum(t == a == label for t, a in pairs)
            f1.append(2 * right / max(1, sum((t == label) + (a == label) for t, a in pairs)))
        scores[weight] = float(np.mean(f1))
        right_ = np.array([t == a for t, a in pairs], dtype=float)
        sure = np.array([result.class_probability or 0.0 for result in results])
        errors[weight] = expected_calibration_error(sure, right_)
    best = max(scores, key=lambda weight: (scores[weight], -abs(weight - 1.0)))
    return (
        RecipeCalibration(label_presence=best),
        {"label_presence": best, "macro_f1": scores[best], "ece": {"value": errors[best]}},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--notes", type=Path, help="JSON of what was chosen and how good it is, by recipe")
    parser.add_argument("--keep", type=Path, help="folder of what the engine said; the same command goes on from it")
    parser.add_argument("--limit", type=int, help="at most so many images of a set under each perturbation")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    console = Console()
    recipes: dict[str, RecipeCalibration] = {}
    chosen: dict[str, Any] = {}
    if options.out.is_file():
        recipes = dict(Calibration.model_validate_json(options.out.read_text(encoding="utf-8")).recipes)
    if options.notes is not None and options.notes.is_file():
        chosen = json.loads(options.notes.read_text(encoding="utf-8"))
    conditions = [AS_TAKEN, *(PERTURBATIONS[name] for name in EXAMINED_UNDER)]
    with Inspector.open(options.engine, threads=options.threads) as inspector:
        for name in options.sets:
            recipe = load_recipe(SETS[name])
            items = load_pack_set(options.pack, name, options.split)
            if recipe.task == "classify":
                recipes[recipe.id], notes = choose_label_presence(inspector, items, recipe, console)
            else:
                keep = None if options.keep is None else options.keep / f"{name}_{options.split}.jsonl"
                exposure = EXPOSURES.get(recipe.id)
                inspector.use_calibration(Calibration(recipes={recipe.id: RecipeCalibration(exposure=exposure)}))
                found = examine_set(inspector, items, recipe, console, conditions, keep, options.limit, exposure)
                fit, notes = calibrate(found)
                recipes[recipe.id] = fit.model_copy(update={"exposure": exposure})
            chosen[recipe.id] = {"split": options.split, **notes}
            console.print(recipe.id, notes)
    text = json.dumps(Calibration(recipes=recipes).model_dump(mode="json"), indent=1)
    options.out.write_text(text + "\n", encoding="utf-8")
    if options.notes is not None:
        options.notes.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
