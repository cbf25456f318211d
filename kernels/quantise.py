"""Symmetric 8-bit quantisation of weights (a scale per output) and of activations (one scale per tensor).

value = integer * scale. These are the meanings of QuantizeLinear and DequantizeLinear with zero point 0.
"""

from __future__ import annotations

import torch

DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST = {"int8": 127.0, "fp8": 448.0}
_LEAST = 1e-12  # a row of zeros still has a scale


def to_eight_bit(x: torch.Tensor, scale: torch.Tensor, precision: str) -> torch.Tensor:
    """x / scale as int8 (to nearest, ties to even) or e4m3, saturating."""
    units = (x.float() / scale).clamp(-LARGEST[precision], LARGEST[precision])
    return (units.round() if precision == "int8" else units).to(DTYPES[precision])


def quantise_rows(weight_OK: torch.Tensor, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(8-bit weight, float32 scale [O]) by the largest magnitude of each row."""
    scale_O = (weight_OK.float().abs().amax(1) / LARGEST[precision]).clamp(min=_LEAST)
    return to_eight_bit(weight_OK, scale_O[:, None], precision), scale_O


def activation_scale(x: torch.Tensor, precision: str) -> torch.Tensor:
    """float32 [1]: the scale that covers all of a calibration tensor."""
    return (x.detach().float().abs().amax() / LARGEST[precision]).clamp(min=_LEAST).reshape(1)
