"""The arrows of docs/architecture: imports point one way, and serving needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = {"errors", "config", "manifest", "inspection", "command_line", "packaging"}
# Layer -> layers it may import (besides itself and the base).
ALLOWED = {
    "ops": set(),
    "model": {"ops"},
    "data": {"model", "ops"},
    "train": {"data", "evaluate", "model", "ops", "runtime"},
    "evaluate": {"data", "runtime"},
    "runtime": set(),
    "store": {"runtime"},
    "report": {"runtime", "store", "client"},
    "client": {"_proto"},
    "ingest": {"client", "store", "runtime", "_proto"},
    "studies": {"store", "runtime", "client"},
    "serving": set(),
    "_proto": set(),
    "calib": {"evaluate", "train", "data", "model", "ops", "runtime", "store"},
    "engine_build": {"calib", "evaluate", "train", "data", "model", "ops", "runtime", "kernels"},
    "service": {"serving", "report", "studies", "store", "runtime", "client", "_proto"},
    "kernels": {"ops"},
}
# The torch runtime: the one file of a torch-free layer that may import torch and the model. Opened lazily.
TORCH_RUNTIME = ROOT / "auroraedge" / "runtime" / "torch_engine.py"
HEAVY = ("torch", "transformers", "tensorrt", "triton", "onnx", "onnxscript")
TORCH_FREE = (
    "serving",
    "inspection",
    "runtime",
    "store",
    "studies",
    "ingest",
    "report",
    "client",
    "evaluate",
    "service",
    "_proto",
)


def _layer(path: Path) -> str | None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "auroraedge":
        return parts[1] if len(parts) > 1 else None
    return parts[0]


def _imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _layers_imported(path: Path) -> set[str]:
    found = set()
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "auroraedge":
            if len(parts) > 1:
                found.add(parts[1])
        elif parts[0] in ALLOWED:
            found.add(parts[0])
    return found & (set(ALLOWED) | BASE)


def _files() -> list[Path]:
    roots = [ROOT / name for name in ("auroraedge", "service", "engine_build", "calib", "kernels")]
    return sorted(path for root in roots if root.is_dir() for path in root.rglob("*.py"))


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    layer = _layer(path)
    if layer in (None, "cli", "__init__"):
        return
    allowed = (BASE if layer in BASE else ALLOWED[layer] | BASE) | {layer}
    if path == TORCH_RUNTIME:
        allowed |= {"model"}
    wrong = _layers_imported(path) - allowed
    assert not wrong, f"{layer} must not import {sorted(wrong)}"
    if layer in TORCH_FREE and path != TORCH_RUNTIME:
        heavy = {name.split(".")[0] for name in _imports(path)} & set(HEAVY)
        assert not heavy, f"{layer} must not import {sorted(heavy)}"


def test_the_check_sees_a_wrong_arrow(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from auroraedge.train import run\n    import service.server\n", encoding="utf-8")
    assert _layers_imported(file) == {"train", "service"}


def test_serving_imports_without_heavy_packages() -> None:
    code = (
        "import sys, auroraedge, auroraedge.runtime, auroraedge.client, auroraedge.report, auroraedge.evaluate, "
        "auroraedge.cli, service.server\n"
        f"loaded = [n for n in {HEAVY!r} if n in sys.modules]\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
