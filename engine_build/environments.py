"""Export environments: virtual environments for tools whose pinned packages do not go with ours.

    python -m engine_build.environments --list
    python -m engine_build.environments edgellm

An environment is made on demand under build/environments (or $AURORAEDGE_ENVIRONMENTS) from the pins in
engine_build/pins/NAME.txt. A record beside it holds the hash of the pins and every installed version; with the
same pins it is used again, and an installation that was interrupted goes on. Nothing of it is imported here: its
programs run as processes of their own, so the serving and the build environment never need these packages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from auroraedge.errors import AuroraEdgeError, MissingDependencyError  # noqa: E402

PINS = Path(__file__).resolve().parent / "pins"
RECORD = "auroraedge.json"
_HOME = "AURORAEDGE_ENVIRONMENTS"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A finished environment. packages: version by name."""

    name: str
    folder: Path
    pins_sha256: str
    packages: dict[str, str]

    @property
    def python(self) -> Path:
        return _program(self.folder, "python")

    def program(self, name: str) -> Path:
        return _program(self.folder, name)

    def run(self, command: Sequence[str | Path], *, log: Path | None = None) -> str:
        """Runs a program of the environment; its output goes to `log` too. Raises MissingDependencyError."""
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        # The environment's own packages only, and no look-ups: everything that it reads is given to it.
        clean |= {"PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1"}
        answer = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, env=clean, check=False, errors="replace"
        )
        output = answer.stdout + answer.stderr
        if log is not None:
            log.write_text(output, encoding="utf-8")
        if answer.returncode:
            lines = [line for line in output.splitlines() if line.strip()][-6:]
            raise MissingDependencyError(
                f"{Path(str(command[0])).name} of the environment '{self.name}' failed ({answer.returncode}): "
                + " | ".join(lines),
                field=self.name,
                remedy=f"Remove {self.folder} and make it again: python -m engine_build.environments {self.name}",
            )
        return output


def _program(folder: Path, name: str) -> Path:
    return folder / ("Scripts" if os.name == "nt" else "bin") / name


def environment_names() -> list[str]:
    return sorted(path.stem for path in PINS.glob("*.txt"))


def environments_home() -> Path:
    return Path(os.environ.get(_HOME) or ROOT / "build" / "environments")


def _pins(name: str) -> tuple[Path, str]:
    path = PINS / f"{name}.txt"
    if name not in environment_names():
        raise MissingDependencyError(
            f"There is no export environment '{name}'.",
            field="environment",
            remedy=f"Known: {', '.join(environment_names())}.",
        )
    # Packages of one Python do not serve another.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return path, hashlib.sha256(path.read_bytes() + version.encode()).hexdigest()


def find_environment(name: str, home: Path | None = None) -> Environment | None:
    """The environment if it is finished and made from today's pins, else None. Raises for an unknown name."""
    _, digest = _pins(name)
    folder = (home or environments_home()) / name
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("pins_sha256") != digest or not _program(folder, "python").exists():
        return None
    return Environment(name=name, folder=folder, pins_sha256=digest, packages=record["packages"])


def make_environment(name: str, console: Console | None = None, home: Path | None = None) -> Environment:
    """The environment, made if it is not there. Raises MissingDependencyError when its packages cannot be had."""
    known = find_environment(name, home)
    if known is not None:
        return known
    console = console or Console()
    pins, digest = _pins(name)
    folder = (home or environments_home()) / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"making the export environment '{name}' in {folder} (once)")
    if not _program(folder, "python").exists():
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    python = _program(folder, "python")
    # pip goes on with what an interrupted run left: what is installed in the right version is passed over.
    with console.status(f"{name}: installing {pins.name}"):
        answer = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", pins],
            capture_output=True,
            text=True,
            check=False,
        )
    if answer.returncode:
        errors = [line for line in answer.stderr.splitlines() if line.startswith("ERROR")] or [answer.stderr[-300:]]
        raise MissingDependencyError(
            f"The packages of the export environment '{name}' cannot be installed: {' '.join(errors)}",
            field=name,
            remedy=(
                f"Give pip an index (pip config, PIP_INDEX_URL) or, without a network, a folder of wheels: "
                f"pip download -r {pins} -d WHEELS elsewhere, then PIP_NO_INDEX=1 PIP_FIND_LINKS=WHEELS. The same "
                "command goes on."
            ),
        )
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = {item["name"].lower(): item["version"] for item in json.loads(listed.stdout)}
    _require_pins(pins, packages, name)
    record = {"pins_sha256": digest, "python": sys.version.split()[0], "packages": packages}
    draft = folder / f".{RECORD}"
    draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draft.replace(folder / RECORD)
    console.print(f"{name}: {len(packages)} packages")
    return Environment(name=name, folder=folder, pins_sha256=digest, packages=packages)


def _require_pins(pins: Path, packages: dict[str, str], name: str) -> None:
    """pip may resolve a pin to a local build (2.13.0+cpu), never to another version."""
    for line in pins.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", line.strip()):
            found = packages.get(match[1].lower(), "none")
            if found.split("+")[0] != match[2]:
                raise MissingDependencyError(
                    f"The environment '{name}' has {match[1]} {found}, not {match[2]}.",
                    field=name,
                    remedy="Remove its folder and make it again.",
                )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes an export environment.")
    parser.add_argument("name", nargs="?", help="one that --list shows")
    parser.add_argument("--list", action="store_true", help="show the environments and stop")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        if options.list or options.name is None:
            table = Table("environment", "pins", "state")
            for name in environment_names():
                found = find_environment(name)
                text = (PINS / f"{name}.txt").read_text(encoding="utf-8")
                lines = [line for line in text.splitlines() if line and line[0] != "#"]
                # Extras look like markup.
                table.add_row(name, escape("\n".join(lines)), str(found.folder) if found else "not made")
            console.print(table)
            return 0
        made = make_environment(options.name, console)
        console.print(f"{made.folder}: ready", style="green")
    except AuroraEdgeError as error:
        console.print(f"error: {escape(str(error))}", style="red")
        return 1
    except KeyboardInterrupt:
        console.print(f"Interrupted; the same command goes on: {options.name}", style="yellow")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
