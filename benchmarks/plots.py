"""Results as small pictures."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.figures import median_interval
from benchmarks.suite import Document

_OURS, _OTHERS = "#1f6f43", "#9aa5b1"
# Text stays text and nothing depends on the day, so that a redrawn picture differs only where its figures do.
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "auroraedge", "font.size": 9, "axes.spines.top": False,
             "axes.spines.right": False}  # fmt: skip


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    figure.savefig(part, metadata={"Date": None} if path.suffix == ".svg" else None, bbox_inches="tight", dpi=110)
    plt.close(figure)
    part.replace(path)


def draw_verdicts(document: Document, path: Path) -> None:
    """Time to the verdict by contender of the CPU suite, medians with 95 % intervals, on a logarithmic axis."""
    found = [m for m in document.measurements if m.metric == "verdict"]
    with plt.rc_context(_SETTINGS):
        figure, axis = plt.subplots(figsize=(7, 0.35 * len(found) + 0.8))
        for place, m in enumerate(reversed(found)):
            middle = median_interval(m.samples)
            axis.barh(place, middle.middle, color=_OURS if m.contender == "ours" else _OTHERS)
            axis.plot([middle.low, middle.high], [place, place], color="black", lw=1)
        axis.set_yticks(range(len(found)), [m.contender for m in reversed(found)])
        axis.set_xscale("log")
        axis.set_xlabel("ms to the verdict (median, 95 % interval)")
        _save(figure, path)


def _series(document: Document, prefix: str, metric: str) -> tuple[list[float], list[float]]:
    x, y = [], []
    for m in document.measurements:
        if m.case.startswith(prefix) and m.metric == metric:
            x.append(float(m.case.removeprefix(prefix).split()[0].rstrip(",")))
            y.append(float(np.median(m.samples)))
    return x, y


def draw_scaling(document: Document, path: Path) -> None:
    """Cost curves: prompts per frame, frames in flight, megapixels of a frame."""
    panels = (("prompts per frame: ", "prompts per frame", False), ("frames in flight: ", "frames in one batch", True),
              ("frame size: ", "megapixels", False))  # fmt: skip
    with plt.rc_context(_SETTINGS):
        figure, axes = plt.subplots(1, 3, figsize=(9, 2.6))
        for axis, (prefix, label, each) in zip(axes, panels, strict=True):
            for metric, style in (("total", "o-"), ("processor time", "s--")):
                x, y = _series(document, prefix, metric)
                values = [b / a for a, b in zip(x, y, strict=True)] if each else y
                axis.plot(x, values, style, ms=3, lw=1, label={"total": "clock"}.get(metric, metric))
            axis.set_xlabel(label)
            axis.set_ylabel("ms a frame" if each or "size" in prefix else "ms, all prompts")
            axis.set_ylim(bottom=0)
        axes[0].legend(frameon=False)
        figure.tight_layout()
        _save(figure, path)


def draw_service(document: Document, path: Path) -> None:
    """Throughput and latency of the server by frames in flight."""
    with plt.rc_context(_SETTINGS):
        figure, axes = plt.subplots(1, 2, figsize=(7, 2.6))
        x, y = _series(document, "frames in flight: ", "throughput")
        axes[0].plot(x, y, "o-", color=_OURS, ms=3, lw=1)
        axes[0].set_ylabel("frames a second")
        cases = [m for m in document.measurements if m.case.startswith("frames in flight: ") and m.metric == "latency"]
        for q, style in ((50, "o-"), (99, "s--")):
            axes[1].plot(x, [np.percentile(m.samples, q) for m in cases], style, ms=3, lw=1, label=f"p{q}")
        axes[1].set_ylabel("ms from sending to the answer")
        axes[1].legend(frameon=False)
        for axis in axes:
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, [f"{value:g}" for value in x])
            axis.set_xlabel("frames in flight")
            axis.set_ylim(bottom=0)
        figure.tight_layout()
        _save(figure, path)


def draw(document: Document, path: Path) -> None:
    """The picture of a suite."""
    {"service": draw_service}.get(document.suite, draw_verdicts)(document, path)
