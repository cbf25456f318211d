"""auroraedge_kernels::linear (product and epilogue in one launch), ::linear_quantised and ::epilogue.

`linear` has an argument `library`: true leaves the product to cuBLAS and launches the epilogue alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.launch import EIGHT_BIT, PRECISIONS, interpreted, on_device, power_of_two, runs_here, tile_for
from kernels.library import define, differentiate_by
from kernels.quantise import DTYPES as EIGHT_BIT_DTYPES
from kernels.quantise import to_eight_bit

GROUP = 8
EPILOGUE_BLOCKS = {"BLOCK_R": 16, "BLOCK_O": 128}


def linear_reference(
    x: torch.Tensor,
    weight_OK: torch.Tensor,
    bias_O: torch.Tensor | None,
    residual: torch.Tensor | None,
    squares: torch.Tensor | None,
    eps: float,
    gelu: bool,
    write_squares: bool,
    library: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, float32 sums of squares of y [..., 1] or empty). squares: sums of squares of x, for the RMSNorm before it."""
    y = F.linear(x, weight_OK)
    wide = y.to(torch.float64 if y.dtype == torch.float64 else torch.float32)
    if squares is not None:
        wide = wide * torch.rsqrt(squares.sum(-1, keepdim=True) / x.shape[-1] + eps)
    if bias_O is not None:
        wide = wide + bias_O
    if gelu:
        wide = F.gelu(wide, approximate="tanh")
    if residual is not None:
        wide = wide + residual
    y = wide.to(x.dtype)
    return y, y.float().pow(2).sum(-1, keepdim=True) if write_squares else y.new_empty(0, dtype=torch.float32)


def linear_quantised_reference(
    x: torch.Tensor,
    weight_OK: torch.Tensor,
    weight_scale_O: torch.Tensor,
    x_scale: torch.Tensor,
    bias_O: torch.Tensor | None,
    residual: torch.Tensor | None,
    squares: torch.Tensor | None,
    eps: float,
    gelu: bool,
    write_squares: bool,
    y_scale: torch.Tensor | None,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """W8A8. x: floating, quantised with x_scale here, or 8 bit already. y: `dtype`, or 8 bit with y_scale."""
    precision = EIGHT_BIT[weight_OK.dtype]
    if x.dtype in EIGHT_BIT:
        left = x.float()
    else:
        wide = x.float()
        if squares is not None:
            wide = wide * torch.rsqrt(squares.sum(-1, keepdim=True) / x.shape[-1] + eps)
        left = to_eight_bit(wide, x_scale, precision).float()
    y = F.linear(left.double(), weight_OK.double()).float() * weight_scale_O * x_scale
    if bias_O is not None:
        y = y + bias_O.float()
    if gelu:
        y = F.gelu(y, approximate="tanh")
    if residual is not None:
        y = y + residual.float()
    if y_scale is not None:
        return to_eight_bit(y, y_scale, precision), y.new_empty(0)
    y = y.to(dtype)
    return y, y.float().pow(2).sum(-1, keepdim=True) if write_squares else y.new_empty(0, dtype=torch.float32)


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    squares: torch.Tensor | None,
    eps: float,
    gelu: bool,
    write_squares: bool,
    dtype: torch.dtype,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    y_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    from kernels.projector.kernel import linear_kernel

    x, weight = x.contiguous(), weight.contiguous()
    inputs, outputs = x.shape[-1], weight.shape[0]
    rows = x.numel() // inputs
    precision = "float" if scales is None else EIGHT_BIT[weight.dtype]
    tile = tile_for("linear", x, precision=precision, views=1, rows=rows, columns=outputs)
    column_tiles = -(-outputs // tile.blocks["BLOCK_O"])
    y = x.new_empty((*x.shape[:-1], outputs), dtype=dtype if y_scale is None else EIGHT_BIT_DTYPES[precision])
    sums = x.new_empty((*x.shape[:-1], column_tiles) if write_squares else (0,), dtype=torch.float32)
    if rows == 0:
        return y, sums
    w_scale, x_scale = scales or (None, None)
    with on_device(x):
        linear_kernel[(-(-rows // tile.blocks["BLOCK_R"]) * column_tiles,)](
            x,
            weight,
            bias,
            None if residual is None else residual.contiguous(),
            None if squares is None else squares.contiguous(),
            w_scale,
            x_scale,
            y_scale,
            rows,
            inputs,
            outputs,
            1 if squares is None else squares.shape[-1],
            y,
            sums if write_squares else None,
            EPS=eps,
            GELU=gelu,
            ROW_NORM=squares is not None,
            HAS_BIAS=bias is not None,
            HAS_RESIDUAL=residual is not None,
            WRITE_SQUARES=write_squares,
            X_QUANTISED=x.dtype in EIGHT_BIT,
            Y_QUANTISED=y_scale is not None,
            **tile.blocks,
            BLOCK_P=1 if squares is None else power_of_two(squares.shape[-1]),
            GROUP=GROUP,
            PRECISION=PRECISIONS[precision],
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y, sums


def _epilogue(
    product: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    squares: torch.Tensor | None,
    inputs: int,
    eps: float,
    gelu: bool,
    write_squares: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    from kernels.projector.kernel import epilogue_kernel

    outputs = product.shape[-1]
    rows = product.numel() // outputs
    tiles = -(-outputs // EPILOGUE_BLOCKS["BLOCK_O"])
    y = torch.empty_like(product)
    sums = product.new_empty((*product.shape[:-1], tiles) if write_squares else (0,), dtype=torch.float32)
    if rows == 0:
        return y, sums
    with on_device(product):
        epilogue_kernel[(-(-rows // EPILOGUE_BLOCKS["BLOCK_R"]), tiles)](
            product,
            bias,
            None if residual is None else residual.contiguous(),
            None if squares is None else squares.contiguous(),
            rows,
            inputs,
            outputs,
            1 if squares is None else squares.shape[-1],
            y,
            sums if write_squares else None,
            EPS=eps,
            GELU=gelu,
            ROW_NORM=squares is not None,
            HAS_BIAS=bias is not None,
            HAS_RESIDUAL=residual is not None,
            WRITE_SQUARES=write_squares,
            **EPILOGUE_BLOCKS,
            BLOCK_P=1 if squares is None else power_of_two(squares.shape[-1]),
            num_warps=4,
        )
    return y, sums


def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    squares: torch.Tensor | None,
    eps: float,
    gelu: bool,
    write_squares: bool,
    library: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    if not runs_here(x) or weight.dtype != x.dtype:
        return linear_reference(x, weight, bias, residual, squares, eps, gelu, write_squares, library)
    if library:
        return _epilogue(F.linear(x, weight), bias, residual, squares, x.shape[-1], eps, gelu, write_squares)
    return _launch(x, weight, bias, residual, squares, eps, gelu, write_squares, x.dtype)


def _linear_quantised(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    squares: torch.Tensor | None,
    eps: float,
    gelu: bool,
    write_squares: bool,
    y_scale: torch.Tensor | None,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    here = runs_here(x) if x.dtype not in EIGHT_BIT else (x.is_cuda or interpreted())
    if not here:
        return linear_quantised_reference(
            x, weight, weight_scale, x_scale, bias, residual, squares, eps, gelu, write_squares, y_scale, dtype
        )
    scales = (weight_scale, x_scale)
    return _launch(x, weight, bias, residual, squares, eps, gelu, write_squares, dtype, scales, y_scale)


def _fake(x: torch.Tensor, weight: torch.Tensor, write_squares: bool, dtype: torch.dtype) -> tuple:
    y = x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)
    if not write_squares:
        return y, x.new_empty(0, dtype=torch.float32)
    # The number of parts depends on the tile, so on the device: it stays open for a compiler.
    parts = torch.library.get_ctx().new_dynamic_size()
    return y, x.new_empty((*x.shape[:-1], parts), dtype=torch.float32)


def _fake_linear(x, weight, bias, residual, squares, eps, gelu, write_squares, library):  # type: ignore[no-untyped-def]
    return _fake(x, weight, write_squares, x.dtype)


def _fake_quantised(  # type: ignore[no-untyped-def]
    x, weight, weight_scale, x_scale, bias, residual, squares, eps, gelu, write_squares, y_scale, dtype
):
    return _fake(x, weight, write_squares, dtype if y_scale is None else weight.dtype)


linear = define(
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? squares, float eps, bool gelu,"
    " bool write_squares, bool library) -> (Tensor, Tensor)",
    _linear,
    _fake_linear,
)
differentiate_by("linear", linear_reference)
linear_quantised = define(
    "linear_quantised(Tensor x, Tensor weight, Tensor weight_scale, Tensor x_scale, Tensor? bias, Tensor? residual,"
    " Tensor? squares, float eps, bool gelu, bool write_squares, Tensor? y_scale, ScalarType dtype)"
    " -> (Tensor, Tensor)",
    _linear_quantised,
    _fake_quantised,
)
