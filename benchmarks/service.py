"""The service suite: frames in flight and replicas, over real sockets against real server processes.

frames in flight: n cameras, each of which sends its next frame when it has the answer to the one before, against one
server. replicas: the same 16 cameras against n servers that share the machine's cores, each with its share of threads.
On a machine with two cores, more replicas than cores can only show what their company costs: clients and servers share
the same two cores, and what replicas bring across machines is computed (benchmarks.plant), not measured.
The longer runs (soak, overload, overhead of the service) stay in benchmarks.service_load.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from benchmarks.process import probe_ms
from benchmarks.service_load import RECIPE, Server, Told, _in_process, closed_loop, serving
from benchmarks.suite import Document

IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64)
REPLICAS = (1, 2, 3, 4)
CAMERAS = 16
_SERVER = "python -m service"


def _add(document: Document, case: str, told: list[Told], seconds: float, cpu_s: float, rss_mb: float) -> None:
    answered = [one.ms for one in told if one.code == "OK"]
    if not answered:
        document.notes.append(f"{case}: no frame was answered")
        return
    document.add(case, _SERVER, "latency", "ms", answered)
    document.add(case, _SERVER, "throughput", "1/s", [len(answered) / seconds], "more")
    document.add(case, _SERVER, "processor time a frame", "ms", [1000 * cpu_s / len(answered)])
    document.add(case, _SERVER, "memory", "MB", [rss_mb])
    # A full queue refuses, and the camera sends again after the delay that it is told.
    document.add(case, _SERVER, "attempts a frame", "", [sum(one.attempts for one in told) / len(told)])
    refused = len(told) - len(answered)
    if refused:
        document.notes.append(f"{case}: {refused} of {len(told)} frames were not answered")


def _timed_loop(address: str, clients: int, requests: int, prefix: str) -> tuple[list[Told], float]:
    """closed_loop and the seconds it took, measured in the clients' process: its start is not the server's time."""
    began = time.perf_counter()
    told = closed_loop(address, clients, requests, prefix, RECIPE, pictures=8)
    return told, time.perf_counter() - began


def _all_at_once(servers: list[Server], clients: int, requests: int, prefix: str) -> tuple[list[Told], float]:
    """Clients of each server in a process of their own, at the same time. Returns the longest one's seconds too."""
    found: list[tuple[list[Told], float]] = [([], 0.0) for _ in servers]

    def load(index: int) -> None:
        address, share = servers[index].address, len(servers)
        found[index] = _in_process(
            _timed_loop, address, max(1, clients // share), max(8, requests // share), f"{prefix}{index}/"
        )

    threads = [threading.Thread(target=load, args=(index,)) for index in range(len(servers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one for told, _ in found for one in told], max(seconds for _, seconds in found)


def run(*, requests: int, console: Console, in_flight: tuple[int, ...] = IN_FLIGHT) -> Document:
    """`requests` frames of each case."""
    cores = os.cpu_count() or 1
    document = Document(
        suite="service",
        title=f"The server under load, frames of 200x200 pixels, one view each, {cores} cores for servers and clients",
        settings={"requests": requests, "recipe": RECIPE, "cores": cores, "cameras of the replicas": CAMERAS},
        contenders={_SERVER: "the gRPC server with the embedded engine, results not stored"},
    )
    with serving("--store", "none") as server:
        _in_process(closed_loop, server.address, 2, 16, "warm", RECIPE, 64)
        for count in in_flight:
            document.probe_ms.append(probe_ms())
            cpu = server.cpu_s()
            told, seconds = _in_process(_timed_loop, server.address, count, max(requests, 4 * count), f"f{count}/")
            _add(document, f"frames in flight: {count}", told, seconds, server.cpu_s() - cpu, server.rss_mb())
            console.print(f"{count} in flight: {len(told) / seconds:.1f} a second, {seconds:.0f} s")
    for count in REPLICAS:
        threads = max(1, cores // count)
        with ExitStack() as stack:
            options = ("--store", "none", "--threads", str(threads))
            servers = [stack.enter_context(serving(*options)) for _ in range(count)]
            _all_at_once(servers, CAMERAS, 16, "warm")
            document.probe_ms.append(probe_ms())
            cpu = sum(one.cpu_s() for one in servers)
            told, seconds = _all_at_once(servers, CAMERAS, requests, f"r{count}/")
            used = sum(one.cpu_s() for one in servers) - cpu
            rss = sum(one.rss_mb() for one in servers)
            _add(document, f"replicas: {count} with {threads} threads each", told, seconds, used, rss)
            console.print(f"{count} replicas: {len(told) / seconds:.1f} a second")
    document.notes += [
        "Latency is that of the attempt that was answered; frames that a full queue refused were sent again.",
        "Clients and servers share the same cores, so a server of its own would answer more.",
        f"Replicas beyond {cores} (the cores) share them: what they show is the price of company, not scaling.",
    ]
    saved = Path(__file__).parent / "results" / "service_soak.json"
    if saved.is_file():
        document.notes.append("A soak of the whole service with its store: benchmarks/results/service_soak.json.")
    return document
