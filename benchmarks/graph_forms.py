"""Which form of the graphs, and which settings of ONNX Runtime, are fastest on this machine.

    python -m benchmarks.graph_forms --json benchmarks/results/graph_forms.json

One process, forms in turns. 'processor time' is that of one thread, which holds also where others use the machine;
'time' is what the clock says. The difference of each form's output to the shipped one stands beside it. tried.yaml says
what came of it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from rich.console import Console

from auroraedge.inspection.images import decode_image
from auroraedge.inspection.views import View, patchify, render_view
from auroraedge.manifest import load_manifest
from auroraedge.runtime.inspector import DEFAULT_ENGINE
from auroraedge.runtime.session import OrtSession
from auroraedge.runtime.side_by_side import SideBySideSession
from benchmarks import graph_rewrites as rewrites
from benchmarks.contenders import frame
from benchmarks.prepare import ROOT, float_graphs
from benchmarks.process import probe_ms
from benchmarks.suite import Document, Parity, write_document
from benchmarks.tables import document_tables

PROMPT, COMPRESSED = 64, 64
Feed = dict[str, np.ndarray]


def session(
    path: Path,
    threads: int,
    *,
    fold: bool = False,
    spin: str = "0",
    stop: str = "0",
    pinned: bool = False,
    blocks: str = "0",
    profile: str = "",
) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    options.add_session_config_entry("session.force_spinning_stop", stop)
    options.add_session_config_entry("session.dynamic_block_base", blocks)
    if pinned and threads > 1:
        # The calling thread is the first; the others each get a core of their own, counted from 1.
        cores = ";".join(str(core) for core in range(2, threads + 1))
        options.add_session_config_entry("session.intra_op_thread_affinities", cores)
    if fold:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Feeds:
    """Inputs of the three graphs for B views, from the benchmark's frame."""

    def __init__(self, engine: Path) -> None:
        manifest = load_manifest(engine)
        self.decoder = manifest.decoder
        self.encoder_width = next(t for t in manifest.graphs["vision"].inputs if t.name == "position").shape[-1]
        image = frame()
        self.patches = patchify(render_view(image, View(0, 0, image.shape[1], image.shape[0]))[None])
        self.rng = np.random.default_rng(0)

    def _normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def vision(self, batch: int = 1) -> Feed:
        return {
            "patches": np.repeat(self.patches, batch, 0),
            "position": np.repeat(0.1 * self._normal(1, 256, int(self.encoder_width)), batch, 0),
            "patch_mask": np.ones((batch, 256), np.float32),
        }

    def fusion(self, batch: int = 1) -> Feed:
        d = self.decoder.hidden
        return {
            "text": self._normal(batch, PROMPT, d),
            "visual": self._normal(batch, 256, d),
            "patch_mask": np.ones((batch, 256), np.float32),
            "text_mask": np.ones((batch, PROMPT), np.float32),
        }

    def decode(self, new: int, past: int, batch: int = 1) -> Feed:
        shape = (batch, self.decoder.kv_heads, past, self.decoder.head_dim)
        cache = {
            f"past.{i}.{kind}": self._normal(*shape) for i in range(self.decoder.layers) for kind in ("key", "value")
        }
        return {
            "inputs_embeds": self._normal(batch, new, self.decoder.hidden),
            "attention_mask": np.ones((batch, past + new), np.float32),
            "position_ids": np.arange(past, past + new)[None].repeat(batch, 0),
            **cache,
        }


class Bench:
    """Forms of one graph, in turns."""

    def __init__(self, document: Document, console: Console, rounds: int) -> None:
        self.document, self.console, self.rounds = document, console, rounds

    def compare(self, case: str, forms: dict[str, Callable[[], Any]], *, per: dict[str, int] | None = None) -> None:
        """Times each form, `per` pieces of work each, after a run that warms it up."""
        wall: dict[str, list[float]] = {name: [] for name in forms}
        spent: dict[str, list[float]] = {name: [] for name in forms}
        for number in range(self.rounds + 1):
            if number:
                self.document.probe_ms.append(probe_ms())
            turn = number % len(forms)
            names = list(forms)
            for name in [*names[turn:], *names[:turn]]:
                run = forms[name]
                cpu, started = time.process_time(), time.perf_counter()
                run()
                if number:
                    pieces = (per or {}).get(name, 1)
                    wall[name].append((time.perf_counter() - started) * 1000 / pieces)
                    spent[name].append((time.process_time() - cpu) * 1000 / pieces)
        for name in forms:
            self.document.contenders.setdefault(name, name)
            self.document.add(case, name, "time", "ms", wall[name])
            self.document.add(case, name, "processor time", "ms", spent[name])
        self.console.print(case)

    def difference(self, case: str, name: str, base: list[np.ndarray], found: list[np.ndarray]) -> None:
        largest = max(float(np.abs(a - b).max()) for a, b in zip(base, found, strict=True))
        figures = {"largest difference": largest, "largest value": max(float(np.abs(a).max()) for a in base)}
        self.document.parity.append(
            Parity(case=case, contender=name, against="as shipped", equal=largest == 0.0, figures=figures)
        )


def forms_of(
    bench: Bench, case: str, paths: dict[str, Path], feed: Feed, *, folded: tuple[str, ...] = (), threads: int = 1
) -> None:
    """Compares graph files on one feed; a form that ONNX Runtime refuses is noted."""
    sessions = {}
    for name, path in paths.items():
        try:
            sessions[name] = session(path, threads, fold=name in folded)
        except Exception as error:  # onnxruntime's errors have no public base
            bench.document.notes.append(f"{case}, {name}: refused by ONNX Runtime: {str(error)[:200]}")
    base = sessions["as shipped"].run(None, feed)
    for name, made in sessions.items():
        if name != "as shipped":
            bench.difference(case, name, base, made.run(None, feed))
    bench.compare(case, {name: (lambda s=s: s.run(None, feed)) for name, s in sessions.items()})


def shares(path: Path, feed: Feed, folder: Path, *, fold: bool, runs: int = 20) -> dict[str, float]:
    """Share of one thread's time by operator, of the least time of each node."""
    made = session(path, 1, fold=fold, profile=str(folder / "profile"))
    for _ in range(runs):
        made.run(None, feed)
    events = json.loads(Path(made.end_profiling()).read_text(encoding="utf-8"))
    least: dict[tuple[str, str], float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            key = (event["args"]["op_name"], event["name"])
            least[key] = min(least.get(key, 1e12), event["dur"])
    by_operator: Counter[str] = Counter()
    for (operator, _), us in least.items():
        by_operator[operator] += us  # type: ignore[assignment]
    total = sum(by_operator.values())
    found = {operator: us / total for operator, us in by_operator.most_common(12)}
    head = [us for (_, name), us in least.items() if "lm_head" in name or "logits" in name]
    return found | ({"LM head": sum(head) / total} if head else {})


def run(engine: Path, model: Path, rounds: int, threads: int, console: Console) -> Document:
    document = Document(
        suite="graph_forms", title="Forms of the graphs and settings of ONNX Runtime",
        settings={"rounds": rounds, "threads": threads, "engine": engine.name},
    )  # fmt: skip
    bench, feeds, floats = Bench(document, console, rounds), Feeds(engine), float_graphs(engine, model)
    shipped = {name: engine / f"{name}.onnx" for name in ("vision", "fusion", "decoder")}
    with tempfile.TemporaryDirectory(prefix="forms-") as name:
        folder = Path(name)
        made = {key: folder / f"{key}.onnx" for key in ("bias", "mha", "flash", "attention", "b8", "b4", "s8", "f8")}
        rewrites.bias_in_product(shipped["vision"], made["bias"])
        rewrites.fused_attention(shipped["vision"], made["mha"], standard=False, masked=True)
        rewrites.fused_attention(shipped["vision"], made["flash"], standard=False, masked=False)
        rewrites.fused_attention(shipped["vision"], made["attention"], standard=True, masked=True)
        vision = {
            "as shipped": shipped["vision"],
            "bias inside the INT8 product": made["bias"],
            "MultiHeadAttention": made["mha"],
            "MultiHeadAttention, flash, no mask": made["flash"],
            "Attention of opset 23": made["attention"],
            "float32": floats / "vision.onnx",
        }
        forms_of(bench, "vision", vision, feeds.vision())

        rewrites.few_bits(floats / "decoder.onnx", made["b8"], 8)
        rewrites.few_bits(floats / "decoder.onnx", made["b4"], 4)

        def prefills() -> Iterator[Feed]:
            for _ in range(4):
                yield feeds.decode(COMPRESSED + PROMPT, 0)
                yield feeds.decode(1, COMPRESSED + PROMPT)

        rewrites.static_int8(floats / "decoder.onnx", made["s8"], prefills)
        rewrites.static_int8(floats / "fusion.onnx", made["f8"], lambda: iter([feeds.fusion() for _ in range(4)]))
        decoder = {
            "as shipped": shipped["decoder"],
            "MatMulNBits, 8 bits": made["b8"],
            "MatMulNBits, 4 bits": made["b4"],
            "static INT8": made["s8"],
        }
        ahead = ("as shipped",)
        forms_of(bench, "decoder, prefill of 128", decoder, feeds.decode(COMPRESSED + PROMPT, 0), folded=ahead)
        forms_of(bench, "decoder, one token", decoder, feeds.decode(1, COMPRESSED + PROMPT), folded=ahead)
        forms_of(
            bench, "fusion", {"as shipped": shipped["fusion"], "static INT8": made["f8"]}, feeds.fusion(), folded=ahead
        )

        settings = {
            "as shipped": {},
            "spinning": {"spin": "1"},
            "spinning, stopped after each run": {"spin": "1", "stop": "1"},
            "pinned threads": {"pinned": True},
            "smaller blocks of work": {"blocks": "4"},
            "one thread": {"threads": 1},
        }
        work = (("vision", feeds.vision()), ("fusion", feeds.fusion()), ("decoder", feeds.decode(128, 0)))
        chains = {}
        for setting, given in settings.items():
            used = {"threads": threads, **given}
            chain = [(session(shipped[n], fold=n != "vision", **used), feed) for n, feed in work]
            chains[setting] = lambda chain=chain: [s.run(None, feed) for s, feed in chain]
        bench.compare("the three graphs in turn", chains)

        plain = session(shipped["vision"], threads)
        single = feeds.vision()
        binding = plain.io_binding()
        for key, value in single.items():
            binding.bind_cpu_input(key, value)
        for output in plain.get_outputs():
            binding.bind_output(output.name, "cpu")
        bench.compare(
            "vision, I/O",
            {"as shipped": lambda: plain.run(None, single), "I/O binding": lambda: plain.run_with_iobinding(binding)},
        )
        feeders: dict[str, Callable[[int], Feed]] = {
            "vision": feeds.vision,
            "fusion": feeds.fusion,
            "decoder, prefill of 128": lambda n: feeds.decode(COMPRESSED + PROMPT, 0, n),
        }
        for case, feeder in feeders.items():
            _batches(bench, f"{case}, a view", shipped[case.partition(",")[0]], feeder, threads)
        _host(bench)
        document.settings["shares"] = {
            "vision": shares(shipped["vision"], single, folder, fold=False),
            "fusion": shares(shipped["fusion"], feeds.fusion(), folder, fold=True),
            "decoder, prefill of 128": shares(shipped["decoder"], feeds.decode(128, 0), folder, fold=True),
        }
    return document


def _batches(bench: Bench, case: str, path: Path, feed: Callable[[int], Feed], threads: int) -> None:
    """Several views in one pass, and side by side on a thread each, against one view."""
    fold = not path.name.startswith("vision")
    together = OrtSession(path, threads=threads, fold_weights=fold)
    apart = SideBySideSession(together, lambda: OrtSession(path, threads=1, fold_weights=fold), threads)
    counts = {"batch 1": 1} | {f"batch {n}": n for n in (2, 4, 8)} | {f"{n} side by side": n for n in (2, 4, 8)}
    given = {name: feed(count) for name, count in counts.items()}
    forms: dict[str, Callable[[], Any]] = {
        name: (lambda s=apart if "side" in name else together, f=given[name]: s.run(f)) for name in counts
    }
    bench.compare(case, forms, per=counts)
    apart.close()


def _host(bench: Bench) -> None:
    """The steps before the encoder on the benchmark's frame."""
    cv2.setNumThreads(1)
    image = frame()
    view = View(0, 0, image.shape[1], image.shape[0])
    shown = render_view(image, view)
    png, jpeg = (bytes(cv2.imencode(kind, image[..., ::-1])[1]) for kind in (".png", ".jpg"))
    bench.compare(
        "before the encoder",
        {
            "array: check and hash": lambda: decode_image(image),
            "PNG: decode and hash": lambda: decode_image(png),
            "JPEG: decode and hash": lambda: decode_image(jpeg),
            "view: crop and resize": lambda: render_view(image, view),
            "patches": lambda: patchify(shown[None]),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--engine", type=Path, default=DEFAULT_ENGINE)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "nano")
    options = parser.parse_args()
    console = Console()
    document = run(options.engine, options.model, options.rounds, options.threads, console)
    for table in document_tables(document):
        console.print(table)
    if options.json:
        write_document(document, options.json)


if __name__ == "__main__":
    main()
