"""Packages whose files are whole but do not fit together, and graphs that fail: clear errors, never a verdict."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from auroraedge.errors import AuroraEdgeError, EngineDamagedError, EngineError, EngineIncompatibleError
from auroraedge.inspection.recipe import Tiling, load_recipe
from auroraedge.inspection.results import InspectionResult, Verdict
from auroraedge.manifest import GraphSpec, TensorSpec, engine_sha256
from auroraedge.runtime import EnginePackage, InspectionJob, Inspector, engine
from auroraedge.runtime.engine import Encoded
from auroraedge.runtime.session import OrtSession

TILE = load_recipe("magnetic_tile").model_copy(update={"tiling": Tiling()})
COMMAND = "python engine_build/build.py --target cpu --model nano"


@pytest.fixture
def package(tiny_engine, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_engine.fp32, tmp_path / "engine"))


def seal(package: Path, change: Callable[[dict], object] = lambda manifest: None) -> None:
    """Changes the manifest and makes its hashes right again, as a builder with a bug would."""
    manifest = json.loads((package / "manifest.json").read_text())
    change(manifest)
    manifest["files"] = {name: hashlib.sha256((package / name).read_bytes()).hexdigest() for name in manifest["files"]}
    manifest["engine_sha256"] = engine_sha256(manifest["files"])
    (package / "manifest.json").write_text(json.dumps(manifest))


def processor(package: Path, **changes: object) -> None:
    path = package / "processor.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tables(package: Path, **changes: np.ndarray) -> None:
    save_file(load_file(package / "embeddings.safetensors") | changes, package / "embeddings.safetensors")


def test_the_copy_itself_opens(package: Path) -> None:
    seal(package)
    assert EnginePackage(package, threads=1).info.target == "cpu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: processor(p, grounding_labels=["dent"]), "grounding_labels"),
        (lambda p: processor(p, image_size=512), "other views"),
        (lambda p: tables(p, token_embedding=np.zeros((7, 256), np.float16)), "token_embedding"),
        (lambda p: tables(p, position_table=np.zeros((100, 384), np.float32)), "position_table"),
    ],
)
def test_parts_of_two_models_are_refused(package: Path, change: Callable[[Path], None], message: str) -> None:
    change(package)
    seal(package)
    with pytest.raises(EngineIncompatibleError, match=message) as caught:
        EnginePackage(package, threads=1)
    assert COMMAND in caught.value.remedy


def rename_input(manifest: dict) -> None:
    manifest["graphs"]["decoder"]["inputs"][0]["name"] = "input_ids"


def drop_graph(manifest: dict) -> None:
    del manifest["graphs"]["fusion"], manifest["precision"]["fusion"]


def more_layers(manifest: dict) -> None:
    manifest["decoder"]["layers"] += 1


def other_width(manifest: dict) -> None:
    manifest["graphs"]["vision"]["outputs"][0]["shape"][2] = 99


def other_type(manifest: dict) -> None:
    manifest["graphs"]["vision"]["inputs"][0]["dtype"] = "float32"


def swapped(manifest: dict) -> None:
    graphs = manifest["graphs"]
    graphs["fusion"]["file"], graphs["decoder"]["file"] = graphs["decoder"]["file"], graphs["fusion"]["file"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_input, "input_ids, inputs_embeds"),
        (drop_graph, "no fusion graph"),
        (more_layers, r"past\.2\.key"),
        (other_width, r"visual has shape .* not .*99"),
        (other_type, "patches is uint8, not float32"),
        (swapped, "is not listed"),
        (lambda m: m.update(target="rtx"), "target rtx"),
    ],
)
def test_graphs_are_checked_against_the_manifest(package: Path, change: Callable[[dict], object], message: str) -> None:
    seal(package, change)
    with pytest.raises(EngineIncompatibleError, match=message) as caught:
        EnginePackage(package, threads=1)
    assert COMMAND in caught.value.remedy


@pytest.mark.parametrize("name", ["tokenizer.json", "embeddings.safetensors", "processor.json", "calibration.json"])
def test_files_that_cannot_be_read_are_named(package: Path, name: str) -> None:
    (package / name).write_bytes(b"{")
    seal(package, lambda manifest: manifest["files"].setdefault(name, ""))
    with pytest.raises(EngineDamagedError, match=name.split(".")[0]):
        EnginePackage(package, threads=1)


def test_no_graph_at_all(package: Path) -> None:
    (package / "vision.onnx").write_bytes(b"not a graph")
    seal(package)
    with pytest.raises(EngineIncompatibleError, match=r"cannot load vision\.onnx"):
        EnginePackage(package, threads=1)


def test_a_package_that_is_replaced_meanwhile_is_not_mixed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.OrtSession

    def session(path: Path, **options: object) -> OrtSession:
        if path.name == "decoder.onnx":
            processor(package, location_bins=128)
            path.with_name("processor.json").write_bytes(path.with_name("processor.json").read_bytes() + b"\n")
            seal(package)
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "OrtSession", session)
    with pytest.raises(EngineError, match="replaced while it was loaded"):
        EnginePackage(package, threads=1)


def test_a_graph_that_fails_raises_our_error(tiny_engine) -> None:
    package = EnginePackage(tiny_engine.fp32, threads=1)
    with pytest.raises(EngineError, match=r"vision\.onnx failed"):
        package.vision.run({"patches": np.zeros((1, 3, 768), np.uint8)})
    spec = GraphSpec(file="x", inputs=(TensorSpec(name="more", dtype="float32", shape=(1,)),), outputs=())
    with pytest.raises(EngineIncompatibleError, match="input more is missing"):
        OrtSession(tiny_engine.fp32 / "fusion.onnx", spec=spec, threads=1)


# --- failures while inspecting ---------------------------------------------------------------------------------------


def frame(value: int) -> np.ndarray:
    return np.full((256, 256, 3), value, np.uint8)


@pytest.mark.parametrize("output", ["compressed", "evidence", "presence", "visual"])
def test_numbers_that_are_none_never_become_a_verdict(
    tiny_engine, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = Inspector.open(tiny_engine.fp32, threads=1)
    vision = inspector._package.vision

    def broken(inputs: dict) -> dict:
        found = vision.run(inputs)
        found[output] = np.full_like(found[output], np.nan)
        return found

    monkeypatch.setattr(inspector._package, "vision", SimpleNamespace(run=broken))
    with pytest.raises(EngineError):
        inspector.inspect(frame(100), TILE)


def test_a_frame_that_breaks_the_engine_does_not_take_its_neighbours(
    tiny_engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = Inspector.open(tiny_engine.fp32, threads=1)
    encode = inspector._package.encode

    def fragile(patches: np.ndarray) -> Encoded:
        if (patches == 13).all(axis=(1, 2)).any():
            raise EngineError("broken")
        return encode(patches)

    monkeypatch.setattr(inspector._package, "encode", fragile)
    jobs = [InspectionJob(image=frame(value), recipe=TILE, image_name=str(value)) for value in (1, 13, 2)]
    first, second, third = inspector.inspect_batch(jobs)
    assert isinstance(second, EngineError)
    for outcome, name in ((first, "1"), (third, "2")):
        assert isinstance(outcome, InspectionResult) and outcome.image_name == name


def test_large_batches_go_in_parts(tiny_engine, monkeypatch: pytest.MonkeyPatch) -> None:
    inspector = Inspector.open(tiny_engine.fp32, threads=1)
    encode, sizes = inspector._package.encode, []
    monkeypatch.setattr(inspector._package, "encode", lambda p: sizes.append(len(p)) or encode(p))
    tiled = TILE.model_copy(update={"tiling": Tiling(mode="square", size_px=64, max_views=64)})
    jobs = [InspectionJob(image=frame(9), recipe=tiled if i == 1 else TILE, image_name=str(i)) for i in range(4)]
    jobs[1] = replace(jobs[1], image=np.full((384, 384, 3), 9, np.uint8))
    outcomes = inspector.inspect_batch(jobs)
    assert sizes == [1, 36, 2]
    assert [o.image_name for o in outcomes if isinstance(o, InspectionResult)] == ["0", "1", "2", "3"]
    assert not any(isinstance(outcome, AuroraEdgeError) for outcome in outcomes)
    assert all(isinstance(o, InspectionResult) and o.verdict is not Verdict.ERROR for o in outcomes)
