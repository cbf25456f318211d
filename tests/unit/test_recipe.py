from __future__ import annotations

from pathlib import Path

import pytest

from auroraedge.errors import RecipeError, RecipeNotFoundError, UnknownLabelError
from auroraedge.inspection.recipe import Recipe, list_recipes, load_recipe

MINIMAL = "id: brake_pad\nlabels: [{name: crack}, {name: chip, severity: critical, min_confidence: 0.8}]\n"


def test_builtin_recipes_load_and_are_distinct() -> None:
    recipes = list_recipes()
    assert {r.id for r in recipes} >= {"pcb", "magnetic_tile", "ball_screw", "steel_strip"}
    assert len({r.sha256 for r in recipes}) == len(recipes)
    assert load_recipe("pcb").golden_reference == "required"


def test_a_file_of_a_line_needs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "brake_pad.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.label_names == ("crack", "chip")
    assert recipe.min_confidence("crack") == recipe.thresholds.defect_confidence
    assert recipe.min_confidence("chip") == 0.8
    assert load_recipe("brake_pad", [tmp_path]) == recipe
    with pytest.raises(UnknownLabelError, match="brake_pad"):
        recipe.label("scratch")


def test_a_copy_with_other_values_has_their_hash_and_names(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    recipe = load_recipe(path)
    before = recipe.sha256, recipe.label_names  # computed, and kept by the recipe
    newer = recipe.model_copy(update={"version": recipe.version + 1, "labels": recipe.labels[:1]})
    assert newer.label_names == ("crack",)
    assert newer.sha256 == Recipe.model_validate(newer.model_dump()).sha256 != before[0]
    assert (recipe.sha256, recipe.label_names) == before
    assert recipe.model_copy() == recipe and recipe.model_copy().sha256 == before[0]


def test_a_folder_overrides_a_builtin_recipe(tmp_path: Path) -> None:
    (tmp_path / "pcb.yaml").write_text("id: pcb\nversion: 7\nlabels: [{name: open}]\n", encoding="utf-8")
    assert load_recipe("pcb", [tmp_path]).version == 7
    assert load_recipe("pcb").version != 7


def test_hash_is_of_the_meaning(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    first = load_recipe(path).sha256
    path.write_text("# a comment\n" + MINIMAL.replace(", ", ",   "), encoding="utf-8")
    assert load_recipe(path).sha256 == first
    path.write_text(MINIMAL.replace("0.8", "0.81"), encoding="utf-8")
    assert load_recipe(path).sha256 != first


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("id: x\nlabels: []\n", "labels"),
        ("id: x\nlabels: [{name: a}, {name: a}]\n", "twice"),
        ("id: 'Bad Id'\nlabels: [{name: a}]\n", "id"),
        ("id: x\nlabels: [{name: 'two words'}]\n", "labels.0.name"),
        ("id: x\nlabels: [{name: a}]\nthresholds: {ok_below: 0.9, ng_above: 0.1}\n", "ok_below"),
        ("id: x\nlabels: [{name: a}]\nunknown_key: 1\n", "unknown_key"),
        ("id: x\nlabels: [{name: a}]\ntiling: {size_px: 100, overlap_px: 90}\n", "overlap_px"),
        ("[1, 2]\n", "mapping"),
        ("a: [\n", "YAML"),
    ],
)
def test_a_wrong_file_names_the_field(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert where in str(caught.value)
    assert caught.value.remedy


def test_a_missing_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeNotFoundError, match="pcb"):
        load_recipe("no_such")
    with pytest.raises(RecipeNotFoundError):
        load_recipe("missing.yaml")


def test_recipe_refuses_path_like_ids() -> None:
    with pytest.raises(ValueError, match="id"):
        Recipe.model_validate({"id": "../etc", "labels": [{"name": "a"}]})
