"""Puts the kernels behind auroraedge::compress and auroraedge::fusion_attention on CUDA devices.

Those ops keep their composite reference on every other device: on a CPU nothing changes, and exporters see plain ATen.
The routing sits at the CUDA and the AutogradCUDA key, so the chosen implementation brings its own gradient.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from auroraedge.ops import compress_reference, fusion_attention_reference
from kernels.choice import mode, use_kernel
from kernels.compressor.op import can_compress
from kernels.compressor.op import compress as compress_kernel
from kernels.fusion_attention.op import can_attend
from kernels.fusion_attention.op import fusion_attention as fusion_attention_kernel
from kernels.launch import gpu_class, interpreted

_libraries: list[torch.library.Library] = []
_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}


@functools.cache
def triton_is_here() -> bool:
    return importlib.util.find_spec("triton") is not None


def _wanted(op: str, first: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether the kernel is to compute this call. Mixed dtypes (autocast) are the reference's."""
    if not triton_is_here() or first.dtype not in _NAMES or any(tensor.dtype != first.dtype for tensor in others):
        return False
    if mode() == "reference":
        return False
    return use_kernel(gpu_class(first), op, _NAMES[first.dtype], first.shape[0])


def compress(
    visual: torch.Tensor,
    mask: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
) -> torch.Tensor:
    if _wanted("compress", visual, norm_weight, w1, b1, w2, b2) and can_compress(visual, w1):
        return compress_kernel(visual, mask, norm_weight, eps, w1, b1, w2, b2)
    return compress_reference(visual, mask, norm_weight, eps, w1, b1, w2, b2)


def fusion_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if _wanted("fusion_attention", query, key, value) and can_attend(query, key):
        return fusion_attention_kernel(query, key, value, mask)
    return fusion_attention_reference(query, key, value, mask)


def register() -> None:
    """Registers the kernels for CUDA, and for the CPU where Triton interprets. Does nothing the second time."""
    if _libraries:
        return
    library = torch.library.Library("auroraedge", "IMPL")
    implementations: dict[str, Callable[..., Any]] = {"compress": compress, "fusion_attention": fusion_attention}
    for device in ("CUDA", "CPU") if interpreted() else ("CUDA",):
        for name, implementation in implementations.items():
            library.impl(name, implementation, device)
            library.impl(name, implementation, f"Autograd{device}")
    _libraries.append(library)


def unregister() -> None:
    """Takes the kernels back; the ops are as they were."""
    while _libraries:
        _libraries.pop()._destroy()
