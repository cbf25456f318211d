"""softmax(q k^T / sqrt(d)) v over the real patches, with a running maximum and sum (arXiv 1805.02867, 2205.14135).

One program computes BLOCK_T prompt tokens of one head. With FUSE_Q it makes its own queries,

    q = (t g) Wq^T / sqrt(mean_D(t^2) + eps) + bq

from the prompt's tokens t: the norm's statistics are summed while the tokens pass by for the product, so norm, query
projection and attention are one launch. Scores, softmax and sums are float32. The mask is added as the reference adds
it ((1 - mask) * -1e9), so that a view without any real patch gives the same uniform mean.

Suffixes: B views, N patches, t prompt tokens, H heads, d head dimension, D width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.arithmetic import FLOAT, FP8, INT8, matmul, quantise

LOG2_E = tl.constexpr(1.4426950408889634)
# Weights of the softmax lie in 0..1; in 8 bit they use this part of the range.
INT8_WEIGHT = tl.constexpr(127.0)
FP8_WEIGHT = tl.constexpr(256.0)


@triton.jit
def attention_kernel(
    query_ptr,  # [B, H, t, d] by strides; with FUSE_Q the prompt [B, t, D], contiguous
    key_ptr,  # [B, H, N, d] by strides, d contiguous; 8 bit when quantised
    value_ptr,  # like key
    mask_ptr,  # [B, N], 1 real, 0 padded; any dtype
    norm_ptr,  # [D], FUSE_Q only
    wq_ptr,  # [H d, D], FUSE_Q only
    bq_ptr,  # [H d], FUSE_Q only
    kv_scale_ptr,  # float32 [2, H]: of keys and of values, quantised only
    tokens,  # t
    patches,  # N
    heads,  # H
    query_stride_b,
    query_stride_h,
    query_stride_t,
    kv_stride_b,
    kv_stride_h,
    kv_stride_n,
    out_ptr,  # [B, t, H, d], contiguous
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,  # D, FUSE_Q only
    DIM: tl.constexpr,  # d
    BLOCK_DIM: tl.constexpr,  # power of two, at least d and 16
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # of D, FUSE_Q only
    FUSE_Q: tl.constexpr,
    PRECISION: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    head = tl.program_id(1)
    view = tl.program_id(2).to(tl.int64)
    e = tl.arange(0, BLOCK_DIM)
    in_tokens, in_dim = t < tokens, e < DIM
    row = t.to(tl.int64)

    if FUSE_Q:
        made = tl.zeros((BLOCK_T, BLOCK_DIM), tl.float32)
        squares = tl.zeros((BLOCK_T,), tl.float32)
        for start in tl.range(0, WIDTH, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            in_width = k < WIDTH
            text = tl.load(
                query_ptr + (view * tokens + row[:, None]) * WIDTH + k[None, :],
                mask=in_tokens[:, None] & in_width[None, :],
                other=0.0,
            )
            gain = tl.load(norm_ptr + k, mask=in_width, other=0.0).to(tl.float32)
            wq = tl.load(
                wq_ptr + (head * DIM + e[None, :]) * WIDTH + k[:, None],
                mask=in_dim[None, :] & in_width[:, None],
                other=0.0,
            )
            wide = text.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            made += matmul((wide * gain[None, :]).to(wq_ptr.dtype.element_ty), wq, FLOAT)
        made *= (1.0 / tl.sqrt(squares / WIDTH + EPS))[:, None]
        made += tl.load(bq_ptr + head * DIM + e, mask=in_dim, other=0.0).to(tl.float32)[None, :]
        query = made.to(query_ptr.dtype.element_ty)
    else:
        query = tl.load(
            query_ptr + view * query_stride_b + head * query_stride_h + row[:, None] * query_stride_t + e[None, :],
            mask=in_tokens[:, None] & in_dim[None, :],
            other=0.0,
        )
    scale = tl.full((BLOCK_T,), LOG2_E, tl.float32) / tl.sqrt(DIM * 1.0)
    value_scale = 1.0
    if PRECISION != FLOAT:
        # Queries get a scale each; keys and values have one for every head.
        wide = query.to(tl.float32)
        limit: tl.constexpr = 127.0 if PRECISION == INT8 else 448.0
        most = tl.maximum(tl.max(tl.abs(wide), 1) / limit, 1e-12)
        query = quantise(wide / most[:, None], PRECISION)
        scale *= most * tl.load(kv_scale_ptr + head)
        value_scale = tl.load(kv_scale_ptr + heads + head)

    best = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    weight_sum = tl.zeros((BLOCK_T,), tl.float32)
    total = tl.zeros((BLOCK_T, BLOCK_DIM), tl.float32)
    key_base = view * kv_stride_b + head * kv_stride_h
    for start in tl.range(0, patches, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        in_patches = n < patches
        place = key_base + n.to(tl.int64)[:, None] * kv_stride_n + e[None, :]
        inside = in_patches[:, None] & in_dim[None, :]
        key = tl.load(key_ptr + place, mask=inside, other=0.0)
        real = tl.load(mask_ptr + view * patches + n, mask=in_patches, other=0.0).to(tl.float32)
        scores = matmul(query, tl.trans(key), PRECISION) * scale[:, None]
        scores += ((1.0 - real) * (-1.0e9 * LOG2_E))[None, :]
        scores = tl.where(in_patches[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        shrink = tl.math.exp2(best - higher)
        weights = tl.math.exp2(scores - higher[:, None])
        weight_sum = weight_sum * shrink + tl.sum(weights, 1)
        value = tl.load(value_ptr + place, mask=inside, other=0.0)
        if PRECISION == FLOAT:
            seen = matmul(weights.to(value_ptr.dtype.element_ty), value, FLOAT)
        elif PRECISION == INT8:
            seen = matmul(quantise(weights * INT8_WEIGHT, INT8), value, INT8) * (value_scale / INT8_WEIGHT)
        else:
            seen = matmul(quantise(weights * FP8_WEIGHT, FP8), value, FP8) * (value_scale / FP8_WEIGHT)
        total = total * shrink[:, None] + seen
        best = higher
    total = total / weight_sum[:, None]
    place = ((view * tokens + row[:, None]) * heads + head) * DIM + e[None, :]
    tl.store(
        out_ptr + place,
        total.to(out_ptr.dtype.element_ty),
        mask=in_tokens[:, None] & in_dim[None, :],
    )
