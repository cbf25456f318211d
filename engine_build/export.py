"""Torch modules to ONNX files: fp32, standard operators, dynamic batch, sequence and past."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from auroraedge.config import GRID
from auroraedge.errors import EngineError
from auroraedge.model import AuroraEdgeForConditionalGeneration
from engine_build.graphs import DecoderGraph, FusionGraph, VisionGraph

OPSET = 20
GRAPH_NAMES = ("vision", "fusion", "decoder")


@dataclass(frozen=True, kw_only=True)
class GraphExport:
    """One graph on disk. `module` is its torch form, for parity; inputs and outputs are named axes by tensor name."""

    name: str
    path: Path
    module: nn.Module
    inputs: dict[str, tuple[str | int, ...]]
    outputs: dict[str, tuple[str | int, ...]]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    module: nn.Module
    example: tuple
    inputs: dict[str, tuple[str | int, ...]]
    outputs: dict[str, tuple[str | int, ...]]


def _vision(model: AuroraEdgeForConditionalGeneration) -> _Plan:
    vision, text = model.config.vision_config, model.config.text_config
    n, pixels, e, d = GRID * GRID, vision.num_channels * vision.patch_size**2, vision.hidden_size, text.hidden_size
    example = (
        torch.randint(0, 256, (2, n, pixels), dtype=torch.uint8),
        torch.randn(2, n, e),
        torch.ones(2, n),
    )
    inputs = {"patches": ("batch", n, pixels), "position": ("batch", n, e), "patch_mask": ("batch", n)}
    outputs = {"visual": ("batch", n, d), "compressed": ("batch", model.config.num_compressed, d)}
    if model.grounding is not None:
        labels = len(model.config.grounding_labels)
        outputs |= {"evidence": ("batch", n, 1 + labels + 4), "presence": ("batch", labels + 1)}
    return _Plan(module=VisionGraph(model), example=example, inputs=inputs, outputs=outputs)


def _fusion(model: AuroraEdgeForConditionalGeneration) -> _Plan:
    n, d = GRID * GRID, model.config.text_config.hidden_size
    example = (torch.randn(2, 5, d), torch.randn(2, n, d), torch.ones(2, n), torch.ones(2, 5))
    inputs = {
        "text": ("batch", "text", d),
        "visual": ("batch", n, d),
        "patch_mask": ("batch", n),
        "text_mask": ("batch", "text"),
    }
    return _Plan(module=FusionGraph(model), example=example, inputs=inputs, outputs={"fused": ("batch", "text", d)})


def _decoder(model: AuroraEdgeForConditionalGeneration) -> _Plan:
    text = model.config.text_config
    module = DecoderGraph(model)
    width, kv_heads, head_dim = text.hidden_size, text.num_key_value_heads, text.head_dim
    past = [torch.randn(2, kv_heads, 3, head_dim) for _ in module.cache_names("past")]
    example = (torch.randn(2, 4, width), torch.ones(2, 7), torch.arange(3, 7).repeat(2, 1), past)
    inputs = {
        "inputs_embeds": ("batch", "sequence", width),
        "attention_mask": ("batch", "total"),
        "position_ids": ("batch", "sequence"),
        **{name: ("batch", kv_heads, "past", head_dim) for name in module.cache_names("past")},
    }
    outputs = {
        "logits": ("batch", text.vocab_size),
        **{name: ("batch", kv_heads, "total", head_dim) for name in module.cache_names("present")},
    }
    return _Plan(module=module, example=example, inputs=inputs, outputs=outputs)


_PLANS = {"vision": _vision, "fusion": _fusion, "decoder": _decoder}


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx reports its progress and its own deprecations on the log; only errors concern the caller."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_axes(path: Path, plan: _Plan) -> None:
    """Gives the dynamic axes readable names and drops inferred inner shapes, which name them otherwise."""
    proto = onnx.load(path)
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    for values, wanted in ((proto.graph.input, plan.inputs), (proto.graph.output, plan.outputs)):
        found = {value.name for value in values}
        if found != set(wanted):
            raise EngineError(f"The exported graph has {sorted(found)}, not {sorted(wanted)}.", field=path.name)
        for value in values:
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            for axis in wanted[value.name]:
                dims.add(**({"dim_param": axis} if isinstance(axis, str) else {"dim_value": axis}))
    for node in proto.graph.node:
        # Source lines of the exporting machine have no place in an artefact.
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def export_graph(model: AuroraEdgeForConditionalGeneration, name: str, folder: Path) -> GraphExport:
    """Writes `folder`/{name}.onnx (fp32). `model` is in eval mode and float32. Raises EngineError."""
    plan = _PLANS[name](model)
    module = plan.module.eval().requires_grad_(False)
    path = folder / f"{name}.onnx"
    auto = torch.export.Dim.AUTO
    axes = [{i: auto for i, axis in enumerate(shape) if isinstance(axis, str)} for shape in plan.inputs.values()]
    flat = len(plan.example) - (1 if isinstance(plan.example[-1], list) else 0)
    shapes = tuple(axes[:flat]) + ((axes[flat:],) if flat < len(plan.example) else ())
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                module,
                plan.example,
                path,
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=list(plan.inputs),
                output_names=list(plan.outputs),
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:  # the exporter raises a family of its own for every stage
        raise EngineError(
            f"The {name} graph cannot be exported: {error}.", field=name, remedy="Report this with the log of the run."
        ) from error
    _name_axes(path, plan)
    return GraphExport(name=name, path=path, module=module, inputs=plan.inputs, outputs=plan.outputs)


def export_all(model: AuroraEdgeForConditionalGeneration, folder: Path) -> Iterator[GraphExport]:
    """All graphs, one after the other."""
    for name in GRAPH_NAMES:
        yield export_graph(model, name, folder)
