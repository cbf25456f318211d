"""Latency of one 640x640 frame on the CPU: our engine against the same weights in transformers (eager, float32).

    python -m benchmarks.cpu_latency --json benchmarks/results/cpu_latency.json

Interleaved in one run: every round measures each contender once, because the machine's speed drifts. Each contender has
a process of its own, so that the idle threads of one do not spin beside the other. Same frame, same views, same prompt,
same number of new tokens. Ours decodes the image, makes the views, constrains the answer to the
grammar and merges; transformers starts from ready tensors and only generates, so it is favoured.
The rows 'back to back' are ours alone, frame after frame, as a line would run it; only interleaved rows make ratios.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from auroraedge.data.synthetic import generate_board
from auroraedge.inspection.prompts import PromptKind, build_prompt
from auroraedge.inspection.recipe import Recipe, Tiling, load_recipe
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.inspection.views import plan_views, render_view
from auroraedge.model import AuroraEdgeForConditionalGeneration, AuroraEdgeProcessor
from auroraedge.runtime import Inspector
from benchmarks.environment import environment, peak_rss_mb, percentiles


def _png(pixels: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1])
    assert ok
    return bytes(data)


class Transformers:
    """The same weights in transformers, in a process of their own."""

    def __init__(self, folder: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve_transformers, args=(theirs, folder, threads), daemon=True)
        self._process.start()

    def measure(self, inputs: dict[str, Any], new_tokens: int) -> dict[str, float]:
        self._pipe.send(({name: tensor.numpy() for name, tensor in inputs.items()}, new_tokens))
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(10)


@torch.no_grad()
def _serve_transformers(pipe: Any, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    model = AuroraEdgeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    while (task := pipe.recv()) is not None:
        arrays, new_tokens = task
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        started = time.perf_counter()
        model(**inputs)
        verdict = (time.perf_counter() - started) * 1000
        started = time.perf_counter()
        model.generate(**inputs, do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens)
        pipe.send({"verdict": verdict, "full": (time.perf_counter() - started) * 1000})


class Case:
    """One frame with one recipe, ready for both contenders."""

    def __init__(self, name: str, recipe: Recipe, theirs: Transformers, inspector: Inspector, seed: int) -> None:
        part = generate_board(np.random.default_rng(seed), size=640, n_defects=7)
        assert part.reference is not None
        self.name, self.recipe, self.theirs, self.inspector = name, recipe, theirs, inspector
        self.image, self.reference = _png(part.image), _png(part.reference)
        rgb = [p if p.ndim == 3 else cv2.cvtColor(p, cv2.COLOR_GRAY2RGB) for p in (part.image, part.reference)]
        tokenizer = InspectionTokenizer.load(inspector.engine.path)
        views = [render_view(rgb[0], view, rgb[1]) for view in plan_views(640, 640, recipe.tiling)]
        prompt = build_prompt(PromptKind.INSPECT, recipe.label_names, reference=True)
        self.inputs = AuroraEdgeProcessor(tokenizer)(views, [prompt.text] * len(views))
        answers = self.ours().answer_text.split("\n")
        self.views = len(views)
        self.new_tokens = max(len(tokenizer.encode(answer)) for answer in answers) + 1

    def ours(self) -> Any:
        return self.inspector.inspect(self.image, self.recipe, reference=self.reference)

    def measure_ours(self) -> dict[str, float]:
        started = time.perf_counter()
        timings = self.ours().timings
        full = (time.perf_counter() - started) * 1000
        return {"verdict": timings.verdict_ms, "full": full, **timings.model_dump()}

    def measure_transformers(self) -> dict[str, float]:
        return self.theirs.measure(self.inputs, self.new_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/nano"))
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    started = time.perf_counter()
    inspector = Inspector.open(options.engine, threads=options.threads)
    load_ms = (time.perf_counter() - started) * 1000
    rss_mb = peak_rss_mb()
    theirs = Transformers(options.model, options.threads)
    tiled = load_recipe("pcb")
    whole = tiled.model_copy(update={"tiling": Tiling()})
    cases = [
        Case("one view", whole, theirs, inspector, 5),
        Case("four views (recipe pcb)", tiled, theirs, inspector, 5),
    ]
    samples: dict[str, dict[str, list[dict[str, float]]]] = {c.name: {"ours": [], "transformers": []} for c in cases}
    for warm in range(2):
        for case in cases:
            case.measure_ours()
            if warm:
                case.measure_transformers()
    alone = {case.name: [case.measure_ours() for _ in range(options.rounds)] for case in cases}
    for _ in track(range(options.rounds), description="rounds", console=console):
        for case in cases:
            samples[case.name]["ours"].append(case.measure_ours())
            samples[case.name]["transformers"].append(case.measure_transformers())
    theirs.close()
    table = Table(title=f"640x640 frame, {options.threads} threads, ms (p50 / p95)")
    for column in ("case", "new tokens", "contender", "verdict", "full answer"):
        table.add_column(column)
    report: dict[str, object] = {"environment": environment(), "threads": options.threads, "engine_load_ms": load_ms}
    report |= {"engine_rss_mb_with_torch_imported": rss_mb, "samples": samples, "back_to_back": alone, "cases": {}}
    for case in cases:
        summary: dict[str, Any] = {"new_tokens": case.new_tokens, "views": case.views}
        for contender, rows in {"ours, back to back": alone[case.name], **samples[case.name]}.items():
            summary[contender] = {k: percentiles([row[k] for row in rows]) for k in ("verdict", "full")}
            cells = [
                f"{summary[contender][k]['p50']:.1f} / {summary[contender][k]['p95']:.1f}" for k in ("verdict", "full")
            ]
            table.add_row(case.name, str(case.new_tokens), contender, *cells)
        ratios = {
            k: float(
                np.median(
                    [
                        t[k] / o[k]
                        for o, t in zip(samples[case.name]["ours"], samples[case.name]["transformers"], strict=True)
                    ]
                )
            )
            for k in ("verdict", "full")
        }
        summary["ratio"] = ratios
        table.add_row(case.name, "", "ratio", f"{ratios['verdict']:.1f}x", f"{ratios['full']:.1f}x")
        report["cases"][case.name] = summary  # type: ignore[index]
    console.print(table)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
