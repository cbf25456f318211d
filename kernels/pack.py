"""Compiles the kernels ahead of time, for GPUs that need not be here.

    python -m kernels.pack --sm 80 86 87 89 90 100 120 [--out build/kernels]   PTX, cubin and pack.json
    python -m kernels.pack --table [--gpu orin h100]                           which tile each GPU uses, and its waves

DIR/sm_87/VARIANT/{kernel.ptx, kernel.cubin, pack.json}, and DIR/index.json over all of it. A target is compiled by a
process of its own. What is there and current is kept, so an interrupted run goes on where it stopped. A variant that
spills, needs scratch or more than 48 KB of shared memory, or lacks its matrix instruction, fails the pack.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kernels.gpus import GPUS, PTX_VERSIONS
from kernels.tiles import WORK, choices

ROOT = Path(__file__).resolve().parents[1]


@dataclass(kw_only=True)
class TargetResult:
    """What became of one capability. failed: errors by variant; abort: how its process ended, if badly."""

    sm: int
    built: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    abort: str = ""

    @property
    def sound(self) -> bool:
        return not self.failed and not self.abort


def compile_target(
    sm: int, out: Path, *, dtype: str = "fp16", reduced: bool = False, on_variant: Callable[[str], None] | None = None
) -> TargetResult:
    """Compiles a capability in a process of its own; on_variant is called with every finished variant's name."""
    command = [sys.executable, "-m", "kernels.compile", "--sm", str(sm), "--out", str(out), "--dtype", dtype]
    command += ["--reduced"] if reduced else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.pop("TRITON_INTERPRET", None)
    result = TargetResult(sm=sm)
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
        reader.start()
        try:
            for line in process.stdout:
                answer = json.loads(line)
                if answer["state"] == "failed":
                    result.failed[answer["name"]] = answer["error"]
                else:
                    (result.built if answer["state"] == "built" else result.kept).append(answer["name"])
                if on_variant is not None:
                    on_variant(answer["name"])
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        reader.join()
        if code not in (0, 1) or (code == 1 and not result.failed):
            result.abort = f"the compiler's process ended with {code}: {''.join(errors)[-1500:].strip()}"
    return result


def write_index(out: Path) -> Path:
    """index.json: SHA-256 of every pack.json below `out`, which names the hashes of the rest. Written in one step."""
    packs = {str(path.relative_to(out).parent): path for path in sorted(out.glob("sm_*/*/pack.json"))}
    content = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in packs.items()}
    path = out / "index.json"
    building = path.with_suffix(f".{os.getpid()}.tmp")
    building.write_text(json.dumps({"schema_version": 1, "packs": content}, indent=1) + "\n", encoding="utf-8")
    os.replace(building, path)
    return path


def build_packs(
    capabilities: list[int], out: Path, *, dtype: str, reduced: bool, jobs: int, console: Console
) -> list[TargetResult]:
    """All capabilities, `jobs` at a time, with a bar each."""
    from kernels.variants import variants_for

    out.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("sm_{task.fields[sm]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tail = TextColumn("{task.description}")
    with Progress(*columns, tail, console=console) as progress, ThreadPoolExecutor(max_workers=jobs) as pool:

        def work(sm: int) -> TargetResult:
            total = len(variants_for(sm, dtype=dtype, reduced=reduced))  # type: ignore[arg-type]
            task = progress.add_task("", total=total, sm=sm)
            return compile_target(
                sm,
                out,
                dtype=dtype,
                reduced=reduced,
                on_variant=lambda name: progress.update(task, advance=1, description=name),
            )

        results = list(pool.map(work, capabilities))
    write_index(out)
    return results


def tile_table(name: str) -> Table:
    """Tiles and waves of one GPU by kernel, precision and batch."""
    gpu = GPUS[name]
    table = Table(title=f"{name}: {gpu.title}, sm_{gpu.sm}, {gpu.sm_count} processors", title_justify="left")
    for title in ("kernel", "precision", "1 view", "4 views", "16 views"):
        table.add_column(title, no_wrap=True)
    rows: dict[tuple[str, str], list[str]] = {}
    for choice in choices([name]):
        cell = f"{choice.tile.name} {choice.waves:.1f}" + (" !" if choice.starved else "")
        rows.setdefault((choice.what, choice.precision), []).append(cell)
    last = ""
    for (what, precision), cells in rows.items():
        table.add_row("" if what == last else what, precision, *cells)
        last = what
    return table


def result_table(results: list[TargetResult], out: Path) -> Table:
    """One row a capability."""
    table = Table(title=f"Kernel packs in {out}")
    for title in ("target", "built", "kept", "failed", "PTX, oldest driver"):
        table.add_column(title)
    for result in results:
        version, driver = PTX_VERSIONS[result.sm]
        failed = str(len(result.failed)) if not result.abort else "aborted"
        cells = (str(len(result.built)), str(len(result.kept)), failed)
        table.add_row(f"sm_{result.sm}", *cells, f"{version // 10}.{version % 10}, {driver}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sm", type=int, nargs="+", choices=sorted(PTX_VERSIONS), default=sorted(PTX_VERSIONS))
    parser.add_argument("--out", type=Path, default=Path("build/kernels"))
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--reduced", action="store_true", help="one tile of each kernel and precision, 2b alone")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="targets at the same time")
    parser.add_argument("--table", action="store_true", help="print the tiles and compile nothing")
    parser.add_argument("--gpu", nargs="+", choices=sorted(GPUS), default=list(GPUS), help="for --table")
    options = parser.parse_args()
    console = Console()
    if options.table:
        for name in options.gpu:
            console.print(tile_table(name))
        console.print(f"The work is that of the 2b connectors: {', '.join(f'{w.what} {w.meaning}' for w in WORK)}.")
        console.print(
            "A cell is the tile and its waves: programs divided by processors. !: less than a third of them have"
        )
        console.print("work; take 'float' there, which has smaller tiles, or more views at once.")
        return 0
    try:
        import triton
    except ImportError:
        console.print("Triton is not installed: pip install 'auroraedge[kernels]'", style="red")
        return 3
    console.print(f"Triton {triton.__version__}")
    results = build_packs(
        options.sm,
        options.out,
        dtype=options.dtype,
        reduced=options.reduced,
        jobs=max(1, options.jobs),
        console=console,
    )
    console.print(result_table(results, options.out))
    for result in results:
        for name, error in result.failed.items():
            console.print(f"[red]{name}[/red]: {error}", soft_wrap=True)
        if result.abort:
            console.print(f"[red]sm_{result.sm}[/red]: {result.abort}", soft_wrap=True)
    return 0 if all(result.sound for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
