"""fp32 ONNX to INT8 ONNX with explicit Q/DQ, standard operators only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from auroraedge.errors import EngineError

CALIBRATION_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: Iterator[dict[str, np.ndarray]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def weight_products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The MatMul nodes whose second factor is a constant: the linear layers."""
    constants = {item.name for item in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constants]


def int8_from_onnx(
    source: Path,
    destination: Path,
    feeds: Iterator[dict[str, np.ndarray]],
    *,
    method: str = "minmax",
    keep: tuple[str, ...] = (),
) -> int:
    """Static INT8: unsigned activations per tensor, signed 7-bit weights per channel; returns the quantised layers.

    Products of two activations (attention), norms and softmax stay in float32. Weights use 7 bits because processors
    without VNNI add pairs of products in 16 bits and would saturate. keep: names of layers left in float32. Raises
    EngineError unless every other linear layer is quantised.
    """
    prepared = destination.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True, skip_optimization=True)
    model = onnx.load(prepared)
    names = [node.name for node in weight_products(model)]
    wanted = [name for name in names if name not in keep]
    quantize_static(
        prepared,
        destination,
        _Reader(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=wanted,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CALIBRATION_METHODS[method],
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"], "CalibMovingAverage": False},
    )
    prepared.unlink()
    found = _quantised_products(onnx.load(destination))
    if found != len(wanted):
        raise EngineError(f"{found} of {len(wanted)} linear layers of {source.name} were quantised.", field=source.name)
    return found


def _quantised_products(model: onnx.ModelProto) -> int:
    """MatMul nodes both of whose factors come from DequantizeLinear."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    count = 0
    for node in model.graph.node:
        if node.op_type == "MatMul":
            makers = [made_by.get(name) for name in node.input]
            count += all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
    return count


def int8_weights_from_onnx(source: Path, destination: Path) -> int:
    """Stores the weights of linear layers as INT8 per output channel with a DequantizeLinear before each product.

    Arithmetic stays in float32. Returns the number of layers; raises EngineError when there is none.
    """
    model = onnx.load(source)
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    done: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in weight_products(model):
        name = node.input[1]
        count += 1
        if name not in done:
            weight = numpy_helper.to_array(constants[name])
            scale = np.maximum(np.abs(weight).max(axis=0), 1e-12) / 127.0
            quantised = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
            graph.initializer.remove(constants[name])
            graph.initializer.extend(
                [
                    numpy_helper.from_array(quantised, f"{name}_int8"),
                    numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"),
                ]
            )
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [f"{name}_fp32"], f"{name}_dq", axis=1
                )
            )
            done.add(name)
        node.input[1] = f"{name}_fp32"
    if not count:
        raise EngineError(f"{source.name} has no linear layer to quantise.", field=source.name)
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    onnx.checker.check_model(model)
    onnx.save(model, destination)
    return count
