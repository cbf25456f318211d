"""auroraedge_kernels::compress and ::compress_quantised, the former behind auroraedge::compress on CUDA."""

from __future__ import annotations

import torch

from auroraedge.ops import compress_reference
from kernels.launch import EIGHT_BIT, PRECISIONS, on_device, power_of_two, runs_here, tile_for
from kernels.library import define, differentiate_by
from kernels.quantise import to_eight_bit
from kernels.rms_norm.op import square_sums

MOST_PATCHES = 256  # all tokens of a tile of channels stay in registers


def compress_with_squares_reference(
    visual_BND: torch.Tensor,
    mask_BN: torch.Tensor,
    norm_weight_D: torch.Tensor,
    eps: float,
    w1_MN: torch.Tensor,
    b1_M: torch.Tensor,
    w2_CM: torch.Tensor,
    b2_C: torch.Tensor,
    squares_BNP: torch.Tensor | None = None,
) -> torch.Tensor:
    """The reference; the sums of squares only save work and carry no gradient of their own."""
    return compress_reference(visual_BND, mask_BN, norm_weight_D, eps, w1_MN, b1_M, w2_CM, b2_C)


def compress_quantised_reference(
    visual_BND: torch.Tensor,
    mask_BN: torch.Tensor,
    norm_weight_D: torch.Tensor,
    eps: float,
    w1_MN: torch.Tensor,
    w1_scale_M: torch.Tensor,
    b1_M: torch.Tensor,
    w2_CM: torch.Tensor,
    w2_scale_C: torch.Tensor,
    b2_C: torch.Tensor,
    activation_scale: torch.Tensor,
    squares_BNP: torch.Tensor | None = None,
) -> torch.Tensor:
    """W8A8: both products of 8-bit values, everything between them float32. activation_scale: [2], of n and gelu(h)."""
    precision = EIGHT_BIT[w1_MN.dtype]
    x = visual_BND.float()
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * mask_BN[..., None].float()
    normed = normed * norm_weight_D.float()
    left = to_eight_bit(normed, activation_scale[0], precision).float() * activation_scale[0]
    w1 = w1_MN.float()[:, : visual_BND.shape[1]] * w1_scale_M[:, None]
    hidden = torch.nn.functional.gelu(torch.matmul(w1, left) + b1_M.float()[:, None], approximate="tanh")
    hidden = to_eight_bit(hidden, activation_scale[1], precision).float() * activation_scale[1]
    out = torch.matmul(w2_CM.float() * w2_scale_C[:, None], hidden) + b2_C.float()[:, None]
    return out.to(visual_BND.dtype)


def can_compress(visual_BND: torch.Tensor, w1_MN: torch.Tensor) -> bool:
    """Whether the kernel computes this shape and dtype."""
    return runs_here(visual_BND) and 0 < visual_BND.shape[1] <= min(MOST_PATCHES, w1_MN.shape[1])


def _launch(
    visual: torch.Tensor,
    mask: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    squares: torch.Tensor | None,
    scales: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    from kernels.compressor.kernel import compress_kernel

    visual = visual.contiguous()
    squares = square_sums(visual) if squares is None else squares.contiguous()
    batch, patches, width = visual.shape
    (hidden, stride), tokens = w1.shape, w2.shape[0]
    precision = "float" if scales is None else EIGHT_BIT[w1.dtype]
    tile = tile_for("compressor", visual, precision=precision, views=batch, rows=width)
    out = visual.new_empty(batch, tokens, width)
    if out.numel() == 0:
        return out
    w1_scale, w2_scale, activation_scale = scales or (None, None, None)
    with on_device(visual):
        compress_kernel[(-(-width // tile.blocks["BLOCK_D"]), batch)](
            visual,
            squares,
            mask.contiguous(),
            gain.contiguous(),
            w1.contiguous(),
            b1.contiguous(),
            w2.contiguous(),
            b2.contiguous(),
            w1_scale,
            w2_scale,
            activation_scale,
            patches,
            width,
            stride,
            squares.shape[-1],
            out,
            EPS=eps,
            M=hidden,
            C=tokens,
            BLOCK_C=power_of_two(tokens, 16),
            BLOCK_N=power_of_two(patches, 32),
            BLOCK_P=power_of_two(squares.shape[-1]),
            **tile.blocks,
            PRECISION=PRECISIONS[precision],
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


def _compress(
    visual: torch.Tensor,
    mask: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    squares: torch.Tensor | None = None,
) -> torch.Tensor:
    if not can_compress(visual, w1):
        return compress_reference(visual, mask, norm_weight, eps, w1, b1, w2, b2)
    return _launch(visual, mask, norm_weight, eps, w1, b1, w2, b2, squares, None)


def _compress_quantised(
    visual: torch.Tensor,
    mask: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    w1: torch.Tensor,
    w1_scale: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    b2: torch.Tensor,
    activation_scale: torch.Tensor,
    squares: torch.Tensor | None = None,
) -> torch.Tensor:
    if not can_compress(visual, w1):
        return compress_quantised_reference(
            visual, mask, norm_weight, eps, w1, w1_scale, b1, w2, w2_scale, b2, activation_scale
        )
    scales = (w1_scale, w2_scale, activation_scale)
    return _launch(visual, mask, norm_weight, eps, w1, b1, w2, b2, squares, scales)


compress = define(
    "compress(Tensor visual, Tensor mask, Tensor norm_weight, float eps, Tensor w1, Tensor b1, Tensor w2, Tensor b2,"
    " Tensor? squares=None) -> Tensor",
    _compress,
    lambda visual, mask, norm_weight, eps, w1, b1, w2, b2, squares=None: visual.new_empty(
        visual.shape[0], w2.shape[0], visual.shape[2]
    ),
)
differentiate_by("compress", compress_with_squares_reference)
compress_quantised = define(
    "compress_quantised(Tensor visual, Tensor mask, Tensor norm_weight, float eps, Tensor w1, Tensor w1_scale,"
    " Tensor b1, Tensor w2, Tensor w2_scale, Tensor b2, Tensor activation_scale, Tensor? squares=None) -> Tensor",
    _compress_quantised,
    lambda visual, mask, norm_weight, eps, w1, w1_scale, b1, w2, w2_scale, b2, activation_scale, squares=None: (
        visual.new_empty(visual.shape[0], w2.shape[0], visual.shape[2])
    ),
)
