"""The CPU suite: our engine against its peers. How its cost grows is in benchmarks.scaling.

Same machine, same run, same work: one 640x640 frame in memory, a prompt of 64 tokens, 20 new tokens. Parity first:
contenders with equal weights in float32 must decode the same tokens. Each contender has a process of its own; every
round measures each once. Contenders of 256 M parameters and more join for a few rounds only.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from auroraedge.errors import EngineError
from benchmarks import prepare
from benchmarks.figures import ratio_interval
from benchmarks.process import ContenderProcess, interleaved
from benchmarks.suite import Document, Floor, Parity, Target

CASE = "one frame, one prompt"
OURS, EAGER = "ours", "transformers eager"
_NAMES = "benchmarks.contenders"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contender of the suite. same: equal weights, so the answer is compared; exact: and equal arithmetic, so it must
    be equal. needs: a package that may be missing."""

    name: str
    what: str
    place: str
    arguments: dict[str, Any] = field(default_factory=dict)
    same: bool = False
    exact: bool = False
    needs: str = ""
    cases: tuple[str, ...] = ("verdict", "answer")


def entries(engine: Path, model: Path, graphs: Path, detector: Path) -> list[Entry]:
    ours, torch = f"{_NAMES}:Ours", f"{_NAMES}:Transformers"
    floats: dict[str, Any] = {"engine": engine, "graphs": graphs}
    openvino: dict[str, Any] = {"engine": engine, "runtime": "openvino"}
    return [
        Entry(name=OURS, what="the embedded engine as shipped (INT8 encoder, ONNX Runtime)", place=ours,
              arguments={"engine": engine}, same=True),
        Entry(name="ours, float32", what="the same host code on float32 graphs in ONNX Runtime", place=ours,
              arguments=floats, same=True, exact=True),
        Entry(name="openvino, our INT8 graphs", what="the same host code, the engine's INT8 graphs in OpenVINO",
              place=ours, arguments=openvino, same=True, needs="openvino"),
        Entry(name="openvino, float32", what="the same host code, float32 graphs in OpenVINO", place=ours,
              arguments={**openvino, "graphs": graphs}, same=True, exact=True, needs="openvino"),
        Entry(name=EAGER, what="the same weights in transformers, float32, eager", place=torch,
              arguments={"folder": model}, same=True, exact=True, needs="torch"),
        Entry(name="transformers compiled", what="the same with torch.compile (dynamic decoder)", place=torch,
              arguments={"folder": model, "compiled": True}, same=True, exact=True, needs="torch"),
        Entry(name="256 tokens, our engine", what="the same backbone without compression and fusion, our INT8 engine",
              place=ours, arguments={"engine": engine, "compressed": False}),
        Entry(name="256 tokens, transformers", what="the same backbone without compression and fusion, eager",
              place=torch, arguments={"folder": model, "compressed": False}, needs="torch"),
        Entry(name="YOLOv8n-shaped", what="3.2 M parameters, 8.7 GFLOPs, random weights, float32 in ONNX Runtime",
              place=f"{_NAMES}:Detector", arguments={"path": detector}, cases=("verdict",)),
    ]  # fmt: skip


def large_entries() -> list[Entry]:
    shaped = f"{_NAMES}:Shaped"
    return [
        Entry(name="SmolVLM-256M-shaped", what="random weights in transformers, float32, eager, one 512x512 tile",
              place=shaped, arguments={"shape": "smolvlm-256m"}, needs="torch"),
        Entry(name="Qwen2-VL-2B-shaped", what="random weights in transformers, float32, eager, 529 visual tokens",
              place=shaped, arguments={"shape": "qwen2-vl-2b"}, needs="torch"),
    ]  # fmt: skip


def _start(
    wanted: Sequence[Entry], threads: int, document: Document, console: Console, starts: int = 1
) -> list[ContenderProcess]:
    """The contenders that can be started; of the others the notes say why not."""
    running = []
    for entry in wanted:
        if entry.needs and importlib.util.find_spec(entry.needs) is None:
            document.notes.append(f"{entry.name}: not measured, {entry.needs} is not installed.")
            continue
        process = None
        try:
            for _ in range(starts):
                if process is not None:
                    process.close()
                process = ContenderProcess(entry.name, entry.place, threads=threads, **entry.arguments)
                document.add(CASE, entry.name, "load", "ms", [process.load_ms])
        except EngineError as error:
            document.notes.append(f"{entry.name}: not measured. {error}")
            console.print(f"[yellow]{error}[/yellow]")
            continue
        assert process is not None
        document.contenders[entry.name] = entry.what
        running.append(process)
    return running


def _parity(running: Sequence[ContenderProcess], wanted: Sequence[Entry], document: Document, console: Console) -> None:
    exact = {entry.name: entry.exact for entry in wanted if entry.same}
    answers = {process.name: process.call("parity", CASE) for process in running if process.name in exact}
    base = answers.get(EAGER) or answers.get("ours, float32")
    if base is None:
        return
    for name, answer in answers.items():
        same = sum(a == b for a, b in zip(answer["ids"], base["ids"], strict=True)) / len(base["ids"])
        error = abs(answer["verdict_logit"] - base["verdict_logit"])
        parity = Parity(
            case=CASE, contender=name, against=EAGER, equal=same == 1.0, must=exact[name],
            figures={"share of equal tokens": same, "difference of the verdict's log-odds": error},
        )  # fmt: skip
        document.parity.append(parity)
        if parity.must and not parity.equal:
            console.print(f"[red]{name} gives another answer than {EAGER}: {same:.0%} of the tokens are equal[/red]")


def _measure(
    running: Sequence[ContenderProcess],
    case: str,
    rounds: int,
    document: Document,
    console: Console,
    *,
    warmup: int = 1,
) -> None:
    """One figure (verdict or answer) of every contender, round by round."""
    began = time.perf_counter()
    samples, probes, failed = interleaved(running, case, rounds=rounds, warmup=warmup)
    document.probe_ms += probes
    for name, why in failed.items():
        document.notes.append(f"{name}, {case}: {why}")
        console.print(f"[yellow]{name}: {why}[/yellow]")
    for name, metrics in samples.items():
        for metric, values in metrics.items():
            label = f"processor time of the {case}" if metric == "processor time" else metric
            document.add(CASE, name, label, "ms", values)
    console.print(f"{case}: {len(running)} contenders, {rounds} rounds, {time.perf_counter() - began:.0f} s")


# --- what it comes to ------------------------------------------------------------------------------------------------


def _gflops(threads: int) -> float:
    """float32 GFLOP/s of the best of a few large products, all threads of numpy's BLAS together."""
    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    best = 1e9
    for _ in range(12):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best / 1e9


def floors(threads: int, document: Document) -> None:
    from auroraedge.model.flops import auroraedge_shape  # the package of the model needs torch

    gflop = sum(auroraedge_shape("nano").count(text=64, new=1).values()) / 1e9
    rate = _gflops(threads)
    ms = gflop / rate * 1000
    document.settings["float32_gflops"] = rate
    how = f"{gflop:.2f} GFLOP of matrix products at {rate:.0f} GFLOP/s, the best that numpy's BLAS reached"
    document.floors.append(Floor(case=CASE, metric="verdict", unit="ms", value=ms, how=f"float32: {how}"))
    if not {"avx512_vnni", "avx_vnni", "asimddp"} & set(document.environment.get("cpu_flags", [])):
        text = "INT8 without VNNI does twice the float32 products a cycle (VPMADDUBSW + VPMADDWD): half of the above"
        document.floors.append(Floor(case=CASE, metric="verdict", unit="ms", value=ms / 2, how=text))


def targets(document: Document) -> None:
    def samples(contender: str, metric: str = "verdict", case: str = CASE) -> list[float]:
        found = document.find(case, contender, metric)
        return [] if found is None else found.samples

    def ratio(name: str, other: str, wanted: float, metric: str = "verdict") -> None:
        a, b = samples(other, metric), samples(OURS, metric)[: len(samples(other, metric))]
        target = Target(name=name, wanted=f">= {wanted:g}x")
        if not a or not b:
            document.targets.append(target.model_copy(update={"note": "not measured in this run"}))
            return
        found = ratio_interval(a, b, paired=True)
        note = f"95 % interval {found.low:.2f} to {found.high:.2f}, round by round"
        updated = {"measured": found.middle, "met": found.middle >= wanted, "note": note}
        document.targets.append(target.model_copy(update=updated))

    ratio("verdict against transformers eager, same weights", EAGER, 5.0)
    ratio("the same in processor time", EAGER, 5.0, "processor time of the verdict")
    ratio("verdict against OpenVINO on our INT8 graphs", "openvino, our INT8 graphs", 1.3)
    ratio("verdict against OpenVINO in float32", "openvino, float32", 1.3)
    verdict = samples(OURS)
    if verdict:
        host = np.array(samples(OURS, "decode image")) + np.array(samples(OURS, "preprocess"))
        share = float(np.median(host / np.array(verdict)))
        document.targets.append(
            Target(name="preprocessing (hash, views, patches), share of the verdict", wanted="<= 0.10", measured=share,
                   met=share <= 0.10)
        )  # fmt: skip


def run(
    *,
    threads: int,
    engine: Path,
    model: Path,
    rounds: int,
    large_rounds: int,
    starts: int = 1,
    only: Sequence[str] = (),
    save: Callable[[Document], None] = lambda document: None,
    console: Console,
) -> Document:
    """`only`: contenders by name, or none for all. save: called with what there is after each part, so that
    a run that is cut off keeps it. Raises EngineError when our own engine fails.
    """
    document = Document(
        suite="cpu",
        title="One 640x640 frame, a prompt of 64 tokens, 20 new tokens, on a CPU",
        settings={
            "threads": threads,
            "rounds": rounds,
            "large_rounds": large_rounds,
            "engine": engine.name,
        },
    )
    wanted = lambda name: not only or name in only  # noqa: E731
    small = [e for e in entries(engine, model, Path(), Path()) if wanted(e.name)]
    if small:
        graphs = prepare.float_graphs(engine, model) if any("graphs" in e.arguments for e in small) else Path()
        detector = prepare.detector_graph() if any(e.place.endswith("Detector") for e in small) else Path()
        small = [e for e in entries(engine, model, graphs, detector) if wanted(e.name)]
        running = _start(small, threads, document, console, starts)
        try:
            _parity(running, small, document, console)
            _measure(running, "verdict", rounds, document, console, warmup=2)
            speaking = [p for p in running if "answer" in _cases(small, p.name)]
            _measure(speaking, "answer", max(3, rounds // 2), document, console)
            for process in running:
                document.add(CASE, process.name, "memory", "MB", [process.peak_mb])
        finally:
            for process in running:
                process.close()
        save(document)
    floors(threads, document)
    targets(document)
    document.notes += NOTES
    save(document)
    for entry in large_entries():
        if not wanted(entry.name) or large_rounds < 1:
            continue
        running = _start([entry], threads, document, console)
        try:
            if running:
                _measure(running, "both", large_rounds, document, console, warmup=0)
                document.add(CASE, entry.name, "memory", "MB", [running[0].peak_mb])
        finally:
            for process in running:
                process.close()
        save(document)
    return document


def _cases(wanted: Sequence[Entry], name: str) -> tuple[str, ...]:
    return next(entry.cases for entry in wanted if entry.name == name)


NOTES = [
    "Shaped models and the detector have random weights: their times mean something, their answers do not.",
    "Shaped models start from ready pixel tensors; everybody else from the frame's pixels, which favours the former.",
    "'ours' also hashes the frame, checks every output and makes the result object; the contenders in transformers do "
    "not.",
    "The detector finds boxes of fixed classes and takes no prompt: it is another product.",
    "A contender that is compiled when it starts spends that time in its first rounds, which are not counted.",
    "Large contenders ran by themselves after the others and without a warm-up round, because one frame takes so long.",
]
