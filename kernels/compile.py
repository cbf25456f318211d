"""Compiles the variants of one capability into a folder; a process of its own, because a compiler may abort.

    python -m kernels.compile --sm 87 --out DIR [--reduced] [--dtype fp16]

Writes a line of JSON to stdout for every variant. Started by kernels.pack.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernels.gpus import PTX_VERSIONS
from kernels.sass import PackError, assemble, drop_scratch_parameters, entry_parameters
from kernels.variants import Variant, matrix_instructions, variants_for

SCHEMA_VERSION = 1
SHARED_LIMIT = 48 * 1024  # TensorRT launches plug-ins without asking for more


def sources_sha256(variant: Variant) -> str:
    """Of the Triton sources that a variant is compiled from."""
    folder = Path(__file__).resolve().parent
    files = [folder / "arithmetic.py", folder.parent / Path(*variant.module.split(".")).with_suffix(".py")]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def recipe_sha256(variant: Variant, sm: int) -> str:
    """Of all that decides what the compiler is asked for: a pack with another one is built again."""
    import triton

    recipe = [sm, PTX_VERSIONS[sm][0], triton.__version__, SCHEMA_VERSION, sources_sha256(variant), asdict(variant)]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def compile_variant(variant: Variant, sm: int) -> tuple[dict[str, Any], str, bytes]:
    """(pack.json, PTX, cubin) of a variant. Raises PackError."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = variant.load()
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(function.arg_names):
        if name in variant.constants:
            signature[name] = "constexpr"
            constants[(place,)] = variant.constants[name]
        else:
            signature[name] = variant.signature[name]
            if signature[name].startswith("*") or name in variant.divisible:
                attributes[(place,)] = [["tt.divisibility", 16]]
    version, driver = PTX_VERSIONS[sm]
    compiled = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", sm, 32),
        options={"num_warps": variant.warps, "num_stages": variant.stages, "ptx_version": version},
    )
    metadata = compiled.metadata
    arguments = [
        {"name": name, "type": variant.signature[name]} for name in function.arg_names if name in variant.signature
    ]
    ptx = drop_scratch_parameters(compiled.asm["ptx"], len(arguments))
    if len(entry_parameters(ptx)) != len(arguments):
        raise PackError(f"{variant.name}: the PTX takes other arguments than the pack says.")
    cubin, resources = assemble(ptx, sm)
    written = re.search(r"^\.version (\d+)\.(\d+)", ptx, re.MULTILINE)
    assert written is not None
    pack = {
        "schema_version": SCHEMA_VERSION,
        "name": variant.name,
        "sm": sm,
        "entry": metadata.name,
        "arguments": arguments,
        "outputs": variant.outputs,
        "divisible_by_16": [name for name in variant.divisible],
        "constexprs": variant.constants,
        "grid": list(variant.grid),
        "block": [32 * metadata.num_warps, 1, 1],
        "num_stages": metadata.num_stages,
        "shared_bytes": metadata.shared,
        "scratch_bytes": metadata.global_scratch_size + metadata.profile_scratch_size,
        **asdict(resources),
        "precision": variant.precision,
        "expected_instructions": list(matrix_instructions(variant, sm)),
        "ptx_version": f"{written[1]}.{written[2]}",
        "oldest_driver": driver,
        "triton_version": triton.__version__,
        "used_by": list(variant.used_by),
        "recipe_sha256": recipe_sha256(variant, sm),
        "ptx_sha256": hashlib.sha256(ptx.encode()).hexdigest(),
        "cubin_sha256": hashlib.sha256(cubin).hexdigest(),
    }
    faults = faults_of(pack)
    if faults:
        raise PackError(f"{variant.name} for sm_{sm}: {'; '.join(faults)}")
    return pack, ptx, cubin


def faults_of(pack: dict[str, Any]) -> list[str]:
    """What a pack breaks of what every pack promises; empty when it is sound."""
    found = []
    for name in pack["expected_instructions"]:
        if not pack["instructions"].get(name):
            found.append(f"no {name} in the SASS, which has {pack['instructions'] or 'no matrix instruction'}")
    if pack["spill_stores"] or pack["spill_loads"] or pack["instructions"].keys() & {"LDL", "STL"}:
        found.append(f"spills {pack['spill_stores']} and {pack['spill_loads']} bytes")
    if pack["stack"]:
        found.append(f"a stack frame of {pack['stack']} bytes")
    if pack["shared_bytes"] > SHARED_LIMIT:
        found.append(f"{pack['shared_bytes']} bytes of shared memory, more than {SHARED_LIMIT}")
    if pack["scratch_bytes"]:
        found.append(f"{pack['scratch_bytes']} bytes of scratch memory")
    major, minor = pack["ptx_version"].split(".")
    if int(major) * 10 + int(minor) > PTX_VERSIONS[pack["sm"]][0]:
        found.append(f"PTX {pack['ptx_version']}, newer than {pack['oldest_driver']} takes")
    kinds = ["*" if argument["type"].startswith("*") else "i" for argument in pack["arguments"]]
    inputs = len(kinds) - kinds[::-1].index("i") - 1 if "i" in kinds else 0
    if "".join(kinds).rstrip("*").lstrip("*").strip("i") or len(kinds) - 1 - inputs != pack["outputs"]:
        found.append("arguments are not inputs, int32 scalars, outputs")
    return found


def is_current(folder: Path, variant: Variant, sm: int) -> bool:
    """Whether the folder holds this very variant, whole."""
    try:
        pack = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        hashes = {
            name: hashlib.sha256((folder / f"kernel.{name}").read_bytes()).hexdigest() for name in ("ptx", "cubin")
        }
    except (OSError, ValueError):
        return False
    same = all(pack.get(f"{name}_sha256") == value for name, value in hashes.items())
    return same and pack.get("recipe_sha256") == recipe_sha256(variant, sm)


def write_pack(folder: Path, pack: dict[str, Any], ptx: str, cubin: bytes) -> None:
    """Puts a pack in place in one step: readers see the old one or the new one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        building.chmod(0o755)
        (building / "kernel.ptx").write_text(ptx, encoding="utf-8")
        (building / "kernel.cubin").write_bytes(cubin)
        (building / "pack.json").write_text(json.dumps(pack, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            os.replace(folder, aside / "pack")
            os.replace(building, folder)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def remove_others(folder: Path, names: set[str], dtype: str) -> None:
    """Takes away packs of this dtype that no table names any more: a plug-in would offer them to TensorRT."""
    for pack in folder.glob(f"*-{dtype}*"):
        if pack.is_dir() and pack.name not in names:
            shutil.rmtree(pack)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sm", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--reduced", action="store_true")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as cache:
        # Triton's own cache and the paths of this machine stay out of what is built.
        os.environ |= {"TRITON_CACHE_DIR": cache, "TRITON_DISABLE_LINE_INFO": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
        wanted = variants_for(options.sm, dtype=options.dtype, reduced=options.reduced)
        if not options.reduced:
            remove_others(options.out / f"sm_{options.sm}", {variant.name for variant in wanted}, options.dtype)
        for variant in wanted:
            folder = options.out / f"sm_{options.sm}" / variant.name
            answer: dict[str, Any] = {"name": variant.name, "state": "kept"}
            if not is_current(folder, variant, options.sm):
                try:
                    write_pack(folder, *compile_variant(variant, options.sm))
                    answer["state"] = "built"
                except PackError as error:
                    answer |= {"state": "failed", "error": str(error)}
                    failed += 1
            print(json.dumps(answer), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
