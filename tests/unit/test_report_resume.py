from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_inspector import FakeEngine, FakeInspector, write_part
from report_support import OUTPUTS, journal_lines, make, make_parts, page_of

from auroraedge.errors import (
    EngineIncompatibleError,
    InvalidRequestError,
    QueueFullError,
    ServerUnavailableError,
)
from auroraedge.inspection.results import InspectionResult, Verdict
from auroraedge.report.journal import Journal

HERE = Path(__file__).resolve().parent


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return make_parts(tmp_path / "parts")


def test_second_run_inspects_only_what_changed(tmp_path: Path, parts: Path) -> None:
    make(tmp_path / "out", parts)
    lines = len(journal_lines(tmp_path / "out"))
    again = FakeInspector()
    summary = make(tmp_path / "out", parts, again)
    assert again.calls == ["bad.png"], "only the failure is tried again"
    assert summary.reused == 5
    assert len(journal_lines(tmp_path / "out")) == lines, "the same failure is not written twice"
    write_part(parts / "a.png", 3, size=8)
    changed = FakeInspector()
    assert make(tmp_path / "out", parts, changed).counts[Verdict.NG] == 3
    assert changed.calls == ["a.png", "bad.png"]
    other_engine = FakeInspector(FakeEngine(engine_sha256="e" * 64))
    make(tmp_path / "out", parts, other_engine)
    assert len(other_engine.calls) == 6
    other_recipe = FakeInspector()
    make(tmp_path / "out", parts, other_recipe, recipe="ball_screw")
    assert len(other_recipe.calls) == 6


def test_a_mended_file_replaces_its_failure(tmp_path: Path, parts: Path) -> None:
    make(tmp_path / "out", parts)
    write_part(parts / "bad.png", 0, shade=9)
    summary = make(tmp_path / "out", parts)
    assert summary.counts[Verdict.ERROR] == 0
    assert summary.counts[Verdict.OK] == 3


@pytest.mark.parametrize("keep", [1, 40, -1])
def test_a_torn_last_line_is_repaired(tmp_path: Path, parts: Path, keep: int) -> None:
    make(tmp_path / "out", parts)
    path = tmp_path / "out" / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:keep])
    again = FakeInspector()
    summary = make(tmp_path / "out", parts, again)
    assert summary.reused == 2
    assert again.calls == ["bad.png", "c.png", "sub/d.png", "sub/e.png"]
    assert len({line["file"] for line in journal_lines(tmp_path / "out")}) == 6


def test_unreadable_lines_are_reported_and_inspected_again(tmp_path: Path, parts: Path) -> None:
    make(tmp_path / "out", parts)
    path = tmp_path / "out" / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = b"\x00" * 30 + b"\n"
    path.write_bytes(b"".join(lines))
    again = FakeInspector()
    page = page_of(make(tmp_path / "out", parts, again))
    assert again.calls == ["a.png", "bad.png"]
    assert "1 unreadable lines of results.jsonl" in page.text


def test_interrupt_writes_a_usable_report_and_goes_on(tmp_path: Path, parts: Path) -> None:
    class Interrupted(FakeInspector):
        def inspect(self, *args: object, **options: object) -> InspectionResult:
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().inspect(*args, **options)  # type: ignore[arg-type]

    summary = make(tmp_path / "out", parts, Interrupted())
    assert summary.interrupted
    assert not summary.report.is_complete
    assert "3 of 6 images inspected. Run the same command again" in page_of(summary).text
    again = make(tmp_path / "out", parts)
    assert (again.reused, again.inspected) == (2, 4)
    assert again.report.is_complete


@pytest.mark.parametrize("error", [ServerUnavailableError("Gone."), EngineIncompatibleError("Other GPU.")])
def test_failures_of_engine_or_server_stop_the_run_but_keep_the_results(
    tmp_path: Path, parts: Path, error: Exception
) -> None:
    class Failing(FakeInspector):
        def inspect(self, *args: object, **options: object) -> InspectionResult:
            if len(self.calls) == 1:
                raise error
            return super().inspect(*args, **options)  # type: ignore[arg-type]

    summary = make(tmp_path / "out", parts, Failing())
    assert summary.stopped_by is error
    assert len(summary.report.entries) == 1
    assert summary.counts[Verdict.ERROR] == 0, "the other images are not to blame"


def test_a_full_queue_is_waited_for(tmp_path: Path, parts: Path) -> None:
    class Busy(FakeInspector):
        refused = 0

        def inspect(self, *args: object, **options: object) -> InspectionResult:
            if self.refused < 2:
                self.refused += 1
                error = QueueFullError("Full.")
                error.retry_after_s = 0.001
                raise error
            return super().inspect(*args, **options)  # type: ignore[arg-type]

    assert make(tmp_path / "out", parts, Busy()).stopped_by is None


def test_an_unforeseen_exception_is_an_error_result_never_ok(tmp_path: Path, parts: Path) -> None:
    class Crashing(FakeInspector):
        def inspect(self, *args: object, **options: object) -> InspectionResult:
            result = super().inspect(*args, **options)  # type: ignore[arg-type]
            if options["image_name"] == "a.png":
                raise ZeroDivisionError("oops")
            return result

    summary = make(tmp_path / "out", parts, Crashing())
    assert summary.counts == {Verdict.OK: 1, Verdict.NG: 2, Verdict.REVIEW: 1, Verdict.ERROR: 2}
    assert "Unforeseen ZeroDivisionError: oops." in page_of(summary).text


def test_a_changed_or_missing_file_gets_no_picture(tmp_path: Path, parts: Path) -> None:
    class Vanishing(FakeInspector):
        def inspect(self, *args: object, **options: object) -> InspectionResult:
            result = super().inspect(*args, **options)  # type: ignore[arg-type]
            if options["image_name"] == "sub/e.png":
                write_part(parts / "sub" / "d.png", 0)
                (parts / "sub" / "e.png").unlink()
            return result

    page = page_of(make(tmp_path / "out", parts, Vanishing()))
    assert page.count("li", **{"class": "card"}) == 3
    assert "the file has changed or is gone since: sub/d.png, sub/e.png." in page.text


def test_two_runs_cannot_write_the_same_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with Journal(tmp_path / "results.jsonl"), pytest.raises(InvalidRequestError, match="Another run is writing"):
        Journal(tmp_path / "results.jsonl").__enter__()
    with Journal(tmp_path / "results.jsonl"):
        pass


def _start(source: Path, out: Path) -> subprocess.Popen[str]:
    root = HERE.parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, str(HERE / "fake_inspector.py"), str(source), str(out), "0.15"]

    def hear_ctrl_c() -> None:
        # A test run in the background of a shell ignores SIGINT, and so would its children.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c if os.name != "nt" else None
    )


def _wait_for_lines(process: subprocess.Popen[str], path: Path, count: int) -> None:
    """Until results.jsonl has `count` lines; the test fails if the process ends before."""
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_run_is_continued_where_it_stopped(tmp_path: Path) -> None:
    for index in range(12):
        write_part(tmp_path / "in" / f"{index:02d}.png", index % 3, shade=index)
    out = tmp_path / "out"
    process = _start(tmp_path / "in", out)
    try:
        _wait_for_lines(process, out / "results.jsonl", 3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = (out / "results.jsonl").read_bytes().count(b"\n")
    assert 3 <= done < 12
    assert not (out / "report.html").exists()
    again = FakeInspector()
    summary = make(out, tmp_path / "in", again)
    assert summary.reused == done
    assert len(again.calls) == 12 - done
    assert [line["file"] for line in journal_lines(out)] == [f"{i:02d}.png" for i in range(12)]
    make(tmp_path / "straight", tmp_path / "in")
    for name in OUTPUTS:
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_in_order(tmp_path: Path) -> None:
    for index in range(12):
        write_part(tmp_path / "in" / f"{index:02d}.png", 0, shade=index)
    process = _start(tmp_path / "in", tmp_path / "out")
    _wait_for_lines(process, tmp_path / "out" / "results.jsonl", 2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 0
    found = re.fullmatch(r"inspected (\d+) reused 0 interrupted True\n", said)
    assert found, said
    assert 2 <= int(found[1]) < 12
    assert "Not complete:" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert make(tmp_path / "out", tmp_path / "in").reused == int(found[1])
