"""Reads a TensorRT-LLM checkpoint back into torch and measures how far its answers are from the model's.

Independent of the writer: everything, rotary base and scales included, comes from the files, and quantised layers are
computed as TensorRT-LLM computes them. So a wrong layout, a lost bias or another rotary base shows as noise.

    python -m engine_build.trtllm_check --model models/nano --views 24     # the table of docs/engines.md
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from auroraedge.errors import EngineError
from engine_build.decoder_source import DecoderSource, agreement, logits_of

# Least signal-to-noise ratio in dB of the logits, and least share of positions with the same best token, by
# quant_algo: a step below what nano reaches (docs/engines.md). A wrong layout or rotary base gives less than 10 dB.
GATES: dict[str | None, tuple[float, float]] = {
    None: (50.0, 0.995),
    "W8A16": (40.0, 0.97),
    "W8A8_SQ_PER_CHANNEL": (35.0, 0.95),
    "FP8": (25.0, 0.93),
    "W4A16_AWQ": (15.0, 0.88),
}
# Of fewer positions the share is chance: one of ten near-ties is 10 %.
_LEAST_POSITIONS = 64
_PARTS = {"attention.qkv": ("q_proj", "k_proj", "v_proj")}
_MODULES = {
    "attention.dense": "self_attn.o_proj",
    "mlp.fc": "mlp.gate_proj",
    "mlp.gate": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
_EIGHT_BITS = torch.int8, torch.float8_e4m3fn


def read_checkpoint(folder: Path) -> Qwen2ForCausalLM:
    """The checkpoint as a float32 model whose layers round as the engine's will. Raises EngineError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stored = load_file(folder / "rank0.safetensors")
    except (OSError, ValueError) as error:
        raise EngineError(f"{folder} is no TensorRT-LLM checkpoint: {error}.", field="checkpoint") from error
    _require(config)
    model = _empty(config).eval()
    state = {
        "model.embed_tokens.weight": stored["transformer.vocab_embedding.weight"].float(),
        "model.norm.weight": stored["transformer.ln_f.weight"].float(),
        "lm_head.weight": stored["lm_head.weight"].float(),
    }
    rounding: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    heads, kv_heads, d = (config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_size"))
    for index in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{index}", f"transformer.layers.{index}"
        state[f"{ours}.input_layernorm.weight"] = stored[f"{theirs}.input_layernorm.weight"].float()
        state[f"{ours}.post_attention_layernorm.weight"] = stored[f"{theirs}.post_layernorm.weight"].float()
        for name, module in {**_MODULES, "attention.qkv": ""}.items():
            weight, rounds = _layer(stored, f"{theirs}.{name}", config["quantization"])
            if module:
                state[f"{ours}.{module}.weight"] = weight
                rounding |= {f"{ours}.{module}": rounds} if rounds else {}
                continue
            sizes = [heads * d, kv_heads * d, kv_heads * d]
            biases = stored[f"{theirs}.{name}.bias"].float().split(sizes)
            for part, matrix, bias in zip(_PARTS[name], weight.split(sizes), biases, strict=True):
                state[f"{ours}.self_attn.{part}.weight"] = matrix
                state[f"{ours}.self_attn.{part}.bias"] = bias
                rounding |= {f"{ours}.self_attn.{part}": rounds} if rounds else {}
    model.load_state_dict(state)
    modules = dict(model.named_modules())
    for name, rounds in rounding.items():
        modules[name].register_forward_pre_hook(lambda _, inputs, rounds=rounds: (rounds(inputs[0]), *inputs[1:]))
    return model


def _require(config: dict[str, Any]) -> None:
    """What TensorRT-LLM would silently replace by a default of another model."""
    for name, wanted in (("qwen_type", "qwen2"), ("attn_bias", True), ("architecture", "Qwen2ForCausalLM")):
        if config.get(name) != wanted:
            raise EngineError(f"The checkpoint's {name} is {config.get(name)!r}, not {wanted!r}.", field=name)
    if not config.get("rotary_base"):
        raise EngineError("The checkpoint has no rotary_base: 10000 would be used.", field="rotary_base")


def _empty(config: dict[str, Any]) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config["num_key_value_heads"],
            head_dim=config["head_size"],
            max_position_embeddings=config["max_position_embeddings"],
            rms_norm_eps=config["norm_epsilon"],
            hidden_act=config["hidden_act"],
            rope_parameters={"rope_theta": config["rotary_base"], "rope_type": "default"},
            tie_word_embeddings=False,
        )
    )


def _layer(
    stored: dict[str, torch.Tensor], name: str, quantization: dict[str, Any]
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor] | None]:
    """Weight float32 [out, in] as the engine multiplies it, and what it does to the layer's input."""
    weight = stored[f"{name}.weight"]
    algorithm = quantization["quant_algo"]
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in quantization["exclude_modules"] or ()):
        algorithm = None
    quantised = weight.dtype in _EIGHT_BITS
    if quantised != (algorithm in ("W8A8_SQ_PER_CHANNEL", "FP8", "W4A16_AWQ")):
        raise EngineError(f"{name} is stored as {weight.dtype}, which is not {algorithm}.", field=name)
    if algorithm == "W8A16":
        # TensorRT-LLM's loader: 128 steps for the largest magnitude of an output, clipped to int8.
        scale = weight.float().abs().amax(1, keepdim=True) / 128.0
        scale = scale.clamp(min=1e-12)
        return torch.clamp(torch.round(weight.float() / scale), -128, 127) * scale.half().float(), None
    if not quantised:
        return weight.float(), None
    scales = stored[f"{name}.weights_scaling_factor"].float()
    if algorithm == "W4A16_AWQ":
        return _unpack(weight, scales), _multiply(stored[f"{name}.prequant_scaling_factor"].float())
    step = stored[f"{name}.activation_scaling_factor"].float()
    if algorithm == "FP8":
        return weight.float() * scales, _round_fp8(step)
    return weight.float() * scales[:, None], _round_int8(stored[f"{name}.prequant_scaling_factor"].float(), step)


def _unpack(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """packed int8 [out / 2, in], scales [out, in / group] -> float32 [out, in]."""
    low = ((packed & 0xF) ^ 8) - 8
    high = packed >> 4
    whole = torch.stack([low, high], dim=1).flatten(0, 1).float()
    return whole * scales.repeat_interleave(whole.shape[1] // scales.shape[1], dim=1)


def _multiply(factor: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x * factor


def _round_int8(factor: torch.Tensor, step: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.clamp(torch.round(x * factor / step), -128, 127) * step


def _round_fp8(step: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.clamp(x / step, -448.0, 448.0).to(torch.float8_e4m3fn).float() * step


def check_checkpoint(source: DecoderSource, folder: Path) -> dict[str, float]:
    """Figures of the checkpoint against the model on the sequences that did not calibrate it.

    Raises EngineError when they miss the gate of the checkpoint's precision.
    """
    reference = logits_of(source.model, source.checking)
    figures = agreement(logits_of(read_checkpoint(folder), source.checking), reference)
    algorithm = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization"]["quant_algo"]
    least_db, least_same = GATES[algorithm]
    few = figures["positions"] < _LEAST_POSITIONS
    if figures["snr_db"] < least_db or (figures["top1_agreement"] < least_same and not few):
        raise EngineError(
            f"The {algorithm or 'float16'} checkpoint departs from the model: {figures['snr_db']:.1f} dB (least "
            f"{least_db:g}), the same token at {figures['top1_agreement']:.1%} of the places (least {least_same:.1%}).",
            field="checkpoint",
            remedy="Keep more layers in 16 bits (--keep-worst), or take another precision.",
        )
    return figures


def main(arguments: list[str] | None = None) -> int:
    from rich.console import Console
    from rich.table import Table

    from engine_build.decoder_source import decoder_from_folder
    from engine_build.trtllm import QUANT_ALGOS, write_checkpoint

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/nano"), help="of ours, or a Qwen2.5 folder")
    parser.add_argument("--pack", type=Path, help="dataset whose train splits calibrate as well")
    parser.add_argument("--views", type=int, default=96, help="half of them calibrate, half are compared")
    options = parser.parse_args(arguments)
    console = Console()
    table = Table("precision", "dB", "same best token", "whole answers", "positions", title=str(options.model))
    try:
        source = decoder_from_folder(options.model, pack=options.pack, views=options.views)
        reference = logits_of(source.model, source.checking)
        for precision in QUANT_ALGOS:
            with tempfile.TemporaryDirectory() as folder:
                write_checkpoint(source, precision, Path(folder) / "checkpoint")
                found = logits_of(read_checkpoint(Path(folder) / "checkpoint"), source.checking)
            figures = agreement(found, reference)
            shares = (f"{figures[name]:.1%}" for name in ("top1_agreement", "answer_agreement"))
            table.add_row(precision, f"{figures['snr_db']:.1f}", *shares, f"{figures['positions']:.0f}")
    except EngineError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
