"""The three graphs of a GPU engine, written for TensorRT (see engine_build.network).

They compute what engine_build.graphs computes for the CPU. What is different here: 16-bit activations, Q/DQ of the
chosen precision inside, and a decoder whose key/value cache either lives in place (opset 24: TensorScatter and
Attention) or is handed from step to step (plain operators, for the parsers of TensorRT 10.3).

Suffixes: B views or sequences, N patches, C compressed tokens, t prompt tokens, S new positions, P past, T = P + S or
the places of the cache, D width, E encoder width, H heads, K key/value heads, d head dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from auroraedge.config import GRID
from engine_build.network import Network, Precisions

Weights = Callable[[str], np.ndarray]
Cache = Literal["in_place", "handed_on"]
# Added to the score of a masked place; within float16.
MASKED = -60000.0
# Ops of kernels.plugins that the graphs may have as nodes.
KERNEL_NODES = ("bias_squares", "compress", "cross_attention")
OPSETS: dict[Cache, int] = {"in_place": 24, "handed_on": 20}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a model, as its config.json has them."""

    patches: int
    pixels: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_middle: int
    vision_eps: float
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    middle: int
    eps: float
    vocab: int
    rope_theta: float
    compressed: int
    fusion: str
    fusion_layers: int
    labels: int

    @classmethod
    def of(cls, config: object) -> ModelShape:
        """From an AuroraEdgeConfig."""
        vision, text = config.vision_config, config.text_config  # type: ignore[attr-defined]
        rope = getattr(text, "rope_parameters", None) or {}
        return cls(
            patches=GRID * GRID,
            pixels=vision.num_channels * vision.patch_size**2,
            vision_width=vision.hidden_size,
            vision_layers=vision.num_hidden_layers,
            vision_heads=vision.num_attention_heads,
            vision_middle=vision.intermediate_size,
            vision_eps=vision.layer_norm_eps,
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            middle=text.intermediate_size,
            eps=text.rms_norm_eps,
            vocab=text.vocab_size,
            rope_theta=float(rope.get("rope_theta") or text.rope_theta),
            compressed=config.num_compressed,  # type: ignore[attr-defined]
            fusion=config.fusion,  # type: ignore[attr-defined]
            fusion_layers=config.fusion_layers,  # type: ignore[attr-defined]
            labels=len(config.grounding_labels),  # type: ignore[attr-defined]
        )


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """dtype: "float16" for an engine, "float32" for the form that ONNX Runtime runs on a CPU.

    baked_grid: the position table of a full square grid lies in the vision graph and there is no patch mask; without
    it both are inputs, and NaFlex views of any aspect ratio work. places: length of a cache in place. external: weights
    beside the graph, not in it. kernels: "nodes" for the ops of kernels.plugins with their meaning as functions,
    "plugins" the same for TensorRT's plug-ins; "" writes plain operators. network: writes the nodes.
    """

    dtype: str = "float16"
    baked_grid: bool = False
    cache: Cache = "handed_on"
    places: int = 512
    lm_head_parts: int = 1
    external: bool = False
    kernels: Literal["", "nodes", "plugins"] = ""
    network: type[Network] = Network


def _network(name: str, path: Path, options: GraphOptions, precisions: Precisions, opset: int) -> Network:
    external = path.with_suffix(".onnx.data") if options.external else None
    opset = max(opset, 21) if precisions.name == "int4" else opset
    net = options.network(name, dtype=options.dtype, opset=opset, precisions=precisions, external=external)
    net.plugins = options.kernels == "plugins"
    return net


# -- vision ------------------------------------------------------------------------------------------------------------


def write_vision(
    path: Path, shape: ModelShape, weights: Weights, precisions: Precisions, options: GraphOptions
) -> Network:
    """patches uint8 [B, N, 768] (, position [B, N, E], patch_mask [B, N]) -> visual [B, N, D], compressed [B, C, D].

    With a grounding head also evidence [B, N, 1 + labels + 4] and presence [B, labels + 1].
    """
    net = _network("vision", path, options, precisions, OPSETS["handed_on"])
    n, e, d = shape.patches, shape.vision_width, shape.width
    patches = net.input("patches", "uint8", ("batch", n, shape.pixels))
    # (p - 127.5) / 127.5; 16 bits hold p - 127.5 exactly.
    pixels = net.mul(net.add(net.cast_to_type(patches), net.small(-127.5)), net.small(1.0 / 127.5))
    root = "vision_model.embeddings"
    embedded = _linear(net, pixels, f"{root}.patch_embedding", weights)
    if options.baked_grid:
        table = weights(f"{root}.position_embedding.weight").reshape(1, n, e)
        hidden, mask, bias = net.add(embedded, net.constant(table.astype(net.dtype), "position_table")), "", ""
    else:
        hidden = net.add(embedded, net.input("position", "T", ("batch", n, e)))
        mask = net.input("patch_mask", "T", ("batch", n))
        bias = _key_bias(net, mask)
    for index in range(shape.vision_layers):
        hidden = _encoder_layer(net, hidden, bias, f"vision_model.encoder.layers.{index}", shape, weights)
    root = "vision_model.post_layernorm"
    hidden = net.layer_norm(hidden, root, weights(f"{root}.weight"), weights(f"{root}.bias"), shape.vision_eps)
    middle = net.gelu(_linear(net, hidden, "projector.fc1", weights))
    # The kernel takes a mask, and sums of squares in parts of 128.
    by_kernel = bool(options.kernels and mask and d % 128 == 0)
    squares = ""
    if by_kernel:
        product = _linear(net, middle, "projector.fc2", weights, biased=False)
        bias = net.constant(weights("projector.fc2.bias").astype(net.dtype), "projector.fc2.bias")
        visual, squares = net.kernel("bias_squares", product, bias, outputs=2)
    else:
        visual = _linear(net, middle, "projector.fc2", weights)
    visual = net.output(visual, "visual", ("batch", n, d))
    if by_kernel:
        compressed = _compressor_by_kernel(net, visual, squares, mask, shape, weights)
    else:
        compressed = _compressor(net, visual, mask, shape, weights)
    net.output(compressed, "compressed", ("batch", shape.compressed, d))
    if shape.labels:
        _grounding(net, visual, mask, shape, weights)
    net.save(path)
    return net


def _linear(net: Network, x: str, name: str, weights: Weights, *, biased: bool = True) -> str:
    return net.linear(x, name, weights(f"{name}.weight"), weights(f"{name}.bias") if biased else None)


def _key_bias(net: Network, mask: str) -> str:
    """[B, N] of 1 and 0 -> additive [B, 1, 1, N]."""
    hidden = net.op("Sub", net.small(1.0), mask)
    return net.reshape(net.mul(str(hidden), net.small(MASKED)), [0, 1, 1, -1])


def _stacked(weights: Weights, names: list[str], part: str, scale_first: float = 1.0) -> np.ndarray:
    found = [weights(f"{name}.{part}").astype(np.float32) for name in names]
    found[0] = found[0] * scale_first
    return np.concatenate(found)


def _encoder_layer(net: Network, x: str, bias: str, root: str, shape: ModelShape, weights: Weights) -> str:
    e, heads = shape.vision_width, shape.vision_heads
    d = e // heads

    def norm(value: str, name: str) -> str:
        parts = weights(f"{root}.{name}.weight"), weights(f"{root}.{name}.bias")
        return net.layer_norm(value, f"{root}.{name}", *parts, shape.vision_eps)

    names = [f"{root}.self_attn.{part}_proj" for part in "qkv"]
    stacked = _stacked(weights, names, "weight", d**-0.5), _stacked(weights, names, "bias", d**-0.5)
    qkv = net.linear(norm(x, "layer_norm1"), f"{root}.self_attn.qkv", *stacked)
    q, k, v = (net.split_heads(net.slice(qkv, i * e, (i + 1) * e, 2), heads, d) for i in range(3))
    attended = net.attend(q, k, v, bias) if bias else _attend_all(net, q, k, v)
    x = net.add(x, _linear(net, net.merge_heads(attended, e), f"{root}.self_attn.out_proj", weights))
    middle = net.gelu(_linear(net, norm(x, "layer_norm2"), f"{root}.mlp.fc1", weights))
    return net.add(x, _linear(net, middle, f"{root}.mlp.fc2", weights))


def _attend_all(net: Network, q: str, k: str, v: str) -> str:
    return net.matmul(str(net.op("Softmax", net.matmul(q, net.transpose(k, [0, 1, 3, 2])), axis=-1)), v)


def _compressor(net: Network, visual: str, mask: str, shape: ModelShape, weights: Weights) -> str:
    """ops.compress; its two matmuls act over the token axis and stay in 16 bits (they are 1 % of the arithmetic)."""
    normed = net.rms_norm(visual, "compressor.norm", weights("compressor.norm.weight"), shape.eps)
    if mask:
        normed = net.mul(normed, net.reshape(mask, [0, -1, 1]))
    hidden = net.matmul(net.constant(weights("compressor.w1").astype(net.dtype), "compressor.w1"), normed)
    hidden = net.add(hidden, net.constant(weights("compressor.b1").astype(net.dtype)[:, None], "compressor.b1"))
    out = net.matmul(net.constant(weights("compressor.w2").astype(net.dtype), "compressor.w2"), net.gelu(hidden))
    return net.add(out, net.constant(weights("compressor.b2").astype(net.dtype)[:, None], "compressor.b2"))


def _compressor_by_kernel(
    net: Network, visual: str, squares: str, mask: str, shape: ModelShape, weights: Weights
) -> str:
    names = ("norm.weight", "w1", "b1", "w2", "b2")
    constants = [net.constant(weights(f"compressor.{n}").astype(net.dtype), f"compressor.{n}") for n in names]
    attributes = {"eps": shape.eps, "width": float(shape.width), "dtype": net.type}
    return str(net.kernel("compress", visual, squares, net.to_float(mask), *constants, **attributes))


def _grounding(net: Network, visual: str, mask: str, shape: ModelShape, weights: Weights) -> None:
    n, labels = shape.patches, shape.labels
    root = "grounding.mlp.0"
    normed = net.layer_norm(visual, root, weights(f"{root}.weight"), weights(f"{root}.bias"), 1e-5)
    middle = net.gelu(_linear(net, normed, "grounding.mlp.1", weights))
    net.output(_linear(net, middle, "grounding.out", weights), "evidence", ("batch", n, 1 + labels + 4))
    if mask:
        column = net.reshape(mask, [0, -1, 1])
        count = net.op("ReduceSum", net.to_float(column), net.small([1]), keepdims=0)
        total = net.op("ReduceSum", net.to_float(net.mul(visual, column)), net.small([1]), keepdims=0)
        mean = net.to_type(str(net.op("Div", str(total), str(count))))
        away = net.mul(net.add(column, net.small(-1.0)), net.small(1e4))
        peak = str(net.op("ReduceMax", net.add(visual, away), net.small([1]), keepdims=0))
    else:
        mean = net.to_type(str(net.op("ReduceMean", net.to_float(visual), net.small([1]), keepdims=0)))
        peak = str(net.op("ReduceMax", visual, net.small([1]), keepdims=0))
    both = str(net.op("Concat", mean, peak, axis=-1))
    root = "grounding.pool_norm"
    both = net.layer_norm(both, root, weights(f"{root}.weight"), weights(f"{root}.bias"), 1e-5)
    net.output(_linear(net, both, "grounding.pool", weights), "presence", ("batch", labels + 1))


# -- fusion ------------------------------------------------------------------------------------------------------------


def write_fusion(
    path: Path, shape: ModelShape, weights: Weights, precisions: Precisions, options: GraphOptions
) -> Network:
    """text [B, t, D], visual [B, N, D], patch_mask [B, N], text_mask [B, t] -> fused [B, t, D]."""
    net = _network("fusion", path, options, precisions, OPSETS["handed_on"])
    d = shape.width
    text = net.input("text", "T", ("batch", "text", d))
    visual = net.input("visual", "T", ("batch", shape.patches, d))
    mask = net.input("patch_mask", "T", ("batch", shape.patches))
    text_mask = net.input("text_mask", "T", ("batch", "text"))
    fused = text
    if shape.fusion != "none":
        cross = _cross_attention_by_kernel if options.kernels else _cross_attention
        fused = cross(net, text, visual, mask, shape, weights)
    if shape.fusion == "combined":
        rotary, bias = _prompt_geometry(net, text_mask, shape)

        def attention(q: str, k: str, v: str) -> str:
            return _plain_attention(net, q, k, v, bias, shape)

        for index in range(shape.fusion_layers):
            fused, _, _ = _decoder_layer(net, fused, f"fusion.layers.{index}", shape, weights, rotary, attention)
    net.output(fused, "fused", ("batch", "text", d))
    net.save(path)
    return net


def _cross_attention(net: Network, text: str, visual: str, mask: str, shape: ModelShape, weights: Weights) -> str:
    d, heads, root = shape.width, shape.heads, "fusion.cross"
    width = d // heads
    queries = net.rms_norm(text, f"{root}.text_norm", weights(f"{root}.text_norm.weight"), shape.eps)
    seen = net.rms_norm(visual, f"{root}.visual_norm", weights(f"{root}.visual_norm.weight"), shape.eps)
    name, scale = f"{root}.q_proj", width**-0.5
    q = net.linear(queries, name, weights(f"{name}.weight") * scale, weights(f"{name}.bias") * scale)
    names = [f"{root}.{part}_proj" for part in "kv"]
    kv = net.linear(seen, f"{root}.kv", _stacked(weights, names, "weight"), _stacked(weights, names, "bias"))
    k, v = (net.split_heads(net.slice(kv, i * d, (i + 1) * d, 2), heads, width) for i in range(2))
    attended = net.attend(net.split_heads(q, heads, width), k, v, _key_bias(net, mask))
    return net.add(text, _linear(net, net.merge_heads(attended, d), f"{root}.o_proj", weights, biased=False))


def _cross_attention_by_kernel(
    net: Network, text: str, visual: str, mask: str, shape: ModelShape, weights: Weights
) -> str:
    """Norm of the prompt, query projection and attention in one node."""
    root = "fusion.cross"
    seen = net.rms_norm(visual, f"{root}.visual_norm", weights(f"{root}.visual_norm.weight"), shape.eps)
    key, value = (_linear(net, seen, f"{root}.{part}_proj", weights) for part in "kv")
    names = ("text_norm.weight", "q_proj.weight", "q_proj.bias")
    constants = [net.constant(weights(f"{root}.{n}").astype(net.dtype), f"{root}.{n}") for n in names]
    scale = (shape.width // shape.heads) ** -0.5
    attributes = {"eps": shape.eps, "heads": shape.heads, "scale": scale, "dtype": net.type}
    attended = str(net.kernel("cross_attention", text, key, value, net.to_float(mask), *constants, **attributes))
    return net.add(text, _linear(net, attended, f"{root}.o_proj", weights, biased=False))


def _prompt_geometry(net: Network, mask: str, shape: ModelShape) -> tuple[tuple[str, str], str]:
    """Rotary factors and additive causal bias [B, 1, t, t] of prompts that are padded on either side."""
    wide = net.to_float(mask)
    place = net.op("CumSum", wide, net.small(1, "int64"))
    position = str(net.op("Max", net.add(str(place), net.small(-1.0, "float32")), net.small(0.0, "float32")))
    # A padded row sees all places alike and stays finite; nothing reads it.
    length = net.op("Shape", mask, start=1, end=2)
    square = net.op("Expand", net.small(1.0), str(net.op("Concat", str(length), str(length), axis=0)))
    later = net.op("Sub", net.small(1.0), str(net.op("Trilu", str(square), upper=0)))
    hidden = net.reshape(str(net.op("Sub", net.small(1.0), mask)), [0, 1, 1, -1])
    both = str(net.op("Max", hidden, net.op("Unsqueeze", str(later), net.small([0, 1]))))
    return _rotary_factors(net, position, shape), net.mul(both, net.small(MASKED))


# -- decoder -----------------------------------------------------------------------------------------------------------


def _rotary_factors(net: Network, position_BS: str, shape: ModelShape) -> tuple[str, str]:
    """cos and sin [B, 1, S, d] with the sign of the first half turned; angles in float32."""
    half = shape.head_dim // 2
    inverse = shape.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
    angle = net.mul(net.reshape(position_BS, [0, 1, -1, 1]), net.small(inverse.astype(np.float32), "float32"))
    cos, sin = net.op("Cos", angle), net.op("Sin", angle)
    minus = net.op("Neg", sin)
    factors = (net.op("Concat", cos, cos, axis=-1), net.op("Concat", minus, sin, axis=-1))
    return net.to_type(factors[0]), net.to_type(factors[1])


def _rotate(net: Network, x: str, rotary: tuple[str, str], width: int) -> str:
    first, second = net.slice(x, 0, width // 2, 3), net.slice(x, width // 2, width, 3)
    turned = str(net.op("Concat", second, first, axis=-1))
    return net.add(net.mul(x, rotary[0]), net.mul(turned, rotary[1]))


def _plain_attention(net: Network, q: str, k: str, v: str, bias: str, shape: ModelShape) -> str:
    """Grouped queries share their keys by a reshape; bias [B, 1, S, T]."""
    groups, d = shape.heads // shape.kv_heads, shape.head_dim
    q = net.reshape(q, [0, shape.kv_heads, groups, -1, d])
    k, v = (net.op("Unsqueeze", x, net.small([2])) for x in (k, v))
    scores = net.matmul(q, net.transpose(k, [0, 1, 2, 4, 3]))
    scores = net.add(scores, str(net.op("Unsqueeze", bias, net.small([2]))))
    attended = net.matmul(str(net.op("Softmax", scores, axis=-1)), v)
    return net.reshape(attended, [0, shape.heads, -1, d])


def _decoder_layer(
    net: Network,
    x: str,
    root: str,
    shape: ModelShape,
    weights: Weights,
    rotary: tuple[str, str],
    attention: Callable[[str, str, str], str],
) -> tuple[str, str, str]:
    """A Qwen2 layer; `attention` gets rotated q, rotated k and v. Returns hidden states, k and v."""
    d, _width = shape.head_dim, shape.width

    def norm(value: str, name: str) -> str:
        return net.rms_norm(value, f"{root}.{name}", weights(f"{root}.{name}.weight"), shape.eps)

    names = [f"{root}.self_attn.{part}_proj" for part in "qkv"]
    stacked = _stacked(weights, names, "weight", d**-0.5), _stacked(weights, names, "bias", d**-0.5)
    qkv = net.linear(norm(x, "input_layernorm"), f"{root}.self_attn.qkv", *stacked)
    edges = np.cumsum([0, shape.heads * d, shape.kv_heads * d, shape.kv_heads * d])
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    q, k, v = (net.split_heads(net.slice(qkv, int(edges[i]), int(edges[i + 1]), 2), heads[i], d) for i in range(3))
    q, k = _rotate(net, q, rotary, d), _rotate(net, k, rotary, d)
    attended = net.merge_heads(attention(q, k, v), shape.heads * d)
    x = net.add(x, _linear(net, attended, f"{root}.self_attn.o_proj", weights, biased=False))
    names = [f"{root}.mlp.{part}_proj" for part in ("gate", "up")]
    both = net.linear(norm(x, "post_attention_layernorm"), f"{root}.mlp.gate_up", _stacked(weights, names, "weight"))
    gate, up = net.slice(both, 0, shape.middle, 2), net.slice(both, shape.middle, 2 * shape.middle, 2)
    down = _linear(net, net.mul(net.silu(gate), up), f"{root}.mlp.down_proj", weights, biased=False)
    return net.add(x, down), k, v


def cache_names(shape: ModelShape, prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{i}.{part}" for i in range(shape.layers) for part in ("key", "value"))


def write_decoder(
    path: Path, shape: ModelShape, weights: Weights, precisions: Precisions, options: GraphOptions
) -> Network:
    """-> logits [B, vocab] of the last position, present.{i}.key/value. Inputs, for a cache

    handed_on: inputs_embeds [B, S, D], attention_mask [B, T] (1 real, 0 padded), position_ids int64 [B, S],
    past.{i}.key/value [B, K, P, d]; present is [B, K, P + S, d]. The signature of the CPU engine's decoder.
    in_place: inputs_embeds, position_ids, attention_bias [B, 1, S, T] (0 or MASKED), write_index int64 [B],
    past.{i}.key/value [B, K, T, d] with T = options.places; present is the same memory, with S new places written from
    write_index on.
    """
    net = _network("decoder", path, options, precisions, OPSETS[options.cache])
    d, k_heads = shape.head_dim, shape.kv_heads
    hidden = net.input("inputs_embeds", "T", ("batch", "sequence", shape.width))
    position = str(net.op("Cast", net.input("position_ids", "int64", ("batch", "sequence")), to=1))
    in_place = options.cache == "in_place"
    total: str | int = options.places if in_place else "total"
    index = ""
    if in_place:
        bias = net.input("attention_bias", "T", ("batch", 1, "sequence", total))
        index = net.input("write_index", "int64", ("batch",))
    else:
        bias = _causal_bias(net, net.input("attention_mask", "T", ("batch", total)), hidden)
    rotary = _rotary_factors(net, position, shape)
    length = total if in_place else "past"
    present: list[str] = []
    for layer in range(shape.layers):
        past = [net.input(f"past.{layer}.{part}", "T", ("batch", k_heads, length, d)) for part in ("key", "value")]

        def attention(q: str, k: str, v: str, past: list[str] = past) -> str:
            if in_place:
                kept = [
                    str(net.op("TensorScatter", p, new, index, axis=2)) for p, new in zip(past, (k, v), strict=True)
                ]
                present.extend(kept)
                return str(net.op("Attention", q, *kept, bias, scale=1.0))
            kept = [str(net.op("Concat", p, new, axis=2)) for p, new in zip(past, (k, v), strict=True)]
            present.extend(kept)
            return _plain_attention(net, q, *kept, bias, shape)

        root = f"language_model.model.layers.{layer}"
        hidden, _, _ = _decoder_layer(net, hidden, root, shape, weights, rotary, attention)
    last = str(net.op("Gather", hidden, net.small(-1, "int64"), axis=1))
    root = "language_model.model.norm"
    last = net.rms_norm(last, root, weights(f"{root}.weight"), shape.eps)
    net.output(_lm_head(net, last, shape, weights, options.lm_head_parts), "logits", ("batch", shape.vocab))
    for name, value in zip(cache_names(shape, "present"), present, strict=True):
        net.output(value, name, ("batch", k_heads, total, d))
    net.save(path)
    return net


def _causal_bias(net: Network, mask_BT: str, new_BSD: str) -> str:
    """Additive [B, 1, S, T] of the last S of T places: earlier and real places are seen."""
    places = net.op("Range", net.small(0, "int64"), _size_of(net, mask_BT, 1), net.small(1, "int64"))
    count = net.op("Unsqueeze", _size_of(net, new_BSD, 1), net.small([0]))
    first = net.op("Sub", net.op("Unsqueeze", _size_of(net, mask_BT, 1), net.small([0])), str(count))
    own = net.op("Unsqueeze", net.op("Slice", places, first, net.small([2**31 - 1]), net.small([0])), net.small([1]))
    later_ST = net.cast_to_type(str(net.op("Greater", places, own)))
    hidden = net.reshape(str(net.op("Sub", net.small(1.0), mask_BT)), [0, 1, 1, -1])
    return net.mul(str(net.op("Max", hidden, later_ST)), net.small(MASKED))


def _size_of(net: Network, x: str, axis: int) -> str:
    """The size of an axis, int64 []."""
    return str(net.op("Squeeze", net.op("Shape", x, start=axis, end=axis + 1), net.small([0])))


def _lm_head(net: Network, x: str, shape: ModelShape, weights: Weights, parts: int) -> str:
    """Split along the vocabulary: one matmul of 151,936 outputs does not build on a small device."""
    weight = weights("language_model.lm_head.weight")
    edges = np.linspace(0, shape.vocab, parts + 1).astype(int)
    pieces = [
        net.linear(x, f"language_model.lm_head.{i}", weight[a:b]) for i, (a, b) in enumerate(itertools.pairwise(edges))
    ]
    return pieces[0] if parts == 1 else str(net.op("Concat", *pieces, axis=-1))
