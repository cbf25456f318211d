"""A gathered set on disk: frames with recipe and verdict, and what was left out. Written by calib.gather.

SET/gathered.json       which frames, from where, by recipe and verdict; what was left out and why; one hash of all
SET/frames/HASH.png     the frames and golden samples, named by their content
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from auroraedge.data.instructions import PART_NAMES, Sample, Target, answer_ids
from auroraedge.errors import AuroraEdgeError, CalibrationError
from auroraedge.inspection.images import ImageLimits
from auroraedge.inspection.prompts import Prompt, PromptKind, build_prompt
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.inspection.views import View
from auroraedge.runtime.frames import LoadedFrame

FILE = "gathered.json"
FRAMES = "frames"
# One prompt in so many asks something else than the recipe's own question.
_OTHER_EVERY = 4
_OTHERS = (PromptKind.EXISTS, PromptKind.LOCATE, PromptKind.COUNT, PromptKind.DESCRIBE)
# Of a defect, this much must lie on a view for its answer to name it.
_LEAST_SEEN = 0.3


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KnownDefect(_Model):
    """box: x1, y1, x2, y2 in pixels of the frame."""

    label: str
    box: tuple[float, float, float, float]


class GatheredFrame(_Model):
    """verdict: OK, NG, REVIEW, or unknown where nobody and no engine has said. likeness: perceptual hash."""

    file: str
    sha256: str
    pixels_sha256: str
    likeness: str
    reference: str | None = None
    reference_sha256: str | None = None
    width: int
    height: int
    recipe_sha256: str
    recipe_id: str
    verdict: str
    image_class: str | None = None
    defects: tuple[KnownDefect, ...] = ()
    origin: str

    @property
    def stratum(self) -> str:
        return f"{self.recipe_id} {self.verdict}"


class LeftOut(_Model):
    """A frame that is not in the set. like: the one that it equals or resembles."""

    origin: str
    reason: str
    like: str = ""


class GatheredManifest(_Model):
    """seen: frames by stratum (recipe and verdict) before any was left out. recipes: by hash.

    sha256: of the frames with what is known of them; the order in which they were found does not change it.
    """

    schema_version: int = 1
    created_at: AwareDatetime
    sources: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    seed: int
    distance: int
    most: int
    seen: dict[str, int]
    frames: tuple[GatheredFrame, ...] = Field(min_length=1)
    left_out: tuple[LeftOut, ...] = ()
    recipes: dict[str, Recipe]
    sha256: str

    @property
    def taken(self) -> dict[str, int]:
        return dict(sorted(Counter(frame.stratum for frame in self.frames).items()))


def hash_of(frames: tuple[GatheredFrame, ...]) -> str:
    lines = sorted(
        json.dumps(frame.model_dump(mode="json", exclude={"origin", "file", "sha256", "reference"}), sort_keys=True)
        for frame in frames
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def is_gathered(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read_manifest(folder: Path) -> GatheredManifest:
    """Raises CalibrationError when it is absent, not valid, or not the list that was written."""
    try:
        manifest = GatheredManifest.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise CalibrationError(f"{folder / FILE} cannot be used: {error}.", field="calibration") from error
    if manifest.sha256 != hash_of(manifest.frames):
        raise CalibrationError(
            f"{folder / FILE} was changed: its hash is another one.", field="calibration", remedy="Gather it again."
        )
    return manifest


def gathered_samples(
    folder: Path, tokenizer: InspectionTokenizer, *, views: int, seed: int
) -> tuple[list[Sample], GatheredManifest]:
    """`views` views of the set, every stratum in turn, as its recipe cuts them, each with a prompt of the recipe.

    A frame gives its view with the most defects first, and others when its turn comes again. The answers are what is
    known of the frame. Raises CalibrationError for a damaged set.
    """
    manifest = read_manifest(folder)
    strata: dict[str, list[GatheredFrame]] = {}
    for frame in manifest.frames:
        strata.setdefault(frame.stratum, []).append(frame)
    rng = np.random.default_rng(seed)
    turns: Counter[str] = Counter()
    samples: list[Sample] = []
    order = [strata[name] for name in sorted(strata)]
    while len(samples) < views:
        members = order[len(samples) % len(order)]
        key = members[0].stratum
        frame = members[turns[key] % len(members)]
        again = turns[key] // len(members)
        turns[key] += 1
        recipe = manifest.recipes[frame.recipe_sha256]
        other = len(samples) % _OTHER_EVERY == _OTHER_EVERY - 1
        samples.append(_sample(folder, frame, recipe, tokenizer, rng, again=again, other=other))
    return samples, manifest


def _read(folder: Path, name: str, sha256: str) -> bytes:
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise CalibrationError(f"The frame {name} cannot be read: {error.strerror}.", field="calibration") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CalibrationError(f"The frame {name} was changed.", field="calibration", remedy="Gather the set again.")
    return content


def _sample(
    folder: Path,
    frame: GatheredFrame,
    recipe: Recipe,
    tokenizer: InspectionTokenizer,
    rng: np.random.Generator,
    *,
    again: int,
    other: bool,
) -> Sample:
    golden = None
    if frame.reference is not None and frame.reference_sha256 is not None:
        golden = _read(folder, frame.reference, frame.reference_sha256)
    plain = recipe.model_copy(update={"tiling": recipe.tiling.model_copy(update={"mirrored": False})})
    try:
        loaded = LoadedFrame(_read(folder, frame.file, frame.sha256), golden, ImageLimits())
        cut = loaded.views(plain)
    except CalibrationError:
        raise
    except AuroraEdgeError as error:
        raise CalibrationError(f"The frame {frame.file} cannot be used: {error}", field="calibration") from error
    seen = [_targets(frame, view) for view in cut.plan]
    ranked = sorted(range(len(seen)), key=lambda index: (-len(seen[index]), rng.random()))
    chosen = ranked[again % len(ranked)]
    targets = seen[chosen]
    prompt = _prompt(recipe, targets, rng, other=other, reference=cut.reference_used)
    defective = bool(targets) or frame.image_class is not None
    known = frame.verdict in ("OK", "NG") or bool(frame.defects) or frame.image_class is not None
    answer: tuple[int, ...] = (tokenizer.eos_id,)  # unknown: the prompt alone is looked at
    if known:
        found = ", ".join(target.label for target in targets) or frame.image_class or "no defects"
        describe = f"{PART_NAMES.get(recipe.id, 'part')}: {found}"
        answer = answer_ids(
            tokenizer, prompt, targets, image_class=frame.image_class, describe=describe, defective=defective
        )
    return Sample(
        pixels=_pixels(cut.patches[chosen]),
        prompts=(prompt,),
        answers=(answer,),
        targets=tuple(targets),
        labels=recipe.label_names,
        image_class=frame.image_class,
        defective=defective,
        source=frame.stratum,
    )


def _pixels(patches: np.ndarray) -> np.ndarray:
    """The view uint8 [256, 256, 3] of its patches [256, 768]; undoes inspection.views.patchify."""
    grid = round(len(patches) ** 0.5)
    side = round((patches.shape[1] // 3) ** 0.5)
    split = patches.reshape(grid, grid, side, side, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(split.reshape(grid * side, grid * side, 3))


def _targets(frame: GatheredFrame, view: View) -> list[Target]:
    """The frame's defects as far as they lie on a view, in 0..1 of it."""
    found = []
    for defect in frame.defects:
        x1, y1, x2, y2 = defect.box
        left, top = max(x1, view.x), max(y1, view.y)
        right, bottom = min(x2, view.x + view.w), min(y2, view.y + view.h)
        area = max(0.0, right - left) * max(0.0, bottom - top)
        if area <= _LEAST_SEEN * (x2 - x1) * (y2 - y1):
            continue
        box = ((left - view.x) / view.w, (top - view.y) / view.h, (right - view.x) / view.w, (bottom - view.y) / view.h)
        found.append(Target(label=defect.label, box=box))
    return found


def _prompt(recipe: Recipe, targets: list[Target], rng: np.random.Generator, *, other: bool, reference: bool) -> Prompt:
    labels = list(recipe.label_names)
    present = sorted({target.label for target in targets} & set(labels))
    target = str(rng.choice(present or labels))
    if not other:
        kind = PromptKind.CLASSIFY if recipe.task == "classify" else PromptKind.INSPECT
    elif recipe.task == "classify":
        kind = PromptKind.EXISTS
    else:
        kind = _OTHERS[int(rng.integers(len(_OTHERS)))]
    return build_prompt(kind, labels, target, reference=reference)


def summary(manifest: GatheredManifest) -> dict[str, Any]:
    """What a report says of a set."""
    reasons = Counter(item.reason for item in manifest.left_out)
    return {
        "frames": len(manifest.frames),
        "by recipe and verdict": manifest.taken,
        "left out": dict(sorted(reasons.items())),
        "sources": list(manifest.sources),
        "sha256": manifest.sha256,
    }
