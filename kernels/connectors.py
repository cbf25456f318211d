"""Projector, compressor and cross-attention of a model in six launches, without a change to the model.

    with fuse_connectors(model):
        model.generate(...)

    1  fc1, bias, GELU                          4  keys and values: norm as a factor per row, bias
    2  fc2, bias, sums of squares               5  norm of the prompt, query projection, attention
    3  norm, W1, GELU, W2                       6  output projection, residual

The sums of squares of the visual tokens serve the compressor's norm and that of keys and values. For inference: while
gradients are on, the modules compute as ever. With `library` cuBLAS computes the products of 1, 2, 4 and 6, and the
epilogues are launches of their own (ten instead of six).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kernels.compressor.op import compress
from kernels.fusion_attention.op import cross_attention
from kernels.projector.op import linear
from kernels.rms_norm.op import square_sums


class FusedConnectors:
    """The connectors of one model. Weights are read once, here: make a new one after changing them."""

    def __init__(self, model: Any, *, library: bool = False) -> None:
        self._projector, self._compressor = model.projector, model.compressor
        self._cross = model.fusion.cross
        self._library = library
        self._visual: weakref.ref[torch.Tensor] | None = None
        self._squares: torch.Tensor | None = None
        if self._cross is not None:
            cross = self._cross
            gain = cross.visual_norm.weight.detach().float()
            weights = torch.cat([cross.k_proj.weight.detach(), cross.v_proj.weight.detach()])
            # RMSNorm's gain lies in the weights; its factor per row is applied to the product.
            self._kv_weight = (weights.float() * gain).to(weights.dtype)
            self._kv_bias = torch.cat([cross.k_proj.bias.detach(), cross.v_proj.bias.detach()])

    def project(self, features_BNE: torch.Tensor) -> torch.Tensor:
        """Visual tokens [B, N, D]; their sums of squares are kept for what reads them next."""
        p = self._projector
        hidden, _ = linear(features_BNE, p.fc1.weight, p.fc1.bias, None, None, 0.0, True, False, self._library)
        visual, squares = linear(hidden, p.fc2.weight, p.fc2.bias, None, None, 0.0, False, True, self._library)
        self._visual, self._squares = weakref.ref(visual), squares
        return visual

    def squares_of(self, visual_BND: torch.Tensor) -> torch.Tensor:
        """Sums of squares in parts: the projector's if it has made this very tensor, else by a launch."""
        if self._visual is not None and self._visual() is visual_BND and self._squares is not None:
            return self._squares
        return square_sums(visual_BND)

    def compress(self, visual_BND: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
        """Compressed tokens [B, C, D]."""
        c = self._compressor
        return compress(
            visual_BND,
            mask_BN,
            c.norm.weight,
            c.norm.variance_epsilon,
            c.w1,
            c.b1,
            c.w2,
            c.b2,
            self.squares_of(visual_BND),
        )

    def attend(self, text_BtD: torch.Tensor, visual_BND: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
        """The prompt with visual evidence written into it, [B, t, D]."""
        cross = self._cross
        key_value, _ = linear(
            visual_BND,
            self._kv_weight,
            self._kv_bias,
            None,
            self.squares_of(visual_BND),
            cross.visual_norm.variance_epsilon,
            False,
            False,
            self._library,
        )
        key, value = key_value.unflatten(-1, (2, cross.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = cross_attention(
            text_BtD,
            key,
            value,
            mask_BN,
            cross.text_norm.weight,
            cross.text_norm.variance_epsilon,
            cross.q_proj.weight,
            cross.q_proj.bias,
        )
        fused, _ = linear(attended, cross.o_proj.weight, None, text_BtD, None, 0.0, False, False, self._library)
        return fused


@contextmanager
def fuse_connectors(model: Any, *, library: bool = False) -> Iterator[FusedConnectors]:
    """The model computes its connectors fused inside the block."""
    fused = FusedConnectors(model, library=library)
    parts = {model.projector: fused.project, model.compressor: fused.compress}
    if model.fusion.cross is not None:
        parts[model.fusion.cross] = fused.attend
    for module, forward in parts.items():
        plain = module.forward

        def choose(*tensors: torch.Tensor, _plain: Any = plain, _fused: Any = forward) -> torch.Tensor:
            return (_plain if torch.is_grad_enabled() else _fused)(*tensors)

        module.forward = choose
    try:
        yield fused
    finally:
        for module in parts:
            del module.forward
