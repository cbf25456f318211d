"""y = epilogue(x W^T): bias, GELU, residual, the RMSNorm of x as a factor per row, and the sums of squares of y.

`linear_kernel` is product and epilogue in one launch; `epilogue_kernel` is the epilogue alone, after a product of
cuBLAS. Both end a projector layer, and the former also serves keys and values (ROW_NORM) and o-proj (residual).

The sums of squares are written in parts, one for every tile of columns, and added by the reader: no atomics, so the
same input always gives the same bits.

RMSNorm before a linear layer: (x g / rms(x)) W^T = (x (W g)^T) / rms(x). The gain g is folded into W on the host, the
factor 1 / rms(x) is applied to the accumulators, from sums of squares that somebody else has left.

Suffixes: R rows (all tokens of all views), K inputs, O outputs, P parts of a sum of squares.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.arithmetic import FLOAT, gelu_tanh, quantise


@triton.jit
def linear_kernel(
    x_ptr,  # [R, K]; 8 bit if its producer has quantised it
    w_ptr,  # [O, K]; 8 bit when quantised
    bias_ptr,  # [O] or None
    residual_ptr,  # [R, O] or None
    squares_in_ptr,  # float32 [R, parts], ROW_NORM only
    w_scale_ptr,  # float32 [O], quantised only
    x_scale_ptr,  # float32 [1], quantised only
    y_scale_ptr,  # float32 [1], when y is 8 bit
    rows,
    inputs,
    outputs,
    parts,
    y_ptr,  # [R, O]
    squares_out_ptr,  # float32 [R, tiles of O] or None
    EPS: tl.constexpr,
    GELU: tl.constexpr,
    ROW_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    WRITE_SQUARES: tl.constexpr,
    X_QUANTISED: tl.constexpr,
    Y_QUANTISED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Programs that run together share rows and columns: GROUP tiles of rows for every step along the columns.
    program = tl.program_id(0)
    row_tiles = tl.cdiv(rows, BLOCK_R)
    column_tiles = tl.cdiv(outputs, BLOCK_O)
    first_row = program // (GROUP * column_tiles) * GROUP
    group = tl.minimum(row_tiles - first_row, GROUP)
    row_tile = first_row + program % (GROUP * column_tiles) % group
    column_tile = program % (GROUP * column_tiles) // group

    r = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    o = column_tile * BLOCK_O + tl.arange(0, BLOCK_O)
    in_rows, in_outputs = r < rows, o < outputs
    row, column = r.to(tl.int64), o.to(tl.int64)

    factor = tl.full((BLOCK_R,), 1.0, tl.float32)
    if ROW_NORM:
        part = tl.arange(0, BLOCK_P)
        squares = tl.load(
            squares_in_ptr + row[:, None] * parts + part[None, :],
            mask=in_rows[:, None] & (part[None, :] < parts),
            other=0.0,
        )
        factor = 1.0 / tl.sqrt(tl.sum(squares, 1) / inputs + EPS)
    x_scale = 1.0
    if PRECISION != FLOAT:
        x_scale = tl.load(x_scale_ptr)

    total = tl.zeros((BLOCK_R, BLOCK_O), tl.int32 if PRECISION == 1 else tl.float32)
    for start in tl.range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_inputs = k < inputs
        x = tl.load(x_ptr + row[:, None] * inputs + k[None, :], mask=in_rows[:, None] & in_inputs[None, :], other=0.0)
        w = tl.load(
            w_ptr + column[None, :] * inputs + k[:, None], mask=in_outputs[None, :] & in_inputs[:, None], other=0.0
        )
        if PRECISION != FLOAT and not X_QUANTISED:
            x = quantise(x.to(tl.float32) * (factor / x_scale)[:, None], PRECISION)
        if PRECISION == 1:
            total = tl.dot(x, w, total, out_dtype=tl.int32)
        elif PRECISION == 2:
            total = tl.dot(x, w, total)
        else:
            total = tl.dot(x, w, total, input_precision="ieee")
    y = total.to(tl.float32)
    if PRECISION != FLOAT:
        y *= tl.load(w_scale_ptr + o, mask=in_outputs, other=0.0)[None, :] * x_scale
    elif ROW_NORM:
        y *= factor[:, None]
    if HAS_BIAS:
        y += tl.load(bias_ptr + o, mask=in_outputs, other=0.0).to(tl.float32)[None, :]
    if GELU:
        y = gelu_tanh(y)
    inside = in_rows[:, None] & in_outputs[None, :]
    place = row[:, None] * outputs + column[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if Y_QUANTISED:
        tl.store(y_ptr + place, quantise(y / tl.load(y_scale_ptr), PRECISION), mask=inside)
    else:
        written = y.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + place, written, mask=inside)
        if WRITE_SQUARES:
            # Of what the reader will see, after rounding.
            seen = tl.where(inside, written.to(tl.float32), 0.0)
            tl.store(squares_out_ptr + row * column_tiles + column_tile, tl.sum(seen * seen, 1), mask=in_rows)


@triton.jit
def epilogue_kernel(
    product_ptr,  # [R, O]: x W^T
    bias_ptr,  # [O] or None
    residual_ptr,  # [R, O] or None
    squares_in_ptr,  # float32 [R, parts], ROW_NORM only
    rows,
    inputs,
    outputs,
    parts,
    y_ptr,  # [R, O]; may be product
    squares_out_ptr,  # float32 [R, tiles of O] or None
    EPS: tl.constexpr,
    GELU: tl.constexpr,
    ROW_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    WRITE_SQUARES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    in_rows, in_outputs = r < rows, o < outputs
    row = r.to(tl.int64)
    inside = in_rows[:, None] & in_outputs[None, :]
    place = row[:, None] * outputs + o[None, :]
    y = tl.load(product_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if ROW_NORM:
        part = tl.arange(0, BLOCK_P)
        squares = tl.load(
            squares_in_ptr + row[:, None] * parts + part[None, :],
            mask=in_rows[:, None] & (part[None, :] < parts),
            other=0.0,
        )
        y *= (1.0 / tl.sqrt(tl.sum(squares, 1) / inputs + EPS))[:, None]
    if HAS_BIAS:
        y += tl.load(bias_ptr + o, mask=in_outputs, other=0.0).to(tl.float32)[None, :]
    if GELU:
        y = gelu_tanh(y)
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    written = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + place, written, mask=inside)
    if WRITE_SQUARES:
        seen = tl.where(inside, written.to(tl.float32), 0.0)
        tiles = tl.cdiv(outputs, BLOCK_O)
        tl.store(squares_out_ptr + row * tiles + tl.program_id(1), tl.sum(seen * seen, 1), mask=in_rows)
