"""How many quantisers are active in every submodule, read back from the ONNX file that the compiler gets.

Tools that skip modules by their names leave a model half quantised without a word. So the nodes are counted, not what
their writer says of them, and a submodule with another count than was asked for is a failed build.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from auroraedge.errors import EngineError
from engine_build.network import INT4_BLOCK, Precisions

# Submodules of the model, by how the names of their layers begin.
_SUBMODULES = {
    "encoder": r"vision_model\.",
    "projector": r"projector\.",
    "grounding": r"grounding\.",
    "cross-attention": r"fusion\.cross\.",
    "fusion layers": r"fusion\.layers\.",
    "decoder": r"language_model\.model\.",
    "LM head": r"language_model\.lm_head",
}


@dataclass(frozen=True, kw_only=True)
class Quantisers:
    """Of one submodule: linear layers, those with a quantised weight, and those with a quantised input."""

    layers: int
    weights: int
    inputs: int

    def __str__(self) -> str:
        inputs = f", {self.inputs} inputs" if self.inputs else ""
        return f"{self.weights} of {self.layers} weights{inputs}"


def submodule_of(layer: str) -> str:
    return next((name for name, pattern in _SUBMODULES.items() if re.match(pattern, layer)), "other")


def count_quantisers(graph: onnx.GraphProto, layers: Iterable[str]) -> dict[str, Quantisers]:
    """By submodule, from the nodes. layers: names of all linear layers, quantised or not."""
    producers = {output: node for node in graph.node for output in node.output}
    names = list(layers)
    total = Counter(submodule_of(name) for name in names)
    weights: Counter[str] = Counter()
    inputs: Counter[str] = Counter()
    known = {f"{name}.weight": name for name in names}
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        factor = producers.get(node.input[1])
        if factor is None or factor.op_type != "DequantizeLinear" or factor.input[0] not in known:
            continue
        submodule = submodule_of(known[factor.input[0]])
        weights[submodule] += 1
        fed = producers.get(node.input[0])
        if fed is not None and fed.op_type == "DequantizeLinear":
            source = producers.get(fed.input[0])
            inputs[submodule] += source is not None and source.op_type == "QuantizeLinear"
    return {
        name: Quantisers(layers=total[name], weights=weights[name], inputs=inputs[name])
        for name in (*_SUBMODULES, "other")
        if total[name]
    }


def check_quantisers(path: Path, layers: Iterable[str], precisions: Precisions) -> dict[str, Quantisers]:
    """The counts. layers: names of all linear layers. Raises EngineError where a submodule has others than `precisions`
    asks for; rows that do not divide into blocks stay in 16 bits with INT4."""
    names = list(layers)
    graph = onnx.load(path, load_external_data=False).graph
    found = count_quantisers(graph, names)
    widths = {tensor.name: int(tensor.dims[0]) for tensor in graph.initializer if tensor.dims}
    wanted: Counter[str] = Counter()
    for name in names:
        precision = precisions.of(name)
        blocks = precision != "int4" or widths[f"{name}.weight"] % INT4_BLOCK == 0
        wanted[submodule_of(name)] += precision != "plain" and blocks
    for submodule, counts in found.items():
        inputs = wanted[submodule] if precisions.name in ("int8", "fp8") else 0
        if (counts.weights, counts.inputs) != (wanted[submodule], inputs):
            raise EngineError(
                f"{path.name}: {submodule} has {counts} quantised; {wanted[submodule]} were asked for.",
                field="precision",
                remedy="Report this with the command: the graph is not what its precision says.",
            )
    return found
