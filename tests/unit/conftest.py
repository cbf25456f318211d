"""Fixtures shared by the unit tests."""

from __future__ import annotations

import os
from pathlib import Path

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
