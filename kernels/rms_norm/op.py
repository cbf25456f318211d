"""auroraedge_kernels::rms_norm and ::square_sums."""

from __future__ import annotations

import torch

from kernels.launch import on_device, power_of_two, runs_here
from kernels.library import define, differentiate_by


def rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor | None, gain_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm(x + residual) * gain, x + residual) as Qwen2's decoder layer does it; without residual the sum is empty."""
    total = x if residual is None else x + residual
    wide = total.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    return gain_D * normed, total if residual is not None else x.new_empty(0)


def square_sums_reference(x: torch.Tensor) -> torch.Tensor:
    """float32 [..., 1]: sums of squares over the last axis."""
    return x.float().pow(2).sum(-1, keepdim=True)


def _rows_per_program(block: int) -> int:
    """Rows that fill a program of four warps: about 4096 values."""
    return max(1, min(16, 4096 // block))


def _rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, gain_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if not runs_here(x) or gain_D.dtype != x.dtype:
        y, total = rms_norm_reference(x, residual, gain_D, eps)
        return y, total.clone() if total.numel() else total
    from kernels.rms_norm.kernel import rms_norm_kernel

    x = x.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    y = torch.empty_like(x)
    total = torch.empty_like(x) if residual is not None else x.new_empty(0)
    if rows == 0:
        return y, total
    block = power_of_two(width)
    per_program = _rows_per_program(block)
    with on_device(x):
        rms_norm_kernel[(-(-rows // per_program),)](
            x,
            None if residual is None else residual.contiguous(),
            gain_D,
            rows,
            width,
            y,
            None if residual is None else total,
            EPS=eps,
            HAS_RESIDUAL=residual is not None,
            BLOCK_R=per_program,
            BLOCK_D=block,
            num_warps=4,
        )
    return y, total


def _square_sums(x: torch.Tensor) -> torch.Tensor:
    if not runs_here(x):
        return square_sums_reference(x)
    from kernels.rms_norm.kernel import square_sums_kernel

    x = x.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    squares = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    if rows == 0:
        return squares
    block = power_of_two(width)
    per_program = _rows_per_program(block)
    with on_device(x):
        square_sums_kernel[(-(-rows // per_program),)](
            x, rows, width, squares, BLOCK_R=per_program, BLOCK_D=block, num_warps=4
        )
    return squares


rms_norm = define(
    "rms_norm(Tensor x, Tensor? residual, Tensor gain, float eps) -> (Tensor, Tensor)",
    _rms_norm,
    lambda x, residual, gain, eps: (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty_like(x, memory_format=torch.contiguous_format) if residual is not None else x.new_empty(0),
    ),
)
differentiate_by("rms_norm", rms_norm_reference)
square_sums = define(
    "square_sums(Tensor x) -> Tensor", _square_sums, lambda x: x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
)
differentiate_by("square_sums", square_sums_reference)
