from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from fake_inspector import FakeInspector, write_part
from typer.testing import CliRunner, Result

import auroraedge
from auroraedge.cli import app
from auroraedge.errors import ServerUnavailableError
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.manifest import EngineManifest
from auroraedge.report import backend as backend_module
from auroraedge.report.backend import LocalBackend
from auroraedge.runtime import DEFAULT_ENGINE

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeInspector:
    """Commands use the fake inspector and run in an empty folder."""
    inspector = FakeInspector()

    @contextmanager
    def opened(*, recipe_dirs: tuple[Path, ...] = (), **_: object) -> Iterator[LocalBackend]:
        yield LocalBackend(inspector, recipe_dirs)

    monkeypatch.setattr(backend_module, "open_backend", opened)
    for name in ("AURORAEDGE_RECIPE", "AURORAEDGE_SERVER", "AURORAEDGE_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return inspector


def test_version() -> None:
    result = run("version")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"auroraedge {auroraedge.__version__}\n")


@pytest.mark.parametrize(
    "arguments", [[], ["inspect"], ["report"], ["eval"], ["train"], ["samples"], ["engine"], ["recipes"]]
)
def test_every_command_has_help(arguments: list[str]) -> None:
    result = run(*arguments, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_recipes_are_listed_and_shown_as_loadable_yaml(tmp_path: Path) -> None:
    listed = run("recipes")
    assert listed.exit_code == 0
    for name in ("pcb", "magnetic_tile", "ball_screw", "steel_strip"):
        assert name in listed.stdout
    shown = run("recipes", "show", "pcb")
    assert Recipe.model_validate(yaml.safe_load(shown.stdout)).sha256 == load_recipe("pcb").sha256
    (tmp_path / "mine.yaml").write_text("id: mine\nlabels: [{name: dent}]\n", encoding="utf-8")
    assert "mine" in run("recipes", "--recipe-dir", tmp_path).stdout
    assert "dent" in run("recipes", "--recipe-dir", tmp_path, "show", "mine").stdout


def test_unknown_recipe_is_not_found_with_a_remedy() -> None:
    result = run("recipes", "show", "nope")
    assert result.exit_code == 3
    assert "error: recipe_id: There is no recipe 'nope'" in result.stderr
    assert "auroraedge recipes" in result.stderr


def test_inspect_prints_a_table_and_writes_a_picture(fake: FakeInspector, tmp_path: Path) -> None:
    image = write_part(tmp_path / "part.png", 2, size=8)
    result = run("inspect", image, "--recipe", "magnetic_tile")
    assert result.exit_code == 0, result.output
    for text in ("NG", "blowhole", "critical", "90.0", "6, 6, 14, 14", "part_inspected.png"):
        assert text in result.stdout, text
    data = np.frombuffer((tmp_path / "cwd" / "part_inspected.png").read_bytes(), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape[1] == 8 * 64, "a small part is enlarged"


def test_inspect_as_json_is_a_result_and_writes_no_picture_unasked(fake: FakeInspector, tmp_path: Path) -> None:
    image = write_part(tmp_path / "part.png", 0)
    result = run("inspect", image, "-r", "magnetic_tile", "--json")
    assert json.loads(result.stdout)["verdict"] == "OK"
    assert list((tmp_path / "cwd").iterdir()) == []
    run("inspect", image, "-r", "magnetic_tile", "--json", "--out", tmp_path / "x.jpg")
    assert (tmp_path / "x.jpg").read_bytes().startswith(b"\xff\xd8\xff")


def test_inspect_with_reference_and_prompt(fake: FakeInspector, tmp_path: Path) -> None:
    image, golden = write_part(tmp_path / "part.png", 1), write_part(tmp_path / "gold.png", 0)
    assert run("inspect", image, "-r", "pcb").exit_code == 2
    result = run("inspect", image, "-r", "pcb", "--reference", golden)
    assert result.exit_code == 0
    assert "open" in result.stdout
    asked = run("inspect", image, "-r", "magnetic_tile", "--prompt", "count blowhole", "--json")
    assert json.loads(asked.stdout)["count"] == 1
    assert run("inspect", image, "-r", "magnetic_tile", "--prompt", "count blowhole").exit_code == 0


def test_a_bad_image_is_an_error_never_ok(fake: FakeInspector, tmp_path: Path) -> None:
    image = tmp_path / "part.png"
    image.write_bytes(b"no image")
    result = run("inspect", image, "-r", "magnetic_tile", "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert (found["verdict"], found["error"]["reason"]) == ("ERROR", "INVALID_IMAGE")
    assert "Send a complete JPEG" in result.stderr
    missing = run("inspect", tmp_path / "none.png", "-r", "magnetic_tile")
    assert missing.exit_code == 2
    assert "cannot be read: No such file" in missing.stderr


def test_inspect_asks_for_a_recipe_and_spares_its_inputs(fake: FakeInspector, tmp_path: Path) -> None:
    image = write_part(tmp_path / "part.png", 0)
    result = run("inspect", image)
    assert result.exit_code == 2
    assert "Name one with --recipe ID" in result.stderr
    before = image.read_bytes()
    replaced = run("inspect", image, "-r", "magnetic_tile", "--out", image)
    assert replaced.exit_code == 2
    assert "would replace the input" in replaced.stderr
    assert image.read_bytes() == before


def test_report_writes_everything_and_goes_on(fake: FakeInspector, tmp_path: Path) -> None:
    for index in range(3):
        write_part(tmp_path / "in" / f"{index}.png", index, size=9)
    (tmp_path / "in" / "bad.png").write_bytes(b"x")
    arguments = ("report", tmp_path / "in", "--out", tmp_path / "out", "-r", "magnetic_tile", "--title", "Shift A")
    result = run(*arguments, "--generated-at", "2025-02-03T04:05:06")
    assert result.exit_code == 0, result.output
    assert "4 inspected, 0 taken from an earlier run" in result.stdout
    assert "not inspected: bad.png" in result.stdout
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<title>Shift A</title>" in page
    assert "2025-02-03 04:05 UTC" in page
    assert "1 inspected, 3 taken from an earlier run" in run(*arguments).stdout
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "results.jsonl",
        "images.csv",
        "defects.csv",
        "coco.json",
        "summary.json",
        "report.html",
    }


def test_report_with_references_and_own_recipes(fake: FakeInspector, tmp_path: Path) -> None:
    write_part(tmp_path / "in" / "a.png", 1)
    write_part(tmp_path / "gold" / "a.png", 0)
    out = tmp_path / "out"
    result = run("report", tmp_path / "in", "--out", out, "-r", "pcb", "--references", tmp_path / "gold")
    assert result.exit_code == 0
    assert json.loads((out / "results.jsonl").read_bytes())["result"]["reference_used"]
    (tmp_path / "mine.yaml").write_text("id: mine\nlabels: [{name: dent}]\n", encoding="utf-8")
    assert run("report", tmp_path / "in", "--out", out, "-r", "mine", "--recipe-dir", tmp_path).exit_code == 0
    assert run("report", tmp_path / "in", "--out", out, "-r", tmp_path / "mine.yaml").exit_code == 0


def test_report_says_how_to_continue(fake: FakeInspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part(tmp_path / "in" / "a.png", 1)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "inspect", interrupted)
    result = run("report", tmp_path / "in", "--out", tmp_path / "out", "-r", "magnetic_tile")
    assert result.exit_code == 130
    assert "1 of 1 images are left" in result.stdout
    assert "again to continue" in result.stdout

    def gone(*_: object, **__: object) -> None:
        raise ServerUnavailableError("The server is gone.")

    monkeypatch.setattr(fake, "inspect", gone)
    stopped = run("report", tmp_path / "in", "--out", tmp_path / "out", "-r", "magnetic_tile")
    assert stopped.exit_code == 5
    assert "The server is gone." in stopped.stderr
    assert "again to continue" in stopped.stdout


def test_wrong_inputs_exit_with_two(fake: FakeInspector, tmp_path: Path) -> None:
    assert run("report", tmp_path / "none", "--out", tmp_path / "out", "-r", "pcb").exit_code == 2
    assert run("report", tmp_path).exit_code == 2
    assert run("nonsense").exit_code == 2


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    image = write_part(tmp_path / "part.png", 0)
    result = run("inspect", image, "-r", "pcb", "--server", "127.0.0.1:1", "--out", tmp_path / "out.png")
    assert result.exit_code == 5
    assert "Check that the server runs" in result.stderr
    assert not (tmp_path / "out.png").exists()


def test_samples_are_a_manifest_for_report(tmp_path: Path) -> None:
    result = run("samples", tmp_path / "parts", "--seed", 3, "--count", 1)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "parts" / "manifest.csv").is_file()
    assert "3 parts" in result.stdout
    again = run("samples", tmp_path / "parts")
    assert again.exit_code == 2
    assert "not an empty folder" in again.stderr


def test_engine_commands_name_what_is_wrong(tmp_path: Path) -> None:
    for command in ("verify", "inspect"):
        result = run("engine", command, tmp_path)
        assert result.exit_code == 4
        assert "manifest.json" in result.stderr
        assert "engine_build/build.py" in result.stderr


@pytest.mark.skipif(not (DEFAULT_ENGINE / "manifest.json").is_file(), reason="the embedded engine is not built")
def test_the_embedded_engine_verifies_and_inspects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("engine", "verify", DEFAULT_ENGINE).exit_code == 0
    shown = run("engine", "inspect", DEFAULT_ENGINE)
    assert "decoder" in shown.stdout
    assert "key/value tensors" in shown.stdout
    manifest = run("engine", "inspect", DEFAULT_ENGINE, "--json")
    assert EngineManifest.model_validate_json(manifest.stdout).target == "cpu"
    monkeypatch.chdir(tmp_path)
    image = write_part(tmp_path / "part.png", 1)
    result = run("inspect", image, "-r", "magnetic_tile", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "part_inspected.png").is_file()


def test_eval_prints_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import auroraedge.runtime

    run("samples", tmp_path / "pack" / "generated", "--seed", 1, "--count", 4)

    class Opened(FakeInspector):
        def __enter__(self) -> FakeInspector:
            return self

        def __exit__(self, *_: object) -> None: ...

    class Opener:
        @staticmethod
        def open(engine: Path | None, threads: int | None = None) -> Opened:
            return Opened()

    monkeypatch.setattr(auroraedge.runtime, "Inspector", Opener)
    arguments = ("eval", "--pack", tmp_path / "pack", "--set", "generated", "--split", "test", "-r", "magnetic_tile")
    result = run(*arguments, "--json", "--no-baseline", "--limit", 3, "--out", tmp_path / "kept.jsonl")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["set_name"] == "generated"
    assert (tmp_path / "kept.jsonl").is_file()
    assert "generated / test" in run(*arguments, "--no-baseline").stdout
    assert run("eval", "--pack", tmp_path, "--set", "none", "--split", "test", "-r", "pcb").exit_code == 2


def _without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.modules['torch'] = None; from auroraedge.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_training_without_torch_names_the_extra(tmp_path: Path) -> None:
    done = _without_torch("train", "--recipe", "nano", "--out", str(tmp_path))
    assert done.returncode == 4, done.stderr
    assert "needs the package 'torch'" in done.stderr
    assert "pip install 'auroraedge[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_everything_else_needs_no_torch(tmp_path: Path) -> None:
    assert _without_torch("version").returncode == 0
    assert _without_torch("recipes").returncode == 0
    assert _without_torch("samples", str(tmp_path / "s"), "--count", "1").returncode == 0
    missing = _without_torch("inspect", str(tmp_path / "none.png"), "-r", "pcb", "--engine", str(tmp_path))
    assert missing.returncode == 4
    assert "Traceback" not in missing.stderr
