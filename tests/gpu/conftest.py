"""Tests that need a CUDA device and Triton; skipped without. benchmarks/gpu_session.py runs them on a lent machine."""

from __future__ import annotations

import importlib.util

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reason = ""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("triton") is None:
        reason = "torch and triton are needed"
    else:
        import torch

        if not torch.cuda.is_available():
            reason = "no CUDA device"
    for item in items:
        if reason and item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.skip(reason=reason))
