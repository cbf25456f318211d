"""Configuration of AuroraEdge: a SigLIP2 vision configuration, a Qwen2 text configuration, and the connectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig, Qwen2Config, Siglip2VisionConfig

from auroraedge.config import PRESETS, ModelPreset


class AuroraEdgeConfig(PretrainedConfig):
    """Sizes of the encoder, the decoder and the connectors between them (arXiv 2601.16615).

    num_compressed: visual tokens that the decoder reads (64 in the paper), compressor_hidden: width M of its MLP over
    the token axis, fusion: 'combined' (cross-attention and decoder layers), 'cross' or 'none', fusion_layers: decoder
    layers of the combined fusion (1 in the paper). grounding_labels: the defects that the grounding head names; without
    any there is no such head (it is ours, not the paper's).

    compression: 'mlp', or 'none' for a decoder that reads all visual tokens, normalised (num_compressed is then their
    number). frames: views of one part that are read together, each with its own compressed tokens; frame_embedding:
    whether a learned vector tells them apart. All three are for experiments (docs/experiments.md).
    """

    model_type = "auroraedge"
    sub_configs = {"vision_config": Siglip2VisionConfig, "text_config": Qwen2Config}

    def __init__(
        self,
        vision_config: Siglip2VisionConfig | dict[str, Any] | None = None,
        text_config: Qwen2Config | dict[str, Any] | None = None,
        num_compressed: int = 64,
        compressor_hidden: int = 256,
        fusion: str = "combined",
        fusion_layers: int = 1,
        grounding_labels: Sequence[str] = (),
        preset: str = "",
        compression: str = "mlp",
        frames: int = 1,
        frame_embedding: bool = True,
        **kwargs: Any,
    ) -> None:
        if fusion not in ("combined", "cross", "none"):
            raise ValueError(f"fusion must be 'combined', 'cross' or 'none', not {fusion!r}")
        if compression not in ("mlp", "none"):
            raise ValueError(f"compression must be 'mlp' or 'none', not {compression!r}")
        if frames < 1:
            raise ValueError(f"frames must be 1 or more, not {frames}")
        if isinstance(vision_config, dict):
            vision_config = Siglip2VisionConfig(**vision_config)
        if isinstance(text_config, dict):
            text_config = Qwen2Config(**text_config)
        self.vision_config = vision_config or Siglip2VisionConfig(vision_use_head=False)
        self.text_config = text_config or Qwen2Config()
        if compression == "none" and num_compressed != self.vision_config.num_patches:
            raise ValueError(
                f"without compression the decoder reads {self.vision_config.num_patches} tokens, not {num_compressed}"
            )
        self.num_compressed = num_compressed
        self.compressor_hidden = compressor_hidden
        self.fusion = fusion
        self.fusion_layers = fusion_layers
        self.grounding_labels = list(grounding_labels)
        self.preset = preset
        self.compression = compression
        self.frames = frames
        self.frame_embedding = frame_embedding
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @classmethod
    def from_preset(cls, preset: str | ModelPreset, **overrides: Any) -> AuroraEdgeConfig:
        """The configuration of a preset ('nano', '2b') with overrides of the connector fields or the vocab_size."""
        p = PRESETS[preset] if isinstance(preset, str) else preset
        vision = Siglip2VisionConfig(
            hidden_size=p.vision_hidden,
            num_hidden_layers=p.vision_layers,
            num_attention_heads=p.vision_heads,
            intermediate_size=p.vision_intermediate,
            num_patches=p.num_patches,
            patch_size=p.patch_size,
            vision_use_head=False,
        )
        text = Qwen2Config(
            vocab_size=overrides.pop("vocab_size", p.vocab_size),
            hidden_size=p.text_hidden,
            num_hidden_layers=p.text_layers,
            num_attention_heads=p.text_heads,
            num_key_value_heads=p.text_kv_heads,
            head_dim=p.text_head_dim,
            intermediate_size=p.text_intermediate,
            max_position_embeddings=32_768 if p.name == "2b" else 1024,
            rope_parameters={"rope_type": "default", "rope_theta": p.rope_theta},
            tie_word_embeddings=p.tie_embeddings,
            bos_token_id=None,
            eos_token_id=overrides.pop("eos_token_id", None),
            pad_token_id=overrides.pop("pad_token_id", None),
        )
        fields = {
            "num_compressed": p.num_compressed,
            "compressor_hidden": p.compressor_hidden,
            "fusion": p.fusion,
            "fusion_layers": p.fusion_layers,
            "preset": p.name,
        }
        return cls(vision_config=vision, text_config=text, **{**fields, **overrides})
