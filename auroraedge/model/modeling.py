"""The AuroraEdge model (arXiv 2601.16615).

    patches P -> SigLIP2-NaFlex encoder -> projector -> visual tokens V [B, N, D]
                                                          |-> compressor -> C [B, 64, D]
    prompt T [B, t, D] -> fusion: T attends to all N of V, then decoder layers -> F [B, t, D]
    [C ; F] -> Qwen2 decoder -> answer

The fusion reads V, the decoder reads C. Only the prompt's tokens are fused: generated tokens use the plain embedding
table, so the decoder stays a stock Qwen2ForCausalLM.

Suffixes: B views, N patches, C compressed tokens, t prompt tokens, a answer tokens, S = C + t + a, D width, E encoder
width, H heads, d head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2ForCausalLM, Siglip2VisionModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding

from auroraedge import ops
from auroraedge.model.configuration import AuroraEdgeConfig


class Projector(nn.Module):
    """Two-layer MLP from encoder width E to decoder width D, token by token."""

    def __init__(self, config: AuroraEdgeConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.fc1 = nn.Linear(config.vision_config.hidden_size, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, features_BNE: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(features_BNE), approximate="tanh"))


class Compressor(nn.Module):
    """RMSNorm and an MLP over the token axis: N visual tokens become C. See ops.compress_reference."""

    def __init__(self, config: AuroraEdgeConfig) -> None:
        super().__init__()
        self.patches = config.vision_config.num_patches
        self.tokens = config.num_compressed
        self.hidden = config.compressor_hidden
        self.norm = Qwen2RMSNorm(config.text_config.hidden_size, eps=config.text_config.rms_norm_eps)
        self.w1 = nn.Parameter(torch.empty(self.hidden, self.patches))
        self.b1 = nn.Parameter(torch.empty(self.hidden))
        self.w2 = nn.Parameter(torch.empty(self.tokens, self.hidden))
        self.b2 = nn.Parameter(torch.empty(self.tokens))

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        """Starts as an exact average pool over blocks of neighbouring patches, where the sizes allow it.

        gelu(x) - gelu(-x) = x (also for the tanh form), so the pairs (+p, -p) of W1 with (+1, -1) of W2 are linear.
        Each compressed token then begins with a place of its own; the other hidden units start without effect.
        """
        nn.init.normal_(self.w1, std=std)
        nn.init.normal_(self.w2, std=std)
        nn.init.zeros_(self.b1)
        nn.init.zeros_(self.b2)
        pool = block_pool(self.patches, self.tokens)
        if pool is None or 2 * self.tokens > self.hidden:
            return
        c = self.tokens
        self.w1[:c], self.w1[c : 2 * c] = pool, -pool
        self.w2.zero_()
        self.w2[:, :c], self.w2[:, c : 2 * c] = torch.eye(c), -torch.eye(c)

    def forward(self, visual_BND: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        return ops.compress(visual_BND, mask_BN, norm.weight, norm.variance_epsilon, self.w1, self.b1, self.w2, self.b2)


class Uncompressed(nn.Module):
    """In the compressor's place: the decoder reads all N visual tokens, normalised as the compressor's input is."""

    def __init__(self, config: AuroraEdgeConfig) -> None:
        super().__init__()
        self.norm = Qwen2RMSNorm(config.text_config.hidden_size, eps=config.text_config.rms_norm_eps)

    def forward(self, visual_BND: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
        return self.norm(visual_BND) * mask_BN[..., None].to(visual_BND.dtype)


def block_pool(patches: int, tokens: int) -> torch.Tensor | None:
    """[tokens, patches] average over equal blocks of a square grid, or None when the sizes do not divide."""
    side = round(patches**0.5)
    rows = 1 << ((tokens.bit_length() - 1) // 2)
    columns = tokens // rows
    if side * side != patches or rows * columns != tokens or side % rows or side % columns:
        return None
    row_of, column_of = torch.arange(side) // (side // rows), torch.arange(side) // (side // columns)
    block = (row_of[:, None] * columns + column_of[None, :]).reshape(-1)
    return nn.functional.one_hot(block, tokens).T.float() * (tokens / patches)


class CrossAttention(nn.Module):
    """Prompt tokens attend to the uncompressed visual tokens; pre-norm on both sides, residual on the prompt's."""

    def __init__(self, config: AuroraEdgeConfig) -> None:
        super().__init__()
        text = config.text_config
        self.heads = text.num_attention_heads
        self.text_norm = Qwen2RMSNorm(text.hidden_size, eps=text.rms_norm_eps)
        self.visual_norm = Qwen2RMSNorm(text.hidden_size, eps=text.rms_norm_eps)
        self.q_proj = nn.Linear(text.hidden_size, text.hidden_size)
        self.k_proj = nn.Linear(text.hidden_size, text.hidden_size)
        self.v_proj = nn.Linear(text.hidden_size, text.hidden_size)
        self.o_proj = nn.Linear(text.hidden_size, text.hidden_size, bias=False)

    def _split(self, x_BnD: torch.Tensor) -> torch.Tensor:
        return x_BnD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, text_BtD: torch.Tensor, visual_BND: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
        visual = self.visual_norm(visual_BND)
        attended_BHtd = ops.fusion_attention(
            self._split(self.q_proj(self.text_norm(text_BtD))),
            self._split(self.k_proj(visual)),
            self._split(self.v_proj(visual)),
            mask_BN,
        )
        return text_BtD + self.o_proj(attended_BHtd.transpose(1, 2).flatten(2))


class Fusion(nn.Module):
    """Writes visual evidence into the prompt's tokens: T -> F.

    'combined': cross-attention and then Qwen2 decoder layers over the prompt (causal); 'cross': the former only;
    'none': the prompt unchanged, as in a plain compressed model.
    """

    def __init__(self, config: AuroraEdgeConfig) -> None:
        super().__init__()
        layers = config.fusion_layers if config.fusion == "combined" else 0
        self.cross = CrossAttention(config) if config.fusion != "none" else None
        # The index picks a layer's kind of attention, of which the decoder has no more entries than layers.
        last = config.text_config.num_hidden_layers - 1
        self.layers = nn.ModuleList(
            Qwen2DecoderLayer(config.text_config, layer_idx=min(i, last)) for i in range(layers)
        )
        self.rotary = Qwen2RotaryEmbedding(config=config.text_config) if layers else None

    def forward(
        self,
        text_BtD: torch.Tensor,
        visual_BND: torch.Tensor,
        patch_mask_BN: torch.Tensor,
        text_mask_Bt: torch.Tensor,
        seen_Btt: torch.Tensor | None = None,
        position_Bt: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """text_mask: 1 real, 0 padded (left or right). The output at padded places has no meaning.

        seen: which place [B, t, t] a place attends to (1 or 0, never none), with its position, where several prompts
        stand in one row; without it, the row is one causal prompt.
        """
        if self.cross is None:
            return text_BtD
        fused = self.cross(text_BtD, visual_BND, patch_mask_BN)
        if self.rotary is None:
            return fused
        if seen_Btt is None:
            t = fused.shape[1]
            causal_tt = torch.ones(t, t, dtype=fused.dtype, device=fused.device).tril()
            # A padded row may see itself: a row without any place to look would be NaN.
            seen_Btt = causal_tt * text_mask_Bt[:, None, :].to(fused.dtype)
            seen_Btt = torch.maximum(seen_Btt, torch.eye(t, dtype=fused.dtype, device=fused.device))
        bias_B1tt = ((1.0 - seen_Btt) * torch.finfo(torch.float16).min)[:, None]
        if position_Bt is None:
            position_Bt = (text_mask_Bt.long().cumsum(-1) - 1).clamp(min=0)
        rotary = self.rotary(fused, position_Bt)
        for layer in self.layers:
            fused = layer(fused, attention_mask=bias_B1tt, position_ids=position_Bt, position_embeddings=rotary)
        return fused


class GroundingHead(nn.Module):
    """Where on the view which defect is: evidence that the answer's places are taken from. Ours, not the paper's.

    evidence [B, N, 1 + labels + 4]: per visual token the logit that a defect is centred there, its label logits, and
    its box (centre offset in cells, log of the size in cells; FCOS-like, arXiv 1904.01355). presence [B, labels + 1]:
    logits that each label is on the view, and last that anything is.
    """

    def __init__(self, config: AuroraEdgeConfig) -> None:
        super().__init__()
        width, labels = config.text_config.hidden_size, len(config.grounding_labels)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(approximate="tanh"))
        self.out = nn.Linear(width, 1 + labels + 4)
        self.pool_norm = nn.LayerNorm(2 * width)
        self.pool = nn.Linear(2 * width, labels + 1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)
        self.out.bias[0] = -4.0  # most tokens hold nothing

    def forward(self, visual_BND: torch.Tensor, mask_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = mask_BN[..., None].to(visual_BND.dtype)
        mean_BD = (visual_BND * mask).sum(1) / mask.sum(1)
        peak_BD = (visual_BND + (mask - 1.0) * 1e4).amax(1)
        return self.out(self.mlp(visual_BND)), self.pool(self.pool_norm(torch.cat([mean_BD, peak_BD], -1)))


class AuroraEdgeForConditionalGeneration(PreTrainedModel):
    """Encoder, connectors and decoder. `forward` trains and scores, `generate` answers."""

    config: AuroraEdgeConfig
    config_class = AuroraEdgeConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _tied_weights_keys = {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}

    def __init__(self, config: AuroraEdgeConfig) -> None:
        super().__init__(config)
        self.vision_model = Siglip2VisionModel(config.vision_config)
        self.projector = Projector(config)
        self.compressor = Compressor(config) if config.compression == "mlp" else Uncompressed(config)
        self.fusion = Fusion(config)
        self.language_model = Qwen2ForCausalLM(config.text_config)
        self.grounding = GroundingHead(config) if config.grounding_labels else None
        told_apart = config.frames > 1 and config.frame_embedding
        self.frame_embedding = nn.Embedding(config.frames, config.text_config.hidden_size) if told_apart else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Compressor):
            module.reset_parameters(self.config.text_config.initializer_range)
        elif isinstance(module, GroundingHead):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def encode(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What depends on the frame alone: (V [B, N, D], C [B, 64, D], mask [B, N]).

        pixel_values [B, N, 768] in -1..1, mask [B, N] (1 real, 0 padded), spatial_shapes [B, 2] (rows, columns of
        patches). Without mask and shapes the views are full square grids. A model of several frames takes B * frames
        views, those of one part one after the other, and returns their tokens side by side: see `connect`.
        """
        batch, patches = pixel_values.shape[:2]
        if pixel_attention_mask is None:
            pixel_attention_mask = pixel_values.new_ones(batch, patches)
        if spatial_shapes is None:
            side = round(patches**0.5)
            spatial_shapes = torch.full((batch, 2), side, device=pixel_values.device)
        features_BNE = self.vision_model(
            pixel_values=pixel_values, pixel_attention_mask=pixel_attention_mask.long(), spatial_shapes=spatial_shapes
        ).last_hidden_state
        return self.connect(features_BNE, pixel_attention_mask)

    def connect(
        self, features_BNE: torch.Tensor, mask_BN: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """V, C and mask of what the encoder sees.

        With several frames the views [B * frames, N, E] become V [B, frames * N, D] and C [B, frames * C, D], and the
        embedding of the frame is added to both.
        """
        visual_BND = self.projector(features_BNE)
        compressed_BCD = self.compressor(visual_BND, mask_BN)
        frames = self.config.frames
        if frames == 1:
            return visual_BND, compressed_BCD, mask_BN
        visual, compressed = (x.unflatten(0, (-1, frames)) for x in (visual_BND, compressed_BCD))
        if self.frame_embedding is not None:
            which_F1D = self.frame_embedding.weight[:, None]
            visual, compressed = visual + which_F1D, compressed + which_F1D
        return visual.flatten(1, 2), compressed.flatten(1, 2), mask_BN.unflatten(0, (-1, frames)).flatten(1, 2)

    def fuse(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, visual_BND: torch.Tensor, patch_mask: torch.Tensor
    ) -> torch.Tensor:
        """F [B, t, D] of the prompt's ids [B, t]."""
        return self.fusion(self.get_input_embeddings()(input_ids), visual_BND, patch_mask, attention_mask)

    def decoder_inputs(
        self,
        compressed_BCD: torch.Tensor,
        fused_BtD: torch.Tensor,
        attention_mask_Bt: torch.Tensor,
        answer_ids: torch.Tensor | None = None,
        answer_mask: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """[C ; F ; answer] with its mask and positions; padding anywhere is skipped by the positions."""
        parts = [compressed_BCD, fused_BtD]
        masks = [attention_mask_Bt.new_ones(compressed_BCD.shape[:2]), attention_mask_Bt]
        if answer_ids is not None:
            parts.append(self.get_input_embeddings()(answer_ids))
            masks.append(torch.ones_like(answer_ids) if answer_mask is None else answer_mask)
        mask = torch.cat([m.long() for m in masks], dim=1)
        return {
            "inputs_embeds": torch.cat([p.to(fused_BtD.dtype) for p in parts], dim=1),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        }

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        answer_ids: torch.Tensor | None = None,
        answer_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, 1 + a, vocab]: position 0 predicts the first answer token (the verdict), i the one after answer i.

        input_ids and attention_mask [B, t]: the prompt, padded on the left. answer_ids and answer_mask [B, a]: the
        answer so far, padded on the right. labels [B, 1 + a]: -100 is ignored.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        visual, compressed, patch_mask = self.encode(pixel_values, pixel_attention_mask, spatial_shapes)
        fused = self.fuse(input_ids, attention_mask, visual, patch_mask)
        inputs = self.decoder_inputs(compressed, fused, attention_mask, answer_ids, answer_mask)
        answer_length = 0 if answer_ids is None else answer_ids.shape[1]
        output = self.language_model(**inputs, use_cache=False, logits_to_keep=answer_length + 1)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(output.logits.float().flatten(0, 1), labels.flatten())
        return CausalLMOutputWithPast(loss=loss, logits=output.logits)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer ids [B, new] through Qwen2's own `generate` from input embeddings. Pad the prompt on the left.

        With padding the compressed tokens stand before it; mask and positions make the result that of the row alone.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        visual, compressed, patch_mask = self.encode(pixel_values, pixel_attention_mask, spatial_shapes)
        fused = self.fuse(input_ids, attention_mask, visual, patch_mask)
        inputs = self.decoder_inputs(compressed, fused, attention_mask)
        inputs.pop("position_ids")  # transformers derives them from the mask, for every step
        return self.language_model.generate(**inputs, **kwargs)


def parameter_counts(model: AuroraEdgeForConditionalGeneration) -> dict[str, int]:
    """Parameters per part; a tied LM head counts once, under the decoder."""
    parts = ["vision_model", "projector", "compressor", "fusion", "language_model"]
    parts += [part for part in ("grounding", "frame_embedding") if getattr(model, part) is not None]
    counts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in parts}
    return {**counts, "total": sum(counts.values())}
