"""Export environments: records, pins, interrupted installations, and what is said without a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from auroraedge.errors import MissingDependencyError
from engine_build import environments
from engine_build.environments import find_environment, main, make_environment

QUIET = Console(quiet=True)


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one environment that needs nothing but pip itself."""
    folder = tmp_path / "pins"
    folder.mkdir()
    (folder / "bare.txt").write_text("# nothing\n", encoding="utf-8")
    monkeypatch.setattr(environments, "PINS", folder)
    monkeypatch.setenv("AURORAEDGE_ENVIRONMENTS", str(tmp_path / "home"))
    return folder


def test_an_environment_is_made_once_and_recorded(pins: Path, tmp_path: Path) -> None:
    assert find_environment("bare") is None
    made = make_environment("bare", QUIET)
    assert made.folder == tmp_path / "home" / "bare" and "pip" in made.packages
    record = json.loads((made.folder / environments.RECORD).read_text(encoding="utf-8"))
    assert record["pins_sha256"] == made.pins_sha256 and record["python"] == sys.version.split()[0]
    assert find_environment("bare") == made
    # Its own Python, not ours.
    assert str(made.folder) in made.run([made.python, "-c", "import sys; print(sys.prefix)"])
    with pytest.raises(MissingDependencyError, match="failed"):
        made.run([made.python, "-c", "raise SystemExit('no such model')"], log=tmp_path / "log")
    assert "no such model" in (tmp_path / "log").read_text(encoding="utf-8")
    # Other pins: not the same environment any more.
    (pins / "bare.txt").write_text("# changed\n", encoding="utf-8")
    assert find_environment("bare") is None
    # An interrupted installation leaves no record, and is gone on with.
    (made.folder / environments.RECORD).unlink()
    assert make_environment("bare", QUIET).packages == made.packages
    # Without a network: what to do, and no record of a half environment.
    (pins / "bare.txt").write_text("no-such-package-of-auroraedge==1.0\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(MissingDependencyError, match="cannot be installed") as caught:
            make_environment("bare", QUIET)
    assert "PIP_FIND_LINKS" in str(caught.value.remedy)
    assert find_environment("bare") is None


def test_wrong_versions_are_refused(pins: Path) -> None:
    path = pins / "x.txt"
    path.write_text("# why\ntool[onnx]==1.2\nlocal==2.13.0\n", encoding="utf-8")
    environments._require_pins(path, {"tool": "1.2", "local": "2.13.0+cpu"}, "x")
    with pytest.raises(MissingDependencyError, match=r"tool 1\.3, not 1\.2"):
        environments._require_pins(path, {"tool": "1.3", "local": "2.13.0"}, "x")


def test_unknown_names_and_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nosuch"]) == 1
    assert "Known: edgellm, modelopt" in " ".join(capsys.readouterr().out.split())
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert "tensorrt-edgellm[export]==" in listed and "nvidia-modelopt[onnx]==" in listed
