"""Settings of a fine-tuning run. The defaults take minutes on two cores; few of them are worth changing."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["lora", "decoder", "all"]
# By part; the encoder's own weights only move in mode 'all', and slowly: LayerScale is folded into them.
RATES: dict[Mode, dict[str, float]] = {
    "lora": {"connectors": 5e-4, "grounding": 2e-3, "lora": 1e-3},
    "decoder": {"connectors": 5e-4, "grounding": 2e-3, "decoder": 3e-4},
    "all": {"encoder": 1.5e-5, "connectors": 5e-4, "grounding": 2e-3, "decoder": 3e-4},
}


class FinetuneSettings(BaseModel):
    """What is trained, and for how long.

    mode: 'lora' trains connectors and LoRA matrices, 'decoder' connectors and the whole decoder, 'all' everything.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode = "lora"
    rank: int = Field(default=8, ge=1, le=256, description="Rank of the LoRA matrices; their scale is twice that.")
    encoder_layers: int = Field(
        default=0, ge=0, description="Last encoder layers with LoRA; those before are computed once a view (mode lora)."
    )
    steps: int | None = Field(default=None, ge=1, description="None: by the number of training images.")
    batch_size: int = Field(default=16, ge=1, description="Views a step.")
    answer_views: int = Field(
        default=4,
        ge=0,
        description="Views of a step whose answers are trained too: the decoder costs most. 0: the head alone.",
    )
    pool: int | None = Field(default=None, ge=8, description="Augmented views that are drawn; None: by the images.")
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    rate_factor: float = Field(default=1.0, gt=0, description="Multiplies every learning rate.")
    paste: float = Field(
        default=0.3, ge=0, le=1, description="Share of views of good parts that get a defect of another part."
    )
    validate_every: int = Field(default=40, ge=1)
    patience: int = Field(default=4, ge=1, description="Validations without a better score before training ends.")
    checkpoint_every: int = Field(default=40, ge=1)
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)

    def steps_for(self, images: int) -> int:
        """80 steps and 0.8 an image, at most 400."""
        return self.steps if self.steps is not None else min(400, 80 + round(0.8 * images))

    def pool_for(self, images: int) -> int:
        """Augmented views: three an image, at least 64 and at most 1,200."""
        return self.pool if self.pool is not None else min(1200, max(64, 3 * images))

    def sha256(self, *content: str) -> str:
        """Hash of everything that the result depends on; `content`: hashes of base model, data and recipe."""
        own = self.model_dump(mode="json", exclude={"threads", "checkpoint_every"})
        return hashlib.sha256(json.dumps([own, *content], sort_keys=True).encode()).hexdigest()
