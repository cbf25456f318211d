"""Two servers and one store behind one client: both are used, and one that is killed loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from service_harness import encoded, frame

from auroraedge.client import InspectionClient, RetryPolicy
from auroraedge.inspection.results import InspectionResult, RequestInfo
from auroraedge.store import Store

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, name: str) -> tuple[subprocess.Popen[str], str]:
    log = (folder / f"{name}.log").open("w+")
    script = str(Path(__file__).with_name("service_harness.py"))
    options = ["--port", "0", "--store", str(folder / "results.db"), "--max-batch", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script, "0.005", *options], cwd=ROOT, env=environment, stdout=log, stderr=log, text=True
    )
    deadline = time.monotonic() + 60
    while "is ready on" not in (text := (folder / f"{name}.log").read_text()):
        assert process.poll() is None and time.monotonic() < deadline, text
        time.sleep(0.05)
    return process, text.split("is ready on ")[1].split(": model")[0]


def picture(number: int) -> bytes:
    pixels = frame()
    pixels[0, 0] = (number % 256, number // 256, 1)
    return encoded(pixels)


def test_a_killed_server_loses_no_request(tmp_path: Path) -> None:
    first, first_address = start(tmp_path, "first")
    second, second_address = start(tmp_path, "second")
    address = f"ipv4:{first_address},{second_address}"
    each, threads = 40, 4
    answers: dict[str, InspectionResult] = {}
    failures: list[BaseException] = []
    retry = RetryPolicy(attempts=50, first_delay_s=0.05, max_delay_s=0.5)
    try:
        with InspectionClient(address, timeout_s=30, retry=retry) as client:

            def send(thread: int) -> None:
                try:
                    for index in range(each):
                        name = f"{thread}-{index}"
                        request = RequestInfo(request_id=name, part_id=name)
                        answers[name] = client.inspect(picture(100 * thread + index), "magnetic_tile", request=request)
                except BaseException as error:
                    failures.append(error)

            workers = [threading.Thread(target=send, args=(number,)) for number in range(threads)]
            for worker in workers:
                worker.start()
            while len(answers) < each * threads // 3 and not failures:
                time.sleep(0.005)
            with InspectionClient(second_address) as own:
                taken_by_second = sum((own.status().verdicts or {}).values())
            before = len(answers)
            first.send_signal(signal.SIGKILL)
            for worker in workers:
                worker.join(60)
            assert not failures, failures
            # Sent again, it comes to the server that is left, which answers from what the other one stored.
            again = client.inspect(picture(0), "magnetic_tile", request=RequestInfo(request_id="0-0", part_id="0-0"))
    finally:
        first.kill()
        second.terminate()
        second.wait(30)
        first.wait(10)
    assert 0 < taken_by_second < before, "both servers were given work"
    assert len(answers) == each * threads > before
    assert again.receipt is not None and again.receipt.replayed and again.result_id == answers["0-0"].result_id
    with Store.open(tmp_path / "results.db") as store:
        stored = {row.result.request.request_id: row.result.result_id for row in store.results()}
        assert store.count() == len(answers)
    assert stored == {name: result.result_id for name, result in answers.items()}
