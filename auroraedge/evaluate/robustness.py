"""How verdicts hold when the picture changes and the part does not: `auroraedge bench robustness`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table

from auroraedge.data.pack import PackItem, Truth, load_pack_set
from auroraedge.errors import DatasetError, InvalidRequestError
from auroraedge.evaluate.journal import Journal
from auroraedge.evaluate.metrics import Estimate, wilson
from auroraedge.evaluate.perturb import AS_TAKEN, PERTURBATIONS, Perturbation, perturbed_sample
from auroraedge.evaluate.predictor import Predictor
from auroraedge.evaluate.run import predict, predictor_name, recipe_for
from auroraedge.evaluate.samples import Sample, annotated_samples, evenly, good_samples
from auroraedge.evaluate.schema import Prediction, SampleKind
from auroraedge.evaluate.scoring import score
from auroraedge.inspection.recipe import Recipe


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Condition(_Model):
    """Scores under one perturbation. changed: verdicts (of a classification: classes) that differ from 'as taken'."""

    name: str
    images: int
    changed: Estimate
    escape_rate: Estimate | None = None
    overkill_rate: Estimate | None = None
    review_rate: Estimate | None = None
    f_score: Estimate | None = None
    accuracy: Estimate | None = None


class RobustnessReport(_Model):
    """One set and split under every perturbation."""

    schema_version: int = 1
    created_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    set_name: str
    split: str
    recipe_id: str
    recipe_sha256: str
    predictor: str
    limit: int | None
    seed: int
    conditions: tuple[Condition, ...]


def measure_robustness(
    pack_dir: Path | str,
    set_name: str,
    split: str,
    inspector: Predictor,
    recipe: Recipe | str | Path | None = None,
    *,
    names: Sequence[str] = tuple(PERTURBATIONS),
    limit: int | None = None,
    keep: Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> RobustnessReport:
    """Scores `inspector` on the images as taken and under each perturbation.

    Sets whose images are all defective get good parts from their templates, as in `evaluate`; those presumed good are
    left out. limit: at most so many annotated images, spread evenly. keep: a folder of finished predictions, which the
    same call goes on from. Raises DatasetError, RecipeError, InvalidRequestError for an unknown perturbation, and
    KeyboardInterrupt after Ctrl-C: what is finished is kept.
    """
    unknown = [name for name in names if name not in PERTURBATIONS]
    if unknown:
        raise InvalidRequestError(
            f"There is no perturbation '{unknown[0]}'.", field="only", remedy=f"Known: {'; '.join(PERTURBATIONS)}."
        )
    chosen = recipe_for(set_name, recipe)
    items = evenly([i for i in load_pack_set(pack_dir, set_name, split) if i.truth is not Truth.PRESUMED_GOOD], limit)
    if not items:
        raise DatasetError(f"Split '{split}' of {set_name} has no image to score.", field="split")
    samples = _samples(items, chosen)
    sizes = {item.file: (item.height, item.width) for item in items}
    conditions: list[Condition] = []
    first: list[Prediction] = []
    for number, change in enumerate((AS_TAKEN, *(PERTURBATIONS[name] for name in names))):
        changed = [perturbed_sample(sample, change, *sizes[sample.info.file]) for sample in samples]
        identity = {
            "set": set_name,
            "predictor": predictor_name(inspector),
            "recipe_sha256": chosen.sha256,
            "perturbation": change.name,
        }
        with Journal(keep / f"{set_name}_{split}_{number}.jsonl", identity) if keep else nullcontext() as journal:
            found, interrupted = predict(inspector, changed, chosen, journal, change.name if progress else None)
        if interrupted:
            raise KeyboardInterrupt
        first = first or found
        conditions.append(_condition(change, found, first, chosen, seed))
    return RobustnessReport(
        set_name=set_name,
        split=split,
        recipe_id=chosen.id,
        recipe_sha256=chosen.sha256,
        predictor=predictor_name(inspector),
        limit=limit,
        seed=seed,
        conditions=tuple(conditions),
    )


def _samples(items: Sequence[PackItem], recipe: Recipe) -> list[Sample]:
    samples = annotated_samples(items, recipe)
    if all(item.truth is Truth.DEFECTIVE for item in items):
        made = good_samples(items, recipe)
        samples += [sample for sample in made if sample.info.kind is SampleKind.TEMPLATE_PERTURBED]
    return samples


def _condition(
    change: Perturbation, found: Sequence[Prediction], first: Sequence[Prediction], recipe: Recipe, seed: int
) -> Condition:
    scores = score(found, recipe, predictor="", seed=seed)
    pairs = list(zip(found, first, strict=True))
    if recipe.task == "classify":
        differing = sum(a.result.predicted_class != b.result.predicted_class for a, b in pairs)
    else:
        differing = sum(a.result.verdict is not b.result.verdict for a, b in pairs)
    verdict = scores.verdict
    return Condition(
        name=change.name,
        images=len(found),
        changed=wilson(differing, len(found)),
        escape_rate=verdict.escape_rate if verdict else None,
        overkill_rate=verdict.overkill_rate if verdict and verdict.good else None,
        review_rate=verdict.review_rate if verdict else None,
        f_score=scores.detection.micro.f_score if scores.detection else None,
        accuracy=scores.image_class.accuracy if scores.image_class and recipe.task == "classify" else None,
    )


_COLUMNS = (
    ("escapes", "escape_rate"),
    ("overkill", "overkill_rate"),
    ("REVIEW", "review_rate"),
    ("F-score", "f_score"),
    ("accuracy", "accuracy"),
    ("changed", "changed"),
)


def robustness_table(report: RobustnessReport) -> Table:
    """A row a condition, with the columns that the set has figures for."""
    columns = [
        (title, field) for title, field in _COLUMNS if any(getattr(c, field) is not None for c in report.conditions)
    ]
    table = Table(
        title=f"{report.set_name}, {report.split}: {report.conditions[0].images} images",
        caption="95 % intervals in the JSON. changed: verdicts or classes unlike those of the image as taken.",
    )
    table.add_column("condition")
    for title, _ in columns:
        table.add_column(title, justify="right")
    for condition in report.conditions:
        figures = [getattr(condition, field) for _, field in columns]
        table.add_row(condition.name, *("-" if f is None or f.value is None else f"{f.value:.3f}" for f in figures))
    return table


def print_robustness(report: RobustnessReport, console: Console) -> None:
    console.print(robustness_table(report))
