"""Defects from the grounding head's evidence: peaks, boxes, and the answer tokens that say them.

The head (model.modeling.GroundingHead) tells for each of the 256 visual tokens whether a defect is centred there,
which one, and its box. Here the peaks become items of the answer grammar, so the places of an answer come from the
evidence and its verdict from the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from auroraedge.inspection.grammar import ParsedItem, quantise_box
from auroraedge.inspection.tokenizer import InspectionTokenizer

# Peaks below this are noise whatever the thresholds of a recipe.
_LEAST_CONFIDENCE = 0.05


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU [n] of a box [4] with boxes [n, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    return common / np.maximum((box[2:] - box[:2]).prod() + areas - common, 1e-12)


def evidence_items(
    evidence: np.ndarray,
    head_labels: Sequence[str],
    labels: Sequence[str],
    *,
    iou: float = 0.4,
    limit: int = 16,
) -> list[ParsedItem]:
    """The defects of one view, most confident first, at most `limit`.

    evidence [N, 1 + head labels + 4] of a square grid of N tokens (see GroundingHead); labels: those to report, all of
    them head labels. Confidence: P(defect) P(label | defect, labels). Overlapping peaks (IoU above `iou`) are one.
    """
    grid = round(evidence.shape[0] ** 0.5)
    objectness = 1.0 / (1.0 + np.exp(-np.clip(evidence[:, 0], -60, 60)))
    index = [list(head_labels).index(label) for label in labels]
    scores = evidence[:, 1:-4][:, index].astype(np.float64)
    scores = np.exp(scores - scores.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    confidence = objectness * scores.max(1)
    order = [int(i) for i in np.argsort(-confidence) if confidence[i] >= _LEAST_CONFIDENCE]
    if not order:
        return []
    place = (np.arange(grid) + 0.5) / grid
    cy, cx = (m.reshape(-1) for m in np.meshgrid(place, place, indexing="ij"))
    raw = evidence[:, -4:].astype(np.float64)
    mx, my = cx + raw[:, 0] / grid, cy + raw[:, 1] / grid
    w, h = (np.exp(np.clip(raw[:, 2:], -4, 4)) / grid).T
    boxes = np.clip(np.stack([mx - w / 2, my - h / 2, mx + w / 2, my + h / 2], 1), 0.0, 1.0)
    kept: list[int] = []
    for i in order:
        if len(kept) >= limit:
            break
        if not kept or _overlaps(boxes[i], boxes[kept]).max() <= iou:
            kept.append(i)
    items = []
    for i in kept:
        x1, y1, x2, y2 = (float(v) for v in boxes[i])
        if x2 > x1 and y2 > y1:
            items.append(ParsedItem(labels[int(scores[i].argmax())], (x1, y1, x2, y2), float(confidence[i])))
    return items


def mirrored_mean(evidence: np.ndarray) -> np.ndarray:
    """Mean over mirror images (inspection.views.mirror_images): [V, 4, N, 1 + labels + 4] -> [V, N, 1 + labels + 4].

    Each mirror image is turned back: its tokens, and the sign of the offset of a box's centre from its token.
    """
    views, copies, tokens, width = evidence.shape
    assert copies == 4
    grid = round(tokens**0.5)
    fields = evidence.astype(np.float32).reshape(views, copies, grid, grid, width).copy()
    fields[:, 1::2] = fields[:, 1::2, :, ::-1]
    fields[:, 1::2, ..., -4] *= -1
    fields[:, 2:] = fields[:, 2:, ::-1]
    fields[:, 2:, ..., -3] *= -1
    return fields.mean(axis=1).reshape(views, tokens, width)


def item_tokens(tokenizer: InspectionTokenizer, items: Sequence[ParsedItem]) -> list[int]:
    """The answer tokens of items: label and four location tokens each."""
    ids: list[int] = []
    for item in items:
        ids += tokenizer.label_ids(item.label)
        ids += [int(tokenizer.loc_ids[b]) for b in quantise_box(*item.box)]
    return ids
