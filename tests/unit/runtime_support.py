"""A tiny random model, and the same as engine packages of both cache forms, written without an exporter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
# Few enough that a handful of steps leaves holes that must be closed.
PLACES = 256


@dataclass(frozen=True, kw_only=True)
class TinyForms:
    """model: the folder of the torch model. handed_on, in_place: float32 packages of it for ONNX Runtime."""

    model: Path
    handed_on: Path
    in_place: Path


def tiny_forms(folder: Path) -> TinyForms:
    import torch

    from auroraedge.config import PRESETS
    from auroraedge.inspection.recipe import list_recipes
    from auroraedge.inspection.tokenizer import InspectionTokenizer
    from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration
    from engine_build.steps import load_model

    tokenizer_file = ROOT / "models" / "nano" / "tokenizer.json"
    tokenizer = InspectionTokenizer.load(tokenizer_file)
    preset = replace(PRESETS["nano"], vision_layers=1, text_layers=2)
    torch.manual_seed(5)
    config = AuroraEdgeConfig.from_preset(
        preset,
        vocab_size=-(-tokenizer.vocab_size // 64) * 64,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        grounding_labels=sorted({label for recipe in list_recipes() for label in recipe.label_names}),
    )
    model = AuroraEdgeForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.06)
    model.save_pretrained(folder / "model")
    (folder / "model" / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    model = load_model(folder / "model")
    for cache in ("handed_on", "in_place"):
        _package(model, folder / "model", cache, folder / cache)
    return TinyForms(model=folder / "model", handed_on=folder / "handed_on", in_place=folder / "in_place")


def _package(model: Any, source: Path, cache: Any, out: Path) -> None:
    from auroraedge.manifest import CompilerInfo, DecoderSpec, EngineDescription, publish_package
    from engine_build import steps
    from engine_build.gpu_graphs import GraphOptions, ModelShape, write_decoder, write_fusion, write_vision
    from engine_build.network import Precisions

    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    shape = ModelShape.of(model.config)
    options = GraphOptions(dtype="float32", cache=cache, places=PLACES)
    writers = {"vision": write_vision, "fusion": write_fusion, "decoder": write_decoder}
    with publish_package(out) as draft:
        for name, write in writers.items():
            write(draft.path / f"{name}.onnx", shape, state.__getitem__, Precisions(name="fp32"), options)
        steps.write_tables(model, draft.path, source / "tokenizer.json", source)
        draft.description = EngineDescription(
            model_id="auroraedge-tiny",
            weights_sha256=steps.weights_sha256(source),
            target="cpu",
            compiler=CompilerInfo(name="onnxruntime", version=onnxruntime.__version__),
            precision=dict.fromkeys(writers, "fp32"),
            graphs={name: steps.graph_spec(draft.path / f"{name}.onnx") for name in writers},
            decoder=DecoderSpec(
                layers=shape.layers,
                kv_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                hidden=shape.width,
                vocab=shape.vocab,
            ),
        )
