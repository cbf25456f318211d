"""Calibration views: what the quantiser and the parity checks look at. Never from a validation or test split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from auroraedge.data.instructions import Sample, make_sample
from auroraedge.data.sources import SOURCE_NAMES, open_sources
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.inspection.views import patchify

GENERATED = tuple(name for name in SOURCE_NAMES if name.startswith("generated_"))
_ASKED = {PromptKind.INSPECT: 1.0, PromptKind.CLASSIFY: 1.0}


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """patches uint8 [n, 256, 768] and, of each view, the prompt's ids. sha256: of all of it."""

    patches: np.ndarray
    prompt_ids: tuple[tuple[int, ...], ...]
    samples: tuple[Sample, ...]
    sha256: str


def calibration_set(
    tokenizer: InspectionTokenizer, *, pack: Path | None = None, views: int = 96, seed: int = 2026
) -> CalibrationSet:
    """`views` views, evenly from the generator's parts or, with a pack, from the train splits of its sets as well."""
    names: Sequence[str] = SOURCE_NAMES if pack is not None else GENERATED
    sources = list(open_sources(names, pack, split="train").values())
    rng = np.random.default_rng(seed)
    samples = [make_sample(rng, sources[i % len(sources)], tokenizer, kinds=_ASKED) for i in range(views)]
    patches = patchify(np.stack([sample.pixels for sample in samples]))
    prompts = tuple(tuple(tokenizer.encode(sample.prompts[0].text)) for sample in samples)
    digest = hashlib.sha256(patches.tobytes())
    digest.update(repr(prompts).encode())
    return CalibrationSet(patches=patches, prompt_ids=prompts, samples=tuple(samples), sha256=digest.hexdigest())
