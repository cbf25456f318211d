"""The recipes that a person may see and change: those of the store, else those of the folders and the built-in ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from auroraedge.errors import RecipeNotFoundError
from auroraedge.inspection.palette import LabelStyle, with_extra_labels
from auroraedge.inspection.recipe import Recipe, Thresholds, list_recipes
from auroraedge.store import Store

# Another process may store a recipe: what is kept in memory is looked up again after so long.
_FRESH_S = 2.0


@dataclass(frozen=True, kw_only=True)
class KnownRecipe:
    """A recipe and where it is from. stored_version: the newest in the store, 0 when only a file has it."""

    recipe: Recipe
    stored_version: int


class Recipes:
    """Thread-safe. Raises RecipeError from the start when a file is not a valid recipe."""

    def __init__(self, store: Store, search_dirs: Sequence[Path] = ()) -> None:
        self._store = store
        self._files = {recipe.id: recipe for recipe in list_recipes(search_dirs)}
        self._lock = threading.Lock()
        self._known: dict[str, KnownRecipe] = {}
        self._read_at = -_FRESH_S
        self._versions: dict[tuple[str, int], Recipe | None] = {}

    def all(self) -> dict[str, KnownRecipe]:
        """By id, sorted."""
        with self._lock:
            if time.monotonic() - self._read_at >= _FRESH_S:
                known = {key: KnownRecipe(recipe=recipe, stored_version=0) for key, recipe in self._files.items()}
                for recipe in self._store.recipes():
                    known[recipe.id] = KnownRecipe(recipe=recipe, stored_version=recipe.version)
                self._known = dict(sorted(known.items()))
                self._read_at = time.monotonic()
            return self._known

    def forget(self) -> None:
        """After a change: the next call reads anew."""
        with self._lock:
            self._read_at = -_FRESH_S

    def get(self, recipe_id: str) -> KnownRecipe:
        """Raises RecipeNotFoundError."""
        found = self.all().get(recipe_id)
        if found is None:
            raise RecipeNotFoundError(f"There is no recipe '{recipe_id[:64]}'.", field="recipe_id")
        return found

    def version(self, recipe_id: str, version: int) -> Recipe | None:
        """One version, from the store or a file; None when it is not known. Versions never change, so they are kept."""
        key = (recipe_id, version)
        with self._lock:
            if key in self._versions:
                return self._versions[key]
        file = self._files.get(recipe_id)
        try:
            found: Recipe | None = self._store.recipe(recipe_id, version)
        except RecipeNotFoundError:
            found = file if file is not None and file.version == version else None
        if found is not None:
            with self._lock:
                self._versions[key] = found
        return found

    def thresholds(self, recipe_id: str) -> dict[int, Thresholds]:
        """Of all known versions of a recipe."""
        file = self._files.get(recipe_id)
        found = {} if file is None else {file.version: file.thresholds}
        return found | {
            entry.recipe.version: entry.recipe.thresholds for entry in self._store.recipe_history(recipe_id)
        }

    def styles(self, recipe_id: str, found: Sequence[str]) -> dict[str, LabelStyle]:
        """How the labels of a recipe are drawn, and those found beyond them."""
        known = self.all().get(recipe_id)
        return with_extra_labels(known.recipe.label_names if known else (), found)

    def titles(self, recipe_id: str, language: str) -> dict[str, str]:
        """Display names of a recipe's labels, by label."""
        known = self.all().get(recipe_id)
        labels = known.recipe.labels if known else ()
        return {label.name: label.title.get(language) or label.name.replace("_", " ") for label in labels}
