"""The paper's claims and open questions as experiments of one budget: `auroraedge ablate`. See docs/experiments.md."""
