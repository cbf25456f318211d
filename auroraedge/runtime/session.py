"""One compiled graph behind one interface, whatever runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort

from auroraedge.errors import EngineError, EngineIncompatibleError
from auroraedge.manifest import GraphSpec, TensorSpec
from auroraedge.runtime.huge_pages import LARGE_BYTES, huge_pages, weight_bytes

Arrays = Mapping[str, np.ndarray]
# ONNX Runtime's names of the element types that a graph may take or give.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
}


class GraphSession(Protocol):
    """Runs a graph: named arrays in, named arrays out. Raises EngineError when the graph fails."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]: ...


def computes_in_float(precision: str) -> bool:
    """Whether a graph of this precision (of a manifest) rounds, but multiplies in float32.

    "int8-weights": an answer must not depend on the other frames of its batch. "...-qdq": it stands for a GPU, whose
    integer products do not saturate as those of ONNX Runtime do on a processor without VNNI.
    """
    return precision == "int8-weights" or precision.endswith("-qdq")


class OrtSession:
    """A graph in ONNX Runtime on the CPU. Thread-safe: ONNX Runtime allows concurrent `run`.

    spec: what the manifest says of the graph; a file with other inputs or outputs raises EngineIncompatibleError, as
    does one that ONNX Runtime cannot load. fold_weights: the graph computes in float32 whatever its weights are stored
    in, so they are expanded once, at load; see `computes_in_float`.
    """

    def __init__(
        self, path: Path, *, spec: GraphSpec | None = None, threads: int | None = None, fold_weights: bool = False
    ) -> None:
        options = ort.SessionOptions()
        self.threads = options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # The three graphs of an engine take turns on the same cores: workers of one that wait by spinning would slow
        # the next one down (verdict of a four-view frame on two cores: 100 ms with, 55 ms without). A step of a large
        # decoder has 200 joints of a few hundred microseconds: there they spin until the run is over, which saves a
        # tenth of it.
        self.large = weight_bytes(path) >= LARGE_BYTES
        if self.large:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        else:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if fold_weights:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.name = path.name
        try:
            with huge_pages(self.large):
                self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own family, which has no common public base
            raise EngineIncompatibleError(
                f"ONNX Runtime {ort.__version__} cannot load {path.name}: {error}.", field=path.name
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.inputs = tuple(item.name for item in inputs)
        self.outputs = tuple(item.name for item in outputs)
        if spec is not None:
            faults = [*_differences("input", inputs, spec.inputs), *_differences("output", outputs, spec.outputs)]
            if faults:
                raise EngineIncompatibleError(
                    f"{path.name} is not the graph that the manifest describes: {'; '.join(faults)}.", field=path.name
                )

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        try:
            outputs = self._session.run(None, dict(inputs))
        except Exception as error:  # as above; out of memory is among them
            raise EngineError(f"The graph {self.name} failed: {error}.", field=self.name) from error
        return dict(zip(self.outputs, outputs, strict=True))

    def run_aliased(self, inputs: Arrays, aliased: Mapping[str, tuple[str, np.ndarray]], output: str) -> np.ndarray:
        """Runs with outputs that share the memory of inputs; returns one further output.

        aliased: by input, the output and the contiguous array that both are. The graph must allow it, as TensorScatter
        does for its first input.
        """
        binding = self._session.io_binding()
        try:
            for name, array in inputs.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            for name, (twin, array) in aliased.items():
                value = ort.OrtValue.ortvalue_from_numpy(array)
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(twin, value)
            binding.bind_output(output)
            self._session.run_with_iobinding(binding)
            found: np.ndarray = binding.get_outputs()[-1].numpy()
        except Exception as error:  # as above
            raise EngineError(f"The graph {self.name} failed: {error}.", field=self.name) from error
        return found


def _differences(what: str, found: Sequence[ort.NodeArg], wanted: Sequence[TensorSpec]) -> Iterator[str]:
    """How the inputs or outputs of a loaded graph differ from their specification, in words."""
    by_name = {item.name: item for item in found}
    for name in sorted(by_name.keys() - {spec.name for spec in wanted}):
        yield f"{what} {name} is not listed"
    for spec in wanted:
        item = by_name.get(spec.name)
        if item is None:
            yield f"{what} {spec.name} is missing"
            continue
        dtype = _DTYPES.get(item.type, item.type)
        if dtype != spec.dtype:
            yield f"{what} {spec.name} is {dtype}, not {spec.dtype}"
        shape = tuple(item.shape)
        # A named axis fits any size; a size fits itself and, where the graph leaves it open, a name.
        fits = len(shape) == len(spec.shape) and all(
            here == there for here, there in zip(shape, spec.shape, strict=True) if isinstance(here, int)
        )
        if not fits:
            yield f"{what} {spec.name} has shape {list(shape)}, not {list(spec.shape)}"
