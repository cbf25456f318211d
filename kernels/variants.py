"""What is compiled ahead of time: every kernel with the dtypes, sizes and tiles that a capability's GPUs use.

Argument order is that of TensorRT's ahead-of-time plug-ins: inputs, int32 scalars, outputs; a pointer that a variant
does not use and every float is a constant of the kernel.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Literal

from auroraedge.config import PRESETS
from kernels.gpus import GPUS, precisions_of
from kernels.tiles import Kernel, Tile, choices, family_of, tiles_for

Dtype = Literal["fp16", "bf16"]
EPS = 1e-6  # rms_norm_eps of Qwen2.5
PRECISION_CODES = {"float": 0, "int8": 1, "fp8": 2}
_EIGHT_BIT = {"int8": "*i8", "fp8": "*fp8e4nv"}
# Parts of a sum of squares: 1536 columns in tiles of 128, rounded up to a power of two; fewer parts fit as well.
_PARTS = 16


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One kernel with everything but its scalars and pointers fixed.

    signature: Triton's type by argument; constants: constexprs, and None for absent pointers; grid: three expressions;
    divisible: scalars that must be multiples of 16; outputs: how many of the last pointers are written; rows: rows of
    the matrix products, 0 where there are none; used_by: GPU and batch whose table names the tile.
    """

    name: str
    module: str
    function: str
    signature: dict[str, str]
    constants: dict[str, Any]
    grid: tuple[str, str, str]
    divisible: tuple[str, ...]
    outputs: int
    warps: int
    stages: int
    precision: str = "float"
    rows: int = 0
    used_by: tuple[str, ...] = field(default=())

    def load(self) -> Any:
        """The Triton function."""
        return getattr(importlib.import_module(self.module), self.function)


def _absent(signature: dict[str, str], *names: str) -> dict[str, None]:
    """Takes pointers out of a signature; they become constants."""
    for name in names:
        del signature[name]
    return dict.fromkeys(names)


def compressor(tile: Tile, precision: str, dtype: Dtype, used_by: tuple[str, ...] = ()) -> Variant:
    """The compressor; both presets have 256 hidden units and 64 compressed tokens."""
    value = f"*{dtype}"
    weight = _EIGHT_BIT.get(precision, value)
    signature = {
        "visual_ptr": value,
        "squares_ptr": "*fp32",
        "mask_ptr": "*fp32",
        "norm_ptr": value,
        "w1_ptr": weight,
        "b1_ptr": value,
        "w2_ptr": weight,
        "b2_ptr": value,
        "w1_scale_ptr": "*fp32",
        "w2_scale_ptr": "*fp32",
        "activation_scale_ptr": "*fp32",
        "patches": "i32",
        "width": "i32",
        "w1_stride": "i32",
        "parts": "i32",
        "out_ptr": value,
    }
    constants: dict[str, Any] = {}
    if precision == "float":
        constants |= _absent(signature, "w1_scale_ptr", "w2_scale_ptr", "activation_scale_ptr")
    preset = PRESETS["2b"]
    constants |= {
        "EPS": EPS,
        "M": preset.compressor_hidden,
        "C": preset.num_compressed,
        "BLOCK_C": preset.num_compressed,
        "BLOCK_N": preset.num_patches,
        "BLOCK_P": _PARTS,
        **tile.blocks,
        "PRECISION": PRECISION_CODES[precision],
    }
    return Variant(
        name=f"compressor-{dtype}-{precision}-{tile.name}",
        module="kernels.compressor.kernel",
        function="compress_kernel",
        signature=signature,
        constants=constants,
        grid=(f"cdiv(width, {tile.blocks['BLOCK_D']})", "views", "1"),
        divisible=("width", "w1_stride"),
        outputs=1,
        warps=tile.warps,
        stages=tile.stages,
        precision=precision,
        rows=tile.blocks["BLOCK_D"],
        used_by=used_by,
    )


def attention(
    tile: Tile, precision: str, dtype: Dtype, preset_name: str, *, fused: bool, used_by: tuple[str, ...] = ()
) -> Variant:
    """Fusion attention for the head dimension of a preset, with the query projection or without."""
    preset = PRESETS[preset_name]
    value = f"*{dtype}"
    cached = _EIGHT_BIT.get(precision, value)
    strides = [f"{what}_stride_{axis}" for what, axes in (("query", "bht"), ("kv", "bhn")) for axis in axes]
    signature = {
        "query_ptr": value,
        "key_ptr": cached,
        "value_ptr": cached,
        "mask_ptr": "*fp32",
        "norm_ptr": value,
        "wq_ptr": value,
        "bq_ptr": value,
        "kv_scale_ptr": "*fp32",
        "tokens": "i32",
        "patches": "i32",
        "heads": "i32",
        **dict.fromkeys(strides, "i32"),
        "out_ptr": value,
    }
    constants: dict[str, Any] = {}
    if not fused:
        constants |= _absent(signature, "norm_ptr", "wq_ptr", "bq_ptr")
    if precision == "float":
        constants |= _absent(signature, "kv_scale_ptr")
    constants |= {
        "EPS": EPS,
        "WIDTH": preset.text_hidden,
        "DIM": preset.text_head_dim,
        "BLOCK_DIM": preset.text_head_dim,
        **{"BLOCK_K": 16, **tile.blocks},
        "FUSE_Q": fused,
        "PRECISION": PRECISION_CODES[precision],
    }
    kind = "attention_q" if fused else "attention"
    return Variant(
        name=f"{kind}-{preset_name}-{dtype}-{precision}-{tile.name}",
        module="kernels.fusion_attention.kernel",
        function="attention_kernel",
        signature=signature,
        constants=constants,
        grid=(f"cdiv(tokens, {tile.blocks['BLOCK_T']})", "heads", "views"),
        divisible=tuple(strides),
        outputs=1,
        warps=tile.warps,
        stages=tile.stages,
        precision=precision,
        rows=tile.blocks["BLOCK_T"],
        used_by=used_by,
    )


# The linear layers of the connectors: which epilogue each has. A quantised fc1 writes 8 bit for fc2 to read.
ROLES: dict[str, dict[str, bool]] = {
    "fc1": {"HAS_BIAS": True, "GELU": True},
    "fc2": {"HAS_BIAS": True, "WRITE_SQUARES": True},
    "kv": {"HAS_BIAS": True, "ROW_NORM": True},
    "out": {"HAS_RESIDUAL": True},
}
_FLAGS = ("GELU", "ROW_NORM", "HAS_BIAS", "HAS_RESIDUAL", "WRITE_SQUARES")
_EPILOGUE_POINTERS = {
    "HAS_BIAS": "bias_ptr",
    "HAS_RESIDUAL": "residual_ptr",
    "ROW_NORM": "squares_in_ptr",
    "WRITE_SQUARES": "squares_out_ptr",
}


def linear(tile: Tile, precision: str, dtype: Dtype, role: str, used_by: tuple[str, ...] = ()) -> Variant:
    """A linear layer of the connectors with its epilogue."""
    value = f"*{dtype}"
    weight = _EIGHT_BIT.get(precision, value)
    flags = {flag: ROLES[role].get(flag, False) for flag in _FLAGS}
    ready = precision != "float" and role == "fc2"
    writes = precision != "float" and role == "fc1"
    signature = {
        "x_ptr": weight if ready else value,
        "w_ptr": weight,
        "bias_ptr": value,
        "residual_ptr": value,
        "squares_in_ptr": "*fp32",
        "w_scale_ptr": "*fp32",
        "x_scale_ptr": "*fp32",
        "y_scale_ptr": "*fp32",
        "rows": "i32",
        "inputs": "i32",
        "outputs": "i32",
        "parts": "i32",
        "y_ptr": weight if writes else value,
        "squares_out_ptr": "*fp32",
    }
    constants: dict[str, Any] = _absent(
        signature, *(pointer for flag, pointer in _EPILOGUE_POINTERS.items() if not flags[flag])
    )
    if precision == "float":
        constants |= _absent(signature, "w_scale_ptr", "x_scale_ptr")
    if not writes:
        constants |= _absent(signature, "y_scale_ptr")
    constants |= {
        "EPS": EPS,
        **flags,
        "X_QUANTISED": ready,
        "Y_QUANTISED": writes,
        **tile.blocks,
        "BLOCK_P": _PARTS,
        "GROUP": 8,
        "PRECISION": PRECISION_CODES[precision],
    }
    return Variant(
        name=f"linear-{role}-{dtype}-{precision}-{tile.name}",
        module="kernels.projector.kernel",
        function="linear_kernel",
        signature=signature,
        constants=constants,
        grid=(f"cdiv(rows, {tile.blocks['BLOCK_R']}) * cdiv(outputs, {tile.blocks['BLOCK_O']})", "1", "1"),
        divisible=("inputs", "outputs"),
        outputs=2 if flags["WRITE_SQUARES"] else 1,
        warps=tile.warps,
        stages=tile.stages,
        precision=precision,
        rows=tile.blocks["BLOCK_R"],
        used_by=used_by,
    )


def epilogue(dtype: Dtype, role: str) -> Variant:
    """The epilogue alone, after a library's product."""
    value = f"*{dtype}"
    flags = {flag: ROLES[role].get(flag, False) for flag in _FLAGS}
    signature = {
        "product_ptr": value,
        "bias_ptr": value,
        "residual_ptr": value,
        "squares_in_ptr": "*fp32",
        "rows": "i32",
        "inputs": "i32",
        "outputs": "i32",
        "parts": "i32",
        "y_ptr": value,
        "squares_out_ptr": "*fp32",
    }
    constants: dict[str, Any] = _absent(
        signature, *(pointer for flag, pointer in _EPILOGUE_POINTERS.items() if not flags[flag])
    )
    constants |= {"EPS": EPS, **flags, "BLOCK_R": 16, "BLOCK_O": 128, "BLOCK_P": _PARTS}
    return Variant(
        name=f"epilogue-{role}-{dtype}",
        module="kernels.projector.kernel",
        function="epilogue_kernel",
        signature=signature,
        constants=constants,
        grid=("cdiv(rows, 16)", "cdiv(outputs, 128)", "1"),
        divisible=("outputs",),
        outputs=2 if flags["WRITE_SQUARES"] else 1,
        warps=4,
        stages=2,
    )


def rms_norm(dtype: Dtype, preset_name: str) -> Variant:
    """RMSNorm after adding the residual, for the width of a preset."""
    block = 1 << (PRESETS[preset_name].text_hidden - 1).bit_length()
    rows = max(1, min(16, 4096 // block))
    value = f"*{dtype}"
    return Variant(
        name=f"rms_norm-{preset_name}-{dtype}",
        module="kernels.rms_norm.kernel",
        function="rms_norm_kernel",
        signature={
            "x_ptr": value,
            "residual_ptr": value,
            "gain_ptr": value,
            "rows": "i32",
            "width": "i32",
            "y_ptr": value,
            "sum_ptr": value,
        },
        constants={"EPS": EPS, "HAS_RESIDUAL": True, "BLOCK_R": rows, "BLOCK_D": block},
        grid=(f"cdiv(rows, {rows})", "1", "1"),
        divisible=("width",),
        outputs=2,
        warps=4,
        stages=2,
    )


def square_sums(dtype: Dtype, preset_name: str) -> Variant:
    """Sums of squares of rows, for the width of a preset."""
    block = 1 << (PRESETS[preset_name].text_hidden - 1).bit_length()
    rows = max(1, min(16, 4096 // block))
    return Variant(
        name=f"square_sums-{preset_name}-{dtype}",
        module="kernels.rms_norm.kernel",
        function="square_sums_kernel",
        signature={"x_ptr": f"*{dtype}", "rows": "i32", "width": "i32", "squares_ptr": "*fp32"},
        constants={"BLOCK_R": rows, "BLOCK_D": block},
        grid=(f"cdiv(rows, {rows})", "1", "1"),
        divisible=("width",),
        outputs=1,
        warps=4,
        stages=2,
    )


def _used_tiles(sm: int) -> dict[tuple[Kernel, str], dict[str, list[str]]]:
    """By kernel and precision: tiles that the GPUs of a capability use, and for what."""
    found: dict[tuple[Kernel, str], dict[str, list[str]]] = {}
    for choice in choices([name for name, gpu in GPUS.items() if gpu.sm == sm]):
        users = found.setdefault((choice.kernel, choice.precision), {}).setdefault(choice.tile.name, [])
        users.append(f"{choice.gpu} x{choice.views}")
    return found


def variants_for(sm: int, *, dtype: Dtype = "fp16", reduced: bool = False) -> list[Variant]:
    """All variants of a capability; reduced: one tile a kernel, for the 2b preset, linear layers in 16 bit."""
    found: list[Variant] = []
    presets = ("2b",) if reduced else ("2b", "nano")
    used = _used_tiles(sm)
    for precision in precisions_of(sm):
        tiles: dict[Kernel, list[tuple[Tile, tuple[str, ...]]]] = {}
        for kernel in ("compressor", "attention", "attention_q", "linear"):
            users = used[kernel, precision]
            here = [
                (tile, tuple(dict.fromkeys(users[tile.name])))
                for tile in tiles_for(kernel, sm, precision)
                if tile.name in users
            ]
            tiles[kernel] = here[:1] if reduced else here
        found += [compressor(tile, precision, dtype, users) for tile, users in tiles["compressor"]]
        for preset in presets:
            if not reduced:
                found += [
                    attention(tile, precision, dtype, preset, fused=False, used_by=users)
                    for tile, users in tiles["attention"]
                ]
            found += [
                attention(tile, precision, dtype, preset, fused=True, used_by=users)
                for tile, users in tiles["attention_q"]
            ]
        roles = (("kv",) if precision == "float" else ()) if reduced else tuple(ROLES)
        found += [linear(tile, precision, dtype, role, users) for role in roles for tile, users in tiles["linear"]]
    if not reduced:
        found += [epilogue(dtype, role) for role in ROLES]
        found += [make(dtype, preset) for make in (rms_norm, square_sums) for preset in presets]
    return found


def matrix_instructions(variant: Variant, sm: int) -> tuple[str, ...]:
    """SASS instructions that the variant's products must show, by dtype and capability.

    A fused query projection is 16 bit, so HMMA or its successors may stand beside these.
    """
    if variant.rows == 0:
        return ()
    family = family_of(sm)
    wide = variant.rows >= 64 and family != "mma"
    names = {
        "float": {"mma": "HMMA", "wgmma": "HGMMA", "tcgen05": "UTCHMMA"},
        "int8": {"mma": "IMMA", "wgmma": "IGMMA", "tcgen05": "IMMA"},
        "fp8": {"mma": "QMMA", "wgmma": "QGMMA", "tcgen05": "UTCQMMA"},
    }[variant.precision]
    return (names[family if wide else "mma"],)
