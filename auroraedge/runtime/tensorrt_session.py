"""Plans of `tensorrt` (10.3 and newer, 11) and `tensorrt_rtx` behind the interface of the other sessions.

Host arrays in, host arrays out: inputs are cast to the plan's types and staged in pinned memory, outputs come back as
float32. A plan has as many execution contexts as it has concurrent users, of each optimisation profile. What a version
of the library may lack is looked for with hasattr. Not run on hardware; the decoder's bookkeeping, which is most of the
logic, is runtime.in_place and runs in ONNX Runtime too.
"""

from __future__ import annotations

import functools
import importlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from auroraedge.errors import EngineError, EngineIncompatibleError, MissingDependencyError
from auroraedge.manifest import EngineManifest, GraphSpec, build_command, check_target
from auroraedge.runtime.cuda_memory import Gpu, driver_is_here, open_gpu
from auroraedge.runtime.session import Arrays

LIBRARIES = {
    "tensorrt": "Install TensorRT 10.3 or newer; on a Jetson: sudo apt-get install python3-libnvinfer",
    "tensorrt_rtx": 'pip install "auroraedge[rtx]"',
}
# A target of engine_build for a GPU of another generation than the package's.
TARGET_BY_CAPABILITY = {
    "8.0": "a100",
    "8.6": "rtx-ampere",
    "8.7": "orin",
    "8.9": "rtx-ada",
    "9.0": "h100",
    "10.0": "b200",
    "11.0": "thor",
    "12.0": "rtx-blackwell",
}


class TensorRt:
    """The library and the GPU that the plans of a package run on."""

    def __init__(self, trt: ModuleType, gpu: Gpu) -> None:
        self.trt, self.gpu = trt, gpu
        self.log = _logger(trt)

    @classmethod
    def open(cls, manifest: EngineManifest) -> TensorRt:
        """Raises EngineIncompatibleError, with the command that mends it, and MissingDependencyError."""
        name, built_for = manifest.compiler.name, manifest.compute_capability
        if not driver_is_here():
            raise EngineIncompatibleError(
                f"The engine package is built for {manifest.target} (compute capability {built_for}), and there is no "
                "CUDA driver here.",
                field="target",
                remedy=f"Build one for this machine: `{build_command('cpu')}`.",
            )
        try:
            trt = importlib.import_module(name)
        except (ImportError, OSError) as error:
            raise MissingDependencyError(
                f"The engine package is compiled with {name}, which cannot be loaded: {error}.",
                field="compiler.name",
                remedy=LIBRARIES[name],
            ) from error
        gpu = open_gpu()
        if gpu.capability != built_for:
            target = TARGET_BY_CAPABILITY.get(gpu.capability, "cpu")
            raise EngineIncompatibleError(
                f"The engine package is built for compute capability {built_for}; this GPU ({gpu.name}) has "
                f"{gpu.capability}.",
                field="compute_capability",
                remedy=f"Build one for this machine: `{build_command(target)}`.",
            )
        check_target(manifest, manifest.target, compiler_version=trt.__version__)
        return cls(trt, gpu)

    def plan(self, path: Path, spec: GraphSpec) -> Plan:
        return Plan(self, path, spec)


@functools.cache
def _logger(trt: ModuleType) -> Any:
    """Collects the errors. One for the process: the library keeps the first that it is given."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message.strip())

        def take(self) -> str:
            """What was said since the last call."""
            said, self.errors = "; ".join(self.errors), []
            return said or "no reason was given"

    return Log()


class Plan:
    """A compiled graph in memory: its tensors, its profiles, and its execution contexts."""

    def __init__(self, device: TensorRt, path: Path, spec: GraphSpec) -> None:
        self.trt, self.gpu, self.log, self.name = device.trt, device.gpu, device.log, path.name
        trt = self.trt
        with self.gpu.current():
            self.log.errors.clear()
            self._runtime = trt.Runtime(self.log)
            self.engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise EngineIncompatibleError(
                f"{trt.__name__} {trt.__version__} cannot load {path.name}: {self.log.take()}.", field=path.name
            )
        engine = self.engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        wrong = {t.name for t in spec.inputs} ^ set(self.inputs) | {t.name for t in spec.outputs} ^ set(self.outputs)
        if wrong:
            raise EngineIncompatibleError(
                f"{path.name} is not the graph that the manifest describes: {', '.join(sorted(wrong))}.",
                field=path.name,
            )
        self.dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        self.profiles = [
            {name: [tuple(shape) for shape in engine.get_tensor_profile_shape(name, index)] for name in self.inputs}
            for index in range(engine.num_optimization_profiles)
        ]
        self.most_rows = max(profile[self.inputs[0]][2][0] for profile in self.profiles)
        # A library that captures graphs by itself (tensorrt_rtx) is asked to; then nobody else does.
        self.captures_itself = hasattr(engine, "create_runtime_config") and hasattr(
            engine.create_runtime_config(), "cuda_graph_strategy"
        )

    def profile_for(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """The first profile that takes inputs of these shapes. Raises EngineError naming an input that none takes."""
        fault = ""
        for index, profile in enumerate(self.profiles):
            for name, shape in shapes.items():
                least, _, most = profile[name]
                if len(shape) != len(least) or any(
                    not low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
                ):
                    fault = f"{name} has shape {list(shape)}; the plan takes {list(least)} to {list(most)}"
                    break
            else:
                return index
        raise EngineError(
            f"{self.name}: {fault}.",
            field=self.name,
            remedy="Shorten the prompt or send fewer frames at once, or build with a larger profile.",
        )

    def context(self, *, own_memory: bool = True, capture: bool = False) -> Any:
        """An execution context. own_memory: False leaves its scratch memory to the caller (`lend`)."""
        trt, engine = self.trt, self.engine
        strategy = trt.ExecutionContextAllocationStrategy
        chosen = strategy.STATIC if own_memory else strategy.USER_MANAGED
        if self.captures_itself:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(chosen)
            kinds = trt.CudaGraphStrategy
            config.cuda_graph_strategy = kinds.WHOLE_GRAPH_CAPTURE if capture else kinds.DISABLED
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(chosen)
        if context is None:
            raise EngineError(f"{self.name} cannot be run: {self.log.take()}.", field=self.name)
        return context

    @property
    def scratch_bytes(self) -> int:
        engine = self.engine
        return int(
            engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size
        )

    def lend(self, context: Any, address: int) -> None:
        """Gives a context its scratch memory of `scratch_bytes`."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, self.scratch_bytes)
        else:
            context.device_memory = address


class Buffers:
    """Device memory and pinned twins by name of a tensor; they grow, and are given back together."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._device: dict[str, tuple[int, int]] = {}
        self._host: dict[str, np.ndarray] = {}

    def device(self, name: str, size: int) -> int:
        address, had = self._device.get(name, (0, -1))
        if had < size:
            if had >= 0:
                self._gpu.free(address)
            address = self._gpu.allocate(size)
            self._device[name] = address, size
        return address

    def host(self, name: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """A pinned array of the given shape; its content is that of the last use."""
        size = math.prod(shape) * dtype.itemsize
        if name not in self._host or self._host[name].nbytes < size:
            if name in self._host:
                self._gpu.unpin(self._host.pop(name))
            self._host[name] = self._gpu.pinned(size)
        return self._host[name][:size].view(dtype).reshape(shape)

    def close(self) -> None:
        for address, _ in self._device.values():
            self._gpu.free(address)
        for array in self._host.values():
            self._gpu.unpin(array)
        self._device, self._host = {}, {}


class Execution:
    """One context with its stream and buffers: one call at a time."""

    def __init__(self, plan: Plan, profile: int = 0, *, scratch: int | None = None, capture: bool = False) -> None:
        self.plan = plan
        self.stream = plan.gpu.stream()
        self.buffers = Buffers(plan.gpu)
        self.context = plan.context(own_memory=scratch is None, capture=capture)
        if scratch is not None:
            plan.lend(self.context, scratch)
        if profile:
            self.context.set_optimization_profile_async(profile, self.stream.handle)
            self.stream.synchronize()

    def bind(
        self, inputs: Arrays, outputs: Sequence[str], placed: Mapping[str, tuple[int, Sequence[int]]]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Sets shapes and addresses; returns the pinned arrays of inputs and of the wanted outputs, by name.

        inputs: where only shape and type count, see `fill`. placed: tensors that lie in memory of the caller's, and
        their shapes where they are inputs.
        """
        plan, context = self.plan, self.context
        staged = {name: self.buffers.host(name, array.shape, plan.dtypes[name]) for name, array in inputs.items()}
        for name, array in staged.items():
            context.set_input_shape(name, tuple(array.shape))
            context.set_tensor_address(name, self.buffers.device(name, array.nbytes))
        for name, (address, shape) in placed.items():
            if name in plan.inputs:
                context.set_input_shape(name, tuple(shape))
            context.set_tensor_address(name, address)
        missing = context.infer_shapes()
        if missing:
            raise EngineError(f"{plan.name} lacks {', '.join(missing)}: {plan.log.take()}.", field=plan.name)
        wanted = {}
        for name in plan.outputs:
            if name in placed:
                continue
            shape = tuple(context.get_tensor_shape(name))
            size = math.prod(shape) * plan.dtypes[name].itemsize
            context.set_tensor_address(name, self.buffers.device(name, size))
            if name in outputs:
                wanted[name] = self.buffers.host(name, shape, plan.dtypes[name])
        return staged, wanted

    def enqueue(self, staged: Arrays, wanted: Mapping[str, np.ndarray]) -> None:
        """Puts copies and execution on the stream; the same in a graph's capture."""
        for name, array in staged.items():
            self.stream.upload(self.buffers.device(name, array.nbytes), array)
        if not self.context.execute_async_v3(self.stream.handle):
            raise EngineError(f"The graph {self.plan.name} failed: {self.plan.log.take()}.", field=self.plan.name)
        for name, array in wanted.items():
            self.stream.download(array, self.buffers.device(name, array.nbytes))

    def close(self) -> None:
        self.stream.synchronize()
        self.context = None
        self.buffers.close()
        self.stream.close()


def fill(staged: Arrays, inputs: Arrays) -> None:
    """Casts host arrays into their pinned twins; padded rows beyond an input's are nought."""
    for name, array in staged.items():
        array[len(inputs[name]) :] = 0
        np.copyto(array[: len(inputs[name])], inputs[name], casting="unsafe")


class TensorRtSession:
    """A graph of a package. Thread-safe: every concurrent call has a context of its own."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.name = plan, plan.name
        self._idle: dict[int, list[Execution]] = {}
        self._lock = threading.Lock()

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Rows beyond what the plan takes at once go through one after the other. Raises EngineError."""
        rows, most = len(next(iter(inputs.values()))), self.plan.most_rows
        parts = [
            self._run({name: array[first : first + most] for name, array in inputs.items()})
            for first in range(0, rows, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        profile = self.plan.profile_for({name: array.shape for name, array in inputs.items()})
        with self.plan.gpu.current(), self._execution(profile) as execution:
            staged, wanted = execution.bind(inputs, self.plan.outputs, {})
            fill(staged, inputs)
            execution.enqueue(staged, wanted)
            execution.stream.synchronize()
            return {name: _as_host(array) for name, array in wanted.items()}

    @contextmanager
    def _execution(self, profile: int) -> Iterator[Execution]:
        with self._lock:
            idle = self._idle.setdefault(profile, [])
            execution = idle.pop() if idle else None
        if execution is None:
            execution = Execution(self.plan, profile)
        try:
            yield execution
        except BaseException:
            with suppress(EngineError):  # what failed first is the error to report
                execution.close()
            raise
        with self._lock:
            self._idle[profile].append(execution)

    def close(self) -> None:
        with self.plan.gpu.current(), self._lock:
            for execution in (e for idle in self._idle.values() for e in idle):
                execution.close()
            self._idle = {}


def _as_host(array: np.ndarray) -> np.ndarray:
    """A copy that outlives the pinned memory; floats as float32."""
    return array.astype(np.float32) if array.dtype.kind == "f" else array.copy()
