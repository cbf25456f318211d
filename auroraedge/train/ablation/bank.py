"""A fixed bank of views with what the shipped encoder sees in them: a training step costs connectors and decoder alone.

The encoder and projector of the shipped engine (INT8) are run once a view; their visual tokens are kept as float16 in a
memory-mapped file. A bank is a pure function of the pack, the plan and the engine, and is keyed by their hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from auroraedge.data.augment import Scene, SceneObject, crop_scene
from auroraedge.data.pack import PackItem, load_image, load_pack_set
from auroraedge.errors import TrainingError
from auroraedge.inspection.alignment import align_reference
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.inspection.views import composite, patchify, plan_views, resize_view

if TYPE_CHECKING:
    from auroraedge.runtime.engine import EnginePackage

RECIPES = {
    "deeppcb": "pcb",
    "magnetic_tile": "magnetic_tile",
    "ball_screw": "ball_screw",
    "steel_strip_xsdd": "steel_strip",
}
# Images of each set and split. Of a board: its four tiles and the whole board as one view.
PLAN: dict[str, dict[str, int]] = {
    "train": {"deeppcb": 240, "magnetic_tile": 250, "ball_screw": 60, "steel_strip_xsdd": 200},
    "val": {"deeppcb": 28, "magnetic_tile": 80, "ball_screw": 16, "steel_strip_xsdd": 50},
    "test": {"deeppcb": 44, "magnetic_tile": 110, "ball_screw": 30, "steel_strip_xsdd": 60},
}
THUMB = 64
_SEED = 20
_CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One view: where it is from and what is on it. Boxes in 0..1 of the view.

    part: number of the image in its split; frame: number of the tile, or -1 for the whole image as one view.
    clear: no box is cut so that it is neither there nor not there. side_px: of the view in the source.
    """

    set_name: str
    group: str
    part: int
    frame: int
    clear: bool
    boxes: tuple[tuple[str, float, float, float, float], ...]
    image_class: str | None
    origin: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Bank:
    """n views: visual tokens [n, 256, E] float16 (mapped), small pictures [n, 64, 64, 3] uint8 (mapped), records.

    mean, deviation [E] float32 of the channels: of the training views, for all splits.
    """

    features: np.ndarray
    thumbs: np.ndarray
    seen: tuple[Seen, ...]
    key: str
    mean: np.ndarray
    deviation: np.ndarray


def _choose(items: Sequence[PackItem], set_name: str, count: int, rng: np.random.Generator) -> list[PackItem]:
    """`count` images: of tiles half good and half defective while they last, of spindles those with known truth."""
    items = [item for item in items if item.image_label != "ok_presumed"]
    order = [items[i] for i in rng.permutation(len(items))]
    if set_name != "magnetic_tile" or count >= len(order):
        return order[:count]
    bad = [item for item in order if item.image_label != "ok"][: count // 2]
    return bad + [item for item in order if item.image_label == "ok"][: count - len(bad)]


def _scene(item: PackItem, recipe: Recipe) -> Scene:
    image = load_image(item.path)
    golden = None if item.reference is None else load_image(item.reference)
    if golden is not None and recipe.reference_shift_px:
        golden = align_reference(image, golden, recipe.reference_shift_px)
    objects = tuple(SceneObject(o.label, *o.bbox) for o in item.objects)
    if item.set_name == "magnetic_tile" and item.image_label != "ok" and not objects:
        objects = (SceneObject(item.image_label, 0, 0, item.width, item.height),)  # an empty mask: all of it
    image_class = item.image_label if recipe.task == "classify" else None
    return Scene(image=image, objects=objects, reference=golden, image_class=image_class)


def _view(
    scene: Scene, item: PackItem, part: int, frame: int, window: tuple[int, int, int, int]
) -> tuple[Seen, np.ndarray]:
    x, y, w, h = window
    crop, clear = crop_scene(scene, x, y, w, h)
    pixels = crop.image if crop.reference is None else composite(crop.image, crop.reference)
    height, width = scene.image.shape[:2]
    seen = Seen(
        set_name=item.set_name,
        group=item.group,
        part=part,
        frame=frame,
        clear=clear,
        boxes=tuple((o.label, o.x1 / w, o.y1 / h, o.x2 / w, o.y2 / h) for o in crop.objects),
        image_class=scene.image_class,
        origin=(x / width, y / height, w / width, h / height),
    )
    return seen, resize_view(np.ascontiguousarray(pixels))


def draw_views(items: Sequence[PackItem], recipe: Recipe, first_part: int) -> list[tuple[Seen, np.ndarray]]:
    """The views of each image as the recipe tiles it, and of an image of several views the whole as one more."""
    found = []
    for part, item in enumerate(items, start=first_part):
        scene = _scene(item, recipe)
        height, width = scene.image.shape[:2]
        planned = plan_views(width, height, recipe.tiling)
        for frame, view in enumerate(planned):
            found.append(_view(scene, item, part, frame, (view.x, view.y, view.w, view.h)))
        if len(planned) == 4:
            found.append(_view(scene, item, part, -1, (0, 0, width, height)))
    return found


def bank_key(engine_sha: str, plan: dict[str, int], split: str) -> str:
    content = {"engine": engine_sha, "plan": plan, "split": split, "seed": _SEED, "version": 1}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def build_bank(
    pack: Path, out: Path, split: str, engine: EnginePackage, console: Console, plan: dict[str, int] | None = None
) -> Path:
    """Encodes the views of a split into out/bank/SPLIT, unless they are there already. Raises DatasetError."""
    plan = PLAN[split] if plan is None else plan
    key = bank_key(engine.info.weights_sha256, plan, split)
    folder = out / "bank" / split
    if (folder / "bank.json").is_file() and json.loads((folder / "bank.json").read_text())["key"] == key:
        return folder
    cv2.setNumThreads(1)
    fresh = folder.with_suffix(f".{key}")
    fresh.mkdir(parents=True, exist_ok=True)
    records: list[Seen] = []
    views: list[np.ndarray] = []
    part = 0
    for number, (name, count) in enumerate(plan.items()):
        rng = np.random.default_rng([_SEED, number])
        items = _choose(load_pack_set(pack, name, split), name, count, rng)
        recipe = load_recipe(RECIPES[name])
        for item in track(items, description=f"{split} {name}", console=console):
            for seen, pixels in draw_views([item], recipe, part):
                records.append(seen)
                views.append(pixels)
            part += 1
    _encode(views, fresh, engine, console, split)
    thumbs = np.stack([cv2.resize(v, (THUMB, THUMB), interpolation=cv2.INTER_AREA) for v in views])
    np.save(fresh / "thumbs.npy", thumbs)
    lines = [json.dumps(asdict(seen)) for seen in records]
    (fresh / "views.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    about: dict[str, Any] = {"key": key, "split": split, "plan": plan, "views": len(records)}
    about |= {"encoder": engine.info.model_id, "weights_sha256": engine.info.weights_sha256}
    (fresh / "bank.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
    return folder


def _encode(views: Sequence[np.ndarray], folder: Path, engine: EnginePackage, console: Console, split: str) -> None:
    """Fills features.npy in chunks and goes on after the last complete one."""
    file, done_file = folder / "features.npy", folder / "encoded"
    done = int(done_file.read_text()) if done_file.is_file() else 0
    features = np.load(file, mmap_mode="r+") if done else None
    for first in track(range(done, len(views), _CHUNK), description=f"{split}: encoding", console=console):
        visual = engine.encode(patchify(np.stack(views[first : first + _CHUNK]))).visual
        if features is None:
            shape = (len(views), *visual.shape[1:])
            features = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
        features[first : first + len(visual)] = visual
        features.flush()  # type: ignore[attr-defined]
        done_file.write_text(str(first + len(visual)), encoding="utf-8")


def _channels(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation [E] over every eighth training view."""
    sample = np.load(folder / "features.npy", mmap_mode="r")[::8].astype(np.float32).reshape(-1, 256)
    return sample.mean(0), sample.std(0) + 1e-6


def load_bank(folder: Path) -> Bank:
    """The bank of a split; its sibling 'train' gives the channels' scale. Raises TrainingError where there is none."""
    for needed in (folder, folder.with_name("train")):
        if not (needed / "bank.json").is_file():
            raise TrainingError(f"There is no bank {needed}.", field="out", remedy="Give --pack, to build it.")
    seen = []
    for line in (folder / "views.jsonl").read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        boxes = tuple((str(b[0]), *map(float, b[1:])) for b in content["boxes"])
        seen.append(Seen(**{**content, "boxes": boxes, "origin": tuple(content["origin"])}))
    mean, deviation = _channels(folder.with_name("train"))
    return Bank(
        mean=mean,
        deviation=deviation,
        features=np.load(folder / "features.npy", mmap_mode="r"),
        thumbs=np.load(folder / "thumbs.npy", mmap_mode="r"),
        seen=tuple(seen),
        key=json.loads((folder / "bank.json").read_text(encoding="utf-8"))["key"],
    )


@dataclass(frozen=True, kw_only=True)
class Example:
    """What one row of a batch is about: the views read (several frames of a part), labels asked, and the truth.

    whole: a board with all its tiles, not a single view.
    """

    views: tuple[int, ...]
    set_name: str
    group: str
    labels: tuple[str, ...]
    boxes: tuple[tuple[str, float, float, float, float], ...]
    image_class: str | None
    whole: bool = False

    def there(self) -> set[str]:
        return {box[0] for box in self.boxes} | ({self.image_class} if self.image_class else set())


def single_view_examples(bank: Bank) -> list[Example]:
    """Every unambiguous view by itself; whole boards are left to the experiment on frames."""
    labels = {name: load_recipe(recipe).label_names for name, recipe in RECIPES.items()}
    return [
        Example(
            views=(i,),
            set_name=seen.set_name,
            group=seen.group,
            labels=labels[seen.set_name],
            boxes=seen.boxes,
            image_class=seen.image_class,
        )
        for i, seen in enumerate(bank.seen)
        if seen.clear and seen.frame >= 0
    ]


def part_examples(bank: Bank, frames: int) -> list[Example]:
    """Boards: four tiles of one part as frames (frames = 4), or the whole board as one view (frames = 1).

    Questions and boxes are those of the whole board in both.
    """
    labels = load_recipe(RECIPES["deeppcb"]).label_names
    boards: dict[int, dict[int, int]] = {}
    for i, seen in enumerate(bank.seen):
        if seen.set_name == "deeppcb":
            boards.setdefault(seen.part, {})[seen.frame] = i
    found = []
    for frame_of in boards.values():
        whole = bank.seen[frame_of[-1]]
        views = (frame_of[-1],) if frames == 1 else tuple(frame_of[k] for k in range(frames))
        example = Example(
            views=views,
            set_name="deeppcb",
            group=whole.group,
            labels=labels,
            boxes=whole.boxes,
            image_class=None,
            whole=True,
        )
        found.append(example)
    return found


def largest_side(example: Example, label: str) -> float:
    """sqrt(area) of the largest defect of a label in patches of the view (16 to a side); 0 without any."""
    areas = [(b[3] - b[1]) * (b[4] - b[2]) for b in example.boxes if b[0] == label]
    return 16 * max(areas, default=0.0) ** 0.5
