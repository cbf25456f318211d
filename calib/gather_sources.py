"""Where calibration frames come from: a folder, a video, the train splits of a pack, recorded service traffic.

A source yields candidates one by one, so that memory does not grow with it. What must not be used (another split than
train, pictures that are no longer kept, recipes that nobody knows) comes as a Refused, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from auroraedge.data.pack import ANNOTATIONS, PackItem, Truth, image_bytes, list_sets, load_pack_set
from auroraedge.errors import AuroraEdgeError, CalibrationError, StoreError
from auroraedge.inspection.recipe import Recipe, list_recipes
from calib.gathered import KnownDefect

UNKNOWN = "unknown"
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
VIDEOS = {".mp4", ".avi", ".mkv", ".mov", ".m4v", ".mjpg", ".webm"}
# Sets of the inspection pack, by the recipe that they are for. Other sets take --recipe.
SET_RECIPES = {
    "deeppcb": "pcb",
    "magnetic_tile": "magnetic_tile",
    "ball_screw": "ball_screw",
    "steel_strip_xsdd": "steel_strip",
}
TRAIN = "train"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A frame that may be taken, encoded, with its golden sample and what is known of it.

    origin: for the manifest only, never shown to a model.
    """

    origin: str
    content: bytes
    recipe: Recipe
    reference: bytes | None = None
    verdict: str = UNKNOWN
    image_class: str | None = None
    defects: tuple[KnownDefect, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Refused:
    origin: str
    reason: str


Found = Candidate | Refused


def is_pack(path: Path) -> bool:
    return path.is_dir() and any((entry / ANNOTATIONS).is_file() for entry in path.iterdir() if entry.is_dir())


def is_store(source: str) -> bool:
    if "://" in source:
        return True
    path = Path(source)
    return (path / "store.db").is_file() or (path.is_file() and path.suffix in (".db", ".sqlite"))


def redacted(source: str) -> str:
    """Without the password of a database."""
    return re.sub(r"(?<=://)([^/@:\s]+):[^/@\s]+@", r"\1:***@", source)


def open_source(source: str, recipe: Recipe | None, *, every: int = 1) -> Iterator[Found]:
    """The frames of a source; its kind is seen from what it is.

    recipe: of frames that do not say theirs (folder, video, unknown sets). every: of a video, one frame in so many.
    Raises CalibrationError for a source that is none, and AuroraEdgeError where it cannot be read.
    """
    path = Path(source)
    if is_store(source):
        return from_store(source)
    if is_pack(path):
        return from_pack(path, recipe)
    if path.is_dir():
        return from_folder(path, _needed(recipe, source))
    if path.is_file() and path.suffix.lower() in VIDEOS:
        return from_video(path, _needed(recipe, source), every=every)
    raise CalibrationError(
        f"'{redacted(source)}' is no source of calibration frames.",
        field="source",
        remedy="Name a folder of images, a video, a dataset pack, or a result store (its folder or URL).",
    )


def _needed(recipe: Recipe | None, source: str) -> Recipe:
    if recipe is None:
        raise CalibrationError(
            f"The frames of {source} do not say which recipe they are for.",
            field="recipe",
            remedy="Name it: --recipe ID with calib.gather, SOURCE,recipe=ID with --calibration.",
        )
    return recipe


# -- folders and videos ------------------------------------------------------------------------------------------------


def from_folder(folder: Path, recipe: Recipe) -> Iterator[Found]:
    """All images under a folder. Inside a set of a pack only those that its annotations give to train."""
    splits = _splits(folder)
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file()):
        origin = path.relative_to(folder).as_posix()
        if splits is not None and (split := splits.get(path.resolve(), "")) != TRAIN:
            what = f"of the {split} split" if split else "without an annotation in its set"
            yield Refused(origin=origin, reason=what)
            continue
        yield Candidate(origin=origin, content=image_bytes(path), recipe=recipe)


def _splits(folder: Path) -> dict[Path, str] | None:
    """Split by file of the set that a folder is, or lies in; None where there is none."""
    for parent in (folder.resolve(), *folder.resolve().parents):
        if (parent / ANNOTATIONS).is_file():
            items = load_pack_set(parent.parent, parent.name)
            found: dict[Path, str] = {}
            for item in items:
                found[item.path.resolve()] = item.split
                if item.reference is not None:
                    found[item.reference.resolve()] = item.split
            return found
    return None


def from_video(path: Path, recipe: Recipe, *, every: int) -> Iterator[Found]:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise CalibrationError(f"{path} cannot be opened as a video.", field="source", remedy="Convert it to MP4.")
    number = 0
    try:
        while True:
            there, bgr = capture.read()
            if not there:
                break
            if number % every == 0:
                done, png = cv2.imencode(".png", np.ascontiguousarray(bgr))
                if not done:
                    raise CalibrationError(f"Frame {number} of {path} cannot be encoded.", field="source")
                yield Candidate(origin=f"{path.name}, frame {number}", content=png.tobytes(), recipe=recipe)
            number += 1
    finally:
        capture.release()
    if number == 0:
        raise CalibrationError(f"{path} has no frames.", field="source")


# -- packs -------------------------------------------------------------------------------------------------------------


def from_pack(pack: Path, recipe: Recipe | None) -> Iterator[Found]:
    """The train split of every set, with the truth of its annotations; the other splits are refused one by one."""
    known = {found.id: found for found in list_recipes()}
    for name in list_sets(pack):
        own = known.get(SET_RECIPES.get(name, ""), recipe)
        if own is None:
            own = _needed(None, f"{pack.name}/{name}")
        for item in load_pack_set(pack, name):
            origin = f"{name}/{item.file}"
            if item.split != TRAIN:
                yield Refused(origin=origin, reason=f"of the {item.split} split")
                continue
            yield _of_item(item, own, origin)


def _of_item(item: PackItem, recipe: Recipe, origin: str) -> Candidate:
    verdict = {Truth.GOOD: "OK", Truth.PRESUMED_GOOD: "OK", Truth.DEFECTIVE: "NG"}[item.truth]
    defects = tuple(KnownDefect(label=o.label, box=o.bbox) for o in item.objects if o.label in recipe.label_names)
    only_class = recipe.task == "classify" and item.image_label in recipe.label_names
    reference = None
    if item.reference is not None and recipe.golden_reference != "none":
        reference = image_bytes(item.reference)
    return Candidate(
        origin=origin,
        content=image_bytes(item.path),
        reference=reference,
        recipe=recipe,
        verdict=verdict,
        image_class=item.image_label if only_class else None,
        defects=defects,
    )


def held_out(pack: Path) -> Iterator[PackItem]:
    """The images of a pack that must not calibrate: every split but train."""
    for name in list_sets(pack):
        yield from (item for item in load_pack_set(pack, name) if item.split != TRAIN)


# -- recorded traffic --------------------------------------------------------------------------------------------------


def from_store(address: str) -> Iterator[Found]:
    """Production frames of a result store, the newest first, with the verdict and defects after review.

    Golden parts and studies are not production; failed and simulated inspections are refused.
    """
    from auroraedge.store.store import Store

    with Store.open(address, create=False) as store:
        known = (*list_recipes(), *store.recipes())
        recipes, newest = {recipe.sha256: recipe for recipe in known}, {recipe.id: recipe for recipe in known}
        for stored in store.results(newest_first=True):
            result, origin = stored.result, f"result {stored.result.result_id}"
            recipe = recipes.get(result.recipe_sha256) or _stored_recipe(store, result.recipe_id, result.recipe_version)
            if recipe is None or recipe.sha256 != result.recipe_sha256:
                # Thresholds and labels change with time; what calibrates is the recipe that will be used from now on.
                recipe = newest.get(result.recipe_id)
            reason = ""
            if result.error is not None or result.is_partial:
                reason = "of a failed inspection"
            elif result.is_simulated:
                reason = "simulated"
            elif recipe is None:
                reason = "of a recipe that is not here"
            content = None if reason else store.image(stored.image_sha256 or "")
            if not reason and content is None:
                reason = "without a picture"
            golden = None
            if not reason and result.reference_used:
                golden = store.image(stored.reference_sha256 or "")
                reason = "" if golden is not None else "without its golden sample"
            if reason or content is None or recipe is None:
                yield Refused(origin=origin, reason=reason)
                continue
            yield Candidate(
                origin=origin,
                content=content,
                reference=golden,
                recipe=recipe,
                verdict=stored.effective_verdict.value,
                image_class=result.predicted_class if recipe.task == "classify" else None,
                defects=tuple(
                    KnownDefect(label=d.label, box=(d.box.x1, d.box.y1, d.box.x2, d.box.y2))
                    for d in stored.effective_defects
                    if d.box is not None and d.label in recipe.label_names
                ),
            )


def _stored_recipe(store: object, recipe_id: str, version: int) -> Recipe | None:
    try:
        found: Recipe = store.recipe(recipe_id, version)  # type: ignore[attr-defined]
    except StoreError:
        raise
    except AuroraEdgeError:
        return None
    return found
