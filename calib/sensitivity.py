"""Which linear layers must stay in 16 bits: each is quantised alone, and the damage to the model's outputs measured.

Quantisation is imitated in torch (round and clip of input and weight), so a sweep needs no engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from auroraedge.model import AuroraEdgeForConditionalGeneration
from calib.frames import CalibrationSet
from calib.ranges import linear_layers
from calib.smoothing import round_int4


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Damage of one layer alone: noise-to-signal ratio of V and of the verdict's logits, the larger of the two."""

    layer: str
    noise: float


def _round_eight(x: torch.Tensor, largest: torch.Tensor | float) -> torch.Tensor:
    scale = torch.clamp(torch.as_tensor(largest) / 127.0, min=1e-12)
    return torch.clamp(torch.round(x / scale), -127, 127) * scale


class _Imitation:
    """Quantises one layer of a model while it is entered."""

    def __init__(self, layer: nn.Linear, precision: str, largest: float) -> None:
        self._layer, self._precision, self._largest = layer, precision, largest

    def __enter__(self) -> None:
        weight = self._layer.weight.data
        self._kept = weight.clone()
        if self._precision == "int4":
            weight.copy_(torch.from_numpy(round_int4(weight.numpy())))
            self._handle = None
            return
        weight.copy_(_round_eight(weight, weight.abs().amax(1, keepdim=True)))
        self._handle = self._layer.register_forward_pre_hook(
            lambda module, inputs: (_round_eight(inputs[0], self._largest), *inputs[1:])
        )

    def __exit__(self, *_: object) -> None:
        self._layer.weight.data.copy_(self._kept)
        if self._handle is not None:
            self._handle.remove()


@torch.no_grad()
def _outputs(model: AuroraEdgeForConditionalGeneration, frames: CalibrationSet) -> tuple[np.ndarray, np.ndarray]:
    visuals, logits = [], []
    for patches, ids in zip(frames.patches, frames.prompt_ids, strict=True):
        pixels = torch.from_numpy(patches[None]).float() / 127.5 - 1.0
        visual, compressed, mask = model.encode(pixels)
        prompt = torch.tensor([ids])
        ones = torch.ones_like(prompt)
        fused = model.fuse(prompt, ones, visual, mask)
        answer = model.language_model(**model.decoder_inputs(compressed, fused, ones), logits_to_keep=1).logits
        visuals.append(visual.numpy().ravel())
        logits.append(answer.numpy().ravel())
    return np.concatenate(visuals), np.concatenate(logits)


def _noise(found: np.ndarray, reference: np.ndarray) -> float:
    return float(((found - reference) ** 2).sum() / max(float((reference**2).sum()), 1e-30))


def sweep(
    model: AuroraEdgeForConditionalGeneration,
    frames: CalibrationSet,
    largest: Mapping[str, float],
    precisions: Mapping[str, str],
    console: Console,
    journal: Path | None = None,
) -> list[Sensitivity]:
    """Every layer that is to be quantised, the most harmful first. precisions: "int8", "fp8" or "int4" by layer.

    journal: a file of JSON lines that keeps what was found; layers that are in it are not measured again.
    FP8 is imitated as INT8, which rounds in other places; its order of layers is what is wanted here.
    """
    known = _read(journal)
    wanted = [(name, layer) for name, layer in linear_layers(model).items() if name in precisions]
    missing = [(name, layer) for name, layer in wanted if name not in known]
    reference = _outputs(model, frames) if missing else None
    for name, layer in track(missing, description="sensitivity", console=console, transient=True):
        with _Imitation(layer, precisions[name], largest[name]):
            visual, logits = _outputs(model, frames)
        assert reference is not None
        known[name] = max(_noise(visual, reference[0]), _noise(logits, reference[1]))
        if journal is not None:
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"layer": name, "noise": known[name]}) + "\n")
    found = [Sensitivity(layer=name, noise=known[name]) for name, _ in wanted]
    return sorted(found, key=lambda item: -item.noise)


def _read(journal: Path | None) -> dict[str, float]:
    """Noise by layer; the last line may have been cut off, and is then measured again."""
    if journal is None or not journal.is_file():
        return {}
    lines = [line for line in journal.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    journal.write_text("".join(lines), encoding="utf-8")
    return {item["layer"]: item["noise"] for item in map(json.loads, lines)}
