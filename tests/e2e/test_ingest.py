"""`auroraedge ingest` with a real server: files and folders, none lost and none twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from service_harness import StatisticsInspector, encoded, frame, running_server

from auroraedge.errors import InvalidRequestError, ServerUnavailableError
from auroraedge.ingest import Ingest
from auroraedge.ingest.settings import config_from
from auroraedge.inspection.results import InspectionResult, RequestInfo, Verdict

ROOT = Path(__file__).resolve().parents[2]


def picture(value: int) -> bytes:
    pixels = frame()
    pixels[0, 0] = (value % 256, value // 256, 7)  # every file another picture
    return encoded(pixels)


def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def settings(tmp_path: Path, address: str, source: dict[str, Any], **others: Any) -> Any:
    content = {
        "server": {"address": address, "timeout_s": 5},
        "recipe": "magnetic_tile",
        "state": tmp_path / "state",
        "status_s": 0,
        "sources": [source],
    }
    return config_from(content | others)


def watched(folder: Path, **others: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {"type": "watch", "name": "cam", "folder": folder, "settle_s": 0.1, "poll_s": 0.3} | others


def answered(run: Ingest) -> int:
    return run.stats["cam"]["answered"]


@pytest.fixture
def server() -> Iterator[Any]:
    with running_server(StatisticsInspector(), shared_memory_mb=0) as running:
        yield running


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_files_are_inspected_once(tmp_path: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        (tmp_path / f"SN{number:03d}_L7.png").write_bytes(picture(number))
    (tmp_path / "SN009_L7.png").write_bytes(b"no picture")
    source = {
        "type": "files",
        "name": "cam",
        "paths": [str(tmp_path / "*.png"), str(tmp_path)],
        "pattern": r"(?P<part_id>SN\d+)_(?P<lot>L\d)",
    }
    config = settings(tmp_path, server.address, source, outputs={"jsonl": True}, info={"line": "3"})
    with Ingest(config) as run:
        run.wait()
    first = lines(capsys.readouterr().out)
    assert sorted(each["result"]["request"]["part_id"] for each in first) == [
        "SN000", "SN001", "SN002", "SN003", "SN004", "SN009",
    ]  # fmt: skip
    assert {each["result"]["request"]["lot"] for each in first} == {"L7"}
    assert {each["result"]["request"]["line"] for each in first} == {"3"}
    verdicts = Counter(each["result"]["verdict"] for each in first)
    assert verdicts == {"OK": 5, "ERROR": 1}
    assert len({each["id"] for each in first}) == 6
    # A second run tries the failed file again, under the same id, and nothing else.
    with Ingest(config) as run:
        run.wait()
    (again,) = lines(capsys.readouterr().out)
    assert again["id"] == next(each["id"] for each in first if each["result"]["verdict"] == "ERROR")


def test_sidecars_name_the_part_and_a_wrong_one_is_an_error(tmp_path: Path, server: Any) -> None:
    folder = tmp_path / "in"
    out: list[Any] = []
    with Ingest(settings(tmp_path, server.address, watched(folder, sidecar="json"))) as run:
        finish = run.journal.finish
        run.journal.finish = lambda *a, body, **k: (out.append(body), finish(*a, body=body, **k))[1]  # type: ignore[method-assign]
        (folder / "a.png").write_bytes(picture(1))
        time.sleep(0.8)
        assert not answered(run), "it waits for its sidecar"
        (folder / "a.json").write_text('{"part_id": 17, "lot": "L1", "exposure_us": 250.5, "operator": "x"}')
        until(lambda: answered(run) == 1)
        (folder / "b.png.json").write_text('{"part_id": ["list"]}')
        (folder / "b.png").write_bytes(picture(2))
        until(lambda: answered(run) == 2)
    good, bad = (each["result"] for each in out)
    assert (good["request"]["part_id"], good["request"]["exposure_us"]) == ("17", 250.5)
    assert bad["verdict"] == "ERROR" and "part_id" in bad["error"]["message"]


@pytest.mark.parametrize("watch", ["events", "poll"])
def test_a_file_is_taken_when_it_is_complete(tmp_path: Path, server: Any, watch: str) -> None:
    folder = tmp_path / "in"
    done = tmp_path / "done"
    with Ingest(settings(tmp_path, server.address, watched(folder, watch=watch, done="move", done_folder=done))) as run:
        data = picture(3)
        with (folder / "slow.png").open("wb") as file:
            for start in range(0, len(data), 40):
                file.write(data[start : start + 40])
                file.flush()
                time.sleep(0.05)
            # Longer than it takes to settle: what is there does not end as a PNG file does.
            file.seek(len(data) - 12)
            file.truncate()
            file.flush()
            time.sleep(0.4)
            assert not answered(run)
            file.write(data[-12:])
        (folder / ".hidden.png").write_bytes(data)
        (folder / "sub").mkdir()
        (folder / "sub" / "part.tmp").write_bytes(picture(4))
        os.replace(folder / "sub" / "part.tmp", folder / "sub" / "part.png")
        until(lambda: (done / "slow.png").exists() and (done / "sub" / "part.png").exists())
        # The camera uses the name again: another part, which does not overwrite the first.
        (folder / "slow.png").write_bytes(picture(5))
        until(lambda: (done / "slow_1.png").exists())
    assert run.stats["cam"].snapshot() | {"p50_ms": 0, "p99_ms": 0} == {
        "frames": 3, "answered": 3, "OK": 3, "NG": 0, "REVIEW": 0, "ERROR": 0, "dropped": 0, "spool_full": 0,
        "retries": 0, "reconnects": 0, "online": True, "p50_ms": 0, "p99_ms": 0, "last_error": "",
    }  # fmt: skip
    assert (done / "slow.png").read_bytes() == data


def test_failed_files_are_kept_apart_and_never_deleted(tmp_path: Path, server: Any) -> None:
    folder, done = tmp_path / "in", tmp_path / "done"
    moving = watched(folder, done="move", done_folder=done)
    with Ingest(settings(tmp_path, server.address, moving)) as run:
        (folder / "bad.bmp").write_bytes(b"BM no picture")
        until(lambda: (done / "failed" / "bad.bmp").exists())
    with Ingest(settings(tmp_path, server.address, watched(folder, done="delete"))) as run:
        (folder / "bad.bmp").write_bytes(b"BM no picture")
        (folder / "good.png").write_bytes(picture(1))
        until(lambda: answered(run) == 2)
        until(lambda: not (folder / "good.png").exists())
    assert (folder / "bad.bmp").exists()


def test_an_outage_of_the_server_only_delays(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    inspector = StatisticsInspector()
    with running_server(inspector, shared_memory_mb=0) as first:
        port = first.server.port
        run = Ingest(settings(tmp_path, first.address, watched(folder)))
        run.start()
        (folder / "0.png").write_bytes(picture(0))
        until(lambda: answered(run) == 1)
    for number in range(1, 8):
        (folder / f"{number}.png").write_bytes(picture(number))
    until(lambda: run.stats["cam"]["retries"] >= 2)
    assert answered(run) == 1
    second = StatisticsInspector()
    with running_server(second, port=port, shared_memory_mb=0):
        until(lambda: answered(run) == 8)
        run.stop()
    inspected = sorted(name for name in second.names if name)  # the frames of the warm-up have no name
    assert inspected == sorted(f"{number}.png" for number in range(1, 8)), "each once"


def test_kill_loses_and_repeats_nothing(tmp_path: Path) -> None:
    folder, number = tmp_path / "in", 40
    folder.mkdir()
    for index in range(number):
        (folder / f"{index:03d}.png").write_bytes(picture(index))
    state = tmp_path / "state"
    with running_server(StatisticsInspector(pause_s=0.02), shared_memory_mb=0) as server:
        config = tmp_path / "ingest.yaml"
        config.write_text(
            json.dumps(
                {
                    "server": {"address": server.address},
                    "recipe": "magnetic_tile",
                    "state": str(state),
                    "sources": [watched(folder) | {"folder": str(folder)}],
                    # Nobody listens there: results stay in the outbox, where they can be counted.
                    "outputs": {"webhooks": [{"name": "away", "url": "http://127.0.0.1:9/"}]},
                }
            )
        )
        command = [sys.executable, "-m", "auroraedge.cli", "ingest", "--config", str(config)]

        def outbox() -> list[dict[str, Any]]:
            import sqlite3

            with (
                contextlib.suppress(sqlite3.OperationalError),
                contextlib.closing(sqlite3.connect(f"file:{state / 'journal.db'}?mode=ro", uri=True)) as db,
            ):
                return [json.loads(row[0]) for row in db.execute("SELECT body FROM outbox")]
            return []

        for kill_at in (5, 20, number):
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
            try:
                until(lambda target=kill_at: len(outbox()) >= target, 40)
            finally:
                process.send_signal(signal.SIGKILL if kill_at < number else signal.SIGTERM)
                code = process.wait(30)
        assert code == 0
    found = outbox()
    assert sorted(each["result"]["image_name"] for each in found) == [f"{index:03d}.png" for index in range(number)]
    assert len({each["id"] for each in found}) == number


def test_what_cannot_work_is_said_at_the_start(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    with pytest.raises(InvalidRequestError, match="no recipe 'nothing'"):
        Ingest(settings(tmp_path, server.address, watched(folder), recipe="nothing")).start()
    first = Ingest(settings(tmp_path, server.address, watched(folder)))
    with pytest.raises(InvalidRequestError, match="Another ingest uses"):
        Ingest(settings(tmp_path, server.address, watched(folder)))
    first.stop() if first.lanes[0]._threads else first.journal.close()
    monkeypatch.setattr("auroraedge.ingest.run._GIVE_UP_S", 0.5)
    (tmp_path / "a.png").write_bytes(picture(1))
    lonely = {"type": "files", "name": "cam", "paths": [str(tmp_path / "a.png")]}
    with (
        pytest.raises(ServerUnavailableError, match="has taken no frame"),
        Ingest(settings(tmp_path, "127.0.0.1:9", lonely)) as run,
    ):
        run.wait()


def test_two_sources_do_not_wait_for_each_other(tmp_path: Path) -> None:
    gate = threading.Event()

    class Client:
        def inspect(self, image: bytes, recipe_id: str, *, image_name: str, request: RequestInfo, **_: Any) -> Any:
            assert image_name != "slow.png" or gate.wait(20)
            return InspectionResult(verdict=Verdict.OK, request=request, image_name=image_name)

    both = [watched(tmp_path / "a"), watched(tmp_path / "b") | {"name": "other"}]
    with Ingest(settings(tmp_path, "", both[0], sources=both), client=Client()) as run:
        (tmp_path / "a" / "slow.png").write_bytes(picture(1))
        until(lambda: run.stats["cam"]["frames"] == 1)
        (tmp_path / "b" / "quick.png").write_bytes(picture(2))
        until(lambda: run.stats["other"]["answered"] == 1)
        assert not answered(run)
        gate.set()
        until(lambda: answered(run) == 1)
    status = json.loads((tmp_path / "state" / "status.json").read_text())
    assert {name: each["OK"] for name, each in status["sources"].items()} == {"cam": 1, "other": 1}
