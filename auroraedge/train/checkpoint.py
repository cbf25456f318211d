"""Training checkpoints: safetensors and JSON, published atomically, so that a kill never leaves half of one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from auroraedge.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: `step` steps of stage number `stage` are done."""

    stage: int
    step: int
    settings_sha256: str


def save_checkpoint(folder: Path, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces the checkpoint in `folder`; the earlier one stays until the new one is complete."""
    fresh, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, fresh / "state.safetensors")
    (fresh / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[Progress, dict[str, torch.Tensor]] | None:
    """The checkpoint in `folder`, or the one before it when a kill fell between two renames; None without any."""
    for candidate in (folder, folder.with_suffix(".old")):
        if (candidate / "progress.json").is_file():
            try:
                progress = Progress(**json.loads((candidate / "progress.json").read_text(encoding="utf-8")))
                return progress, load_file(candidate / "state.safetensors")
            except Exception as error:
                raise TrainingError(
                    f"The checkpoint {candidate} cannot be read: {error}.",
                    field="out",
                    remedy="Delete that folder to start again.",
                ) from error
    return None
