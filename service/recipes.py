"""The recipes of this server, read once at start so that a faulty file stops the start and not a part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from auroraedge.errors import InvalidRequestError, RecipeNotFoundError, RecipeVersionError
from auroraedge.inspection.recipe import Recipe, list_recipes


class RecipeBook:
    def __init__(self, search_dirs: Sequence[Path] = ()) -> None:
        """Raises RecipeError for a file that is not a valid recipe."""
        self._by_id = {recipe.id: recipe for recipe in list_recipes(search_dirs)}

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
