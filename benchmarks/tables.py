"""A result and a comparison as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.environment import percentiles
from benchmarks.figures import Change
from benchmarks.suite import Document, Measurement


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def figure(measurement: Measurement | None) -> str:
    """'p50 (p95) unit', of a single sample its value; '' for none."""
    if measurement is None:
        return ""
    found = percentiles(measurement.samples)
    if len(measurement.samples) < 3:
        return f"{number(found['p50'])} {measurement.unit}"
    return f"{number(found['p50'])} ({number(found['p95'])}) {measurement.unit}"


def document_tables(document: Document) -> list[Table]:
    tables = []
    metrics = list(dict.fromkeys(m.metric for m in document.measurements if "processor" not in m.metric))
    table = Table(title=document.title, caption="p50 (p95)")
    for column in ("case", "contender", *metrics):
        table.add_column(column)
    for case in document.cases:
        for contender in document.contenders:
            cells = [figure(document.find(case, contender, metric)) for metric in metrics]
            if any(cells):
                table.add_row(case, contender, *cells)
    tables.append(table)
    if document.parity:
        table = Table("contender", "against", "equal", "figures", title="Parity")
        for p in document.parity:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in p.figures.items())
            table.add_row(p.contender, p.against, "yes" if p.equal else "no", figures)
        tables.append(table)
    if document.floors:
        table = Table("case", "figure", "floor", "how", title="Floors")
        for f in document.floors:
            table.add_row(f.case, f.metric, f"{number(f.value)} {f.unit}", f.how)
        tables.append(table)
    if document.targets:
        table = Table("target", "wanted", "measured", "met", "", title="Targets")
        for t in document.targets:
            measured = "not measured" if t.measured is None else number(t.measured)
            table.add_row(t.name, t.wanted, measured, {True: "yes", False: "NO", None: ""}[t.met], t.note)
        tables.append(table)
    return tables


def change_table(changes: Sequence[Change]) -> Table:
    table = Table(title="Against the baseline", caption="ratio of medians, new / old, with its 95 % interval")
    for column in ("case", "contender", "figure", "ratio", "finding"):
        table.add_column(column)
    order = {"slower": 0, "faster": 1, "gone": 2, "new": 3, "same": 4}
    for change in sorted(changes, key=lambda c: order[c.finding]):
        m, ratio = change.measurement, ""
        if change.ratio is not None:
            ratio = f"{change.ratio.middle:.2f} ({change.ratio.low:.2f} to {change.ratio.high:.2f})"
        finding = change.finding if change.sure else f"{change.finding}, too few samples"
        style = {"slower": "red", "faster": "green"}.get(change.finding)
        table.add_row(m.case, m.contender, m.metric, ratio, finding, style=style)
    return table
