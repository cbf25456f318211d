"""Studies as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from auroraedge.inspection.palette import VERDICT_STYLES
from auroraedge.inspection.results import Verdict
from auroraedge.store.types import StudyRecord
from auroraedge.studies.agreement import AgreementReport
from auroraedge.studies.challenge import ChallengeReport
from auroraedge.studies.drift import Baseline
from auroraedge.studies.kappa import Kappa
from auroraedge.studies.page import kappa_word, percent, reason_of
from auroraedge.studies.proportions import Share

_GRADES = {"acceptable": "green", "marginal": "yellow", "unacceptable": "red"}
_OUTCOMES = {"ok": "green", "watch": "yellow", "alarm": "bold red", "skipped": "dim"}


def _verdict(verdict: Verdict) -> Text:
    style = VERDICT_STYLES[verdict]
    colors = "rgb({},{},{})".format(*style.ink), "rgb({},{},{})".format(*style.color)
    return Text(f" {style.glyph} {verdict.value} ", style=f"bold {colors[0]} on {colors[1]}")


def _share(found: Share | None) -> str:
    if found is None or found.value is None:
        return "n/a"
    return f"{percent(found.value)} ({found.count}/{found.total})\n{percent(found.low)} to {percent(found.high)}"


def _kappa(found: Kappa | None) -> str:
    if found is None:
        return "n/a"
    if found.value is None:
        return "undefined"
    text = f"{found.value:.3f} {kappa_word(found)}"
    return text if found.low is None else f"{text}\n{found.low:.3f} to {found.high:.3f}"


def agreement_view(report: AgreementReport) -> Group:
    """Appraisers, pairs, everyone, and what limits the study."""
    head = f"{report.parts} parts"
    if report.has_standard:
        head += f" ({report.good_parts} good, {report.bad_parts} bad)"
    table = Table(show_lines=True)
    table.add_column("appraiser")
    for name in ("repeatability", "effectiveness", "miss rate", "false alarms", "kappa / standard", "kappa / trials"):
        table.add_column(name, no_wrap=True)
    table.add_column("AIAG")
    for a in report.appraisers:
        grade = Text(a.grade or "no standard", style=_GRADES.get(a.grade or "", "dim"))
        if reason_of(a):
            grade.append(f"\n{reason_of(a)}", style="dim")
        table.add_row(
            Text(a.name),
            _share(a.within),
            _share(a.effectiveness),
            _share(a.miss_rate),
            _share(a.false_alarm_rate),
            _kappa(a.standard_kappa),
            _kappa(a.within_kappa),
            grade,
        )
    if report.between is not None or report.all_standard is not None:
        kappas = _kappa(report.all_standard_kappa), _kappa(report.between_kappa)
        table.add_row("all together", _share(report.between), _share(report.all_standard), "", "", *kappas, "")
    parts: list[Any] = [Text(f"{report.title}: {head}", style="bold"), table]
    if report.pairs:
        pairs = Table(show_edge=False, pad_edge=False)
        for name in ("pair", "agreement", "Cohen's kappa"):
            pairs.add_column(name)
        for pair in report.pairs:
            agreement = _share(pair.agreement).replace("\n", ", ")
            pairs.add_row(Text(f"{pair.first} – {pair.second}"), agreement, _kappa(pair.kappa).replace("\n", ", "))
        parts.append(pairs)
    for a in report.appraisers:
        if a.missed_parts:
            shown = ", ".join(a.missed_parts[:10]) + (" ..." if len(a.missed_parts) > 10 else "")
            parts.append(Text(f"{a.name} missed: {shown}", style="red"))
    parts += [Text(f"note: {note}", style="yellow") for note in report.notes]
    return Group(*parts)


def challenge_view(report: ChallengeReport) -> Group:
    """Golden parts, tests of drift, alarms."""
    golden = Table(show_edge=False, pad_edge=False)
    for name in ("golden part", "standard", "verdict", "P(NG)", "at baseline", ""):
        golden.add_column(name)
    for outcome in report.golden:
        before = outcome.baseline_ng_probability
        golden.add_row(
            Text(outcome.part),
            outcome.standard.value,
            _verdict(outcome.verdict),
            "" if outcome.ng_probability is None else f"{outcome.ng_probability:.3f}",
            "" if before is None else f"{before:.3f}",
            Text(f"{outcome.what} {outcome.detail}".strip() or "right", style="bold red" if outcome.what else "green"),
        )
    parts: list[Any] = [golden]
    if report.tests:
        tests = Table(show_edge=False, pad_edge=False)
        for name in ("drift", "baseline", "now", "P", "effect", "outcome"):
            tests.add_column(name)
        for test in report.tests:
            is_share = test.before_share is not None or test.name == "size"
            figures = [
                "" if value is None else percent(value, 2) if is_share else f"{value:.4g}"
                for value in (test.before, test.now)
            ]
            effect = "" if test.effect is None else f"{test.effect_name} {test.effect:.3g}"
            p = "" if test.p_value is None else f"{test.p_value:.2g}"
            tests.add_row(test.title, *figures, p, effect, Text(test.outcome, style=_OUTCOMES[test.outcome]))
        parts.append(tests)
        parts.append(
            Text(
                f"{report.window_results:,} results, {report.window_frames} frames since "
                f"{report.window_since.astimezone():%Y-%m-%d %H:%M}; without any change at most {report.alpha:.1%} of "
                "the challenges alarm by drift"
                if report.window_since
                else "",
                style="dim",
            )
        )
    parts += [Text(f"note: {note}", style="yellow") for note in report.notes]
    parts += [Text(f"ALARM {alarm}", style="bold red") for alarm in report.alarms]
    if report.passed:
        parts.append(Text("passed", style="bold green"))
    return Group(*parts)


def baseline_view(baseline: Baseline, study_id: str) -> Group:
    """What a baseline was made of."""
    window = baseline.window
    rates = ", ".join(f"{name} {count:,}" for name, count in window.verdicts.items())
    parts = [
        Text(f"baseline '{baseline.name}' {study_id}", style="bold"),
        Text(f"{window.results:,} results ({rates}), {window.frames} frames, {len(baseline.golden)} golden parts"),
    ]
    for verdict, wander in window.sigma_z.items():
        if wander is not None and wander > 1:
            parts.append(Text(f"the {verdict} rate wanders {wander:.1f} times as much as chance allows", style="dim"))
    return Group(*parts)


def studies_view(records: Sequence[StudyRecord]) -> Table:
    """A row a study, the newest first."""
    table = Table(show_edge=False, pad_edge=False)
    for name in ("when", "kind", "name", "who", "outcome", "id"):
        table.add_column(name, overflow="fold")
    for record in records:
        outcome = Text("") if record.passed is None else Text("passed", style="green")
        if record.passed is False:
            alarms = record.document.get("alarms", [])
            outcome = Text(f"{len(alarms)} alarms" if alarms else "failed", style="red")
        when = f"{record.at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(when, record.kind, Text(record.name), Text(record.who), outcome, record.study_id)
    return table
