"""An evaluation as tables for a terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from auroraedge.evaluate.metrics import Estimate
from auroraedge.evaluate.schema import BoxScores, EvalReport, PredictorScores


def _show(estimate: Estimate | None) -> str:
    """`value [low, high] (numerator/denominator)`; a dash where undefined."""
    if estimate is None or estimate.value is None:
        return "-"
    text = f"{estimate.value:.3f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    if estimate.denominator is not None:
        text += f" ({estimate.numerator}/{estimate.denominator})"
    return text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rows(scores: PredictorScores) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = [("images", str(scores.images))]
    if scores.errors:
        rows.append(("errors", str(scores.errors)))
    if (verdict := scores.verdict) is not None:
        rows += [
            ("escape rate", _show(verdict.escape_rate)),
            ("overkill rate", _show(verdict.overkill_rate)),
            ("review rate", _show(verdict.review_rate)),
            ("overkill, REVIEW as NG", _show(verdict.strict_overkill_rate)),
            ("accuracy, REVIEW as NG", _show(verdict.strict_accuracy)),
            ("balanced accuracy, REVIEW as NG", _show(verdict.strict_balanced_accuracy)),
        ]
    for kind, good in scores.good_by_kind.items():
        rows.append((f"overkill, {kind}", _show(good.overkill_rate)))
        rows.append((f"false boxes a sample, {kind}", _number(good.false_boxes_per_sample)))
    if scores.presumed_good is not None:
        rows.append(("presumed overkill", _show(scores.presumed_good.overkill_rate)))
    if (classes := scores.image_class) is not None:
        rows += [
            ("class accuracy", _show(classes.accuracy)),
            ("class balanced accuracy", _show(classes.balanced_accuracy)),
            ("class macro-F1", _show(classes.macro_f1)),
        ]
    if (boxes := scores.detection) is not None:
        rows += [
            (f"precision, IoU > {boxes.iou:g}", _show(boxes.micro.precision)),
            (f"recall, IoU > {boxes.iou:g}", _show(boxes.micro.recall)),
            (f"F-score, IoU > {boxes.iou:g}", _show(boxes.micro.f_score)),
            ("F-score, any label", _show(boxes.any_label.f_score)),
            ("mAP33", _show(boxes.map33)),
            ("mAP50", _show(boxes.map50)),
        ]
        rows += [(f"recall, {size}", _show(value)) for size, value in boxes.recall_by_size.items()]
        rows += [(f"F-score, {part}", _show(value)) for part, value in boxes.f_score_by_subset.items()]
    if scores.roc_auc is not None:
        rows.append(("ROC AUC of P(NG)", _number(scores.roc_auc)))
    if scores.expected_calibration_error is not None:
        error = scores.calibration_error
        rows.append(("calibration error (ECE)", _show(error) if error else _number(scores.expected_calibration_error)))
    if scores.calibration_floor is not None:
        rows.append(("ECE of a perfectly calibrated model", _show(scores.calibration_floor)))
    return rows


def render_table(report: EvalReport) -> Group:
    """Everything to print for `report`: a summary with the baseline beside it, figures by class, and the notes."""
    table = Table(title=f"{report.set_name} / {report.split} with recipe {report.recipe_id} (95 % intervals)")
    table.add_column("figure")
    table.add_column(report.model.predictor, overflow="fold")
    ours = _rows(report.model)
    theirs = dict(_rows(report.baseline)) if report.baseline else {}
    if report.baseline:
        table.add_column(report.baseline.predictor, overflow="fold")
    for name, value in ours:
        table.add_row(name, value, *([theirs.get(name, "-")] if report.baseline else []))
    for name, difference in report.difference.items():
        table.add_row(f"model - baseline, {name}", _show(difference), *([""] if report.baseline else []))
    parts: list[Table | Text] = [table]
    if report.model.detection is not None:
        parts.append(_per_class(report))
    if report.baseline and report.baseline.description:
        parts.append(Text(f"Baseline: {report.baseline.description}"))
    parts += [Text(f"Note: {note}") for note in report.notes]
    return Group(*parts)


def _per_class(report: EvalReport) -> Table:
    table = Table(title="by defect class")
    columns = ("class", "true boxes", "precision", "recall", "F-score", "AP50", "baseline F-score")
    for column in columns if report.baseline else columns[:-1]:
        table.add_column(column)
    assert report.model.detection is not None
    other = report.baseline.detection if report.baseline else None
    for label, scores in report.model.detection.per_class.items():
        cells = [label, str(scores.truth), *_figures(scores)]
        if report.baseline:
            cells.append(_show(other.per_class[label].f_score) if other and label in other.per_class else "-")
        table.add_row(*cells)
    return table


def _figures(scores: BoxScores) -> list[str]:
    shown = [_number(scores.precision.value), _number(scores.recall.value), _show(scores.f_score)]
    return [*shown, _number(scores.ap50)]


def print_report(report: EvalReport, console: Console | None = None) -> None:
    """Prints `render_table(report)`, to stdout unless a console is given."""
    (console or Console()).print(render_table(report))
