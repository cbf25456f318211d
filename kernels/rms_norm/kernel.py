"""s = x + residual; y = s / sqrt(mean_D(s^2) + eps) * g (arXiv 1910.07467), and the sums of squares alone.

One program takes BLOCK_R whole rows: they are read once and stay in registers between the sum and the scaling. Like
Qwen2RMSNorm the normalised value is rounded to the dtype before the gain is applied.

Suffixes: R rows, D width.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    x_ptr,  # [R, D]
    residual_ptr,  # [R, D] or None
    gain_ptr,  # [D]
    rows,
    width,
    y_ptr,  # [R, D]
    sum_ptr,  # [R, D]: x + residual, or None
    EPS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,  # power of two, at least D
):
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    inside = (r < rows)[:, None] & (d < width)[None, :]
    place = r.to(tl.int64)[:, None] * width + d[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + place, rounded, mask=inside)
        x = rounded.to(tl.float32)
    normed = x * (1.0 / tl.sqrt(tl.sum(x * x, 1) / width + EPS))[:, None]
    gain = tl.load(gain_ptr + d, mask=d < width, other=0.0)
    y = normed.to(y_ptr.dtype.element_ty).to(tl.float32) * gain.to(tl.float32)[None, :]
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def square_sums_kernel(
    x_ptr,  # [R, D]
    rows,
    width,
    squares_ptr,  # float32 [R, 1]
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,  # power of two, at least D
):
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    inside = (r < rows)[:, None] & (d < width)[None, :]
    x = tl.load(x_ptr + r.to(tl.int64)[:, None] * width + d[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(squares_ptr + r, tl.sum(x * x, 1), mask=r < rows)
