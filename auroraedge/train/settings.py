"""Training recipes: a YAML that names the model, the data and the stages; each stage is a YAML of its own."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from auroraedge.errors import TrainingError
from auroraedge.inspection.prompts import PromptKind

Part = Literal["encoder", "connectors", "decoder"]


class RecipeModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Recipe = TypeVar("Recipe", bound=RecipeModel)


class StageSettings(RecipeModel):
    """One stage of the curriculum (arXiv 2601.16615: connectors only, then the decoder, then everything)."""

    name: str
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="Views a step.")
    learning_rate: dict[Part, float] = Field(min_length=1, description="By part; a part without one stays frozen.")
    warmup_steps: int = Field(default=100, ge=0)
    decay_fraction: float = Field(default=0.25, ge=0, le=1, description="Last part of the stage, linearly down to 0.")
    weight_decay: float = Field(default=0.05, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    extra_prompts: float = Field(default=0.3, ge=0, le=1, description="Chance of a second prompt about a view.")
    prompt_kinds: dict[PromptKind, float] | None = None
    mix: dict[str, float] = Field(min_length=1, description="Weights of the data sources.")
    dense_visual: float = Field(default=1.0, ge=0, description="Weight of the dense loss on V.")
    dense_compressed: float = Field(default=0.5, ge=0, description="Weight of the dense loss on C.")
    presence: float = Field(default=1.0, ge=0, description="Weight of the presence loss on the prompt's fused labels.")
    copy_tokens: float = Field(default=0.5, ge=0, description="Weight of reading the answer's tokens off C.")


class TrainSettings(RecipeModel):
    """A whole training run."""

    name: str
    model: str
    vocab_size: int = 1024
    initial_encoder: Literal["dinov2_small", "none"] = "dinov2_small"
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    threads: int | None = None
    checkpoint_every: int = Field(default=200, ge=1)
    validate_every: int = Field(default=500, ge=1)
    validation_views: int = Field(default=64, ge=1, description="Views a source.")
    stages: tuple[str, ...] = Field(min_length=1)


def recipe_content(name: str) -> dict[str, Any]:
    """What a built-in recipe, by name, or any YAML, by path, says. Raises TrainingError."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise TrainingError(f"There is no file {path}.", field="recipe", remedy="Give an existing YAML file.")
        text = path.read_text(encoding="utf-8")
    else:
        entry = resources.files("auroraedge.train").joinpath(f"recipes/{name}.yaml")
        if not entry.is_file():
            known = sorted(e.name.removesuffix(".yaml") for e in entry.parent.iterdir() if e.name.endswith(".yaml"))  # type: ignore[attr-defined]
            raise TrainingError(f"There is no training recipe '{name}'.", field="recipe", remedy=f"Known: {known}.")
        text = entry.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TrainingError(f"{name} is not a valid training recipe: {error}", field="recipe") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{name} is not a valid training recipe: it holds no settings.", field="recipe")
    return content


def load_recipe_file(name: str, model: type[Recipe]) -> Recipe:
    """A built-in recipe by name, or any YAML by path."""
    try:
        return model.model_validate(recipe_content(name))
    except ValidationError as error:
        raise TrainingError(f"{name} is not a valid training recipe: {error}", field="recipe") from error


def load_training(name: str) -> tuple[TrainSettings, list[StageSettings]]:
    """The run and its stages. Raises TrainingError."""
    run = load_recipe_file(name, TrainSettings)
    return run, [load_recipe_file(stage, StageSettings) for stage in run.stages]


def settings_sha256(run: TrainSettings, stages: list[StageSettings]) -> str:
    content = {"run": run.model_dump(mode="json"), "stages": [s.model_dump(mode="json") for s in stages]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
