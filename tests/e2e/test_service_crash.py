"""The server as a process that is killed, starved of disk, told other times: nothing acknowledged is ever lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_harness import frame

from auroraedge.client import InspectionClient, RetryPolicy
from auroraedge.errors import AuroraEdgeError, ServerUnavailableError
from auroraedge.inspection.results import InspectionResult, RequestInfo, Verdict
from auroraedge.store import Store

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "magnetic_tile"
PATIENT = RetryPolicy(attempts=400, first_delay_s=0.05, factor=1.0)


class Server:
    """The server with the statistics inspector, on one port through its lives."""

    def __init__(self, *options: str, pause_s: float = 0.002, environment: dict[str, str] | None = None) -> None:
        self._options, self._pause_s, self._environment = options, pause_s, environment or {}
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, str(Path(__file__).parent / "service_harness.py"), str(self._pause_s)]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths} | self._environment,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "is ready on" in line, line
        self.port = int(line.split(" is ready on ")[1].split(": model")[0].rpartition(":")[2])

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stdout.close()  # type: ignore[union-attr]
        self.process = None
        return code


@contextmanager
def serving(*options: str, **more: Any) -> Iterator[Server]:
    server = Server(*options, **more)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            server.end(signal.SIGKILL)


class Camera(threading.Thread):
    """Sends numbered frames; what it was told is in `given`, by request id."""

    def __init__(self, address: str, name: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.address, self.label, self.stop = address, name, stop
        self.given: dict[str, InspectionResult] = {}
        self.errors: list[AuroraEdgeError] = []
        self.mismatched: list[str] = []

    def picture(self, number: int) -> tuple[np.ndarray, Verdict]:
        bright = number % 3 == 0
        pixels = frame(bright=bright)
        pixels[-1, -1] = (number % 256, number // 256 % 256, 9)  # every frame is another one
        return pixels, Verdict.NG if bright else Verdict.OK

    def run(self) -> None:
        number = 0
        with InspectionClient(self.address, retry=PATIENT) as client:
            while not self.stop.is_set():
                request_id = f"{self.label}-{number}"
                pixels, expected = self.picture(number)
                try:
                    request = RequestInfo(request_id=request_id, part_id=request_id)
                    result = client.inspect(pixels, RECIPE, request=request, timeout_s=20)
                    self.given[request_id] = result
                    if result.verdict is not expected or result.request.part_id != request_id:
                        self.mismatched.append(request_id)
                except AuroraEdgeError as error:
                    self.errors.append(error)
                number += 1


def until_given(cameras: list[Camera], more: int) -> None:
    """Waits for so many answers more, of all cameras together, however slow the machine is."""
    limit, goal = time.monotonic() + 60, sum(len(camera.given) for camera in cameras) + more
    while sum(len(camera.given) for camera in cameras) < goal:
        assert time.monotonic() < limit, "the answers do not come"
        time.sleep(0.02)


def days_of(cameras: list[Camera]) -> set[date]:
    """The days on which the server says that its results were made."""
    return {result.created_at.date() for camera in cameras for result in list(camera.given.values())}


def check(store_path: Path, cameras: list[Camera]) -> int:
    """Every answer is in the store, once and as it was given. Returns how many there were."""
    given = {name: result for camera in cameras for name, result in camera.given.items()}
    assert not [name for camera in cameras for name in camera.mismatched]
    with Store.open(store_path, create=False) as store:
        rows = list(store.results())
        by_id: dict[str, Any] = {}
        for row in rows:
            assert row.result.request.request_id not in by_id, "duplicated"
            by_id[row.result.request.request_id] = row
        for name, result in given.items():
            row = by_id[name]
            own = {"receipt", "timings"}
            assert row.result.model_dump(exclude=own) == result.model_dump(exclude=own)
            assert result.receipt is not None and result.receipt.stored and result.receipt.seq == row.seq
        assert set(store.check(deep=True).counts) <= {"orphan"}
    return len(given)


def test_killed_again_and_again_under_load(tmp_path: Path) -> None:
    random_pause = random.Random(3)
    stop = threading.Event()
    with serving("--store", str(tmp_path), "--keep-images", "all") as server:
        cameras = [Camera(server.address, f"c{number}", stop) for number in range(6)]
        for camera in cameras:
            camera.start()
        for _ in range(4):
            until_given(cameras, 5)
            time.sleep(random_pause.uniform(0.0, 0.5))
            assert server.end(signal.SIGKILL) == -signal.SIGKILL
            server.start()
        until_given(cameras, 10)
        stop.set()
        for camera in cameras:
            camera.join(60)
            assert not camera.is_alive()
            assert not camera.errors, "the client's retries bridge every restart"
        assert check(tmp_path, cameras) >= 30
        # The next life knows the answers of all lives before.
        with InspectionClient(server.address, retry=PATIENT) as client:
            for camera in cameras:
                pixels, _ = camera.picture(0)
                request = RequestInfo(request_id=f"{camera.label}-0", part_id=f"{camera.label}-0")
                again = client.inspect(pixels, RECIPE, request=request)
                assert again.receipt is not None and again.receipt.replayed
                assert again.result_id == camera.given[f"{camera.label}-0"].result_id


def test_sigterm_under_load_finishes_what_it_took(tmp_path: Path) -> None:
    stop = threading.Event()
    with serving("--store", str(tmp_path), pause_s=0.02) as server:
        cameras = [Camera(server.address, f"c{number}", stop) for number in range(6)]
        for camera in cameras:
            camera.start()
        for _ in range(2):
            until_given(cameras, 10)
            assert server.end(signal.SIGTERM) == 0
            server.start()
        until_given(cameras, 10)
        stop.set()
        for camera in cameras:
            camera.join(60)
            assert not camera.errors
        assert check(tmp_path, cameras) >= 30


def test_sighup_reads_recipes_again_and_keeps_serving(tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    with serving("--store", str(tmp_path / "state"), "--recipes", str(recipes)) as server:
        text = "id: plate\nversion: 1\ntitle: T\ntask: inspect\nlabels:\n  - name: scratch\n"
        (recipes / "plate.yaml").write_text(text, encoding="utf-8")
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        with InspectionClient(server.address) as client:
            limit = time.monotonic() + 20
            while "plate" not in [recipe.id for recipe in client.recipes()]:
                assert time.monotonic() < limit
                time.sleep(0.05)
            assert client.inspect(frame(), "plate").recipe_id == "plate"
        assert server.end(signal.SIGTERM) == 0


def test_drain_by_a_client_ends_the_process(tmp_path: Path) -> None:
    with serving("--store", str(tmp_path)) as server, InspectionClient(server.address) as client:
        client.drain(reason="maintenance")
        assert server.process is not None
        assert server.process.wait(30) == 0


# --- no room on the disk ---------------------------------------------------------------------------------------------


# With pictures the store keeps 32 MiB in reserve, so that results still fit in when pictures do not.
@pytest.mark.parametrize(("size_mib", "keep", "left_kib"), [(40, "all", 33 * 1024), (4, "none", 200)])
def test_full_disk_is_review_and_never_ok_and_ends_by_itself(size_mib: int, keep: str, left_kib: int) -> None:
    rng = np.random.default_rng(1)
    with (
        small_disk(size_mib) as disk,
        serving("--store", str(disk / "state"), "--keep-images", keep) as server,
        InspectionClient(server.address, retry=RetryPolicy(attempts=1)) as client,
    ):
        told: dict[str, InspectionResult] = {}

        def inspect() -> Verdict:
            # Noise does not compress.
            name, pixels = f"n{len(told)}", rng.integers(0, 90, (120, 160, 3), np.uint8)
            told[name] = client.inspect(pixels, RECIPE, request=RequestInfo(request_id=name, lot="L" * 200))
            return told[name].verdict

        assert inspect() is Verdict.OK
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - left_kib * 1024)))
        while inspect() is Verdict.OK:
            assert len(told) < 500, "the disk did not fill up"
        for _ in range(5):
            assert inspect() is Verdict.REVIEW
        status = client.status()
        assert status.store == "failing" and "STORE_FULL" in status.store_error
        for result in told.values():
            stored = result.receipt is not None and result.receipt.stored
            assert (result.verdict is Verdict.OK) == stored
            assert stored or "STORE_FULL" in result.warnings[-1]
        ballast.unlink()
        limit = time.monotonic() + 20
        while inspect() is not Verdict.OK:
            assert time.monotonic() < limit, "it did not recover"
            time.sleep(0.1)
        assert client.status().store == "writing"
        assert server.end(signal.SIGTERM) == 0
        with Store.open(disk / "state", create=False) as store:
            kept = {row.result.request.request_id for row in store.results()}
        assert kept == {name for name, result in told.items() if result.receipt and result.receipt.stored}


@contextmanager
def small_disk(size_mib: int) -> Iterator[Path]:
    """A file system of its own. Needs root; elsewhere the test is skipped."""
    folder = Path(tempfile.mkdtemp(prefix="auroraedge-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


# --- the clock -------------------------------------------------------------------------------------------------------


def _faketime() -> Path | None:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return found[0] if found else None


def test_clock_that_jumps_changes_no_deadline_and_loses_nothing(tmp_path: Path) -> None:
    library = _faketime()
    if library is None:
        from requires import lacks

        lacks("libfaketime is not installed; tests/debian-packages.txt lists what the tests use")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        # Not FAKETIME_NO_CACHE: it reads the file at every look at a clock, which slows the server down fifty times.
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    stop = threading.Event()
    with serving("--store", str(tmp_path / "state"), environment=environment, pause_s=0.0) as server:
        cameras = [Camera(server.address, f"c{number}", stop) for number in range(3)]
        for camera in cameras:
            camera.start()
        today = datetime.now(UTC).date()
        for jump, days in (("+2d", 2), ("-3d", -3)):
            until_given(cameras, 4)
            offset.write_text(jump)
            limit = time.monotonic() + 30
            # Within a day: midnight may pass meanwhile.
            while not any(abs((day - today).days - days) <= 1 for day in days_of(cameras)):
                assert time.monotonic() < limit, "the clock did not jump"
                time.sleep(0.05)
        until_given(cameras, 4)
        stop.set()
        for camera in cameras:
            camera.join(60)
            assert not camera.errors
        assert check(tmp_path / "state", cameras) >= 12
        # Positions follow the commits, whatever the clock says.
        with Store.open(tmp_path / "state", create=False) as store:
            seqs = [row.seq for row in store.results()]
        assert seqs == sorted(seqs)
        with (
            InspectionClient(server.address, retry=RetryPolicy(attempts=1)) as client,
            pytest.raises((AuroraEdgeError, ServerUnavailableError)),
        ):
            client.inspect(frame(), RECIPE, timeout_s=0.001)
        assert server.end(signal.SIGTERM) == 0
