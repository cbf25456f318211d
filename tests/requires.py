"""Tools that some tests need. On a developer's machine a missing one skips the test; in CI it is a failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def require_tool(name: str, *, also_in: tuple[str, ...] = ()) -> Path:
    """The program `name` from PATH or from one of the folders (glob patterns) of `also_in`."""
    found = shutil.which(name)
    if found is None:
        candidates = (path / name for pattern in also_in for path in sorted(Path("/").glob(pattern.lstrip("/"))))
        found = next((str(path) for path in candidates if path.exists()), None)
    if found is None:
        lacks(f"'{name}' is not installed; tests/debian-packages.txt lists what the tests use")
    return Path(found)


def lacks(reason: str) -> None:
    """Skips the test with the reason; fails in CI, where nothing may be left out unseen."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
