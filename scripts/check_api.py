"""Lints protos/ with buf and refuses what would break a client of the last release.

    python -m scripts.check_api [--refresh]

tests/golden/api-v1.binpb is the API as it was last released. `--refresh` replaces it by what is in protos/ now: do that
with a release, after the check has passed; to break clients on purpose is to make a package v2 instead.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
RELEASED = ROOT / "tests" / "golden" / "api-v1.binpb"


def buf(*arguments: str | Path) -> int:
    """Runs buf (the package buf-bin) and returns its exit status. Raises RuntimeError where it is missing."""
    beside = Path(sys.executable).parent / "buf"
    program = str(beside) if beside.exists() else shutil.which("buf")
    if program is None:
        raise RuntimeError("buf is not installed. Run: pip install -e '.[dev]'")
    return subprocess.run([program, *map(str, arguments)], cwd=ROOT).returncode


def check(protos: Path = PROTOS, released: Path = RELEASED) -> int:
    """0 when the files keep buf's rules and every client of the released API still works."""
    return buf("lint", protos) or buf("breaking", protos, "--against", released)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refresh", action="store_true", help="make the present API the released one")
    if parser.parse_args().refresh:
        return buf("lint", PROTOS) or buf("build", PROTOS, "-o", RELEASED, "--exclude-source-info")
    return check()


if __name__ == "__main__":
    sys.exit(main())
