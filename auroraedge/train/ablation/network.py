"""The model of the experiments: AuroraEdge's own connectors and decoder on stored visual tokens; heads for training.

Suffixes as in auroraedge.model.modeling; L text places of a packed row, E width of the stored tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from auroraedge.config import PRESETS, ModelPreset
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model.configuration import AuroraEdgeConfig
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration
from auroraedge.train.ablation.questions import Packed
from auroraedge.train.ablation.variants import Variant
from auroraedge.train.initialise import ordered_location_embeddings

# A quarter of nano's width and half of its depth: what two shared cores can train often enough for intervals.
PRESET: ModelPreset = replace(
    PRESETS["nano"],
    name="ablation",
    vision_hidden=256,
    vision_layers=1,
    vision_heads=4,
    vision_intermediate=256,
    text_hidden=64,
    text_layers=2,
    text_heads=2,
    text_kv_heads=1,
    text_head_dim=32,
    text_intermediate=192,
)
# nano's 0.02 keeps a network this narrow close to linear for hundreds of steps.
_STD = 0.08
_PATCH_VALUES = 4 * 4 * 3  # of a 64 x 64 picture


def build_network(
    variant: Variant, vocab: int, tokenizer: InspectionTokenizer, width: int = 256
) -> AuroraEdgeForConditionalGeneration:
    """AuroraEdge with the variant's connectors. The encoder is a stub: its features are stored. width: E."""
    preset = replace(PRESET, vision_hidden=width)
    patches = preset.num_patches
    config = AuroraEdgeConfig.from_preset(
        preset,
        vocab_size=vocab,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        compression="none" if variant.tokens == patches else "mlp",
        num_compressed=variant.tokens,
        fusion=variant.fusion,
        fusion_layers=variant.depth,
        frames=variant.frames,
        frame_embedding=variant.frame_embedding,
    )
    config.text_config._attn_implementation = "eager"
    for part in (config, config.text_config):
        part.initializer_range = _STD
    model = AuroraEdgeForConditionalGeneration(config)
    ordered_location_embeddings(model.get_input_embeddings(), tokenizer.loc_ids, _STD)
    return model


def connect(
    model: AuroraEdgeForConditionalGeneration, features_BNE: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """V, C and mask of stored features [B * frames, N, E] of full views."""
    return model.connect(features_BNE, features_BNE.new_ones(features_BNE.shape[:2]))


def _text_inputs(
    model: AuroraEdgeForConditionalGeneration,
    connected: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    packed: Packed,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of the text places [B, L, D], prompts fused, and which places see which [B, L, L]."""
    visual, _, mask = connected
    text, seen = model.get_input_embeddings()(packed.ids), packed.seen()
    fused = model.fusion(text, visual, mask, (packed.segment > 0).long(), seen, packed.position)
    return torch.where(packed.is_prompt[..., None], fused, text), seen


def _bias(allowed: torch.Tensor) -> torch.Tensor:
    return ((1.0 - allowed) * torch.finfo(torch.float32).min)[:, None]


def packed_hidden(
    model: AuroraEdgeForConditionalGeneration,
    connected: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    packed: Packed,
) -> torch.Tensor:
    """The decoder's last hidden states of the text places [B, L, D], for what `connect` returned."""
    compressed = connected[1]
    text, seen = _text_inputs(model, connected, packed)
    b, length = packed.ids.shape
    c = compressed.shape[1]
    allowed_BSS = torch.zeros(b, c + length, c + length)
    allowed_BSS[:, :c, :c] = torch.ones(c, c).tril()
    allowed_BSS[:, c:, :c] = 1.0
    allowed_BSS[:, c:, c:] = seen
    output = model.language_model.model(
        inputs_embeds=torch.cat([compressed, text], dim=1),
        attention_mask=_bias(allowed_BSS),
        position_ids=torch.cat([torch.arange(c).expand(b, c), c + packed.position], dim=1),
        use_cache=False,
    )
    return output.last_hidden_state[:, c:]


class Reader:
    """Reads C once and then any number of packed rows about it: the same states as `packed_hidden`, for scoring."""

    def __init__(self, model: AuroraEdgeForConditionalGeneration, features_BNE: torch.Tensor) -> None:
        self.model = model
        self.connected = connect(model, features_BNE)
        compressed = self.connected[1]
        b, self.count = compressed.shape[:2]
        output = model.language_model.model(
            inputs_embeds=compressed,
            attention_mask=_bias(torch.ones(self.count, self.count).tril().expand(b, -1, -1)),
            position_ids=torch.arange(self.count).expand(b, -1),
            use_cache=True,
        )
        self.cache = output.past_key_values

    def hidden(self, packed: Packed) -> torch.Tensor:
        text, seen = _text_inputs(self.model, self.connected, packed)
        output = self.model.language_model.model(
            inputs_embeds=text,
            attention_mask=_bias(torch.cat([seen.new_ones(*seen.shape[:2], self.count), seen], dim=2)),
            position_ids=self.count + packed.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache.crop(-packed.ids.shape[1])
        return output.last_hidden_state


def logits_at(
    model: AuroraEdgeForConditionalGeneration, hidden_BLD: torch.Tensor, chosen_BL: torch.Tensor
) -> torch.Tensor:
    """Logits [m, vocab] of the chosen places."""
    return model.language_model.lm_head(hidden_BLD[chosen_BL])


def token_loss(
    logits: torch.Tensor, packed: Packed, soft: torch.Tensor, floor: torch.Tensor, verdict: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """'tokens': weighted cross-entropy of all taught tokens, locations against soft targets, less what those allow at
    best; 'verdict': that of the verdicts alone, without gradient."""
    taught = packed.targets >= 0
    truth, weight = packed.targets[taught], packed.weights[taught]
    entropy = -(soft[truth] * F.log_softmax(logits, -1)).sum(-1) - floor[truth]
    judged = (truth == verdict[0]) | (truth == verdict[1])
    return {"tokens": (entropy * weight).sum() / weight.sum(), "verdict": entropy[judged].detach().mean()}


class Reconstruction(nn.Module):
    """From compressed tokens C back to all N places, in training only: what C forgot it cannot rebuild.

    A linear map over the token axis, then an MLP; the loss is the mean squared error on targets normalised token by
    token (as the pixels of MAE, arXiv 2111.06377). 'visual': V, without gradient; 'pixels': 4 x 4 x 3 values a patch.
    """

    def __init__(self, kind: str, tokens: int, patches: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.spread = nn.Linear(tokens, patches)
        out = width if kind == "visual" else _PATCH_VALUES
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))

    def forward(self, compressed_BCD: torch.Tensor, target_BNK: torch.Tensor) -> torch.Tensor:
        rebuilt = self.mlp(self.spread(compressed_BCD.transpose(1, 2)).transpose(1, 2))
        target = target_BNK.detach()
        return F.mse_loss(rebuilt, F.layer_norm(target, target.shape[-1:]))


def patch_pixels(thumbs: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 64, 64, 3] -> float32 [B, 256, 48] in -1..1: the pixels of each of 16 x 16 patches."""
    b = thumbs.shape[0]
    cut = thumbs.reshape(b, 16, 4, 16, 4, 3).permute(0, 1, 3, 2, 4, 5).reshape(b, 256, _PATCH_VALUES)
    return cut.float() / 127.5 - 1.0
