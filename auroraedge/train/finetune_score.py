"""The score that stops a fine-tuning run: how well val is told apart and located, without any threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from auroraedge.data.pack import Truth
from auroraedge.inspection.grounding import evidence_items
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Box, Defect
from auroraedge.inspection.views import merge_defects
from auroraedge.train.finetune_data import HeldOut

MATCH_IOU = 0.33


def roc_auc(defective: np.ndarray, score: np.ndarray) -> float:
    """P(a defective image scores above a good one), ties half; nan with one kind only."""
    bad, good = score[defective], score[~defective]
    if not len(bad) or not len(good):
        return float("nan")
    return float((np.sign(bad[:, None] - good[None, :]) * 0.5 + 0.5).mean())


def best_f(confidence: np.ndarray, hit: np.ndarray, boxes: int) -> float:
    """The best F-score over all thresholds on the confidence [n] of boxes that hit or not, of `boxes` true ones."""
    if not len(confidence) or not boxes:
        return 0.0
    order = np.argsort(-confidence, kind="stable")
    return float((2 * np.cumsum(hit[order]) / (np.arange(1, len(order) + 1) + boxes)).max())


def _hits(defects: Sequence[Defect], held: HeldOut, *, labelled: bool) -> list[bool]:
    free = [(o.label, Box(x1=o.bbox[0], y1=o.bbox[1], x2=o.bbox[2], y2=o.bbox[3])) for o in held.item.objects]
    hits = []
    for defect in defects:
        assert defect.box is not None
        options = [
            (defect.box.iou(box), i) for i, (label, box) in enumerate(free) if label == defect.label or not labelled
        ]
        overlap, index = max(options, default=(0.0, -1))
        hits.append(overlap > MATCH_IOU)
        if hits[-1]:
            free.pop(index)
    return hits


def image_results(
    held: Sequence[HeldOut],
    evidence: Sequence[np.ndarray],
    presence: Sequence[np.ndarray],
    recipe: Recipe,
    head_labels: Sequence[str],
) -> list[dict[str, Any]]:
    """What the grounding head says of each image: `score` of being defective (strongest evidence and presence together,
    log-odds), and `confidence`, `hits` and `places` (label ignored) of its boxes, the most confident first.

    evidence [views, N, 1 + labels + 4] and presence [views, labels + 1] of each item.
    """
    found = []
    for h, per_view, there in zip(held, evidence, presence, strict=True):
        score = float(there[:, -1].max())
        merged: list[Defect] = []
        if recipe.task == "inspect":
            score += float(per_view[..., 0].max())
            defects = [
                Defect(
                    label=part.label,
                    severity=recipe.label(part.label).severity,
                    box=view.to_source(part.box, h.item.width, h.item.height),
                    confidence=part.confidence,
                )
                for view, row in zip(h.views, per_view, strict=True)
                for part in evidence_items(
                    row, head_labels, recipe.label_names, iou=recipe.merge_iou, limit=recipe.max_defects_per_view
                )
            ]
            merged = sorted(merge_defects(defects, recipe.merge_iou), key=lambda d: -d.confidence)
        found.append(
            {
                "defective": h.item.truth is Truth.DEFECTIVE,
                "score": score,
                "boxes": len(h.item.objects),
                "confidence": [d.confidence for d in merged],
                "hits": _hits(merged, h, labelled=True),
                "places": _hits(merged, h, labelled=False),
            }
        )
    return found


def score_held_out(
    held: Sequence[HeldOut],
    evidence: Sequence[np.ndarray],
    presence: Sequence[np.ndarray],
    verdict: Sequence[np.ndarray],
    recipe: Recipe,
    head_labels: Sequence[str],
) -> dict[str, float]:
    """Scores of val, and their mean as `score`.

    evidence [views, N, 1 + labels + 4], presence [views, labels + 1] and verdict (log-odds of NG) [views] of each item.
    `auc`: of the head's evidence and presence together; `auc_verdict`: of the verdict token; `f`: best F-score of boxes
    over thresholds (IoU > 0.33, right label); `macro_f1`: of the classes, by presence. One without a truth is absent.
    """
    results = image_results(held, evidence, presence, recipe, head_labels)
    judged = np.array([h.item.truth is not Truth.PRESUMED_GOOD for h in held])
    defective = np.array([r["defective"] for r in results])
    score = np.array([r["score"] for r in results])
    token = np.array([v.max() for v in verdict])
    found = {
        "auc": roc_auc(defective[judged], score[judged]),
        "auc_verdict": roc_auc(defective[judged], token[judged]),
    }
    index = [list(head_labels).index(label) for label in recipe.label_names]
    boxes = sum(r["boxes"] for r in results)
    if recipe.task == "inspect" and boxes:
        confidence = np.array([c for r in results for c in r["confidence"]])
        found["f"] = best_f(confidence, np.array([hit for r in results for hit in r["hits"]], dtype=float), boxes)
    if recipe.task == "classify" and len(recipe.labels) > 1:
        named = [recipe.label_names[int(p[:, index].max(0).argmax())] for p in presence]
        truth = [h.item.image_label for h in held]
        scores = []
        for label in recipe.label_names:
            right = sum(t == n == label for t, n, bad in zip(truth, named, defective, strict=True) if bad)
            asked = sum((t == label) + (n == label) for t, n, bad in zip(truth, named, defective, strict=True) if bad)
            if asked:
                scores.append(2 * right / asked)
        found["macro_f1"] = float(np.mean(scores)) if scores else 0.0
    known = {name: value for name, value in found.items() if np.isfinite(value)}
    return {**known, "score": float(np.mean(list(known.values()))) if known else 0.0}
