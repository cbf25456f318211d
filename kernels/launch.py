"""What every launch needs: the device's processors, the tile for them, and the precision's constants."""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from kernels.gpus import nearest_gpu
from kernels.tiles import Kernel, Tile, choose_tile

# What the kernels compute on a GPU; the rest is the reference's. In float32 the matrix units would round to tf32, and
# without them cuBLAS is the better choice. The interpreter also computes float32, which its tests are sharpest in.
DTYPES = (torch.float16, torch.bfloat16)
# The constexpr PRECISION of the kernels (kernels/arithmetic.py, which needs Triton to be read).
PRECISIONS = {"float": 0, "int8": 1, "fp8": 2}
EIGHT_BIT = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


def interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU, one program after the other. Read by Triton when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def processors(index: int) -> tuple[int, int]:
    """(compute capability without its dot, number of processors) of a CUDA device."""
    found = torch.cuda.get_device_properties(index)
    return found.major * 10 + found.minor, found.multi_processor_count


def gpu_of(tensor: torch.Tensor) -> tuple[int, int]:
    """`processors` of a tensor's device; a small Ampere stands for the interpreter."""
    if tensor.is_cuda:
        return processors(tensor.device.index or 0)
    return 80, 8


def gpu_class(tensor: torch.Tensor) -> str:
    """The class of kernels.gpus that a tensor's device belongs to."""
    return nearest_gpu(*gpu_of(tensor))


def tile_for(kernel: Kernel, tensor: torch.Tensor, *, precision: str, views: int, rows: int, columns: int = 1) -> Tile:
    """The tile for this work on the device of `tensor`."""
    sm, count = gpu_of(tensor)
    return choose_tile(kernel, sm=sm, sm_count=count, precision=precision, views=views, rows=rows, columns=columns)


def runs_here(tensor: torch.Tensor) -> bool:
    """Whether a Triton kernel can be launched for a tensor of this device and dtype."""
    if interpreted() and not tensor.is_cuda:
        return tensor.dtype in (*DTYPES, torch.float32)
    return tensor.is_cuda and tensor.dtype in DTYPES


def on_device(tensor: torch.Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def power_of_two(number: int, least: int = 1) -> int:
    return max(least, 1 << (number - 1).bit_length())
