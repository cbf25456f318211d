"""The counts of auroraedge.model.flops as tables for people and JSON for programs."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from auroraedge.model.flops import Vlm, auroraedge_shape, peers, reconcile, uncompressed_shape, without_fusion

_PARTS = ("encoder", "projector", "compressor", "fusion", "prefill", "generation")


def _models(preset: str) -> list[Vlm]:
    own = [auroraedge_shape(preset), without_fusion(preset), uncompressed_shape(preset)]
    return own + (peers() if preset == "2b" else [])


def flops_tables(preset: str, *, text: int, new: int) -> list[Table]:
    """Operations by part and model, and the published reductions under every way of counting."""
    counts = Table(title=f"GFLOPs of one answer: a 256 x 256 frame, {text} prompt tokens, {new} generated")
    for column in ("model", *_PARTS, "total", "first token"):
        counts.add_column(column, justify="left" if column == "model" else "right")
    for model in _models(preset):
        parts = model.count(text=text, new=new)
        total = sum(parts.values())
        cells = [f"{parts[name] / 1e9:.1f}" if name in parts else "-" for name in _PARTS]
        counts.add_row(model.name, *cells, f"{total / 1e9:.1f}", f"{(total - parts['generation']) / 1e9:.1f}")
    claims = Table(title="Operations that compression removes, against the uncompressed baseline")
    for column in ("what is counted", "removed", "more than half", "84 %", "nearly 90 %"):
        claims.add_column(column, justify="left" if column == "what is counted" else "right")
    found = reconcile(preset, text=text, new=new)
    for counting in dict.fromkeys(claim.counting for claim in found):
        own = {claim.claim: claim for claim in found if claim.counting == counting}
        marks = ["true" if own[name].holds else "no" for name in ("half", "84 %", "90 %")]
        claims.add_row(counting, f"{100 * own['half'].share:.1f} %", *marks)
    claims.caption = "A figure counts as true within five points; 'more than half' from 50 % on."
    return [counts, claims]


def flops_json(preset: str, *, text: int, new: int) -> dict[str, Any]:
    """The same in operations."""
    return {
        "preset": preset,
        "text": text,
        "new": new,
        "models": {model.name: model.count(text=text, new=new) for model in _models(preset)},
        "claims": [
            {"claim": c.claim, "counting": c.counting, "removed": c.share, "holds": c.holds}
            for c in reconcile(preset, text=text, new=new)
        ],
    }
