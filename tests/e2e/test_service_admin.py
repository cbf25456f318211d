"""Changes of a running server: engine, recipes, drain; audited, and without a dropped request."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from service_harness import StatisticsInspector, frame, running_server

from auroraedge.client import InspectionClient, RetryPolicy
from auroraedge.errors import (
    AuroraEdgeError,
    EngineDamagedError,
    EngineIncompatibleError,
    EngineNotFoundError,
    InvalidRequestError,
    RecipeError,
    RecipeVersionError,
    ServerUnavailableError,
    StoreError,
)
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.results import RequestInfo, Verdict

RECIPE = "magnetic_tile"
ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "auroraedge" / "assets" / "engines" / "nano-cpu"


class Engines:
    """Opens inspectors by package folder; the file `fault` in one says what is wrong with it."""

    def __init__(self) -> None:
        self.opened: list[StatisticsInspector] = []

    def __call__(self, config: Any, path: Path | None = None) -> StatisticsInspector:
        name = "first" if path is None else path.name
        fault = "" if path is None or not (path / "fault").exists() else (path / "fault").read_text()
        if fault == "damaged":
            raise EngineDamagedError("vision.onnx is not what the manifest says.")
        inspector: StatisticsInspector = _Mute() if fault == "mute" else StatisticsInspector()
        digest = name.encode().hex().ljust(64, "0")[:64]
        inspector.engine = SimpleNamespace(
            model_id=name, engine_sha256=digest, target="test", precision={"vision": "none"}
        )
        self.opened.append(inspector)
        return inspector


class _Mute(StatisticsInspector):
    def inspect(self, *args: Any, **more: Any) -> Any:
        return super().inspect(*args, **more).model_copy(update={"ng_probability": None})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("second", "third", "damaged", "mute"):
        package = tmp_path / "engines" / name
        package.mkdir(parents=True)
        (package / "manifest.json").write_text("{}")
        if name in ("damaged", "mute"):
            (package / "fault").write_text(name)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "manifest.json").write_text("{}")
    (tmp_path / "engines" / "link").symlink_to(tmp_path / "secret")
    return tmp_path


@pytest.fixture
def setup(folder: Path) -> Iterator[tuple[Any, InspectionClient, Engines]]:
    engines = Engines()
    with (
        running_server(
            engines(None), make_inspector=engines, store=str(folder / "state"), engines=(folder / "engines",)
        ) as running,
        InspectionClient(running.address, retry=RetryPolicy(attempts=1)) as client,
    ):
        yield running, client, engines


def audit(running: Any, action: str) -> list[Any]:
    return [entry for entry in running.server.store.audit_trail(newest_first=False) if entry.action == action]


# --- engine ----------------------------------------------------------------------------------------------------------


def test_engine_is_swapped_under_load_without_a_lost_request(setup: Any) -> None:
    running, client, engines = setup
    stop = threading.Event()
    results: list[Any] = []
    failures: list[Exception] = []

    def camera(number: int) -> None:
        count = 0
        while not stop.is_set():
            try:
                request = RequestInfo(request_id=f"{number}-{count}")
                results.append(client.inspect(frame(), RECIPE, request=request, timeout_s=30))
            except AuroraEdgeError as error:
                failures.append(error)
            count += 1

    with ThreadPoolExecutor(8) as pool:
        cameras = [pool.submit(camera, number) for number in range(8)]
        swaps = []
        for name in ("second", "third", "second"):
            time.sleep(0.2)
            swaps.append(client.swap_engine(name, reason="trial"))
        time.sleep(0.2)
        stop.set()
        for each in cameras:
            each.result(30)
    assert not failures
    assert [swap.model_id for swap in swaps] == ["second", "third", "second"]
    assert {result.model_id for result in results} == {"first", "second", "third"}
    # In the order of the commits, engines follow one another: none comes back by itself.
    stored = [row.result.model_id for row in running.server.store.results()]
    assert len(stored) == len(results)
    changes = [now for before, now in zip([None, *stored], stored, strict=False) if before != now]
    assert changes == ["first", "second", "third", "second"]
    # The one that the fixture made was never at work; the last one still is.
    assert [engine.closed for engine in engines.opened[1:]] == [True] * 3 + [False]
    history = [entry.model_id for entry in running.server.store.engines()]
    assert history == ["first", "second", "third", "second"]
    details = running.server.store.engines()[1].details
    assert details["replaces"] == swaps[0].old_engine_sha256 and details["probe_ng_probability"]
    assert [entry.why for entry in audit(running, "engine.change")][1:] == ["trial"] * 3
    assert client.server_info().model_id == "second"


@pytest.mark.parametrize(
    ("name", "sha256", "error"),
    [
        ("damaged", "", EngineDamagedError),
        ("mute", "", EngineIncompatibleError),
        ("second", "0" * 64, EngineIncompatibleError),
        ("nothing", "", EngineNotFoundError),
        ("link", "", EngineNotFoundError),
        ("../secret", "", InvalidRequestError),
        ("/etc", "", InvalidRequestError),
        ("", "", InvalidRequestError),
        (".", "", EngineNotFoundError),
        ("a\0b", "", InvalidRequestError),
    ],
)
def test_what_cannot_be_used_leaves_the_engine_as_it_is(setup: Any, name: str, sha256: str, error: type) -> None:
    running, client, engines = setup
    with pytest.raises(AuroraEdgeError) as caught:
        client.swap_engine(name, engine_sha256=sha256, reason="trial")
    assert type(caught.value) is error
    assert client.inspect(frame(), RECIPE).model_id == "first"
    assert [entry.model_id for entry in running.server.store.engines()] == ["first"]
    assert all(opened.closed for opened in engines.opened[2:]), "a package that is refused is closed again"


def test_changes_need_a_reason(setup: Any) -> None:
    _, client, _ = setup
    for call in (
        lambda: client.swap_engine("second", reason=" "),
        lambda: client.swap_engine("second", reason="x" * 1025),
        lambda: client.put_recipe(load_recipe(RECIPE), replaces_version=1, reason=""),
        lambda: client.reload_recipes(reason="x" * 1025),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            call()
        assert caught.value.field == "reason"


@pytest.mark.skipif(not (EMBEDDED / "manifest.json").is_file(), reason="the embedded engine is not in this checkout")
def test_real_engine_is_verified_and_swapped(tmp_path: Path) -> None:
    from auroraedge.runtime import Inspector
    from service.server import open_inspector

    good, bad = tmp_path / "engines" / "good", tmp_path / "engines" / "bad"
    shutil.copytree(EMBEDDED, good)
    shutil.copytree(EMBEDDED, bad)
    with (bad / "decoder.onnx").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff" * 16)
    with (
        running_server(
            Inspector.open(threads=1), make_inspector=open_inspector, store="none", threads=1,
            engines=(tmp_path / "engines",),
        ) as running,
        InspectionClient(running.address) as client,
    ):  # fmt: skip
        before = client.inspect(frame(300, 200), RECIPE)
        with pytest.raises(EngineDamagedError):
            client.swap_engine("bad", reason="trial")
        swap = client.swap_engine("good", engine_sha256=before.engine_sha256, reason="trial")
        assert swap.load_ms > 0
        after = client.inspect(frame(300, 200), RECIPE)
        assert (after.ng_probability, after.verdict) == (before.ng_probability, before.verdict)


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipes(tmp_path: Path) -> Callable[[str, int, float], Path]:
    folder = tmp_path / "recipes"
    folder.mkdir()

    def write(name: str, version: int, ok_below: float) -> Path:
        text = (
            f"id: {name}\nversion: {version}\ntitle: T\ntask: inspect\nlabels:\n  - name: scratch\n"
            f"thresholds: {{ok_below: {ok_below}, ng_above: 0.9}}\n"
        )
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        return folder

    write("plate", 1, 0.3)
    return write


def test_recipes_are_read_again_all_or_none(recipes: Any, tmp_path: Path) -> None:
    with (
        running_server(store=str(tmp_path / "state"), recipes=(tmp_path / "recipes",)) as running,
        InspectionClient(running.address) as client,
    ):
        assert client.reload_recipes() == []
        recipes("plate", 2, 0.4)
        recipes("bolt", 1, 0.3)
        changes = client.reload_recipes(reason="new limit")
        assert [(c.recipe_id, c.kind, c.old_version, c.new_version) for c in changes] == [
            ("bolt", "added", 0, 1),
            ("plate", "changed", 1, 2),
        ]
        assert client.inspect(frame(), "plate", recipe_version=2).thresholds.ok_below == 0.4  # type: ignore[union-attr]
        assert client.inspect(frame(), "bolt").recipe_id == "bolt"
        (tmp_path / "recipes" / "bolt.yaml").write_text("id: [broken", encoding="utf-8")
        recipes("plate", 3, 0.5)
        with pytest.raises(RecipeError):
            client.reload_recipes()
        assert client.inspect(frame(), "plate").recipe_version == 2
        (tmp_path / "recipes" / "bolt.yaml").unlink()
        kinds = {change.recipe_id: change.kind for change in client.reload_recipes()}
        assert kinds == {"bolt": "removed", "plate": "changed"}
        assert [entry.why for entry in audit(running, "recipe.added")] == ["new limit"]
        assert len(audit(running, "recipe.changed")) == 2 and len(audit(running, "recipe.removed")) == 1


def test_put_recipe_is_a_new_version_that_a_restart_keeps(tmp_path: Path) -> None:
    mine = load_recipe(RECIPE).model_copy(update={"title": "Tiles of line 4"})
    with running_server(store=str(tmp_path)) as running, InspectionClient(running.address) as client:
        kept = client.put_recipe(mine, replaces_version=1, reason="title")
        assert (kept.version, kept.title) == (2, "Tiles of line 4")
        with pytest.raises(RecipeVersionError):
            client.put_recipe(mine, replaces_version=1, reason="too late")
        new = mine.model_copy(update={"id": "tile_b"})
        assert client.put_recipe(new, replaces_version=0, reason="new part").version == 1
        assert client.inspect(frame(), RECIPE).recipe_version == 2
        assert client.reload_recipes() == []
        assert [entry.why for entry in audit(running, "recipe.put")] == ["title", "new part"]
    with running_server(store=str(tmp_path)) as running, InspectionClient(running.address) as client:
        assert client.inspect(frame(), RECIPE).recipe_version == 2
        assert client.inspect(frame(), "tile_b").recipe_version == 1


def test_put_recipe_needs_a_store() -> None:
    with (
        running_server(store="none") as running,
        InspectionClient(running.address) as client,
        pytest.raises(StoreError, match="without a store"),
    ):
        client.put_recipe(load_recipe(RECIPE), replaces_version=1, reason="r")


# --- status and drain ------------------------------------------------------------------------------------------------


def test_status_counts_what_happened(setup: Any) -> None:
    _, client, _ = setup
    for bright in (False, True, True):
        client.inspect(frame(bright=bright), RECIPE, request=RequestInfo(request_id=f"{bright}"))
    with pytest.raises(AuroraEdgeError):
        client.inspect(frame(), "nothing")
    status = client.status()
    assert (status.state, status.store, status.model_id) == ("serving", "writing", "first")
    assert status.verdicts == {"OK": 1, "NG": 1}
    assert status.replayed == 1 and status.last_seq == 2
    assert status.refused == {"RECIPE_NOT_FOUND": 1}
    assert status.rss_bytes > 10_000_000 and status.queue_frames == 0


def test_drain_is_audited_and_refuses_new_calls(setup: Any) -> None:
    running, client, _ = setup
    with pytest.raises(InvalidRequestError):
        client.drain(drain_s=-1)
    assert client.drain(drain_s=3, reason="maintenance") == 0
    assert running.server.drain_wanted.result() == 3
    assert [entry.why for entry in audit(running, "service.drain")] == ["maintenance"]
    running.run(running.server.drain(3))
    with pytest.raises(ServerUnavailableError):
        client.inspect(frame(), RECIPE)


def test_verdict_after_swap_is_still_a_verdict(setup: Any) -> None:
    _, client, _ = setup
    client.swap_engine("second", reason="trial")
    assert client.inspect(frame(bright=True), RECIPE).verdict is Verdict.NG
