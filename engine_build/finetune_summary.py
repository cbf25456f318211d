"""The summary of a fine-tuning as Markdown and as one HTML page: what was trained on, how good it is, how to use it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import auroraedge
from auroraedge.data.pack import Truth, load_image
from auroraedge.evaluate.metrics import Estimate, VerdictScores
from auroraedge.evaluate.schema import EvalReport, Prediction, PredictorScores
from auroraedge.inspection.draw import draw_result
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Verdict
from auroraedge.manifest import EngineManifest
from auroraedge.train.finetune_run import FineTuned

_TEMPLATES = Path(__file__).parent / "templates"
_PICTURES = 12
_PICTURE_PX = 420


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the pages are made of. verdicts: escapes and overkill where there are good and defective test images."""

    tuned: FineTuned
    recipe: Recipe
    judgement: str
    judgement_notes: dict[str, float]
    report: EvalReport | None
    verdicts: VerdictScores | None
    engine: EngineManifest
    about: dict[str, Any]
    finish_seconds: float


def show(estimate: Estimate | None) -> str:
    """'0.912 [0.850, 0.950] (31/34)', or a dash where undefined."""
    if estimate is None or estimate.value is None:
        return "-"
    text = f"{estimate.value:.3f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    if estimate.denominator is not None:
        text += f" ({estimate.numerator}/{estimate.denominator})"
    return text


def figures(scores: PredictorScores, verdicts: VerdictScores | None) -> dict[str, str]:
    """The figures of a predictor by name, each with its interval."""
    found: dict[str, str] = {}
    if verdicts is not None:
        found |= {
            "escapes: defective parts called OK": show(verdicts.escape_rate),
            "overkill: good parts called NG": show(verdicts.overkill_rate),
            "REVIEW: a person decides": show(verdicts.review_rate),
            "balanced accuracy, REVIEW counted as NG": show(verdicts.strict_balanced_accuracy),
        }
    if scores.roc_auc is not None:
        found["ROC AUC of P(NG)"] = f"{scores.roc_auc:.3f}"
    if scores.detection is not None:
        found |= {
            "boxes: F-score, IoU > 0.33": show(scores.detection.micro.f_score),
            "boxes: precision": show(scores.detection.micro.precision),
            "boxes: recall": show(scores.detection.micro.recall),
            "boxes: F-score, label ignored": show(scores.detection.any_label.f_score),
        }
        for label, box in scores.detection.per_class.items():
            found[f"boxes: F-score of {label} ({box.truth} true)"] = show(box.f_score)
    if scores.image_class is not None:
        found |= {
            "classes: accuracy": show(scores.image_class.accuracy),
            "classes: macro-F1": show(scores.image_class.macro_f1),
        }
    return found


def mistakes(report: EvalReport) -> list[Prediction]:
    """Escapes first, then overkill, then what went to REVIEW."""
    kinds: Sequence[tuple[Truth, Verdict]] = (
        (Truth.DEFECTIVE, Verdict.OK),
        (Truth.GOOD, Verdict.NG),
        (Truth.DEFECTIVE, Verdict.REVIEW),
        (Truth.GOOD, Verdict.REVIEW),
    )
    return [p for truth, verdict in kinds for p in report.predictions if _is(p, truth, verdict)]


def _is(prediction: Prediction, truth: Truth, verdict: Verdict) -> bool:
    return prediction.sample.truth is truth and prediction.result.verdict is verdict


def _picture(prediction: Prediction, folder: Path, recipe: Recipe) -> str:
    """The result drawn on its frame, as a data URI."""
    drawn = draw_result(load_image(folder / prediction.sample.file), prediction.result, labels=recipe.label_names)
    scale = _PICTURE_PX / max(drawn.shape[:2])
    small = cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(bytes(data)).decode()


def _context(summary: Summary) -> dict[str, Any]:
    tuned, report = summary.tuned, summary.report
    counts = tuned.checked.counts()
    ours = figures(report.model, summary.verdicts) if report else {}
    theirs = figures(report.baseline, report.baseline.verdict) if report and report.baseline else {}
    return {
        "summary": summary,
        "recipe": summary.recipe,
        "about": summary.about,
        "counts": counts,
        "classes": list(dict.fromkeys(name for row in counts.values() for name in row)),
        "ours": ours,
        "theirs": theirs,
        "notes": report.notes if report else (),
        "warnings": [f for f in tuned.checked.findings if f.severity.value == "warning"],
        "split_note": tuned.checked.split_note,
        "out": tuned.out,
        "version": auroraedge.__version__,
    }


def write_summary(summary: Summary) -> Path:
    """Writes OUT/summary.md and OUT/summary.html; returns the page."""
    tuned, report = summary.tuned, summary.report
    context = _context(summary)
    shown = mistakes(report)[:_PICTURES] if report else []
    folder = tuned.data / tuned.set_name
    pictures = [(_picture(p, folder, summary.recipe), _caption(p)) for p in shown]
    pages = {"summary.md": False, "summary.html": True}
    for name, escaped in pages.items():
        loader = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=escaped,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        text = loader.get_template(f"finetune_{name}.j2").render(**context, pictures=pictures)
        (tuned.out / name).write_text(text, encoding="utf-8")
    return tuned.out / "summary.html"


def _caption(prediction: Prediction) -> str:
    truth = (
        prediction.sample.image_label
        if not prediction.sample.objects
        else ", ".join(sorted({o.label for o in prediction.sample.objects}))
    )
    probability = prediction.result.ng_probability
    said = prediction.result.verdict.value + ("" if probability is None else f", P(NG) {probability:.2f}")
    return f"{prediction.sample.file.removeprefix('images/')}: is {truth}; called {said}"
