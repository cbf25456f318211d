"""Everything that has to be measured on a GPU, in one call: parity, times, machine code, the model end to end.

    PYTHONPATH=. python benchmarks/gpu_session.py --out $OUT        (needs torch, triton, transformers; about 8 minutes)

Stages: tests/gpu, compute-sanitizer where it is installed, benchmarks/kernels.py in float16 and bfloat16, a sweep over
the tiles, the SASS of what was compiled, the 2b model with random weights (eager, fused connectors, CUDA graphs,
compiled), and the GPU suite against other models' shapes (benchmarks/gpu.py). A stage that fails is reported and the
next one runs. The table comes last; gpu_session.json, gpu_suite.json, dispatch.json (for kernels/) and a plot go to
--out. The exit status is 1 after a failed parity or a failed stage, 3 without a GPU.

`--smoke` runs the same code small on a CPU in Triton's interpreter, to test the script itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
SMOKE = "--smoke" in sys.argv
# Triton reads these when it is imported.
CACHE = Path(tempfile.mkdtemp(prefix="kernels-"))
os.environ["TRITON_CACHE_DIR"] = str(CACHE)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
if SMOKE:
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks import kernels as bench  # noqa: E402
from benchmarks.environment import environment, percentiles  # noqa: E402
from benchmarks.suite import Document  # noqa: E402
from benchmarks.tables import document_tables  # noqa: E402
from kernels.gpus import nearest_gpu  # noqa: E402
from kernels.launch import gpu_of  # noqa: E402
from kernels.sass import tool  # noqa: E402
from kernels.tiles import WORK, Work, choose_tile, tiles_for  # noqa: E402

PRESET = "nano" if SMOKE else "2b"
DEVICE = torch.device("cpu" if SMOKE or not torch.cuda.is_available() else "cuda:0")
DTYPE = torch.float32 if SMOKE else torch.float16
console = Console(width=150)


# --- stages ----------------------------------------------------------------------------------------------------------


def stage_device() -> dict[str, Any]:
    """What this is measured on."""
    if DEVICE.type == "cpu":
        return {"name": "none", "gpu": "a100", "sm": 80, "processors": 8}
    found = torch.cuda.get_device_properties(DEVICE)
    sm, count = gpu_of(torch.empty(0, device=DEVICE))
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.sm,power.limit", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "name": found.name,
        "gpu": nearest_gpu(sm, count),
        "sm": sm,
        "processors": count,
        "memory_bytes": found.total_memory,
        "cuda": torch.version.cuda,
        "driver, clocks, power": driver,
        "triton": importlib.import_module("triton").__version__,
    }


def pytest_command(*words: str) -> list[str]:
    """pytest over tests/gpu, without this project's settings: the machine has not its plug-ins."""
    settings = CACHE / "pytest.ini"
    settings.write_text(f"[pytest]\npythonpath = {ROOT} {ROOT / 'tests'}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(settings)]
    return [*command, f"--rootdir={ROOT}", str(ROOT / "tests" / "gpu"), *words]


def stage_tests() -> dict[str, Any]:
    """tests/gpu; in a smoke run they are skipped by themselves."""
    # Compiling takes longest and the GPU waits for it: several processes, where pytest-xdist is installed.
    several = ["-n", "6"] if importlib.util.find_spec("xdist") is not None and not SMOKE else []
    command = pytest_command(*several)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout.splitlines()[-1] if done.stdout else "")
    failures = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE)
    for line in failures:
        console.print(f"[red]{line}[/red]", soft_wrap=True)
    errors = re.findall(r"^E +(AssertionError: .*|.*Error.*)$", done.stdout, re.MULTILINE)[:40]
    return {
        "passed": done.returncode == 0,
        "counts": {kind: int(count) for count, kind in counts},
        "failures": failures,
        "errors": errors,
        "tail": (done.stdout[-3000:] + done.stderr[-1000:]) if done.returncode else "",
    }


def stage_sanitizer() -> dict[str, Any]:
    """compute-sanitizer's memcheck and racecheck over a few small tests, where the tool is installed."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None or DEVICE.type == "cpu":
        return {"passed": True, "skipped": "not measured: compute-sanitizer is not installed"}
    found: dict[str, Any] = {"passed": True}
    environment_ = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    chosen = pytest_command("-x", "-k", "nano and float16 and not bfloat16 and (test_compress or attention_with)")
    for check in ("memcheck", "racecheck"):
        command = [program, "--tool", check, "--error-exitcode", "9", *chosen]
        done = subprocess.run(
            command, cwd=ROOT, env=environment_, capture_output=True, text=True, timeout=120, check=False
        )
        lines = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", done.stdout + done.stderr)
        found[check] = lines[-1] if lines else f"exit status {done.returncode}"
        found["passed"] = found["passed"] and done.returncode == 0
    return found


def stage_benchmark(dtype: torch.dtype, *, compiled: bool = True) -> dict[str, Any]:
    """benchmarks/kernels.py."""
    quick: dict[str, Any] = dict(batches=bench.BATCHES, compiled=compiled)
    if SMOKE:
        quick = dict(batches=(1,), samples=1, inner=1, compiled=False)
    report = bench.run_cases(PRESET, DEVICE, dtype, console=console, **quick)
    return {**report, "passed": all(row["parity"]["passed"] for row in report["rows"])}


def stage_tiles() -> dict[str, Any]:
    """Every tile for the work of the connectors: is the one that the table takes the fastest?"""
    from kernels.compressor.op import compress
    from kernels.fusion_attention.op import cross_attention
    from kernels.projector.op import linear

    sm, count = gpu_of(torch.empty(0, device=DEVICE))
    sizes = bench.Sizes.of(PRESET)
    make: dict[str, Any] = dict(device=DEVICE, dtype=DTYPE)
    d, n = sizes.width, sizes.patches
    rows = []

    def call_of(work: Work, views: int) -> tuple[str, Callable[[], Any]] | None:
        mask = torch.ones(views, n, device=DEVICE)
        if work.kernel == "compressor":
            visual = torch.randn(views, n, d, **make)
            gain, w1, b1 = torch.ones(d, **make), torch.randn(sizes.hidden, n, **make), torch.ones(sizes.hidden, **make)
            w2, b2 = torch.randn(sizes.tokens, sizes.hidden, **make), torch.ones(sizes.tokens, **make)
            squares = torch.ones(views, n, 1, device=DEVICE)
            return "kernels.compressor.op", lambda: compress(visual, mask, gain, 1e-6, w1, b1, w2, b2, squares)
        if work.kernel == "attention_q":
            text = torch.randn(views, sizes.prompt, d, **make)
            key, value = torch.randn(2, views, sizes.heads, n, d // sizes.heads, **make)
            gain, wq, bq = torch.ones(d, **make), torch.randn(d, d, **make), torch.ones(d, **make)
            return "kernels.fusion_attention.op", lambda: cross_attention(text, key, value, mask, gain, 1e-6, wq, bq)
        if work.kernel == "linear":
            x = torch.randn(views * work.rows, d, **make)
            weight = torch.randn(work.columns * d // 1536, d, **make)
            return "kernels.projector.op", lambda: linear(x, weight, None, None, None, 0.0, False, False, False)
        return None

    for work in WORK:
        for views in (1,) if SMOKE else bench.BATCHES:
            made = call_of(work, views)
            if made is None:
                continue
            module, call = made
            times = {}
            for tile in tiles_for(work.kernel, sm, "float"):
                with mock.patch(f"{module}.tile_for", lambda *_, _tile=tile, **__: _tile), torch.no_grad():
                    samples = bench.time_us(call, DEVICE, **(dict(samples=1, inner=1) if SMOKE else dict(samples=15)))
                times[tile.name] = percentiles(samples)["p50"]
            columns = dict(rows=work.rows, columns=work.columns)
            chosen = choose_tile(work.kernel, sm=sm, sm_count=count, precision="float", views=views, **columns).name
            best = min(times, key=lambda name: times[name])
            rows.append(
                {
                    "work": work.what,
                    "views": views,
                    "us": times,
                    "chosen": chosen,
                    "best": best,
                    "loss": times[chosen] / times[best],
                }
            )
    return {"passed": True, "rows": rows}


def stage_sass() -> dict[str, Any]:
    """Matrix instructions and local memory in what was compiled for this GPU so far, this process and tests/gpu."""
    found = []
    for cubin in sorted(CACHE.rglob("*.cubin")):
        text = subprocess.run([str(tool("nvdisasm")), "-c", str(cubin)], capture_output=True, text=True, check=False)
        names = re.findall(r"\b(UTC[A-Z]+MMA|[HIQO]G?MMA|LDL|STL)\b", text.stdout)
        metadata = json.loads(cubin.with_suffix(".json").read_text(encoding="utf-8"))
        counts = {name: names.count(name) for name in sorted(set(names))}
        found.append({"name": cubin.stem, "shared": metadata.get("shared"), "instructions": counts})
    ours = [f for f in found if f["name"].endswith("_kernel") and not f["name"].startswith("triton_")]
    spilling = [f["name"] for f in ours if f["instructions"].keys() & {"LDL", "STL"}]
    return {"passed": True, "kernels": ours, "spilling": spilling}


def stage_model() -> dict[str, Any]:
    """Frame to first token with random weights: vision, connectors, fusion layer, prefill."""
    from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration
    from kernels.connectors import fuse_connectors

    config = AuroraEdgeConfig.from_preset(PRESET)
    torch.manual_seed(0)
    with DEVICE:
        model = AuroraEdgeForConditionalGeneration(config).to(DTYPE).eval().requires_grad_(False)
    rows: list[dict[str, Any]] = []
    errors: dict[str, str] = {}
    passed = True
    few = dict(samples=1, inner=1) if SMOKE else dict(samples=10, inner=5)
    for views in (1,) if SMOKE else (1, 4):
        pixels = torch.randn(views, 256, 768, device=DEVICE, dtype=DTYPE)
        ids = torch.randint(0, 1000, (views, bench.PROMPT), device=DEVICE)

        def first(pixels: torch.Tensor = pixels, ids: torch.Tensor = ids) -> torch.Tensor:
            return model(pixel_values=pixels, input_ids=ids).logits[:, -1]

        with torch.no_grad():
            plain = first()
            row: dict[str, Any] = {"views": views, "ms": {}}
            row["ms"]["eager"] = [t / 1e3 for t in bench.time_us(first, DEVICE, **few)]
            with fuse_connectors(model):
                ours = first()
                row["ms"]["eager, fused connectors"] = [t / 1e3 for t in bench.time_us(first, DEVICE, **few)]
                attempts: dict[str, Callable[[], Callable[[], Any]]] = {}
                if DEVICE.type == "cuda":
                    attempts["graph, fused connectors"] = lambda: bench.graphed(first, DEVICE)
                for name, attempt in attempts.items():
                    _try(name, attempt, row, errors, few)
            if DEVICE.type == "cuda":
                _try("graph", lambda: bench.graphed(first, DEVICE), row, errors, few)
                if views == 1:
                    _try("compile", lambda: torch.compile(first, dynamic=False), row, errors, few)
        cosine = torch.nn.functional.cosine_similarity(ours.double().flatten(), plain.double().flatten(), 0)
        row["cosine"] = float(cosine)
        # Two float16 runs that round differently through 28 layers; a miswired connector is far below.
        passed = passed and row["cosine"] > 0.99 and bool(torch.isfinite(ours).all())
        rows.append(row)
    return {"passed": passed, "rows": rows, "not_measured": errors}


def stage_peers() -> dict[str, Any]:
    """The GPU suite (benchmarks/gpu.py): the 2b model against its uncompressed baseline and others' shapes."""
    from benchmarks import gpu

    document = gpu.measure(DEVICE, DTYPE, rounds=10, smoke=SMOKE, console=console)
    return {"passed": bool(document.measurements), "document": document.model_dump(mode="json")}


def stage_runtime() -> dict[str, Any]:
    """nano through the runtimes of this machine: torch, TensorRT where it is installed, and the CPU's engine."""
    from benchmarks import engine_runtime

    return engine_runtime.measure(2 if SMOKE else 30)


def _try(
    name: str,
    make: Callable[[], Callable[[], Any]],
    row: dict[str, Any],
    errors: dict[str, str],
    few: dict[str, int],
) -> None:
    """Times a contender that may not work with this model; why not is kept."""
    try:
        row["ms"][name] = [t / 1e3 for t in bench.time_us(make(), DEVICE, **few)]
    except Exception as error:  # what torch cannot capture or compile comes as many kinds
        errors[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)


# --- the end ---------------------------------------------------------------------------------------------------------


def targets(benchmark: dict[str, Any]) -> list[tuple[str, str, bool | None]]:
    """(target, measured, met) of what is asked of the kernels."""
    found: list[tuple[str, str, bool | None]] = []
    rows = {(row["case"], row["views"]): row for row in benchmark["rows"]}

    def ratio(case: str, views: int, other: str, ours: str, least: float) -> None:
        row = rows.get((case, views))
        contenders = row["contenders"] if row else {}
        title = f"{case}, {views} views: {ours} >= {least}x {other}"
        if other not in contenders or ours not in contenders:
            found.append((title, "not measured", None))
            return
        value = contenders[other]["us"]["p50"] / contenders[ours]["us"]["p50"]
        found.append((title, f"{value:.2f}x", value >= least))

    ratio("compressor", 16, "eager", "ours", 5.0)
    ratio("compressor", 16, "compile", "ours", 1.5)
    row = rows.get(("compressor", 16))
    if row and DEVICE.type == "cuda":
        value = row["contenders"]["ours + graph"]["times_floor"]
        found.append(("compressor, 16 views: within 2x of its floor", f"{value:.2f}x", value <= 2))
        launches = rows["connectors", 1]["contenders"]["ours"]["launches"]
        found.append(("connectors: at most 6 launches", str(launches), launches <= 6))
    ratio("connectors", 1, "eager", "ours", 3.0)
    ratio("connectors", 1, "compile + graph", "ours + graph", 1.2)
    ratio("connectors", 16, "compile + graph", "ours + graph", 1.2)
    return found


def summary(report: dict[str, Any]) -> list[Table]:
    """The tables at the end: times, tiles, model, targets, stages."""
    tables = []
    for name in ("float16", "bfloat16"):
        if report.get(name, {}).get("rows"):
            tables.append(bench.time_table(report[name]))
    if report.get("tiles", {}).get("rows"):
        table = Table(title="Tiles: median us; chosen by the table, and what it loses to the best")
        for title in ("work", "views", "us by tile", "chosen", "best", "loss"):
            table.add_column(title)
        for row in report["tiles"]["rows"]:
            times = ", ".join(f"{name} {us:.1f}" for name, us in row["us"].items())
            table.add_row(
                row["work"], str(row["views"]), times, row["chosen"], row["best"], f"{100 * (row['loss'] - 1):.0f} %"
            )
        tables.append(table)
    if report.get("model", {}).get("rows"):
        table = Table(title=f"{PRESET}, random weights: frame to first token, ms (p50 / p95)")
        for title in ("views", "how", "ms", "cosine of the logits to eager"):
            table.add_column(title)
        for row in report["model"]["rows"]:
            for name, samples in row["ms"].items():
                p = percentiles(samples)
                table.add_row(str(row["views"]), name, f"{p['p50']:.2f} / {p['p95']:.2f}", f"{row['cosine']:.5f}")
        tables.append(table)
    if report.get("peers", {}).get("document"):
        tables += document_tables(Document.model_validate(report["peers"]["document"]))
    if report.get("float16", {}).get("rows"):
        table = Table(title="Targets")
        for title in ("target", "measured", "met"):
            table.add_column(title)
        for title, measured, met in targets(report["float16"]):
            table.add_row(title, measured, {True: "yes", False: "NO", None: ""}[met])
        tables.append(table)
    table = Table(title="Stages")
    for title in ("stage", "seconds", "result"):
        table.add_column(title)
    for name, seconds in report["seconds"].items():
        result = report[name]
        text = result.get("error") or result.get("skipped") or ("passed" if result.get("passed", True) else "FAILED")
        extra = {k: result[k] for k in ("counts", "spilling", "not_measured") if result.get(k)}
        table.add_row(name, f"{seconds:.0f}", f"{text} {extra or ''}")
    return [*tables, table]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-session")))
    parser.add_argument("--smoke", action="store_true", help="small, on a CPU, in Triton's interpreter")
    parser.add_argument("--minutes", type=float, default=8, help="no stage is started later than this")
    parser.add_argument("--only", nargs="+", help="names of stages")
    options = parser.parse_args()
    if DEVICE.type == "cpu" and not SMOKE:
        console.print("No CUDA device. benchmarks/kernels.py prints what is known without one.")
        return 3
    options.out.mkdir(parents=True, exist_ok=True)
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "device": stage_device,
        "tests": stage_tests,
        "float16": lambda: stage_benchmark(DTYPE),
        "bfloat16": lambda: stage_benchmark(torch.float32 if SMOKE else torch.bfloat16, compiled=False),
        "tiles": stage_tiles,
        "sass": stage_sass,
        "model": stage_model,
        "peers": stage_peers,
        "runtime": stage_runtime,
        "sanitizer": stage_sanitizer,
    }
    started = time.perf_counter()
    report: dict[str, Any] = {"environment": environment(), "seconds": {}}
    for name, stage in stages.items():
        if options.only and name not in (*options.only, "device"):
            continue
        console.rule(name)
        began = time.perf_counter()
        if began - started > 60 * options.minutes:
            report[name], report["seconds"][name] = {"skipped": "not measured: the time was up"}, 0.0
            continue
        try:
            report[name] = stage()
        except Exception as error:  # the other stages are still worth their time
            traceback.print_exc()
            report[name] = {"passed": False, "error": f"{type(error).__name__}: {str(error)[:500]}"}
        report["seconds"][name] = time.perf_counter() - began
        # After every stage: a session that is cut off keeps what it has.
        (options.out / "gpu_session.json").write_text(
            json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8"
        )
    if report.get("peers", {}).get("document"):
        # What `python -m benchmarks report` reads, once it is put into benchmarks/results.
        found = Document.model_validate(report["peers"]["document"])
        (options.out / "gpu_suite.json").write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    rows = (
        bench.dispatch_rows(report["float16"], report["device"]["gpu"]) if report.get("float16", {}).get("rows") else []
    )
    if rows and not SMOKE:
        note = f"Measured by benchmarks/gpu_session.py on {report['device']['name']}."
        content = {"note": note, "rows": rows}
        (options.out / "dispatch.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        bench.plot(report["float16"], options.out / "kernels.png")
    for table in summary(report):
        console.print(table)
    shutil.rmtree(CACHE, ignore_errors=True)
    return 0 if all(report[name].get("passed", True) for name in report["seconds"]) else 1


if __name__ == "__main__":
    sys.exit(main())
