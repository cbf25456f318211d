"""Writes the table and the plot of docs/finetune.md from the results of benchmarks.finetune_curve.

python -m scripts.write_finetune_docs
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "finetune_curve.json"
PAGE = ROOT / "docs" / "finetune.md"
PLOT = ROOT / "docs" / "finetune_curve.svg"
FIGURES = {
    "roc_auc": "ROC AUC of defective against good",
    "box_f_score_any_label": "F-score of boxes, label ignored",
    "box_f_score": "F-score of boxes, right label",
    "average_precision_33": "average precision of boxes (IoU > 0.33)",
}


def table(results: dict[str, Any]) -> str:
    """Mean of the draws with its interval, and every draw, by number of parts."""
    numbers = sorted(results["figures"], key=int)
    lines = ["| figure | " + " | ".join(f"{n} parts" for n in numbers) + " |", "|---" * (1 + len(numbers)) + "|"]
    for name, title in FIGURES.items():
        cells = []
        for number in numbers:
            found = results["figures"][number][name]
            each = ", ".join(f"{value:.2f}" for value in found["draws"])
            cells.append(f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]; draws {each}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    runs = results["runs"]
    for title, key, form in (
        ("training images / val images", ("train_images", "val_images"), "{:.0f} / {:.0f}"),
        ("augmented views / steps", ("views", "steps"), "{:.0f} / {:.0f}"),
        ("CPU seconds of training", ("cpu_seconds",), "{:.0f}"),
    ):
        cells = []
        for number in numbers:
            chosen = [run for run in runs if run["parts"] == int(number)]
            means = [sum(run[k] for run in chosen) / len(chosen) for k in key]
            cells.append(form.format(*means))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    where = results["environment"]
    lines += [
        "",
        f"{results['set']}, test: {results['test_images']} images, {results['test_defective']} of them defective. "
        f"Mean of {max(f['draws'] for f in results['figures'].values())} draws with the 95 % interval from resampling "
        f"the test groups. Base: {results['base_steps']} steps of pretraining of the connectors. "
        f"{where['cpu']}, {where['date'][:10]}; `{results['command']}`.",
    ]
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """The same as a picture: means with intervals, and every draw as a point."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "auroraedge"
    numbers = sorted(int(n) for n in results["figures"])
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for (name, title), marker in zip(FIGURES.items(), "osD^", strict=True):
        rows = [results["figures"][str(n)][name] for n in numbers]
        mean = [row["mean"] for row in rows]
        low, high = ([abs(row[k] - row["mean"]) for row in rows] for k in ("low", "high"))
        line = axes.errorbar(numbers, mean, yerr=[low, high], marker=marker, capsize=4, label=title)
        for n, row in zip(numbers, rows, strict=True):
            axes.plot([n] * len(row["draws"]), row["draws"], ".", color=line[0].get_color(), alpha=0.6)
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.set_ylim(0, 1)
    axes.set_xlabel("labelled parts with a defect (and as many good ones)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(r"(<!-- curve -->\n).*?(<!-- /curve -->)", re.DOTALL)
    text = f"{table(results)}\n\n![Quality by number of parts]({PLOT.name})\n"
    found, count = pattern.subn(lambda match: f"{match[1]}{text}{match[2]}", page)
    if count != 1:
        raise SystemExit("docs/finetune.md has no marks for the curve")
    PAGE.write_text(found, encoding="utf-8")
    plot(results, PLOT)


if __name__ == "__main__":
    main()
