"""Two replicas on a local Ray cluster, one killed under load: no request is lost and none is stored twice.

Not part of the ordinary run (it needs the extra `ray` and about a minute): docs/scale-out.md has the command.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

# Ray gives its proxy 5 s to start and its replicas 0.1 s to answer, which a busy machine does not keep.
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "120"
os.environ["RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S"] = "2"
os.environ["RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S"] = "10"
ray = pytest.importorskip("ray", reason="extra `ray`")

from ray import serve  # noqa: E402

from auroraedge.client import InspectionClient, RetryPolicy  # noqa: E402
from auroraedge.errors import AuroraEdgeError, RecipeNotFoundError  # noqa: E402
from auroraedge.inspection.results import InspectionResult, RequestInfo  # noqa: E402
from auroraedge.store import Store  # noqa: E402
from service.config import ServiceConfig  # noqa: E402
from service.ray_serve import start  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
THREADS, EACH = 6, 25


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def ports() -> Iterator[list[int]]:
    """gRPC and HTTP port: Ray's proxies keep those that they started with."""
    ray.init(
        num_cpus=2,
        object_store_memory=200 << 20,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    yield free_ports(2)
    serve.shutdown()
    ray.shutdown()


def picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    done, data = cv2.imencode(".png", rng.integers(90, 120, (128, 128, 3), np.uint8))
    assert done
    return data.tobytes()


def retrying(action: Any, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except AuroraEdgeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_killed_replica_loses_no_request(ports: list[int], tmp_path: Path, kind: str, request: Any) -> None:
    if kind == "postgresql":
        address = request.getfixturevalue("postgres_server").new_database()
    else:
        address = f"sqlite:///{tmp_path / 'results.db'}"
    with Store.open(address, images=tmp_path / "images"):
        pass  # made before the replicas, which would both want to
    port, http_port = ports
    config = ServiceConfig(
        port=port, store=address, store_images=tmp_path / "images", threads=1, queue_frames=64, drain_seconds=5
    )
    handle = start(config, replicas=2, cpus=0.5, http_port=http_port)
    pids = {handle.pid.remote().result(timeout_s=60) for _ in range(20)}
    assert len(pids) == 2, "both replicas take calls"

    answers: dict[str, InspectionResult] = {}
    failures: list[BaseException] = []
    retry = RetryPolicy(attempts=100, first_delay_s=0.1, max_delay_s=1.0)

    def send(thread: int) -> None:
        try:
            with InspectionClient(f"127.0.0.1:{port}", timeout_s=90, retry=retry) as client:
                for index in range(EACH):
                    name = f"t{thread}-{index}"
                    info = RequestInfo(request_id=name, part_id=name)
                    result = client.inspect(picture(1000 * thread + index), "magnetic_tile", request=info)
                    answers[name] = result
        except BaseException as error:
            failures.append(error)

    with InspectionClient(f"127.0.0.1:{port}", retry=retry) as client:
        retrying(lambda: client.server_info())
    begun = time.monotonic()
    threads = [threading.Thread(target=send, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    while len(answers) < THREADS * EACH // 3 and not failures:
        time.sleep(0.01)
    os.kill(min(pids), signal.SIGKILL)
    killed_at = len(answers)
    for thread in threads:
        thread.join(120)
    seconds = time.monotonic() - begun
    assert not failures, failures
    assert len(answers) == THREADS * EACH and killed_at < THREADS * EACH
    for name, result in answers.items():
        assert result.request.part_id == name and result.receipt is not None and result.receipt.stored
    with Store.open(address, images=tmp_path / "images") as store:
        stored = {each.result.request.request_id: each.result.result_id for each in store.results()}
        assert store.count() == THREADS * EACH
    assert stored == {name: result.result_id for name, result in answers.items()}
    replayed = sum(result.receipt is not None and result.receipt.replayed for result in answers.values())

    # Sent again, to whichever replica: the same answer. And the errors are the service's own, with their details.
    with InspectionClient(f"127.0.0.1:{port}", timeout_s=60, retry=retry) as client:
        again = client.inspect(picture(0), "magnetic_tile", request=RequestInfo(request_id="t0-0", part_id="t0-0"))
        assert again.result_id == answers["t0-0"].result_id and again.receipt is not None and again.receipt.replayed
        with pytest.raises(RecipeNotFoundError):
            client.inspect(picture(0), "nothing")
        assert [each.id for each in client.recipes()]
        frames = [picture(number) for number in range(5)]
        streamed = list(client.inspect_stream(frames, "magnetic_tile"))
        assert len(streamed) == 5 and not any(each.error for each in streamed)
        assert streamed[0].image_sha256 == again.image_sha256
    deadline = time.monotonic() + 180
    while len(now := {handle.pid.remote().result(timeout_s=60) for _ in range(10)} - {min(pids)}) < 2:
        assert time.monotonic() < deadline, "Ray has not replaced the replica"
    assert min(pids) not in now
    digest = hashlib.sha256(str(sorted(stored.values())).encode()).hexdigest()[:8]
    print(
        f"\n{kind}: {len(answers)} requests in {seconds:.1f} s ({len(answers) / seconds:.0f}/s), replica killed after "
        f"{killed_at}, {replayed} answered from the store, 0 lost, 0 twice ({digest})"
    )
