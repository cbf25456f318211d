"""Results of the experiments as JSON, tables and plots; the tables go between markers of docs/experiments.md."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from auroraedge.errors import TrainingError
from auroraedge.train.ablation.bank import Bank, part_examples, single_view_examples
from auroraedge.train.ablation.costs import NEW, TEXT, operations, percentiles
from auroraedge.train.ablation.experiments import results_of
from auroraedge.train.ablation.measures import MEASURES, compare
from auroraedge.train.ablation.scoring import Asked, asked
from auroraedge.train.ablation.variants import EXPERIMENTS, VARIANTS, Variant

_SHORT = {
    "presence": "presence",
    "verdict": "verdict",
    "class": "class",
    "recall": "recall",
    "recall_small": "small",
    "recall_medium": "medium",
    "recall_large": "large",
    "located": "located",
    "count": "count",
}


def _asked_by(variant: Variant, bank: Bank) -> Asked:
    return asked(part_examples(bank, variant.frames) if variant.parts else single_view_examples(bank))


def collect(out: Path, experiment: str, bank: Bank) -> dict[str, Any]:
    """Everything that is known of an experiment: settings, questions, raw answers, figures, differences, operations.

    Raises TrainingError where no run is finished.
    """
    plan = EXPERIMENTS[experiment]
    results = results_of(out, experiment)
    if not results:
        raise TrainingError(
            f"{out} holds no finished run of '{experiment}'.",
            field="out",
            remedy=f"Run `auroraedge ablate {experiment}` first.",
        )
    some = next(iter(next(iter(results.values())).values()))
    facts = _asked_by(VARIANTS[plan.variants[0]], bank)
    raw = {v: {s: r["scores"]["test"] for s, r in seeds.items()} for v, seeds in results.items()}
    own, against = compare(facts, raw, plan.base)
    return {
        "experiment": experiment,
        "title": plan.title,
        "question": plan.question,
        "base": plan.base,
        "split": "test",
        "bank": bank.key,
        "budget": some["budget"],
        "measures": MEASURES,
        "views": {"groups": facts.groups, "defective": facts.defective},
        "exists": facts.exists,
        "there": facts.there,
        "variants": {name: asdict(VARIANTS[name]) for name in results},
        "operations": {
            name: {preset: operations(VARIANTS[name], preset) for preset in ("nano", "2b")} for name in results
        },
        "runs": {
            name: {
                str(seed): {
                    "cpu_seconds": run["cpu_seconds"],
                    "parameters": run["parameters"],
                    "settings_sha256": run["settings_sha256"],
                    "answers": {kind: _compact(kind, values) for kind, values in run["scores"]["test"].items()},
                }
                for seed, run in seeds.items()
            }
            for name, seeds in results.items()
        },
        "figures": {v: {m: asdict(f) for m, f in found.items()} for v, found in own.items()},
        "differences": {
            v: {m: {**asdict(f), "clear": f.clear} for m, f in found.items()} for v, found in against.items()
        },
    }


def _compact(kind: str, values: list[float]) -> list[int]:
    """Per mille of probabilities and overlaps; counts as they are."""
    return [int(v) if kind == "counted" else round(1000 * v) for v in values]


# -- tables ----------------------------------------------------------------------------------------------------------


def _cell(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _delta(figure: dict[str, Any]) -> str:
    text = f"{figure['value']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"
    return f"**{text}**" if figure["clear"] else text


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(r) + " |" for r in rows)]


def markdown(content: dict[str, Any], latency: dict[str, Any] | None = None) -> str:
    """Tables of one experiment."""
    names = list(content["figures"])
    kinds = [m for m in _SHORT if any(m in content["figures"][n] for n in names)]
    seeds = sorted({s for runs in content["runs"].values() for s in runs}, key=int)
    budget = content["budget"]
    what = "boards" if content["experiment"] == "frames" else "views"
    lines = [
        f"{content['question']} Seeds {', '.join(seeds)}; {budget['shared_steps']} steps of joint training a seed, "
        f"{budget['steps']} of each variant alone; {len(content['views']['groups'])} {what} and "
        f"{len(content['exists'])} questions of `test`.",
        "",
        *_table(
            ["variant", *(_SHORT[m] for m in kinds)],
            [[n, *(_cell(content["figures"][n][m]) for m in kinds)] for n in names],
        ),
        "",
        f"Differences from `{content['base']}`, same seeds and same parts; bold where the interval excludes 0 and all "
        "seeds agree:",
        "",
        *_table(
            ["variant", *(_SHORT[m] for m in kinds)],
            [[n, *(_delta(content["differences"][n][m]) for m in kinds)] for n in content["differences"]],
        ),
        "",
        *_costs(content, latency),
        "",
        f"![{content['title']}](images/ablate_{content['experiment']}.png)",
    ]
    return "\n".join(lines)


def _costs(content: dict[str, Any], latency: dict[str, Any] | None) -> list[str]:
    """Operations of one answer, training time, and latency where it was measured."""
    header = ["variant", "decoder reads", "nano, GFLOPs", "2b, GFLOPs", "to the first token, nano / 2b"]
    if latency:
        header += ["first token, ms", "whole answer, ms"]
    rows = []
    for name in content["figures"]:
        variant = content["variants"][name]
        counts = {p: content["operations"][name][p] for p in ("nano", "2b")}
        first = {p: sum(c.values()) - c["generation"] for p, c in counts.items()}
        row = [
            name,
            f"{variant['tokens'] * variant['frames']}",
            f"{sum(counts['nano'].values()) / 1e9:.2f}",
            f"{sum(counts['2b'].values()) / 1e9:.0f}",
            f"{first['nano'] / 1e9:.2f} / {first['2b'] / 1e9:.0f}",
        ]
        if latency:
            own = latency["samples_ms"].get(name)
            if own is None:
                row += ["-", "-"]
            else:
                spent = percentiles([s["first"] for s in own])
                whole = percentiles([s["first"] + s["rest"] for s in own])
                row += [f"{t['p50']:.1f} [{t['p5']:.1f}, {t['p95']:.1f}]" for t in (spent, whole)]
        rows.append(row)
    lines = [f"Cost of one answer, {TEXT} prompt tokens and {NEW} generated:", "", *_table(header, rows)]
    if latency:
        encoder = percentiles(latency["encoder_ms"])
        lines += [
            "",
            f"Times: median [5 %, 95 %] of {latency['rounds']} interleaved rounds, {latency['threads']} thread, "
            f"float32 in torch at nano's sizes, without the encoder ({encoder['p50']:.1f} ms, the same for all).",
        ]
    return lines


# -- plots -----------------------------------------------------------------------------------------------------------


def plot(content: dict[str, Any], file: Path) -> None:
    """Every measure with its interval, a panel a measure, a row a variant; dots are single seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(content["figures"])
    kinds = [m for m in _SHORT if any(m in content["figures"][n] for n in names)]
    columns = min(len(kinds), 5)
    rows = -(-len(kinds) // columns)
    size = (2.3 * columns + 1.2, rows * (0.32 * len(names) + 0.9))
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for axis in axes.flat[len(kinds) :]:
        axis.set_visible(False)
    for axis, kind in zip(axes.flat, kinds, strict=False):
        for y, name in enumerate(reversed(names)):
            found = content["figures"][name][kind]
            colour = "tab:blue" if name == content["base"] else "black"
            axis.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=1.5)
            axis.plot(found["seeds"], [y] * len(found["seeds"]), "o", color=colour, markersize=2.5, alpha=0.5)
            axis.plot(found["value"], y, "D", color=colour, markersize=4)
        axis.set_title(_SHORT[kind], fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", linewidth=0.3)
    for line in axes:
        line[0].set_yticks(range(len(names)), list(reversed(names)), fontsize=8)
    figure.suptitle(content["title"], fontsize=10)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


# -- files -----------------------------------------------------------------------------------------------------------


def between_markers(text: str, name: str, content: str) -> str:
    """`text` with `content` between `<!-- ablate NAME -->` and `<!-- /ablate NAME -->`. Raises TrainingError."""
    pattern = re.compile(rf"(<!-- ablate {re.escape(name)} -->\n).*?(<!-- /ablate {re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(text):
        raise TrainingError(f"The document has no markers '<!-- ablate {name} -->'.", field="docs", remedy="Add them.")
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, file)


def write_report(
    out: Path, bank: Bank, *, results: Path | None = None, images: Path | None = None, docs: Path | None = None
) -> list[Path]:
    """JSON, plot and table of every experiment with finished runs; returns the files. Raises TrainingError."""
    results, images = results or out / "report", images or out / "report" / "images"
    latency_file = out / "latency.json"
    latency = json.loads(latency_file.read_text(encoding="utf-8")) if latency_file.is_file() else None
    written: list[Path] = []
    pages: list[str] = []
    for name, experiment in EXPERIMENTS.items():
        if not results_of(out, name):
            continue
        content = collect(out, name, bank)
        if name == "compression" and latency:
            content["latency"] = latency
        file = results / f"ablate_{name}.json"
        _write(file, json.dumps(content, separators=(",", ":")) + "\n")
        picture = images / f"ablate_{name}.png"
        plot(content, picture)
        table = markdown(content, content.get("latency"))
        pages.append(f"## {experiment.title}\n\n{table}\n")
        if docs is not None:
            _write(docs, between_markers(docs.read_text(encoding="utf-8"), name, table))
        written += [file, picture]
    if not written:
        raise TrainingError(f"{out} holds no finished run.", field="out", remedy="Run an experiment first.")
    page = results / "ablate.md" if docs is None else docs
    if docs is None:
        _write(page, "# Experiments\n\n" + "\n".join(pages))
    return [*written, page]
