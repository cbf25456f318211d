"""One of several processes of test_distributed.py: trains RECIPE:OUT pairs one after another."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from auroraedge.train.distributed import main_distributed

if __name__ == "__main__":
    model, data, *runs = sys.argv[1:]
    for run in runs:
        recipe, out = run.split(":")
        main_distributed(recipe, model=Path(model), data=[data], out=Path(out))
    torch.distributed.destroy_process_group()
