"""AuroraEdge-2b on a CPU, in INT8 and INT4, beside OpenVINO and llama.cpp and the floor that memory sets.

    python engine_build/build.py --target cpu --model 2b --random-weights --precision int8 --out build/2b-int8
    python -m benchmarks.cpu_2b --precision int8 --engine build/2b-int8 --llama-bench PATH --json FILE
    python -m benchmarks.cpu_2b --precision int4 --engine build/2b-int4 --llama-bench PATH --json FILE --append

Ours answers a frame: encoder, connectors, 64 compressed and 64 fused tokens through the decoder (that is the verdict),
then single tokens through the runtime's own generation. The peers run a decoder of Qwen2.5-1.5B's shapes with random
weights of the same precision: 128 tokens, then single ones behind them. Every round measures each contender once, one
after the other, because the machine's speed drifts.

The floor of a token: every weight of the decoder is read from memory once, at the rate at which this machine reads an
array that no cache holds, measured in every round. Medians over the steps of a round, and the fastest step.
"""

from __future__ import annotations

import argparse
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
        tokens = np.diff(timed.times) * 1000
        return {
            **{name: float(value) for name, value in parts.items()},
            "verdict": (marks[-1] - marks[0]) * 1000,
            "token": float(np.median(tokens)),
            "token least": float(tokens.min()),
        }


class _Timed(_Places):
    """Notes when each token is taken."""

    def __init__(self, tokenizer: InspectionTokenizer) -> None:
        super().__init__(tokenizer)
        self.times: list[float] = []

    def advance(self, state: State, token: int) -> State:
        self.times.append(time.perf_counter())
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


def bytes_per_token(engine: Path) -> int:
    """What a step must read: all constants of the decoder's linear layers and norms, and of the rotary tables a row."""
    graph = onnx.load(engine / "decoder.onnx", load_external_data=False).graph
    total = 0
    for tensor in graph.initializer:
        if not tensor.name.startswith("rotary."):
            total += next((int(e.value) for e in tensor.external_data if e.key == "length"), len(tensor.raw_data))
    return total


def _contenders(options: argparse.Namespace, document: Document) -> list[ContenderProcess]:
    kind, threads = options.precision, options.threads
    form = {
        "int8": "INT8 weights per output, INT8 activations with a scale a row",
        "int4": "INT4 weights in blocks of 64, LM head INT8, INT8 activations",
    }[kind]
    running = [
        ContenderProcess(f"memory {kind}", "benchmarks.cpu_2b:Memory", threads=threads),
        ContenderProcess(f"ours {kind}", "benchmarks.cpu_2b:Ours", engine=options.engine, threads=threads),
    ]
    document.contenders[f"memory {kind}"] = "reading an array that no cache holds"
    document.contenders[f"ours {kind}"] = f"the engine package in its runtime; {form}"
    if not options.no_openvino:
        place = "benchmarks.decoder_peers:OpenVinoDecoder"
        running.append(ContenderProcess(f"OpenVINO {kind}", place, precision=kind, threads=threads))
        document.contenders[f"OpenVINO {kind}"] = (
            "the decoder alone, weights compressed in NNCF's form ("
            + ("INT8 per output" if kind == "int8" else "INT4 in groups of 128, LM head INT8")
            + "), float32 arithmetic"
        )
    if options.llama_bench:
        from benchmarks.decoder_peers import write_gguf

        model = options.work / f"qwen2.5-1.5b-random-{kind}.gguf"
        if not model.is_file():
            options.work.mkdir(parents=True, exist_ok=True)
            write_gguf(model, kind)
        place = "benchmarks.decoder_peers:LlamaBench"
        arguments = {"program": options.llama_bench, "model": model, "threads": threads}
        running.append(ContenderProcess(f"llama.cpp {kind}", place, **arguments))
        document.contenders[f"llama.cpp {kind}"] = (
            "the decoder alone, by llama-bench: "
            + ("Q8_0" if kind == "int8" else "Q4_0, embedding and LM head Q8_0")
            + "; its host is C++, a token is chosen by nobody"
        )
    return running


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
    if options.llama_bench:
        sizes[f"llama.cpp {kind}"] = (options.work / f"qwen2.5-1.5b-random-{kind}.gguf").stat().st_size
    rates = samples[f"memory {kind}"]["read"]
    rate = float(np.median(rates))
    for name, size in sizes.items():
        if name not in samples:
            continue
        floor = size / rate / 1e6
        how = f"{name}: {size / 1e6:.0f} MB of weights / {rate:.1f} GB/s, the median of the rounds' best reads"
        document.floors.append(Floor(case=DECODE, metric="token", unit="ms", value=floor, how=how))
    ours = samples[f"ours {kind}"]
    shares = {
        metric: [sizes[f"ours {kind}"] / r / 1e6 / t for r, t in zip(rates, ours[metric], strict=True)]
        for metric in ("token", "token least")
    }
    share = float(np.median(shares["token"]))
    document.add(DECODE, f"ours {kind}", "share of the floor", "1", shares["token"], "more")
    document.targets.append(
        Target(
            name=f"decode of 2b in {kind} against the floor of memory",
            wanted=f">= {_WANTED:.0%}",
            measured=share,
            met=share >= _WANTED,
            note=f"median of the rounds, each against its own read rate; the fastest step of a round reaches "
            f"{float(np.median(shares['token least'])):.0%}",
        )
    )


def _table(document: Document) -> Table:
    table = Table(title="2b on a CPU: median (least) of the rounds, ms")
    metrics = ("vision", "fusion", "prefill", "verdict", "token", "token least")
    for column in ("contender", *metrics, "tokens/s", "read GB/s", "of the floor"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name in document.contenders:
        cells = []
        for metric in metrics:
            case = DECODE if metric.startswith("token") else VERDICT
            found = document.find(case, name, metric)
            cells.append("" if found is None else f"{np.median(found.samples):.1f} ({min(found.samples):.1f})")
        token = document.find(DECODE, name, "token")
        cells.append("" if token is None else f"{1000 / np.median(token.samples):.1f}")
        for metric, form in (("read", ".1f"), ("share of the floor", ".0%")):
            found = document.find(DECODE, name, metric)
            cells.append("" if found is None else format(float(np.median(found.samples)), form))
        table.add_row(name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("int8", "int4"), required=True)
    parser.add_argument("--engine", type=Path, required=True, help="package of that precision")
    parser.add_argument("--work", type=Path, default=Path("build/cpu_2b"), help="folder of the peers' weights")
    parser.add_argument("--llama-bench", type=Path, help="program of llama.cpp; without it llama.cpp is left out")
    parser.add_argument("--no-openvino", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=16, help="single tokens of a round (default: 16)")
    parser.add_argument("--nice", type=int, help="niceness of the contenders, for a machine that others use as well")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--append", action="store_true", help="add to the file that --json names")
    options = parser.parse_args()
    console = Console()
    settings = {
        "threads": options.threads,
        "rounds": options.rounds,
        "steps": options.steps,
        "prompt": 64 + PROMPT_TOKENS,
        "nice": options.nice,
    }
    title = f"AuroraEdge-2b with random weights on {options.threads} threads: one 640x640 frame, then single tokens"
    document = Document(suite="cpu_2b", title=title, settings=settings)
    if options.append:
        document = read_document(options.json)
    running: list[ContenderProcess] = []
    try:
        running = _contenders(options, document)
        for process in running:
            document.add("2b, loading", process.name, "load", "ms", [process.load_ms])
            document.add("2b, loading", process.name, "memory", "MB", [process.loaded_mb])
        samples, probes, failed = interleaved(
            running,
            DECODE,
            rounds=options.rounds,
            options={"prompt": 64 + PROMPT_TOKENS, "steps": options.steps},
            nice=options.nice,
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
