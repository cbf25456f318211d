"""Recipes: what a line inspects for, as a YAML file, so that a line is set up without code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from auroraedge.errors import RecipeError, RecipeNotFoundError, UnknownLabelError

Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
# A label is part of the prompt and of the answer grammar, so it must survive tokenisation: word characters only.
LabelName = Annotated[str, StringConstraints(pattern=r"^[^\W\d][\w-]{0,47}$")]


class Severity(StrEnum):
    CRITICAL = "critical"
    MAJOR = "major"
    MINOR = "minor"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelSpec(_Model):
    """One defect kind of a recipe."""

    name: LabelName
    severity: Severity = Severity.MAJOR
    title: dict[str, str] = Field(default_factory=dict, description="Display names by language code, e.g. de, zh.")
    min_confidence: float | None = Field(
        default=None, ge=0, le=1, description="Overrides thresholds.defect_confidence for this label."
    )


class Thresholds(_Model):
    """Decision thresholds on P(NG), the calibrated probability that the part is defective (0..1).

    P(NG) < ok_below: OK. P(NG) >= ng_above: NG. Between them a person decides (REVIEW); equal values leave no REVIEW.
    """

    ok_below: float = Field(default=0.5, ge=0, le=1)
    ng_above: float = Field(default=0.5, ge=0, le=1)
    defect_confidence: float = Field(default=0.5, ge=0, le=1, description="Defects below this are not reported.")

    @model_validator(mode="after")
    def _ordered(self) -> Thresholds:
        if self.ok_below > self.ng_above:
            raise ValueError("ok_below must not exceed ng_above")
        return self


class Tiling(_Model):
    """How a frame becomes 256x256 views. `whole`: one view, stretched. `square`: overlapping squares of `size_px`."""

    mode: Literal["whole", "square"] = "whole"
    size_px: int | None = Field(default=None, ge=32, le=8192, description="Side of a square; none: the short side.")
    overlap_px: int = Field(default=0, ge=0, le=4096, description="Least overlap; at least the largest small defect.")
    mirrored: bool = Field(
        default=False, description="Judge each view together with its three mirror images: surer, four times the work."
    )
    max_views: int = Field(default=64, ge=1, le=1024, description="A frame that needs more views is refused.")

    @model_validator(mode="after")
    def _overlap_smaller(self) -> Tiling:
        if self.size_px is not None and self.overlap_px * 2 > self.size_px:
            raise ValueError("overlap_px must be at most half of size_px")
        return self


class Recipe(_Model):
    """What to look for on one kind of part, and how to decide."""

    id: Identifier
    version: int = Field(default=1, ge=1)
    title: str = ""
    task: Literal["inspect", "classify"] = "inspect"
    labels: tuple[LabelSpec, ...] = Field(min_length=1, max_length=64)
    thresholds: Thresholds = Thresholds()
    golden_reference: Literal["none", "optional", "required"] = "none"
    reference_shift_px: int = Field(
        default=0, ge=0, le=32, description="Golden samples are moved by up to so many pixels; 0: they lie in register."
    )
    tiling: Tiling = Tiling()
    max_defects_per_view: int = Field(default=16, ge=1, le=64)
    merge_iou: float = Field(default=0.4, gt=0, lt=1, description="Same-label boxes above this IoU are one defect.")

    @model_validator(mode="after")
    def _labels_unique(self) -> Recipe:
        names = [label.name for label in self.labels]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"labels named twice: {', '.join(repeated)}")
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values. What was computed from the old ones (label names, hash) is not taken along."""
        copied = super().model_copy(update=update, deep=deep)
        for derived in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[derived]
        return copied

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @cached_property
    def sha256(self) -> str:
        """Hash of the recipe's meaning: the same for a reformatted file, another for any changed value."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def label(self, name: str) -> LabelSpec:
        """The specification of `name`. Raises UnknownLabelError."""
        for spec in self.labels:
            if spec.name == name:
                return spec
        raise UnknownLabelError(
            f"'{name}' is not a label of recipe '{self.id}' (it has {', '.join(self.label_names)}).", field="label"
        )

    def min_confidence(self, name: str) -> float:
        own = self.label(name).min_confidence
        return self.thresholds.defect_confidence if own is None else own


def _read(text: str, source: str) -> Recipe:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not valid YAML: {error}.", field="recipe") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{source} must hold a mapping with id, labels, ...", field="recipe")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise RecipeError(f"{source}: {first['msg']}.", field=where) from error


def _candidates(search_dirs: Sequence[Path]) -> dict[str, tuple[str, str]]:
    """Recipe texts by file stem: later folders win over earlier ones and over the built-in recipes."""
    found: dict[str, tuple[str, str]] = {}
    for entry in resources.files("auroraedge").joinpath("assets/recipes").iterdir():
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = (entry.read_text(encoding="utf-8"), f"built-in {entry.name}")
    for folder in search_dirs:
        for path in sorted(Path(folder).glob("*.yaml")):
            found[path.stem] = (path.read_text(encoding="utf-8"), str(path))
    return found


def load_recipe(id_or_path: str | Path, search_dirs: Sequence[Path] = ()) -> Recipe:
    """A recipe by id (built-in or in `search_dirs`) or by the path of a YAML file.

    Raises RecipeNotFoundError, or RecipeError when the file is not a valid recipe.
    """
    text = str(id_or_path)
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
        if not path.is_file():
            raise RecipeNotFoundError(f"There is no recipe file {path}.", field="recipe")
        return _read(path.read_text(encoding="utf-8"), str(path))
    found = _candidates(search_dirs)
    if text not in found:
        known = ", ".join(sorted(found)) or "none"
        raise RecipeNotFoundError(f"There is no recipe '{text}' (known: {known}).", field="recipe_id")
    return _read(*found[text])


def list_recipes(search_dirs: Sequence[Path] = ()) -> list[Recipe]:
    """All recipes that `load_recipe` finds by id, sorted by id."""
    return sorted((_read(*item) for item in _candidates(search_dirs).values()), key=lambda recipe: recipe.id)
