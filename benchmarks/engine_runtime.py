"""The same frames through every runtime of a GPU machine: torch on CUDA, TensorRT, TensorRT-RTX, and the CPU's engine.

    PYTHONPATH=. python benchmarks/engine_runtime.py [--samples 30]

A runtime that is not there is reported as not available, with the reason. Answers first (verdict and P(NG) against the
CPU engine), then times. benchmarks/gpu_session.py runs this as its stage `runtime`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

COMPILERS = ("tensorrt", "tensorrt_rtx")
_PRECISION = "fp16"


def available(compiler: str) -> str:
    """ "" where engines can be compiled and run here, else why not."""
    from auroraedge.errors import AuroraEdgeError
    from auroraedge.runtime.cuda_memory import driver_is_here, open_gpu

    try:
        importlib.import_module(compiler)
    except (ImportError, OSError) as error:
        return f"not available: {error}"
    if not driver_is_here():
        return "not available: no CUDA driver"
    try:
        open_gpu()
    except AuroraEdgeError as error:
        return f"not available: {error.message}"
    return ""


def build_here(compiler: str, folder: Path, *, cache: str = "in_place", precision: str = _PRECISION) -> Path:
    """nano compiled for this machine's GPU, as a package in `folder`. Raises EngineError."""
    from rich.console import Console

    from auroraedge.errors import EngineError
    from auroraedge.runtime.cuda_memory import open_gpu
    from auroraedge.runtime.tensorrt_session import TARGET_BY_CAPABILITY
    from engine_build.gpu_build import GpuBuild, build_gpu_engine
    from engine_build.targets import load_target

    capability = open_gpu().capability
    if capability not in TARGET_BY_CAPABILITY:
        raise EngineError(f"There is no target for compute capability {capability}.", field="--target")
    target = load_target(TARGET_BY_CAPABILITY[capability])
    target = target.model_copy(update={"compilers": (compiler,)})
    build = GpuBuild(
        target=target,
        model="nano",
        precision=target.precision(precision),
        cache=cache,  # type: ignore[arg-type]
        views=8,
    )
    build_gpu_engine(build, folder / "engine", folder / "work", Console(stderr=True))
    return folder / "engine"


def frames(count: int = 3) -> list[Any]:
    """Generated tiles, uint8 [H, W, 3] or [H, W]."""
    import numpy as np

    from auroraedge.data.synthetic import generate_ground_surface

    rng = np.random.default_rng(6)
    return [generate_ground_surface(rng).image for _ in range(count)]


def measure_engine(engine: Path | None, samples: int) -> dict[str, Any]:
    """Verdicts, P(NG) and milliseconds of an engine on `frames`."""
    from auroraedge.inspection.recipe import load_recipe
    from auroraedge.runtime import Inspector
    from benchmarks.environment import percentiles

    recipe, parts = load_recipe("magnetic_tile"), frames()
    with Inspector.open(engine) as inspector:
        results = [inspector.inspect(part, recipe) for part in parts]
        asked = [inspector.ask(part, "describe", recipe).text for part in parts]
        timed = [inspector.inspect(parts[i % len(parts)], recipe).timings for i in range(samples)]
        info = inspector.engine
    return {
        "target": info.target,
        "precision": info.precision,
        "verdicts": [result.verdict.value for result in results],
        "ng_probability": [result.ng_probability for result in results],
        "answers": asked,
        "verdict_ms": percentiles([timing.verdict_ms for timing in timed]),
        "total_ms": percentiles([timing.total_ms for timing in timed]),
    }


def compare(found: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Whether the verdicts are those of the reference, and how far P(NG) is off at most."""
    pairs = zip(found["ng_probability"], reference["ng_probability"], strict=True)
    return {
        "same verdicts": found["verdicts"] == reference["verdicts"],
        "P(NG) off by": max(abs(a - b) for a, b in pairs),
    }


def measure(samples: int = 30) -> dict[str, Any]:
    """By runtime, what was measured, or why not."""
    try:
        reference = measure_engine(None, samples)
    except ImportError as error:
        return {"passed": True, "skipped": f"not available: {error}"}
    found: dict[str, Any] = {"onnxruntime, CPU": reference}
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ["AURORAEDGE_TORCH_DEVICE"] = device
    try:
        torch_engine = measure_engine(ROOT / "models" / "nano", samples)
    finally:
        with suppress(KeyError):
            del os.environ["AURORAEDGE_TORCH_DEVICE"]
    found[f"torch, {device}"] = torch_engine | compare(torch_engine, reference)
    for compiler in COMPILERS:
        reason = available(compiler)
        if reason:
            found[compiler] = reason
            continue
        with tempfile.TemporaryDirectory(prefix="engine-") as folder:
            engine = measure_engine(build_here(compiler, Path(folder)), samples)
        found[compiler] = engine | compare(engine, reference)
    # INT8 on the CPU against 16 bits here: verdicts may differ on a frame at a threshold, P(NG) by a little.
    passed = all(
        values["P(NG) off by"] < 0.1
        for values in found.values()
        if isinstance(values, dict) and "P(NG) off by" in values
    )
    return {"passed": passed, "runtimes": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=30)
    options = parser.parse_args()
    found = measure(options.samples)
    print(json.dumps(found, indent=1, default=str))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
