"""Targets: what an engine may be built for, as validated YAML in engine_build/targets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from auroraedge.errors import EngineError

FOLDER = Path(__file__).resolve().parent / "targets"
GRAPHS = ("vision", "fusion", "decoder")
Precision = Literal["fp32", "int8", "int8-weights"]


class Target(BaseModel):
    """One machine class. precisions: by name, the precision of every graph."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    compiler: Literal["onnxruntime"]
    compute_capability: str | None
    precisions: dict[str, dict[str, Precision]]
    default_precision: str

    @model_validator(mode="after")
    def _complete(self) -> Target:
        for name, graphs in self.precisions.items():
            if set(graphs) != set(GRAPHS):
                raise ValueError(f"precision '{name}' must name exactly {', '.join(GRAPHS)}")
        if self.default_precision not in self.precisions:
            raise ValueError(f"default_precision '{self.default_precision}' is not one of precisions")
        return self

    def precision(self, name: str | None) -> dict[str, Precision]:
        """Precision by graph. Raises EngineError for one that the target does not offer."""
        chosen = name or self.default_precision
        if chosen not in self.precisions:
            raise EngineError(
                f"Target '{self.name}' has no precision '{chosen}'.",
                field="--precision",
                remedy=f"Choose one of: {', '.join(self.precisions)}.",
            )
        return dict(self.precisions[chosen])


def list_targets() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_target(name: str) -> Target:
    """The target `name`. Raises EngineError."""
    path = FOLDER / f"{name}.yaml"
    if name not in list_targets():
        raise EngineError(
            f"There is no target '{name}'.", field="--target", remedy=f"Choose one of: {', '.join(list_targets())}."
        )
    try:
        return Target.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise EngineError(f"{path.name} is not a valid target: {error}.", field="--target") from error
