"""nvidia-modelopt on our ONNX files, in its own environment: an alternative to the Q/DQ of engine_build.network.

    python -m engine_build.modelopt --model nano --mode int8      # makes the environment at the first call

Quantises the vision graph, counts the active quantisers of every submodule and refuses when one has none (the default
configurations skip modules by their names), and prints the cosine of the outputs to the float32 graph, beside that of
our own Q/DQ on the same views with the same method.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from auroraedge.errors import AuroraEdgeError, EngineError  # noqa: E402
from engine_build.environments import Environment, make_environment  # noqa: E402

WORKER = Path(__file__).resolve().parent / "modelopt_worker.py"
METHODS = {"int8": ("entropy", "max"), "fp8": ("entropy", "max"), "int4": ("awq_clip", "rtn_dq")}
_QUANTISED = "DequantizeLinear"
_PASSED = ("Cast", "Transpose", "Reshape", "Mul")

Arrays = Mapping[str, np.ndarray]


def quantise_onnx(
    source: Path,
    destination: Path,
    views: Arrays,
    mode: str,
    method: str,
    environment: Environment,
    keep: Collection[str] = (),
) -> dict[str, tuple[int, int]]:
    """Writes `destination`; returns by submodule how many of its linear layers are quantised, and how many it has.

    views: every input of the graph, all calibration views along the first axis. keep: submodules that stay as they
    are. Raises EngineError when another submodule has no quantised layer.
    """
    if mode not in METHODS or method not in METHODS[mode]:
        raise EngineError(
            f"nvidia-modelopt is not asked for {mode} by '{method}' here.",
            field="--method",
            remedy=f"Of {mode}: {', '.join(METHODS.get(mode, ()))}.",
        )
    graph = onnx.load(source)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "views.npz"
        np.savez(data, **views)
        command = [environment.python, "-I", WORKER, source, destination, data, "--mode", mode, "--method", method]
        command += ["--exclude", *(node for node, name, _ in _weighted(graph) if submodule(name) in keep)]
        environment.run(command, log=destination.with_suffix(".log"))
    counts = quantised_layers(onnx.load(destination))
    for name in sorted(quantised_layers(graph).keys() - set(keep)):
        if counts.get(name, (0, 0))[0] == 0:
            raise EngineError(
                f"nvidia-modelopt left the submodule '{name}' unquantised.", field=name, remedy="Do not use this file."
            )
    return counts


def submodule(weight: str) -> str:
    """The part of the model that a weight belongs to: the first two names, or the layer's number."""
    parts = weight.split(".")
    if parts[0] == "layers" and len(parts) > 1:
        return f"layers.{parts[1]}"
    return parts[0]


def quantised_layers(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """By submodule: products with a weight that comes from a DequantizeLinear, and all products with a weight."""
    done: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for _, name, dequantised in _weighted(model):
        total[submodule(name)] += 1
        done[submodule(name)] += dequantised
    return {name: (done[name], count) for name, count in sorted(total.items())}


def _weighted(model: onnx.ModelProto) -> Iterator[tuple[str, str, bool]]:
    """Products with a weight: name of the node, name of the weight, and whether this was dequantised."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    constants = {item.name for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            name, dequantised = _weight(node.input[1], made_by, constants)
            if name is not None:
                yield node.name, name, dequantised


def _weight(value: str, made_by: Mapping[str, onnx.NodeProto], constants: set[str]) -> tuple[str | None, bool]:
    """The constant behind a factor, through what leaves its meaning alone, and whether it was dequantised."""
    dequantised = False
    while value not in constants:
        node = made_by.get(value)
        if node is None or node.op_type not in (_QUANTISED, "QuantizeLinear", *_PASSED):
            return None, False
        dequantised = dequantised or node.op_type == _QUANTISED
        value = node.input[0]
    return value, dequantised


def cosines(graph: Path, reference: Path, views: Arrays) -> dict[str, float]:
    """Cosine of every output of `graph` to that of `reference` over the views."""
    import onnxruntime as ort

    from engine_build.parity import compare

    options = ort.SessionOptions()
    options.log_severity_level = 3
    found = []
    for path in (graph, reference):
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found.append(dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(views)), strict=True)))
    return {name: compare(found[0][name], value)["cosine"] for name, value in found[1].items()}


def compare_vision(model: str, mode: str, method: str, count: int, console: Console) -> Table:
    """nvidia-modelopt's vision graph beside ours: calibrated on `count` views, compared on as many others."""
    import torch

    from auroraedge.inspection.tokenizer import InspectionTokenizer
    from calib.frames import calibration_set
    from engine_build import steps
    from engine_build.export import export_graph
    from engine_build.gpu_build import GpuBuild, prepare, write_graph
    from engine_build.gpu_graphs import GraphOptions
    from engine_build.targets import load_target

    environment = make_environment("modelopt", console)
    folder = steps.model_folder(model)
    loaded = steps.load_model(folder)
    frames = calibration_set(InspectionTokenizer.load(folder / "tokenizer.json"), views=2 * count)
    position = loaded.vision_model.embeddings.position_embedding.weight.detach().numpy().astype(np.float32)

    def feeds(patches: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.repeat(position[None], len(patches), axis=0)
        return {"patches": patches, "position": rows, "patch_mask": np.ones(patches.shape[:2], np.float32)}

    build = GpuBuild(
        target=load_target("l40s"),
        model=model,
        precision=dict.fromkeys(("vision", "fusion", "decoder"), mode),
        views=count,
    )
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        work = Path(name)
        plain = export_graph(loaded, "vision", work).path
        theirs, ours = work / "theirs.onnx", work / "ours.onnx"
        calibration = feeds(frames.patches[:count])
        counts = quantise_onnx(plain, theirs, calibration, mode, method, environment, keep=("grounding",))
        write_graph(build, prepare(build, console), "vision", ours, GraphOptions(dtype="float32"))
        checked = feeds(frames.patches[count:])
        rows = {
            f"nvidia-modelopt {environment.packages['nvidia-modelopt']}, {method}": cosines(theirs, plain, checked),
            "ours, percentile, smoothed": cosines(ours, plain, checked),
        }
    quantised, layers = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    table = Table(
        title=f"vision in {mode}, cosine to float32, {count} views to calibrate and {count} others to check",
        caption=f"modelopt: {quantised} of {layers} linear layers quantised, of every submodule but the grounding head",
    )
    names = sorted(next(iter(rows.values())))
    for column in ("by", *names):
        table.add_column(column)
    for label, figures in rows.items():
        table.add_row(label, *(f"{figures[name]:.5f}" for name in names))
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--mode", choices=sorted(METHODS), default="int8")
    parser.add_argument("--method", help="default: the mode's first")
    parser.add_argument("--views", type=int, default=16)
    options = parser.parse_args(arguments)
    console = Console()
    method = options.method or METHODS[options.mode][0]
    try:
        console.print(compare_vision(options.model, options.mode, method, options.views, console))
    except AuroraEdgeError as error:
        console.print(f"error: {error}", style="red")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
