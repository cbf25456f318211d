"""Where the base of a fine-tuning run is, and what it knows. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path

from auroraedge.errors import TrainingError

_ROOT = Path(__file__).resolve().parents[2]


def base_folder(name: str) -> Path:
    """The folder of a model name or path: models/NAME of the checkout, or the folder itself. Raises TrainingError."""
    for folder in (_ROOT / "models" / name, Path.cwd() / "models" / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    raise TrainingError(
        f"There is no model '{name}' (config.json is looked for).",
        field="model",
        remedy="Run from a checkout, where models/nano is, or give a model folder with --model DIR.",
    )


def base_labels(folder: Path | None) -> tuple[str, ...]:
    """The labels that a base's grounding head names; of nano where it can be found, for None."""
    if folder is None:
        try:
            folder = base_folder("nano")
        except TrainingError:
            return ()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return tuple(config.get("grounding_labels") or ())
