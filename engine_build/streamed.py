"""The torch model with its weights brought in layer by layer: the reference of a build that cannot hold the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from auroraedge.model import AuroraEdgeForConditionalGeneration
from engine_build.weight_source import WeightSource


def streamed_model(source: WeightSource) -> AuroraEdgeForConditionalGeneration:
    """The model in float32, in eval mode, whose layers take their weights when they run and drop them afterwards.

    The arithmetic is the model's own. Memory: one layer, or the embedding table.
    """
    with torch.device("meta"):
        model = AuroraEdgeForConditionalGeneration(source.config).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Qwen2RotaryEmbedding):
            fresh = Qwen2RotaryEmbedding(config=module.config)
            module.inv_freq, module.original_inv_freq = fresh.inv_freq, fresh.inv_freq
    language = model.language_model
    parts = [
        model.vision_model.embeddings,
        *model.vision_model.encoder.layers,
        model.vision_model.post_layernorm,
        model.projector,
        model.compressor,
        model.fusion,
        language.model.embed_tokens,
        *language.model.layers,
        language.model.norm,
        language.lm_head,
        *([] if model.grounding is None else [model.grounding]),
    ]
    names = {module: name for name, module in model.named_modules()}
    for part in parts:
        _stream(part, names[part], source)
    lost = {name for name, _ in model.named_buffers() if name.endswith("position_ids")}
    for name in lost:
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, key, torch.arange(getattr(module, key).shape[-1])[None])
    return model


def _stream(part: nn.Module, name: str, source: WeightSource) -> None:
    def bring(_: nn.Module, *__: Any) -> None:
        for module_name, module in part.named_modules():
            root = ".".join(filter(None, (name, module_name)))
            for key in module._parameters:
                if module._parameters[key] is not None:
                    values = torch.from_numpy(source.weights(f"{root}.{key}"))
                    module._parameters[key] = nn.Parameter(values, requires_grad=False)

    def drop(_: nn.Module, *__: Any) -> None:
        for module in part.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    part.register_forward_pre_hook(bring)
    part.register_forward_hook(drop)
