"""Parameters per part, beside what the paper states."""

from __future__ import annotations

import torch
from rich.table import Table

from auroraedge.model.configuration import AuroraEdgeConfig
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration, parameter_counts

PAPER_BILLIONS = 1.90
_WHAT = {
    "vision_model": "SigLIP2 encoder without its pooling head",
    "projector": "2-layer MLP",
    "compressor": "RMSNorm and MLP over the token axis",
    "fusion": "cross-attention and decoder layers",
    "language_model": "Qwen2 decoder, tied LM head counted once",
}


def preset_counts(preset: str) -> dict[str, int]:
    """Parameters by part of a preset, from the real modules on the meta device (no memory is used)."""
    with torch.device("meta"):
        model = AuroraEdgeForConditionalGeneration(AuroraEdgeConfig.from_preset(preset))
    counts = parameter_counts(model)
    return {**counts, "token embedding, included above": model.get_input_embeddings().weight.numel()}


def summary_table(preset: str) -> Table:
    """A table of the counts; for `2b` with the paper's total and why ours differs."""
    table = Table(title=f"Parameters of {preset}")
    for column in ("part", "what", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    counts = preset_counts(preset)
    for part, count in counts.items():
        table.add_row(part, _WHAT.get(part, ""), f"{count:,}")
    if preset == "2b":
        stock = counts["vision_model"] + counts["language_model"]
        table.add_row("paper", "total as stated (arXiv 2601.16615)", f"{PAPER_BILLIONS:.2f} B")
        table.caption = (
            f"The two published backbones alone have {stock / 1e9:.3f} B parameters, more than the paper's total, so "
            f"it cannot be a plain count in units of 10^9. In units of 2^30 ours is {counts['total'] / 2**30:.2f}; the "
            "rest of the difference lies in connector widths that the paper does not give."
        )
    return table
