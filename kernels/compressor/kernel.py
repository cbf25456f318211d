"""c = W2 gelu(W1 n + b1) + b2 with n = x / sqrt(mean_D(x^2) + eps) * g * mask, over the token axis (arXiv 2601.16615).

One program computes a tile of channels of one image from its first read to its last write: neither the normalised
tokens nor the hidden units ever reach memory. The work is transposed, so that channels are the rows of both products:

    n^T [channels, N]  x  W1^T [N, BLOCK_M]  ->  h^T [channels, BLOCK_M]  x  W2^T [BLOCK_M, C]  ->  c^T [channels, C]

n^T is kept for all blocks of hidden units, h^T goes from one product's accumulators straight into the next one's left
operand, and both weights are read with their contraction axis contiguous, which 8-bit products need on Hopper.

The norm's sums of squares come in parts from whoever wrote x (the projector's epilogue, or rms_norm.square_sums).

Suffixes: B views, N patches, C compressed tokens, M hidden units, D width, P parts of a sum of squares.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.arithmetic import FLOAT, gelu_tanh, matmul, quantise


@triton.jit
def compress_kernel(
    visual_ptr,  # [B, N, D]
    squares_ptr,  # float32 [B, N, parts]: sums of x^2 over D, in parts
    mask_ptr,  # [B, N], 1 real, 0 padded; any dtype
    norm_ptr,  # [D]
    w1_ptr,  # [M, w1_stride]; 8 bit when quantised
    b1_ptr,  # [M]
    w2_ptr,  # [C, M]; 8 bit when quantised
    b2_ptr,  # [C]
    w1_scale_ptr,  # float32 [M], quantised only
    w2_scale_ptr,  # float32 [C], quantised only
    activation_scale_ptr,  # float32 [2]: of n and of gelu(h), quantised only
    patches,  # N
    width,  # D
    w1_stride,  # patches that W1 is made for, at least N
    parts,  # P
    out_ptr,  # [B, C, D]
    EPS: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,  # power of two, at least C and 16
    BLOCK_N: tl.constexpr,  # power of two, at least N and 32
    BLOCK_P: tl.constexpr,  # power of two, at least P
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    view = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)
    in_width, in_patches, in_tokens = d < width, n < patches, c < C
    token = view * patches + n

    # A padded patch may hold anything, infinity and NaN too: it is not read.
    real = tl.load(mask_ptr + token, mask=in_patches, other=0).to(tl.float32)
    present = in_patches & (real > 0.0)
    part = tl.arange(0, BLOCK_P)
    squares = tl.load(
        squares_ptr + token[:, None] * parts + part[None, :],
        mask=present[:, None] & (part[None, :] < parts),
        other=0.0,
    )
    inverse_rms = 1.0 / tl.sqrt(tl.sum(squares, 1) / width + EPS)
    x = tl.load(visual_ptr + token[:, None] * width + d[None, :], mask=present[:, None] & in_width[None, :], other=0.0)
    gain = tl.load(norm_ptr + d, mask=in_width, other=0.0).to(tl.float32)
    normed = x.to(tl.float32) * (inverse_rms * real)[:, None] * gain[None, :]
    if PRECISION == FLOAT:
        left = tl.trans(normed.to(visual_ptr.dtype.element_ty))
        input_scale, hidden_scale = 1.0, 1.0
    else:
        input_scale = tl.load(activation_scale_ptr)
        hidden_scale = tl.load(activation_scale_ptr + 1)
        left = tl.trans(quantise(normed / input_scale, PRECISION))

    total = tl.zeros((BLOCK_D, BLOCK_C), tl.float32)
    for start in tl.range(0, M, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        in_hidden = m < M
        w1 = tl.load(
            w1_ptr + m[None, :] * w1_stride + n[:, None], mask=in_hidden[None, :] & in_patches[:, None], other=0.0
        )
        hidden = matmul(left, w1, PRECISION)
        if PRECISION != FLOAT:
            hidden *= tl.load(w1_scale_ptr + m, mask=in_hidden, other=0.0)[None, :] * input_scale
        hidden += tl.load(b1_ptr + m, mask=in_hidden, other=0.0).to(tl.float32)[None, :]
        hidden = gelu_tanh(hidden)
        w2 = tl.load(w2_ptr + c[None, :] * M + m[:, None], mask=in_tokens[None, :] & in_hidden[:, None], other=0.0)
        if PRECISION == FLOAT:
            right = hidden.to(visual_ptr.dtype.element_ty)
        else:
            right = quantise(hidden / hidden_scale, PRECISION)
        total += matmul(right, w2, PRECISION)
    if PRECISION != FLOAT:
        total *= tl.load(w2_scale_ptr + c, mask=in_tokens, other=0.0)[None, :] * hidden_scale
    total += tl.load(b2_ptr + c, mask=in_tokens, other=0.0).to(tl.float32)[None, :]
    place = (view * C + c[:, None]) * width + d[None, :]
    tl.store(
        out_ptr + place,
        tl.trans(total).to(out_ptr.dtype.element_ty),
        mask=in_tokens[:, None] & in_width[None, :],
    )
