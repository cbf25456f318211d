"""Which tile a kernel runs with, by GPU. Print the whole table with `python -m kernels.pack --table`.

Every kernel has a few tiles, largest first. The largest one whose grid still gives every processor of the GPU a program
is taken; if none does, the one with most programs. So Orin with 8 or 16 processors gets large tiles that read the
weights few times, and an H100 with 132 gets small ones at batch 1 and large ones at batch 16.

A tile names its Triton block sizes, warps and pipeline stages. All of them keep shared memory within 48 KB, the limit
of TensorRT's ahead-of-time plug-ins; kernels/pack.py checks that in what was compiled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Kernel = Literal["compressor", "attention", "attention_q", "linear"]
Family = Literal["mma", "wgmma", "tcgen05"]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One configuration. families: matrix units it is meant for. precisions: likewise."""

    name: str
    blocks: dict[str, int]
    warps: int = 4
    stages: int = 2
    families: tuple[Family, ...] = ("mma", "wgmma", "tcgen05")
    precisions: tuple[str, ...] = field(default=("float", "int8", "fp8"))


def family_of(sm: int) -> Family:
    """Matrix instructions of a capability: wgmma on Hopper, tcgen05 on B200 and Thor, else mma.sync."""
    if sm == 90:
        return "wgmma"
    return "tcgen05" if 100 <= sm < 120 else "mma"


_EIGHT = ("int8", "fp8")
_FLOAT = ("float",)
_NOT_INT8 = ("float", "fp8")
# wgmma and tcgen05 take 64 rows and more. Below that Triton uses mma.sync, which on these capabilities has no fp8: the
# operands would be widened to fp16 without a word. So fp8 there starts at 64 rows.
_SMALL_EIGHT = ("float", "int8")

TILES: dict[Kernel, tuple[Tile, ...]] = {
    # rows = channels
    "compressor": (
        Tile(
            name="d128",
            blocks={"BLOCK_D": 128, "BLOCK_M": 32},
            warps=8,
            families=("mma", "wgmma"),  # for tcgen05, Triton 3.6 needs 464 bytes more than the limit
            precisions=_EIGHT,
        ),
        Tile(name="d64", blocks={"BLOCK_D": 64, "BLOCK_M": 32}, precisions=_EIGHT),
        Tile(name="d64", blocks={"BLOCK_D": 64, "BLOCK_M": 32}, stages=1, families=("mma", "wgmma"), precisions=_FLOAT),
        Tile(name="d64", blocks={"BLOCK_D": 64, "BLOCK_M": 16}, families=("tcgen05",), precisions=_FLOAT),
        Tile(name="d32", blocks={"BLOCK_D": 32, "BLOCK_M": 32}, families=("mma",)),
        Tile(
            name="d32",
            blocks={"BLOCK_D": 32, "BLOCK_M": 32},
            families=("wgmma", "tcgen05"),
            precisions=_SMALL_EIGHT,
        ),
        Tile(name="d16", blocks={"BLOCK_D": 16, "BLOCK_M": 32}, families=("mma",)),
        Tile(
            name="d16",
            blocks={"BLOCK_D": 16, "BLOCK_M": 32},
            families=("wgmma", "tcgen05"),
            precisions=_SMALL_EIGHT,
        ),
    ),
    # rows = prompt tokens; queries are given
    "attention": (
        Tile(name="t64", blocks={"BLOCK_T": 64, "BLOCK_N": 32}, families=("mma",)),
        Tile(name="t64", blocks={"BLOCK_T": 64, "BLOCK_N": 32}, stages=1, families=("wgmma", "tcgen05")),
        Tile(name="t32", blocks={"BLOCK_T": 32, "BLOCK_N": 32}, precisions=_SMALL_EIGHT),
        Tile(name="t32", blocks={"BLOCK_T": 32, "BLOCK_N": 32}, families=("mma",), precisions=("fp8",)),
        Tile(name="t16", blocks={"BLOCK_T": 16, "BLOCK_N": 32}, precisions=_SMALL_EIGHT),
        Tile(name="t16", blocks={"BLOCK_T": 16, "BLOCK_N": 32}, families=("mma",), precisions=("fp8",)),
    ),
    # rows = prompt tokens; queries are made in the kernel
    "attention_q": (
        Tile(name="t64", blocks={"BLOCK_T": 64, "BLOCK_N": 32, "BLOCK_K": 32}, families=("wgmma",)),
        Tile(
            name="t64",
            blocks={"BLOCK_T": 64, "BLOCK_N": 32, "BLOCK_K": 32},
            families=("mma",),
            precisions=_NOT_INT8,
        ),
        # With BLOCK_K 32 and Triton 3.6 the int8 variant for d = 64 spills on sm_87.
        Tile(
            name="t64",
            blocks={"BLOCK_T": 64, "BLOCK_N": 32, "BLOCK_K": 64},
            families=("mma",),
            precisions=("int8",),
        ),
        Tile(name="t64", blocks={"BLOCK_T": 64, "BLOCK_N": 32, "BLOCK_K": 32}, stages=1, families=("tcgen05",)),
        Tile(name="t32", blocks={"BLOCK_T": 32, "BLOCK_N": 32, "BLOCK_K": 64}, precisions=_SMALL_EIGHT),
        Tile(
            name="t32",
            blocks={"BLOCK_T": 32, "BLOCK_N": 32, "BLOCK_K": 64},
            families=("mma",),
            precisions=("fp8",),
        ),
        Tile(name="t16", blocks={"BLOCK_T": 16, "BLOCK_N": 32, "BLOCK_K": 64}, precisions=_SMALL_EIGHT),
        Tile(
            name="t16",
            blocks={"BLOCK_T": 16, "BLOCK_N": 32, "BLOCK_K": 64},
            families=("mma",),
            precisions=("fp8",),
        ),
    ),
    # rows = tokens of all views
    "linear": (
        Tile(name="r128o128", blocks={"BLOCK_R": 128, "BLOCK_O": 128, "BLOCK_K": 32}, warps=8),
        Tile(name="r128o64", blocks={"BLOCK_R": 128, "BLOCK_O": 64, "BLOCK_K": 32}, stages=3),
        Tile(name="r64o64", blocks={"BLOCK_R": 64, "BLOCK_O": 64, "BLOCK_K": 64}, families=("mma", "wgmma")),
        Tile(name="r64o64", blocks={"BLOCK_R": 64, "BLOCK_O": 64, "BLOCK_K": 32}, stages=3, families=("tcgen05",)),
        Tile(
            name="r64o32", blocks={"BLOCK_R": 64, "BLOCK_O": 32, "BLOCK_K": 64}, stages=3, precisions=("float", "fp8")
        ),
        Tile(
            name="r64o32",
            blocks={"BLOCK_R": 64, "BLOCK_O": 32, "BLOCK_K": 64},
            stages=3,
            families=("wgmma", "tcgen05"),
            precisions=("int8",),
        ),
        # With BLOCK_K 64 the int8 layer for keys and values spills on sm_120.
        Tile(
            name="r64o32",
            blocks={"BLOCK_R": 64, "BLOCK_O": 32, "BLOCK_K": 128},
            families=("mma",),
            precisions=("int8",),
        ),
        Tile(name="r16o32", blocks={"BLOCK_R": 16, "BLOCK_O": 32, "BLOCK_K": 128}, stages=3, precisions=_SMALL_EIGHT),
        Tile(
            name="r16o32",
            blocks={"BLOCK_R": 16, "BLOCK_O": 32, "BLOCK_K": 128},
            stages=3,
            families=("mma",),
            precisions=("fp8",),
        ),
    ),
}


def tiles_for(kernel: Kernel, sm: int, precision: str) -> list[Tile]:
    """The tiles that a capability may use, largest first."""
    family = family_of(sm)
    return [tile for tile in TILES[kernel] if family in tile.families and precision in tile.precisions]


def _rows(tile: Tile) -> int:
    return next(size for name, size in tile.blocks.items() if name in ("BLOCK_D", "BLOCK_T", "BLOCK_R"))


def programs(kernel: Kernel, tile: Tile, *, views: int, rows: int, columns: int) -> int:
    """Size of the grid. compressor: rows = D; attention: rows = tokens, columns = heads; linear: rows, outputs."""
    if kernel == "compressor":
        return math.ceil(rows / tile.blocks["BLOCK_D"]) * views
    if kernel == "linear":
        return math.ceil(views * rows / tile.blocks["BLOCK_R"]) * math.ceil(columns / tile.blocks["BLOCK_O"])
    return math.ceil(rows / tile.blocks["BLOCK_T"]) * columns * views


def choose_tile(
    kernel: Kernel, *, sm: int, sm_count: int, precision: str, views: int, rows: int, columns: int = 1
) -> Tile:
    """The largest tile that gives every processor a program; else the one with most programs.

    Tiles with more rows than there are would compute nothing there: only the smallest tile may have such.
    """
    candidates = tiles_for(kernel, sm, precision)
    present = rows * views if kernel == "linear" else rows
    candidates = [tile for tile in candidates if _rows(tile) <= present] or candidates[-1:]
    for tile in candidates:
        if programs(kernel, tile, views=views, rows=rows, columns=columns) >= sm_count:
            return tile
    return max(candidates, key=lambda tile: programs(kernel, tile, views=views, rows=rows, columns=columns))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One row of the table. waves: programs divided by processors."""

    gpu: str
    kernel: Kernel
    what: str
    precision: str
    views: int
    tile: Tile
    programs: int
    waves: float

    @property
    def starved(self) -> bool:
        """Less than a third of the processors have work: take 'float' there, which has smaller tiles, or batch more."""
        return self.waves < 1 / 3


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a kernel has to do for one view and a prompt of 64 tokens in the 2b preset; see `programs`."""

    kernel: Kernel
    what: str
    meaning: str
    rows: int
    columns: int = 1


WORK: tuple[Work, ...] = (
    Work(kernel="compressor", what="compressor", meaning="D 1536", rows=1536),
    Work(kernel="attention_q", what="q and attention", meaning="64 tokens x 12 heads", rows=64, columns=12),
    Work(kernel="attention", what="attention", meaning="64 tokens x 12 heads", rows=64, columns=12),
    Work(kernel="linear", what="fc1, fc2", meaning="256 rows x 1536 outputs", rows=256, columns=1536),
    Work(kernel="linear", what="keys, values", meaning="256 rows x 3072 outputs", rows=256, columns=3072),
    Work(kernel="linear", what="o-proj", meaning="64 rows x 1536 outputs", rows=64, columns=1536),
)


def choices(gpu_names: list[str] | None = None, views: tuple[int, ...] = (1, 4, 16)) -> list[Choice]:
    """The whole table, for the sizes of WORK."""
    from kernels.gpus import GPUS, precisions_of

    found = []
    for name in gpu_names or list(GPUS):
        gpu = GPUS[name]
        for work in WORK:
            for precision in precisions_of(gpu.sm):
                for batch in views:
                    tile = choose_tile(
                        work.kernel,
                        sm=gpu.sm,
                        sm_count=gpu.sm_count,
                        precision=precision,
                        views=batch,
                        rows=work.rows,
                        columns=work.columns,
                    )
                    count = programs(work.kernel, tile, views=batch, rows=work.rows, columns=work.columns)
                    found.append(
                        Choice(
                            gpu=name,
                            kernel=work.kernel,
                            what=work.what,
                            precision=precision,
                            views=batch,
                            tile=tile,
                            programs=count,
                            waves=count / gpu.sm_count,
                        )
                    )
    return found
