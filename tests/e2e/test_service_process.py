"""The server as a process: its ready line, its signals, its exit codes, and the embedded engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from service_harness import RunningServer, encoded, frame, running_server

from auroraedge.client import InspectionClient, RetryPolicy
from auroraedge.errors import AuroraEdgeError, ServerUnavailableError
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.results import RequestInfo, Verdict

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "auroraedge" / "assets" / "engines" / "nano-cpu" / "manifest.json"
needs_engine = pytest.mark.skipif(not MANIFEST.is_file(), reason="the embedded engine is not in this checkout")
READY = re.compile(r"AuroraEdge is ready on (\S+:\d+): model (\S+), engine (\w+) \((\w+)\), started in (\d+\.\d\d) s")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "OMP_NUM_THREADS": "1",
}


@contextmanager
def process(*command: str) -> Iterator[tuple[subprocess.Popen[str], re.Match[str]]]:
    """A server process and its ready line."""
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT
    ) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            line = server.stdout.readline()
            ready = READY.fullmatch(line.strip())
            assert ready, line or server.stderr.read()
            yield server, ready
        finally:
            server.kill()


def harness(pause_s: float = 0.0, *options: str) -> list[str]:
    return [str(Path(__file__).parent / "service_harness.py"), str(pause_s), "--port", "0", *options]


def ended(server: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout after the ready line, stderr."""
    out, err = server.communicate(timeout=60)
    return server.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_ends_cleanly(number: signal.Signals) -> None:
    with (
        process(*harness(0.3, "--max-batch", "1")) as (server, ready),
        ThreadPoolExecutor(4) as pool,
        InspectionClient(ready[1], retry=RetryPolicy(attempts=1)) as client,
    ):
        client.server_info()
        calls = [pool.submit(client.inspect, frame(), "magnetic_tile") for _ in range(3)]
        time.sleep(0.3)  # they are on their way
        server.send_signal(number)
        assert [call.result(30).verdict for call in calls] == [Verdict.OK] * 3
        assert ended(server) == (0, "", "")
        with pytest.raises(ServerUnavailableError):
            client.server_info()


def test_work_beyond_the_drain_time_is_given_up() -> None:
    with (
        process(*harness(1.0, "--drain-seconds", "0.2", "--max-batch", "1")) as (server, ready),
        ThreadPoolExecutor(8) as pool,
        InspectionClient(ready[1], retry=RetryPolicy(attempts=1)) as client,
    ):
        client.server_info()
        calls = [pool.submit(client.inspect, frame(), "magnetic_tile") for _ in range(8)]
        time.sleep(0.3)
        server.send_signal(signal.SIGTERM)
        assert ended(server)[0] == 0
        failures = [call.exception(30) for call in calls]
        assert all(isinstance(failure, AuroraEdgeError) for failure in failures if failure)
        assert any(failures), "8 s of work do not fit"


def test_client_finds_a_server_that_starts_later() -> None:
    with process(*harness()) as (server, ready):
        address = ready[1]
        server.terminate()
        ended(server)
        patient = RetryPolicy(attempts=200, first_delay_s=0.05, factor=1)
        with InspectionClient(address, retry=patient) as client, ThreadPoolExecutor(1) as pool:
            call = pool.submit(client.inspect, frame(), "magnetic_tile", timeout_s=60)
            time.sleep(0.2)
            command = harness()
            command[command.index("--port") + 1] = address.rpartition(":")[2]
            with process(*command):
                assert call.result(60).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "--allow-insecure"),
        (["--port", "99999"], 2, "--port: "),
        (["--no-such-option"], 2, "unrecognized"),
        (["--engine", "no-such-engine", "--port", "0"], 1, "no-such-engine"),
    ],
)
def test_what_cannot_start_says_why(options: list[str], code: int, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_port_in_use_is_refused() -> None:
    with running_server() as running:
        command = harness()
        command[command.index("--port") + 1] = str(running.server.port)
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=60
        )
        assert done.returncode != 0
        assert "cannot be bound" in done.stderr


# --- the embedded engine ---------------------------------------------------------------------------------------------


@needs_engine
def test_embedded_engine_serves_from_a_process(tmp_path: Path) -> None:
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    with process("-m", "service", "--port", "0", "--threads", "1", "--store", str(tmp_path)) as (server, ready):
        assert (ready[2], ready[4]) == (manifest["model_id"], "cpu")
        recipe = load_recipe("magnetic_tile")
        with InspectionClient(ready[1]) as client:
            info = client.server_info()
            assert info.engine_sha256 == manifest["engine_sha256"]
            request = RequestInfo(request_id="r", part_id="p")
            first = client.inspect(encoded(frame(300, 200)), recipe.id, request=request)
            again = client.inspect(frame(300, 200), recipe.id)
            golden = client.inspect(frame(352, 352), "pcb", reference=frame(352, 352))
            stream = list(
                client.inspect_stream([frame(300, 200), b"bad", frame(300, 200)], recipe.id, early_verdict=True)
            )
            answer = client.ask(frame(300, 200), "count crack", recipe.id)
            tokens = list(client.generate(frame(300, 200), "what is this?", recipe.id, max_new_tokens=8))
        assert first.verdict in (Verdict.OK, Verdict.NG, Verdict.REVIEW)
        assert first.ng_probability is not None and 0 <= first.ng_probability <= 1
        assert (first.recipe_sha256, first.thresholds) == (recipe.sha256, recipe.thresholds)
        assert (first.engine_sha256, first.model_id) == (manifest["engine_sha256"], manifest["model_id"])
        assert (first.request, first.image_width, first.image_height) == (request, 300, 200)
        assert (again.verdict, again.ng_probability, again.defects) == (
            first.verdict,
            first.ng_probability,
            first.defects,
        )
        assert golden.reference_used
        final = [result for result in stream if not result.is_partial]
        assert [result.verdict for result in final] == [first.verdict, Verdict.ERROR, first.verdict]
        assert answer.count is not None
        assert 1 <= len(tokens) <= 8 and tokens[-1].done
        torch_files = [file.path for file in psutil.Process(server.pid).memory_maps() if "/torch/" in file.path]
        assert torch_files == [], "the server must not load torch"
        server.terminate()
        assert ended(server) == (0, "", "")


@needs_engine
def test_embedded_engine_in_this_process_answers_as_the_inspector_does() -> None:
    from auroraedge.runtime import Inspector

    recipe = load_recipe("magnetic_tile")
    inspector = Inspector.open(threads=1)
    direct = inspector.inspect(frame(300, 200), recipe)
    with running_server(inspector) as running, InspectionClient(running.address) as client:
        assert isinstance(running, RunningServer)
        served = client.inspect(frame(300, 200), recipe.id)
    own = {"result_id", "created_at", "timings", "request"}  # the client gives every request an id
    assert served.model_dump(exclude=own) == direct.model_dump(exclude=own)
