"""Graphs that the contenders need and nobody ships: our model's in float32, and the detector's.

They lie in build/bench and are made once for the weights that the embedded engine was made from. Each is made in a
process of its own: the exporter holds gigabytes.
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from auroraedge.errors import EngineError
from auroraedge.manifest import load_manifest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "bench"


def _export_graphs(model: Path, part: Path) -> None:
    from engine_build.export import export_all
    from engine_build.steps import load_model

    for _ in export_all(load_model(model), part):
        pass


def _export_detector(path: Path) -> None:
    from benchmarks.detector import export

    export(path)


def _apart(call: Callable[..., None], *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=call, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise EngineError(f"{call.__name__.strip('_')} failed (exit status {process.exitcode}).", field="bench")


def float_graphs(engine: Path, model: Path) -> Path:
    """Folder with vision.onnx, fusion.onnx and decoder.onnx in float32, of the weights in `model`.

    Raises EngineError when they are not the weights that `engine` was built from: then nothing could be compared.
    """
    from engine_build.steps import weights_sha256

    wanted, found = load_manifest(engine).weights_sha256, weights_sha256(model)
    if wanted != found:
        raise EngineError(
            f"{model} holds other weights ({found[:12]}) than the engine was built from ({wanted[:12]}).",
            field="--model",
            remedy="Build the engine again: python engine_build/build.py --target cpu --model nano.",
        )
    folder = FOLDER / f"float32-{found[:12]}"
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _apart(_export_graphs, model, part)
        part.rename(folder)
    return folder


def detector_graph() -> Path:
    path = FOLDER / "detector.onnx"
    if not path.is_file():
        _apart(_export_detector, path)
    return path
