"""The recipes of this server: those of its folders, and above them the newer versions that its store has.

Read at start, so that a faulty file stops the start and not a part, and again on request: then all or nothing changes,
and frames that wait keep the recipe they came with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from auroraedge.client.models import RecipeChange
from auroraedge.errors import InvalidRequestError, RecipeNotFoundError, RecipeVersionError
from auroraedge.inspection.recipe import Recipe, list_recipes

if TYPE_CHECKING:
    from auroraedge.store import Store


class RecipeBook:
    def __init__(self, search_dirs: Sequence[Path] = ()) -> None:
        """Raises RecipeError for a file that is not a valid recipe."""
        self._search_dirs = tuple(search_dirs)
        self._by_id = self.read(None)

    @property
    def all(self) -> list[Recipe]:
        return list(self._by_id.values())

    def get(self, recipe_id: str, version: int) -> Recipe:
        """The recipe; `version` 0 takes any. Raises RecipeNotFoundError, RecipeVersionError, InvalidRequestError."""
        if not recipe_id:
            raise InvalidRequestError("No recipe is named.", field="recipe_id", remedy="See ListRecipes.")
        recipe = self._by_id.get(recipe_id)
        if recipe is None:
            raise RecipeNotFoundError(
                f"There is no recipe '{recipe_id[:64]}' (known: {', '.join(self._by_id)}).",
                field="recipe_id",
                remedy="Use one of the known recipes, or add its file to the folder given with --recipes.",
            )
        if version not in (0, recipe.version):
            raise RecipeVersionError(
                f"Recipe '{recipe.id}' is at version {recipe.version}, not {version}.", field="recipe_version"
            )
        return recipe

    def read(self, store: Store | None) -> dict[str, Recipe]:
        """What the folders and the store hold now; nothing changes yet. Raises RecipeError, StoreError."""
        found = {recipe.id: recipe for recipe in list_recipes(self._search_dirs)}
        for recipe in store.recipes() if store is not None else ():
            if recipe.id not in found or recipe.version > found[recipe.id].version:
                found[recipe.id] = recipe
        return dict(sorted(found.items()))

    def changes(self, new: Mapping[str, Recipe]) -> list[RecipeChange]:
        """What `replace` would change, by id."""
        found = []
        for recipe_id in sorted(self._by_id.keys() | new.keys()):
            old, now = self._by_id.get(recipe_id), new.get(recipe_id)
            if old is not None and now is not None and (old.version, old.sha256) == (now.version, now.sha256):
                continue
            kind: Literal["added", "changed", "removed"] = (
                "added" if old is None else "removed" if now is None else "changed"
            )
            found.append(
                RecipeChange(
                    recipe_id=recipe_id,
                    kind=kind,
                    old_version=old.version if old else 0,
                    new_version=now.version if now else 0,
                    old_sha256=old.sha256 if old else "",
                    new_sha256=now.sha256 if now else "",
                )
            )
        return found

    def replace(self, new: Mapping[str, Recipe]) -> None:
        self._by_id = dict(sorted(new.items()))

    def add(self, recipe: Recipe) -> None:
        self.replace({**self._by_id, recipe.id: recipe})
