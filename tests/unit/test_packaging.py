"""Engine packages as one file, and what two packages differ in."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from auroraedge.cli import app
from auroraedge.errors import EngineDamagedError, EngineError, EngineNotFoundError
from auroraedge.manifest import verify_package
from auroraedge.packaging import diff, pack, unpack
from auroraedge.runtime.inspector import DEFAULT_ENGINE


def test_a_package_travels_unchanged_and_packs_to_the_same_bytes(tmp_path: Path) -> None:
    manifest = pack(DEFAULT_ENGINE, tmp_path / "a.engine.tar")
    assert unpack(tmp_path / "a.engine.tar", tmp_path / "b").engine_sha256 == manifest.engine_sha256
    assert verify_package(tmp_path / "b").files == manifest.files
    pack(tmp_path / "b", tmp_path / "b.engine.tar")
    assert (tmp_path / "a.engine.tar").read_bytes() == (tmp_path / "b.engine.tar").read_bytes()
    assert diff(DEFAULT_ENGINE, tmp_path / "b") == []


@pytest.mark.parametrize("damage", ["cut", "flip", "text"])
def test_a_damaged_file_leaves_the_old_package(tmp_path: Path, damage: str) -> None:
    packed, folder = tmp_path / "a.engine.tar", tmp_path / "engine"
    pack(DEFAULT_ENGINE, packed)
    before = unpack(packed, folder)
    content = bytearray(packed.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "flip":
        content[len(content) // 2] ^= 0xFF
    else:
        content = bytearray(b"no archive at all")
    packed.write_bytes(content)
    with pytest.raises(EngineDamagedError):
        unpack(packed, folder)
    assert verify_package(folder) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.engine.tar", "engine"]


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside"])
def test_nothing_is_written_outside_the_folder(tmp_path: Path, name: str) -> None:
    file = tmp_path / "evil.engine.tar"
    with tarfile.open(file, "w") as archive:
        for entry in ("manifest.json", name):
            info = tarfile.TarInfo(entry)
            info.size = 2
            archive.addfile(info, io.BytesIO(b"{}"))
    with pytest.raises(EngineDamagedError, match="no packed engine"):
        unpack(file, tmp_path / "engine")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.engine.tar"]


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(EngineError, match="no packed engine"):
        pack(DEFAULT_ENGINE, tmp_path / "notes.txt")
    packed = tmp_path / "a.engine.tar"
    pack(DEFAULT_ENGINE, packed)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"x")
    with pytest.raises(EngineError, match="no engine package"):
        unpack(packed, tmp_path / "photos")
    assert (tmp_path / "photos" / "one.png").read_bytes() == b"x"
    with pytest.raises(EngineNotFoundError):
        unpack(tmp_path / "absent.engine.tar", tmp_path / "engine")


def test_diff_names_meaning_before_files(tiny_engine) -> None:
    found = {item.what: item for item in diff(tiny_engine.fp32, tiny_engine.int8)}
    assert found["precision"].first == "vision fp32, fusion fp32, decoder fp32"
    assert "int8" in (found["precision"].second or "")
    assert "file vision.onnx" in found and "weights_sha256" not in found
    assert next(iter(found)) == "precision"


def test_commands(tmp_path: Path) -> None:
    runner = CliRunner()
    packed = str(tmp_path / "nano.engine.tar")
    assert runner.invoke(app, ["engine", "pack", str(DEFAULT_ENGINE), packed]).exit_code == 0
    assert runner.invoke(app, ["engine", "unpack", packed, str(tmp_path / "nano")]).exit_code == 0
    said = runner.invoke(app, ["engine", "diff", str(DEFAULT_ENGINE), str(tmp_path / "nano")])
    assert said.exit_code == 0 and "the same" in said.output
    assert runner.invoke(app, ["engine", "unpack", str(tmp_path / "x"), str(tmp_path / "y")]).exit_code == 4
