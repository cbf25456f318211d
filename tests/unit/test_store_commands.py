"""`auroraedge store`: what people and timers call."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from store_support import START, make_picture, make_result
from typer.testing import CliRunner, Result

from auroraedge.cli import app
from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.results import Verdict
from auroraedge.store import Purpose, Store
from auroraedge.store.options import build_filter, parse_days, parse_moment, parse_size


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with four results, named by the environment."""
    folder = tmp_path / "plant"
    with Store.open(folder) as store:
        for index, verdict in enumerate((Verdict.OK, Verdict.NG, Verdict.REVIEW)):
            store.record(make_result(index, verdict, lot=f"L{index}"), image=make_picture(index))
        store.record(make_result(3), purpose=Purpose.CHALLENGE)
        store.put_recipe(load_recipe("pcb"), who="Ada", why="start")
    monkeypatch.setenv("AURORAEDGE_STORE", str(folder))
    monkeypatch.setenv("COLUMNS", "160")
    return folder


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["store", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def lines(*arguments: object) -> list[dict[str, object]]:
    return [json.loads(line) for line in run(*arguments).stdout.splitlines()]


def test_info(plant: Path) -> None:
    found = json.loads(run("info", "--json").stdout)
    assert found["verdicts"] == {"OK": 1, "NG": 1, "REVIEW": 1, "ERROR": 0}
    assert (found["other_results"], found["waiting_for_review"], found["images"]) == (1, 1, 3)
    assert datetime.fromisoformat(found["first_result_at"]) == START
    assert found["image_bytes"] == sum(len(make_picture(n)) for n in range(3))
    assert "1 wait for a person" in run("info").stdout


def test_results(plant: Path) -> None:
    assert [line["seq"] for line in lines("results", "--json")] == [1, 2, 3]
    assert [line["seq"] for line in lines("results", "--json", "--limit", 2)] == [2, 3]
    assert [line["seq"] for line in lines("results", "--json", "--limit", 0, "--all")] == [1, 2, 3, 4]
    assert [line["seq"] for line in lines("results", "--json", "--lot", "L0", "--lot", "L1")] == [1, 2]
    assert [line["seq"] for line in lines("results", "--json", "--verdict", "ng")] == [2]
    assert [line["seq"] for line in lines("results", "--json", "--waiting")] == [3]
    until = (START + timedelta(seconds=1)).isoformat()
    assert [line["seq"] for line in lines("results", "--json", "--until", until)] == [1]
    assert lines("results", "--json", "--since", "1h") == []
    table = run("results", "--limit", 2).stdout
    assert "part-2" in table
    assert "part-0" not in table
    assert "2 of 3" in table
    (ng,) = lines("results", "--json", "--verdict", "NG")
    assert ng["result"]["defects"][0]["label"] == "open"  # type: ignore[index]


def test_show(plant: Path, tmp_path: Path) -> None:
    with Store.open(plant) as store:
        store.review("result-2", verdict=Verdict.OK, reviewer="Ada", reason="dust")
    assert "Ada: dust" in run("show", "result-2").stdout
    assert json.loads(run("show", "result-2", "--json").stdout)["review"]["reviewer"] == "Ada"
    run("show", "result-1", "--save", tmp_path / "saved.png")
    assert (tmp_path / "saved.png").read_bytes() == make_picture(1)
    run("show", "nobody", code=3)
    run("show", "result-3", "--save", tmp_path / "none.png", code=3)


def test_check_and_mend(plant: Path) -> None:
    assert "sound" in run("check").stdout
    orphan = plant / "images" / "00" / f"{'0' * 64}.png"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"x")
    assert "not sound" in run("check", code=4).stdout
    assert json.loads(run("check", "--json", code=4).stdout)["counts"] == {"orphan": 1}
    assert "sound again" in run("mend", "--who", "Ada").stdout
    assert not orphan.exists()
    run("check", "--deep")


def test_retain(plant: Path) -> None:
    assert json.loads(run("retain", "--dry-run", "--json").stdout)["images_removed"] == 1
    kept = json.loads(run("retain", "--ok-days", "forever", "--max-size", "1B", "--who", "Ada", "--json").stdout)
    assert (kept["images_removed"], kept["images_left"]) == (2, 1)
    assert kept["over_limit_bytes"] == len(make_picture(2)) - 1
    run("retain", "--ok-days", "soon", code=2)
    run("retain", "--max-size", "much", code=2)
    (entry,) = [e for e in lines("audit", "--json") if e["action"] == "store.retain"]
    assert entry["who"] == "Ada"


def test_export_and_import(plant: Path, tmp_path: Path) -> None:
    run("export", tmp_path / "all.zip")
    other = tmp_path / "other"
    report = json.loads(run("import", tmp_path / "all.zip", "--store", other, "--json").stdout)
    assert (report["results"], report["images"], report["recipes"]) == (4, 3, 1)
    with Store.open(tmp_path / "third") as store:
        store.record(make_result(0, Verdict.NG))
    assert "result-0" in run("import", tmp_path / "all.zip", "--store", tmp_path / "third", code=2).stdout
    run("import", tmp_path / "nothing.zip", "--store", other, code=2)


def test_audit(plant: Path) -> None:
    (entry,) = lines("audit", "--json")
    assert (entry["who"], entry["action"], entry["subject"], entry["why"]) == (
        "Ada",
        "recipe.put",
        "recipe:pcb",
        "start",
    )
    with Store.open(plant) as store:
        store.put_recipe(store.recipe("pcb").model_copy(update={"title": "Neu"}), who="Bob", why="clearer")
    # Of a recipe with fifty values the table shows the one that was changed.
    assert '{"title": ' in run("audit", "--limit", 1).stdout
    assert lines("audit", "--json", "--subject", "recipe:none") == []


def test_errors_have_codes_and_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AURORAEDGE_STORE", raising=False)
    assert "--store PATH" in run("info", code=2).stderr
    assert "migrate" in run("info", "--store", tmp_path / "none", code=3).stderr
    assert list(tmp_path.iterdir()) == []
    run("migrate", "--store", tmp_path / "new")
    run("info", "--store", tmp_path / "new")
    (tmp_path / "bad.db").write_bytes(b"nonsense" * 1000)
    run("info", "--store", tmp_path / "bad.db", code=4)
    run("info", "--store", "postgresql://x@127.0.0.1:1/none", code=5)


def test_values_of_options() -> None:
    assert parse_moment("2026-03-04T06:00Z", "since") == START
    assert parse_moment("2026-03-04T07:00+01:00", "since") == START
    now = datetime.now(UTC)
    for text, hours in (("30min", 0.5), ("8h", 8), ("7d", 168), ("2w", 336), ("1.5h", 1.5)):
        found = parse_moment(text, "since")
        assert found is not None
        assert abs(now - timedelta(hours=hours) - found) < timedelta(seconds=5)
    local = parse_moment("2026-03-04T06:00", "since")
    assert local is not None
    assert local.astimezone() == datetime(2026, 3, 4, 6).astimezone()
    assert parse_moment(None, "since") is None
    assert [parse_days(text, "d") for text in ("30", "1.5d", "0", "forever", None)] == [30, 1.5, 0, None, None]
    sizes = ["1", "1B", "2k", "500MB", "500MiB", "1.5 GiB", "2TB"]
    assert [parse_size(text, "s") for text in sizes] == [1, 1, 2000, 5 * 10**8, 500 << 20, 3 << 29, 2 * 10**12]
    for parse, text in ((parse_moment, "soon"), (parse_days, "-1"), (parse_days, "nan"), (parse_size, "1XB")):
        with pytest.raises(InvalidRequestError) as error:
            parse(text, "field")
        assert error.value.field == "field"
    with pytest.raises(InvalidRequestError):
        build_filter(verdicts=["GOOD"])
