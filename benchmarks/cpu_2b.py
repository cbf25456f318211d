"""AuroraEdge-2b on a CPU, in INT8 and INT4, beside OpenVINO and llama.cpp and the floor that memory sets.

    python engine_build/build.py --target cpu --model 2b --random-weights --precision int8 --out build/2b-int8
    pip install -e ".[bench,gguf]" llama-cpp-python
    python -m benchmarks.cpu_2b --precision int8 --engine build/2b-int8 --json FILE
    python -m benchmarks.cpu_2b --precision int4 --engine build/2b-int4 --json FILE --append

Ours answers a frame: encoder, connectors, 64 compressed and 64 fused tokens through the decoder (that is the verdict),
then single tokens through the runtime's own generation. The peers run a decoder of Qwen2.5-1.5B's shapes with random
weights of the same precision: 128 tokens, then single ones behind them. Every round measures each contender once, one
after the other, because the machine's speed drifts.

The floor of a token: every weight of the decoder is read from memory once, at the rate at which this machine reads an
array that no cache holds, measured in every round. Medians over the steps of a round, and the fastest step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from auroraedge.errors import AuroraEdgeError
from auroraedge.inspection.grammar import State
from auroraedge.inspection.images import ImageLimits
from auroraedge.inspection.recipe import LabelSpec, Recipe
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.runtime.engine import EnginePackage
from auroraedge.runtime.frames import LoadedFrame
from auroraedge.runtime.generation import Row, generate
from benchmarks.contenders import PROMPT_TOKENS, frame, prompt
from benchmarks.process import ContenderProcess, interleaved
from benchmarks.suite import Document, Floor, Target, read_document, write_document

VERDICT, DECODE = "2b, one frame", "2b, one token"
SHARE = "share of the floor"
LABELS = ("crack", "blowhole", "scratch", "dent")
# 128 MiB: larger than the last-level cache of what this runs on, small enough to be read between two interruptions.
_READ_BYTES = 128 * 2**20
_READS = 12
_WANTED = 0.8


class _Places:
    """A grammar that allows the location tokens and never ends: as many choices as the real one has most often."""

    def __init__(self, tokenizer: InspectionTokenizer) -> None:
        self.tokenizer = tokenizer

    def start(self) -> State:
        return State(phase="verdict")

    def allowed(self, state: State) -> np.ndarray:
        return self.tokenizer.loc_ids

    def advance(self, state: State, token: int) -> State:
        return State(phase="text")

    def done(self, state: State) -> bool:
        return False


class Ours:
    """An engine package in the product's runtime."""

    def __init__(self, *, engine: Path, threads: int) -> None:
        import cv2

        cv2.setNumThreads(1)
        self.package = EnginePackage(engine, threads=threads)
        self.recipe = Recipe(id="bench", labels=tuple(LabelSpec(name=name) for name in LABELS))
        text = prompt(self.package.tokenizer, LABELS).text
        self.ids = np.array(self.package.tokenizer.encode(text), dtype=np.int64)

    def measure(self, case: str, *, steps: int, **_: Any) -> dict[str, float]:
        marks = [time.perf_counter()]

        def mark() -> None:
            marks.append(time.perf_counter())

        patches = LoadedFrame(frame(), None, ImageLimits()).views(self.recipe).patches
        mark()
        encoded = self.package.encode(patches)
        mark()
        fused = self.package.fuse(self.ids, encoded.visual)
        mark()
        timed = _Timed(self.package.tokenizer)
        row = Row(
            prefix=np.concatenate([encoded.compressed[0], fused[0]]),
            grammar=timed,  # type: ignore[arg-type]
            max_new_tokens=steps + 1,
        )
        generate(self.package, [row], on_prefill=mark)
        parts = dict(zip(("preprocess", "vision", "fusion", "prefill"), np.diff(marks) * 1000, strict=True))
        tokens, work = np.diff(timed.times) * 1000, np.diff(timed.work) * 1000
        return {
            **{name: float(value) for name, value in parts.items()},
            "verdict": (marks[-1] - marks[0]) * 1000,
            "token": float(np.median(tokens)),
            "token least": float(tokens.min()),
            "token work": float(np.median(work)),
        }


class _Timed(_Places):
    """Notes when each token is taken."""

    def __init__(self, tokenizer: InspectionTokenizer) -> None:
        super().__init__(tokenizer)
        self.times: list[float] = []
        self.work: list[float] = []

    def advance(self, state: State, token: int) -> State:
        self.times.append(time.perf_counter())
        self.work.append(time.process_time())
        return super().advance(state, token)


class Memory:
    """Reads an array with as many threads as the decoders have: the largest rate of several ways to read it."""

    def __init__(self, *, threads: int) -> None:
        self.parts = np.array_split(np.ones(_READ_BYTES // 8), threads)

    def measure(self, case: str, **_: Any) -> dict[str, float]:
        ways: tuple[Callable[[np.ndarray], Any], ...] = (np.max, np.sum)
        return {"read": max(self._rate(way) for way in ways for _ in range(_READS))}

    def _rate(self, way: Callable[[np.ndarray], Any]) -> float:
        """10^9 bytes a second."""
        workers = [threading.Thread(target=way, args=(part,)) for part in self.parts]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return _READ_BYTES / (time.perf_counter() - started) / 1e9


class _Contender(ContenderProcess):
    """realtime: its threads are not interrupted by other programs while it is measured (SCHED_FIFO; needs root)."""

    realtime = False

    def measure(self, case: str, **options: Any) -> dict[str, float]:
        if not self.realtime:
            return super().measure(case, **options)
        self._schedule(os.SCHED_FIFO, 1)
        try:
            return super().measure(case, **options)
        finally:
            self._schedule(os.SCHED_OTHER, 0)

    def _schedule(self, policy: int, priority: int) -> None:
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # a thread that has ended meanwhile
                os.sched_setscheduler(int(task.name), policy, os.sched_param(priority))


def bytes_per_token(engine: Path) -> int:
    """What a step must read: all constants of the decoder's linear layers and norms, and of the rotary tables a row."""
    graph = onnx.load(engine / "decoder.onnx", load_external_data=False).graph
    total = 0
    for tensor in graph.initializer:
        if not tensor.name.startswith("rotary."):
            total += next((int(e.value) for e in tensor.external_data if e.key == "length"), len(tensor.raw_data))
    return total


def _contenders(options: argparse.Namespace, document: Document) -> list[_Contender]:
    kind, threads = options.precision, options.threads
    form = {
        "int8": "INT8 weights per output, INT8 activations with a scale a row",
        "int4": "INT4 weights in blocks of 64, LM head INT8, INT8 activations",
    }[kind]
    running = [
        _Contender(f"memory {kind}", "benchmarks.cpu_2b:Memory", threads=threads),
        _Contender(f"ours {kind}", "benchmarks.cpu_2b:Ours", engine=options.engine, threads=threads),
    ]
    document.contenders[f"memory {kind}"] = "reading an array that no cache holds"
    document.contenders[f"ours {kind}"] = f"the engine package in its runtime; {form}"
    if not options.no_openvino:
        place = "benchmarks.decoder_peers:OpenVinoDecoder"
        running.append(_Contender(f"OpenVINO {kind}", place, precision=kind, threads=threads))
        document.contenders[f"OpenVINO {kind}"] = (
            "the decoder alone, weights compressed in NNCF's form ("
            + ("INT8 per output" if kind == "int8" else "INT4 in groups of 128, LM head INT8")
            + "), float32 arithmetic"
        )
    if not options.no_llama_cpp:
        from benchmarks.decoder_peers import write_gguf

        model = _gguf(options)
        if not model.is_file():
            options.work.mkdir(parents=True, exist_ok=True)
            write_gguf(model, kind)
        place = "benchmarks.decoder_peers:LlamaCpp"
        running.append(_Contender(f"llama.cpp {kind}", place, model=model, threads=threads))
        document.contenders[f"llama.cpp {kind}"] = "the decoder alone, " + (
            "Q8_0" if kind == "int8" else "Q4_0, embedding and LM head Q8_0"
        )
    return running


def _gguf(options: argparse.Namespace) -> Path:
    path: Path = options.work / f"qwen2.5-1.5b-random-{options.precision}.gguf"
    return path


def _record(document: Document, samples: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> None:
    kind = options.precision
    for name, metrics in samples.items():
        for metric, values in metrics.items():
            if metric == "read":
                document.add(DECODE, name, "read", "GB/s", values, "more")
            elif metric.startswith("token"):
                document.add(DECODE, name, metric, "ms", values)
            elif metric != "processor time":
                document.add(VERDICT, name, metric, "ms", values)
    sizes = {f"ours {kind}": bytes_per_token(options.engine)}
    if f"llama.cpp {kind}" in samples:
        sizes[f"llama.cpp {kind}"] = _gguf(options).stat().st_size
    rates = samples[f"memory {kind}"]["read"]
    rate = float(np.median(rates))
    for name, size in sizes.items():
        if name not in samples:
            continue
        floor = size / rate / 1e6
        how = f"{name}: {size / 1e6:.0f} MB of weights / {rate:.1f} GB/s, the median of the rounds' best reads"
        document.floors.append(Floor(case=DECODE, metric="token", unit="ms", value=floor, how=how))
    for name in (name for name in sizes if name in samples):
        found = samples[name]
        # The work of all threads, as if they shared it evenly and nothing else ran.
        alone = [work / options.threads for work in found["token work"]]
        for metric, values in (
            (SHARE, found["token"]),
            (f"{SHARE}, fastest step", found["token least"]),
            (f"{SHARE}, by processor time", alone),
        ):
            shares = [sizes[name] / r / 1e6 / t for r, t in zip(rates, values, strict=True)]
            document.add(DECODE, name, metric, "1", shares, "more")
    median = {
        metric: float(np.median(document.find(DECODE, f"ours {kind}", metric).samples))  # type: ignore[union-attr]
        for metric in (SHARE, f"{SHARE}, fastest step", f"{SHARE}, by processor time")
    }
    document.targets.append(
        Target(
            name=f"decode of 2b in {kind} against the floor of memory",
            wanted=f">= {_WANTED:.0%}",
            measured=median[SHARE],
            met=median[SHARE] >= _WANTED,
            note="by the clock, each round against its own read rate; the fastest step of a round: "
            f"{median[f'{SHARE}, fastest step']:.0%}, by processor time: {median[f'{SHARE}, by processor time']:.0%}",
        )
    )


def _table(document: Document) -> Table:
    table = Table(title="2b on a CPU: median (least) of the rounds, ms")
    metrics = ("vision", "fusion", "prefill", "verdict", "token", "token least")
    ends = (("read", ".1f"), (SHARE, ".0%"), (f"{SHARE}, fastest step", ".0%"), (f"{SHARE}, by processor time", ".0%"))
    titles = ("tokens/s", "read GB/s", "of floor", "fastest", "by work")
    for column in ("contender", *metrics, *titles):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name in document.contenders:
        cells = []
        for metric in metrics:
            case = DECODE if metric.startswith("token") else VERDICT
            found = document.find(case, name, metric)
            cells.append("" if found is None else f"{np.median(found.samples):.0f} ({min(found.samples):.0f})")
        token = document.find(DECODE, name, "token")
        cells.append("" if token is None else f"{1000 / np.median(token.samples):.1f}")
        for metric, form in ends:
            found = document.find(DECODE, name, metric)
            cells.append("" if found is None else format(float(np.median(found.samples)), form))
        table.add_row(name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("int8", "int4"), required=True)
    parser.add_argument("--engine", type=Path, required=True, help="package of that precision")
    parser.add_argument("--work", type=Path, default=Path("build/cpu_2b"), help="folder of the peers' weights")
    parser.add_argument("--no-openvino", action="store_true")
    parser.add_argument("--no-llama-cpp", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=16, help="single tokens of a round (default: 16)")
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="nothing interrupts a contender while it is measured: for a machine that others use as well (needs root)",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--append", action="store_true", help="add to the file that --json names")
    options = parser.parse_args()
    console = Console(width=150)
    settings = {
        "threads": options.threads,
        "rounds": options.rounds,
        "steps": options.steps,
        "prompt": 64 + PROMPT_TOKENS,
        "realtime": options.realtime,
    }
    title = f"AuroraEdge-2b with random weights on {options.threads} threads: one 640x640 frame, then single tokens"
    document = Document(suite="cpu_2b", title=title, settings=settings)
    if options.append:
        document = read_document(options.json)
    running: list[_Contender] = []
    try:
        running = _contenders(options, document)
        for process in running:
            process.realtime = options.realtime
            document.add("2b, loading", process.name, "load", "ms", [process.load_ms])
            document.add("2b, loading", process.name, "memory", "MB", [process.loaded_mb])
        samples, probes, failed = interleaved(
            running,
            DECODE,
            rounds=options.rounds,
            options={"prompt": 64 + PROMPT_TOKENS, "steps": options.steps},
        )
    except AuroraEdgeError as error:
        console.print(f"error: {error}", style="red")
        raise SystemExit(1) from error
    finally:
        for process in running:
            process.close()
    document.probe_ms += probes
    document.notes += [f"{name} is left out: {why}" for name, why in failed.items()]
    _record(document, samples, options)
    if options.json:
        write_document(document, options.json)
    console.print(_table(document))


if __name__ == "__main__":
    main()
