"""The quantisers of a graph are counted by submodule, and a graph that lacks one is a failed build."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from auroraedge.errors import EngineError
from auroraedge.model import AuroraEdgeConfig
from engine_build.gpu_graphs import GraphOptions, ModelShape, write_decoder, write_fusion, write_vision
from engine_build.network import Precisions
from engine_build.quantisers import check_quantisers

SHAPE = replace(ModelShape.of(AuroraEdgeConfig.from_preset("nano")), vision_layers=2, layers=2, labels=3, vocab=640)


class _Ranges(dict):
    def get(self, name: str, default: float | None = None) -> float:
        return 4.0


def _weights(name: str) -> np.ndarray:
    """Of the right shapes, as the writers ask for them; the values do not matter."""
    e, d, m = SHAPE.vision_width, SHAPE.width, SHAPE.middle
    kv = SHAPE.kv_heads * SHAPE.head_dim
    ends = {
        "patch_embedding.weight": (e, SHAPE.pixels), "patch_embedding.bias": (e,),
        "compressor.w1": (128, SHAPE.patches), "compressor.b1": (128,),
        "compressor.w2": (SHAPE.compressed, 128), "compressor.b2": (SHAPE.compressed,),
        "projector.fc1.weight": (d, e), "projector.fc2.weight": (d, d),
        "mlp.gate_proj.weight": (m, d), "mlp.up_proj.weight": (m, d), "mlp.down_proj.weight": (d, m),
        "lm_head.weight": (SHAPE.vocab, d), "grounding.out.weight": (1 + SHAPE.labels + 4, d),
        "grounding.out.bias": (1 + SHAPE.labels + 4,), "grounding.pool.weight": (SHAPE.labels + 1, 2 * d),
        "grounding.pool.bias": (SHAPE.labels + 1,), "grounding.mlp.1.weight": (d, d),
        "pool_norm.weight": (2 * d,), "pool_norm.bias": (2 * d,),
    }  # fmt: skip
    shape = next((size for end, size in ends.items() if name.endswith(end)), None)
    if shape is None:
        vision = name.startswith("vision_model")
        width = e if vision else d
        if name.endswith(("fc1.weight", "fc1.bias")):
            shape = (SHAPE.vision_middle, e) if name.endswith("weight") else (SHAPE.vision_middle if vision else d,)
        elif name.endswith("fc2.weight"):
            shape = (e, SHAPE.vision_middle)
        elif "norm" in name or name.endswith(("mlp.0.weight", "mlp.0.bias")):
            shape = (width,)
        elif not vision and "cross" not in name and name.endswith(("k_proj.weight", "v_proj.weight")):
            shape = (kv, d)
        elif not vision and "cross" not in name and name.endswith(("k_proj.bias", "v_proj.bias")):
            shape = (kv,)
        elif name.endswith("weight"):
            shape = (width, width)
        else:
            shape = (width,)
    return np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)


WRITERS = {"vision": write_vision, "fusion": write_fusion, "decoder": write_decoder}
SUBMODULES = {
    "vision": {"encoder": 9, "projector": 2, "grounding": 3},
    "fusion": {"cross-attention": 3, "fusion layers": 4},
    "decoder": {"decoder": 8, "LM head": 1},
}


@pytest.mark.parametrize("graph", sorted(WRITERS))
@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_every_submodule_is_counted(graph: str, precision: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    precisions = Precisions(name=precision, activation=_Ranges())
    options = GraphOptions(dtype="float16", cache="in_place")
    network = WRITERS[graph](path, SHAPE, _weights, precisions, options)
    found = check_quantisers(path, network.linear_layers, precisions)
    assert {name: counts.layers for name, counts in found.items()} == SUBMODULES[graph]
    for counts in found.values():
        assert counts.weights == counts.layers
        assert counts.inputs == (0 if precision == "int4" else counts.layers)


def test_kept_layers_and_odd_rows_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    kept = frozenset({"fusion.cross.kv", "fusion.layers.0.mlp.down_proj"})
    precisions = Precisions(name="int8", activation=_Ranges(), keep=kept)
    network = write_fusion(path, SHAPE, _weights, precisions, GraphOptions())
    found = check_quantisers(path, network.linear_layers, precisions)
    assert (found["cross-attention"].weights, found["fusion layers"].weights) == (2, 3)


@pytest.mark.parametrize("part", ["weight", "input"])
def test_a_quantiser_that_is_missing_fails_the_build(part: str, tmp_path: Path) -> None:
    """As a tool leaves it that skips a module by its name."""
    path = tmp_path / "graph.onnx"
    precisions = Precisions(name="int8", activation=_Ranges())
    network = write_fusion(path, SHAPE, _weights, precisions, GraphOptions(dtype="float32"))
    model = onnx.load(path)
    producers = {output: node for node in model.graph.node for output in node.output}
    victim = next(
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and producers.get(node.input[1], node).input[0] == "fusion.cross.o_proj.weight"
    )
    if part == "weight":
        victim.input[1] = "plain"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((256, 256), np.float32), "plain"))
    else:
        victim.input[0] = producers[producers[victim.input[0]].input[0]].input[0]
    onnx.save(model, path)
    with pytest.raises(EngineError, match="cross-attention has"):
        check_quantisers(path, network.linear_layers, precisions)
