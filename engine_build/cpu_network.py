"""Writes ONNX graphs for ONNX Runtime on a CPU, weight by weight: no memory for the whole model, no calibration.

Linear layers, of which `CpuPrecisions` says which is which:
  int8-dynamic  W in INT8 per output (7 bits, as in engine_build.quantise), x in UINT8 with a scale for each row of
                activations (a token), taken from the row itself. Standard Q/DQ around a MatMul: ONNX Runtime makes it
                MatMulIntegerToFloat, which multiplies integers.
  int4          W in 4 bits, one scale for BLOCK inputs of an output: com.microsoft.MatMulNBits with 8-bit activations
                (accuracy_level 4), for which ONNX has no standard operator.
Everything else is computed in float32. The decoder attends with com.microsoft.GroupQueryAttention, which rotates,
writes the cache in place and reads only the places that are written.

Suffixes: B sequences, S new places, T places that are seen, P places of the cache, D width, H heads, K key/value heads,
d head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

from auroraedge.errors import EngineError
from engine_build.gpu_graphs import ModelShape, Weights, cache_names
from engine_build.network import Network, Precisions

MICROSOFT = "com.microsoft"
LM_HEAD = "language_model.lm_head"
BLOCK = 64
# Block products of 8-bit activations with integer arithmetic.
_ACCURACY_LEVEL = 4
# Processors without VNNI add pairs of products in 16 bits, which 8-bit weights would overrun.
_WEIGHT_LIMIT = 64.0
_INPUT_LIMIT = 127.0
# A row of zeros has no scale.
_LEAST_INPUT = 1e-20
_LEAST_SCALE = 1e-12
_OPSET = 20


@dataclass(frozen=True, kw_only=True)
class CpuPrecisions(Precisions):
    """name: fp32, int8-dynamic or int4. block: weights of an output that share a scale, for int4."""

    block: int = BLOCK

    def of(self, layer: str) -> str:
        """A 4-bit LM head would cost more quality than it saves memory: it has 8."""
        return "int8-dynamic" if self.name == "int4" and layer == LM_HEAD else super().of(layer)


class CpuNetwork(Network):
    """A graph for ONNX Runtime; see Network."""

    precisions: CpuPrecisions

    def microsoft(self, kind: str, *values: str, outputs: int = 1, **attributes: object) -> str | list[str]:
        """A node of ONNX Runtime's own operators; like `op`."""
        self.domains[MICROSOFT] = 1
        found: str | list[str] = self.op(kind, *values, outputs=outputs, domain=MICROSOFT, **attributes)
        return found

    def linear(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        self.linear_layers.append(name)
        precision = self.precisions.of(name)
        shift = "" if bias is None else self.constant(bias.astype(np.float32), f"{name}.bias")
        if precision == "int4":
            self.quantised[name] = precision
            return self._blocks(x, name, weight, shift)
        if precision == "int8-dynamic":
            self.quantised[name] = precision
            product = self._rows(x, name, weight)
        elif precision == "plain":
            matrix = np.ascontiguousarray(weight.astype(np.float32).T)
            product = self.matmul(x, self.constant(matrix, f"{name}.weight"))
        else:
            raise EngineError(
                f"A CPU graph written node by node knows no precision '{precision}'.", field="--precision"
            )
        return self.add(product, shift) if shift else product

    def _rows(self, x: str, name: str, weight: np.ndarray) -> str:
        largest = str(self.op("ReduceMax", str(self.op("Abs", x)), self.small([-1]), keepdims=1))
        largest = str(self.op("Max", largest, self.small(_LEAST_INPUT)))
        step, middle = self.small(1.0 / _INPUT_LIMIT), self.small(128, "uint8")
        unit = self.op("QuantizeLinear", str(self.op("Div", x, largest)), step, middle)
        unit = self.op("DequantizeLinear", str(unit), step, middle)
        stored, scale = quantise_rows(weight)
        values = [self.constant(stored, f"{name}.weight"), self.constant(scale, f"{name}.scale")]
        zero = self.constant(np.zeros(len(scale), np.int8), f"{name}.zero")
        factor = str(self.op("DequantizeLinear", *values, zero, axis=1))
        return self.mul(self.matmul(str(unit), factor), largest)

    def _blocks(self, x: str, name: str, weight: np.ndarray, shift: str) -> str:
        block = self.precisions.block
        packed, scale = quantise_blocks(weight, block)
        values = [x, self.constant(packed, f"{name}.weight"), self.constant(scale.reshape(-1), f"{name}.scale")]
        values += ["", "", shift] if shift else []
        sizes = {"N": weight.shape[0], "K": weight.shape[1], "bits": 4, "block_size": block}
        return str(self.microsoft("MatMulNBits", *values, accuracy_level=_ACCURACY_LEVEL, **sizes))

    def add_and_norm(self, x: str, more: str, name: str, weight: np.ndarray, eps: float) -> tuple[str, str]:
        """RMSNorm of x + more, and x + more."""
        scale = self.constant(weight.astype(np.float32), f"{name}.weight")
        found = self.microsoft("SkipSimplifiedLayerNormalization", x, more, scale, outputs=4, epsilon=eps)
        # Mean and deviation are of no use.
        for unused in (1, 2):
            self._nodes[-1].output[unused] = ""
        return found[0], found[3]


def quantise_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [in, out] and float32 [out] of a weight [out, in]: one scale for each output."""
    wide = weight.astype(np.float32, copy=False)
    scale = np.maximum(np.abs(wide).max(axis=1) / _WEIGHT_LIMIT, _LEAST_SCALE).astype(np.float32)
    stored = np.empty(wide.shape[::-1], np.int8)
    for first in range(0, len(wide), 4096):  # a part at a time: an LM head has 233 million weights
        part = slice(first, first + 4096)
        stored[:, part] = np.rint(wide[part] / scale[part, None]).astype(np.int8).T
    return stored, scale


def quantise_blocks(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [out, blocks, block / 2] and float32 [out, blocks] of a weight [out, in], in the layout of MatMulNBits.

    Values are scale * (q - 8) with q in 0..15. The scale has the sign that puts the largest magnitude at -8, so that
    all sixteen steps are used (as in GGML's Q4_0). A last block that is not full is filled with zeros.
    """
    outputs, inputs = weight.shape
    blocks = -(-inputs // block)
    packed = np.empty((outputs, blocks, block // 2), np.uint8)
    scale = np.empty((outputs, blocks), np.float32)
    for first in range(0, outputs, 4096):
        part = weight[first : first + 4096].astype(np.float32, copy=False)
        part = np.pad(part, ((0, 0), (0, blocks * block - inputs))) if inputs % block else part
        values = part.reshape(len(part), blocks, block)
        low, high = values.min(axis=2), values.max(axis=2)
        extreme = np.where(-low > high, low, high) / -8.0
        extreme = np.where(np.abs(extreme) < _LEAST_SCALE, np.float32(_LEAST_SCALE), extreme)
        steps = np.clip(np.rint(values / extreme[..., None]) + 8.0, 0, 15).astype(np.uint8)
        packed[first : first + len(part)] = steps[..., 0::2] | (steps[..., 1::2] << 4)
        scale[first : first + len(part)] = extreme
    return packed, scale


def joined(weights: Weights, names: list[str], part: str) -> np.ndarray:
    """Weights or biases of layers side by side, as those of one layer."""
    return np.concatenate([weights(f"{name}.{part}") for name in names])


def write_decoder(path: Path, shape: ModelShape, weights: Weights, precisions: CpuPrecisions, places: int) -> Network:
    """-> logits [B, vocab] of the last place, present.{i}.key/value: the memory of past.{i}.*, [B, K, P, d].

    Inputs: inputs_embeds [B, S, D], position_ids int64 [B, S], attention_bias [B, 1, S, T], write_index int64 [B]: the
    S new places are written from there on. The signature of the in-place decoder of engine_build.gpu_graphs, but T is
    what has been written and not P. Where S > 1, ONNX Runtime wants B = 1, and T > S (it would take positions for
    0, 1, 2, ... otherwise): see runtime.ort_decoder.
    """
    net = CpuNetwork(
        "decoder", dtype="float32", opset=_OPSET, precisions=precisions, external=path.with_suffix(".onnx.data")
    )
    d, root = shape.head_dim, "language_model.model"
    hidden = net.input("inputs_embeds", "T", ("batch", "sequence", shape.width))
    position = net.input("position_ids", "int64", ("batch", "sequence"))
    bias = net.input("attention_bias", "T", ("batch", 1, "sequence", "total"))
    index = net.input("write_index", "int64", ("batch",))
    length = net.op("Shape", hidden, start=1, end=2)
    seen = str(net.op("Cast", net.op("Sub", net.add(index, str(length)), net.small(1, "int64")), to=TensorProto.INT32))
    total = net.op("Squeeze", net.op("Shape", bias, start=3, end=4), net.small([0]))
    total = str(net.op("Cast", str(total), to=TensorProto.INT32))
    half = d // 2
    inverse = (shape.rope_theta ** (-np.arange(half, dtype=np.float64) / half)).astype(np.float32)
    angle = np.arange(places, dtype=np.float32)[:, None] * inverse
    cos, sin = net.constant(np.cos(angle), "rotary.cos"), net.constant(np.sin(angle), "rotary.sin")

    def weight(name: str) -> np.ndarray:
        return weights(f"{root}.{name}.weight")

    present: list[str] = []
    normed = net.rms_norm(hidden, f"{root}.layers.0.input_layernorm", weight("layers.0.input_layernorm"), shape.eps)
    for layer in range(shape.layers):
        here = f"layers.{layer}"
        last = layer == shape.layers - 1
        past = [net.input(f"past.{layer}.{p}", "T", ("batch", shape.kv_heads, places, d)) for p in ("key", "value")]
        parts = [f"{root}.{here}.self_attn.{part}_proj" for part in "qkv"]
        stacked = joined(weights, parts, "weight"), joined(weights, parts, "bias")
        qkv = net.linear(normed, f"{root}.{here}.self_attn.qkv", *stacked)
        attended, *kept = net.microsoft(
            "GroupQueryAttention",
            *(qkv, "", "", *past, seen, total, cos, sin, position, bias),
            outputs=3,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            scale=d**-0.5,
        )
        present += kept
        if last:  # one place is read: the others are needed as keys and values only
            hidden, attended = (net.slice(x, -1, 2**31 - 1, 1) for x in (hidden, attended))
        name = f"{here}.self_attn.o_proj"
        out = net.linear(attended, f"{root}.{name}", weight(name))
        name = f"{here}.post_attention_layernorm"
        normed, hidden = net.add_and_norm(hidden, out, f"{root}.{name}", weight(name), shape.eps)
        parts = [f"{root}.{here}.mlp.{part}_proj" for part in ("gate", "up")]
        both = net.linear(normed, f"{root}.{here}.mlp.gate_up", joined(weights, parts, "weight"))
        gate, up = net.op("Split", both, outputs=2, axis=-1, num_outputs=2)
        middle = net.mul(str(net.microsoft("QuickGelu", gate, alpha=1.0)), up)
        name = f"{here}.mlp.down_proj"
        down = net.linear(middle, f"{root}.{name}", weight(name))
        name = "norm" if last else f"layers.{layer + 1}.input_layernorm"
        normed, hidden = net.add_and_norm(hidden, down, f"{root}.{name}", weight(name), shape.eps)
    logits = net.linear(normed, LM_HEAD, weights(f"{LM_HEAD}.weight"))
    net.output(net.reshape(logits, [-1, shape.vocab]), "logits", ("batch", shape.vocab))
    for name, value in zip(cache_names(shape, "present"), present, strict=True):
        net.output(value, name, ("batch", shape.kv_heads, places, d))
    net.save(path)
    return net
