"""Who computes an op on a CUDA device: the plain reference or a Triton kernel.

The environment variable AURORAEDGE_KERNELS sets it for the process, `using` for a block:

    reference   never a kernel
    triton      a kernel wherever one can compute the shape and dtype
    auto        a kernel where dispatch.json says that it was measured to win on this class of GPU (the default)

In `auto` a shape that nobody has measured runs the reference: slower at worst, never unproven on the hardware.
benchmarks/gpu_session.py measures and writes the table.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from auroraedge.errors import InvalidRequestError

Mode = Literal["reference", "triton", "auto"]
Winner = Literal["triton", "reference", "unmeasured"]
ENVIRONMENT = "AURORAEDGE_KERNELS"
TABLE = Path(__file__).with_name("dispatch.json")
_block: ContextVar[Mode | None] = ContextVar("auroraedge_kernels", default=None)


def mode() -> Mode:
    """The mode that holds here. Raises InvalidRequestError for an unknown one in the environment."""
    return _block.get() or _valid(os.environ.get(ENVIRONMENT) or "auto")


@contextlib.contextmanager
def using(chosen: Mode) -> Iterator[None]:
    """The mode for a block, in this thread or task alone."""
    token = _block.set(_valid(chosen))
    try:
        yield
    finally:
        _block.reset(token)


def _valid(name: str) -> Mode:
    for known in get_args(Mode):
        if name == known:
            return known
    raise InvalidRequestError(
        f"There is no kernel mode '{name}'.",
        field=ENVIRONMENT,
        remedy=f"Set {ENVIRONMENT} to one of {', '.join(get_args(Mode))}.",
    )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A row of dispatch.json. gpu: a class of kernels.gpus; views: batch; speedup: time of the best library / ours."""

    gpu: str
    op: str
    dtype: str
    views: int
    winner: Winner
    speedup: float | None = None


@functools.cache
def measurements(path: Path = TABLE) -> tuple[Measurement, ...]:
    """All rows of the table."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Measurement(**row) for row in content["rows"])


def winner(gpu: str, op: str, dtype: str, views: int, rows: tuple[Measurement, ...] | None = None) -> Winner:
    """Who won at the nearest measured batch; 'unmeasured' without a row for this GPU, op and dtype."""
    rows = measurements() if rows is None else rows
    fitting = [row for row in rows if (row.gpu, row.op, row.dtype) == (gpu, op, dtype)]
    if not fitting:
        return "unmeasured"
    return min(fitting, key=lambda row: (abs(row.views - views), row.views)).winner


def use_kernel(gpu: str, op: str, dtype: str, views: int) -> bool:
    """Whether a kernel is to compute this call."""
    current = mode()
    if current == "auto":
        return winner(gpu, op, dtype, views) == "triton"
    return current == "triton"
