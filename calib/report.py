"""The calibration report: what the layers are fed with, which of them are sensitive, and the quality before and after.

One self-contained HTML page with plots as inline SVG.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from calib.ranges import Method, Ranges
from calib.sensitivity import Sensitivity

matplotlib.use("Agg")
from matplotlib import pyplot

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Calibration of {{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; } th { text-align: left; font-weight: 600; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #dde3ea; font-variant-numeric: tabular-nums; }
td.n { text-align: right; } code { font-size: .9em; } svg { max-width: 100%; height: auto; } .low { color: #a4262c; }
@media print { body { margin: 0; } section { break-inside: avoid; } }
</style></head><body>
<h1>Calibration of {{ title }}</h1>
<table>{% for name, value in facts %}<tr><th>{{ name }}</th><td><code>{{ value }}</code></td></tr>{% endfor %}</table>
<section><h2>Quality before and after</h2>
<p>The quantised graphs, run by ONNX Runtime in their float32 form, against the model they were made from.</p>
<table><tr><th>stage</th><th>tensor</th><th>figures</th></tr>
{% for stage, tensor, figures, low in quality %}<tr{% if low %} class="low"{% endif %}><td>{{ stage }}</td>
<td>{{ tensor }}</td><td>{{ figures }}</td></tr>{% endfor %}</table></section>
{% if sensitivity_plot %}<section><h2>Sensitivity</h2>
<p>Every layer quantised alone: noise-to-signal ratio of the model's outputs, the most harmful layers first.
{% if kept %}Kept in 16 bits: {% for name in kept %}<code>{{ name }}</code>{{ ", " if not loop.last }}{% endfor %}.
{% else %}No layer is kept in 16 bits.{% endif %}</p>{{ sensitivity_plot }}</section>{% endif %}
<section><h2>Input ranges</h2>
<p>Largest magnitude that was seen, and the range that is used ({{ method }}). Where they are far apart, rare outliers
are clipped so that all other values get finer steps.</p>{{ range_plot }}</section>
<section><h2>Histograms</h2><p>Magnitudes of the inputs with the longest tails; the line is the range that is used.</p>
{{ histograms }}</section>
<section><h2>All layers</h2><table><tr><th>layer</th><th>largest</th><th>used</th><th>values</th></tr>
{% for name, largest, used, count in layers %}<tr><td><code>{{ name }}</code></td><td class="n">{{ largest }}</td>
<td class="n">{{ used }}</td><td class="n">{{ count }}</td></tr>{% endfor %}</table></section>
</body></html>
"""


def _svg(figure: pyplot.Figure) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def _short(name: str) -> str:
    """vision_model.encoder.layers.3.mlp.fc2 -> vision 3 mlp.fc2"""
    for long, short in (
        ("vision_model.encoder.layers.", "vision "),
        ("language_model.model.layers.", "decoder "),
        ("fusion.layers.", "fusion "),
        ("self_attn.", ""),
        ("language_model.", ""),
        ("vision_model.", ""),
    ):
        name = name.replace(long, short)
    return name


def _bars(names: Sequence[str], values: Sequence[float], label: str, marks: Sequence[float] | None = None) -> Markup:
    """Horizontal bars on a logarithmic axis, the first on top; `marks` as a tick across each bar."""
    figure, axis = pyplot.subplots(figsize=(9, 0.24 * len(names) + 0.9))
    rows = np.arange(len(names))[::-1]
    axis.barh(rows, values, color="#8fb1d3", height=0.7)
    if marks is not None:
        axis.plot(marks, rows, "|", color="#b34700", markersize=9, markeredgewidth=2)
    axis.set_yticks(rows, [_short(name) for name in names], fontsize=8)
    axis.set_xscale("log")
    axis.set_xlabel(label)
    axis.margins(y=0.01)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return _svg(figure)


def _histograms(ranges: Ranges, used: Mapping[str, float], count: int = 9) -> Markup:
    tails = sorted(ranges.layers, key=lambda name: -ranges.layers[name].largest / max(used[name], 1e-9))[:count]
    figure, axes = pyplot.subplots(3, 3, figsize=(9, 6.6), squeeze=False)
    for axis in axes.flat[len(tails) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, tails, strict=False):
        layer = ranges.layers[name]
        # Sixty-four bars are enough to see a tail, and keep the page small.
        counts, edges = layer.counts.reshape(64, -1).sum(1), layer.edges[:: len(layer.counts) // 64]
        axis.bar(edges[:-1], np.maximum(counts, 0.5), width=np.diff(edges), align="edge", color="#8fb1d3")
        axis.set_yscale("log")
        axis.axvline(used[name], color="#b34700")
        axis.set_title(_short(name), fontsize=8)
        axis.tick_params(labelsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.tight_layout()
    return _svg(figure)


def write_report(
    path: Path,
    *,
    title: str,
    ranges: Ranges,
    method: Method,
    used: Mapping[str, float],
    quality: Mapping[str, Mapping[str, Mapping[str, float]]],
    sensitivity: Sequence[Sensitivity] = (),
    kept: Sequence[str] = (),
    least_cosine: float = 0.999,
) -> None:
    """Writes the page. used: range by module, as chosen by `method`. quality: figures by stage and tensor."""
    with matplotlib.rc_context({"svg.hashsalt": "auroraedge", "font.family": "DejaVu Sans"}):
        order = sorted(ranges.layers, key=lambda name: -ranges.layers[name].largest)
        range_plot = _bars(
            order[:40],
            [ranges.layers[n].largest for n in order[:40]],
            "largest magnitude",
            [used[n] for n in order[:40]],
        )
        worst = list(sensitivity)[:30]
        plot = _bars([s.layer for s in worst], [max(s.noise, 1e-12) for s in worst], "noise / signal") if worst else ""
        histograms = _histograms(ranges, used)
    rows = [
        (stage, tensor, ", ".join(f"{k} {v:.5g}" for k, v in figures.items()), figures.get("cosine", 1) < least_cosine)
        for stage, tensors in quality.items()
        for tensor, figures in tensors.items()
    ]
    facts = [
        ("views", str(ranges.views)),
        ("from", ranges.set_name or "not said"),
        ("calibration set", ranges.set_sha256),
        ("method", method),
        ("layers", str(len(ranges.layers))),
        ("kept in 16 bits", str(len(kept))),
    ]
    layers = [(n, f"{x.largest:.4g}", f"{used[n]:.4g}", f"{x.values:,}") for n, x in sorted(ranges.layers.items())]
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        title=title,
        facts=facts,
        quality=rows,
        sensitivity_plot=plot,
        kept=kept,
        range_plot=range_plot,
        histograms=histograms,
        layers=layers,
        method=method,
    )
    path.write_text(text, encoding="utf-8")
