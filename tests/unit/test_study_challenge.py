"""The golden-part challenge: wrong verdicts, drift, and alarms that are rare when nothing has changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_inspector import FakeEngine, FakeInspector, write_part
from store_support import make_result
from typer.testing import CliRunner, Result

from auroraedge.cli import app
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import InspectionResult, Verdict, new_result_id
from auroraedge.store import NewResult, Purpose, ResultFilter, Store
from auroraedge.studies import drift
from auroraedge.studies.drift import GoldenFrame, compare, compare_golden, sigma_z, window_of
from auroraedge.studies.frames import FrameStatistics, frame_statistics

OK, NG, REVIEW, ERROR = Verdict.OK, Verdict.NG, Verdict.REVIEW, Verdict.ERROR
ALPHA = 0.01


def looks(rng: np.random.Generator, count: int, shift: float = 0.0, size: int = 640) -> list[FrameStatistics]:
    """Frames of a steady line; `shift` in standard deviations of the brightness."""
    return [
        FrameStatistics(
            brightness=float(rng.normal(120 + 5 * shift, 5)),
            contrast=float(rng.gamma(40, 1)),
            sharpness=float(rng.normal(2.5, 0.2)),
            width=size,
            height=480,
        )
        for _ in range(count)
    ]


def verdicts(rng: np.random.Generator, count: int, ng: float = 0.04, review: float = 0.02) -> list[Verdict]:
    drawn = rng.random(count)
    return [NG if d < ng else REVIEW if d < ng + review else OK for d in drawn]


def outcomes(tests: list[drift.DriftTest]) -> dict[str, str]:
    return {test.name: test.outcome for test in tests}


# -- the tests of drift --------------------------------------------------------------------------------------------


def test_false_alarms_are_as_rare_as_stated() -> None:
    """Nothing has changed, 600 times: at most one percent of the checks may alarm."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(600):
        before = window_of(verdicts(rng, 1500), looks(rng, 200))
        now = window_of(verdicts(rng, 300), looks(rng, 60))
        alarms += any(test.outcome == "alarm" for test in compare(before, now, ALPHA))
    # 13 or more of 600 have a probability of 1 % at a rate of one percent.
    assert alarms <= 12


def test_a_rate_that_always_wanders_is_no_alarm() -> None:
    """Lots differ: a test that takes every part as independent would cry wolf."""
    rng = np.random.default_rng(2)

    def lots(count: int) -> list[Verdict]:
        return [v for _ in range(count) for v in verdicts(rng, 100, ng=float(rng.beta(2, 38)), review=0.0)]

    alarms = naive = 0
    for _ in range(150):
        before, now = window_of(lots(60), []), window_of(lots(2), [])
        (test,) = [t for t in compare(before, now, 0.5) if t.name == "rate_NG"]
        assert "sigma_z" in test.method
        assert test.p_value is not None
        alarms += test.p_value < 0.05
        k0, k1 = before.verdicts["NG"], now.verdicts["NG"]
        naive += drift.fisher_p(k1, now.results, k0, before.results) < 0.05
    assert alarms / 150 < 0.15
    assert naive / 150 > 0.25


def test_changes_are_found() -> None:
    rng = np.random.default_rng(3)
    before = window_of(verdicts(rng, 2000), looks(rng, 400))
    darker = compare(before, window_of(verdicts(rng, 400), looks(rng, 150, shift=-2)), ALPHA)
    assert outcomes(darker)["brightness"] == "alarm"
    assert outcomes(darker)["contrast"] == "ok"
    assert "brightness went from" in next(test.reason for test in darker if test.name == "brightness")
    more = compare(before, window_of(verdicts(rng, 400, ng=0.15, review=0.1), looks(rng, 150)), ALPHA)
    assert (outcomes(more)["rate_NG"], outcomes(more)["rate_REVIEW"]) == ("alarm", "alarm")
    failing = window_of([OK] * 380 + [ERROR] * 20, looks(rng, 150))
    assert outcomes(compare(before, failing, ALPHA))["rate_ERROR"] == "alarm"
    cropped = window_of(verdicts(rng, 400), looks(rng, 150, size=320))
    assert outcomes(compare(before, cropped, ALPHA))["size"] == "alarm"
    fewer = compare(before, window_of([OK] * 400, looks(rng, 150)), ALPHA)
    assert outcomes(fewer)["rate_NG"] == "alarm"  # a model that no longer sees anything


def test_a_small_change_in_many_frames_is_no_alarm() -> None:
    rng = np.random.default_rng(4)
    before = window_of([], looks(rng, 2000))
    found = outcomes(compare(before, window_of([], looks(rng, 2000, shift=0.25)), ALPHA))
    assert found["brightness"] in ("watch", "ok")
    assert outcomes(compare(before, window_of([], looks(rng, 2000, shift=0.8)), ALPHA))["brightness"] == "alarm"


def test_too_little_is_said_and_not_guessed() -> None:
    rng = np.random.default_rng(5)
    before = window_of(verdicts(rng, 1000), looks(rng, 200))
    tests = compare(before, window_of(verdicts(rng, 29), looks(rng, 19, shift=9)), ALPHA)
    assert {test.outcome for test in tests} == {"skipped"}
    assert tests[0].reason == "the window has 19 stored frames; 20 are needed"
    assert len(tests) + 3 == drift.TESTS


def test_sigma_z() -> None:
    rng = np.random.default_rng(6)
    steady = [sigma_z(verdicts(rng, 4000, ng=0.1), NG) for _ in range(20)]
    assert all(value is not None and 1 <= value < 1.6 for value in steady)
    wandering = [v for block in range(40) for v in verdicts(rng, 100, ng=0.02 if block % 2 else 0.2)]
    assert (sigma_z(wandering, NG) or 0) > 3
    assert sigma_z([OK] * 4000, NG) is None
    assert sigma_z(verdicts(rng, 400), NG) is None


def golden(values: list[float], sha: str) -> dict[str, GoldenFrame]:
    return {
        f"g{index}": GoldenFrame(
            ng_probability=0.1,
            verdict=OK,
            frame_sha256=f"{sha}{index}",
            statistics=FrameStatistics(brightness=value, contrast=40, sharpness=2.5, width=64, height=64),
        )
        for index, value in enumerate(values)
    }


def test_golden_parts_photographed_anew() -> None:
    before = golden([100.0 + n for n in range(12)], "a")
    darker = compare_golden(before, golden([80.0 + n for n in range(12)], "b"), ALPHA)
    assert outcomes(darker)["golden_brightness"] == "alarm"
    slightly = compare_golden(before, golden([99.0 + n for n in range(12)], "b"), ALPHA)
    assert outcomes(slightly)["golden_brightness"] == "watch"
    mixed = compare_golden(before, golden([100.0 + n + (9 if n % 2 else -9) for n in range(12)], "b"), ALPHA)
    assert outcomes(mixed)["golden_brightness"] == "ok"
    same = compare_golden(before, before, ALPHA)
    assert {test.outcome for test in same} == {"skipped"}
    assert "0 golden parts have a new picture; 11 are needed" in same[0].reason


def test_frame_statistics() -> None:
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)

    def measured(image: np.ndarray) -> FrameStatistics:
        return frame_statistics(cv2.imencode(".png", image)[1].tobytes())

    found = measured(pixels)
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    assert found.brightness == pytest.approx(grey.mean(), abs=0.01)
    assert found.contrast == pytest.approx(grey.std(), abs=0.01)
    assert (found.width, found.height, found.size) == (80, 60, "80x60")
    assert measured(cv2.GaussianBlur(pixels, (9, 9), 3)).sharpness < found.sharpness - 1
    assert measured(np.full((10, 10, 3), 7, np.uint8)).sharpness == 0.0


# -- the command ---------------------------------------------------------------------------------------------------


class _Inspector(FakeInspector):
    """Its results have ids of their own, as the real one's."""

    def inspect(self, image: bytes, recipe: Recipe, **options: Any) -> InspectionResult:
        return super().inspect(image, recipe, **options).model_copy(update={"result_id": new_result_id()})


class _Opened:
    def __init__(self, inspector: FakeInspector) -> None:
        self.inspector = inspector

    def __enter__(self) -> FakeInspector:
        return self.inspector

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store with a day of production, and golden parts."""
    inspector = _Inspector()
    monkeypatch.setattr("auroraedge.runtime.Inspector.open", lambda *_, **__: _Opened(inspector))
    monkeypatch.setenv("AURORAEDGE_STORE", str(tmp_path / "plant"))
    monkeypatch.setenv("AURORAEDGE_RECIPE", "magnetic_tile")
    for number in range(3):
        write_part(tmp_path / "golden" / "ok" / f"good{number}.png", shade=number)
        write_part(tmp_path / "golden" / "ng" / f"bad{number}.png", 3, size=8, shade=number)
    produce(tmp_path, hours_ago=24.0, seed=1)
    yield tmp_path


def produce(
    folder: Path, *, hours_ago: float, seed: int, ng: float = 0.05, gain: float = 1.0, count: int = 300
) -> None:
    rng = np.random.default_rng(seed)
    start = datetime.now(UTC) - timedelta(hours=hours_ago)
    entries = []
    for index, verdict in enumerate(verdicts(rng, 300, ng=ng, review=0.0)):
        pixels = np.clip(rng.normal(120 * rng.normal(1, 0.04) * gain, 20, (32, 32)), 0, 255).astype(np.uint8)
        result = make_result(
            index,
            verdict,
            result_id=f"{seed}-{index}",
            created_at=start + timedelta(seconds=index / 10),
            recipe_id="magnetic_tile",
        )
        entries.append(NewResult(result=result, image=cv2.imencode(".png", pixels)[1].tobytes()))
    with Store.open(folder / "plant") as store:
        store.record_many(entries)


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["study", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def check(plant: Path, *arguments: object, code: int = 0) -> dict[str, Any]:
    command = ("challenge", plant / "golden", "--name", "line A", "--who", "Ada", "--json", *arguments)
    found: dict[str, Any] = json.loads(run(*command, code=code).stdout)
    return found


def test_a_good_shift(plant: Path) -> None:
    first = check(plant)
    assert first["passed"]
    assert first["tests"] == []
    assert "no baseline" in first["notes"][0]
    run("baseline", "--name", "line A", "--parts", plant / "golden", "--who", "Ada", "--why", "after maintenance")
    produce(plant, hours_ago=2, seed=2)
    found = check(plant)
    assert found["passed"]
    assert found["alarms"] == []
    assert [test["outcome"] for test in found["tests"][:7]] == ["ok"] * 7
    assert (found["window_results"], found["window_frames"]) == (300, 300)
    assert {golden["what"] for golden in found["golden"]} == {""}
    assert all(g["ng_probability"] == g["baseline_ng_probability"] for g in found["golden"])
    with Store.open(plant / "plant") as store:
        assert store.count() == 600  # golden parts do not count as production
        assert store.count(ResultFilter(purposes=[Purpose.CHALLENGE])) == 18
        assert [study.kind for study in store.studies()] == ["challenge", "baseline", "challenge"]
        assert store.studies(limit=1)[0].passed is True
        entry = next(store.audit_trail())
        assert (entry.action, entry.who, entry.new["alarms"]) == ("study.challenge", "Ada", [])
    assert "passed" in run("challenge", plant / "golden", "--name", "line A").stdout


def test_a_wrong_verdict_alarms(plant: Path) -> None:
    write_part(plant / "golden" / "ng" / "hidden.png")
    write_part(plant / "golden" / "ok" / "dirty.png", 3, size=8, shade=9)
    write_part(plant / "golden" / "ok" / "unclear.png", 1, size=4, shade=5)
    (plant / "golden" / "ng" / "broken.png").write_bytes(b"nothing")
    found = check(plant, code=6)
    assert not found["passed"]
    assert {g["part"]: g["what"] for g in found["golden"] if g["what"]} == {
        "hidden": "escape",
        "dirty": "overkill",
        "unclear": "undecided",
        "broken": "error",
    }
    assert len(found["alarms"]) == 4
    with Store.open(plant / "plant") as store:
        assert store.studies(limit=1)[0].passed is False
        assert "hidden: escape (NG was judged OK)" in next(store.audit_trail()).new["alarms"]
    shown = run("challenge", plant / "golden", "--name", "line A", code=6).stdout
    assert "ALARM hidden: escape" in shown
    assert "2 alarms" not in run("list").stdout
    assert "4 alarms" in run("list").stdout


def test_drift_alarms(plant: Path) -> None:
    run("baseline", "--name", "line A")
    produce(plant, hours_ago=2, seed=3, gain=0.75, ng=0.2)
    found = check(plant, code=6)
    assert {test["name"] for test in found["tests"] if test["outcome"] == "alarm"} >= {"brightness", "rate_NG"}
    assert all(alarm.startswith("drift: ") for alarm in found["alarms"])
    # Another line has a baseline of its own, and a window can be chosen.
    assert check(plant, "--name", "line B")["passed"]
    assert check(plant, "--line", "nosuch")["passed"]
    assert check(plant, "--window", 0.001)["window_results"] == 0


def test_a_server_may_record_into_the_same_store(plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows nothing of studies; the job of the request keeps golden parts out of its production."""

    class Recording(_Inspector):
        def inspect(self, image: bytes, recipe: Recipe, **options: Any) -> InspectionResult:
            result = super().inspect(image, recipe, **options)
            # The client gives every request an id, and the server knows the fingerprint of the whole request.
            request = result.request.model_copy(update={"request_id": new_result_id()})
            result = result.model_copy(update={"request": request})
            with Store.open(plant / "plant") as store:
                store.record(result, image=image, fingerprint="of the request")
            # What comes back over the wire is not the same to the last digit.
            return result.model_copy(update={"answer_text": "rounded"})

    monkeypatch.setattr("auroraedge.runtime.Inspector.open", lambda *_, **__: _Opened(Recording()))
    assert check(plant)["passed"]
    with Store.open(plant / "plant") as store:
        assert store.count() == 300
        assert store.count(ResultFilter(purposes=[Purpose.CHALLENGE])) == 6


def test_another_engine_is_said(plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("baseline", "--name", "line A", "--parts", plant / "golden")
    other = _Inspector(FakeEngine(engine_sha256="e" * 64))
    monkeypatch.setattr("auroraedge.runtime.Inspector.open", lambda *_, **__: _Opened(other))
    assert any("engine is another one" in note for note in check(plant)["notes"])


def test_what_cannot_be_checked_is_refused(plant: Path, tmp_path: Path) -> None:
    write_part(tmp_path / "only" / "ok" / "a.png")
    assert "no bad part" in run("challenge", tmp_path / "only", "--name", "x", code=2).stderr
    run("challenge", plant / "golden", "--name", "x", "--alpha", "2", code=2)
    run("baseline", "--name", "x", "--since", "1min", code=2)
    run("challenge", tmp_path / "none", "--name", "x", code=2)
