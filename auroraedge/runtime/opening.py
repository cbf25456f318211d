"""Opens whatever an engine is kept as: a package, or the folder of a model."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from auroraedge.errors import MissingDependencyError
from auroraedge.manifest import MANIFEST_FILE
from auroraedge.runtime.engine import Engine, EnginePackage

# What a model folder has and a package has not.
_MODEL_FILES = ("config.json", "model.safetensors")
DEVICE, DTYPE = "AURORAEDGE_TORCH_DEVICE", "AURORAEDGE_TORCH_DTYPE"


def open_engine(path: Path, *, threads: int | None = None, weights_sha256: str | None = None) -> Engine:
    """The engine package at `path`, or the model folder, run by torch (extra `gpu`).

    threads: of the compute kernels on a CPU; None uses all cores. weights_sha256: of the weights that it must have. A
    model runs on CUDA where there is a device, else on the CPU; AURORAEDGE_TORCH_DEVICE and AURORAEDGE_TORCH_DTYPE
    choose otherwise. Raises EngineError and MissingDependencyError, each with what mends it.
    """
    is_model = all((path / name).is_file() for name in _MODEL_FILES) and not (path / MANIFEST_FILE).is_file()
    if not is_model:
        return EnginePackage(path, threads=threads, weights_sha256=weights_sha256)
    try:
        module = importlib.import_module("auroraedge.runtime.torch_engine")
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is a model folder, which torch runs, and it cannot be loaded: {error}.",
            field="engine",
            remedy='pip install "auroraedge[gpu]", or build an engine package: `python engine_build/build.py`.',
        ) from error
    engine: Engine = module.TorchEngine(
        path,
        device=os.environ.get(DEVICE) or None,
        dtype=os.environ.get(DTYPE) or None,
        threads=threads,
        weights_sha256=weights_sha256,
    )
    return engine
