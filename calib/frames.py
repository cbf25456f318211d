"""Calibration views: what the quantiser and the parity checks look at. Never from a validation or test split.

They come from the generator's parts; from the train splits of a pack, drawn as in training; from a gathered set
(calib.gather); or from a folder, a video or a result store, which is gathered on the way.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from auroraedge.data.instructions import Sample, make_sample
from auroraedge.data.sources import SOURCE_NAMES, open_sources
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.inspection.views import patchify
from calib.gather import gather
from calib.gather_sources import is_pack, redacted
from calib.gathered import GatheredManifest, gathered_samples, is_gathered

GENERATED = tuple(name for name in SOURCE_NAMES if name.startswith("generated_"))
_ASKED = {PromptKind.INSPECT: 1.0, PromptKind.CLASSIFY: 1.0}


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """patches uint8 [n, 256, 768] and, of each view, the prompt's ids. sha256: of all of it. name: where it is from."""

    patches: np.ndarray
    prompt_ids: tuple[tuple[int, ...], ...]
    samples: tuple[Sample, ...]
    sha256: str
    name: str = ""


def calibration_set(
    tokenizer: InspectionTokenizer, *, pack: str | Path | None = None, views: int = 96, seed: int = 2026
) -> CalibrationSet:
    """`views` views, evenly from the generator's parts or, with a pack, from the train splits of its sets as well.

    pack: also a gathered set, a folder of images, a video, or a result store (folder or URL), whose views are then the
    only ones; `SOURCE,recipe=ID` names the recipe of frames that do not say theirs. Raises CalibrationError.
    """
    source, _, recipe_id = str(pack or "").partition(",recipe=")
    if source and not is_pack(Path(source)):
        samples, name = _gathered(source, recipe_id, tokenizer, views=views, seed=seed)
        return _set_of(samples, tokenizer, name)
    names: Sequence[str] = SOURCE_NAMES if source else GENERATED
    sources = list(open_sources(names, Path(source) if source else None, split="train").values())
    rng = np.random.default_rng(seed)
    drawn = [make_sample(rng, sources[i % len(sources)], tokenizer, kinds=_ASKED) for i in range(views)]
    name = f"generated parts and the train splits of {Path(source).name}" if source else "generated parts"
    return _set_of(drawn, tokenizer, name)


def _set_of(samples: Sequence[Sample], tokenizer: InspectionTokenizer, name: str) -> CalibrationSet:
    patches = patchify(np.stack([sample.pixels for sample in samples]))
    prompts = tuple(tuple(tokenizer.encode(sample.prompts[0].text)) for sample in samples)
    digest = hashlib.sha256(patches.tobytes())
    digest.update(repr(prompts).encode())
    return CalibrationSet(
        patches=patches, prompt_ids=prompts, samples=tuple(samples), sha256=digest.hexdigest(), name=name
    )


def _gathered(
    source: str, recipe_id: str, tokenizer: InspectionTokenizer, *, views: int, seed: int
) -> tuple[list[Sample], str]:
    """Views of a gathered set, or of a source that is gathered into a folder of the moment."""
    if is_gathered(Path(source)):
        samples, manifest = gathered_samples(Path(source), tokenizer, views=views, seed=seed)
        return samples, _named(Path(source).name, manifest)
    recipe = load_recipe(recipe_id) if recipe_id else None
    with tempfile.TemporaryDirectory(prefix="auroraedge-calibration-") as folder:
        gather([source], Path(folder) / "set", recipe=recipe, most=max(views, 1), seed=seed)
        samples, manifest = gathered_samples(Path(folder) / "set", tokenizer, views=views, seed=seed)
    return samples, _named(redacted(source) if "://" in source else Path(source).name, manifest)


def _named(name: str, manifest: GatheredManifest) -> str:
    strata = ", ".join(f"{stratum} {count}" for stratum, count in manifest.taken.items())
    return f"{name}, {len(manifest.frames)} gathered frames ({strata}), set {manifest.sha256[:16]}"
