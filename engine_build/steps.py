"""The build, step by step: torch -> ONNX -> INT8 -> parity -> package."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors.numpy import save_file

from auroraedge.config import IMAGE_SIZE, LOCATION_BINS, PATCH_SIZE
from auroraedge.errors import EngineError, EngineNotFoundError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.manifest import (
    CompilerInfo,
    DecoderSpec,
    EngineDescription,
    EngineManifest,
    GraphSpec,
    TensorSpec,
    publish_package,
)
from auroraedge.model import AuroraEdgeForConditionalGeneration
from auroraedge.runtime.session import OrtSession
from calib.frames import CalibrationSet, calibration_set
from calib.ranges import measure_ranges
from calib.smoothing import smooth_quant
from engine_build.export import GraphExport, export_graph
from engine_build.parity import engine_outputs, stage_parity, torch_outputs, vision_feeds
from engine_build.quantise import int8_from_onnx, int8_weights_from_onnx, weight_products
from engine_build.targets import GRAPHS, Target

ROOT = Path(__file__).resolve().parents[1]
_DTYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.UINT8: "uint8",
}
_BY_VIEW = ("patches", "prompt_ids", "samples")
# A package whose graphs depart further from the model than this is a broken build, not a trade-off.
_LEAST_COSINE = {"fp32": 0.99999, "int8": 0.98}


def model_folder(name: str) -> Path:
    """Where the weights of a model name or path are. Raises EngineNotFoundError."""
    path = ROOT / "models" / name if (ROOT / "models" / name).is_dir() else Path(name)
    if not (path / "config.json").is_file() or not (path / "model.safetensors").is_file():
        raise EngineNotFoundError(
            f"There is no model '{name}' (config.json and model.safetensors are looked for).",
            field="--model",
            remedy="Give 'nano' or a folder that save_pretrained wrote, such as runs/nano/model.",
        )
    return path


def load_model(folder: Path) -> AuroraEdgeForConditionalGeneration:
    """The model in float32, in eval mode, from safetensors."""
    model = AuroraEdgeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.eval()


def weights_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def graph_spec(path: Path) -> GraphSpec:
    """Inputs and outputs of an ONNX file for the manifest."""
    graph = onnx.load(path, load_external_data=False).graph

    def tensors(values: Any) -> tuple[TensorSpec, ...]:
        specs = []
        for value in values:
            tensor = value.type.tensor_type
            shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
            specs.append(TensorSpec(name=value.name, dtype=_DTYPES[tensor.elem_type], shape=shape))
        return tuple(specs)

    return GraphSpec(file=path.name, inputs=tensors(graph.input), outputs=tensors(graph.output))


def compile_graph(
    export: GraphExport, precision: str, destination: Path, frames: CalibrationSet, position: np.ndarray
) -> str:
    """Brings one graph to its precision; returns what was done in words."""
    if precision == "fp32":
        shutil.copyfile(export.path, destination)
        return "fp32"
    if precision == "int8-weights":
        return f"{int8_weights_from_onnx(export.path, destination)} layers with INT8 weights"
    if export.name != "vision":
        raise EngineError(f"Static INT8 is not offered for the {export.name} graph.", field="--precision")
    kept = compressor_layers(export.path)
    count = int8_from_onnx(export.path, destination, vision_feeds(frames, position), keep=kept)
    return f"{count} layers in INT8"


def compressor_layers(path: Path) -> tuple[str, ...]:
    """The compressor's two products, which stay in float32: they mix tokens whose sizes differ by orders of magnitude,
    so one scale for all costs 10 dB, and they are 1 % of the arithmetic."""
    model = onnx.load(path)
    made_by = {output: node for node in model.graph.node for output in node.output}

    def mixes_tokens(node: onnx.NodeProto) -> bool:
        """Whether the product's input is a transposed one, directly or through the compressor's own GELU."""
        maker = made_by.get(node.input[0])
        while maker is not None and maker.op_type in ("Gelu", "Add"):
            maker = made_by.get(maker.input[0])
        if maker is not None and maker.op_type == "MatMul":
            return mixes_tokens(maker)
        return maker is not None and maker.op_type == "Transpose" and list(maker.attribute[0].ints) == [0, 2, 1]

    found = tuple(node.name for node in weight_products(model) if mixes_tokens(node))
    if len(found) != 2:
        raise EngineError(f"{len(found)} layers look like the compressor's two.", field=path.name)
    return found


def smoothed(model: AuroraEdgeForConditionalGeneration, frames: CalibrationSet) -> AuroraEdgeForConditionalGeneration:
    """A copy of the model whose encoder is easier to quantise: SmoothQuant, folded into norms and weights."""
    ranges = measure_ranges(model, replace(frames, **{name: getattr(frames, name)[:32] for name in _BY_VIEW}))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    changed = smooth_quant(state, ranges.layers, under="vision_model")
    twin = copy.deepcopy(model)
    twin.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in changed.items()})
    return twin


def write_tables(model: AuroraEdgeForConditionalGeneration, folder: Path, tokenizer_file: Path, source: Path) -> None:
    """embeddings.safetensors, processor.json, tokenizer.json and, where the model has one, calibration.json."""
    tables = {
        "token_embedding": model.get_input_embeddings().weight.detach().numpy().astype(np.float16),
        "position_table": model.vision_model.embeddings.position_embedding.weight.detach().numpy().astype(np.float32),
    }
    save_file(tables, folder / "embeddings.safetensors")
    processor = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "location_bins": LOCATION_BINS,
        "grounding_labels": list(model.config.grounding_labels),
    }
    (folder / "processor.json").write_text(json.dumps(processor, indent=1), encoding="utf-8")
    shutil.copyfile(tokenizer_file, folder / "tokenizer.json")
    if (source / "calibration.json").is_file():
        shutil.copyfile(source / "calibration.json", folder / "calibration.json")


def build_engine(
    target: Target,
    model_name: str,
    out: Path,
    *,
    precision: str | None = None,
    pack: Path | None = None,
    views: int = 96,
    frames: CalibrationSet | None = None,
    console: Console | None = None,
) -> EngineManifest:
    """Builds and publishes an engine package; nothing is left behind when it fails or is interrupted.

    pack: a dataset folder whose train splits join the generator's parts as calibration views. frames: the calibration
    views themselves, instead of these. Raises EngineError.
    """
    console = console or Console()
    chosen = target.precision(precision)
    folder = model_folder(model_name)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, publish_package(out) as draft:

        def step(text: str) -> None:
            for task in progress.task_ids:
                progress.update(task, total=1, completed=1)
            progress.add_task(text, total=None)

        step("model and calibration views")
        model = load_model(folder)
        tokenizer_file = folder / "tokenizer.json"
        tokenizer = InspectionTokenizer.load(tokenizer_file)
        frames = frames or calibration_set(tokenizer, pack=pack, views=views)
        write_tables(model, draft.path, tokenizer_file, folder)
        text = model.config.text_config
        decoder = DecoderSpec(
            layers=text.num_hidden_layers,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            hidden=text.hidden_size,
            vocab=text.vocab_size,
        )
        position = model.vision_model.embeddings.position_embedding.weight.detach().numpy().astype(np.float32)
        embedding = model.get_input_embeddings().weight.detach().numpy().astype(np.float32)
        source = model
        if chosen["vision"] == "int8":
            step("smoothing")
            source = smoothed(model, frames)
        work = draft.path / "work"
        work.mkdir()
        plain: dict[str, OrtSession] = {}
        final: dict[str, OrtSession] = {}
        graphs: dict[str, GraphSpec] = {}
        for name in GRAPHS:
            step(f"{name}: export")
            export = export_graph(source, name, work)
            plain[name] = OrtSession(export.path)
            step(f"{name}: {chosen[name]}")
            destination = draft.path / f"{name}.onnx"
            done = compile_graph(export, chosen[name], destination, frames, position)
            graphs[name] = graph_spec(destination)
            final[name] = OrtSession(destination, fold_weights=chosen[name] == "int8-weights")
            console.print(f"{name}: {done}, {destination.stat().st_size / 1e6:.1f} MB")
        step("parity: torch, ONNX, engine")
        reference = torch_outputs(model, frames)
        sizes = decoder.model_dump()
        exported = engine_outputs(plain, frames, position, embedding, sizes)
        built = engine_outputs(final, frames, position, embedding, sizes, reference)
        stages = {
            "onnx_fp32": stage_parity(exported, reference, tokenizer),
            "engine": stage_parity(built, reference, tokenizer),
        }
        shutil.rmtree(work)
        _check(stages, chosen)
        draft.description = EngineDescription(
            model_id=f"auroraedge-{model.config.preset or folder.name}",
            weights_sha256=weights_sha256(folder),
            target=target.name,
            compiler=CompilerInfo(name="onnxruntime", version=onnxruntime.__version__),
            precision=chosen,
            graphs=graphs,
            decoder=decoder,
            calibration_set_sha256=frames.sha256,
            parity={f"{s}/{t}": v for s, tensors in stages.items() for t, v in tensors.items()},
        )
        step("publish")
    assert draft.manifest is not None
    console.print(parity_table(stages))
    return draft.manifest


def _check(stages: dict[str, dict[str, dict[str, float]]], precision: dict[str, str]) -> None:
    """Raises EngineError when a stage departs from the model."""
    quantised = any(p == "int8" for p in precision.values())
    for stage, least in (
        ("onnx_fp32", _LEAST_COSINE["fp32"]),
        ("engine", _LEAST_COSINE["int8" if quantised else "fp32"]),
    ):
        for tensor, figures in stages[stage].items():
            if tensor != "task" and figures["cosine"] < (least if quantised or stage == "onnx_fp32" else 0.999):
                raise EngineError(
                    f"{tensor} of stage {stage} has cosine {figures['cosine']:.5f} to the model; {least} is the least.",
                    field=tensor,
                    remedy="Give real calibration frames with --calibration, or build with --precision fp32.",
                )


def parity_table(stages: dict[str, dict[str, dict[str, float]]]) -> Table:
    table = Table(title="Parity with the torch model")
    for column in ("stage", "tensor", "figures"):
        table.add_column(column)
    for stage, tensors in stages.items():
        for tensor, figures in tensors.items():
            table.add_row(stage, tensor, ", ".join(f"{k} {v:.5g}" for k, v in figures.items()))
    return table
