"""What a variant costs: operations of one answer at nano's and at full size, and time on this machine at nano's."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from auroraedge.config import PRESETS
from auroraedge.model.configuration import AuroraEdgeConfig
from auroraedge.model.flops import auroraedge_shape
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration
from auroraedge.train.ablation.variants import PATCHES, VARIANTS, Variant

TEXT, NEW = 64, 32


def operations(variant: Variant, preset: str, *, text: int = TEXT, new: int = NEW) -> dict[str, int]:
    """Operations of one answer by part (auroraedge.model.flops), of a model of `preset` size with these connectors."""
    sizes = replace(
        PRESETS[preset],
        num_compressed=variant.tokens,
        fusion=variant.fusion,
        fusion_layers=variant.depth,
    )
    shape = auroraedge_shape(sizes)
    parts = shape.count(text=text, new=new)
    if variant.tokens == PATCHES:
        parts["compressor"] = 0
    if variant.frames > 1:
        for name in ("encoder", "projector", "compressor"):
            parts[name] *= variant.frames
        if variant.fusion != "none":
            wide = auroraedge_shape(replace(sizes, num_patches=PATCHES * variant.frames))
            parts["fusion"] = wide.connector(text)["fusion"]
        prompt = variant.frames * variant.tokens + text
        parts["prefill"], parts["generation"] = shape.decoder.prefill(prompt), shape.decoder.steps(prompt, new)
    return parts


def _nano(variant: Variant) -> AuroraEdgeForConditionalGeneration:
    config = AuroraEdgeConfig.from_preset(
        "nano",
        vocab_size=640,
        compression="none" if variant.tokens == PATCHES else "mlp",
        num_compressed=variant.tokens,
        fusion=variant.fusion,
        fusion_layers=variant.depth,
    )
    return AuroraEdgeForConditionalGeneration(config).eval()


@torch.inference_mode()
def latency(
    names: list[str], *, rounds: int = 15, threads: int = 1, text: int = TEXT, new: int = NEW
) -> dict[str, Any]:
    """Milliseconds of one answer at nano's sizes (float32, eager, random weights: time does not depend on them).

    All variants take turns in every round, so that what else the machine does meets them alike. 'encoder' is the same
    for all and is timed once a round; 'first' is all from there to the first token, 'rest' the other new - 1 tokens.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    models = {name: _nano(VARIANTS[name]) for name in names}
    pixels = torch.randn(1, PATCHES, 768)
    ids = torch.randint(0, 600, (1, text))
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    encoder: list[float] = []
    for turn in range(rounds + 2):
        first = next(iter(models.values()))
        began = time.perf_counter()
        features = first.vision_model(
            pixel_values=pixels,
            pixel_attention_mask=torch.ones(1, PATCHES, dtype=torch.long),
            spatial_shapes=torch.full((1, 2), 16),
        ).last_hidden_state
        spent = time.perf_counter() - began
        if turn >= 2:  # two rounds of warm-up
            encoder.append(1e3 * spent)
        order = list(models)[turn % len(models) :] + list(models)[: turn % len(models)]
        for name in order:
            taken = _answer_ms(models[name], features, ids, new)
            if turn >= 2:
                samples[name].append(taken)
    return {
        "threads": threads,
        "text": text,
        "new": new,
        "rounds": rounds,
        "encoder_ms": encoder,
        "samples_ms": samples,
    }


def _answer_ms(
    model: AuroraEdgeForConditionalGeneration, features: torch.Tensor, ids: torch.Tensor, new: int
) -> dict[str, float]:
    began = time.perf_counter()
    visual, compressed, mask = model.connect(features, features.new_ones(features.shape[:2]))
    fused = model.fuse(ids, torch.ones_like(ids), visual, mask)
    output = model.language_model(inputs_embeds=torch.cat([compressed, fused], dim=1), use_cache=True, logits_to_keep=1)
    first = time.perf_counter()
    for _ in range(new - 1):
        token = output.logits[:, -1:].argmax(-1)
        output = model.language_model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    done = time.perf_counter()
    return {"first": 1e3 * (first - began), "rest": 1e3 * (done - first)}


def percentiles(samples: list[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(samples, q)) for q in (5, 50, 95)}
