"""auroraedge_kernels::fusion_attention, ::cross_attention and ::cross_attention_quantised.

The first is behind auroraedge::fusion_attention on CUDA. The others make their own queries from the prompt.
"""

from __future__ import annotations

import math

import torch

from auroraedge.ops import fusion_attention_reference
from kernels.launch import EIGHT_BIT, PRECISIONS, on_device, power_of_two, runs_here, tile_for
from kernels.library import define, differentiate_by
from kernels.rms_norm.op import rms_norm_reference
from kernels.tiles import Kernel

MOST_DIM = 256  # a head's queries, keys and sums stay in registers


def cross_attention_reference(
    text_BtD: torch.Tensor,
    key_BHNd: torch.Tensor,
    value_BHNd: torch.Tensor,
    mask_BN: torch.Tensor,
    norm_weight_D: torch.Tensor,
    eps: float,
    wq_QD: torch.Tensor,
    bq_Q: torch.Tensor,
) -> torch.Tensor:
    """RMSNorm of the prompt, query projection, attention: [B, t, H d] before the output projection. Q = H d."""
    normed, _ = rms_norm_reference(text_BtD, None, norm_weight_D, eps)
    query = torch.nn.functional.linear(normed, wq_QD, bq_Q)
    query_BHtd = query.unflatten(-1, (key_BHNd.shape[1], -1)).transpose(1, 2)
    return fusion_attention_reference(query_BHtd, key_BHNd, value_BHNd, mask_BN).transpose(1, 2).flatten(2)


def cross_attention_quantised_reference(
    text_BtD: torch.Tensor,
    key_BHNd: torch.Tensor,
    value_BHNd: torch.Tensor,
    kv_scale: torch.Tensor,
    mask_BN: torch.Tensor,
    norm_weight_D: torch.Tensor,
    eps: float,
    wq_QD: torch.Tensor,
    bq_Q: torch.Tensor,
) -> torch.Tensor:
    """`cross_attention` of 8-bit keys and values, scales [2, H]; queries and softmax weights stay as they are."""
    dtype = text_BtD.dtype
    key = (key_BHNd.float() * kv_scale[0, :, None, None]).to(dtype)
    value = (value_BHNd.float() * kv_scale[1, :, None, None]).to(dtype)
    return cross_attention_reference(text_BtD, key, value, mask_BN, norm_weight_D, eps, wq_QD, bq_Q)


def can_attend(query: torch.Tensor, key_BHNd: torch.Tensor) -> bool:
    """Whether the kernel computes this shape and dtype."""
    return runs_here(query) and key_BHNd.shape[-1] <= MOST_DIM and key_BHNd.shape[2] > 0


def _rows_inside(x_BHnd: torch.Tensor) -> torch.Tensor:
    """With d contiguous, as the kernel reads it; other axes may have any stride below 2^31."""
    return x_BHnd if x_BHnd.stride(-1) == 1 else x_BHnd.contiguous()


def _launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    fused: tuple[torch.Tensor, float, torch.Tensor, torch.Tensor] | None,
    kv_scale: torch.Tensor | None,
) -> torch.Tensor:
    """[B, t, H, d]. query: [B, H, t, d], or the prompt [B, t, D] when `fused` = (norm weight, eps, Wq, bq)."""
    from kernels.fusion_attention.kernel import attention_kernel

    key, value = _rows_inside(key), _rows_inside(value)
    if key.stride() != value.stride():
        key, value = key.contiguous(), value.contiguous()
    batch, heads, patches, dim = key.shape
    if fused is None:
        query = _rows_inside(query)
        tokens, width, strides = query.shape[2], 0, query.stride()[:3]
    else:
        query = query.contiguous()
        tokens, width, strides = query.shape[1], query.shape[2], (0, 0, 0)
    gain, eps, wq, bq = fused or (None, 0.0, None, None)
    out = query.new_empty(batch, tokens, heads, dim)
    if out.numel() == 0:
        return out
    precision = "float" if kv_scale is None else EIGHT_BIT[key.dtype]
    kind: Kernel = "attention" if fused is None else "attention_q"
    tile = tile_for(kind, query, precision=precision, views=batch, rows=tokens, columns=heads)
    with on_device(query):
        attention_kernel[(-(-tokens // tile.blocks["BLOCK_T"]), heads, batch)](
            query,
            key,
            value,
            mask.contiguous(),
            gain,
            wq if wq is None else wq.contiguous(),
            bq,
            kv_scale,
            tokens,
            patches,
            heads,
            *strides,
            *key.stride()[:3],
            out,
            EPS=eps,
            WIDTH=width,
            DIM=dim,
            BLOCK_DIM=power_of_two(dim, 16),
            **{"BLOCK_K": 16, **tile.blocks},
            FUSE_Q=fused is not None,
            PRECISION=PRECISIONS[precision],
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


def _fusion_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if not can_attend(query, key):
        # Strides as the kernel's result has them, so that a compiled program fits either.
        found = fusion_attention_reference(query, key, value, mask)
        return found.transpose(1, 2).contiguous().transpose(1, 2)
    return _launch(query, key, value, mask, None, None).transpose(1, 2)


def _cross_attention(
    text: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    wq: torch.Tensor,
    bq: torch.Tensor,
) -> torch.Tensor:
    if not can_attend(text, key):
        return cross_attention_reference(text, key, value, mask, norm_weight, eps, wq, bq)
    return _launch(text, key, value, mask, (norm_weight, eps, wq, bq), None).flatten(2)


def _cross_attention_quantised(
    text: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kv_scale: torch.Tensor,
    mask: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    wq: torch.Tensor,
    bq: torch.Tensor,
) -> torch.Tensor:
    if not can_attend(text, key):
        return cross_attention_quantised_reference(text, key, value, kv_scale, mask, norm_weight, eps, wq, bq)
    return _launch(text, key, value, mask, (norm_weight, eps, wq, bq), kv_scale.contiguous()).flatten(2)


def _fake_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    batch, heads, tokens, dim = query.shape
    return query.new_empty(batch, tokens, heads, dim).transpose(1, 2)


def _fake_cross(text: torch.Tensor, key: torch.Tensor, *rest: object) -> torch.Tensor:
    return text.new_empty(text.shape[0], text.shape[1], math.prod((key.shape[1], key.shape[3])))


fusion_attention = define(
    "fusion_attention(Tensor query, Tensor key, Tensor value, Tensor mask) -> Tensor",
    _fusion_attention,
    _fake_attention,
)
differentiate_by("fusion_attention", fusion_attention_reference)
cross_attention = define(
    "cross_attention(Tensor text, Tensor key, Tensor value, Tensor mask, Tensor norm_weight, float eps, Tensor wq,"
    " Tensor bq) -> Tensor",
    _cross_attention,
    _fake_cross,
)
differentiate_by("cross_attention", cross_attention_reference)
cross_attention_quantised = define(
    "cross_attention_quantised(Tensor text, Tensor key, Tensor value, Tensor kv_scale, Tensor mask, Tensor norm_weight,"
    " float eps, Tensor wq, Tensor bq) -> Tensor",
    _cross_attention_quantised,
    _fake_cross,
)
