"""Fixtures shared by the unit tests."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from auroraedge.inspection.tokenizer import InspectionTokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tokenizer() -> InspectionTokenizer:
    """The tokenizer that nano ships with."""
    return InspectionTokenizer.load(ROOT / "models" / "nano" / "tokenizer.json")


@pytest.fixture(scope="session")
def pack_dir() -> Path:
    """The inspection pack; tests that need it are skipped where it is not."""
    found = Path(os.environ.get("AURORAEDGE_PACK", ROOT.parent / "shared" / "data" / "inspection-pack"))
    if not found.is_dir():
        pytest.skip("the inspection pack is not here (set AURORAEDGE_PACK)")
    return found


@dataclass(frozen=True)
class TinyEngine:
    """An engine of one layer everywhere with random weights, and the torch model that it was built from."""

    model: Any
    model_folder: Path
    fp32: Path
    int8: Path


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> TinyEngine:
    """Built once by the real engine build, also for tests on several processes; about half a minute."""
    pytest.importorskip("torch")
    from filelock import FileLock

    from auroraedge.model import AuroraEdgeForConditionalGeneration

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "tiny_engine"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            building = folder.with_suffix(".building")
            _build_tiny_engine(building)
            building.rename(folder)
    model = AuroraEdgeForConditionalGeneration.from_pretrained(folder / "model").eval()
    return TinyEngine(model=model, model_folder=folder / "model", fp32=folder / "fp32", int8=folder / "int8")


def _build_tiny_engine(folder: Path) -> None:
    import torch

    from auroraedge.config import PRESETS
    from auroraedge.inspection.recipe import list_recipes
    from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration
    from engine_build.steps import build_engine
    from engine_build.targets import load_target

    tokenizer_file = ROOT / "models" / "nano" / "tokenizer.json"
    tokenizer = InspectionTokenizer.load(tokenizer_file)
    preset = replace(PRESETS["nano"], vision_layers=1, text_layers=2)
    torch.manual_seed(3)
    config = AuroraEdgeConfig.from_preset(
        preset,
        vocab_size=-(-tokenizer.vocab_size // 64) * 64,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        grounding_labels=sorted({label for recipe in list_recipes() for label in recipe.label_names}),
    )
    model = AuroraEdgeForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.06)
    model.save_pretrained(folder / "model")
    (folder / "model" / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    for precision in ("fp32", "int8"):
        build_engine(load_target("cpu"), str(folder / "model"), folder / precision, precision=precision, views=6)


@pytest.fixture(scope="session")
def tiny_forms(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model folder, and float32 packages of it with the decoder's cache handed on and in place."""
    pytest.importorskip("torch")
    from runtime_support import tiny_forms as build

    return build(tmp_path_factory.mktemp("forms"))
