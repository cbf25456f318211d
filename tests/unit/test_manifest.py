"""Engine packages: atomic publishing, verification, and what each fault is called."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from auroraedge import manifest as module
from auroraedge.errors import EngineDamagedError, EngineError, EngineIncompatibleError, EngineNotFoundError
from auroraedge.manifest import (
    CompilerInfo,
    DecoderSpec,
    EngineDescription,
    GraphSpec,
    PackageDraft,
    TensorSpec,
    check_target,
    engine_sha256,
    load_manifest,
    publish_package,
    verify_package,
)

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python engine_build/build.py --target cpu --model nano"


def description(**changes: object) -> EngineDescription:
    graph = GraphSpec(
        file="graphs/vision.onnx",
        inputs=(TensorSpec(name="patches", dtype="uint8", shape=("batch", 256, 768)),),
        outputs=(TensorSpec(name="visual", dtype="float32", shape=("batch", 256, 64)),),
    )
    values: dict[str, object] = {
        "model_id": "auroraedge-nano",
        "weights_sha256": "a" * 64,
        "target": "cpu",
        "compiler": CompilerInfo(name="onnxruntime", version="1.0"),
        "precision": {"vision": "fp32"},
        "graphs": {"vision": graph},
        "decoder": DecoderSpec(layers=2, kv_heads=1, head_dim=8, hidden=16, vocab=32),
        "parity": {"onnx": {"max_abs": 1e-6, "cosine": 1.0}},
    }
    return EngineDescription(**(values | changes))


def fill(draft: PackageDraft, content: bytes = b"one") -> None:
    (draft.path / "graphs").mkdir()
    (draft.path / "graphs" / "vision.onnx").write_bytes(content)
    for name in module.REQUIRED_FILES:
        (draft.path / name).write_bytes(name.encode())
    draft.description = description()


def publish(destination: Path, content: bytes = b"one") -> PackageDraft:
    with publish_package(destination) as draft:
        fill(draft, content)
    return draft


@pytest.fixture
def package(tmp_path: Path) -> Path:
    publish(tmp_path / "engines" / "nano-cpu")
    return tmp_path / "engines" / "nano-cpu"


def rewrite(package: Path, change: Callable[[dict], object]) -> None:
    path = package / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# --- a good package --------------------------------------------------------------------------------------------------


def test_what_is_published_verifies(tmp_path: Path) -> None:
    draft = publish(tmp_path / "deep" / "down" / "nano-cpu")
    manifest = verify_package(tmp_path / "deep" / "down" / "nano-cpu")
    assert manifest == draft.manifest
    assert manifest.files["graphs/vision.onnx"] == hashlib.sha256(b"one").hexdigest()
    assert set(manifest.files) == {"graphs/vision.onnx", *module.REQUIRED_FILES}
    assert manifest.engine_sha256 == engine_sha256(manifest.files)
    assert manifest.schema_version == 1 and manifest.created_at.tzinfo is not None
    assert manifest.graphs["vision"].inputs[0].shape == ("batch", 256, 768)
    assert [entry.name for entry in (tmp_path / "deep" / "down").iterdir()] == ["nano-cpu"]


def test_the_engine_hash_depends_on_names_and_contents_only() -> None:
    files = {"a": "1" * 64, "b": "2" * 64}
    assert engine_sha256(files) == engine_sha256(dict(reversed(files.items())))
    others = [files | {"a": "3" * 64}, {"a": "2" * 64, "b": "1" * 64}, {"c": "1" * 64, "b": "2" * 64}, {"a": "1" * 64}]
    assert len({engine_sha256(files), *map(engine_sha256, others)}) == 5


def test_a_package_may_be_moved_and_linked_to(package: Path, tmp_path: Path) -> None:
    package.rename(tmp_path / "elsewhere")
    package.symlink_to(tmp_path / "elsewhere")
    assert verify_package(package).model_id == "auroraedge-nano"
    publish(package, b"two")
    assert package.is_symlink() and (tmp_path / "elsewhere" / "graphs" / "vision.onnx").read_bytes() == b"two"


def test_target_gpu_and_compiler_are_checked(package: Path) -> None:
    manifest = load_manifest(package)
    check_target(manifest, "cpu")
    check_target(manifest, "cpu", compiler_version="1.0")
    with pytest.raises(EngineIncompatibleError, match="target cpu, but here it is rtx") as caught:
        check_target(manifest, "rtx")
    assert "python engine_build/build.py --target rtx --model nano" in caught.value.remedy
    with pytest.raises(EngineIncompatibleError, match=r"version 1\.0, but here it is 2\.0"):
        check_target(manifest, "cpu", compiler_version="2.0")
    large = manifest.model_copy(update={"model_id": "auroraedge-2b", "compute_capability": "8.7"})
    with pytest.raises(EngineIncompatibleError, match=r"8\.7, but here it is 9\.0") as caught:
        check_target(large, "cpu", compute_capability="9.0")
    assert "--model 2b" in caught.value.remedy


# --- a bad one -------------------------------------------------------------------------------------------------------


def test_no_package(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("absent", "file", "empty"):
        with pytest.raises(EngineNotFoundError, match=name) as caught:
            verify_package(tmp_path / name)
        assert COMMAND in caught.value.remedy


@pytest.mark.parametrize("name", ["graphs/vision.onnx", "tokenizer.json"])
def test_one_changed_bit_is_found(package: Path, name: str) -> None:
    content = bytearray((package / name).read_bytes())
    content[-1] ^= 1
    (package / name).write_bytes(content)
    with pytest.raises(EngineDamagedError, match=f"{name} is damaged") as caught:
        verify_package(package)
    assert COMMAND in caught.value.remedy


def test_every_fault_is_named(package: Path) -> None:
    (package / "tokenizer.json").unlink()
    (package / "graphs" / "vision.onnx").write_bytes(b"")
    (package / "graphs" / "stray.bin").touch()
    with pytest.raises(EngineDamagedError) as caught:
        verify_package(package)
    for fault in ("tokenizer.json is missing", "graphs/stray.bin is not listed", "graphs/vision.onnx is damaged"):
        assert fault in caught.value.message
    assert "processor.json" not in caught.value.message


def test_links_and_folders_in_place_of_files(package: Path, tmp_path: Path) -> None:
    outside = tmp_path / "tokenizer.json"
    (package / "tokenizer.json").rename(outside)
    (package / "tokenizer.json").symlink_to(outside)  # the right content, in the wrong place
    (package / "more").symlink_to(tmp_path)
    (package / "processor.json").unlink()
    (package / "processor.json").symlink_to("processor.json")
    with pytest.raises(EngineDamagedError) as caught:
        verify_package(package)
    assert "tokenizer.json is a link that leaves the package" in caught.value.message
    assert "more is not listed" in caught.value.message
    assert "processor.json is not a file" in caught.value.message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 1}'])
def test_a_manifest_that_is_none(package: Path, content: bytes) -> None:
    (package / "manifest.json").write_bytes(content)
    with pytest.raises(EngineDamagedError) as caught:
        verify_package(package)
    assert caught.value.field == "manifest.json" and COMMAND in caught.value.remedy


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_a_foreign_schema(package: Path, version: object) -> None:
    rewrite(package, lambda content: content.update(schema_version=version, target="rtx", unknown=1))
    with pytest.raises(EngineIncompatibleError, match="schema version") as caught:
        load_manifest(package)
    assert "python engine_build/build.py --target rtx --model nano" in caught.value.remedy


def test_nothing_but_plain_names_gets_into_a_command(package: Path) -> None:
    rewrite(package, lambda content: content.update(schema_version=9, target="cpu; rm -r ~", model_id=["2b"]))
    with pytest.raises(EngineIncompatibleError) as caught:
        load_manifest(package)
    assert COMMAND in caught.value.remedy


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../outside", "a//b", "./a", "", "C:/a", "a\\..\\b", "manifest.json"]
)
def test_a_name_that_leaves_the_package_is_refused(package: Path, name: str) -> None:
    (package.parent / "outside").write_bytes(b"x")

    def add(content: dict) -> None:
        content["files"][name] = hashlib.sha256(b"x").hexdigest()
        content["engine_sha256"] = engine_sha256(content["files"])

    rewrite(package, add)
    with pytest.raises(EngineDamagedError, match="leaves the package or is the manifest"):
        verify_package(package)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(engine_sha256="0" * 64), "engine_sha256 is not the hash"),
        (lambda c: c.update(extra=1), "extra"),
        (lambda c: c.pop("decoder"), "decoder"),
        (lambda c: c["decoder"].update(layers=0), "decoder.layers"),
        (lambda c: c["files"].update({"tokenizer.json": "no hash"}), "files.tokenizer.json"),
        (lambda c: c["graphs"]["vision"].update(file="../vision.onnx"), r"files lacks \.\./vision.onnx"),
        (lambda c: c["precision"].update(decoder="fp32"), "precision"),
        (lambda c: c.update(created_at="2024-01-01T00:00:00"), "created_at"),
    ],
)
def test_a_manifest_that_contradicts_itself(package: Path, change: Callable[[dict], object], message: str) -> None:
    rewrite(package, change)
    with pytest.raises(EngineDamagedError, match=message):
        load_manifest(package)


# --- publishing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("atomic", [True, False])
def test_a_package_is_replaced(package: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "stray").touch()  # goes with the old package
    if not atomic:
        monkeypatch.setattr(module, "_exchange", lambda *_: False)
    publish(package, b"two")
    assert verify_package(package).files["graphs/vision.onnx"] == hashlib.sha256(b"two").hexdigest()
    assert [entry.name for entry in package.parent.iterdir()] == ["nano-cpu"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is Linux's")
def test_linux_swaps_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not module._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot")
    assert (tmp_path / "a" / "b").is_file() and (tmp_path / "b" / "a").is_file()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_build_leaves_the_old_package_and_nothing_else(package: Path, error: type[BaseException]) -> None:
    before = load_manifest(package)
    with pytest.raises(error), publish_package(package) as draft:
        fill(draft, b"two")
        raise error
    assert verify_package(package) == before
    assert [entry.name for entry in package.parent.iterdir()] == ["nano-cpu"]


def test_a_failed_swap_puts_the_old_package_back(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_manifest(package)
    monkeypatch.setattr(module, "_exchange", lambda *_: False)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if "building" in self.name:
            raise OSError("disk on fire")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="fire"):
        publish(package, b"two")
    assert verify_package(package) == before
    assert [entry.name for entry in package.parent.iterdir()] == ["nano-cpu"]


def test_an_incomplete_draft_is_refused(package: Path) -> None:
    before = load_manifest(package)
    with pytest.raises(EngineError, match=r"tokenizer\.json"), publish_package(package) as draft:
        fill(draft)
        (draft.path / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match="no description"), publish_package(package) as draft:
        fill(draft)
        draft.description = None
    with pytest.raises(EngineError, match=r"links: calibration\.json"), publish_package(package) as draft:
        fill(draft)
        (draft.path / "calibration.json").symlink_to(draft.path / "tokenizer.json")
    assert verify_package(package) == before


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_who_may_read_the_folder_may_read_its_files(tmp_path: Path) -> None:
    with publish_package(tmp_path / "nano-cpu") as draft:
        fill(draft)
        (draft.path / "tokenizer.json").chmod(0o600)  # as some writers of files do
        (draft.path / "processor.json").chmod(0o755)
        draft.path.chmod(0o755)
    package = tmp_path / "nano-cpu"
    assert {(package / name).stat().st_mode & 0o777 for name in verify_package(package).files} == {0o644}


def test_other_folders_and_files_are_never_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters.txt").touch()
    (tmp_path / "file").touch()
    for destination in (home, tmp_path / "file"):
        with pytest.raises(EngineError, match="no engine package") as caught, publish_package(destination):
            raise AssertionError("the block must not run")
        assert caught.value.field == "destination"
    assert (home / "letters.txt").is_file()
    (tmp_path / "empty").mkdir()
    publish(tmp_path / "empty")
    verify_package(tmp_path / "empty")


def test_a_build_puts_back_what_a_killed_one_left_aside(package: Path) -> None:
    aside = package.with_name(".nano-cpu.old-123")
    package.rename(aside)
    with pytest.raises(RuntimeError), publish_package(package):
        raise RuntimeError
    verify_package(package)
    assert not aside.exists()


def test_old_leftovers_go_and_running_builds_stay(package: Path) -> None:
    stale, running = (package.with_name(f".nano-cpu.building-{name}") for name in ("stale", "running"))
    for path in (stale, running):
        path.mkdir()
        (path / "vision.onnx").touch()
    past = time.time() - 2 * module._STALE_SECONDS
    os.utime(stale, (past, past))
    publish(package)
    assert running.is_dir() and not stale.exists()


@pytest.mark.parametrize("moment", ["_sha256", "_sync", "_replace", "yield"])
def test_a_kill_leaves_the_old_package(package: Path, moment: str) -> None:
    """SIGKILL in the block, while hashing, while writing to the disk, and right before the swap."""
    before = load_manifest(package)
    script = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
import auroraedge.manifest as module
from test_manifest import fill

def stop(*_):
    print("here", flush=True)
    time.sleep(600)

if {moment!r} != "yield":
    setattr(module, {moment!r}, stop)
with module.publish_package(Path({str(package)!r})) as draft:
    fill(draft, b"two")
    if {moment!r} == "yield":
        stop()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "here\n"
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert verify_package(package) == before
    left = [entry.name for entry in package.parent.iterdir() if entry != package]
    assert len(left) == 1 and left[0].startswith(".nano-cpu.building-")
    publish(package, b"three")
    assert verify_package(package).engine_sha256 != before.engine_sha256
