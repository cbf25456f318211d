"""Runs a predictor over a split of an annotated set and scores it, with a classical baseline on the same images."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

import auroraedge
from auroraedge.data.pack import PackItem, Truth, load_pack_set
from auroraedge.errors import AuroraEdgeError, DatasetError
from auroraedge.evaluate.baseline import make_baseline
from auroraedge.evaluate.journal import Journal
from auroraedge.evaluate.predictor import Predictor
from auroraedge.evaluate.samples import Sample, annotated_samples, evenly, good_samples
from auroraedge.evaluate.schema import EvalReport, Prediction, PredictorScores, SampleKind
from auroraedge.evaluate.scoring import differences, score
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.inspection.results import error_result

SET_RECIPES = {
    "deeppcb": "pcb",
    "magnetic_tile": "magnetic_tile",
    "ball_screw": "ball_screw",
    "steel_strip_xsdd": "steel_strip",
}
TRAIN_SPLIT = "train"
FEW_GROUPS = 20


def recipe_for(set_name: str, recipe: Recipe | str | Path | None = None) -> Recipe:
    """`recipe` itself, loaded where it is an id or a path; without one, that of a known set. Raises DatasetError."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is not None:
        return load_recipe(recipe)
    if set_name not in SET_RECIPES:
        raise DatasetError(
            f"No recipe is known for set '{set_name}'.", field="recipe", remedy="Name one with --recipe ID or FILE."
        )
    return load_recipe(SET_RECIPES[set_name])


def predictor_name(predictor: Predictor) -> str:
    """Model id and engine hash of an Inspector, otherwise the predictor's own name."""
    engine = getattr(predictor, "engine", None)
    if engine is not None:
        return f"{engine.model_id}@{str(engine.engine_sha256)[:16]}"
    return str(getattr(predictor, "name", type(predictor).__name__))


def evaluate(
    pack_dir: Path | str,
    set_name: str,
    split: str,
    inspector: Predictor,
    recipe: Recipe | str | Path | None = None,
    limit: int | None = None,
    baseline: bool = True,
    progress: bool = True,
    *,
    out: Path | str | None = None,
    seed: int = 0,
) -> EvalReport:
    """Scores `inspector` on one split.

    limit: at most so many annotated images, spread evenly. out: a JSONL file that keeps every finished prediction; the
    same call goes on from it. Ctrl-C ends the run and scores what is finished (`interrupted` is then true); before the
    first finished image it is raised on. The predictor sees encoded bytes only, never a file name. An image that it
    refuses is an ERROR result, which counts as missed and never as OK. Raises DatasetError for a set, split or `out`
    that cannot be used and RecipeError / RecipeNotFoundError for the recipe.
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"The limit must be at least 1, not {limit}.", field="limit", remedy="Leave it out for all.")
    chosen = recipe_for(set_name, recipe)
    items = evenly(load_pack_set(pack_dir, set_name, split), limit)
    samples = annotated_samples(items, chosen)
    if all(item.truth is Truth.DEFECTIVE for item in items):
        samples += good_samples(items, chosen)
    name = predictor_name(inspector)
    identity = {"set": set_name, "predictor": name, "recipe_sha256": chosen.sha256}
    with Journal(Path(out), identity) if out is not None else nullcontext() as journal:
        predictions, interrupted = predict(inspector, samples, chosen, journal, "model" if progress else None)
    if not predictions:
        raise KeyboardInterrupt
    notes = _notes(items, predictions, chosen, set_name, split)
    theirs: list[Prediction] = []
    description = ""
    if interrupted:
        notes.append(f"Interrupted: only the {len(predictions)} of {len(samples)} samples that were finished count.")
    elif baseline:
        theirs, description, interrupted = _run_baseline(pack_dir, set_name, split, samples, chosen, progress)
        if interrupted:
            notes.append("Interrupted while the baseline ran: it is left out.")
        elif not theirs:
            notes.append(description)
    return EvalReport(
        set_name=set_name,
        split=split,
        recipe_id=chosen.id,
        recipe_sha256=chosen.sha256,
        seed=seed,
        limit=limit,
        interrupted=interrupted,
        groups=len({item.group for item in items}),
        versions=_versions(),
        model=score(predictions, chosen, predictor=name, seed=seed),
        baseline=_baseline_scores(theirs, chosen, description, seed) if theirs else None,
        difference=differences(predictions, theirs, chosen, seed=seed) if theirs else {},
        notes=tuple(notes),
        predictions=tuple(predictions),
        baseline_predictions=tuple(theirs),
    )


def predict(
    predictor: Predictor, samples: Sequence[Sample], recipe: Recipe, journal: Journal | None, title: str | None
) -> tuple[list[Prediction], bool]:
    """Predictions in sample order, and whether Ctrl-C cut them short. title: of a bar on stderr; None for no bar."""
    done: list[Prediction] = []
    steps: Iterable[Sample] = samples
    if title is not None:
        # To stderr, so that JSON on stdout stays whole.
        steps = track(samples, description=title, console=Console(file=sys.stderr), transient=True)
    try:
        for sample in steps:
            done.append(_inspect(predictor, sample, recipe, journal))
    except KeyboardInterrupt:
        return done, True
    return done, False


def _inspect(predictor: Predictor, sample: Sample, recipe: Recipe, journal: Journal | None) -> Prediction:
    try:
        image, reference = sample.load()
    except AuroraEdgeError as error:
        return Prediction(sample=sample.info, result=error_result(error, recipe))
    # Two hashes, not one over both: the seam between image and reference must count.
    parts = [hashlib.sha256(part).digest() for part in (image, reference or b"")]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    if journal is not None and (known := journal.get(sample.info.key, digest)) is not None:
        return Prediction(sample=sample.info, result=known.result)
    try:
        result = predictor.inspect(image, recipe, reference=reference)
    except AuroraEdgeError as error:
        result = error_result(error, recipe)
    prediction = Prediction(sample=sample.info, result=result)
    if journal is not None:
        journal.add(prediction, digest)
    return prediction


def _run_baseline(
    pack_dir: Path | str, set_name: str, split: str, samples: Sequence[Sample], recipe: Recipe, progress: bool
) -> tuple[list[Prediction], str, bool]:
    """Predictions of the classical baseline, what it is (or why there is none), and whether Ctrl-C ended it."""

    def train_items() -> list[PackItem]:
        return [item for item in load_pack_set(pack_dir, set_name) if item.split == TRAIN_SPLIT]

    try:
        predictor, description = make_baseline(recipe, train_items)
        if predictor is None:
            return [], description, False
        if split == TRAIN_SPLIT:
            description += " Split 'train' is what a fitted baseline was fitted on."
        done, interrupted = predict(predictor, samples, recipe, None, "baseline" if progress else None)
    except KeyboardInterrupt:
        return [], "", True
    return ([] if interrupted else done), description, interrupted


def _baseline_scores(predictions: Sequence[Prediction], recipe: Recipe, description: str, seed: int) -> PredictorScores:
    name = next((p.result.model_id for p in predictions if p.result.model_id), "baseline")
    return score(predictions, recipe, predictor=name, seed=seed).model_copy(update={"description": description})


def _notes(
    items: Sequence[PackItem], predictions: Sequence[Prediction], recipe: Recipe, set_name: str, split: str
) -> list[str]:
    """What a reader must know before believing the figures."""
    notes: list[str] = []
    kinds = {p.sample.kind for p in predictions}
    groups = len({item.group for item in items})
    if groups < FEW_GROUPS:
        notes.append(f"Only {groups} image groups: bootstrap intervals over groups are rough.")
    if kinds - {SampleKind.ANNOTATED}:
        crops = sum(p.sample.kind is SampleKind.CROP for p in predictions)
        notes.append(
            "Every annotated image is defective. Good samples were made from the templates: each distinct template "
            "shifted by one pixel with noisy edges, against the clean one (these count in the verdict figures); the "
            "template against itself (trivially easy, apart); and "
            f"{crops} parts of real images without an annotated box, one view in size (apart)."
        )
    presumed = sum(item.truth is Truth.PRESUMED_GOOD for item in items)
    if presumed:
        notes.append(
            f"{presumed} images are only presumed good: left out of all figures but 'presumed overkill'. They may "
            "differ from the defective ones in how they were taken, so telling the two apart proves little."
        )
    near = [item.extra["template_near_train"] for item in items if "template_near_train" in item.extra]
    if near:
        notes.append(
            "Groups of this set are in several splits, so boards of this split may resemble training boards: "
            f"{sum(map(bool, near))} of {len(near)} images are marked 'template_near_train'."
        )
    if set_name == "steel_strip_xsdd":
        notes.append("The source names no strips or coils: images of one strip may be in two splits.")
    unknown = sorted({o.label for item in items for o in item.objects} - set(recipe.label_names))
    if unknown:
        notes.append(f"Labels that the recipe lacks, all counted as missed: {', '.join(unknown)}.")
    if recipe.task == "inspect" and any(item.objects for item in items):
        notes.append("mAP is that of the reported boxes: those below the recipe's defect_confidence are not reported.")
    if split == TRAIN_SPLIT:
        notes.append("Split 'train': the model may have been trained on these very images.")
    return notes


def _versions() -> dict[str, str]:
    return {
        "auroraedge": auroraedge.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
