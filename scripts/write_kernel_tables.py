"""Writes the tables of docs/kernels.md from the packs of kernels.pack and from the tile table.

python -m kernels.pack --out build/kernels && python -m scripts.write_kernel_tables --packs build/kernels
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from kernels.gpus import GPUS, PTX_VERSIONS
from kernels.tiles import choices

PAGE = Path(__file__).resolve().parents[1] / "docs" / "kernels.md"
# Variants of the table: the 2b preset, one role of the linear layer.
_SHOWN = re.compile(r"(compressor|attention_q-2b|linear-kv|linear-fc1)-fp16-(float|int8|fp8)-(\w+)")
_TILES_OF = ("orin-nano", "orin", "a100", "l4", "h100", "b200")


def resources(packs: list[dict[str, Any]]) -> str:
    """Registers and KB of shared memory by variant and capability."""
    capabilities = sorted(PTX_VERSIONS)
    cells: dict[tuple[str, ...], dict[int, str]] = {}
    for pack in packs:
        match = _SHOWN.fullmatch(pack["name"])
        if match is not None:
            text = f"{pack['registers']} / {pack['shared_bytes'] / 1024:.0f}"
            cells.setdefault(match.groups(), {})[pack["sm"]] = text
    lines = ["| kernel | precision | tile | " + " | ".join(f"sm_{sm}" for sm in capabilities) + " |"]
    lines.append("|---" * (3 + len(capabilities)) + "|")
    for key in sorted(cells):
        lines.append("| " + " | ".join((*key, *(cells[key].get(sm, "") for sm in capabilities))) + " |")
    count, spills = len(packs), sum(pack["spill_stores"] + pack["spill_loads"] for pack in packs)
    most = max(pack["shared_bytes"] for pack in packs)
    versions = ", ".join(sorted({pack["triton_version"] for pack in packs}))
    lines += [
        "",
        f"{count} variants by Triton {versions}: {spills} bytes of spills, at most {most:,} bytes of shared memory.",
    ]
    return "\n".join(lines)


def drivers() -> str:
    """PTX version and oldest driver by capability."""
    lines = ["| capability | PTX | from |", "|---|---|---|"]
    lines += [f"| sm_{sm} | {v // 10}.{v % 10} | {driver} |" for sm, (v, driver) in sorted(PTX_VERSIONS.items())]
    return "\n".join(lines)


def tiles() -> str:
    """Tile and waves by GPU and batch, in 16 bit."""
    rows: dict[str, dict[tuple[str, int], str]] = {}
    for choice in choices(list(_TILES_OF)):
        if choice.precision == "float":
            rows.setdefault(choice.what, {})[choice.gpu, choice.views] = f"{choice.tile.name} {choice.waves:.1f}"
    heads = [f"{gpu} ({GPUS[gpu].sm_count})" for gpu in _TILES_OF]
    lines = ["| kernel | views | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for what, cells in rows.items():
        for views in (1, 4, 16):
            lines.append(f"| {what} | {views} | " + " | ".join(cells[gpu, views] for gpu in _TILES_OF) + " |")
    return "\n".join(lines)


def replaced(page: str, name: str, table: str) -> str:
    """The page with what stands between the marks of `name` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    found, count = pattern.subn(lambda match: f"{match[1]}{table}\n{match[2]}", page)
    if count != 1:
        raise SystemExit(f"docs/kernels.md has no marks for {name}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, default=Path("build/kernels"))
    options = parser.parse_args()
    packs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.packs.glob("sm_*/*/pack.json"))]
    if {pack["sm"] for pack in packs} != set(PTX_VERSIONS):
        print(f"{options.packs} lacks packs: run python -m kernels.pack --out {options.packs}", file=sys.stderr)
        return 1
    page = PAGE.read_text(encoding="utf-8")
    for name, table in (("resources", resources(packs)), ("drivers", drivers()), ("tiles", tiles())):
        page = replaced(page, name, table)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
