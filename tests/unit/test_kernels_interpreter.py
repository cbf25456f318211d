"""Starts tests/interpreter in a process of its own, because Triton's interpreter is chosen when Triton is imported."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from requires import lacks

ROOT = Path(__file__).resolve().parents[2]


def test_kernels_in_the_interpreter() -> None:
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            lacks(f"{package} is not installed: pip install 'auroraedge[kernels]'")
    # Without the project's own -q, which would make two of them and hide the count.
    quiet = ["-o", "addopts=", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *quiet, "tests/interpreter"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 15, done.stdout[-2000:]
