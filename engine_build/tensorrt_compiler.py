"""One adapter over `tensorrt` (10.3 and newer) and `tensorrt_rtx`: an ONNX file in, a serialized plan out.

The two packages share this part of their API. What differs between versions is asked for by name (`hasattr`), never by
version number. Only strongly typed networks are built: they are what TensorRT 10 and 11 have in common.

A line that the library logs as ERROR is a failed build even where the library then returns a plan: with a mask and
`causal` together, for one, it drops the mask.
"""

from __future__ import annotations

import functools
import importlib
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from auroraedge.errors import EngineError, MissingDependencyError
from auroraedge.manifest import ShapeProfile, TensorSpec

_INSTALL = {
    "tensorrt_rtx": "pip install 'auroraedge[rtx]'",
    "tensorrt": "install TensorRT 10.3 or newer for this machine (on a Jetson it comes with JetPack)",
}
# (share of the build done so far 0..1, what is being done)
ProgressSink = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class CompileSettings:
    """compute_capability: of the GPU to build for, such as "8.6"; None for the GPU of this machine.

    workspace_bytes: most scratch memory of a running engine. timing_cache: file that later builds reuse measurements
    from, where the compiler knows such a thing.
    """

    compute_capability: str | None = None
    workspace_bytes: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True, kw_only=True)
class CompiledGraph:
    """What was built. Seconds and peak resident bytes of this process are those of the build alone."""

    compiler: str
    version: str
    plan_bytes: int
    seconds: float
    peak_rss_bytes: int | None
    layers: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    warnings: tuple[str, ...] = field(default=())


def open_compiler(name: str) -> ModuleType:
    """The module `tensorrt` or `tensorrt_rtx`. Raises MissingDependencyError."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"{name} cannot be loaded: {error}.", field="--target", remedy=_INSTALL[name]
        ) from error


def compile_graph(
    compiler: str,
    source: Path,
    destination: Path,
    profiles: Mapping[str, ShapeProfile],
    settings: CompileSettings,
    *,
    on_progress: ProgressSink | None = None,
) -> CompiledGraph:
    """Builds `source` (ONNX, weights beside it or inside) and writes the plan to `destination`.

    profiles: least, best and most of every input with dynamic axes. Raises EngineError when the file cannot be parsed,
    when the build fails or logs an error, and KeyboardInterrupt, cleanly, on Ctrl-C.
    """
    trt = open_compiler(compiler)
    log = _logger(trt)
    log.errors.clear()
    log.warnings.clear()
    builder = trt.Builder(log)
    network = builder.create_network(_creation_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(source)):
        problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(f"{compiler} cannot read {source.name}: {problems}.", field=source.name)
    config = builder.create_builder_config()
    _configure(trt, config, settings)
    config.add_optimization_profile(_profile(builder, network, profiles, source.name))
    monitor = _monitor(trt, on_progress)
    if monitor is not None:
        config.progress_monitor = monitor
    cache = _open_timing_cache(config, settings.timing_cache)
    inputs = tuple(_tensor(network.get_input(i)) for i in range(network.num_inputs))
    outputs = tuple(_tensor(network.get_output(i)) for i in range(network.num_outputs))
    layers = network.num_layers
    reset = _reset_peak_rss()
    began = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - began
    peak = _peak_rss() if reset else None
    if monitor is not None and monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None or log.errors:
        reason = "; ".join(log.errors) or "no reason was given"
        raise EngineError(
            f"{compiler} could not build {source.name}: {reason}.",
            field=source.name,
            remedy="Try --precision fp16; if that fails too, report this with the log.",
        )
    destination.write_bytes(memoryview(plan))
    if cache is not None and settings.timing_cache is not None:
        settings.timing_cache.write_bytes(memoryview(cache.serialize()))
    return CompiledGraph(
        compiler=compiler,
        version=trt.__version__,
        plan_bytes=destination.stat().st_size,
        seconds=seconds,
        peak_rss_bytes=peak,
        layers=layers,
        inputs=inputs,
        outputs=outputs,
        warnings=tuple(dict.fromkeys(log.warnings)),
    )


def _creation_flags(trt: ModuleType) -> int:
    """Strongly typed, where that is a choice; newer versions build nothing else."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _configure(trt: ModuleType, config: Any, settings: CompileSettings) -> None:
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.compute_capability is None:
        return
    if not hasattr(config, "set_compute_capability"):
        return  # regular TensorRT builds for the GPU of this machine; the plan has checked that it is the right one
    name = "SM" + settings.compute_capability.replace(".", "")
    if not hasattr(trt.ComputeCapability, name):
        known = [n for n in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", n)]
        raise EngineError(
            f"This compiler cannot build for compute capability {settings.compute_capability}.",
            field="--target",
            remedy=f"It knows {', '.join(known)}.",
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)


def _profile(builder: Any, network: Any, profiles: Mapping[str, ShapeProfile], graph: str) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tuple(tensor.shape):
            continue
        if tensor.name not in profiles:
            raise EngineError(f"{graph}: there is no profile for the input {tensor.name}.", field="profile")
        sizes = profiles[tensor.name]
        profile.set_shape(tensor.name, sizes.minimum, sizes.optimum, sizes.maximum)
    return profile


def _tensor(tensor: Any) -> TensorSpec:
    kind = {"half": "float16", "float": "float32", "int8": "int8", "uint8": "uint8"}
    name = str(tensor.dtype).rsplit(".", 1)[-1].lower()
    shape = tuple(f"axis{i}" if size == -1 else int(size) for i, size in enumerate(tensor.shape))
    return TensorSpec(name=tensor.name, dtype=kind.get(name, name), shape=shape)


@functools.cache
def _logger(trt: ModuleType) -> Any:
    """Collects what the library says; an ILogger, because an error recorder crashed when it was tried.

    One for the process: the library keeps the first that it is given for messages of its own.
    """

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message.strip())
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message.strip())

    return Log()


def _monitor(trt: ModuleType, on_progress: ProgressSink | None) -> Any:
    """Reports the progress of the outermost phase; None where the library has no such thing.

    Ctrl-C arrives as KeyboardInterrupt in one of these callbacks, from which no exception may escape into the library:
    it is noted, and the next step is refused, which ends the build.
    """
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._phases: list[tuple[str, int]] = []

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.append((phase_name, max(1, num_steps)))
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._phases = [phase for phase in self._phases if phase[0] != phase_name]

        def _report(self, phase_name: str, step: int) -> None:
            try:
                if on_progress is not None and self._phases and self._phases[0][0] == phase_name:
                    on_progress(min(1.0, step / self._phases[0][1]), phase_name)
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor()


def _open_timing_cache(config: Any, path: Path | None) -> Any:
    # tensorrt_rtx measures on the user's machine, not here, and its stub of a cache asks for a GPU.
    if path is None or not hasattr(config, "create_timing_cache") or hasattr(config, "set_compute_capability"):
        return None
    content = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(content)
    # A cache of another GPU or version is refused; then the build starts an empty one.
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _reset_peak_rss() -> bool:
    """Sets the kernel's high-water mark of this process back to its present size (Linux only)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return True
    return False


def _peak_rss() -> int | None:
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
