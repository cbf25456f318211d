"""The three graphs of an engine as plain torch modules, made for export: static structure, few nodes, exact rewrites.

What differs from the model's own forward, none of it in value:
  - vision takes raw uint8 patches; the normalisation x / 127.5 - 1 sits in the graph;
  - host-given position embedding and patch mask, because the antialiased resize of the table has no ONNX operator;
  - q, k, v (and gate, up) are one matmul, and 1 / sqrt(d) lies in the query's weights;
  - grouped queries share their keys by a reshape instead of copies;
  - the decoder's last layer computes queries and MLP for the last position alone, which is all that is read.

Suffixes: B views, N patches, C compressed tokens, t prompt tokens, S new positions, P past, T = P + S, D width,
E encoder width, H heads, K key/value heads, d head dimension.
"""

from __future__ import annotations

import torch
from torch import nn

from auroraedge.model import AuroraEdgeForConditionalGeneration

# Added to the score of a masked place. Finite, so that a row with no place to look stays a number.
MASKED = -1e9
_MIDDLE = 128.0
_HALF_RANGE = 127.5


def _stack(parts: list[nn.Linear], scale_first: float = 1.0) -> nn.Linear:
    """One linear layer with the outputs of `parts` side by side; the first part's are multiplied by `scale_first`."""
    biased = any(part.bias is not None for part in parts)
    weights = [part.weight.float() for part in parts]
    biases = [part.weight.new_zeros(part.out_features) if part.bias is None else part.bias.float() for part in parts]
    weights[0], biases[0] = weights[0] * scale_first, biases[0] * scale_first
    weight = torch.cat(weights)
    stacked = nn.Linear(weight.shape[1], weight.shape[0], bias=biased)
    stacked.weight.data = weight
    if biased:
        stacked.bias.data = torch.cat(biases)
    return stacked


class RMSNorm(nn.Module):
    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float())
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def _norm(norm: nn.Module) -> RMSNorm:
    return RMSNorm(norm.weight.data, norm.variance_epsilon)


def _attend(
    q_BHSd: torch.Tensor, k_BKTd: torch.Tensor, v_BKTd: torch.Tensor, bias: torch.Tensor, groups: int
) -> torch.Tensor:
    """softmax(q k^T + bias) v with H = groups * K heads -> [B, S, H * d]. bias broadcasts to [B, 1, S, T]."""
    k_BKdT = k_BKTd.transpose(-1, -2)
    if groups == 1:
        weights_BHST = torch.softmax(torch.matmul(q_BHSd, k_BKdT) + bias, -1)
        return torch.matmul(weights_BHST, v_BKTd).transpose(1, 2).flatten(2)
    q_BKgSd = q_BHSd.unflatten(1, (-1, groups))
    weights = torch.softmax(torch.matmul(q_BKgSd, k_BKdT[:, :, None]) + bias[:, None], -1)
    return torch.matmul(weights, v_BKTd[:, :, None]).flatten(1, 2).transpose(1, 2).flatten(2)


class _EncoderLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        attention = layer.self_attn
        self.heads = attention.num_heads
        self.norm1, self.norm2 = layer.layer_norm1, layer.layer_norm2
        self.qkv = _stack([attention.q_proj, attention.k_proj, attention.v_proj], attention.scale)
        self.out = attention.out_proj
        self.fc1, self.activation, self.fc2 = layer.mlp.fc1, layer.mlp.activation_fn, layer.mlp.fc2

    def forward(self, x_BNE: torch.Tensor, bias_B11N: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm1(x_BNE)).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        q, k, v = qkv.split(self.heads, dim=1)
        x_BNE = x_BNE + self.out(_attend(q, k, v, bias_B11N, 1))
        return x_BNE + self.fc2(self.activation(self.fc1(self.norm2(x_BNE))))


class VisionGraph(nn.Module):
    """patches uint8 [B, N, 768], position [B, N, E], patch_mask [B, N] -> visual [B, N, D], compressed [B, C, D].

    With a grounding head also evidence [B, N, 1 + labels + 4] and presence [B, labels + 1].
    """

    inputs = ("patches", "position", "patch_mask")

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("visual", "compressed", *(("evidence", "presence") if self.grounding is not None else ()))

    def __init__(self, model: AuroraEdgeForConditionalGeneration) -> None:
        super().__init__()
        embedding = model.vision_model.embeddings.patch_embedding
        # (p - 127.5) / 127.5 = (p - 128) / 127.5 + 0.5 / 127.5: the whole number keeps uint8 exact when the graph is
        # quantised, the half goes into the bias.
        self.embedding = nn.Linear(embedding.in_features, embedding.out_features)
        self.embedding.weight.data = embedding.weight.data.float()
        shift = self.embedding.weight.data.sum(1) * ((_MIDDLE - _HALF_RANGE) / _HALF_RANGE)
        self.embedding.bias.data = embedding.bias.data.float() + shift
        self.layers = nn.ModuleList(_EncoderLayer(layer) for layer in model.vision_model.encoder.layers)
        self.post_norm = model.vision_model.post_layernorm
        self.projector = model.projector
        self.compressor = model.compressor
        self.grounding = model.grounding

    def forward(
        self, patches: torch.Tensor, position: torch.Tensor, patch_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        pixels = (patches.to(torch.float32) - _MIDDLE) * (1.0 / _HALF_RANGE)
        hidden = self.embedding(pixels) + position
        bias = (1.0 - patch_mask)[:, None, None, :] * MASKED
        for layer in self.layers:
            hidden = layer(hidden, bias)
        visual = self.projector(self.post_norm(hidden))
        grounded = () if self.grounding is None else self.grounding(visual, patch_mask)
        return visual, self._compress(visual, patch_mask), *grounded

    def _compress(self, visual_BND: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
        """ops.compress with the token axis last, so that its weights are the right-hand side of a matmul."""
        c = self.compressor
        normed = nn.functional.rms_norm(visual_BND, (visual_BND.shape[-1],), c.norm.weight, c.norm.variance_epsilon)
        tokens_BDN = (normed * mask_BN[..., None]).transpose(1, 2)
        hidden_BDM = nn.functional.gelu(nn.functional.linear(tokens_BDN, c.w1, c.b1), approximate="tanh")
        return nn.functional.linear(hidden_BDM, c.w2, c.b2).transpose(1, 2)


class _DecoderLayer(nn.Module):
    """A Qwen2 decoder layer. Returns the hidden states and the keys and values of all T places."""

    def __init__(self, layer: nn.Module, heads: int, kv_heads: int, *, last_only: bool = False) -> None:
        super().__init__()
        attention = layer.self_attn
        self.heads, self.kv_heads, self.d = heads, kv_heads, attention.head_dim
        self.last_only = last_only
        self.norm1, self.norm2 = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        if last_only:
            self.q = _stack([attention.q_proj], attention.scaling)
            self.kv = _stack([attention.k_proj, attention.v_proj])
        else:
            self.qkv = _stack([attention.q_proj, attention.k_proj, attention.v_proj], attention.scaling)
        self.out = attention.o_proj
        self.gate_up = _stack([layer.mlp.gate_proj, layer.mlp.up_proj])
        self.down = layer.mlp.down_proj

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.d)).transpose(1, 2)

    def forward(
        self,
        x_BSD: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        bias: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        normed = self.norm1(x_BSD)
        if self.last_only:
            # One position is read: the others are needed as keys and values only.
            x_BSD, bias = x_BSD[:, -1:], bias[:, :, -1:]
            q = rotate(self._heads(self.q(normed[:, -1:])), tuple(r[:, :, -1:] for r in rotary))
            k, v = self._heads(self.kv(normed)).split(self.kv_heads, dim=1)
            k = rotate(k, rotary)
        else:
            qk, v = self._heads(self.qkv(normed)).split([self.heads + self.kv_heads, self.kv_heads], dim=1)
            q, k = rotate(qk, rotary).split([self.heads, self.kv_heads], dim=1)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        x_BSD = x_BSD + self.out(_attend(q, k, v, bias, self.heads // self.kv_heads))
        gate, up = self.gate_up(self.norm2(x_BSD)).chunk(2, dim=-1)
        return x_BSD + self.down(nn.functional.silu(gate) * up), k, v


def rotate(x_BHSd: torch.Tensor, rotary: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Rotary embedding, halves convention; `rotary` = cos and sin with the sign of the first half turned."""
    cos, signed_sin = rotary
    first, second = x_BHSd.chunk(2, dim=-1)
    return x_BHSd * cos + torch.cat([second, first], dim=-1) * signed_sin


def rotary_factors(position_BS: torch.Tensor, inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and signed sin [B, 1, S, d] for int64 positions."""
    angle = position_BS[:, None, :, None].to(torch.float32) * inverse
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class FusionGraph(nn.Module):
    """text [B, t, D], visual [B, N, D], patch_mask [B, N], text_mask [B, t] -> fused [B, t, D]."""

    inputs = ("text", "visual", "patch_mask", "text_mask")
    outputs = ("fused",)

    def __init__(self, model: AuroraEdgeForConditionalGeneration) -> None:
        super().__init__()
        fusion, text = model.fusion, model.config.text_config
        self.cross = fusion.cross is not None
        if fusion.cross is not None:
            cross = fusion.cross
            self.heads, d = cross.heads, text.hidden_size // cross.heads
            self.text_norm, self.visual_norm = _norm(cross.text_norm), _norm(cross.visual_norm)
            self.q, self.kv = _stack([cross.q_proj], d**-0.5), _stack([cross.k_proj, cross.v_proj])
            self.out = cross.o_proj
        self.layers = nn.ModuleList(
            _DecoderLayer(layer, text.num_attention_heads, text.num_key_value_heads) for layer in fusion.layers
        )
        if fusion.rotary is not None:
            self.register_buffer("inverse", fusion.rotary.inv_freq.float(), persistent=False)

    def forward(
        self, text: torch.Tensor, visual: torch.Tensor, patch_mask: torch.Tensor, text_mask: torch.Tensor
    ) -> torch.Tensor:
        # Every input stays one of the graph, whatever the kind of fusion.
        if not self.cross:
            return text + 0.0 * (visual.sum() + patch_mask.sum() + text_mask.sum())
        q = self.q(self.text_norm(text)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(self.visual_norm(visual)).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2)
        k, v = kv.split(self.heads, dim=1)
        bias = (1.0 - patch_mask)[:, None, None, :] * MASKED
        fused = text + self.out(_attend(q, k, v, bias, 1))
        if not self.layers:
            return fused + 0.0 * text_mask[..., None]
        rotary = rotary_factors((text_mask.cumsum(-1) - 1.0).clamp(min=0.0), self.inverse)
        seen = causal(text_mask, text.shape[1])
        for layer in self.layers:
            fused, _, _ = layer(fused, rotary, seen, None)
        return fused


def causal(mask_BT: torch.Tensor, length: int) -> torch.Tensor:
    """Additive bias [B, 1, S, T] of the last S = `length` of T places: earlier and real places are seen.

    A padded row sees nothing real; all its scores then fall alike, and it stays finite and unread.
    """
    total = mask_BT.shape[1]
    place = torch.arange(total, device=mask_BT.device)
    later_ST = (place[None, :] > place[total - length :, None]).to(mask_BT.dtype)
    return ((1.0 - mask_BT)[:, None, None, :] + later_ST) * MASKED


class DecoderGraph(nn.Module):
    """inputs_embeds [B, S, D], attention_mask [B, T], position_ids int64 [B, S], past.{i}.key/value [B, K, P, d]
    -> logits [B, vocab] of the last position, present.{i}.key/value [B, K, T, d]."""

    def __init__(self, model: AuroraEdgeForConditionalGeneration) -> None:
        super().__init__()
        text, decoder = model.config.text_config, model.language_model
        last = len(decoder.model.layers) - 1
        self.layers = nn.ModuleList(
            _DecoderLayer(layer, text.num_attention_heads, text.num_key_value_heads, last_only=i == last)
            for i, layer in enumerate(decoder.model.layers)
        )
        self.norm = _norm(decoder.model.norm)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.lm_head.weight.data = decoder.lm_head.weight.data.float()
        self.register_buffer("inverse", decoder.model.rotary_emb.inv_freq.float(), persistent=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("inputs_embeds", "attention_mask", "position_ids", *self.cache_names("past"))

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("logits", *self.cache_names("present"))

    def cache_names(self, prefix: str) -> tuple[str, ...]:
        return tuple(f"{prefix}.{i}.{part}" for i in range(len(self.layers)) for part in ("key", "value"))

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        rotary = rotary_factors(position_ids, self.inverse)
        bias = causal(attention_mask, inputs_embeds.shape[1])
        hidden, present = inputs_embeds, []
        for i, layer in enumerate(self.layers):
            hidden, k, v = layer(hidden, rotary, bias, (past[2 * i], past[2 * i + 1]))
            present += [k, v]
        return (self.lm_head(self.norm(hidden[:, -1])), *present)
