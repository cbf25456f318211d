"""Images and prompts to model inputs, for training and for transformers. The runtime has its own torch-free path.

Both go through inspection.views, so that a view is the same pixels on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from auroraedge.config import GRID, PATCH_SIZE
from auroraedge.inspection import views
from auroraedge.inspection.tokenizer import InspectionTokenizer


def naflex_grid(width: int, height: int, max_patches: int = GRID * GRID) -> tuple[int, int]:
    """(rows, columns) of 16-pixel patches nearest the image's aspect ratio with at most `max_patches` patches.

    Same search as transformers' Siglip2 image processor: the largest scale whose rounded-up grid still fits.
    """
    low, high = 1e-6, 100.0
    while high - low > 1e-5:
        scale = (low + high) / 2
        rows, columns = (max(1, int(np.ceil(side * scale / PATCH_SIZE))) for side in (height, width))
        if rows * columns <= max_patches:
            low = scale
        else:
            high = scale
    return tuple(max(1, int(np.ceil(side * low / PATCH_SIZE))) for side in (height, width))  # type: ignore[return-value]


class AuroraEdgeProcessor:
    """Makes the inputs of AuroraEdgeForConditionalGeneration.

    naflex: keep the aspect ratio (a grid of at most 256 patches, padded and masked) instead of stretching to 256x256.
    nano is trained on square views.
    """

    def __init__(self, tokenizer: InspectionTokenizer, *, naflex: bool = False) -> None:
        self.tokenizer = tokenizer
        self.naflex = naflex

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs: Any) -> AuroraEdgeProcessor:
        return cls(InspectionTokenizer.load(path), **kwargs)

    def images(self, images: Sequence[np.ndarray], references: Sequence[np.ndarray | None] | None = None) -> dict:
        """pixel_values [B, 256, 768] float32 in -1..1, pixel_attention_mask [B, 256], spatial_shapes [B, 2]."""
        goldens = references or [None] * len(images)
        patches = np.zeros((len(images), GRID * GRID, PATCH_SIZE * PATCH_SIZE * 3), dtype=np.float32)
        mask = np.zeros((len(images), GRID * GRID), dtype=np.int64)
        shapes = np.zeros((len(images), 2), dtype=np.int64)
        for i, (image, golden) in enumerate(zip(images, goldens, strict=True)):
            pixels = image if golden is None else views.composite(image, golden)
            height, width = pixels.shape[:2]
            rows, columns = naflex_grid(width, height) if self.naflex else (GRID, GRID)
            if self.naflex:
                resized = cv2.resize(pixels, (columns * PATCH_SIZE, rows * PATCH_SIZE), interpolation=cv2.INTER_AREA)
            else:
                resized = views.resize_view(pixels)
            split = resized.reshape(rows, PATCH_SIZE, columns, PATCH_SIZE, 3).transpose(0, 2, 1, 3, 4)
            patches[i, : rows * columns] = split.reshape(rows * columns, -1) / 127.5 - 1.0
            mask[i, : rows * columns] = 1
            shapes[i] = rows, columns
        return {
            "pixel_values": torch.from_numpy(patches),
            "pixel_attention_mask": torch.from_numpy(mask),
            "spatial_shapes": torch.from_numpy(shapes),
        }

    def prompts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask [B, t] int64, padded on the left."""
        rows = [self.tokenizer.encode(text) for text in texts]
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :] = torch.tensor(row)
            mask[i, longest - len(row) :] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def __call__(
        self,
        images: Sequence[np.ndarray],
        prompts: Sequence[str],
        references: Sequence[np.ndarray | None] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Images uint8 RGB [H, W, 3], one prompt an image, optional golden references of the same sizes."""
        return {**self.images(images, references), **self.prompts(prompts)}
