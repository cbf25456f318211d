"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from auroraedge.inspection.palette import VERDICT_STYLES
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Defect, Verdict
from auroraedge.manifest import EngineManifest, TensorSpec
from auroraedge.packaging import Difference
from auroraedge.report import statistics
from auroraedge.report.runner import ReportSummary
from auroraedge.report.single import SingleOutcome
from auroraedge.report.words import milliseconds, percent


def verdict_text(verdict: Verdict) -> Text:
    """The verdict with its sign, in its colours."""
    style = VERDICT_STYLES[verdict]
    colors = "rgb({},{},{})".format(*style.ink), "rgb({},{},{})".format(*style.color)
    return Text(f" {style.glyph} {verdict.value} ", style=f"bold {colors[0]} on {colors[1]}")


def _defect_table(defects: Sequence[Defect]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name, justify in (("#", "right"), ("defect", "left"), ("severity", "left"), ("confidence", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("x1, y1, x2, y2 (pixels)")
    for number, defect in enumerate(statistics.worst_defects(defects), start=1):
        box = defect.box
        place = f"{box.x1:.0f}, {box.y1:.0f}, {box.x2:.0f}, {box.y2:.0f}" if box else "no place"
        table.add_row(str(number), Text(defect.label), defect.severity.value, percent(defect.confidence), place)
    return table


def outcome_view(outcome: SingleOutcome) -> Group:
    """One inspection or answer: verdict, probability, defects, time, and where the picture is."""
    result, answer = outcome.result, outcome.answer
    source = result or answer
    assert source is not None
    parts: list[Text | Table | Panel] = []
    head = Text()
    if source.verdict is not None:
        head.append_text(verdict_text(source.verdict))
        head.append("  ")
    if source.ng_probability is not None:
        head.append(f"NG probability {percent(source.ng_probability)}   ")
    head.append(f"recipe {outcome.recipe.id} v{outcome.recipe.version}", style="dim")
    parts.append(head)
    if answer is not None:
        parts.append(Text(f"{answer.prompt}\n{answer.text}"))
    elif result is not None and result.predicted_class is not None:
        sure = f" ({percent(result.class_probability)})" if result.class_probability is not None else ""
        parts.append(Text(f"class {result.predicted_class}{sure}"))
    if source.defects:
        parts.append(_defect_table(source.defects))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in (result.warnings if result else ())]
    timings = source.timings
    parts.append(
        Text(
            f"{milliseconds(timings.total_ms)} ms, verdict after {milliseconds(timings.verdict_ms)} ms   "
            f"{source.model_id} {source.engine_sha256[:12]}",
            style="dim",
        )
    )
    if outcome.picture is not None:
        parts.append(Text(f"picture: {outcome.picture}"))
    return Group(*parts)


def summary_view(summary: ReportSummary) -> Group:
    """What a report run did."""
    report, figures = summary.report, summary.report.figures
    table = Table(show_edge=False, pad_edge=False)
    for verdict in Verdict:
        table.add_column(verdict_text(verdict), justify="right")
    table.add_column("yield", justify="right")
    table.add_column("95 % interval")
    share = figures.share
    interval = f"{percent(share.low)} to {percent(share.high)}" if share.total else ""
    table.add_row(*(str(summary.counts[verdict]) for verdict in Verdict), percent(share.value), interval)
    done = f"{summary.inspected} inspected, {summary.reused} taken from an earlier run, {len(report.skipped)} skipped"
    parts: list[Table | Text] = [table, Text(done, style="dim")]
    failed = [(failure.name, failure.reason) for failure in figures.failures[:5]]
    failed += [(skipped.name, skipped.reason) for skipped in report.skipped[:5]]
    total = figures.model_counts[Verdict.ERROR] + len(report.skipped)
    parts += [Text(f"not inspected: {name}: {reason}", style="yellow") for name, reason in failed[:5]]
    if total > 5:
        parts.append(Text(f"and {total - 5} more, listed in the report", style="yellow"))
    return Group(*parts)


def continue_line(summary: ReportSummary, command: str) -> str:
    """How to go on with a report that was cut short; "" where nothing is left. One line, whatever the terminal."""
    report = summary.report
    if report.is_complete:
        return ""
    missing = report.planned - report.figures.total
    return f"Stopped: {missing} of {report.planned} images are left. Run {command} again to continue."


def recipe_list(recipes: Sequence[Recipe]) -> Group:
    """The recipes: id, version, task, golden sample, title, labels."""
    parts: list[Text] = []
    for recipe in recipes:
        head = Text(f"{recipe.id} v{recipe.version}", style="bold")
        head.append(f"  {recipe.task}, golden sample {recipe.golden_reference}", style="not bold dim")
        labels = Text(f"  {', '.join(recipe.label_names)}")
        parts += [head, Text(f"  {recipe.title}"), labels] if recipe.title else [head, labels]
    return Group(*parts)


def manifest_view(manifest: EngineManifest) -> Group:
    """What an engine package holds."""
    facts = Table(show_header=False, show_edge=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    rows = {
        "model": manifest.model_id,
        "target": manifest.target + (f" ({manifest.compute_capability})" if manifest.compute_capability else ""),
        "compiler": f"{manifest.compiler.name} {manifest.compiler.version}",
        "created": f"{manifest.created_at:%Y-%m-%d %H:%M %Z}",
        "engine": manifest.engine_sha256,
        "weights": manifest.weights_sha256,
    }
    for name, value in rows.items():
        facts.add_row(name, Text(value))
    graphs = Table(show_edge=False, pad_edge=False)
    for column in ("graph", "precision", "inputs", "outputs"):
        graphs.add_column(column, overflow="fold")
    for name, graph in manifest.graphs.items():
        graphs.add_row(Text(name), manifest.precision[name], _tensors(graph.inputs), _tensors(graph.outputs))
    parts: list[Table | Text] = [facts, graphs]
    for stage, figures in manifest.parity.items():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        parts.append(Text(f"parity {stage}: {shown}"))
    return Group(*parts)


def difference_view(differences: Sequence[Difference], first: str, second: str) -> Table | Text:
    """What two engine packages differ in."""
    if not differences:
        return Text("The packages are the same.")
    table = Table(show_edge=False, pad_edge=False, show_lines=True)
    for column in ("", first, second):
        table.add_column(column, overflow="fold")
    for item in differences:
        table.add_row(Text(item.what), Text(item.first or "-"), Text(item.second or "-"))
    return table


def _tensors(specs: Sequence[TensorSpec]) -> Text:
    """One tensor a line; the key/value cache, a tensor for each layer, in one."""
    plain = [spec for spec in specs if not spec.name.startswith(("past.", "present."))]
    lines = [f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in plain]
    if len(plain) < len(specs):
        lines.append(f"{len(specs) - len(plain)} key/value tensors")
    return Text("\n".join(lines))
