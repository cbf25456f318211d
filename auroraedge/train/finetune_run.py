"""One call from a checked dataset to a trained model folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from auroraedge.data.importers.convert import write_set
from auroraedge.data.pack import PackItem, load_pack_set
from auroraedge.data.validation import CheckedDataset
from auroraedge.errors import TrainingError
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.train.finetune import FineTuner
from auroraedge.train.finetune_data import draft_recipe, recipe_id, revised, with_labels
from auroraedge.train.finetune_model import open_base
from auroraedge.train.finetune_settings import FinetuneSettings


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """A finished training: OUT, the model in it, the converted set, its recipe (thresholds still open), its items."""

    out: Path
    model: Path
    set_name: str
    recipe: Recipe
    items: tuple[PackItem, ...]
    checked: CheckedDataset
    seed: int

    @property
    def data(self) -> Path:
        return self.out / "data"

    def split(self, name: str) -> list[PackItem]:
        return [item for item in self.items if item.split == name]


def run_finetune(
    checked: CheckedDataset,
    *,
    out: Path,
    base: Path,
    settings: FinetuneSettings,
    console: Console,
    name: str | None = None,
    recipe: str | None = None,
) -> FineTuned:
    """Converts the set into OUT/data, drafts the recipe and trains; a finished training with the same data, base and
    settings is taken as it is.

    recipe: one to start from, by id or file; its own labels stay. Raises TrainingError, RecipeError, DatasetError.
    """
    if checked.errors:
        raise TrainingError("The dataset has errors.", field="data", remedy="Mend them first (--check).")
    set_name = recipe_id(name or checked.raw.root.name)
    digest = write_set(checked.items, out / "data" / set_name)
    items = load_pack_set(out / "data", set_name)
    train = [item for item in items if item.split == "train"]
    if recipe is None:
        chosen = draft_recipe(set_name, train, checked.labels, checked.task)
    else:
        started = load_recipe(recipe)
        if started.task != checked.task:
            raise TrainingError(
                f"The recipe '{started.id}' has the task '{started.task}'; these labels allow '{checked.task}'.",
                field="recipe",
                remedy="Leave --recipe out, or label accordingly.",
            )
        known = with_labels(started, checked.labels)
        chosen = revised(known, id=set_name if name else started.id, version=started.version + 1)
    tuner = FineTuner(
        base=open_base(base),
        items=items,
        recipe=chosen,
        settings=settings,
        out=out,
        content_sha256=digest,
        console=console,
    )
    about = out / "model" / "finetune.json"
    if about.is_file() and json.loads(about.read_text(encoding="utf-8")).get("sha256") == tuner.sha:
        console.print(f"{out / 'model'} is already trained on this.")
    else:
        console.print(
            f"{len(train)} images to train on, {len(tuner.val_items)} to stop by; "
            f"{tuner.tuned.trained / 1e6:.2f} M parameters move, at most {tuner.steps} steps."
        )
        tuner.run()
    return FineTuned(
        out=out,
        model=out / "model",
        set_name=set_name,
        recipe=chosen,
        items=tuple(items),
        checked=checked,
        seed=settings.seed,
    )
