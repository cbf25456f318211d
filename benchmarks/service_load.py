"""How the service behaves under load, over real sockets against a real server process.

    python -m benchmarks.service_load soak --requests 20000 --clients 64 --json benchmarks/results/service_soak.json
    python -m benchmarks.service_load overhead --json benchmarks/results/service_overhead.json
    python -m benchmarks.service_load overload --json benchmarks/results/service_overload.json
    python -m benchmarks.service_load batching --json benchmarks/results/service_batching.json
    python -m benchmarks.service_load generate --json benchmarks/results/service_generate.json

The clients of all parts run in processes of their own, so that their work is not taken for the server's; on a machine
with few cores they still compete with it. Every part ends with exit code 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.environment import environment, percentiles

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "steel_strip"
SIZE_PX = 200
console = Console()


def picture(number: int) -> bytes:
    """A PNG of a strip surface, another one for every number."""
    import cv2

    rng = np.random.default_rng(number)
    small = rng.integers(90, 160, (SIZE_PX // 8, SIZE_PX // 8), np.uint8)
    pixels = cv2.resize(small, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_CUBIC)
    done, data = cv2.imencode(".png", pixels)
    assert done
    return data.tobytes()


# --- the server ------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """`python -m service`, or the tests' server with a fixed time for each frame (`pause_s`)."""

    options: list[str]
    pause_s: float | None = None
    port: int = 0
    process: subprocess.Popen[str] | None = field(default=None, init=False)

    def start(self) -> None:
        command = [sys.executable, "-m", "service"]
        if self.pause_s is not None:
            command = [sys.executable, str(ROOT / "tests" / "e2e" / "service_harness.py"), str(self.pause_s)]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *self.options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " is ready on " not in line:
            raise SystemExit(f"the server did not start: {line}")
        self.port = int(line.split(" is ready on ")[1].split(": model")[0].rpartition(":")[2])

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cpu_s(self) -> float:
        """User and system time of the process so far."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024


@contextmanager
def serving(*options: str, pause_s: float | None = None) -> Iterator[Server]:
    server = Server(list(options), pause_s)
    server.start()
    try:
        yield server
    finally:
        server.end()


# --- clients ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What a client was told about one frame. ms: from sending until the answer or the refusal; engine_ms: the time in
    the engine, as the answer says."""

    request_id: str
    code: str
    ms: float
    result_id: str = ""
    verdict: str = ""
    image_sha256: str = ""
    part_id: str = ""
    attempts: int = 1
    engine_ms: float = 0.0


def _request(request_id: str, data: bytes, recipe: str) -> Any:
    from auroraedge._proto.inspection.v1 import inspection_pb2 as pb

    return pb.InspectRequest(
        info=pb.RequestInfo(request_id=request_id, part_id=f"part {request_id}"),
        recipe_id=recipe,
        frame=pb.Frame(encoded=data),
    )


async def _send(stub: Any, request: Any, attempts: int, timeout_s: float = 30.0) -> Told:
    """Sends a request, again after the delay of RetryInfo where there is one."""
    from google.rpc import error_details_pb2, status_pb2

    attempt = 0
    while True:
        attempt += 1
        began = time.perf_counter()
        try:
            result = (await stub.Inspect(request, timeout=timeout_s)).result
        except grpc.aio.AioRpcError as error:
            ms = (time.perf_counter() - began) * 1000
            delay = 0.1
            for key, value in error.trailing_metadata() or ():
                if key == "grpc-status-details-bin":
                    for detail in status_pb2.Status.FromString(value).details:
                        info = error_details_pb2.RetryInfo()
                        if detail.Unpack(info):
                            delay = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
            retryable = error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
            if not retryable or attempt >= attempts:
                return Told(request.info.request_id, error.code().name, ms, attempts=attempt)
            await asyncio.sleep(delay)
            continue
        ms = (time.perf_counter() - began) * 1000
        return Told(
            request.info.request_id, "OK", ms, result.result_id, _verdict(result.verdict), result.image_sha256,
            result.request.part_id, attempt, result.timings.total_ms,
        )  # fmt: skip


def _verdict(number: int) -> str:
    from auroraedge._proto.inspection.v1 import inspection_pb2 as pb

    return pb.Verdict.Name(number).removeprefix("VERDICT_")


def _in_process(target: Callable[..., Any], *arguments: Any) -> Any:
    """The value of `target(*arguments)`, computed in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(target, arguments)


def closed_loop(address: str, clients: int, requests: int, prefix: str, recipe: str, pictures: int) -> list[Told]:
    """`clients` cameras; each sends its next frame when it has the answer to the one before."""
    from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceStub

    data = [picture(number) for number in range(pictures)]
    told: list[Told] = []

    async def camera(numbers: Iterator[int], stub: Any) -> None:
        for number in numbers:
            request = _request(f"{prefix}{number}", data[number % pictures], recipe)
            told.append(await _send(stub, request, attempts=1000))

    async def run() -> None:
        numbers = iter(range(requests))
        # A connection for each camera, as on a line: the server shares its time between connections.
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(address, options) for _ in range(clients)]
        await asyncio.gather(*(camera(numbers, InspectionServiceStub(channel)) for channel in channels))
        await asyncio.gather(*(channel.close() for channel in channels))

    asyncio.run(run())
    return told


def open_loop(address: str, rate: float, seconds: float, prefix: str, recipe: str, seed: int) -> list[Told]:
    """Frames at random times, `rate` a second on average, whatever becomes of those before. No retries."""
    from auroraedge._proto.inspection.v1.service_pb2_grpc import InspectionServiceStub

    rng = random.Random(seed)
    data = [picture(number) for number in range(64)]
    told: list[Told] = []

    async def run() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(address, options) for _ in range(8)]
        stubs = [InspectionServiceStub(channel) for channel in channels]
        for number, stub in enumerate(stubs):
            await _send(stub, _request(f"{prefix}open{number}", data[0], recipe), attempts=100)

        async def one(number: int) -> None:
            request = _request(f"{prefix}{number}", data[number % 64], recipe)
            told.append(await _send(stubs[number % 8], request, attempts=1))

        tasks = []
        due = time.perf_counter()
        end = due + seconds
        while due < end:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(len(tasks))))
        await asyncio.gather(*tasks)
        await asyncio.gather(*(channel.close() for channel in channels))

    asyncio.run(run())
    return told


# --- soak ------------------------------------------------------------------------------------------------------------


def compare_with_store(folder: Path, told: list[Told]) -> dict[str, int]:
    """What was told against what is stored: lost, duplicated and mismatched results."""
    from auroraedge.store import Store

    found = {"answered": 0, "lost": 0, "duplicated": 0, "mismatched": 0, "stored": 0}
    with Store.open(folder, create=False) as store:
        rows: dict[str, Any] = {}
        for row in store.results():
            found["stored"] += 1
            found["duplicated"] += row.result.request.request_id in rows
            rows[row.result.request.request_id] = (
                row.result.result_id,
                row.result.verdict.value,
                row.result.image_sha256,
                row.result.request.part_id,
            )
    for one in told:
        if one.code != "OK":
            continue
        found["answered"] += 1
        given = (one.result_id, one.verdict, one.image_sha256, one.part_id)
        if one.request_id not in rows:
            found["lost"] += 1
        elif rows[one.request_id] != given or one.part_id != f"part {one.request_id}":
            found["mismatched"] += 1
    return found


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Every request answered, stored once and as it was told; memory stays where it was after the warm-up."""
    with tempfile.TemporaryDirectory(prefix="auroraedge-soak-") as folder:
        fixed = None if options.engine == "nano" else 0.0
        with serving("--store", folder, "--keep-images", options.keep_images, pause_s=fixed) as server:
            told: list[Told] = []
            rss: list[float] = []
            block = max(options.clients, options.requests // options.blocks)
            began = time.perf_counter()
            for number in range(0, options.requests, block):
                count = min(block, options.requests - number)
                told += _in_process(
                    closed_loop, server.address, options.clients, count, f"{number}/", options.recipe, options.pictures
                )
                rss.append(server.rss_mb())
            seconds = time.perf_counter() - began
        compared = compare_with_store(Path(folder), told)
    # The first fifth warms up: buffers of every size have been needed once.
    base = rss[max(0, len(rss) // 5 - 1) if len(rss) > 1 else 0]
    growth = rss[-1] / base - 1
    codes = {code: sum(one.code == code for one in told) for code in {one.code for one in told}}
    figures = {
        "requests": len(told), "clients": options.clients, "seconds": seconds, "per_second": len(told) / seconds,
        "codes": codes, **compared, "attempts": sum(one.attempts for one in told), "rss_mb": rss,
        "rss_growth_after_warm_up": growth, "latency_ms": percentiles([one.ms for one in told if one.code == "OK"]),
    }  # fmt: skip
    show("soak", {key: value for key, value in figures.items() if key != "rss_mb"})
    figures["missed"] = missed(
        {
            "all answered": codes == {"OK": options.requests},
            "none lost": compared["lost"] == 0,
            "none duplicated": compared["duplicated"] == 0 and compared["stored"] == compared["answered"],
            "none mismatched": compared["mismatched"] == 0,
            "memory growth under 5 %": growth < 0.05,
        }
    )
    return figures


# --- overhead --------------------------------------------------------------------------------------------------------


def bare(
    recipe_id: str, count: int, batch: int, threads: int | None, pictures: int
) -> tuple[list[float], list[float], float]:
    """Seconds of each of `count` calls of the engine alone, `batch` frames each; those of them outside of what the
    results call their own time; and CPU seconds of all calls."""
    from auroraedge.inspection.recipe import load_recipe
    from auroraedge.runtime import InspectionJob, Inspector

    inspector = Inspector.open(threads=threads)
    recipe = load_recipe(recipe_id)
    jobs = [InspectionJob(image=picture(number), recipe=recipe) for number in range(pictures)]
    for _ in range(3):
        inspector.inspect_batch(jobs[:batch])
    samples, outside = [], []
    cpu_s = time.process_time()
    for number in range(count):
        chosen = [jobs[(number * batch + index) % pictures] for index in range(batch)]
        began = time.perf_counter()
        own_s = 0.0
        for outcome in inspector.inspect_batch(chosen):
            if isinstance(outcome, Exception):
                raise outcome
            own_s = max(own_s, outcome.timings.total_ms / 1000)
        samples.append(time.perf_counter() - began)
        outside.append(samples[-1] - own_s)
    return samples, outside, time.process_time() - cpu_s


def sync_ms(folder: Path, count: int = 100) -> list[float]:
    """Milliseconds that this disk takes to keep 4 KiB for good: what a result costs before it may be acknowledged."""
    samples = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fsync(file.fileno())
            samples.append((time.perf_counter() - began) * 1000)
    return samples


def empty_calls(address: str, count: int, pause_s: float) -> list[float]:
    """Milliseconds of calls that do nothing (grpc.health.v1), as far apart as frames are: what gRPC alone takes."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async def run() -> list[float]:
        samples = []
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for _ in range(count):
                await asyncio.sleep(pause_s)
                began = time.perf_counter()
                await stub.Check(health_pb2.HealthCheckRequest())
                samples.append((time.perf_counter() - began) * 1000)
        return samples

    return asyncio.run(run())


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """The service against the engine alone, in turns: throughput at saturation, latency of one client when idle.

    The overhead of an idle server is each answer's latency without the engine's time that the answer itself reports,
    less the same of the engine alone: the engine's time drifts by more than the server takes.
    """
    threads = options.threads
    extra = ["--threads", str(threads)] if threads else []
    engine_rates, service_rates, engine_ms, outside_ms = [], [], [], []
    engine_cpu, service_cpu = [], []
    stored: list[Told] = []
    unstored: list[Told] = []
    empty_ms: list[float] = []
    with tempfile.TemporaryDirectory(prefix="auroraedge-load-") as folder:
        disk_ms = sync_ms(Path(folder))
        for turn in range(options.turns):
            alone, outside, cpu_s = _in_process(bare, options.recipe, options.requests, 1, threads, 64)
            engine_cpu.append(cpu_s * 1000 / options.requests)
            engine_rates.append(len(alone) / sum(alone))
            engine_ms += [sample * 1000 for sample in alone]
            outside_ms += [sample * 1000 for sample in outside]
            with serving("--store", "none", *extra) as server:
                _in_process(closed_loop, server.address, 1, 10, "warm", options.recipe, 64)
                idle = _in_process(closed_loop, server.address, 1, options.requests, "idle", options.recipe, 64)
                unstored += idle
                pause_s = float(np.median(alone))
                empty_ms += _in_process(empty_calls, server.address, options.requests // 3, pause_s)
            kept = ("--store", str(Path(folder) / str(turn)), "--keep-images", options.keep_images)
            with serving(*kept, *extra) as server:
                _in_process(closed_loop, server.address, 1, 10, "warm", options.recipe, 64)
                idle = _in_process(closed_loop, server.address, 1, options.requests, "idle", options.recipe, 64)
                stored += idle
                cpu_s = server.cpu_s()
                service_rates.append(_in_process(saturate, server.address, options.requests, options.recipe))
                service_cpu.append((server.cpu_s() - cpu_s) * 1000 / options.requests)
    engine_rate, service_rate = float(np.median(engine_rates)), float(np.median(service_rates))
    own_ms = float(np.median(outside_ms))
    beside, beside_unstored = (
        percentiles([one.ms - one.engine_ms - own_ms for one in told]) for told in (stored, unstored)
    )
    figures = {
        "recipe": options.recipe, "engine_per_second": engine_rates, "service_per_second": service_rates,
        "throughput_overhead": 1 - service_rate / engine_rate,
        "engine_cpu_ms": float(np.median(engine_cpu)), "service_cpu_ms": float(np.median(service_cpu)),
        "engine_ms": percentiles(engine_ms), "disk_sync_ms": percentiles(disk_ms),
        "empty_call_ms": percentiles(empty_ms),
        "idle_ms": percentiles([one.ms for one in stored]),
        "idle_unstored_ms": percentiles([one.ms for one in unstored]),
        "idle_overhead_ms": beside, "idle_overhead_unstored_ms": beside_unstored,
    }  # fmt: skip
    show("overhead", figures)
    figures["missed"] = missed(
        {
            "throughput overhead <= 5 %": figures["throughput_overhead"] <= 0.05,
            "idle overhead <= 2 ms at p50": beside["p50"] <= 2.0,
        }
    )
    return figures


def saturate(address: str, requests: int, recipe: str) -> float:
    """Frames a second with a queue that is never empty and never full."""
    began = time.perf_counter()
    told = closed_loop(address, 12, requests, f"full{began}/", recipe, 64)
    seconds = time.perf_counter() - began
    assert all(one.code == "OK" for one in told)
    return len(told) / seconds


# --- overload --------------------------------------------------------------------------------------------------------


def overload(options: argparse.Namespace) -> dict[str, Any]:
    """Latency at 80 % of the sustainable load and at twice that load; how soon the rest are refused."""
    extra = ["--threads", str(options.threads)] if options.threads else []
    pause_s = None if options.engine == "nano" else options.pause_ms / 1000
    with (
        tempfile.TemporaryDirectory(prefix="auroraedge-load-") as folder,
        serving("--store", folder, *extra, pause_s=pause_s) as server,
    ):
        _in_process(closed_loop, server.address, 4, 40, "warm", options.recipe, 64)
        capacity = _in_process(saturate, server.address, options.requests, options.recipe)
        part = options.seconds
        steady = _in_process(open_loop, server.address, 0.8 * capacity, part, "steady/", options.recipe, 1)
        double = _in_process(open_loop, server.address, 2.0 * capacity, part, "double/", options.recipe, 2)
    good = [one.ms for one in steady if one.code == "OK"]
    accepted = [one.ms for one in double if one.code == "OK"]
    refused = [one.ms for one in double if one.code == "RESOURCE_EXHAUSTED"]
    others = sorted({one.code for one in (*steady, *double)} - {"OK", "RESOURCE_EXHAUSTED"})
    figures = {
        "capacity_per_second": capacity, "steady_ms": percentiles(good),
        "steady_refused": sum(one.code != "OK" for one in steady) / len(steady),
        "double_accepted_ms": percentiles(accepted), "double_accepted_per_second": len(accepted) / part,
        "double_refused": len(refused) / len(double), "refusal_ms": percentiles(refused) if refused else {},
        "other_codes": others, "p99_ratio": percentiles(accepted)["p99"] / percentiles(good)["p99"],
    }  # fmt: skip
    show("overload", figures)
    figures["missed"] = missed(
        {
            "p99 at twice the load <= 2x p99 at 80 %": figures["p99_ratio"] <= 2.0,
            "refused within 5 ms (p99)": not refused or figures["refusal_ms"]["p99"] <= 5.0,
            "nothing but answers and refusals": not others,
        }
    )
    return figures


# --- decisions -------------------------------------------------------------------------------------------------------


def batching(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a frame by batch size: whether the engine is faster with company."""
    figures: dict[str, Any] = {"recipe": options.recipe, "ms_per_frame": {}}
    for _ in range(options.turns):
        for batch in (1, 2, 4, 8):
            samples, _, _ = _in_process(
                bare, options.recipe, max(4, options.requests // batch), batch, options.threads, 64
            )
            figures["ms_per_frame"].setdefault(str(batch), []).extend(sample * 1000 / batch for sample in samples)
    figures["ms_per_frame"] = {batch: percentiles(values) for batch, values in figures["ms_per_frame"].items()}
    show("batching", figures["ms_per_frame"])
    return figures | {"missed": []}


def generate(options: argparse.Namespace) -> dict[str, Any]:
    """What one long answer costs the inspections beside it."""
    extra = ["--threads", str(options.threads)] if options.threads else []
    with serving("--store", "none", *extra) as server:
        _in_process(closed_loop, server.address, 1, 10, "warm", options.recipe, 64)
        alone = _in_process(closed_loop, server.address, 1, options.requests, "alone", options.recipe, 64)
        beside, tokens = _in_process(beside_answers, server.address, options.requests, options.recipe)
    figures = {
        "alone_ms": percentiles([one.ms for one in alone]),
        "beside_ms": percentiles([one.ms for one in beside]),
        "tokens_meanwhile": tokens,
    }
    show("generate", figures)
    return figures | {"missed": []}


def beside_answers(address: str, requests: int, recipe: str) -> tuple[list[Told], int]:
    """Inspections while two clients ask for one long answer after another."""
    import threading

    from auroraedge.client import InspectionClient

    stop = threading.Event()
    tokens = 0

    def ask() -> None:
        nonlocal tokens
        with InspectionClient(address) as client:
            while not stop.is_set():
                for _ in client.generate(picture(1), "what can be seen on this part?", recipe, max_new_tokens=256):
                    tokens += 1
                    if stop.is_set():
                        break

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        told = closed_loop(address, 1, requests, "beside", recipe, 64)
    finally:
        stop.set()
        for asker in askers:
            asker.join(30)
    return told, tokens


# --- output ----------------------------------------------------------------------------------------------------------


def missed(targets: dict[str, bool]) -> list[str]:
    found = [name for name, met in targets.items() if not met]
    for name, met in targets.items():
        console.print(f"{'met   ' if met else 'MISSED'}  {name}")
    return found


def show(title: str, figures: dict[str, Any]) -> None:
    table = Table("figure", "value", title=title)

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        if isinstance(value, dict):
            return ", ".join(f"{key} {text(inner)}" for key, inner in value.items())
        if isinstance(value, list):
            return ", ".join(text(inner) for inner in value)
        return str(value)

    for name, value in figures.items():
        table.add_row(name, text(value))
    console.print(table)


PARTS = {"soak": soak, "overhead": overhead, "overload": overload, "batching": batching, "generate": generate}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--requests", type=int, default=300, help="frames (of each turn)")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each load of `overload`")
    parser.add_argument("--turns", type=int, default=3, help="repetitions, in turns")
    parser.add_argument("--blocks", type=int, default=20, help="parts of the soak; memory is read after each")
    parser.add_argument("--pictures", type=int, default=512, help="different frames of the soak")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--threads", type=int, help="CPU threads of the engine; none: all cores")
    parser.add_argument("--keep-images", default="not-ok", choices=("all", "not-ok", "none"))
    parser.add_argument(
        "--engine", choices=("nano", "fixed"), default="nano", help="fixed: a stand-in, to measure the service alone"
    )
    parser.add_argument("--pause-ms", type=float, default=20.0, help="time of a frame with --engine fixed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    figures = PARTS[options.part](options)
    if options.json is not None:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        document = {"part": options.part, "settings": settings, "environment": environment(), "figures": figures}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        console.print(f"written: {options.json}")
    return 1 if figures["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
