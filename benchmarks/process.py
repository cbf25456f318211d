"""A contender in a process of its own: its memory is its own, and its idle threads do not spin beside another.

A contender is a class that is made from keyword arguments and has `measure(case, **arguments) -> dict[str, float]`,
figures by metric. It may have `parity(case, **arguments) -> dict[str, Any]`, what its answer is made of.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from auroraedge.errors import EngineError

# A model that does not answer in this time is given up. A 2B model takes half a minute a frame on two cores that it has
# to itself.
ANSWER_S = 900.0


def rss_mb(field: str = "VmRSS") -> float:
    """Resident memory of this process in MB; 'VmHWM' is its peak. 0 where it cannot be read (no Linux)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    lines = status.read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def _serve(pipe: Connection, began: float, place: str, arguments: Mapping[str, Any]) -> None:
    """The child: says how long it took to be ready, then answers until None comes."""
    try:
        module, _, name = place.partition(":")
        made = getattr(importlib.import_module(module), name)(**arguments)
        # Both processes read the same clock (CLOCK_MONOTONIC); imports are part of what a user waits for.
        pipe.send({"load_ms": (time.perf_counter() - began) * 1000, "rss_mb": rss_mb()})
        while (task := pipe.recv()) is not None:
            method, case, options = task
            # Processor time of all threads: what a figure costs, whoever else is on the machine.
            cpu = time.process_time()
            answer = getattr(made, method)(case, **options)
            if method == "measure":
                answer["processor time"] = (time.process_time() - cpu) * 1000
            pipe.send({"answer": answer, "rss_mb": rss_mb(), "peak_mb": rss_mb("VmHWM")})
    except Exception:  # the parent reports it; a contender that fails must not stop the others
        pipe.send({"error": traceback.format_exc()})
    finally:
        pipe.close()


class ContenderProcess:
    """Started at once. Raises EngineError when the contender cannot be made or fails; then it is closed."""

    def __init__(self, name: str, place: str, **arguments: Any) -> None:
        """place: 'module:Class'. arguments: of its constructor; they travel by pickle between our own processes."""
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, time.perf_counter(), place, arguments), daemon=True, name=name
        )
        self._process.start()
        theirs.close()
        ready = self._receive()
        self.load_ms: float = ready["load_ms"]
        self.loaded_mb: float = ready["rss_mb"]
        self.peak_mb = self.loaded_mb

    def _receive(self) -> dict[str, Any]:
        try:
            if not self._pipe.poll(ANSWER_S):
                raise EngineError(f"The contender {self.name} gave no answer within {ANSWER_S:g} s.", field=self.name)
            found = self._pipe.recv()
        except EOFError as error:
            self.close()
            raise EngineError(f"The process of contender {self.name} ended.", field=self.name) from error
        except EngineError:
            self.close()
            raise
        if "error" in found:
            self.close()
            last = found["error"].strip().splitlines()[-1]
            raise EngineError(f"The contender {self.name} failed: {last}", field=self.name)
        return found

    def call(self, method: str, case: str, **options: Any) -> Any:
        self._pipe.send((method, case, options))
        found = self._receive()
        self.peak_mb = found["peak_mb"]
        return found["answer"]

    def measure(self, case: str, **options: Any) -> dict[str, float]:
        return self.call("measure", case, **options)

    def close(self) -> None:
        if self._process.is_alive():
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5)
        self._pipe.close()

    def __enter__(self) -> ContenderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def probe_ms() -> float:
    """A fixed piece of float32 arithmetic (about 10 ms on one core): how fast this machine is just now."""
    if not _PROBE:
        rng = np.random.default_rng(0)
        _PROBE.append(rng.standard_normal((512, 512), dtype=np.float32))
    started = time.perf_counter()
    for _ in range(3):
        _PROBE[0] @ _PROBE[0]
    found = (time.perf_counter() - started) * 1000
    # The library's threads spin for a while before they sleep; the first contender must not run beside them.
    time.sleep(0.1)
    return found


_PROBE: list[np.ndarray] = []


def interleaved(
    contenders: Sequence[ContenderProcess],
    case: str,
    *,
    rounds: int,
    warmup: int = 1,
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, dict[str, list[float]]], list[float], dict[str, str]]:
    """Every round measures each contender once, in an order that turns, so that none is always after the same one.

    Returns samples by contender and metric, the probe of each round, and why a contender dropped out.
    """
    samples: dict[str, dict[str, list[float]]] = {contender.name: {} for contender in contenders}
    failed: dict[str, str] = {}
    probes: list[float] = []
    for number in range(rounds + warmup):
        turn = number % max(1, len(contenders))
        if number >= warmup:
            probes.append(probe_ms())
        for contender in [*contenders[turn:], *contenders[:turn]]:
            if contender.name in failed:
                continue
            try:
                figures = contender.measure(case, **(options or {}))
            except EngineError as error:
                failed[contender.name] = str(error)
                continue
            if number >= warmup:
                for metric, value in figures.items():
                    samples[contender.name].setdefault(metric, []).append(value)
    return {name: found for name, found in samples.items() if name not in failed}, probes, failed
