"""Writes ONNX graphs for TensorRT: strongly typed, explicit Q/DQ, standard operators, one node at a time.

A graph written here says itself what is computed in which precision; no compiler flag does. The same code writes the
float32 form that ONNX Runtime runs on a CPU, so the accuracy of a quantised engine is known before any GPU is at hand.

Strongly typed means: activations have one 16- or 32-bit type (`dtype`), norms, softmax statistics and rotary angles are
computed in float32, and linear layers are quantised as `Precisions` says:
  int8  x and W in 8 bits (W8A8): activation scale per tensor, weight scale per output, both symmetric
  fp8   the same in E4M3, weight scale per tensor
  int4  W in 4 bits, one scale for 128 inputs of an output; the product is computed in 16 bits
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from auroraedge.errors import EngineError
from kernels.plugins import DOMAIN, with_functions, with_plugins

Shape = tuple[str | int, ...]
INT4_BLOCK = 128
FP8_MAX = 448.0
_TYPES = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}
_ALIGNMENT = 64
# Below float16's normal range a scale has few bits left.
_LEAST_SCALE = 6.2e-5


@dataclass(frozen=True, kw_only=True)
class Precisions:
    """How the linear layers of a graph are computed.

    activation: largest magnitude of the input of each layer, from calibration; needed for int8 and fp8. keep: layers
    left in 16 bits because quantising them costs too much (calib.sensitivity).
    """

    name: str = "fp16"
    activation: Mapping[str, float] = field(default_factory=dict)
    keep: frozenset[str] = frozenset()

    def of(self, layer: str) -> str:
        return "plain" if self.name in ("fp16", "fp32") or layer in self.keep else self.name


class Network:
    """One graph under construction. Values are the names of tensors.

    dtype: type of the activations. external: file beside the graph for the weights, written as they come, so that a
    graph of many gigabytes needs no memory for them; without it they lie in the graph.
    """

    def __init__(
        self, name: str, *, dtype: str, opset: int, precisions: Precisions, external: Path | None = None
    ) -> None:
        self.name, self.dtype, self.opset, self.precisions = name, dtype, opset, precisions
        self.domains = {"": opset}
        self.type = _TYPES[dtype]
        self.linear_layers: list[str] = []
        self.quantised: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._known: dict[str, str] = {}
        self._count = 0
        self.plugins = False  # nodes of kernels.plugins are for TensorRT's plug-ins, not for their functions
        self._external = external
        self._file = None if external is None else external.open("wb")

    # -- values -----------------------------------------------------------------------------------------------------

    def input(self, name: str, kind: str, shape: Shape) -> str:
        """kind: numpy's name of the type, or "T" for the graph's own."""
        self._inputs.append(self._value(name, kind, shape))
        return name

    def output(self, value: str, name: str, shape: Shape, kind: str = "T") -> str:
        """Gives a value its name as an output; later users must use that name. An Identity would not do: TensorRT wants
        the node that updates a cache to make the output itself."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, known in enumerate(names):
                    if known == value:
                        names[index] = name
        self._outputs.append(self._value(name, kind, shape))
        return name

    def _value(self, name: str, kind: str, shape: Shape) -> onnx.ValueInfoProto:
        dtype = self.type if kind == "T" else helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        return helper.make_tensor_value_info(name, dtype, list(shape))

    def constant(self, array: np.ndarray, name: str) -> str:
        """A named weight, stored as it is."""
        if array.dtype == ml_dtypes.float8_e4m3fn:
            tensor = self._raw(name, TensorProto.FLOAT8E4M3FN, array.shape, array.tobytes())
        else:
            tensor = self._raw(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.tobytes())
        self._constants.append(tensor)
        return name

    def small(self, array: np.ndarray | float | int | Sequence[int], kind: str = "T") -> str:
        """A small constant, shared by all its users. Lists of whole numbers are shapes and axes (int64)."""
        dtype = np.dtype(self.dtype if kind == "T" else kind)
        values = np.asarray(array, dtype=np.int64 if isinstance(array, (list, tuple)) else dtype)
        key = f"{values.dtype}{values.shape}{values.tobytes().hex()}"
        if key not in self._known:
            self._known[key] = f"constant_{len(self._known)}"
            self._constants.append(numpy_helper.from_array(values, self._known[key]))
        return self._known[key]

    def _raw(self, name: str, kind: int, shape: Sequence[int], content: bytes) -> onnx.TensorProto:
        tensor = TensorProto(name=name, data_type=kind, dims=list(shape))
        if self._file is None or self._external is None:
            tensor.raw_data = content
            return tensor
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        place = {"location": self._external.name, "offset": self._file.tell(), "length": len(content)}
        self._file.write(content)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def op(self, kind: str, *values: str, outputs: int = 1, **attributes: Any) -> Any:
        """Appends a node; returns the name of its output, or their names."""
        self._count += 1
        names = [f"{kind.lower()}_{self._count}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(values), names, name=f"{kind}_{self._count}", **attributes))
        return names if outputs > 1 else names[0]

    def kernel(self, kind: str, *values: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node of kernels.plugins; like `op`."""
        return self.op(kind, *values, outputs=outputs, domain=DOMAIN, **attributes)

    # -- arithmetic -------------------------------------------------------------------------------------------------

    def add(self, a: str, b: str) -> str:
        return str(self.op("Add", a, b))

    def mul(self, a: str, b: str) -> str:
        return str(self.op("Mul", a, b))

    def matmul(self, a: str, b: str) -> str:
        return str(self.op("MatMul", a, b))

    def to_float(self, x: str) -> str:
        return x if self.dtype == "float32" else str(self.op("Cast", x, to=TensorProto.FLOAT))

    def to_type(self, x: str) -> str:
        return x if self.dtype == "float32" else str(self.op("Cast", x, to=self.type))

    def cast_to_type(self, x: str) -> str:
        """From any type to the graph's own."""
        return str(self.op("Cast", x, to=self.type))

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """0 keeps an axis, -1 takes what is left."""
        return str(self.op("Reshape", x, self.small(list(shape))))

    def transpose(self, x: str, order: Sequence[int]) -> str:
        return str(self.op("Transpose", x, perm=list(order)))

    def slice(self, x: str, start: int, end: int, axis: int) -> str:
        return str(self.op("Slice", x, *(self.small([value]) for value in (start, end, axis))))

    def split_heads(self, x: str, heads: int, width: int) -> str:
        """[B, S, heads * width] -> [B, heads, S, width]."""
        return self.transpose(self.reshape(x, [0, -1, heads, width]), [0, 2, 1, 3])

    def merge_heads(self, x: str, width: int) -> str:
        """[B, heads, S, d] -> [B, S, width]."""
        return self.reshape(self.transpose(x, [0, 2, 1, 3]), [0, -1, width])

    def layer_norm(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray, eps: float) -> str:
        scale = self.constant(weight.astype(np.float32), f"{name}.weight")
        shift = self.constant(bias.astype(np.float32), f"{name}.bias")
        return self.to_type(str(self.op("LayerNormalization", self.to_float(x), scale, shift, axis=-1, epsilon=eps)))

    def rms_norm(self, x: str, name: str, weight: np.ndarray, eps: float) -> str:
        """In float32: the squares of a 16-bit Qwen2.5's largest activations overflow 65504."""
        wide = self.to_float(x)
        mean = self.op("ReduceMean", self.mul(wide, wide), self.small([-1]), keepdims=1)
        scale = self.op("Reciprocal", self.op("Sqrt", self.add(str(mean), self.small(eps, "float32"))))
        normed = self.mul(wide, str(scale))
        return self.to_type(self.mul(normed, self.constant(weight.astype(np.float32), f"{name}.weight")))

    def gelu(self, x: str) -> str:
        return str(self.op("Gelu", x, approximate="tanh"))

    def silu(self, x: str) -> str:
        return self.mul(x, str(self.op("Sigmoid", x)))

    def attend(self, q: str, k: str, v: str, bias: str) -> str:
        """softmax(q k^T + bias) v; the scale is in q's weights. q [B, H, S, d], k and v [B, H, T, d]."""
        scores = self.add(self.matmul(q, self.transpose(k, [0, 1, 3, 2])), bias)
        return self.matmul(str(self.op("Softmax", scores, axis=-1)), v)

    # -- linear layers ----------------------------------------------------------------------------------------------

    def linear(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        """x W^T + b in the layer's precision; weight [out, in]. Raises EngineError without a scale that it needs."""
        self.linear_layers.append(name)
        precision = self.precisions.of(name)
        matrix = np.ascontiguousarray(weight.astype(np.float32).T)
        if precision == "int4" and matrix.shape[0] % INT4_BLOCK:
            precision = "plain"
        if precision != "plain":
            self.quantised[name] = precision
        product = ""
        if precision == "plain":
            factor = self.constant(matrix.astype(self.dtype), f"{name}.weight")
        elif precision == "int4":
            factor = self._int4(matrix, name)
        elif precision in ("int8", "fp8"):
            gain = _gain(matrix)
            x, factor = self._quantise_input(x, name, precision), self._eight_bits(matrix * gain, name, precision)
            product = self.matmul(x, factor)
            product = product if gain == 1.0 else self.mul(product, self.small(1.0 / gain))
        else:
            raise EngineError(f"A GPU graph knows no precision '{precision}'.", field="--precision")
        product = product or self.matmul(x, factor)
        return product if bias is None else self.add(product, self.constant(bias.astype(self.dtype), f"{name}.bias"))

    def _quantise_input(self, x: str, name: str, precision: str) -> str:
        largest = self.precisions.activation.get(name)
        if largest is None or not np.isfinite(largest):
            raise EngineError(
                f"There is no calibrated range for the input of {name}.",
                field="calibration",
                remedy="Calibrate again: the calibration belongs to another model.",
            )
        fp8 = precision == "fp8"
        # A layer whose input is always zero has no range.
        scale = max(largest / (FP8_MAX if fp8 else 127.0), _LEAST_SCALE)
        zero = self._zero_fp8() if fp8 else self.small(0, "int8")
        quantised = self.op("QuantizeLinear", x, self.small(scale), zero)
        return str(self.op("DequantizeLinear", str(quantised), self.small(scale), zero))

    def _zero_fp8(self) -> str:
        if "fp8 zero" not in self._known:
            self._known["fp8 zero"] = self.constant(np.zeros((), ml_dtypes.float8_e4m3fn), "zero_fp8")
        return self._known["fp8 zero"]

    def _eight_bits(self, matrix: np.ndarray, name: str, precision: str) -> str:
        if precision == "fp8":
            scale = np.asarray(max(float(np.abs(matrix).max()) / FP8_MAX, _LEAST_SCALE), dtype=self.dtype)
            stored = np.clip(matrix / np.float32(scale), -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
            values = [self.constant(stored, f"{name}.weight"), self.constant(scale, f"{name}.scale"), self._zero_fp8()]
            return str(self.op("DequantizeLinear", *values))
        scale = np.maximum(np.abs(matrix).max(axis=0) / 127.0, _LEAST_SCALE).astype(self.dtype)
        stored = np.clip(np.round(matrix / scale.astype(np.float32)), -127, 127).astype(np.int8)
        zero = self.constant(np.zeros(matrix.shape[1], np.int8), f"{name}.zero")
        values = [self.constant(stored, f"{name}.weight"), self.constant(scale, f"{name}.scale"), zero]
        return str(self.op("DequantizeLinear", *values, axis=1))

    def _int4(self, matrix: np.ndarray, name: str) -> str:
        blocks = matrix.reshape(-1, INT4_BLOCK, matrix.shape[1])
        scale = np.maximum(np.abs(blocks).max(axis=1) / 7.0, _LEAST_SCALE).astype(self.dtype)
        stored = np.clip(np.round(blocks / scale.astype(np.float32)[:, None]), -8, 7).astype(np.int8)
        flat = stored.reshape(-1)
        packed = ((flat[0::2] & 0xF) | ((flat[1::2] & 0xF) << 4)).astype(np.uint8)
        self._constants.append(self._raw(f"{name}.weight", TensorProto.INT4, matrix.shape, packed.tobytes()))
        values = [f"{name}.weight", self.constant(scale, f"{name}.scale")]
        return str(self.op("DequantizeLinear", *values, axis=0, block_size=INT4_BLOCK))

    # -- the end ----------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes and checks the graph. Raises EngineError unless every layer has the precision that was asked for."""
        wanted = {name for name in self.linear_layers if self.precisions.of(name) != "plain"}
        missing = sorted(wanted - set(self.quantised))
        if self.precisions.name == "int4":  # rows that do not divide into blocks stay in 16 bits
            missing = []
        if missing:
            raise EngineError(f"{len(missing)} layers were not quantised, first {missing[0]}.", field=self.name)
        if self._file is not None:
            self._file.close()
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in self.domains.items()],
            producer_name="auroraedge",
            ir_version=_ir_version(self.opset),
        )
        if any(node.domain == DOMAIN for node in self._nodes):
            model = (with_plugins if self.plugins else with_functions)(model)
        onnx.save(model, path)
        onnx.checker.check_model(path)


def _gain(matrix: np.ndarray) -> float:
    """The power of two that lifts small weights until their 8-bit scales are normal float16 numbers.

    Weights with a folded LayerScale are that small; the product is divided by the gain again.
    """
    largest = np.abs(matrix).max(axis=0)
    smallest = float(largest[largest > 0].min(initial=1.0)) / 127.0
    lift = max(0, int(np.ceil(np.log2(2.0**-12 / smallest))))
    room = max(0, int(np.floor(-np.log2(max(float(largest.max()) / 127.0, 1e-30)))))
    return float(2.0 ** min(lift, room, 12))


def _ir_version(opset: int) -> int:
    """The least file format that knows the opset; older parsers refuse newer ones."""
    return {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12}[opset]
