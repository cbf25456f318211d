"""Recipes of the distributed trainer: stages counted in samples, so that they do not depend on the batch."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from auroraedge.errors import TrainingError
from auroraedge.inspection.prompts import PromptKind
from auroraedge.train.settings import Part, RecipeModel, load_recipe_file, recipe_content


class ScaleStage(RecipeModel):
    """One stage of the curriculum."""

    name: str
    samples: int = Field(ge=1, description="Images that the stage draws in all.")
    batch_size: int = Field(ge=1, description="Images of an update, over all processes.")
    micro_batch: int = Field(default=8, ge=1, description="Images that a process runs at a time.")
    learning_rate: dict[Part, float] = Field(min_length=1, description="By part; a part without one stays frozen.")
    warmup_fraction: float = Field(default=0.03, ge=0, le=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0, description="Of the gradient of each part.")
    mix: dict[str, float] = Field(min_length=1, description="Weights of the data by name (--data NAME=...).")
    max_prompt_tokens: int = Field(default=256, ge=1)
    max_answer_tokens: int = Field(default=256, ge=1)
    max_exchanges: int = Field(default=4, ge=1, description="Questions about one image in one update.")
    prompt_kinds: dict[PromptKind, float] | None = Field(default=None, description="Of inspection-pack sources.")

    @property
    def steps(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def rate(self, step: int) -> float:
        """Factor of the learning rates at a step: linear warm-up, then a cosine down to 0, or constant."""
        warmup = math.ceil(self.steps * self.warmup_fraction)
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(self.steps - warmup, 1)))


class ScaleSettings(RecipeModel):
    """A run over one or several processes."""

    trainer: Literal["distributed"]
    name: str
    seed: int = 0
    precision: Literal["bf16", "fp32"] = Field(default="bf16", description="Of the arithmetic; weights are float32.")
    shard: Literal["fsdp", "ddp"] = Field(default="fsdp", description="Of several processes.")
    gradient_checkpointing: bool = True
    streams: int = Field(default=8, ge=1, description="Lanes of tar shards; a multiple of the processes.")
    workers: int = Field(default=8, ge=1, description="Threads of a process that decode images.")
    threads: int | None = None
    checkpoint_every: int = Field(default=500, ge=1, description="Updates.")
    log_every: int = Field(default=10, ge=1, description="Updates.")
    stages: tuple[str, ...] = Field(min_length=1)


class ScaleRecipe(RecipeModel):
    """The run with its stages read."""

    run: ScaleSettings
    stages: tuple[ScaleStage, ...]

    @model_validator(mode="after")
    def _names_differ(self) -> ScaleRecipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages have the same name: {names}")
        return self

    def check_processes(self, processes: int) -> None:
        """Raises TrainingError where the batch or the lanes cannot be split over so many."""
        for stage in self.stages:
            if stage.batch_size % processes:
                raise TrainingError(
                    f"Stage {stage.name} has batch_size {stage.batch_size}, no multiple of {processes} processes.",
                    field="batch_size",
                    remedy="Choose another batch_size or number of processes.",
                )
        if self.run.streams % processes:
            raise TrainingError(
                f"{self.run.streams} streams cannot be split over {processes} processes.",
                field="streams",
                remedy=f"Set `streams` to a multiple of {processes}.",
            )


def is_distributed(name: str) -> bool:
    """Whether a recipe, by name or YAML path, is one of this trainer."""
    return recipe_content(name).get("trainer") == "distributed"


def load_scale_recipe(name: str) -> ScaleRecipe:
    """The run and its stages. Raises TrainingError."""
    run = load_recipe_file(name, ScaleSettings)
    stages = tuple(load_recipe_file(stage, ScaleStage) for stage in run.stages)
    return ScaleRecipe(run=run, stages=stages)
