"""Moves the difficulty of quantisation from activations to weights, or to where rounding hurts least. Nothing else
changes: what a channel of an activation is divided by, the weights that read it are multiplied by.

  smooth_quant   G. Xiao et al., "SmoothQuant", arXiv 2211.10438: for W8A8, s = max|x|^a / max|W|^(1 - a) by channel
  awq            J. Lin et al., "AWQ", arXiv 2306.00978: for 4-bit weights, s = rms(x)^a, a searched by layer

Where an activation comes out of a norm, its division is folded into the norm's weight; before `down_proj` into the rows
of `up_proj`. Other inputs are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from calib.ranges import LayerRange

INT4_BLOCK = 128
_ALPHAS = tuple(i / 10 for i in range(11))
State = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """`readers` alone read the output of `source`. rows: the rows of its weight scale with the channel (no norm)."""

    source: str
    readers: tuple[str, ...]
    rows: bool = False


def folds(names: Iterable[str]) -> list[Fold]:
    """All places of a model's state where a scale can be folded, from the names of its weights."""
    found = []
    present = set(names)
    for name in sorted(present):
        if match := re.fullmatch(r"(.*layers\.\d+)\.(input_layernorm|layer_norm1)\.weight", name):
            root = match[1]
            readers = tuple(f"{root}.self_attn.{part}_proj" for part in "qkv")
            found.append(Fold(source=f"{root}.{match[2]}", readers=readers))
        elif match := re.fullmatch(r"(.*layers\.\d+)\.post_attention_layernorm\.weight", name):
            readers = tuple(f"{match[1]}.mlp.{part}_proj" for part in ("gate", "up"))
            found.append(Fold(source=f"{match[1]}.post_attention_layernorm", readers=readers))
        elif match := re.fullmatch(r"(.*layers\.\d+)\.layer_norm2\.weight", name):
            found.append(Fold(source=f"{match[1]}.layer_norm2", readers=(f"{match[1]}.mlp.fc1",)))
        elif match := re.fullmatch(r"(.*layers\.\d+\.mlp)\.down_proj\.weight", name):
            found.append(Fold(source=f"{match[1]}.up_proj", readers=(f"{match[1]}.down_proj",), rows=True))
    return [fold for fold in found if all(f"{reader}.weight" in present for reader in fold.readers)]


def _apply(state: State, fold: Fold, scale: np.ndarray) -> None:
    """Divides the channels by `scale` [channels] at their source and multiplies them in their readers."""
    weight = f"{fold.source}.weight"
    state[weight] = state[weight] / (scale[:, None] if fold.rows else scale)
    if f"{fold.source}.bias" in state:
        state[f"{fold.source}.bias"] = state[f"{fold.source}.bias"] / scale
    for reader in fold.readers:
        state[f"{reader}.weight"] = state[f"{reader}.weight"] * scale


def _bounded(scale: np.ndarray) -> np.ndarray:
    """Geometric mean 1, and no channel moved by more than 2^8: 16-bit weights must stay normal numbers."""
    scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
    scale = scale / np.exp(np.mean(np.log(scale)))
    return np.clip(scale, 2.0**-8, 2.0**8).astype(np.float32)


def smooth_quant(
    state: Mapping[str, np.ndarray], ranges: Mapping[str, LayerRange], *, under: str = "", alpha: float = 0.5
) -> State:
    """A copy of the model's state, smoothed for W8A8. under: only modules whose name begins so."""
    smoothed = dict(state)
    for fold in folds(state):
        if not fold.source.startswith(under):
            continue
        seen = np.max([ranges[reader].channels for reader in fold.readers], axis=0)
        weights = np.max([np.abs(smoothed[f"{reader}.weight"]).max(axis=0) for reader in fold.readers], axis=0)
        scale = np.maximum(seen, 1e-5) ** alpha / np.maximum(weights, 1e-5) ** (1 - alpha)
        _apply(smoothed, fold, _bounded(scale))
    return smoothed


def round_int4(weight: np.ndarray) -> np.ndarray:
    """What 4-bit storage in blocks of 128 inputs makes of a weight [out, in]."""
    if weight.shape[1] % INT4_BLOCK:
        return weight
    blocks = weight.reshape(weight.shape[0], -1, INT4_BLOCK)
    scale = np.maximum(np.abs(blocks).max(axis=2, keepdims=True) / 7.0, 1e-12)
    return np.asarray((np.clip(np.round(blocks / scale), -8, 7) * scale).reshape(weight.shape))


def awq(state: Mapping[str, np.ndarray], ranges: Mapping[str, LayerRange], *, under: str = "") -> State:
    """A copy of the model's state, scaled for 4-bit weights: by fold the exponent with the least expected error.

    The error of a reader is sum_j rms(x_j)^2 |dW_j|^2, with dW the rounding of the scaled weights, scaled back.
    """
    scaled = dict(state)
    for fold in folds(state):
        if not fold.source.startswith(under):
            continue
        rms = np.maximum(ranges[fold.readers[0]].rms, 1e-6)
        best_error, best_scale = np.inf, np.ones_like(rms)
        for alpha in _ALPHAS:
            scale = _bounded(rms**alpha)
            error = 0.0
            for reader in fold.readers:
                weight = scaled[f"{reader}.weight"]
                difference = round_int4(weight * scale) / scale - weight
                error += float((difference.astype(np.float64) ** 2 @ rms.astype(np.float64) ** 2).sum())
            if error < best_error:
                best_error, best_scale = error, scale
        _apply(scaled, fold, best_scale)
    return scaled
