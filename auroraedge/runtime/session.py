"""One compiled graph behind one interface, whatever runs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort

from auroraedge.errors import EngineIncompatibleError

Arrays = Mapping[str, np.ndarray]


class GraphSession(Protocol):
    """Runs a graph: named arrays in, named arrays out."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]: ...


class OrtSession:
    """A graph in ONNX Runtime on the CPU. Thread-safe: ONNX Runtime allows concurrent `run`.

    fold_weights: the graph stores INT8 weights and computes in float32, so they are expanded once, at load.
    """

    def __init__(self, path: Path, *, threads: int | None = None, fold_weights: bool = False) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # The three graphs of an engine take turns on the same cores: workers of one that wait by spinning would slow
        # the next one down.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if fold_weights:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own family, which has no common public base
            raise EngineIncompatibleError(
                f"ONNX Runtime {ort.__version__} cannot load {path.name}: {error}.", field=path.name
            ) from error
        self.inputs = tuple(item.name for item in self._session.get_inputs())
        self.outputs = tuple(item.name for item in self._session.get_outputs())

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self._session.run(None, dict(inputs)), strict=True))
