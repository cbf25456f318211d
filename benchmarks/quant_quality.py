"""Task metrics of quantised engines against the FP32 form, on the same images of the evaluation sets.

    for p in int8 int4; do python engine_build/build.py --target orin --precision $p --simulate --out build/q/$p; done
    python engine_build/build.py --target h100 --precision fp8 --simulate --out build/q/fp8
    python engine_build/build.py --target orin --precision fp16 --simulate --keep-worst 0 --out build/q/fp32
    python -m benchmarks.quant_quality --pack DIR --reference build/q/fp32 --engine int8=build/q/int8 ...

A package of --simulate runs the float32 form of the GPU graphs, Q/DQ included, in ONNX Runtime: it rounds as the engine
will. Of the precision fp16 it has no Q/DQ at all: the FP32 form. Predictions are kept beside --out, so the same command
goes on after an interruption. Writes JSON and the table between the marks of docs/engines.md.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from auroraedge.errors import EngineError
from auroraedge.evaluate import SET_RECIPES, EvalReport, evaluate
from auroraedge.manifest import load_manifest
from auroraedge.runtime import Inspector
from benchmarks.environment import environment

PAGE = Path(__file__).resolve().parents[1] / "docs" / "engines.md"
# Least the targets of the project ask for: points of every metric, cosine of vision and fusion, agreement of tokens.
MOST_POINTS = {"int8": 0.5, "int4": 1.5, "fp8": 0.5}
LEAST_COSINE = {"int8": 0.999, "int4": 0.999, "fp8": 0.997}
LEAST_AGREEMENT = {"int8": 0.99}
TENSORS = ("visual", "compressed", "fused")
AGREEMENTS = ("decoder", "tokens", "near")
# Of the metrics that a set has truth for; the others of a report follow from these.
METRICS = {
    "verdict": ("escape_rate", "overkill_rate", "review_rate", "decided_accuracy", "strict_balanced_accuracy"),
    "image_class": ("accuracy", "balanced_accuracy", "macro_f1"),
    "detection": ("micro.f_score", "any_label.f_score", "map33", "map50"),
    "": ("roc_auc",),
}


def _value(scores: Any, path: str) -> float | None:
    for part in path.split("."):
        scores = getattr(scores, part, None)
        if scores is None:
            return None
    value = scores.value if isinstance(scores, BaseModel) else scores
    return None if value is None or math.isnan(value) else float(value)


def metrics(report: EvalReport) -> dict[str, float]:
    """Every figure of METRICS that the report has."""
    found = {}
    for group, names in METRICS.items():
        for name in names:
            path = f"{group}.{name}" if group else name
            value = _value(report.model, path)
            if value is not None:
                found[path] = value
    return found


def points(found: dict[str, float], reference: dict[str, float]) -> dict[str, float]:
    """Differences in percentage points. Raises EngineError when one of the two lacks a metric."""
    if set(found) != set(reference):
        raise EngineError(
            f"Scores of different things: {sorted(set(found) ^ set(reference))}.",
            field="--engine",
            remedy="Score both engines on the same images.",
        )
    return {name: 100 * (found[name] - reference[name]) for name in found}


def parity(folder: Path) -> dict[str, float]:
    """Cosines of the stages, and how often the tokens of known answers agree, from the package's manifest: through the
    decoder alone, through the whole model, and there with the next coordinate bin as good as equal."""
    stages = load_manifest(folder).parity
    found = {name: stages[f"onnx_qdq/{name}"]["cosine"] for name in TENSORS}
    task = stages["onnx_qdq/task"]
    return found | {
        "decoder": task["decoder_agreement"],
        "tokens": task["token_agreement"],
        "near": task["near_agreement"],
    }


def changed_verdicts(found: Path, reference: Path) -> dict[str, int]:
    """From two files of predictions: samples in both, verdicts that differ, and those between OK and NG."""
    verdicts = []
    for path in (found, reference):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        predictions = [record["prediction"] for record in records]
        verdicts.append({p["sample"]["key"]: p["result"]["verdict"] for p in predictions})
    pairs = [{said, verdicts[1][key]} for key, said in verdicts[0].items() if key in verdicts[1]]
    return {
        "samples": len(pairs),
        "changed": sum(len(pair) > 1 for pair in pairs),
        "ok_and_ng": sum(pair == {"OK", "NG"} for pair in pairs),
    }


def verdict(precision: str, rows: dict[str, dict[str, float]], figures: dict[str, float]) -> list[str]:
    """What misses its target, in words; empty when all hold."""
    missed = []
    for name, differences in rows.items():
        for metric, value in differences.items():
            if abs(value) > MOST_POINTS[precision]:
                missed.append(f"{name} {metric} {value:+.2f} points")
    missed += [f"{t} cosine {figures[t]:.5f}" for t in TENSORS if figures[t] < LEAST_COSINE[precision]]
    if figures["decoder"] < LEAST_AGREEMENT.get(precision, 0.0):
        missed.append(f"decoder's tokens {figures['decoder']:.1%}")
    return missed


def table(content: dict[str, Any]) -> str:
    """Markdown: by precision and set, the largest difference of any metric, its name, and how many verdicts changed."""
    lines = [
        "| precision | "
        + " | ".join(content["sets"])
        + " | cosines V / C / F | same token: decoder / all / or next bin | target |"
    ]
    lines.append("|---" * (len(content["sets"]) + 4) + "|")
    for precision, engine in content["engines"].items():
        cells = []
        for name in content["sets"]:
            differences = engine["points"][name]
            worst = max(differences, key=lambda metric: abs(differences[metric]))
            changes = engine["verdicts"][name]
            cells.append(
                f"{differences[worst]:+.2f} ({worst.split('.', 1)[-1]}), {changes['changed']} of {changes['samples']}"
            )
        cosines = " / ".join(f"{engine['parity'][t]:.5f}" for t in TENSORS)
        tokens = " / ".join(f"{engine['parity'][name]:.1%}" for name in AGREEMENTS)
        state = "holds" if not engine["missed"] else f"{len(engine['missed'])} missed"
        lines.append(f"| {precision} | {' | '.join(cells)} | {cosines} | {tokens} | {state} |")
    images = ", ".join(f"{name} {count}" for name, count in content["images"].items())
    swapped = sum(c["ok_and_ng"] for e in content["engines"].values() for c in e["verdicts"].values())
    lines += [
        "",
        f"Behind the comma: verdicts that changed; between OK and NG, in all sets and precisions together: {swapped}. "
        f"Split `{content['split']}`, samples: {images}. {content['environment']['date'][:10]}.",
    ]
    return "\n".join(lines)


def _engines(given: list[str]) -> Iterator[tuple[str, Path]]:
    for item in given:
        precision, _, folder = item.partition("=")
        if precision not in MOST_POINTS or not folder:
            raise EngineError(
                f"'{item}' is not PRECISION=FOLDER.", field="--engine", remedy=f"PRECISION: {', '.join(MOST_POINTS)}."
            )
        yield precision, Path(folder)


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    chosen = dict(_engines(options.engine))
    journals = options.out.with_suffix("")
    journals.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    images: dict[str, int] = {}
    for label, folder in {"fp32": options.reference, **chosen}.items():
        scores[label] = {}
        with Inspector.open(folder, threads=options.threads) as inspector:
            for name in options.sets:
                out = journals / f"{label}-{name}.jsonl"
                report = evaluate(
                    options.pack, name, options.split, inspector, None, options.limit, baseline=False, out=out
                )
                if report.interrupted:
                    raise KeyboardInterrupt
                scores[label][name], images[name] = metrics(report), report.model.images
                console.print(f"{label} {name}: {report.model.images} samples")
    engines = {}
    for precision, folder in chosen.items():
        differences = {name: points(scores[precision][name], scores["fp32"][name]) for name in options.sets}
        figures = parity(folder)
        missed = verdict(precision, differences, figures)
        engines[precision] = {
            "points": differences,
            "verdicts": {
                name: changed_verdicts(journals / f"{precision}-{name}.jsonl", journals / f"fp32-{name}.jsonl")
                for name in options.sets
            },
            "parity": figures,
            "missed": missed,
        }
    return {
        "schema_version": 1,
        "environment": environment(),
        "split": options.split,
        "limit": options.limit,
        "sets": list(options.sets),
        "images": images,
        "scores": scores,
        "engines": engines,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True, help="package of the FP32 form")
    parser.add_argument("--engine", action="append", required=True, metavar="PRECISION=FOLDER")
    parser.add_argument("--sets", nargs="+", default=list(SET_RECIPES), choices=list(SET_RECIPES))
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, help="at most so many annotated images of a set")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quant_quality.json"))
    parser.add_argument("--no-docs", action="store_true", help="leave docs/engines.md as it is")
    options = parser.parse_args(arguments)
    console = Console()
    content = run(options, console)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = table(content)
    console.print(text)
    for precision, engine in content["engines"].items():
        console.print(f"{precision}: {'; '.join(engine['missed']) or 'every target holds'}")
    if not options.no_docs:
        page = PAGE.read_text(encoding="utf-8")
        pattern = re.compile(r"(<!-- quant quality -->\n).*?(<!-- /quant quality -->)", re.DOTALL)
        PAGE.write_text(pattern.sub(lambda m: f"{m[1]}{text}\n{m[2]}", page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
