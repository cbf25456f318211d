"""From raw predictions to scores. Each figure is computed only where the set has the truth for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from auroraedge.data.pack import GOOD_LABELS, Truth
from auroraedge.evaluate.detection import (
    AP_IOU,
    F_IOU,
    ClassMatches,
    ImageBoxes,
    LabelledBox,
    average_precision,
    best_confidence,
    f_counts,
    map_statistic,
    match_class,
    micro_f_statistic,
    recall_by_size,
)
from auroraedge.evaluate.metrics import (
    Estimate,
    Statistic,
    balanced_accuracy,
    calibration_estimate,
    calibration_floor,
    class_statistic,
    cluster_bootstrap,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    roc_auc,
    verdict_scores,
    wilson,
)
from auroraedge.evaluate.schema import (
    BoxScores,
    ClassScores,
    DetectionScores,
    GoodScores,
    Prediction,
    PredictorScores,
    SampleKind,
)
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import InspectionResult, Verdict

OK_CLASS, ERROR_CLASS, UNNAMED_CLASS = "ok", "(error)", "(unnamed defect)"


def score(predictions: Sequence[Prediction], recipe: Recipe, *, predictor: str, seed: int = 0) -> PredictorScores:
    """All scores of one predictor. `predictions` may come from any split; at least one."""
    annotated = [p for p in predictions if p.sample.kind is SampleKind.ANNOTATED]
    strict = [p for p in annotated if p.sample.truth is not Truth.PRESUMED_GOOD]
    made = [p for p in predictions if p.sample.kind is not SampleKind.ANNOTATED]
    presumed = [p for p in annotated if p.sample.truth is Truth.PRESUMED_GOOD]
    inspecting = recipe.task == "inspect"
    judged = strict + [p for p in made if p.sample.kind is SampleKind.TEMPLATE_PERTURBED]
    kinds = list(dict.fromkeys(p.sample.kind.value for p in made))
    known = [p for p in judged if p.result.ng_probability is not None] if inspecting else []
    probabilities = _probabilities(known)
    auc = roc_auc([bad for bad, _ in probabilities], [p for _, p in probabilities])
    confidence = [max(p, 1 - p) for _, p in probabilities]
    correct = [(p >= 0.5) == bad for bad, p in probabilities]
    if not inspecting:
        known = named = [p for p in strict if p.result.class_probability is not None]
        confidence = [p.result.class_probability or 0.0 for p in named]
        correct = [p.result.predicted_class == p.sample.image_label for p in named]
    return PredictorScores(
        predictor=predictor,
        images=len(predictions),
        errors=sum(p.result.verdict is Verdict.ERROR for p in predictions),
        verdict=(
            verdict_scores(
                [p.sample.truth is Truth.DEFECTIVE for p in judged],
                [p.result.verdict for p in judged],
                [p.sample.group for p in judged],
                seed=seed,
            )
            if inspecting and judged
            else None
        ),
        good_by_kind={k: _good([p for p in made if p.sample.kind.value == k]) for k in kinds} if inspecting else {},
        presumed_good=_good(presumed) if inspecting and presumed else None,
        image_class=class_scores(strict, recipe, seed=seed) if has_image_classes(strict, recipe) else None,
        detection=detection_scores(strict, recipe, seed=seed) if has_boxes(strict) else None,
        roc_auc=None if math.isnan(auc) else auc,
        expected_calibration_error=expected_calibration_error(confidence, correct) if confidence else None,
        calibration_error=(
            calibration_estimate(confidence, correct, [p.sample.group for p in known], seed=seed)
            if confidence
            else None
        ),
        calibration_floor=calibration_floor(confidence, seed=seed) if confidence else None,
    )


def _probabilities(predictions: Sequence[Prediction]) -> list[tuple[bool, float]]:
    return [
        (p.sample.truth is Truth.DEFECTIVE, p.result.ng_probability)
        for p in predictions
        if p.result.ng_probability is not None
    ]


def _good(predictions: Sequence[Prediction]) -> GoodScores:
    verdicts = [p.result.verdict for p in predictions]
    return GoodScores(
        samples=len(predictions),
        overkill_rate=wilson(sum(v is Verdict.NG for v in verdicts), len(verdicts)),
        strict_overkill_rate=wilson(sum(v is not Verdict.OK for v in verdicts), len(verdicts)),
        false_boxes_per_sample=sum(len(p.result.defects) for p in predictions) / max(1, len(predictions)),
    )


def has_boxes(predictions: Sequence[Prediction]) -> bool:
    return any(p.sample.objects for p in predictions)


def has_image_classes(predictions: Sequence[Prediction], recipe: Recipe) -> bool:
    """True when the images are told apart by at least two of the recipe's labels (or its task is to classify)."""
    named = {p.sample.image_label for p in predictions} & set(recipe.label_names)
    return bool(predictions) and (recipe.task == "classify" or len(named) >= 2)


def image_class_of(result: InspectionResult) -> str:
    """The class that a result gives the image: its predicted class, or `ok`, or its most confident defect's label."""
    if result.verdict is Verdict.ERROR:
        return ERROR_CLASS
    if result.predicted_class is not None:
        return result.predicted_class
    if result.verdict is Verdict.OK:
        return OK_CLASS
    return max(result.defects, key=lambda d: d.confidence).label if result.defects else UNNAMED_CLASS


def _classes(predictions: Sequence[Prediction], recipe: Recipe) -> tuple[list[str], list[str], list[str]]:
    truth = [OK_CLASS if p.sample.image_label in GOOD_LABELS else p.sample.image_label for p in predictions]
    predicted = [image_class_of(p.result) for p in predictions]
    order = [OK_CLASS, *recipe.label_names]
    seen = set(truth) | set(predicted)
    return truth, predicted, [label for label in order if label in seen] + sorted(seen - set(order))


def class_scores(predictions: Sequence[Prediction], recipe: Recipe, *, seed: int = 0) -> ClassScores:
    """Confusion and figures of image classes; REVIEW images are scored by their strongest defect."""
    truth, predicted, labels = _classes(predictions, recipe)
    groups = [p.sample.group for p in predictions]
    confusion = confusion_matrix(truth, predicted, labels).astype(np.int64)
    balanced = class_statistic(truth, predicted, labels, balanced_accuracy)
    f1 = class_statistic(truth, predicted, labels, macro_f1)
    return ClassScores(
        labels=tuple(labels),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
        accuracy=wilson(int(np.trace(confusion)), len(truth)),
        balanced_accuracy=cluster_bootstrap(balanced, groups, seed=seed),
        macro_f1=cluster_bootstrap(f1, groups, seed=seed),
    )


def image_boxes(predictions: Sequence[Prediction]) -> list[ImageBoxes]:
    """True and predicted boxes of every image; a defect without a box counts as the whole image."""
    return [
        ImageBoxes(
            truth=[LabelledBox(label=o.label, box=o.box) for o in p.sample.objects],
            predicted=[
                LabelledBox(
                    label=d.label,
                    box=(
                        (d.box.x1, d.box.y1, d.box.x2, d.box.y2)
                        if d.box is not None
                        else (0.0, 0.0, float(p.result.image_width), float(p.result.image_height))
                    ),
                    confidence=d.confidence,
                )
                for d in p.result.defects
            ],
        )
        for p in predictions
    ]


def _labels(images: Sequence[ImageBoxes], recipe: Recipe) -> list[str]:
    seen = {box.label for image in images for box in (*image.truth, *image.predicted)}
    return [*recipe.label_names, *sorted(seen - set(recipe.label_names))]


def detection_scores(predictions: Sequence[Prediction], recipe: Recipe, *, seed: int = 0) -> DetectionScores:
    """Box scores; labels that the recipe lacks count as missed."""
    images = image_boxes(predictions)
    groups = [p.sample.group for p in predictions]
    labels = _labels(images, recipe)
    loose = [match_class(images, label, F_IOU) for label in labels]
    tight = [match_class(images, label, AP_IOU) for label in labels]
    any_loose, any_tight = match_class(images, None, F_IOU), match_class(images, None, AP_IOU)

    def boxes(at_f: Sequence[ClassMatches], at_ap: Sequence[ClassMatches]) -> BoxScores:
        everything = np.ones(len(images))
        hits, false, missed = (round(count) for count in f_counts(at_f, everything))
        single = len(at_f) == 1
        return BoxScores(
            truth=hits + missed,
            predicted=hits + false,
            precision=wilson(hits, hits + false),
            recall=wilson(hits, hits + missed),
            f_score=cluster_bootstrap(micro_f_statistic(at_f), groups, seed=seed),
            ap33=_defined(average_precision(at_f[0], everything)) if single else None,
            ap50=_defined(average_precision(at_ap[0], everything)) if single else None,
        )

    threshold, best = best_confidence(loose)
    return DetectionScores(
        images=len(images),
        iou=F_IOU,
        micro=boxes(loose, tight),
        any_label=boxes([any_loose], [any_tight]),
        per_class={label: boxes([a], [b]) for label, a, b in zip(labels, loose, tight, strict=True)},
        map33=cluster_bootstrap(map_statistic(loose), groups, seed=seed),
        map50=cluster_bootstrap(map_statistic(tight), groups, seed=seed),
        recall_by_size={size: wilson(*counts) for size, counts in recall_by_size(loose).items()},
        f_score_by_subset=_subsets(predictions, recipe, seed),
        best_confidence=threshold,
        best_confidence_f_score=_defined(best),
    )


def _subsets(predictions: Sequence[Prediction], recipe: Recipe, seed: int) -> dict[str, Estimate]:
    """F-score by the value of each extra field that splits the images in two to four parts, such as screw_type."""
    found: dict[str, Estimate] = {}
    for field in sorted({key for p in predictions for key in p.sample.extra}):
        values = [str(p.sample.extra.get(field)) for p in predictions]
        if not 2 <= len(set(values)) <= 4:
            continue
        for value in sorted(set(values)):
            part = [p for p, own in zip(predictions, values, strict=True) if own == value]
            images = image_boxes(part)
            matches = [match_class(images, label, F_IOU) for label in _labels(images, recipe)]
            groups = [p.sample.group for p in part]
            found[f"{field}={value}"] = cluster_bootstrap(micro_f_statistic(matches), groups, seed=seed)
    return found


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def differences(
    model: Sequence[Prediction], baseline: Sequence[Prediction], recipe: Recipe, *, seed: int = 0
) -> dict[str, Estimate]:
    """Model minus baseline on the same samples, in the same order. Raises ValueError when they are not the same."""
    if [p.sample.key for p in model] != [p.sample.key for p in baseline]:
        raise ValueError("model and baseline must have inspected the same samples")
    keep = [
        index
        for index, p in enumerate(model)
        if p.sample.kind is SampleKind.ANNOTATED and p.sample.truth is not Truth.PRESUMED_GOOD
    ]
    ours, theirs = [model[index] for index in keep], [baseline[index] for index in keep]
    groups = [p.sample.group for p in ours]
    builders: dict[str, Callable[[Sequence[Prediction]], Statistic]] = {}
    if has_boxes(ours):
        builders["f_score"] = lambda part: micro_f_statistic(_matches(part, recipe, F_IOU))
        builders["map50"] = lambda part: map_statistic(_matches(part, recipe, AP_IOU))
    if has_image_classes(ours, recipe):
        builders["macro_f1"] = lambda part: class_statistic(*_classes(part, recipe), macro_f1)
        builders["balanced_accuracy"] = lambda part: class_statistic(*_classes(part, recipe), balanced_accuracy)
    found: dict[str, Estimate] = {}
    for name, build in builders.items():
        found[name] = cluster_bootstrap(_minus(build(ours), build(theirs)), groups, seed=seed)
    return found


def _minus(a: Statistic, b: Statistic) -> Statistic:
    return lambda weights: a(weights) - b(weights)


def _matches(predictions: Sequence[Prediction], recipe: Recipe, iou: float) -> list[ClassMatches]:
    images = image_boxes(predictions)
    return [match_class(images, label, iou) for label in _labels(images, recipe)]
