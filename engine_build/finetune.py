"""What follows a fine-tuning: engine, calibration on val, thresholds, evaluation on test, recipe and summary."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from auroraedge.data.instructions import make_sample
from auroraedge.data.pack import PackItem, Truth
from auroraedge.evaluate import evaluate, print_report
from auroraedge.evaluate.metrics import verdict_scores
from auroraedge.evaluate.schema import EvalReport
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.recipe import Recipe, Thresholds
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.inspection.views import patchify
from auroraedge.manifest import EngineDescription, load_manifest, publish_package
from auroraedge.runtime import Inspector
from auroraedge.runtime.engine import Calibration, RecipeCalibration
from auroraedge.train.finetune_data import revised, training_source
from auroraedge.train.finetune_run import FineTuned
from calib.frames import CalibrationSet
from calib.verdict import calibrate, choose_label_presence, examine_set
from engine_build.finetune_summary import Summary, write_summary
from engine_build.steps import build_engine
from engine_build.targets import load_target

CALIBRATION = "calibration.json"
_QUANTISER_VIEWS, _PARITY_VIEWS = 64, 12  # float32 has nothing to quantise
# Fewer val images than this of either kind: thresholds are not chosen, a wide band goes to REVIEW.
LEAST_OF_A_KIND = 5
_WIDE = {"ok_below": 0.2, "ng_above": 0.8}
_PLAIN_CONFIDENCE = 0.3


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A recipe's calibration, its thresholds, and in words what they rest on."""

    calibration: RecipeCalibration
    thresholds: Thresholds
    notes: dict[str, float]
    how: str


def finish(
    tuned: FineTuned, *, precision: str | None, baseline: bool, threads: int | None, console: Console
) -> EvalReport | None:
    """Builds OUT/engine, chooses OUT/recipe.yaml's thresholds on val, scores test, writes OUT/summary.md and .html.

    precision: of the engine, by the target's names; None is the target's default. Raises EngineError and what the
    steps raise; what was finished before stays, and the same command goes on.
    """
    began = time.perf_counter()
    out, engine = tuned.out, tuned.out / "engine"
    (tuned.model / CALIBRATION).unlink(missing_ok=True)
    if _engine_of(engine, tuned.model, precision) is None:
        quantised = "int8" in load_target("cpu").precision(precision).values()
        frames = quantiser_frames(tuned, _QUANTISER_VIEWS if quantised else _PARITY_VIEWS)
        build_engine(load_target("cpu"), str(tuned.model), engine, precision=precision, frames=frames, console=console)
    with Inspector.open(engine, threads=threads) as inspector:
        judgement = judge(inspector, tuned, console)
    recipe = revised(tuned.recipe, thresholds=judgement.thresholds)
    text = Calibration(recipes={recipe.id: judgement.calibration}).model_dump_json(indent=1) + "\n"
    (tuned.model / CALIBRATION).write_text(text, encoding="utf-8")
    repackage(engine, tuned.model / CALIBRATION)
    write_recipe(recipe, out / "recipe.yaml")
    (out / "recipes").mkdir(exist_ok=True)
    write_recipe(recipe, out / "recipes" / f"{recipe.id}.yaml")
    report, verdicts = None, None
    if tuned.split("test"):
        report = score_test(tuned, recipe, engine, baseline=baseline, threads=threads)
        print_report(report, console)
        verdicts = class_verdicts(report, recipe)
        (out / "evaluation.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    else:
        console.print("There is no test split: nothing is said about quality on parts that were not used.")
    summary = Summary(
        tuned=tuned,
        recipe=recipe,
        judgement=judgement.how,
        judgement_notes=judgement.notes,
        report=report,
        verdicts=verdicts,
        engine=load_manifest(engine),
        about=json.loads((tuned.model / "finetune.json").read_text(encoding="utf-8")),
        finish_seconds=time.perf_counter() - began,
    )
    page = write_summary(summary)
    console.print(f"Summary: {page}", style="green")
    console.print(f"Try:   auroraedge inspect IMAGE --recipe {out / 'recipe.yaml'} --engine {engine}", soft_wrap=True)
    console.print(f"Serve: python -m service --engine {engine} --recipes {out / 'recipes'}", soft_wrap=True)
    return report


def _engine_of(engine: Path, model: Path, precision: str | None) -> object | None:
    """The finished engine's manifest, where it is one of these weights and this precision."""
    if not (engine / "manifest.json").is_file():
        return None
    manifest = load_manifest(engine)
    weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    same = dict(manifest.precision) == dict(load_target("cpu").precision(precision))
    return manifest if manifest.weights_sha256 == weights and same else None


def quantiser_frames(tuned: FineTuned, views: int) -> CalibrationSet:
    """Views of the training parts, for the quantiser and the parity checks; never of val or test."""
    tokenizer = InspectionTokenizer.load(tuned.model)
    source = training_source(tuned.split("train"), tuned.recipe, paste=0.0)
    kinds = {PromptKind.INSPECT: 1.0, PromptKind.CLASSIFY: 1.0}
    samples = [make_sample(np.random.default_rng([2026, i]), source, tokenizer, kinds=kinds) for i in range(views)]
    patches = patchify(np.stack([sample.pixels for sample in samples]))
    prompts = tuple(tuple(tokenizer.encode(sample.prompts[0].text)) for sample in samples)
    digest = hashlib.sha256(patches.tobytes())
    digest.update(repr(prompts).encode())
    return CalibrationSet(patches=patches, prompt_ids=prompts, samples=tuple(samples), sha256=digest.hexdigest())


def _enough(items: Sequence[PackItem], least: int = LEAST_OF_A_KIND) -> bool:
    bad = sum(item.truth is Truth.DEFECTIVE for item in items)
    # A golden sample is examined as a good part as well (calib.verdict.examine_set).
    good = sum(item.truth is not Truth.DEFECTIVE for item in items) + sum(item.reference is not None for item in items)
    return min(bad, good) >= least


def judge(inspector: Inspector, tuned: FineTuned, console: Console) -> Judgement:
    """Calibration and thresholds, on val where it has enough of both kinds, else carefully on what there is."""
    recipe, val, train = tuned.recipe, tuned.split("val"), tuned.split("train")
    several = len(recipe.labels) > 1
    if recipe.task == "classify" and not any(i.truth is not Truth.DEFECTIVE for i in tuned.items):
        if not val or not several:
            how = "Nothing was calibrated: there is no val, or one class alone."
            return Judgement(calibration=RecipeCalibration(), thresholds=Thresholds(), notes={}, how=how)
        calibration, notes = choose_label_presence(inspector, val, recipe, console)
        how = f"The weight of the head's classes was chosen on {len(val)} val images; there are no OK parts."
        return Judgement(calibration=calibration, thresholds=Thresholds(), notes=notes, how=how)
    on_val = _enough(val)
    items = val if on_val else train
    if not on_val and not _enough(train, 2):
        how = (
            "There are too few parts of either kind even to fit P(NG): it is the decoder's own, and everything between "
            f"{_WIDE['ok_below']:g} and {_WIDE['ng_above']:g} goes to REVIEW. Label more parts."
        )
        thresholds = Thresholds(**_WIDE, defect_confidence=_PLAIN_CONFIDENCE)
        return Judgement(calibration=RecipeCalibration(), thresholds=thresholds, notes={}, how=how)
    calibration, notes = calibrate(examine_set(inspector, items, recipe, console))
    if recipe.task == "classify" and several:
        calibration = calibration.model_copy(update={"label_presence": 1.0})
    confidence = notes.get("defect_confidence", _PLAIN_CONFIDENCE)
    if not on_val or "ok_below" not in notes:
        bad = sum(item.truth is Truth.DEFECTIVE for item in val)
        how = (
            f"val has {bad} defective and {len(val) - bad} good images: too few to choose thresholds. P(NG) was fitted "
            f"on the {len(items)} training images, which the model knows, so it is too sure of itself: everything "
            f"between {_WIDE['ok_below']:g} and {_WIDE['ng_above']:g} goes to REVIEW. Label more parts."
        )
        thresholds = Thresholds(**_WIDE, defect_confidence=_round(min(confidence, _PLAIN_CONFIDENCE)))
        return Judgement(calibration=calibration, thresholds=thresholds, notes=notes, how=how)
    low, high = _round(notes["ok_below"]), _round(notes["ng_above"])
    thresholds = Thresholds(ok_below=min(low, high), ng_above=high, defect_confidence=_round(confidence))
    how = (
        f"P(NG) and thresholds were fitted on {len(items)} val images (at most 1 % escapes and 2 % overkill on them; "
        "between the thresholds a person decides)."
    )
    return Judgement(calibration=calibration, thresholds=thresholds, notes=notes, how=how)


def _round(value: float) -> float:
    """Three decimals for a file that people read, never to 0 or 1 from inside."""
    return min(max(round(value, 3), 0.001), 0.999)


def repackage(engine: Path, calibration: Path) -> None:
    """Puts calibration.json into a finished package, in one step; the graphs stay as they are."""
    manifest = load_manifest(engine)
    with tempfile.TemporaryDirectory(dir=engine.parent) as folder:
        copy = Path(folder) / "files"
        shutil.copytree(engine, copy)
        with publish_package(engine) as draft:
            for name in manifest.files:
                target = draft.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(copy / name, target)
            shutil.copyfile(calibration, draft.path / CALIBRATION)
            fields = {name: getattr(manifest, name) for name in EngineDescription.model_fields}
            draft.description = EngineDescription(**fields)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """The recipe as YAML, with a line on where it comes from."""
    content = recipe.model_dump(mode="json", exclude_none=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    head = (
        "# Written by `auroraedge finetune`. Severities, titles, thresholds: yours to change; then raise `version`.\n"
    )
    path.write_text(head + text, encoding="utf-8")


def score_test(tuned: FineTuned, recipe: Recipe, engine: Path, *, baseline: bool, threads: int | None) -> EvalReport:
    """`auroraedge eval` on the test split; predictions are kept, so that an interrupted run goes on."""
    manifest = load_manifest(engine)
    journal = tuned.out / "work" / f"predictions_{manifest.engine_sha256[:12]}_{recipe.sha256[:8]}.jsonl"
    with Inspector.open(engine, threads=threads) as inspector:
        return evaluate(
            tuned.data, tuned.set_name, "test", inspector, recipe, baseline=baseline, out=journal, seed=tuned.seed
        )


def class_verdicts(report: EvalReport, recipe: Recipe) -> Any:
    """Escapes and overkill of a classification with good parts, which the evaluation gives for inspections alone."""
    judged = [p for p in report.predictions if p.sample.truth is not Truth.PRESUMED_GOOD]
    if recipe.task == "inspect" or all(p.sample.truth is Truth.DEFECTIVE for p in judged):
        return report.model.verdict
    return verdict_scores(
        [p.sample.truth is Truth.DEFECTIVE for p in judged],
        [p.result.verdict for p in judged],
        [p.sample.group for p in judged],
        seed=report.seed,
    )
