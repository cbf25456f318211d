"""Other forms of the engine's graphs, of equal meaning, to see whether ONNX Runtime runs them faster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from engine_build.quantise import int8_from_onnx

_CONTRIB = "com.microsoft"


def _makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in graph.node for output in node.output}


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _set_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Puts the nodes that are still needed in an order in which each finds its inputs."""
    graph = model.graph
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    rest = [node for node in nodes if any(output in read for output in node.output)]
    have = {""} | {x.name for x in graph.input} | {x.name for x in graph.initializer}
    ordered: list[onnx.NodeProto] = []
    while rest:
        ready = [node for node in rest if all(name in have for name in node.input)]
        if not ready:
            raise AssertionError("the rewritten graph has a cycle or a missing input")
        ordered += ready
        have |= {output for node in ready for output in node.output}
        rest = [node for node in rest if node not in ready]
    del graph.node[:]
    graph.node.extend(ordered)
    if not any(opset.domain == _CONTRIB for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))


def bias_in_product(source: Path, destination: Path) -> int:
    """Every Q/DQ product and the bias after it as one MatMulIntegerToFloat. Returns how many."""
    model = onnx.load(source)
    graph = model.graph
    makers, readers = _makers(graph), _readers(graph)
    constants = {x.name: x for x in graph.initializer}
    gone: list[int] = []
    made: dict[int, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        a, b = makers.get(node.input[0]), makers.get(node.input[1])
        if a is None or b is None or {a.op_type, b.op_type} != {"DequantizeLinear"}:
            continue
        after = readers.get(node.output[0], [])
        bias, output = "", node.output[0]
        if len(after) == 1 and after[0].op_type == "Add":
            other = next(name for name in after[0].input if name != node.output[0])
            if other in constants and len(constants[other].dims) == 1:
                bias, output = other, after[0].output[0]
                gone.append(id(after[0]))
        inputs = [a.input[0], b.input[0], a.input[1], b.input[1], a.input[2], b.input[2], bias]
        made[id(node)] = helper.make_node("MatMulIntegerToFloat", inputs, [output], domain=_CONTRIB)
    _set_nodes(model, [made.get(id(node), node) for node in graph.node if id(node) not in gone])
    onnx.save(model, destination)
    return len(made)


def fused_attention(source: Path, destination: Path, *, standard: bool, masked: bool) -> int:
    """The encoder's attention as one node a layer: Attention of opset 23, or ONNX Runtime's MultiHeadAttention.

    masked False leaves the mask out, which is only right for full square views. Returns the number of layers.
    """
    model = onnx.load(source)
    graph = model.graph
    makers, readers = _makers(graph), _readers(graph)
    constants = {x.name: x for x in graph.initializer}
    gone: list[int] = []
    made: list[onnx.NodeProto] = []
    masks = ""
    for node in graph.node:
        if node.op_type != "Softmax":
            continue
        add = makers[node.input[0]]
        scores = next(makers[name] for name in add.input if makers[name].op_type == "MatMul")
        masks = next(name for name in add.input if name != scores.output[0])
        turned, split = makers[scores.input[1]], makers[scores.input[0]]
        moved = makers[split.input[0]]
        shaped = makers[moved.input[0]]
        weighted = readers[node.output[0]][0]
        back = readers[weighted.output[0]][0]
        flat = readers[back.output[0]][0]
        gone += [id(x) for x in (node, add, scores, turned, split, moved, shaped, weighted, back, flat)]
        heads = int(numpy_helper.to_array(constants[shaped.input[1]])[-2]) // 3
        product = makers[shaped.input[0]]
        width = next(constants[name] for name in product.input if name in constants).dims[0] // 3
        layer = f"layer{len(made)}"
        parts = [f"{layer}_{part}" for part in "qkv"]
        graph.initializer.append(numpy_helper.from_array(np.full(3, width, np.int64), f"{layer}_widths"))
        made.append(helper.make_node("Split", [shaped.input[0], f"{layer}_widths"], parts, axis=-1))
        # 1 / sqrt(d) lies in the query's weights.
        if standard:
            inputs = [*parts, "mask_all"] if masked else parts
            made.append(
                helper.make_node(
                    "Attention", inputs, [flat.output[0]], q_num_heads=heads, kv_num_heads=heads, scale=1.0
                )
            )
        else:
            inputs = [*parts, "", "", "mask_all"] if masked else parts
            made.append(
                helper.make_node(
                    "MultiHeadAttention", inputs, [flat.output[0]], domain=_CONTRIB, num_heads=heads, scale=1.0
                )
            )
    if masked:
        graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 256, 256], np.int64), "mask_shape"))
        made.append(helper.make_node("Expand", [masks, "mask_shape"], ["mask_all"]))
    if standard:
        for opset in model.opset_import:
            opset.version = 23 if opset.domain in ("", "ai.onnx") else opset.version
    _set_nodes(model, [*(node for node in graph.node if id(node) not in gone), *made])
    onnx.save(model, destination)
    return len(made)


def few_bits(source: Path, destination: Path, bits: int) -> None:
    """Weights of the linear layers in blocks of 32 with INT8 arithmetic: MatMulNBits, accuracy level 4."""
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    settings = nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4, bits=bits)
    logging.getLogger(nbits.__name__).setLevel(logging.WARNING)
    quantizer = nbits.MatMulNBitsQuantizer(onnx.load(source), algo_config=settings)
    quantizer.process()
    quantizer.model.save_model_to_file(str(destination))


def static_int8(source: Path, destination: Path, feeds: Callable[[], Iterator[dict[str, np.ndarray]]]) -> int:
    """Q/DQ around the linear layers with scales from `feeds`; its accuracy is not judged here."""
    return int8_from_onnx(source, destination, feeds())
