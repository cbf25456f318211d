"""The store as tables for a terminal. Times are local."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from auroraedge.inspection.palette import VERDICT_STYLES
from auroraedge.inspection.results import Verdict
from auroraedge.store.check import CheckReport
from auroraedge.store.info import StoreInfo
from auroraedge.store.retention import RetentionReport
from auroraedge.store.transfer import TransferReport
from auroraedge.store.types import AuditEntry, Purpose, Review, StoredResult


def _verdict(verdict: Verdict) -> Text:
    style = VERDICT_STYLES[verdict]
    colors = "rgb({},{},{})".format(*style.ink), "rgb({},{},{})".format(*style.color)
    return Text(f" {style.glyph} {verdict.value} ", style=f"bold {colors[0]} on {colors[1]}")


def _time(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def size_text(size: int) -> str:
    """Bytes with a decimal unit."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _facts(rows: dict[str, Any]) -> Table:
    table = Table(show_header=False, show_edge=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    return table


def info_view(info: StoreInfo) -> Table:
    """What the store holds."""
    counts = Text("  ").join(Text.assemble(_verdict(verdict), f" {info.verdicts[verdict]:,}") for verdict in Verdict)
    span = f"{_time(info.first_result_at)} to {_time(info.last_result_at)}" if info.first_result_at else "none"
    return _facts(
        {
            "store": info.address,
            "id": f"{info.store_id}, schema {info.schema_version}, made {_time(info.created_at)}",
            "results": counts,
            "from": span,
            "reviewed": f"{info.reviewed:,}; {info.waiting_for_review:,} wait for a person",
            "other": f"{info.other_results:,} results of golden-part checks and studies",
            "pictures": f"{info.images:,}, {size_text(info.image_bytes)} in {info.images_folder or 'no folder'}",
            "database": size_text(info.database_bytes),
            "history": f"{info.recipes} recipes, {info.engine_changes} engine changes, {info.studies} studies, "
            f"{info.audit_entries:,} audit entries",
        }
    )


def results_view(found: Sequence[StoredResult], total: int) -> Group:
    """A row a result, the newest last."""
    table = Table(show_edge=False, pad_edge=False)
    for name, justify in (("seq", "right"), ("created", "left"), ("verdict", "left"), ("P(NG)", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name in ("part", "lot", "line", "recipe", "defects", "result"):
        table.add_column(name, overflow="fold")
    for stored in found:
        result, request = stored.result, stored.result.request
        verdict = _verdict(stored.effective_verdict)
        if stored.review is not None and stored.review.verdict is not result.verdict:
            verdict.append(f" was {result.verdict.value}", style="not bold dim")
        if stored.purpose is not Purpose.PRODUCTION:
            verdict.append(f" {stored.purpose.value}", style="not bold dim")
        probability = "" if result.ng_probability is None else f"{result.ng_probability:.3f}"
        table.add_row(
            str(stored.seq),
            _time(result.created_at),
            verdict,
            probability,
            Text(request.part_id or result.image_name),
            Text(request.lot),
            Text(request.line),
            Text(result.recipe_id),
            Text(", ".join(defect.label for defect in stored.effective_defects)),
            Text(result.result_id, style="dim"),
        )
    hint = f"{len(found):,} of {total:,}" + ("; --limit 0 lists all" if len(found) < total else "")
    return Group(table, Text(hint, style="dim"))


def result_view(stored: StoredResult, reviews: Sequence[Review]) -> Group:
    """One result."""
    result, request = stored.result, stored.result.request
    origin = {name: value for name, value in request.model_dump(mode="json").items() if value}
    engine = f"{result.model_id} {result.engine_sha256[:12]}"
    facts: dict[str, Any] = {
        "result": result.result_id,
        "number": f"{stored.seq}, stored {_time(stored.stored_at)}, {stored.purpose.value}",
        "verdict": _verdict(result.verdict),
        "P(NG)": "" if result.ng_probability is None else f"{result.ng_probability:.3f}",
        "recipe": f"{result.recipe_id} v{result.recipe_version}",
        "engine": engine,
        "origin": ", ".join(f"{name} {value}" for name, value in origin.items()),
        "picture": f"{stored.image_sha256 or 'none'}{'' if stored.has_image else ' (not kept)'}",
    }
    if result.error is not None:
        facts["error"] = f"{result.error.message} {result.error.remedy}"
    parts: list[Any] = [_facts(facts)]
    if stored.effective_defects:
        table = Table(show_edge=False, pad_edge=False)
        for name in ("defect", "severity", "confidence", "x1, y1, x2, y2 (pixels)"):
            table.add_column(name)
        for defect in stored.effective_defects:
            box = defect.box
            place = f"{box.x1:.0f}, {box.y1:.0f}, {box.x2:.0f}, {box.y2:.0f}" if box else "no place"
            table.add_row(Text(defect.label), defect.severity.value, f"{defect.confidence:.2f}", place)
        parts.append(table)
    for review in reviews:
        line = Text.assemble(_time(review.at), " ", _verdict(review.verdict), f" {review.reviewer}: {review.reason}")
        parts.append(line)
    return Group(*parts)


def check_view(report: CheckReport) -> Group:
    """What was examined, found and mended."""
    parts: list[Any] = [
        Text(
            f"{report.results:,} results, {report.images:,} pictures, {report.files:,} files, "
            f"{report.audit_entries:,} audit entries"
        )
    ]
    if report.counts:
        table = Table(show_edge=False, pad_edge=False)
        for name in ("kind", "found", "mended"):
            table.add_column(name)
        for kind, count in report.counts.items():
            table.add_row(kind, f"{count:,}", f"{report.mended.get(kind, 0):,}")
        parts.append(table)
        parts += [Text(f"{f.subject}: {f.message}") for f in report.findings[:20]]
        if len(report.findings) > 20:
            parts.append(Text("and more; --json tells up to 100 of each kind", style="dim"))
    if report.is_sound:
        parts.append(Text("sound" if not report.counts else "sound again", style="bold green"))
    else:
        left = any(finding.can_mend and not finding.mended for finding in report.findings)
        parts.append(Text("not sound" + ("; `auroraedge store mend` mends orphans" if left else ""), style="bold red"))
    return Group(*parts)


def retention_view(report: RetentionReport) -> Group:
    """What a retention run removed and left."""
    verb = "would go" if report.dry_run else "removed"
    parts = [
        Text(
            f"{verb}: {report.images_removed:,} pictures ({size_text(report.bytes_removed)}), "
            f"{report.results_removed:,} results"
        ),
        Text(f"left: {report.images_left:,} pictures ({size_text(report.bytes_left)})"),
    ]
    if report.over_limit_bytes:
        text = f"{size_text(report.over_limit_bytes)} above the limit: the rest waits for a person."
        parts.append(Text(text, style="yellow"))
    return Group(*parts)


def transfer_view(report: TransferReport, title: str) -> Group:
    """What an export or import moved."""
    line = (
        f"{title}: {report.results:,} results, {report.reviews:,} reviews, {report.images:,} pictures, "
        f"{report.recipes} recipes, {report.engines} engine changes, {report.studies} studies, "
        f"{report.audit_entries:,} audit entries"
    )
    parts = [Text(line)]
    if report.skipped:
        parts.append(Text(f"{report.skipped:,} were known already", style="dim"))
    if report.missing_images:
        parts.append(Text(f"{report.missing_images:,} pictures were no longer kept", style="yellow"))
    parts += [Text(f"contradicts: {text}", style="red") for text in report.conflicts[:20]]
    if report.conflict_count > 20:
        parts.append(Text(f"and {report.conflict_count - 20:,} more", style="red"))
    return Group(*parts)


def _difference(old: Any, new: Any) -> tuple[Any, Any]:
    """Of two mappings only what differs: a recipe has fifty values and one of them was changed."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old, new
    missing = object()
    names = [name for name in {**old, **new} if old.get(name, missing) != new.get(name, missing)]
    return {n: old[n] for n in names if n in old}, {n: new[n] for n in names if n in new}


def audit_view(entries: Sequence[AuditEntry]) -> Table:
    """A row an entry, the newest first."""
    table = Table(show_edge=False, pad_edge=False)
    for name in ("#", "when", "who", "what", "about"):
        table.add_column(name, overflow="fold")
    table.add_column("old -> new", overflow="ellipsis", no_wrap=True, max_width=60)
    table.add_column("why", overflow="fold")
    for entry in entries:
        old, new = _difference(entry.old, entry.new)
        change = " -> ".join(json.dumps(value, ensure_ascii=False) for value in (old, new) if value is not None)
        table.add_row(
            str(entry.number),
            _time(entry.at),
            Text(entry.who),
            entry.action,
            Text(entry.subject),
            Text(change),
            Text(entry.why),
        )
    return table
