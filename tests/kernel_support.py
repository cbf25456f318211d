"""What the tests of kernels share, in the interpreter and on a GPU: poisoned memory, torch's own error as tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

GUARD = 256  # values around every tensor that nobody may touch
INT8_POISON = -128  # the kernels quantise to -127..127


def _poison(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else INT8_POISON


def guarded(x: torch.Tensor) -> torch.Tensor:
    """A copy of x with poison before and behind it: reading outside of it spoils the result."""
    inside = torch.full((x.numel() + 2 * GUARD,), _poison(x.dtype), dtype=torch.float32, device=x.device).to(x.dtype)
    inside[GUARD : GUARD + x.numel()] = x.reshape(-1)
    return inside[GUARD : GUARD + x.numel()].view(x.shape)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New tensors hold poison inside and around; at the end nothing around them has changed."""
    buffers: list[tuple[torch.Tensor, int]] = []
    original = torch.Tensor.new_empty

    def new_empty(self: torch.Tensor, *size: Any, dtype: torch.dtype | None = None, **rest: Any) -> torch.Tensor:
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        dtype = dtype or self.dtype
        count = shape.numel()
        buffer = original(self, (count + 2 * GUARD,), dtype=dtype, **rest)
        buffer.copy_(torch.full((count + 2 * GUARD,), _poison(dtype), device=self.device))
        buffers.append((buffer, count))
        return buffer[GUARD : GUARD + count].view(shape)

    def empty_like(x: torch.Tensor, **rest: Any) -> torch.Tensor:
        rest.pop("memory_format", None)
        return new_empty(x, x.shape, **rest)

    with mock.patch.object(torch.Tensor, "new_empty", new_empty), mock.patch.object(torch, "empty_like", empty_like):
        yield
    assert buffers, "the op made no tensor"
    for buffer, count in buffers:
        around = torch.cat([buffer[:GUARD], buffer[GUARD + count :]]).float()
        untouched = around.isnan() if buffer.dtype.is_floating_point else around == INT8_POISON
        assert bool(untouched.all()), "a kernel wrote outside of its output"


def run_poisoned(op: Callable[..., Any], *arguments: Any) -> Any:
    """The result of an op from guarded inputs into poisoned memory; every element of it has been written."""
    inputs = [guarded(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    with poisoned_memory():
        result = op(*inputs)
    for tensor in result if isinstance(result, tuple) else (result,):
        wide = tensor.float()
        missing = wide.isnan() if tensor.dtype.is_floating_point else wide == INT8_POISON
        assert not bool(missing.any()), f"{int(missing.sum())} of {tensor.numel()} elements were not written"
    return result


def assert_as_good_as_torch(
    ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor, *, floor: float | None = None
) -> None:
    """err_ours <= 2 err_torch + floor, both against float64, largest absolute error.

    floor: two roundings of the largest value to a 16-bit dtype, or eight of those in float32, where intermediate values
    round as much as results do. Without it the bound would hang on luck where a result has few elements.
    """
    assert ours.shape == exact.shape
    assert ours.dtype == theirs.dtype
    if floor is None:
        roundings = 8 if ours.dtype == torch.float32 else 2
        floor = roundings * torch.finfo(ours.dtype).eps * max(1.0, float(exact.abs().max()))
    error_ours = float((ours.double() - exact).abs().max())
    error_theirs = float((theirs.double() - exact).abs().max())
    assert error_ours <= 2 * error_theirs + floor, f"ours {error_ours:.3g}, torch {error_theirs:.3g}, floor {floor:.3g}"


def doubled(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments in float64."""
    return tuple(a.double() if isinstance(a, torch.Tensor) and a.dtype.is_floating_point else a for a in arguments)
