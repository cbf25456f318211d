"""The parts of `auroraedge ingest` that need no server: settings, journal, names and sidecars, the command line."""

from __future__ import annotations

import re
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from auroraedge.cli import app
from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from auroraedge.ingest.backoff import Backoff
from auroraedge.ingest.files import file_system, is_network
from auroraedge.ingest.frames import FileOrigin, Frame, file_request_id, request_info
from auroraedge.ingest.journal import Journal
from auroraedge.ingest.metadata import name_fields, sidecar_fields, trigger_from
from auroraedge.ingest.settings import config_from
from auroraedge.inspection.results import RequestInfo

ROOT = Path(__file__).resolve().parents[2]
WATCH = {"type": "watch", "name": "cam", "folder": "in"}


def test_the_documented_settings_are_valid() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "ingest.md").read_text(encoding="utf-8"), re.DOTALL)
    config = config_from(yaml.safe_load(block))
    assert [source.type for source in config.sources] == ["watch", "video", "video", "genicam"]


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ({"sources": [WATCH]}, "config", "has no recipe"),
        ({"recipe": "r", "sources": []}, "sources", "at least 1"),
        ({"recipe": "r", "sources": [WATCH, WATCH]}, "config", "same name"),
        ({"recipe": "r", "sources": [WATCH | {"done": "move"}]}, "sources.0.watch", "needs a done_folder"),
        ({"recipe": "r", "sources": [WATCH | {"done_folder": "in/done"}]}, "sources.0.watch", "must not lie in"),
        ({"recipe": "r", "sources": [WATCH | {"pattern": "(?P<serial>x)"}]}, "sources.0.watch.pattern", "serial"),
        ({"recipe": "r", "sources": [WATCH | {"pattern": "("}]}, "sources.0.watch.pattern", "no regular expression"),
        ({"recipe": "r", "sources": [WATCH | {"info": {"request_id": "1"}}]}, "sources.0.watch.info", "request_id"),
        ({"recipe": "r", "sources": [WATCH | {"name": "a/b"}]}, "sources.0.watch.name", "pattern"),
        ({"recipe": "r", "sources": [WATCH], "speed": 1}, "speed", "Extra"),
        (
            {"recipe": "r", "sources": [{"type": "video", "name": "v", "url": "0", "trigger": {"kind": "mqtt"}}]},
            "sources.0.video.trigger",
            "topic",
        ),
    ],
)
def test_wrong_settings_are_named(content: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as raised:
        config_from(content)
    assert raised.value.field == field


def test_secrets_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    hook = {"name": "h", "url": "http://127.0.0.1:9/", "secret_file": str(tmp_path / "empty")}
    config = {"recipe": "r", "state": str(tmp_path / "s"), "sources": [WATCH], "outputs": {"webhooks": [hook]}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(app, ["ingest", "--config", str(tmp_path / "c.yaml"), "--check"])
    assert done.exit_code == 2 and "is empty" in done.output
    (tmp_path / "empty").write_text("key")
    done = CliRunner().invoke(app, ["ingest", "--config", str(tmp_path / "c.yaml"), "--check"])
    assert done.exit_code == 0 and "1 sources, 1 outputs" in done.output


def test_nothing_to_do_is_an_error() -> None:
    done = CliRunner().invoke(app, ["ingest", "--recipe", "pcb"])
    assert done.exit_code == 2 and "nothing to take frames from" in done.output


def test_names_sidecars_and_triggers(tmp_path: Path) -> None:
    assert name_fields(r"(?P<lot>L\d+)/(?P<part_id>\w+)_(?P<job>J\d)?", "L5/A7_.png") == {"lot": "L5", "part_id": "A7"}
    with pytest.raises(InvalidRequestError, match="does not match"):
        name_fields(r"L\d", "x.png")
    table = tmp_path / "a.csv"
    table.write_text("\ufeffpart_id,lot,extra\n007,L1,x\n")
    assert sidecar_fields(table) == {"part_id": "007", "lot": "L1"}
    for text in ("part_id\n", "part_id\n1\n2\n"):
        table.write_text(text)
        with pytest.raises(InvalidRequestError, match="rows instead of one"):
            sidecar_fields(table)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InvalidRequestError, match="no JSON object"):
        sidecar_fields(tmp_path / "a.json")
    assert trigger_from(" 4711 \n", 1.0).id == "4711"
    assert trigger_from('{"trigger_id": 8, "lot": "L"}', 1.0).info == {"trigger_id": 8, "lot": "L"}
    now = datetime.now(UTC)
    info = request_info({"lot": "a", "line": "1"}, {"lot": 5, "line": ""}, request_id="x", captured_at=now)
    assert (info.lot, info.line, info.captured_at) == ("5", "1", now)
    with pytest.raises(InvalidRequestError) as raised:
        request_info({"part_id": "x" * 300}, request_id="x", captured_at=now)
    assert raised.value.field == "part_id"


def test_request_ids_of_files() -> None:
    origin = FileOrigin(path=Path("a.png"), relative="a.png", size=3, mtime_ns=5)
    again = FileOrigin(path=Path("elsewhere/a.png"), relative="a.png", size=3, mtime_ns=5)
    newer = FileOrigin(path=Path("a.png"), relative="a.png", size=3, mtime_ns=6)
    first = file_request_id("cam", origin, b"abc")
    assert first == file_request_id("cam", again, b"abc") and len(first) <= 256
    others = {
        file_request_id("cam", newer, b"abc"),
        file_request_id("cam", origin, b"abd"),
        file_request_id("b", origin, b"abc"),
    }
    assert len(others | {first}) == 4


def live_frame(number: int, data: bytes = b"12345") -> Frame:
    return Frame(
        source="cam",
        data=data,
        request=RequestInfo(request_id=f"r{number}"),
        image_name="i",
        recipe="r",
        at=time.monotonic(),
    )


def test_a_result_and_its_frame_change_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path, spool_bytes=12) as journal:
        assert journal.spool(live_frame(1)) and journal.spool(live_frame(2))
        assert not journal.spool(live_frame(3)), "the limit is 12 bytes"
        first, second = journal.take("cam"), journal.take("cam")
        assert first is not None and second is not None and journal.take("cam") is None
        assert (first.request.request_id, first.data) == ("r1", b"12345")
        with pytest.raises(TypeError):  # the document cannot be written: the frame stays
            journal.finish(first, failed=False, sinks=["a"], key="r1", body={"x": object()})
        with pytest.raises(sqlite3.Error):
            journal.finish(first, failed=False, sinks=[None], key="r1", body={})  # type: ignore[list-item]
        assert journal.spooled("cam") == 2 and not journal.waiting("a")
        journal.finish(first, failed=False, sinks=["a", "b"], key="r1", body={"n": 1})
        journal.finish(first, failed=False, sinks=[], key="r1", body={})
    # Killed between the file and its row, and between the row and its file.
    (tmp_path / "spool" / "orphan.frame").write_bytes(b"x")
    with Journal(tmp_path, spool_bytes=12) as journal:
        assert len(list((tmp_path / "spool").iterdir())) == 1
        found = journal.take("cam")
        assert found is not None and found.request.request_id == "r2"
        assert [each.body for each in journal.messages("a")] == [{"n": 1}] and journal.waiting("b") == 1
        assert [journal.next_number("bdSeq") for _ in range(2)] == [0, 1]
    with Journal(tmp_path, spool_bytes=12) as journal:
        assert journal.next_number("bdSeq") == 2
        sqlite3.connect(tmp_path / "journal.db").execute("PRAGMA user_version=99")
    with pytest.raises(InvalidRequestError, match="newer AuroraEdge"):
        Journal(tmp_path, spool_bytes=12)


def test_a_damaged_journal_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(AuroraEdgeError, match="cannot be read"):
        Journal(tmp_path, spool_bytes=1)


def test_backoff_grows_to_its_limit() -> None:
    backoff = Backoff(first_s=1, max_s=8)
    assert all(limit / 2 <= backoff.next() <= limit for limit in (1, 2, 4, 8, 8, 8))
    backoff.reset()
    assert backoff.next() <= 1


def test_network_file_systems_are_polled() -> None:
    assert file_system(Path("/proc")) == "proc"
    assert is_network("nfs4") and is_network("fuse.sshfs") and not is_network("ext4")
