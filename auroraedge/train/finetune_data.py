"""From annotated parts to training views: the recipe that frames them, augmented scenes, and views as at inference.

How a scene is framed in training is how the recipe's tiling frames it at inference (inspection.views).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from auroraedge.config import IMAGE_SIZE
from auroraedge.data.augment import Scene, SceneObject, adjust_tone, crop_scene, dihedral, shift_reference
from auroraedge.data.instructions import Sample, Source, Target
from auroraedge.data.pack import PackItem, Truth
from auroraedge.data.sources import _CLASSIFY_KINDS, _INSPECT_KINDS, _class_weights, _Items, _random_square, _to_rgb
from auroraedge.data.sources import whole_scene as nearly_whole
from auroraedge.errors import RecipeError
from auroraedge.inspection.prompts import PromptKind, build_prompt
from auroraedge.inspection.recipe import LabelSpec, Recipe, Tiling
from auroraedge.inspection.views import View, plan_views, render_view

# A defect's short side should have so many pixels in a view (docs/recipes.md).
_LEAST_DEFECT_PX = 8.0
_LONGEST_SHAPE = 2.0  # a frame longer than twice its width is cut into squares


def recipe_id(name: str) -> str:
    """A recipe id from a folder's name."""
    cleaned = re.sub(r"[^a-z0-9_.-]+", "_", name.lower()).strip("_.-")[:64]
    return cleaned or "my_part"


def draft_recipe(name: str, items: Sequence[PackItem], labels: Sequence[str], task: str) -> Recipe:
    """A recipe for a dataset: labels, golden reference as the images have one, and a tiling that suits its defects.

    Frames are seen whole where the smaller defects (10 % quantile of the short sides) keep 8 pixels in a 256-pixel view
    and the frame is not more than twice as long as wide; else in squares of the side at which they do, at least 256.
    """
    referenced = sum(item.reference is not None for item in items)
    golden = "required" if referenced == len(items) else "optional" if referenced else "none"
    return Recipe(
        id=recipe_id(name),
        title=name,
        task="classify" if task == "classify" else "inspect",
        labels=tuple(LabelSpec(name=label) for label in labels),
        golden_reference=golden,
        tiling=_tiling(items) if task == "inspect" else Tiling(mode="whole"),
    )


def _tiling(items: Sequence[PackItem]) -> Tiling:
    sides = np.array([[min(i.width, i.height), max(i.width, i.height)] for i in items], dtype=float)
    short, long = np.median(sides, axis=0)
    boxes = [
        (min(x2 - x1, y2 - y1), max(x2 - x1, y2 - y1)) for i in items for x1, y1, x2, y2 in (o.bbox for o in i.objects)
    ]
    small = float(np.quantile([b[0] for b in boxes], 0.1)) if boxes else short
    large = float(np.quantile([b[1] for b in boxes], 0.75)) if boxes else 0.0
    # Side of a square at which the smaller defects are still seen, in pixels of the frame.
    side = max(float(IMAGE_SIZE), small * IMAGE_SIZE / _LEAST_DEFECT_PX)
    if long <= side and long / short <= _LONGEST_SHAPE:
        return Tiling(mode="whole", mirrored=True)
    if side >= short:
        # The short side suits: no size, so that frames of another size are cut in proportion.
        overlap = int(min(max(large, short * 0.1), short / 4))
        return Tiling(mode="square", overlap_px=overlap, max_views=64)
    size = int(min(side, short))
    overlap = int(min(max(large, size * 0.1), size / 2))
    return Tiling(mode="square", size_px=size, overlap_px=overlap, max_views=256)


def revised(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with other values, checked as a whole; model_copy checks none. Raises pydantic's ValidationError."""
    return Recipe.model_validate({**recipe.model_dump(), **changes})


def with_labels(recipe: Recipe, labels: Sequence[str]) -> Recipe:
    """The user's recipe with the dataset's labels that it lacks. Raises RecipeError beyond 64."""
    new = [label for label in labels if label not in recipe.label_names]
    if len(recipe.labels) + len(new) > 64:
        raise RecipeError("The recipe and the dataset have more than 64 labels together.", field="labels")
    return revised(recipe, labels=(*recipe.labels, *(LabelSpec(name=label) for label in new)))


def trainable(items: Sequence[PackItem], task: str) -> list[PackItem]:
    """What is trained on: with boxes, no defective part without one (its truth is unknown everywhere)."""
    if task == "classify":
        return list(items)
    return [item for item in items if item.objects or item.truth is not Truth.DEFECTIVE]


def _paste(scene: Scene, donor: Scene, rng: np.random.Generator) -> Scene:
    """A good scene with a defect of another part, turned, scaled and blended in with a soft border."""
    item = donor.objects[int(rng.integers(len(donor.objects)))]
    margin = max(2.0, 0.25 * max(item.x2 - item.x1, item.y2 - item.y1))
    height, width = donor.image.shape[:2]
    x, y = int(max(item.x1 - margin, 0)), int(max(item.y1 - margin, 0))
    w, h = int(min(item.x2 + margin, width)) - x, int(min(item.y2 + margin, height)) - y
    patch, _ = crop_scene(replace(donor, objects=(item,), reference=None), x, y, w, h)
    patch = dihedral(patch, int(rng.integers(8)))
    image = scene.image.copy()
    scale = float(rng.uniform(0.7, 1.4))
    ph, pw = (max(4, round(side * scale)) for side in patch.image.shape[:2])
    if ph >= image.shape[0] or pw >= image.shape[1] or not patch.objects:
        return scene
    source = cv2.resize(np.ascontiguousarray(patch.image), (pw, ph), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    px, py = int(rng.integers(0, image.shape[1] - pw)), int(rng.integers(0, image.shape[0] - ph))
    window = image[py : py + ph, px : px + pw].astype(np.float32)
    factor_y, factor_x = ph / patch.image.shape[0], pw / patch.image.shape[1]
    box = patch.objects[0]
    x1, y1, x2, y2 = box.x1 * factor_x, box.y1 * factor_y, box.x2 * factor_x, box.y2 * factor_y
    # Its surroundings take the tone of the place: the border of the patch is what the good part has there.
    inside = np.zeros((ph, pw), dtype=np.float32)
    inside[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = 1.0
    around = inside == 0
    if around.any():
        source += np.median(window[around], axis=0) - np.median(source[around], axis=0)
    soft = cv2.GaussianBlur(inside, (0, 0), max(1.0, margin * scale / 3))
    soft = np.maximum(soft, inside) if rng.random() < 0.5 else soft / max(float(soft.max()), 1e-6)
    blended = source * soft[..., None] + window * (1 - soft[..., None])
    image[py : py + ph, px : px + pw] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
    return replace(scene, image=image, objects=(SceneObject(box.label, px + x1, py + y1, px + x2, py + y2),))


class PartScenes:
    """Draws augmented scenes, half of them good and half defective parts; rare kinds more often than they occur."""

    def __init__(self, items: Sequence[PackItem], recipe: Recipe, *, paste: float) -> None:
        self._items = _Items(items, recipe.reference_shift_px)
        self._recipe = recipe
        self._paste = paste if recipe.task == "inspect" and recipe.golden_reference == "none" else 0.0
        names = [self._name(item) for item in items]
        good = np.array([name == "" for name in names])
        bad = np.where(good, 0.0, _class_weights(names, 0.5))
        self._good, self._bad = np.flatnonzero(good), np.flatnonzero(~good)
        parts = [p / p.sum() for p in (bad, good.astype(float)) if p.sum() > 0]
        self._weights = np.mean(parts, axis=0)

    @staticmethod
    def _name(item: PackItem) -> str:
        """The kind by which an image is drawn: its first label; '' for good parts."""
        if item.objects:
            return item.objects[0].label
        return "" if item.truth is not Truth.DEFECTIVE else item.image_label

    def draw(self, rng: np.random.Generator) -> Scene:
        """One scene, uint8 RGB, framed as the recipe frames it."""
        index = int(rng.choice(len(self._items), p=self._weights))
        scene = _to_rgb(self._items.scene(index))
        if self._recipe.task == "classify":
            scene = replace(scene, image_class=self._name(self._items.items[index]) or None)
        elif len(self._bad) and not scene.objects and rng.random() < self._paste:
            scene = _paste(scene, _to_rgb(self._items.scene(int(rng.choice(self._bad)))), rng)
        elif self._recipe.golden_reference != "none" and scene.reference is not None and rng.random() < 0.2:
            scene = replace(scene, image=scene.reference, objects=())  # the golden sample is a good part
        return self._framed(scene, rng)

    def _framed(self, scene: Scene, rng: np.random.Generator) -> Scene:
        tiling = self._recipe.tiling
        if tiling.mode == "whole":
            return nearly_whole(scene, rng, symmetries=range(8), least=0.85)
        side = tiling.size_px or min(scene.image.shape[:2])
        crop = _random_square(scene, rng, int(side * rng.uniform(0.8, 1.0)), focus=0.6)
        crop = dihedral(crop, int(rng.integers(8)))
        if rng.random() < 0.2:
            crop = shift_reference(crop, rng)
        return adjust_tone(crop, rng, gain=0.2, offset=16, blur=0.8)


def training_source(items: Sequence[PackItem], recipe: Recipe, *, paste: float) -> Source:
    """The source of a dataset, as the trainer's sources are."""
    scenes = PartScenes(trainable(items, recipe.task), recipe, paste=paste)
    kinds = _CLASSIFY_KINDS if recipe.task == "classify" else _INSPECT_KINDS
    draw: Callable[[np.random.Generator], Scene] = scenes.draw
    return Source(name=recipe.id, recipe=recipe, draw=draw, kinds=dict(kinds))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One item of val as inference sees it: its views, rendered, and one sample a view for the losses."""

    item: PackItem
    views: tuple[View, ...]
    samples: tuple[Sample, ...]


def held_out_views(items: Sequence[PackItem], recipe: Recipe) -> list[HeldOut]:
    """The val items with the prompt that inference asks. samples hold pixels and the truth of the view."""
    cache = _Items(items, recipe.reference_shift_px)
    found = []
    for index, item in enumerate(items):
        scene = _to_rgb(cache.scene(index))
        views = plan_views(item.width, item.height, recipe.tiling)
        reference = scene.reference if recipe.golden_reference != "none" else None
        kind = PromptKind.CLASSIFY if recipe.task == "classify" else PromptKind.INSPECT
        prompt = build_prompt(kind, recipe.label_names, reference=reference is not None)
        samples = []
        for view in views:
            crop, _ = crop_scene(scene, view.x, view.y, view.w, view.h)
            targets = tuple(
                Target(label=o.label, box=(o.x1 / view.w, o.y1 / view.h, o.x2 / view.w, o.y2 / view.h))
                for o in crop.objects
            )
            samples.append(
                Sample(
                    pixels=render_view(scene.image, view, reference),
                    prompts=(prompt,),
                    answers=(),
                    targets=targets,
                    labels=recipe.label_names,
                    image_class=item.image_label
                    if recipe.task == "classify" and item.truth is Truth.DEFECTIVE
                    else None,
                    defective=item.truth is Truth.DEFECTIVE,
                    source=recipe.id,
                )
            )
        found.append(HeldOut(item=item, views=tuple(views), samples=tuple(samples)))
    return found
