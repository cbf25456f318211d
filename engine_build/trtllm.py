"""TensorRT-LLM checkpoints of the decoder: config.json and rank0.safetensors, for `trtllm-build` of the 1.2 line.

Written here, not by nvidia-modelopt: its exporter drops `rotary_base` with transformers 5 and leaves out `qwen_type`
and `attn_bias`; it calibrates on text, while our decoder reads embeddings; and it needs an environment of its own. The
layout is the one that TensorRT-LLM 1.2 reads, and engine_build.trtllm_check reads it back independently.

  precision      quant_algo            what a linear layer stores
  fp16           -                     weight float16 [out, in]
  int8           W8A8_SQ_PER_CHANNEL   int8 [out, in], weights_scaling_factor [out], activation_scaling_factor [1],
                                       prequant_scaling_factor [in]
  int8-weights   W8A16                 float16 [out, in]: the loader rounds it itself, and takes int8 for weights that
                                       are already in the order of its kernels
  fp8            FP8                   E4M3 [out, in], weights_scaling_factor [1], activation_scaling_factor [1]
  int4           W4A16_AWQ             int8 [out / 2, in], the even output in the low half; weights_scaling_factor
                                       [out, in / 128], prequant_scaling_factor [in]

Stored weights times their scale are W / prequant, and the runtime multiplies the layer's input by prequant. Smoothing
is folded into norms where one feeds the layer (calib.smoothing), so prequant is 1 there.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import auroraedge
from auroraedge.errors import EngineError
from calib.ranges import Method
from calib.smoothing import awq, smooth_quant
from engine_build.decoder_source import DecoderSource, decoder_ranges, rope_theta, wide_layers
from engine_build.targets import EIGHT_BIT_ACTIVATIONS, Profile

QUANT_ALGOS: dict[str, str | None] = {
    "fp16": None,
    "int8": "W8A8_SQ_PER_CHANNEL",
    "int8-weights": "W8A16",
    "fp8": "FP8",
    "int4": "W4A16_AWQ",
}
GROUP = 128
# The class of engine_build.trtllm_model, which cannot be imported without TensorRT-LLM.
ARCHITECTURE = "AuroraEdgeDecoderForCausalLM"
FP8_MAX = 448.0
_LEAST_SCALE = 1e-8
# Named, because a list that leaves the embedding out makes TensorRT-LLM quantise it as well.
_NEVER = ("*lm_head", "*vocab_embedding", "*position_embedding", "*block_embedding")
# Layers of the checkpoint from modules of the model: stacked along the outputs.
LAYERS: dict[str, tuple[str, ...]] = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),  # TensorRT-LLM activates fc and multiplies by gate
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}

State = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class BuildSizes:
    """Most sequences at once, tokens of a prompt (visual ones included) and of prompt and answer together."""

    batch: int
    prompt: int
    tokens: int

    @classmethod
    def of(cls, profile: Profile, compressed: int) -> BuildSizes:
        return cls(batch=profile.batch[2], prompt=compressed + profile.prompt[2], tokens=profile.most_tokens)


def write_checkpoint(
    source: DecoderSource,
    precision: str,
    folder: Path,
    *,
    keep: Iterable[str] = (),
    method: Method = "percentile",
) -> dict[str, Any]:
    """Writes the checkpoint to a new `folder`; returns its config.json. Nothing is left behind when it fails.

    keep: modules of the model, such as "model.layers.3.self_attn.o_proj", that stay in float16 (with others that are
    stored in the same matrix), beside those of `wide_layers`. Raises EngineError for a precision or a shape that the
    format does not hold.
    """
    if precision not in QUANT_ALGOS:
        raise EngineError(
            f"A TensorRT-LLM checkpoint knows no precision '{precision}'.",
            field="--precision",
            remedy=f"One of: {', '.join(QUANT_ALGOS)}.",
        )
    if folder.exists() and any(folder.iterdir()):
        raise EngineError(f"{folder} is not empty.", field="--out", remedy="Name a new folder.")
    kept = _kept_layers({*keep, *wide_layers(precision, source.model.config.num_hidden_layers)})
    state: State = {name: tensor.detach().float().numpy() for name, tensor in source.model.state_dict().items()}
    largest: dict[str, float] = {}
    if precision in (*EIGHT_BIT_ACTIVATIONS, "int4"):
        ranges = decoder_ranges(source.model, source.calibrating)
        scaled = awq(state, ranges.layers) if precision == "int4" else smooth_quant(state, ranges.layers)
        if precision != "int4":
            largest = _ranges_of(source, scaled, method)
        state = scaled
    tensors = _tensors(state, precision, source.model.config.num_hidden_layers, kept, largest)
    config = _config(source.model.config, precision, kept)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        save_file(tensors, draft / "rank0.safetensors")
        (draft / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return config


def _kept_layers(modules: Iterable[str]) -> frozenset[str]:
    """ "model.layers.3.mlp.down_proj" -> "3.mlp.proj"; modules of other graphs are passed over."""
    found = set()
    for module in modules:
        head, _, rest = module.removeprefix("language_model.").partition("model.layers.")
        if head or not rest:
            continue
        index, _, part = rest.partition(".")
        found |= {f"{index}.{name}" for name, parts in LAYERS.items() if part in parts}
    return frozenset(found)


def _ranges_of(source: DecoderSource, state: Mapping[str, np.ndarray], method: Method) -> dict[str, float]:
    """Half-widths of the inputs of the smoothed model's layers; leaves the source's model as it was."""
    before = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    try:
        source.model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in state.items()})
        return decoder_ranges(source.model, source.calibrating).largest(method)
    finally:
        source.model.load_state_dict(before)


def _half(array: np.ndarray) -> torch.Tensor:
    if float(np.abs(array).max(initial=0.0)) > 65504.0:
        raise EngineError(
            "A weight is beyond the range of float16.", field="weights", remedy="Smooth less (keep more)."
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).half()


def _tensors(state: State, precision: str, layers: int, kept: frozenset[str], largest: Mapping[str, float]) -> Tensors:
    tensors: Tensors = {
        "transformer.vocab_embedding.weight": _half(state["model.embed_tokens.weight"]),
        "transformer.ln_f.weight": _half(state["model.norm.weight"]),
        # Also where it is tied: the loader does not take it from the embedding.
        "lm_head.weight": _half(state["lm_head.weight"]),
    }
    for index in range(layers):
        ours, theirs = f"model.layers.{index}", f"transformer.layers.{index}"
        for norm, name in (("input_layernorm", "input_layernorm"), ("post_attention_layernorm", "post_layernorm")):
            tensors[f"{theirs}.{name}.weight"] = _half(state[f"{ours}.{norm}.weight"])
        for name, parts in LAYERS.items():
            weight = np.concatenate([state[f"{ours}.{part}.weight"] for part in parts])
            seen = max((largest.get(f"{ours}.{part}", 0.0) for part in parts), default=0.0)
            how = "fp16" if f"{index}.{name}" in kept else precision
            for key, tensor in _stored(weight, how, seen, f"{theirs}.{name}").items():
                tensors[f"{theirs}.{name}.{key}"] = tensor
        bias = np.concatenate([state[f"{ours}.{part}.bias"] for part in LAYERS["attention.qkv"]])
        tensors[f"{theirs}.attention.qkv.bias"] = _half(bias)
    return tensors


def _stored(weight: np.ndarray, precision: str, largest: float, name: str) -> Tensors:
    """What a linear layer stores, by the last part of the name. weight float32 [out, in]."""
    if precision in ("fp16", "int8-weights"):
        return {"weight": _half(weight)}
    if precision == "int4":
        return _int4(weight, name)
    if not np.isfinite(largest) or largest <= 0.0:
        raise EngineError(f"There is no calibrated range for the input of {name}.", field=name)
    if precision == "fp8":
        scale = max(float(np.abs(weight).max()) / FP8_MAX, _LEAST_SCALE)
        return {
            "weight": torch.from_numpy(np.clip(weight / scale, -FP8_MAX, FP8_MAX)).to(torch.float8_e4m3fn),
            "weights_scaling_factor": torch.tensor([scale]),
            "activation_scaling_factor": torch.tensor([largest / FP8_MAX]),
        }
    scales = np.maximum(np.abs(weight).max(axis=1) / 127.0, _LEAST_SCALE).astype(np.float32)
    return {
        "weight": torch.from_numpy(np.clip(np.round(weight / scales[:, None]), -127, 127).astype(np.int8)),
        "weights_scaling_factor": torch.from_numpy(scales),
        "activation_scaling_factor": torch.tensor([largest / 127.0]),
        "prequant_scaling_factor": torch.ones(weight.shape[1], dtype=torch.float16),
    }


def _int4(weight: np.ndarray, name: str) -> Tensors:
    out, inputs = weight.shape
    if inputs % GROUP or out % 2:
        raise EngineError(
            f"{name} has {out} outputs and {inputs} inputs: 4-bit weights need blocks of {GROUP} inputs and pairs of "
            "outputs.",
            field=name,
            remedy="Take int8-weights or fp16 for this model.",
        )
    blocks = weight.reshape(out, -1, GROUP)
    # Rounded to float16 first: it is what the runtime multiplies by.
    scale = np.maximum(np.abs(blocks).max(axis=2) / 7.0, 6.2e-5).astype(np.float16)
    stored = np.clip(np.round(blocks / scale.astype(np.float32)[..., None]), -8, 7).astype(np.int8).reshape(out, inputs)
    packed = (stored[0::2] & 0xF) | ((stored[1::2] & 0xF) << 4)
    return {
        "weight": torch.from_numpy(packed.astype(np.int8)),
        "weights_scaling_factor": torch.from_numpy(scale),
        "prequant_scaling_factor": torch.ones(inputs, dtype=torch.float16),
    }


def _config(config: Any, precision: str, kept: frozenset[str]) -> dict[str, Any]:
    algorithm = QUANT_ALGOS[precision]
    grouped = precision == "int4"
    # The star takes in the names of the layer's tensors, which the loader matches too.
    excluded = [*_NEVER, *(f"transformer.layers.{name}*" for name in sorted(kept))] if algorithm else None
    return {
        "producer": {"name": "auroraedge", "version": auroraedge.__version__},
        "architecture": "Qwen2ForCausalLM",
        "qwen_type": "qwen2",
        "dtype": "float16",
        "logits_dtype": "float32",
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "hidden_size": config.hidden_size,
        "head_size": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "norm_epsilon": config.rms_norm_eps,
        "hidden_act": "silu",
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": config.max_position_embeddings,
        "rotary_base": rope_theta(config),
        "rotary_scaling": None,
        "attn_bias": True,
        "mlp_bias": False,
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {
            "quant_algo": algorithm,
            "kv_cache_quant_algo": None,
            "group_size": GROUP,
            "has_zero_point": False,
            "pre_quant_scale": grouped,
            "exclude_modules": excluded,
        },
    }


def build_command(checkpoint: str, engine: str, sizes: BuildSizes) -> list[str]:
    """The call of TensorRT-LLM 1.2's `trtllm-build`.

    Every place of a prompt is an id beyond the vocabulary that points into a table of embeddings, so the table must
    hold the prompts of a whole batch. Generation logits carry the verdict's probability.
    """
    return [
        "trtllm-build",
        f"--checkpoint_dir={checkpoint}",
        f"--output_dir={engine}",
        "--gpt_attention_plugin=float16",
        "--gemm_plugin=auto",
        "--remove_input_padding=enable",
        "--kv_cache_type=paged",
        f"--max_batch_size={sizes.batch}",
        f"--max_input_len={sizes.prompt}",
        f"--max_seq_len={sizes.tokens}",
        f"--max_num_tokens={sizes.batch * sizes.prompt}",
        f"--max_multimodal_len={sizes.batch * sizes.prompt}",
        "--gather_generation_logits",
    ]


def build_script(sizes: BuildSizes) -> str:
    """A shell script that builds the engine from the checkpoint beside it."""
    command = build_command("CHECKPOINT", "ENGINE", sizes)
    quoted = " \\\n  ".join(shlex.quote(part) for part in command)
    quoted = quoted.replace("CHECKPOINT", '"$here/checkpoint"').replace("ENGINE", '"${1:-$here/engine}"')
    return (
        "#!/bin/sh\n# Needs TensorRT-LLM 1.2 (the last line with trtllm-build). Usage: sh build.sh [ENGINE FOLDER]\n"
        f'set -eu\nhere=$(cd "$(dirname "$0")" && pwd)\n{quoted}\n'
    )
