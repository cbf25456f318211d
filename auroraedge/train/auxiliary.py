"""Dense auxiliary supervision, used in training alone.

The token loss says little about places: a few location tokens an image. These heads ask every visual token V and every
compressed token C which defect is centred there, so that the encoder learns to localise within the first hundreds of
steps and the compressed tokens keep what the decoder must report. FCOS-style (arXiv 1904.01355): focal objectness,
class, and box distances with a GIoU loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from auroraedge.data.instructions import Sample


class DenseHead(nn.Module):
    """Per token of a grid: objectness, classes, box (centre offset in cells and log size), from tokens [B, n, D]."""

    def __init__(self, width: int, classes: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.out = nn.Linear(width, 1 + classes + 4)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)
        self.out.bias.data[0] = -4.0  # most tokens hold nothing

    def forward(self, tokens_BnD: torch.Tensor) -> torch.Tensor:
        return self.out(self.mlp(tokens_BnD)).float()


def dense_targets(
    samples: Sequence[Sample], class_index: dict[str, int], grid: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(class [B, n] with -1 for background and -2 for ignored, box [B, n, 4] in 0..1, weight [B, n]), n = grid**2.

    A token is positive when its centre lies in the central half of a box or when the box centre lies in its cell; the
    smallest box wins. Tokens in the rest of a box are ignored.
    """
    b, n = len(samples), grid * grid
    classes = torch.full((b, n), -1, dtype=torch.long)
    boxes = torch.zeros(b, n, 4)
    area = torch.full((b, n), 9.0)
    centre = (torch.arange(grid) + 0.5) / grid
    cy, cx = (m.reshape(-1) for m in torch.meshgrid(centre, centre, indexing="ij"))
    for i, sample in enumerate(samples):
        for target in sample.targets:
            x1, y1, x2, y2 = target.box
            mx, my, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
            inside = (cx > x1) & (cx < x2) & (cy > y1) & (cy < y2)
            core = ((cx - mx).abs() < w / 4) & ((cy - my).abs() < h / 4)
            cell = min(int(my * grid), grid - 1) * grid + min(int(mx * grid), grid - 1)
            core[cell] = True
            smaller = w * h < area[i]
            ignored = inside & ~core & (classes[i] == -1)
            classes[i][ignored] = -2
            chosen = core & smaller
            classes[i][chosen] = class_index[target.label]
            boxes[i][chosen] = torch.tensor([x1, y1, x2, y2])
            area[i][chosen] = w * h
    return classes, boxes, area


def decode_boxes(raw_Bn4: torch.Tensor, grid: int) -> torch.Tensor:
    """Boxes [B, n, 4] in 0..1 from centre offsets (cells) and log sizes (cells)."""
    centre = (torch.arange(grid, device=raw_Bn4.device) + 0.5) / grid
    cy, cx = (m.reshape(-1) for m in torch.meshgrid(centre, centre, indexing="ij"))
    mx, my = cx + raw_Bn4[..., 0] / grid, cy + raw_Bn4[..., 1] / grid
    w, h = (raw_Bn4[..., 2:].clamp(-4, 4).exp() / grid).unbind(-1)
    return torch.stack([mx - w / 2, my - h / 2, mx + w / 2, my + h / 2], -1)


def giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of boxes [m, 4] pairwise by row (arXiv 1902.09630)."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    union = area_a + area_b - common
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    return common / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


def dense_loss(
    raw_BnK: torch.Tensor, classes_Bn: torch.Tensor, boxes_Bn4: torch.Tensor, grid: int
) -> dict[str, torch.Tensor]:
    """Focal objectness (alpha 0.25 -> 0.5, gamma 2), cross-entropy of the class, GIoU + L1 of the box, per positive."""
    counted, positive = classes_Bn != -2, classes_Bn >= 0
    total = positive.sum().clamp(min=1)
    logit = raw_BnK[..., 0]
    truth = positive.float()
    p = torch.sigmoid(logit)
    focal = (p * (1 - truth) + (1 - p) * truth) ** 2
    entropy = F.binary_cross_entropy_with_logits(logit, truth, reduction="none")
    objectness = (focal * entropy * counted).sum() / total
    if not positive.any():
        zero = raw_BnK.sum() * 0
        return {"object": objectness, "class": zero, "box": zero}
    found = raw_BnK[positive]
    boxes = decode_boxes(raw_BnK[..., -4:], grid)[positive]
    truth_boxes = boxes_Bn4[positive]
    return {
        "object": objectness,
        "class": F.cross_entropy(found[:, 1:-4], classes_Bn[positive]),
        "box": (1 - giou(boxes, truth_boxes)).mean() + 5 * (boxes - truth_boxes).abs().mean(),
    }


class TokenHead(nn.Module):
    """Reads label and coordinates of a block's defect off its compressed token, through the decoder's embedding table.

    Five linear maps of the normalised token (label, x1, y1, x2, y2), scored against the table. What this teaches C to
    hold, the decoder can copy with one attention head each: it only has to find the next defect, not to decode it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.maps = nn.Linear(width, 5 * width, bias=False)

    def forward(self, tokens_mD: torch.Tensor, table_vD: torch.Tensor) -> torch.Tensor:
        """Logits [m, 5, vocab] float32 of m compressed tokens."""
        mapped_m5D = self.maps(self.norm(tokens_mD.float())).unflatten(-1, (5, -1))
        return mapped_m5D @ table_vD.float().T


def presence_loss(logits_BK: torch.Tensor, samples: Sequence[Sample], class_index: dict[str, int]) -> torch.Tensor:
    """Binary cross-entropy of what is on each view: the labels of its recipe, and last whether anything is."""
    truth = torch.full_like(logits_BK, -1.0)
    for i, sample in enumerate(samples):
        there = {target.label for target in sample.targets} | {sample.image_class}
        for label in sample.labels:
            truth[i, class_index[label]] = float(label in there)
        truth[i, -1] = float(sample.defective)
    known = truth >= 0
    return F.binary_cross_entropy_with_logits(logits_BK[known], truth[known])


def token_head_loss(
    logits_m5v: torch.Tensor,
    classes_m: torch.Tensor,
    boxes_m4: torch.Tensor,
    label_ids: torch.Tensor,
    loc_ids: torch.Tensor,
    soft_targets_vv: torch.Tensor,
) -> torch.Tensor:
    """Mean cross-entropy of the five tokens of each positive block; locations against soft targets."""
    last = len(loc_ids) - 1
    bins = (boxes_m4 * last).round().long().clamp(0, last)
    truth_m5 = torch.cat([label_ids[classes_m][:, None], loc_ids[bins]], dim=1)
    return -(soft_targets_vv[truth_m5] * F.log_softmax(logits_m5v, -1)).sum(-1).mean()
