"""A decoder of Qwen2.5-1.5B's shapes with random weights, as OpenVINO and llama.cpp run one.

OpenVINO: the graph is written with its own operators, weights compressed in the form that NNCF writes (INT8 asymmetric
per output; INT4 symmetric in groups of 128, LM head INT8) and the cache as states, so that all of the plugin's patterns
apply. llama.cpp: a GGUF file in Q8_0 or Q4_0 (LM head Q8_0). Nothing here is needed to serve.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from auroraedge.config import PRESETS, ModelPreset
from auroraedge.errors import EngineError

_GROUP = 128
_EPS = 1e-6
_SCALE = 0.02


def timed_steps(one: Callable[[int], np.ndarray], steps: int) -> dict[str, float]:
    """Milliseconds of single tokens, the choice of the likeliest included: median and least of `steps`, and the median
    of the processor time of all threads (what a step costs where other programs take the processor in between)."""
    times, work = [], []
    for step in range(steps):
        started, worked = time.perf_counter(), time.process_time()
        int(one(step).argmax())
        times.append((time.perf_counter() - started) * 1000)
        work.append((time.process_time() - worked) * 1000)
    return {"token": float(np.median(times)), "token least": min(times), "token work": float(np.median(work))}


def _values(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int, kind: Any) -> np.ndarray:
    return rng.integers(low, high, shape, dtype=kind)


# -- OpenVINO ----------------------------------------------------------------------------------------------------------


class _OpenVinoGraph:
    """Operators of the decoder, weights first in the order of their use."""

    def __init__(self, precision: str, rng: np.random.Generator) -> None:
        from openvino import opset13

        self.ops, self.precision, self.rng = opset13, precision, rng

    def constant(self, array: np.ndarray) -> Any:
        return self.ops.constant(array)

    def linear(self, x: Any, outputs: int, inputs: int, *, bias: bool = False, head: bool = False) -> Any:
        """x W^T (+ b) with compressed weights."""
        ops, rng = self.ops, self.rng
        if self.precision == "int4" and not head:
            weight = self._int4(outputs, inputs)
        else:
            stored = ops.convert(self.constant(_values(rng, (outputs, inputs), 0, 256, np.uint8)), "f16")
            zero = ops.convert(self.constant(np.full((outputs, 1), 128, np.uint8)), "f16")
            scale = self.constant(np.full((outputs, 1), _SCALE / 64, np.float16))
            weight = ops.multiply(ops.subtract(stored, zero), scale)
        product = ops.matmul(x, ops.convert(weight, "f32"), False, True)
        if not bias:
            return product
        return ops.add(product, self.constant(rng.standard_normal((1, 1, outputs), np.float32) * np.float32(_SCALE)))

    def _int4(self, outputs: int, inputs: int) -> Any:
        import openvino

        ops, groups = self.ops, inputs // _GROUP
        packed = _values(self.rng, (outputs * inputs // 2,), 0, 256, np.uint8)
        tensor = openvino.Tensor(packed, openvino.Shape([outputs, groups, _GROUP]), openvino.Type.i4)
        scale = self.constant(np.full((outputs, groups, 1), _SCALE / 4, np.float16))
        weight = ops.multiply(ops.convert(ops.constant(tensor), "f16"), scale)
        return ops.reshape(weight, self.constant(np.array([outputs, inputs])), False)

    def norm(self, x: Any, width: int) -> Any:
        ops = self.ops
        power = ops.power(x, self.constant(np.float32(2)))
        mean = ops.reduce_mean(power, self.constant(np.array([-1])), True)
        root = ops.sqrt(ops.add(mean, self.constant(np.float32(_EPS))))
        scaled = ops.multiply(x, ops.divide(self.constant(np.float32(1)), root))
        return ops.multiply(scaled, self.constant(np.ones((1, 1, width), np.float32)))

    def rotate(self, x: Any, cos: Any, sin: Any, half: int) -> Any:
        ops = self.ops
        first, second = ops.split(x, self.constant(np.int64(3)), 2).outputs()
        turned = ops.concat([ops.multiply(second, self.constant(np.float32(-1))), first], 3)
        return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))


def openvino_decoder(preset: ModelPreset, precision: str, *, seed: int = 0) -> Any:
    """An openvino.Model: inputs_embeds [B, S, D], position_ids [B, S], attention_bias [B, 1, S, T], beam_idx [B]
    -> logits [B, vocab] of the last place. Keys and values are states."""
    import openvino
    from openvino.op.util import Variable, VariableInfo

    p, d, half = preset, preset.text_head_dim, preset.text_head_dim // 2
    graph = _OpenVinoGraph(precision, np.random.default_rng(seed))
    ops, constant = graph.ops, graph.constant
    embeds = ops.parameter([-1, -1, p.text_hidden], np.float32, name="inputs_embeds")
    position = ops.parameter([-1, -1], np.int64, name="position_ids")
    bias = ops.parameter([-1, 1, -1, -1], np.float32, name="attention_bias")
    beam = ops.parameter([-1], np.int32, name="beam_idx")
    for parameter in (embeds, position, bias, beam):
        parameter.output(0).set_names({parameter.get_friendly_name()})
    inverse = (p.rope_theta ** (-np.arange(half, dtype=np.float64) / half)).astype(np.float32)
    place = ops.unsqueeze(ops.convert(position, "f32"), constant(np.array([1, 3])))
    angle = ops.multiply(place, constant(inverse.reshape(1, 1, 1, half)))
    cos, sin = (ops.concat([f(angle), f(angle)], 3) for f in (ops.cos, ops.sin))
    batch = ops.gather(ops.shape_of(embeds, "i64"), constant(np.array([0])), constant(np.int64(0)))
    sinks, hidden = [], embeds
    for layer in range(p.text_layers):
        normed = graph.norm(hidden, p.text_hidden)
        heads = {"q": p.text_heads, "k": p.text_kv_heads, "v": p.text_kv_heads}
        split = {}
        for part, count in heads.items():
            product = graph.linear(normed, count * d, p.text_hidden, bias=True)
            shaped = ops.reshape(product, constant(np.array([0, 0, count, d])), True)
            split[part] = ops.transpose(shaped, constant(np.array([0, 2, 1, 3])))
        q, k = (graph.rotate(split[part], cos, sin, half) for part in "qk")
        kept = []
        for part, new in (("key", k), ("value", split["v"])):
            info = VariableInfo()
            info.data_shape, info.data_type = openvino.PartialShape([-1, p.text_kv_heads, -1, d]), openvino.Type.f32
            info.variable_id = f"past.{layer}.{part}"
            variable = Variable(info)
            sizes = [batch, *(constant(np.array([size])) for size in (p.text_kv_heads, 0, d))]
            empty = ops.broadcast(constant(np.float32(0)), ops.concat(sizes, 0))
            past = ops.gather(ops.read_value(empty, variable), beam, constant(np.int64(0)))
            both = ops.concat([past, new], 2)
            sinks.append(ops.assign(both, variable))
            kept.append(_repeated(ops, constant, both, p))
        attended = ops.scaled_dot_product_attention(q, *kept, bias, causal=False)
        merged = ops.transpose(attended, constant(np.array([0, 2, 1, 3])))
        merged = ops.reshape(merged, constant(np.array([0, 0, p.text_heads * d])), True)
        hidden = ops.add(hidden, graph.linear(merged, p.text_hidden, p.text_heads * d))
        normed = graph.norm(hidden, p.text_hidden)
        gate, up = (graph.linear(normed, p.text_intermediate, p.text_hidden) for _ in range(2))
        middle = ops.multiply(ops.swish(gate), up)
        hidden = ops.add(hidden, graph.linear(middle, p.text_hidden, p.text_intermediate))
    last = ops.gather(hidden, constant(np.array([-1])), constant(np.int64(1)))
    logits = graph.linear(graph.norm(last, p.text_hidden), p.vocab_size, p.text_hidden, head=True)
    result = ops.result(logits, name="logits")
    return openvino.Model([result], sinks, [embeds, position, bias, beam], f"qwen2.5-1.5b {precision}")


def _repeated(ops: Any, constant: Callable[[np.ndarray], Any], x: Any, p: ModelPreset) -> Any:
    """Keys or values, once for every query head; the plugin reads them in place."""
    groups = p.text_heads // p.text_kv_heads
    wide = ops.unsqueeze(x, constant(np.array([2])))
    sizes = ops.gather(ops.shape_of(x, "i64"), constant(np.array([0, 1, 2, 3])), constant(np.int64(0)))
    first = ops.gather(sizes, constant(np.array([0, 1])), constant(np.int64(0)))
    rest = ops.gather(sizes, constant(np.array([2, 3])), constant(np.int64(0)))
    wide = ops.broadcast(wide, ops.concat([first, constant(np.array([groups])), rest], 0))
    return ops.reshape(wide, constant(np.array([0, p.text_heads, -1, p.text_head_dim])), True)


class OpenVinoDecoder:
    """Prefill of `prompt` embeddings and then single steps, batch 1; in a process of its own."""

    def __init__(self, *, precision: str, threads: int, preset: str = "2b") -> None:
        import openvino

        self.preset = PRESETS[preset]
        model = openvino_decoder(self.preset, precision)
        self.bytes = sum(op.get_byte_size() for op in model.get_ops() if op.get_type_name() == "Constant")
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self.request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        del model

    def parity(self, case: str, **_: Any) -> dict[str, Any]:
        return {"bytes": self.bytes}

    def _run(self, embeds: np.ndarray, past: int) -> np.ndarray:
        length = embeds.shape[1]
        bias = np.triu(np.full((length, past + length), -60000.0, np.float32), 1 + past)[None, None]
        feeds = {
            "inputs_embeds": embeds,
            "position_ids": np.arange(past, past + length)[None],
            "attention_bias": bias,
            "beam_idx": np.zeros(1, np.int32),
        }
        return np.array(self.request.infer(feeds)[0])

    def measure(self, case: str, *, prompt: int, steps: int, **_: Any) -> dict[str, float]:
        rng = np.random.default_rng(0)
        embeds = rng.standard_normal((1, prompt, self.preset.text_hidden), np.float32) * np.float32(_SCALE)
        self.request.reset_state()
        started = time.perf_counter()
        self._run(embeds, 0)
        prefill = time.perf_counter() - started

        def one(step: int) -> np.ndarray:
            return self._run(embeds[:, step % prompt][:, None], prompt + step)

        return {"prefill": prefill * 1000, **timed_steps(one, steps)}


# -- llama.cpp ---------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, precision: str, preset: str = "2b") -> None:
    """A Qwen2 decoder with random weights in Q8_0 (int8) or Q4_0 (int4, LM head Q8_0); norms and biases in float32."""
    import gguf

    p = PRESETS[preset]
    rng = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType.Q8_0 if precision == "int8" else gguf.GGMLQuantizationType.Q4_0
    partial = path.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, "qwen2", use_temp_file=True)
    writer.add_block_count(p.text_layers)
    writer.add_context_length(1024)
    writer.add_embedding_length(p.text_hidden)
    writer.add_feed_forward_length(p.text_intermediate)
    writer.add_head_count(p.text_heads)
    writer.add_head_count_kv(p.text_kv_heads)
    writer.add_rope_freq_base(p.rope_theta)
    writer.add_layer_norm_rms_eps(_EPS)
    writer.add_vocab_size(p.vocab_size)
    writer.add_tokenizer_model("none")

    def quantised(name: str, rows: int, columns: int, kind: Any) -> None:
        """Blocks of 32: a float16 scale, and 32 or 16 bytes. Random bytes are random weights."""
        size = 34 if kind == gguf.GGMLQuantizationType.Q8_0 else 18
        blocks = rng.integers(0, 256, (rows, columns // 32, size), dtype=np.uint8)
        scale = np.float16(_SCALE / (64 if size == 34 else 4))
        blocks[..., :2] = np.frombuffer(scale.tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=kind)

    def plain(name: str, size: int, value: float = 0.0) -> None:
        writer.add_tensor(name, rng.standard_normal(size, np.float32) * np.float32(_SCALE) + np.float32(value))

    d = p.text_head_dim
    quantised("token_embd.weight", p.vocab_size, p.text_hidden, gguf.GGMLQuantizationType.Q8_0)
    plain("output_norm.weight", p.text_hidden, 1.0)
    for layer in range(p.text_layers):
        root = f"blk.{layer}"
        for part, size in (("q", p.text_heads * d), ("k", p.text_kv_heads * d), ("v", p.text_kv_heads * d)):
            quantised(f"{root}.attn_{part}.weight", size, p.text_hidden, kind)
            plain(f"{root}.attn_{part}.bias", size)
        quantised(f"{root}.attn_output.weight", p.text_hidden, p.text_heads * d, kind)
        for part in ("gate", "up"):
            quantised(f"{root}.ffn_{part}.weight", p.text_intermediate, p.text_hidden, kind)
        quantised(f"{root}.ffn_down.weight", p.text_hidden, p.text_intermediate, kind)
        for part in ("attn", "ffn"):
            plain(f"{root}.{part}_norm.weight", p.text_hidden, 1.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


class LlamaCpp:
    """llama.cpp through the C interface of llama-cpp-python (`pip install llama-cpp-python` compiles it for this
    processor). Tokens are fed by id; the weights are copied into memory of its own, repacked where it likes to."""

    def __init__(self, *, model: Path, threads: int) -> None:
        import llama_cpp

        self.api, self.vocab = llama_cpp, PRESETS["2b"].vocab_size
        llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        of_model = llama_cpp.llama_model_default_params()
        of_model.use_mmap = False
        loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), of_model)
        of_context = llama_cpp.llama_context_default_params()
        of_context.n_ctx, of_context.n_batch, of_context.n_ubatch = 512, 512, 512
        of_context.n_threads = of_context.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(loaded, of_context) if loaded else None
        if not self.context:
            raise EngineError(f"llama.cpp cannot load {model}.", field="llama.cpp")

    def _run(self, ids: np.ndarray) -> np.ndarray:
        """Logits [vocab] behind the last of ids int32 [S]."""
        pointer = ids.ctypes.data_as(ctypes.POINTER(self.api.llama_token))
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(pointer, len(ids))):
            raise EngineError("llama.cpp failed.", field="llama.cpp")
        found = self.api.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(found, shape=(self.vocab,))

    def measure(self, case: str, *, prompt: int, steps: int, **_: Any) -> dict[str, float]:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        ids = np.arange(100, 100 + prompt, dtype=np.int32)
        started = time.perf_counter()
        self._run(ids)
        prefill = time.perf_counter() - started
        return {"prefill": prefill * 1000, **timed_steps(lambda step: self._run(ids[step % prompt][None]), steps)}


_QUIET: Any = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
