"""Named model presets. Few knobs: a preset plus overrides; derived values are properties.

Dimension legend used through the project:
    B batch (views), N visual patches (<= 256), C compressed tokens (64), t prompt tokens, S sequence, D decoder width,
    E encoder width, H attention heads, K key/value heads, L layers, P pixels of one patch (16 * 16 * 3 = 768)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FusionKind = Literal["combined", "cross", "none"]

LOCATION_BINS = 128
IMAGE_SIZE = 256
PATCH_SIZE = 16
GRID = IMAGE_SIZE // PATCH_SIZE


@dataclass(frozen=True, kw_only=True)
class ModelPreset:
    """Sizes of one AuroraEdge model. `2b` follows arXiv 2601.16615 (SigLIP2-so400m-patch16-naflex, Qwen2.5-1.5B)."""

    name: str
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int
    text_hidden: int
    text_layers: int
    text_heads: int
    text_kv_heads: int
    text_head_dim: int
    text_intermediate: int
    vocab_size: int
    rope_theta: float
    tie_embeddings: bool = True
    patch_size: int = PATCH_SIZE
    num_patches: int = GRID * GRID
    num_compressed: int = 64
    compressor_hidden: int = 256
    fusion: FusionKind = "combined"
    fusion_layers: int = 1

    @property
    def patch_pixels(self) -> int:
        """Values of one flattened RGB patch (the paper's P[B, 256, 768])."""
        return self.patch_size * self.patch_size * 3


PRESETS: dict[str, ModelPreset] = {
    "nano": ModelPreset(
        name="nano",
        vision_hidden=384,
        vision_layers=6,
        vision_heads=6,
        vision_intermediate=1536,
        text_hidden=256,
        text_layers=4,
        text_heads=4,
        text_kv_heads=2,
        text_head_dim=64,
        text_intermediate=768,
        vocab_size=1024,
        rope_theta=10_000.0,
    ),
    "2b": ModelPreset(
        name="2b",
        vision_hidden=1152,
        vision_layers=27,
        vision_heads=16,
        vision_intermediate=4304,
        text_hidden=1536,
        text_layers=28,
        text_heads=12,
        text_kv_heads=2,
        text_head_dim=128,
        text_intermediate=8960,
        vocab_size=151_936,
        rope_theta=1_000_000.0,
    ),
}
