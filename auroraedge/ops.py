"""Operators of the connectors: schemas in the `auroraedge` namespace with their plain-PyTorch reference.

The reference is registered as CompositeImplicitAutograd, so it runs and differentiates on every device, and exporters
see plain ATen operators. Kernels may register a faster implementation for a device key; the model does not change.

Shapes: B views, N visual patches, C compressed tokens, M hidden width of the compressor, D width, t prompt tokens,
H heads, d head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_library = torch.library.Library("auroraedge", "DEF")
_library.define(
    "compress(Tensor visual, Tensor mask, Tensor norm_weight, float eps, Tensor w1, Tensor b1, Tensor w2, Tensor b2)"
    " -> Tensor"
)
_library.define("fusion_attention(Tensor query, Tensor key, Tensor value, Tensor mask) -> Tensor")


def _wide(x: torch.Tensor) -> torch.dtype:
    """What norms and softmax are computed in: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def compress_reference(
    visual_BND: torch.Tensor,
    mask_BN: torch.Tensor,
    norm_weight_D: torch.Tensor,
    eps: float,
    w1_MN: torch.Tensor,
    b1_M: torch.Tensor,
    w2_CM: torch.Tensor,
    b2_C: torch.Tensor,
) -> torch.Tensor:
    """Compressor: RMSNorm over D, then an MLP over the token axis, N -> M -> C, shared by all channels.

        n = x / sqrt(mean_D(x^2) + eps) * g, padded patches set to 0
        c = W2 gelu(W1 n + b1) + b2          (W1, W2 act on the token axis)

    visual [B, N, D], mask [B, N] (1 real, 0 padded) -> [B, C, D] in the dtype of `visual`. N may be smaller than W1's
    width: missing patches count as padded. Source: arXiv 2601.16615, token compressor (256 -> 64).
    """
    wide = _wide(visual_BND)
    x = visual_BND.to(wide)
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    normed = (normed * norm_weight_D.to(wide) * mask_BN[..., None].to(wide)).to(visual_BND.dtype)
    hidden_BMD = torch.matmul(w1_MN[:, : visual_BND.shape[1]], normed) + b1_M[:, None]
    return torch.matmul(w2_CM, F.gelu(hidden_BMD, approximate="tanh")) + b2_C[:, None]


def fusion_attention_reference(
    query_BHtd: torch.Tensor, key_BHNd: torch.Tensor, value_BHNd: torch.Tensor, mask_BN: torch.Tensor
) -> torch.Tensor:
    """Cross-attention of prompt tokens to the uncompressed visual tokens: softmax(q k^T / sqrt(d)) v over real patches.

    query [B, H, t, d], key and value [B, H, N, d], mask [B, N] (1 real, 0 padded) -> [B, H, t, d]. Softmax in float32,
    or in float64 if the inputs are.
    Source: arXiv 2601.16615, fusion module.
    """
    wide = _wide(query_BHtd)
    scores_BHtN = torch.matmul(query_BHtd, key_BHNd.transpose(-1, -2)).to(wide) * query_BHtd.shape[-1] ** -0.5
    scores_BHtN = scores_BHtN + (1.0 - mask_BN[:, None, None, :].to(wide)) * -1e9
    return torch.matmul(torch.softmax(scores_BHtN, -1).to(value_BHNd.dtype), value_BHNd)


_library.impl("compress", compress_reference, "CompositeImplicitAutograd")
_library.impl("fusion_attention", fusion_attention_reference, "CompositeImplicitAutograd")

compress = torch.ops.auroraedge.compress
fusion_attention = torch.ops.auroraedge.fusion_attention
