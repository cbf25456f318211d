"""Weights of a model one by one, by their names in the state dict: what a build needs that cannot hold them all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from auroraedge.config import PRESETS
from auroraedge.errors import EngineError, EngineNotFoundError
from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
# The tokenizer of packages with random weights: it has the grammar's tokens, and fits into any preset's vocabulary.
TEST_TOKENIZER = ROOT / "models" / "nano" / "tokenizer.json"
_INDEX = "model.safetensors.index.json"
_TIED = ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight")


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """weights: float32 by name. sha256: of the files, or of the recipe of random weights. folder: None for those."""

    model_id: str
    config: AuroraEdgeConfig
    weights: Callable[[str], np.ndarray]
    sha256: str
    tokenizer_file: Path
    folder: Path | None = None


def parameter_shapes(config: AuroraEdgeConfig) -> dict[str, tuple[int, ...]]:
    """Shapes by name; no memory is taken."""
    with torch.device("meta"):
        model = AuroraEdgeForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def random_weights(config: AuroraEdgeConfig) -> Callable[[str], np.ndarray]:
    """Distinct random weights, the same for a name each time; of a norm about 1, others about 0.

    A tied LM head is the embedding table.
    """
    shapes = parameter_shapes(config)

    def weights(name: str) -> np.ndarray:
        if config.tie_word_embeddings and name == _TIED[0]:
            name = _TIED[1]
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
        values = rng.standard_normal(shapes[name], dtype=np.float32) * np.float32(0.02)
        return values + np.float32(1.0) if "norm" in name and name.endswith("weight") else values

    return weights


def random_source(preset: str | AuroraEdgeConfig) -> WeightSource:
    """Random weights of a preset or configuration, to measure with. Raises EngineError."""
    if isinstance(preset, str) and preset not in PRESETS:
        raise EngineError("Random weights need a preset.", field="--model", remedy=f"One of {', '.join(PRESETS)}.")
    config = AuroraEdgeConfig.from_preset(preset) if isinstance(preset, str) else preset
    name = config.preset or "model"
    recipe = f"random {config.to_json_string()}"
    return WeightSource(
        model_id=f"auroraedge-{name}-random",
        config=config,
        weights=random_weights(config),
        sha256=hashlib.sha256(recipe.encode()).hexdigest(),
        tokenizer_file=TEST_TOKENIZER,
    )


def folder_source(name: str) -> WeightSource:
    """Of a model in models/ or a folder that save_pretrained wrote, in one file or several.

    Tensors are read from the disk when they are asked for. Raises EngineNotFoundError and EngineError.
    """
    folder, files = _located(name)
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise EngineNotFoundError(f"{folder} has no tokenizer.json.", field="--model", remedy="Copy it there.")
    config = AuroraEdgeConfig.from_pretrained(folder)
    try:
        opened = [safe_open(file, framework="pt") for file in files]
    except (SafetensorError, OSError) as error:
        raise EngineError(f"The weights in {folder} cannot be read: {error}.", field="--model") from error
    place = {key: file for file in opened for key in file.keys()}  # noqa: SIM118 - no mapping
    if config.tie_word_embeddings and _TIED[0] not in place and _TIED[1] in place:
        place[_TIED[0]] = place[_TIED[1]]
    missing = sorted(set(parameter_shapes(config)) - set(place))
    if missing:
        raise EngineError(
            f"{folder} lacks {len(missing)} weights that its config.json asks for, first {missing[0]}.",
            field="--model",
            remedy="Save the model again with save_pretrained.",
        )

    def weights(key: str) -> np.ndarray:
        file = place[key]
        stored = key if key in file.keys() else _TIED[1]  # noqa: SIM118
        return file.get_tensor(stored).float().numpy()

    return WeightSource(
        model_id=f"auroraedge-{config.preset or folder.name}",
        config=config,
        weights=weights,
        sha256=_hash(files),
        tokenizer_file=tokenizer_file,
        folder=folder,
    )


def parameter_count(name: str) -> int:
    """Of a model in models/ or a folder; only its config.json is read. Raises EngineNotFoundError, EngineError."""
    config = AuroraEdgeConfig.from_pretrained(_located(name)[0])
    return sum(int(np.prod(shape)) for shape in parameter_shapes(config).values())


def _located(name: str) -> tuple[Path, list[Path]]:
    folder = ROOT / "models" / name if (ROOT / "models" / name).is_dir() else Path(name)
    files = _weight_files(folder)
    if not files or not (folder / "config.json").is_file():
        raise EngineNotFoundError(
            f"There is no model '{name}' (config.json and model.safetensors are looked for).",
            field="--model",
            remedy="Give a folder that save_pretrained wrote, or a preset with --random-weights.",
        )
    return folder, files


def _weight_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / _INDEX).is_file():
        return []
    try:
        names = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{_INDEX} is not valid: {error}.", field="--model") from error
    return [folder / Path(name).name for name in names]


def _hash(files: list[Path]) -> str:
    """SHA-256 of one file; of several, of the list of theirs."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
