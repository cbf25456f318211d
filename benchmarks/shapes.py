"""Other people's models by their published shapes, with random weights: what they cost, not what they know.

Each is built from a transformers configuration, so the code that runs is the one their users run. Pixels are ready
tensors (their own preprocessing is not timed). The frame is the one of the benchmark, 640x640:

    smolvlm-256m     one 512x512 tile, 64 visual tokens (its default, splitting, would make 17 tiles of it)
    qwen2-vl-2b      644x644 at its native resolution, 529 visual tokens
    qwen2.5-vl-3b    644x644 at its native resolution, 529 visual tokens
    internvl2.5-2b   one 448x448 tile, 256 visual tokens (its default would make 5 tiles of it)

Sources: config.json of HuggingFaceTB/SmolVLM-256M-Instruct, Qwen/Qwen2-VL-2B-Instruct, Qwen/Qwen2.5-VL-3B-Instruct and
OpenGVLab/InternVL2_5-2B, whose InternLM2 decoder has Llama's arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

_IMAGE = 7  # id of the image token; any id that no prompt uses


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """build: class and configuration; pixels: tensors of a batch of frames; visual: visual tokens of one frame."""

    build: Callable[[bool], tuple[Any, Any]]  # tiny -> (model class, configuration)
    pixels: Callable[[Any, int, bool], dict[str, torch.Tensor]]  # configuration, batch, tiny
    visual: Callable[[Any, bool], int]


def _smol(tiny: bool) -> tuple[Any, Any]:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    text = dict(
        model_type="llama", hidden_size=576, num_hidden_layers=2 if tiny else 30, num_attention_heads=9,
        num_key_value_heads=3, intermediate_size=1536, vocab_size=1024 if tiny else 49280, tie_word_embeddings=True,
        pad_token_id=0,
    )  # fmt: skip
    vision = dict(
        hidden_size=768, num_hidden_layers=2 if tiny else 12, num_attention_heads=12, intermediate_size=3072,
        image_size=64 if tiny else 512, patch_size=16,
    )  # fmt: skip
    config = Idefics3Config(
        vision_config=vision, text_config=text, image_token_id=_IMAGE, scale_factor=4, tie_word_embeddings=True
    )
    return Idefics3ForConditionalGeneration, config


def _smol_pixels(config: Any, batch: int, tiny: bool) -> dict[str, torch.Tensor]:
    side = config.vision_config.image_size
    return {"pixel_values": torch.rand(batch, 1, 3, side, side)}


def _smol_visual(config: Any, tiny: bool) -> int:
    return (config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor) ** 2


_QWEN_TEXT = dict(vocab_size=151936, rope_theta=1_000_000.0, bos_token_id=None, eos_token_id=None, pad_token_id=0)


def _mrope(sections: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "type": "mrope", "mrope_section": sections, "rope_theta": 1_000_000.0}


_QWEN_IDS = dict(image_token_id=_IMAGE, video_token_id=8, vision_start_token_id=9, vision_end_token_id=10)


def _qwen2(tiny: bool) -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    layers = 2 if tiny else 28
    text = _QWEN_TEXT | dict(
        hidden_size=1536, num_hidden_layers=layers, num_attention_heads=12, num_key_value_heads=2,
        intermediate_size=8960 // (4 if tiny else 1), rope_parameters=_mrope([16, 24, 24]), tie_word_embeddings=True,
    )  # fmt: skip
    text["vocab_size"] = 1024 if tiny else text["vocab_size"]
    vision = dict(depth=2 if tiny else 32, embed_dim=1280, num_heads=16, mlp_ratio=4, hidden_size=1536, patch_size=14)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **_QWEN_IDS)
    return Qwen2VLForConditionalGeneration, config


def _qwen25(tiny: bool) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = _QWEN_TEXT | dict(
        hidden_size=2048, num_hidden_layers=2 if tiny else 36, num_attention_heads=16, num_key_value_heads=2,
        intermediate_size=11008 // (4 if tiny else 1), rope_parameters=_mrope([16, 24, 24]), tie_word_embeddings=True,
    )  # fmt: skip
    text["vocab_size"] = 1024 if tiny else text["vocab_size"]
    vision = dict(
        depth=2 if tiny else 32, hidden_size=1280, num_heads=16, intermediate_size=3420, out_hidden_size=2048,
        patch_size=14, window_size=112, fullatt_block_indexes=[1] if tiny else [7, 15, 23, 31],
    )  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **_QWEN_IDS)
    return Qwen2_5_VLForConditionalGeneration, config


def _qwen_grid(tiny: bool) -> int:
    """Patches a side of 644 pixels."""
    return 4 if tiny else 46


def _qwen_pixels(config: Any, batch: int, tiny: bool) -> dict[str, torch.Tensor]:
    grid = _qwen_grid(tiny)
    return {
        "pixel_values": torch.rand(batch * grid**2, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * batch),
    }


def _qwen_visual(config: Any, tiny: bool) -> int:
    return _qwen_grid(tiny) ** 2 // 4


def _intern(tiny: bool) -> tuple[Any, Any]:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    text = dict(
        model_type="llama", hidden_size=2048, num_hidden_layers=2 if tiny else 24, num_attention_heads=16,
        num_key_value_heads=8, intermediate_size=8192 // (4 if tiny else 1), vocab_size=1024 if tiny else 92553,
        tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    vision = dict(
        hidden_size=1024, num_hidden_layers=2 if tiny else 24, num_attention_heads=16, intermediate_size=4096,
        image_size=[56, 56] if tiny else [448, 448], patch_size=[14, 14],
    )  # fmt: skip
    return InternVLForConditionalGeneration, InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=_IMAGE, downsample_ratio=0.5, tie_word_embeddings=False
    )


def _intern_pixels(config: Any, batch: int, tiny: bool) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.rand(batch, 3, *config.vision_config.image_size)}


def _intern_visual(config: Any, tiny: bool) -> int:
    return (config.vision_config.image_size[0] // 14 // 2) ** 2


_PLANS = {
    "smolvlm-256m": _Plan(build=_smol, pixels=_smol_pixels, visual=_smol_visual),
    "qwen2-vl-2b": _Plan(build=_qwen2, pixels=_qwen_pixels, visual=_qwen_visual),
    "qwen2.5-vl-3b": _Plan(build=_qwen25, pixels=_qwen_pixels, visual=_qwen_visual),
    "internvl2.5-2b": _Plan(build=_intern, pixels=_intern_pixels, visual=_intern_visual),
}
SHAPES = tuple(_PLANS)


class _Clock(LogitsProcessor):
    """Notes when each token's logits are there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())
        return scores


class Made:
    """A model with random weights and the inputs of one frame."""

    def __init__(
        self, model: PreTrainedModel, plan: _Plan, device: torch.device, dtype: torch.dtype, tiny: bool
    ) -> None:
        self.model, self.plan, self.device, self.dtype, self.tiny = model, plan, device, dtype, tiny

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def inputs(self, batch: int, prompt_tokens: int) -> dict[str, torch.Tensor]:
        """Visual tokens first, then the prompt; no padding."""
        visual = self.plan.visual(self.model.config, self.tiny)
        ids = torch.randint(20, 1000, (batch, visual + prompt_tokens))
        ids[:, :visual] = _IMAGE
        pixels = self.plan.pixels(self.model.config, batch, self.tiny)
        tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
        if "image_grid_thw" in pixels:
            tensors["mm_token_type_ids"] = (ids == _IMAGE).long()
        return {name: x.to(self.device, self.dtype if x.is_floating_point() else None) for name, x in tensors.items()}

    def first(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits of the first token."""
        return self.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]

    def measure(self, *, prompt_tokens: int, new_tokens: int, batch: int = 1) -> dict[str, float]:
        """Milliseconds to the first token and to the last, through transformers' own generate."""
        inputs = self.inputs(batch, prompt_tokens)
        clock = _Clock(self.device)
        started = time.perf_counter()
        self.model.generate(
            **inputs, do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens,
            logits_processor=LogitsProcessorList([clock]),
        )  # fmt: skip
        return {"verdict": (clock.times[0] - started) * 1000, "answer": (clock.times[-1] - started) * 1000}


def make(shape: str, *, device: torch.device, dtype: torch.dtype, tiny: bool = False) -> Made:
    """tiny: two layers of the true widths, for a test that the script runs."""
    plan = _PLANS[shape]
    cls, config = plan.build(tiny)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        # Initialisation by the library takes minutes for 2 G values; their distribution does not matter for the time,
        # as long as nothing is denormal or overflows.
        with torch.device("meta"):
            model = cls(config)
        model = model.to_empty(device=device)
    finally:
        torch.set_default_dtype(before)
    model.init_weights = lambda *_, **__: None
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.uniform_(-0.02, 0.02)
            else:
                parameter.fill_(1.0 if parameter.numel() else 0.0)
        _fill_buffers(model, config, device)
    model.tie_weights()
    return Made(model.eval(), plan, device, dtype, tiny)


def _fill_buffers(model: PreTrainedModel, config: Any, device: torch.device) -> None:
    """Buffers (rotary frequencies, position ids) are computed, not stored: a small twin on the CPU has them."""
    for module in model.modules():
        names = [name for name, _ in module.named_buffers(recurse=False)]
        if not names:
            continue
        if hasattr(module, "config"):
            twin = type(module)(module.config)
        elif "inv_freq" in names and hasattr(module, "dim"):
            twin = type(module)(module.dim)
        else:
            raise AssertionError(f"{type(module).__name__} has buffers {names} that are not known how to fill")
        for name in names:
            source = getattr(twin, name)
            getattr(module, name).copy_(source.to(device))
