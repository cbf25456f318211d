"""Training checkpoints: safetensors and JSON, published atomically, so that a kill never leaves half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from auroraedge.errors import TrainingError

STATE_FILE = "state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: `step` steps of stage number `stage` are done."""

    stage: int
    step: int
    settings_sha256: str


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which then takes the place of `folder`; the earlier one stays until that is complete."""
    fresh, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_progress(folder: Path, progress: Progress) -> None:
    (folder / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")


def save_checkpoint(folder: Path, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces the checkpoint in `folder`; the earlier one stays until the new one is complete."""
    with replacing(folder) as fresh:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, fresh / STATE_FILE)
        write_progress(fresh, progress)


def find_checkpoint(folder: Path) -> tuple[Progress, Path] | None:
    """The checkpoint in `folder`, or the one before it when a kill fell between two renames; None without any."""
    for candidate in (folder, folder.with_suffix(".old")):
        if (candidate / "progress.json").is_file():
            try:
                return Progress(**json.loads((candidate / "progress.json").read_text(encoding="utf-8"))), candidate
            except Exception as error:
                raise unreadable(candidate, error) from error
    return None


def unreadable(folder: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"The checkpoint {folder} cannot be read: {error}.", field="out", remedy="Delete that folder to start again."
    )


def load_checkpoint(folder: Path) -> tuple[Progress, dict[str, torch.Tensor]] | None:
    """What `find_checkpoint` finds, with all its tensors."""
    found = find_checkpoint(folder)
    if found is None:
        return None
    progress, path = found
    try:
        return progress, load_file(path / STATE_FILE)
    except Exception as error:
        raise unreadable(path, error) from error
