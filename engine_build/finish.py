#!/usr/bin/env python3
"""Finishes an AuroraEdge build kit on the device: checks, compiles, compares with the golden outputs, publishes.

    python3 finish.py --out /opt/auroraedge/engine

Needs this folder, Python 3.10 or newer, and TensorRT 10.3 or newer for it (JetPack 6.2 and 7.2 bring both). No package
of AuroraEdge and no numpy. An engine works only on the kind of GPU and the TensorRT version that it was built with.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import json
import math
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

KIT = Path(__file__).resolve().parent
LEAST_TENSORRT = (10, 3)
# Share of the memory of a build that must be free before it starts.
MEMORY_MARGIN = 1.05


class KitError(Exception):
    """What went wrong, and what mends it."""

    def __init__(self, message, remedy):
        super().__init__(message)
        self.remedy = remedy


def sha256(path):
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# -- checks before anything is built --------------------------------------------------------------------------------


def read_kit():
    try:
        kit = json.loads((KIT / "kit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KitError(f"kit.json cannot be read: {error}", "Copy the whole kit again.") from error
    for name, wanted in sorted(kit["files"].items()):
        path = KIT / name
        if not path.is_file() or sha256(path) != wanted:
            raise KitError(f"{name} is missing or damaged.", "Copy the whole kit again.")
    return kit


def load_tensorrt(wanted):
    for name in [wanted] if wanted else ["tensorrt", "tensorrt_rtx"]:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            reason = error
            continue
        version = tuple(int(part) for part in module.__version__.split(".")[:2])
        if name == "tensorrt" and version < LEAST_TENSORRT:
            raise KitError(
                f"TensorRT {module.__version__} is too old.",
                f"Update JetPack to 6.2 or newer (TensorRT {LEAST_TENSORRT[0]}.{LEAST_TENSORRT[1]}).",
            )
        return name, module
    raise KitError(f"TensorRT cannot be loaded: {reason}", "On a Jetson: sudo apt-get install python3-libnvinfer")


class Cuda:
    """The few calls of the CUDA driver that finishing needs; `present` is False on a machine without a GPU."""

    def __init__(self):
        self.present, self.capability = False, None
        try:
            self.lib = ctypes.CDLL("libcuda.so.1")
        except OSError:
            return
        device, context, major, minor = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
        if self.lib.cuInit(0) or self.lib.cuDeviceGet(ctypes.byref(device), 0):
            return
        self.lib.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        self.lib.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        if self.lib.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
            return
        self._call("cuCtxSetCurrent", context)
        self.capability = f"{major.value}.{minor.value}"
        self.present = True

    def _call(self, name, *arguments):
        code = getattr(self.lib, name)(*arguments)
        if code:
            raise KitError(f"{name} failed with CUDA error {code}.", "Close other users of the GPU and retry.")

    def upload(self, content):
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(1, len(content))))
        self._call("cuMemcpyHtoD_v2", pointer, content, ctypes.c_size_t(len(content)))
        return pointer

    def download(self, pointer, size):
        content = ctypes.create_string_buffer(size)
        self._call("cuMemcpyDtoH_v2", content, pointer, ctypes.c_size_t(size))
        return content.raw

    def synchronize(self):
        self._call("cuCtxSynchronize")


def check_machine(kit, compiler, cuda, other_gpu):
    print(f"python      {platform.python_version()} on {platform.machine()}")
    print(f"gpu         {cuda.capability or 'none'}")
    wanted = kit["target"]["compute_capability"]
    if compiler == "tensorrt" and not cuda.present:
        raise KitError("There is no GPU that CUDA can use.", "Run this on the device the engine is for.")
    if cuda.present and cuda.capability != wanted and not other_gpu:
        raise KitError(
            f"The kit is for compute capability {wanted}; this GPU has {cuda.capability}.",
            "Make a kit for this machine, or pass --other-gpu to build for this GPU all the same.",
        )
    needed = kit["build_bytes"] * MEMORY_MARGIN
    free = available_memory()
    if free is not None:
        print(f"memory      {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB needed")
        if free < needed:
            raise KitError(
                f"The build needs about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free.",
                "Stop other programs, add swap, or make a kit with a smaller precision.",
            )
    mode = power_mode()
    if mode:
        print(f"power mode  {mode}")
        if "MAXN" not in mode.upper():
            print("            not the fastest one: kernels are chosen by timing, so set it before: sudo nvpmodel -m 0")


def sm_name(kit):
    return "SM" + kit["target"]["compute_capability"].replace(".", "")


def check_compiler(kit, compiler, trt):
    """Raises KitError where the library names the GPUs that it builds for, and the kit's is not among them."""
    known = getattr(trt, "ComputeCapability", None)
    if known is not None and not hasattr(known, sm_name(kit)):
        names = sorted(name for name in dir(known) if name.startswith("SM"))
        raise KitError(
            f"{compiler} {trt.__version__} does not build for {sm_name(kit)}, only for {', '.join(names)}.",
            "Finish the kit with TensorRT, on the device itself.",
        )


def available_memory():
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def power_mode():
    if shutil.which("nvpmodel") is None:
        return ""
    answer = subprocess.run(["nvpmodel", "-q"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line.split(":", 1)[1].strip() for line in answer.stdout.splitlines() if "Power Mode" in line]
    return lines[0] if lines else ""


# -- compiling ------------------------------------------------------------------------------------------------------


def make_log(trt):
    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors = []

        def log(self, severity, message):
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message.strip())

    return Log()


def make_monitor(trt):
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self.stopped, self.first = False, None

        def phase_start(self, phase_name, parent_phase, num_steps):
            if self.first is None:
                self.first = (phase_name, max(1, num_steps))

        def step_complete(self, phase_name, step):
            if self.first and phase_name == self.first[0] and sys.stdout.isatty():
                sys.stdout.write(f"\r            {100 * (step + 1) // self.first[1]:3d} % {phase_name[:40]:40s}")
                sys.stdout.flush()
            return not self.stopped

        def phase_finish(self, phase_name):
            pass

    return Monitor()


def compile_graph(trt, log, kit, graph, form, destination, workspace_bytes):
    """Returns None, or why this form of the graph cannot be built."""
    log.errors = []
    builder = trt.Builder(log)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(KIT / form["file"])):
        return "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
    config = builder.create_builder_config()
    if workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, sm_name(kit)), 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *(tuple(size) for size in form["profiles"][tensor.name]))
    config.add_optimization_profile(profile)
    monitor = make_monitor(trt)
    if monitor is not None:
        config.progress_monitor = monitor
        previous = signal.signal(signal.SIGINT, lambda *_: setattr(monitor, "stopped", True))
    try:
        plan = builder.build_serialized_network(network, config)
    finally:
        if monitor is not None:
            signal.signal(signal.SIGINT, previous)
            if sys.stdout.isatty():
                sys.stdout.write(f"\r{'':60s}\r")
    if monitor is not None and monitor.stopped:
        raise KeyboardInterrupt
    if plan is None or log.errors:
        return "; ".join(log.errors) or "no reason was given"
    destination.write_bytes(memoryview(plan))
    return None


# -- parity on the device -------------------------------------------------------------------------------------------


def floats(content, dtype):
    """Values of a buffer of float16 or float32."""
    code, size = {"float16": ("e", 2), "float32": ("f", 4)}[dtype]
    return struct.unpack(f"<{len(content) // size}{code}", content)


def compare(found, wanted):
    dot = sum(a * b for a, b in zip(found, wanted, strict=False))
    lengths = math.sqrt(sum(a * a for a in found)) * math.sqrt(sum(b * b for b in wanted))
    worst = max((abs(a - b) for a, b in zip(found, wanted, strict=False)), default=0.0)
    return {"max_abs": worst, "cosine": dot / max(lengths, 1e-30)}


def run_golden(trt, log, cuda, plan, golden):
    """Figures by output of one graph on recorded inputs."""
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise KitError(
            "The compiled engine cannot be loaded: {}".format("; ".join(log.errors)), "Report this with the log."
        )
    context = engine.create_execution_context()
    kept, outputs = {}, {}
    for name, tensor in golden["inputs"].items():
        kept[name] = cuda.upload((KIT / tensor["file"]).read_bytes())
        context.set_input_shape(name, tuple(tensor["shape"]))
        context.set_tensor_address(name, kept[name].value)
    for name, tensor in golden["outputs"].items():
        size = tensor["bytes"]
        same = tensor.get("same_as")
        outputs[name] = (kept[same] if same else cuda.upload(b"\0" * size), size, tensor)
        context.set_tensor_address(name, outputs[name][0].value)
    if not context.execute_async_v3(0):
        raise KitError(
            "The compiled engine does not run: {}".format("; ".join(log.errors)), "Report this with the log."
        )
    cuda.synchronize()
    figures = {}
    for name, (pointer, size, tensor) in outputs.items():
        if "file" in tensor:
            found = floats(cuda.download(pointer, size), tensor["dtype"])
            figures[name] = compare(found, floats((KIT / tensor["file"]).read_bytes(), tensor["dtype"]))
    return figures


# -- the package ----------------------------------------------------------------------------------------------------


def publish(kit, draft, out, compiler, version, capability, chosen, parity):
    for name in kit["tables"]:
        shutil.copyfile(str(KIT / "tables" / name), str(draft / name))
    files = {path.name: sha256(path) for path in sorted(draft.iterdir())}
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    manifest = dict(kit["description"])
    manifest.update(
        compiler={"name": compiler, "version": version},
        compute_capability=capability,
        graphs={graph: dict(form["spec"], file=f"{graph}.plan") for graph, form in chosen.items()},
        parity=dict(kit["description"]["parity"], **parity),
        schema_version=1,
        created_at=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        files=files,
        engine_sha256=hashlib.sha256(lines.encode()).hexdigest(),
    )
    (draft / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in [*draft.iterdir(), draft]:
        handle = os.open(str(path), os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    earlier = None
    if out.exists():
        earlier = out.with_name(f"{out.name}.before-{int(time.time())}")
        out.rename(earlier)
    draft.rename(out)
    if earlier is not None:
        shutil.rmtree(str(earlier))
    return manifest["engine_sha256"]


def finish(options):
    kit = read_kit()
    compiler, trt = load_tensorrt(options.compiler)
    print(
        "kit         {} for {}, precision {}".format(
            kit["description"]["model_id"], kit["target"]["title"], kit["precision"]
        )
    )
    print(f"compiler    {compiler} {trt.__version__}")
    for backend, about in sorted(kit["description"].get("decoder_checkpoints", {}).items()):
        print(f"also here   decoder-{backend}: {about.split(', sha256')[0]}; sh decoder-{backend}/build.sh")
    check_compiler(kit, compiler, trt)
    cuda = Cuda()
    check_machine(kit, compiler, cuda, options.other_gpu)
    out = Path(options.out).absolute()
    if out.exists() and not (out / "manifest.json").is_file():
        raise KitError(f"{out} exists and is no engine package.", "Name another folder with --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.draft-{os.getpid()}")
    draft.mkdir()
    log = make_log(trt)
    chosen, parity = {}, {}
    try:
        for graph, forms in kit["graphs"].items():
            reasons = []
            for form in forms:
                began = time.monotonic()
                plan = draft / (f"{graph}.plan")
                reason = compile_graph(trt, log, kit, graph, form, plan, options.workspace_mb * 1000000)
                if reason is None:
                    chosen[graph] = form
                    size = plan.stat().st_size / 1e6
                    print(f"{graph:11s} built in {time.monotonic() - began:.1f} s, {size:.1f} MB ({form['name']})")
                    break
                reasons.append("{}: {}".format(form["name"], reason))
            else:
                raise KitError(
                    "{} cannot be built. {}".format(graph, " | ".join(reasons)), "Report this with the text above."
                )
            if cuda.present:
                figures = run_golden(trt, log, cuda, plan, chosen[graph]["golden"])
                for name, values in figures.items():
                    parity[f"device/{name}"] = values
                    cosine = values["cosine"]
                    print(f"            {name:11s} cosine {cosine:.5f}, largest difference {values['max_abs']:.3g}")
                    if not cosine >= kit["least_cosine"]:
                        raise KitError(
                            f"{name} differs from the recorded output (cosine {cosine:.5f}).",
                            "Do not use this engine. Make a kit with --precision fp16 and report this.",
                        )
        if not cuda.present:
            print("parity      NOT CHECKED: there is no GPU here. The manifest says so.")
        capability = cuda.capability if cuda.present else kit["target"]["compute_capability"]
        engine = publish(kit, draft, out, compiler, trt.__version__, capability, chosen, parity)
    finally:
        if draft.exists():
            shutil.rmtree(str(draft))
    print(f"{out}: engine {engine[:12]}")


def main():
    parser = argparse.ArgumentParser(description="Finishes an AuroraEdge build kit on the device that it is for.")
    parser.add_argument("--out", required=True, help="folder of the engine package; an earlier package is replaced")
    parser.add_argument("--compiler", choices=("tensorrt", "tensorrt_rtx"), help="default: whichever is installed")
    parser.add_argument("--workspace-mb", type=int, default=0, help="most scratch memory of the engine (default: free)")
    parser.add_argument("--other-gpu", action="store_true", help="build although the GPU is of another generation")
    options = parser.parse_args()
    try:
        finish(options)
    except KitError as error:
        print(f"error: {error}\n  {error.remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was changed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
