"""docs/performance.md from the committed results: `python -m benchmarks report`. No figure in it is typed.

Prose lives here, figures in benchmarks/results/*.json, and what was tried in benchmarks/tried.yaml.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from benchmarks import plant as plants
from benchmarks.environment import percentiles
from benchmarks.plots import draw_scaling, draw_service, draw_verdicts
from benchmarks.suite import RESULTS, Document, read_document, read_result
from benchmarks.tables import number

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "images"
TRIED = Path(__file__).resolve().parent / "tried.yaml"


class _Figure(BaseModel):
    """A ratio of medians, new / old, read from a result. old_case: where the older figure is of another case."""

    model_config = ConfigDict(extra="forbid")

    result: str
    case: str
    new: str
    old: str
    metric: str = "processor time"
    old_case: str = ""


class _Attempt(BaseModel):
    """One thing that was tried. adopted: 'yes', 'no' or 'offered'; why: in words; figure: what it gave here."""

    model_config = ConfigDict(extra="forbid")

    change: str
    adopted: str
    why: str
    figure: _Figure | None = None
    share: tuple[str, str] | None = None  # graph and operators' share in graph_forms.json that bounds the gain


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(*head), _row(*["---"] * len(head)), *(_row(*row) for row in rows), ""]


def _machine(document: Document) -> str:
    e = document.environment
    packages = ", ".join(f"{name} {version}" for name, version in e.get("packages", {}).items())
    flags = ", ".join(e.get("cpu_flags", []))
    load = ", ".join(f"{x:.1f}" for x in e.get("load_average", []))
    busy = f"; precedence of the run: {e['precedence']}" if e.get("precedence") else ""
    probe = document.probe_ms
    drift = f" A fixed product took {min(probe):.0f} to {max(probe):.0f} ms over the run." if probe else ""
    return (
        f"Measured {e['date'][:10]} on {e['cpu']}, {e['cores']} cores ({flags}), Python {e['python']}, {packages}; "
        f"load average of the machine when the run began: {load}{busy}.{drift} Where the load average is above the "
        "number of cores, other work ran at the same time, and processor time is the figure to go by."
    )


def _cell(document: Document, case: str, contender: str, metric: str) -> str:
    found = document.find(case, contender, metric)
    if found is None:
        return ""
    p = percentiles(found.samples)
    return number(p["p50"]) if len(found.samples) < 5 else f"{number(p['p50'])} ({number(p['p95'])})"


def _median(document: Document, case: str, contender: str, metric: str) -> float | None:
    found = document.find(case, contender, metric)
    return None if found is None else float(np.median(found.samples))


def _targets(document: Document) -> list[str]:
    rows = []
    for t in document.targets:
        measured = "not measured" if t.measured is None else number(t.measured)
        met = {True: "met", False: "**missed**", None: ""}[t.met]
        rows.append((t.name, t.wanted, measured, met, t.note))
    return _table(("target", "wanted", "measured", "", ""), rows)


def _peers(document: Document) -> Iterator[str]:
    from benchmarks.cpu import CASE

    yield "## One frame on a CPU, against peers"
    yield ""
    yield "One 640x640 frame in memory, a prompt of 64 tokens, 20 new tokens. 'verdict' is from the frame to OK/NG,"
    yield "'answer' from the frame to the 20th token. p50 (p95), ms. `python -m benchmarks --suite cpu`."
    yield ""
    rows = []
    for name in document.contenders:
        verdict = _median(document, CASE, name, "verdict")
        if verdict is None:
            continue
        memory, load = (_median(document, CASE, name, m) for m in ("memory", "load"))
        rows.append(
            (
                f"**{name}**" if name == "ours" else name,
                _cell(document, CASE, name, "verdict"),
                _cell(document, CASE, name, "processor time of the verdict"),
                _cell(document, CASE, name, "answer"),
                number(1000 / verdict),
                "" if memory is None else f"{memory:,.0f}",
                "" if load is None else f"{load / 1000:.1f}",
            )
        )
    head = ("contender", "verdict", "its processor time", "answer", "verdicts a second", "peak memory, MB", "load, s")
    yield from _table(head, rows)
    yield "![Time to the verdict by contender](images/performance-verdict.svg)"
    yield ""
    yield "\n".join(f"- {name}: {what}." for name, what in document.contenders.items())
    yield ""
    product = _median(document, CASE, "ours", "product")
    if product is not None:
        yield f"The product's own full answer, defects read off the evidence instead of decoded: {number(product)} ms."
        yield ""
    yield from _equal(document)
    yield "Floors of the verdict, from its matrix products alone:"
    yield ""
    yield from _table(("floor, ms", "how"), [(number(f.value), f.how) for f in document.floors])
    eager, ours = (_median(document, CASE, name, "verdict") for name in ("transformers eager", "ours"))
    if eager and ours and document.floors:
        lowest = min(document.floors, key=lambda f: f.value)
        yield (
            f"transformers eager takes {eager / lowest.value:.1f}x the lowest of these floors, so no program gains "
            f"more than that over it on this processor; ours is at {ours / lowest.value:.1f}x the floor."
        )
        yield ""
    yield from _targets(document)
    yield from (f"- {note}" for note in document.notes)
    yield ""
    yield _machine(document)
    yield ""


def _equal(document: Document) -> Iterator[str]:
    if not document.parity:
        return
    yield "Answers of contenders with the same weights, against transformers eager:"
    yield ""
    rows = [
        (p.contender, "equal" if p.equal else "differs", *(f"{value:.4g}" for value in p.figures.values()))
        for p in document.parity
    ]
    yield from _table(("contender", "20 tokens", *document.parity[0].figures), rows)


def _scaling(document: Document) -> Iterator[str]:
    groups = (
        ("prompts per frame: ", "prompts on a frame", "all prompts"),
        ("prompts in calls of their own: ", "prompts in calls of their own", "all prompts"),
        ("a second prompt that ", "second prompt, which", "both prompts"),
        ("frames in flight: ", "frames in one batch", "all frames"),
        ("frame size: ", "frame", "the frame"),
    )
    yield "## How the cost grows"
    yield ""
    for prefix, label, what in groups:
        rows = []
        for case in document.cases:
            if case.startswith(prefix):
                cells = [_cell(document, case, "ours", metric) for metric in ("total", "processor time")]
                rows.append((case.removeprefix(prefix), *cells))
        if rows:
            yield from _table((label, f"ms, {what}", "processor time, ms"), rows)
    yield "![Cost curves](images/performance-scaling.svg)"
    yield ""
    yield from _targets(document)
    yield "Frames above one view are cut into squares of 1024 px with an overlap of 64 px. Frames in flight are equal"
    yield "frames in one call of `inspect_batch`; the server's own figures are below."
    yield ""
    yield _machine(document)
    yield ""


def _tried(forms: Document | None) -> Iterator[str]:
    attempts = TypeAdapter(list[_Attempt]).validate_python(yaml.safe_load(TRIED.read_text(encoding="utf-8")))
    yield "## What was tried"
    yield ""
    yield "Ratios are of medians, new / old, below 1 is faster: of processor time, or of the clock where it says so"
    yield "(`python -m benchmarks.graph_forms`, `benchmarks/results/graph_forms.json`). 'At most' is the share of the"
    yield "operators in question in a graph's time, which bounds the gain. The log is `benchmarks/tried.yaml`."
    yield ""
    rows = []
    for a in attempts:
        gave = ""
        if a.figure is not None:
            if not (RESULTS / f"{a.figure.result}.json").is_file():
                continue
            document = read_document(RESULTS / f"{a.figure.result}.json")
            new = _median(document, a.figure.case, a.figure.new, a.figure.metric)
            old = _median(document, a.figure.old_case or a.figure.case, a.figure.old, a.figure.metric)
            if new is not None and old is not None:
                clock = "" if a.figure.metric == "processor time" else ", clock"
                gave = f"{new / old:.2f} ({a.figure.case}{clock})"
        elif a.share is not None and forms is not None:
            graph, operators = a.share
            shares: dict[str, Any] = forms.settings.get("shares", {}).get(graph, {})
            found = sum(shares.get(operator, 0.0) for operator in operators.split("+"))
            gave = f"at most {100 * found:.0f} % of the {graph} graph"
        rows.append((a.change, gave, a.adopted, a.why))
    yield from _table(("change", "gave", "adopted", "why"), rows)
    if forms is not None:
        yield "Steps before the encoder, ms on one thread:"
        yield ""
        case = "before the encoder"
        steps = [m for m in forms.measurements if m.case == case and m.metric == "processor time"]
        yield from _table(
            ("step", "processor time"), [(m.contender, number(float(np.median(m.samples)))) for m in steps]
        )
        yield _machine(forms)
        yield ""


def _any(document: Document, heading: str) -> Iterator[str]:
    """A result of the common form without a layout of its own."""
    yield f"## {heading}"
    yield ""
    yield f"{document.title}."
    yield ""
    metrics = list(dict.fromkeys((m.metric, m.unit) for m in document.measurements))
    rows = []
    for case in document.cases:
        for name in document.contenders:
            cells = [_cell(document, case, name, metric) for metric, _ in metrics]
            if any(cells):
                rows.append((case, name, *cells))
    if rows:
        yield from _table(("case", "contender", *(f"{metric}, {unit}" for metric, unit in metrics)), rows)
    if document.floors:
        floors = [(f.case, f"{number(f.value)} {f.unit}", f.how) for f in document.floors]
        yield from _table(("floor of", "value", "how"), floors)
    if document.targets:
        yield from _targets(document)
    yield from (f"- {note}" for note in document.notes)
    yield ""
    yield _machine(document)
    yield ""


# Results of benchmarks.service_load: file, and how the engine's threads were set.
_LOADS = (("", "one thread a core"), ("_1_thread", "--threads 1: a core is left to the server and its clients"))


def _service_load() -> Iterator[str]:
    """What the server costs beside its engine, and how it behaves when too much comes."""
    head = ["figure", *(title for _, title in _LOADS)]
    tables = {"overhead": _OVERHEAD_ROWS, "overload": _OVERLOAD_ROWS}
    found = {part: [read_result(f"service_{part}{suffix}.json") for suffix, _ in _LOADS] for part in tables}
    soak = read_result("service_soak.json")
    if soak is None and not any(any(documents) for documents in found.values()):
        return
    yield "## The server beside its engine, and under too much load"
    yield ""
    yield "One server process with its store, clients in processes of their own on the same cores; frames of 200x200"
    yield "pixels. `python -m benchmarks.service_load overhead|overload|soak`, p50 (p99) unless said otherwise."
    yield ""
    for part, rows in tables.items():
        documents = found[part]
        if any(documents):
            cells = [(title, *("" if d is None else show(d["figures"]) for d in documents)) for title, show in rows]
            yield from _table(head, cells)
    missed = sorted({name for ds in found.values() for d in ds if d is not None for name in d["figures"]["missed"]})
    if missed:
        yield f"Missed in at least one of the two: {'; '.join(missed)}."
        yield ""
    if soak is not None:
        s = soak["figures"]
        yield (
            f"Soak: {s['requests']:,} requests of {s['clients']} clients, {s['per_second']:.1f} a second; lost "
            f"{s['lost']}, duplicated {s['duplicated']}, mismatched {s['mismatched']}; memory grew by "
            f"{s['rss_growth_after_warm_up']:.1%} after warm-up ({soak['environment']['date'][:10]})."
        )
        yield ""
    yield from (
        f"- {part}, {title}: measured {d['environment']['date'][:10]} on {d['environment']['cpu']}, "
        f"{d['environment']['cores']} cores, load average before: {d['environment']['load_average'][0]:.1f}."
        for part, documents in found.items()
        for d, (_, title) in zip(documents, _LOADS, strict=True)
        if d is not None
    )
    yield ""


def _ms(figures: dict[str, Any], name: str) -> str:
    p = figures.get(name)
    return "" if not p else f"{number(p['p50'])} ({number(p['p99'])}) ms"


_OVERHEAD_ROWS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("engine alone, frames a second", lambda f: number(float(np.median(f["engine_per_second"])))),
    ("server at saturation, frames a second", lambda f: number(float(np.median(f["service_per_second"])))),
    ("throughput lost (target: at most 5 %)", lambda f: f"{f['throughput_overhead']:.1%}"),
    ("processor time a frame, engine / server", lambda f: f"{f['engine_cpu_ms']:.1f} / {f['service_cpu_ms']:.1f} ms"),
    ("one frame, engine alone", lambda f: _ms(f, "engine_ms")),
    ("one frame, server without a store", lambda f: _ms(f, "idle_unstored_ms")),
    ("one frame, server, result and picture on disk first", lambda f: _ms(f, "idle_ms")),
    ("idle overhead, stored (target: at most 2 ms)", lambda f: _ms(f, "idle_overhead_ms")),
    ("idle overhead, not stored", lambda f: _ms(f, "idle_overhead_unstored_ms")),
    ("an empty gRPC call, as far apart", lambda f: _ms(f, "empty_call_ms")),
    ("a sync of this disk", lambda f: _ms(f, "disk_sync_ms")),
]
_OVERLOAD_ROWS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("sustained, frames a second", lambda f: number(f["capacity_per_second"])),
    ("latency at 80 % of that", lambda f: _ms(f, "steady_ms")),
    ("at twice that: latency of what was accepted", lambda f: _ms(f, "double_accepted_ms")),
    ("at twice that: accepted a second", lambda f: number(f["double_accepted_per_second"])),
    ("p99 at twice the load / p99 at 80 % (target: at most 2)", lambda f: number(f["p99_ratio"])),
    ("refused, share", lambda f: f"{f['double_refused']:.0%}"),
    ("time to a refusal (target: 5 ms)", lambda f: _ms(f, "refusal_ms")),
]


def _plant() -> Iterator[str]:
    assumed = plants.Assumptions()
    yield "## A plant on paper"
    yield ""
    yield f"{assumed.cameras:,} cameras with AuroraEdge-{assumed.preset}: **estimates**, arithmetic on the assumptions"
    yield "below (`python -m benchmarks.plant --cameras 1000 --rate 2 ...` recomputes them with yours). Nothing of a"
    yield "GPU was measured for it."
    yield ""
    for table in plants.tables(assumed, plants.plan(assumed)):
        columns = [list(column.cells) for column in table.columns]
        rows = [[str(cell) for cell in row] for row in zip(*columns, strict=True)]
        yield from _table([str(column.header) for column in table.columns], rows)


def render() -> str:
    """The page. Raises InvalidRequestError for a result that cannot be read."""
    found: dict[str, Document] = {}
    for name in ("cpu_suite", "cpu_scaling", "graph_forms", "cpu_2b", "service_suite", "gpu_suite"):
        if (RESULTS / f"{name}.json").is_file():
            found[name] = read_document(RESULTS / f"{name}.json")
    lines = [
        "# Performance",
        "",
        "Written by `python -m benchmarks report` from `benchmarks/results/*.json`; no figure here is typed. How each",
        "was taken, and the form of the files, is in `benchmarks/README.md`.",
        "",
    ]
    if "cpu_suite" in found:
        lines += _peers(found["cpu_suite"])
    if "cpu_scaling" in found:
        lines += _scaling(found["cpu_scaling"])
    lines += _tried(found.get("graph_forms"))
    if "cpu_2b" in found:
        lines += _any(found["cpu_2b"], "2b on a CPU")
    if "service_suite" in found:
        lines += _any(found["service_suite"], "The server under load")
        lines += ["![Throughput and latency of the server](images/performance-service.svg)", ""]
    lines += _service_load()
    if "gpu_suite" in found:
        lines += _any(found["gpu_suite"], "On a GPU")
    lines += _plant()
    return "\n".join(lines).rstrip() + "\n"


def write_report() -> list[Path]:
    """Writes the page and its pictures; returns what was written."""
    written = []
    for name, draw, picture in (
        ("cpu_suite", draw_verdicts, "performance-verdict.svg"),
        ("cpu_scaling", draw_scaling, "performance-scaling.svg"),
        ("service_suite", draw_service, "performance-service.svg"),
    ):
        if (RESULTS / f"{name}.json").is_file():
            draw(read_document(RESULTS / f"{name}.json"), PICTURES / picture)
            written.append(PICTURES / picture)
    text = render()
    with tempfile.NamedTemporaryFile("w", dir=PAGE.parent, delete=False, encoding="utf-8", suffix=".part") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    os.replace(file.name, PAGE)
    return [*written, PAGE]
