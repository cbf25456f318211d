"""The sources that nano is trained on: the four sets of the inspection pack, and the generator's parts.

How a scene is framed here must match how the recipe's tiling frames it at inference (inspection.views): a board is seen
in squares of about 352 px, a spindle in squares of its short side, a tile and a steel strip whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from auroraedge.data.augment import Scene, SceneObject, adjust_tone, crop_scene, dihedral, shift_reference
from auroraedge.data.instructions import Source
from auroraedge.data.pack import PackItem, load_image, load_pack_set
from auroraedge.data.synthetic import (
    SyntheticPart,
    add_board_defects,
    generate_board,
    generate_ground_surface,
    generate_rolled_surface,
)
from auroraedge.inspection.alignment import align_reference
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.recipe import load_recipe

_INSPECT_KINDS = {
    PromptKind.INSPECT: 0.74,
    PromptKind.LOCATE: 0.08,
    PromptKind.EXISTS: 0.08,
    PromptKind.COUNT: 0.05,
    PromptKind.DESCRIBE: 0.05,
}
_CLASSIFY_KINDS = {PromptKind.CLASSIFY: 0.8, PromptKind.EXISTS: 0.15, PromptKind.DESCRIBE: 0.05}


def _grey_if_grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W] when the picture is grey, else [H, W, 3]: a third of the memory for most of the pack."""
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all():
        return np.ascontiguousarray(pixels[..., 0])
    return pixels


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_GRAY2RGB) if pixels.ndim == 2 else pixels


def _to_rgb(scene: Scene) -> Scene:
    reference = None if scene.reference is None else _rgb(scene.reference)
    return replace(scene, image=_rgb(scene.image), reference=reference)


class _Items:
    """Annotated images, decoded once and kept in memory; golden samples registered as the recipe says."""

    def __init__(self, items: Sequence[PackItem], shift_px: int = 0) -> None:
        self.items = list(items)
        self._shift_px = shift_px
        self._scenes: dict[int, Scene] = {}

    def __len__(self) -> int:
        return len(self.items)

    def scene(self, index: int) -> Scene:
        found = self._scenes.get(index)
        if found is None:
            item = self.items[index]
            image = load_image(item.path)
            golden = None if item.reference is None else load_image(item.reference)
            if golden is not None and self._shift_px:
                golden = align_reference(image, golden, self._shift_px)
            found = self._scenes[index] = Scene(
                image=_grey_if_grey(image),
                objects=tuple(SceneObject(o.label, *o.bbox) for o in item.objects),
                reference=None if golden is None else _grey_if_grey(golden),
            )
        return found


def _class_weights(names: Sequence[str], power: float) -> np.ndarray:
    """Sampling weights [n] that sum to 1, where a class of n images counts n ** power: rare classes are seen more."""
    counts = Counter(names)
    weights = np.array([counts[name] ** (power - 1) for name in names])
    return weights / weights.sum()


def _random_square(scene: Scene, rng: np.random.Generator, side: int, focus: float) -> Scene:
    """A square crop; with probability `focus` it holds a randomly chosen defect. Ambiguous crops are drawn again."""
    height, width = scene.image.shape[:2]
    w, h = min(side, width), min(side, height)
    crop = scene
    for _ in range(8):
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        if scene.objects and rng.random() < focus:
            item = scene.objects[int(rng.integers(len(scene.objects)))]
            x = int(np.clip(rng.uniform(item.x2 - w, item.x1) if item.x2 - item.x1 < w else item.x1, 0, width - w))
            y = int(np.clip(rng.uniform(item.y2 - h, item.y1) if item.y2 - item.y1 < h else item.y1, 0, height - h))
        crop, clear = crop_scene(scene, x, y, w, h)
        if clear:
            break
    return crop


def board_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """A square of a board with its golden sample, as the recipe `pcb` tiles it."""
    crop = _random_square(scene, rng, int(rng.integers(300, 400)), focus=0.0)
    crop = dihedral(crop, int(rng.integers(8)))
    if rng.random() < 0.15:
        crop = shift_reference(crop, rng)
    crop = _to_rgb(crop)
    return adjust_tone(crop, rng, gain=0.15, offset=10, blur=1.0) if rng.random() < 0.3 else crop


def _deeppcb(items: _Items) -> Callable[[np.random.Generator], Scene]:
    def draw(rng: np.random.Generator) -> Scene:
        scene = items.scene(int(rng.integers(len(items))))
        golden = scene.reference
        assert golden is not None
        kind = rng.random()
        if kind < 0.25:
            # Further defects of known boxes on the real template; the real pair supplies what good copper looks like.
            crop, _ = crop_scene(replace(scene, image=golden, objects=()), *_window(scene, rng, 420))
            part = add_board_defects(rng, np.ascontiguousarray(crop.image), int(rng.integers(0, 6)))
            scene = part_scene(part)
        elif kind < 0.3:
            scene = replace(scene, image=golden, objects=())
        return board_scene(scene, rng)

    return draw


def _window(scene: Scene, rng: np.random.Generator, side: int) -> tuple[int, int, int, int]:
    height, width = scene.image.shape[:2]
    w, h = min(side, width), min(side, height)
    return int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h


def whole_scene(scene: Scene, rng: np.random.Generator, *, symmetries: Sequence[int], least: float) -> Scene:
    """Nearly the whole image: at least `least` of each side, flipped, with tone changes."""
    height, width = scene.image.shape[:2]
    crop = scene
    for _ in range(8):
        w, h = int(width * rng.uniform(least, 1.0)), int(height * rng.uniform(least, 1.0))
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        crop, clear = crop_scene(scene, x, y, w, h)
        # A crop must not cut the only defect away and keep its traces.
        if clear and bool(crop.objects) == bool(scene.objects):
            break
    else:
        crop = scene
    crop = dihedral(crop, int(rng.choice(symmetries)))
    return adjust_tone(_to_rgb(crop), rng, gain=0.15, offset=12, blur=0.8)


def _magnetic_tile(items: _Items) -> Callable[[np.random.Generator], Scene]:
    names = [item.image_label for item in items.items]
    good = np.array([name == "ok" for name in names])
    weights = np.where(good, 0.0, _class_weights(names, 0.5))
    # Half of what is seen is good, the other half leans towards the rare defects.
    weights = 0.5 * weights / weights.sum() + 0.5 * good / good.sum()

    def draw(rng: np.random.Generator) -> Scene:
        index = int(rng.choice(len(items), p=weights))
        scene = items.scene(index)
        if not good[index] and not scene.objects:
            # Six `uneven` images have an empty mask: the whole surface is the defect.
            h, w = scene.image.shape[:2]
            scene = replace(scene, objects=(SceneObject(names[index], 0, 0, w, h),))
        return whole_scene(scene, rng, symmetries=range(8), least=0.85)

    return draw


def _ball_screw(items: _Items) -> Callable[[np.random.Generator], Scene]:
    def draw(rng: np.random.Generator) -> Scene:
        scene = items.scene(int(rng.integers(len(items))))
        side = int(min(scene.image.shape[:2]) * rng.uniform(0.8, 1.0))
        crop = _random_square(scene, rng, side, focus=0.55)
        return adjust_tone(_to_rgb(dihedral(crop, int(rng.integers(4)))), rng, gain=0.2, offset=20, blur=1.0)

    return draw


def _steel_strip(items: _Items) -> Callable[[np.random.Generator], Scene]:
    names = [item.image_label for item in items.items]
    weights = _class_weights(names, 0.5)

    def draw(rng: np.random.Generator) -> Scene:
        index = int(rng.choice(len(items), p=weights))
        scene = replace(items.scene(index), image_class=names[index])
        return whole_scene(scene, rng, symmetries=range(4), least=0.8)

    return draw


def part_scene(part: SyntheticPart) -> Scene:
    """A generated part as a scene with boxes."""
    objects = tuple(SceneObject(label, *box) for label, box in part.objects)
    return Scene(image=part.image, objects=objects, reference=part.reference)


def _generated_board(rng: np.random.Generator) -> Scene:
    return board_scene(part_scene(generate_board(rng, size=416, n_defects=int(rng.integers(0, 6)))), rng)


def _generated_ground(rng: np.random.Generator) -> Scene:
    return whole_scene(part_scene(generate_ground_surface(rng)), rng, symmetries=range(8), least=0.85)


def _generated_rolled(rng: np.random.Generator) -> Scene:
    part = generate_rolled_surface(rng)
    image_class = None if part.image_label == "ok" else part.image_label
    scene = replace(part_scene(part), objects=(), image_class=image_class)
    return whole_scene(scene, rng, symmetries=range(4), least=0.85)


_PACK_SOURCES: dict[str, tuple[str, Callable[[_Items], Callable[[np.random.Generator], Scene]]]] = {
    "deeppcb": ("pcb", _deeppcb),
    "magnetic_tile": ("magnetic_tile", _magnetic_tile),
    "ball_screw": ("ball_screw", _ball_screw),
    "steel_strip_xsdd": ("steel_strip", _steel_strip),
}
_GENERATED_SOURCES: dict[str, tuple[str, Callable[[np.random.Generator], Scene]]] = {
    "generated_board": ("pcb", _generated_board),
    "generated_ground": ("magnetic_tile", _generated_ground),
    "generated_rolled": ("steel_strip", _generated_rolled),
}


def open_sources(names: Sequence[str], pack_dir: Path | None, split: str = "train") -> dict[str, Source]:
    """The named sources. Raises DatasetError when a pack set is asked for and cannot be read."""
    found: dict[str, Source] = {}
    for name in names:
        if name in _GENERATED_SOURCES:
            recipe_id, draw = _GENERATED_SOURCES[name]
        else:
            recipe_id, factory = _PACK_SOURCES[name]
            shift_px = load_recipe(recipe_id).reference_shift_px
            draw = factory(_Items(load_pack_set(pack_dir or Path("inspection-pack"), name, split), shift_px))
        recipe = load_recipe(recipe_id)
        kinds = _CLASSIFY_KINDS if recipe.task == "classify" else _INSPECT_KINDS
        found[name] = Source(name=name, recipe=recipe, draw=draw, kinds=dict(kinds))
    return found


SOURCE_NAMES = (*_PACK_SOURCES, *_GENERATED_SOURCES)
