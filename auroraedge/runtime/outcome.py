"""What the engine's figures mean: probabilities, verdicts, defects in source pixels, and the answer in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from auroraedge.errors import EngineError
from auroraedge.inspection.grammar import ParsedItem
from auroraedge.inspection.grounding import evidence_items, item_tokens
from auroraedge.inspection.prompts import Prompt, PromptKind
from auroraedge.inspection.results import Answer, Box, Defect, InspectionResult, RegionVerdict, StageTimings, Verdict
from auroraedge.inspection.views import merge_defects
from auroraedge.runtime.engine import Engine, RecipeCalibration
from auroraedge.runtime.frames import Prepared, elapsed_ms

# Standard deviation in grey levels below which a frame shows no part. The flattest real strip has 2.6.
LEAST_CONTRAST = 1.5
_WORSE = (Verdict.OK, Verdict.REVIEW, Verdict.NG)


def _sigmoid(x: float) -> float:
    return float(1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0))))


def _calibrated_confidence(p: float, calibration: RecipeCalibration) -> float:
    if calibration.confidence_temperature == 1.0 and calibration.confidence_bias == 0.0:
        return p
    logit = float(np.log(max(p, 1e-9)) - np.log(max(1.0 - p, 1e-9)))
    return _sigmoid(logit / calibration.confidence_temperature + calibration.confidence_bias)


class Outcome:
    """Reads results off prepared items that went through the engine of `package`."""

    def __init__(self, package: Engine) -> None:
        self._package = package

    def _calibration(self, item: Prepared) -> RecipeCalibration:
        return self._package.calibration.of(item.job.recipe.id)

    # -- before and during decoding --------------------------------------------------------------------------------

    def is_grounded(self, item: Prepared) -> bool:
        """Whether the defects are read off the evidence: boxed prompts about labels that the head knows."""
        known = set(item.prompt.labels) <= set(self._package.processor.grounding_labels)
        boxed = item.prompt.kind in (PromptKind.INSPECT, PromptKind.LOCATE)
        return item.evidence is not None and known and boxed and self._calibration(item).details == "evidence"

    def word_bias(self, item: Prepared, index_of_copy: int) -> dict[int, float]:
        """Additions to the label logits of a classification and to the ending of the decoder's own list."""
        package = self._package
        calibration = self._calibration(item)
        bias = {package.tokenizer.eos_id: calibration.eos_bias} if calibration.eos_bias else {}
        if item.prompt.kind is PromptKind.CLASSIFY and item.all_presence is not None and calibration.label_presence:
            for index, label in enumerate(package.processor.grounding_labels):
                if label in item.prompt.labels:
                    token = package.tokenizer.label_ids(label)[0]
                    added = calibration.label_presence * float(item.all_presence[index_of_copy, index])
                    # Labels that are spelt with the same first token: the likelier one speaks for it.
                    bias[token] = max(added, bias.get(token, -np.inf))
        return bias

    def settle(self, item: Prepared) -> None:
        """Makes a classification follow the frame's verdict, which thresholds and calibration decide.

        The class is then asked of the worst view unless the frame is OK, and of no view if it is.
        """
        if item.prompt.kind is not PromptKind.CLASSIFY:
            return
        tok = self._package.tokenizer
        if self.verdict(item) is Verdict.OK:
            for row in item.rows:
                row.verdict_token = tok.ok_id
        else:
            item.rows[item.worst].verdict_token = tok.ng_id

    # -- figures ---------------------------------------------------------------------------------------------------

    def features(self, item: Prepared) -> dict[str, float]:
        """What P(NG) is computed from (see RecipeCalibration), the largest over views."""
        return {name: float(x.max()) for name, x in self._view_features(item).items()}

    def _view_features(self, item: Prepared) -> dict[str, np.ndarray]:
        """[views] each, means over mirror images."""
        values = {"verdict": np.array([row.verdict_logit for row in item.all_rows])}
        if item.all_evidence is not None and item.all_presence is not None:
            values |= {"evidence": item.all_evidence[..., 0].max(axis=1), "presence": item.all_presence[:, -1]}
        return {name: x.reshape(-1, item.copies).mean(axis=1) for name, x in values.items()}

    def _probabilities(self, item: Prepared) -> list[float]:
        """P(NG) of each region of interest; of the whole frame where there are none."""
        values = self._view_features(item)
        return [
            self._probability(item, {name: float(x[part].max()) for name, x in values.items()})
            for part in item.views.slices
        ]

    def ng_probability(self, item: Prepared) -> float:
        """Calibrated P(NG) of the frame, which is that of its worst region."""
        return max(self._probabilities(item))

    def _probability(self, item: Prepared, features: dict[str, float]) -> float:
        """A prompt about one label is answered by the verdict token alone."""
        calibration = self._calibration(item)
        if item.prompt.target is not None:
            score = features["verdict"]
        else:
            score = calibration.bias + sum(getattr(calibration, name) * x for name, x in features.items())
        if not np.isfinite(score):
            raise EngineError("The engine gave no usable probability for the frame.", field="engine")
        return _sigmoid(score)

    def verdict(self, item: Prepared) -> Verdict:
        """By the recipe's thresholds on P(NG); of several regions the worst one's."""
        return max(self._verdicts(item), key=_WORSE.index)

    def _verdicts(self, item: Prepared) -> list[Verdict]:
        """Of each region. One that shows nothing is never OK: a person must look."""
        thresholds = item.job.recipe.thresholds
        verdicts = []
        for probability, contrast in zip(self._probabilities(item), item.views.contrasts, strict=True):
            if probability >= thresholds.ng_above:
                verdicts.append(Verdict.NG)
            else:
                clear = probability < thresholds.ok_below and contrast >= LEAST_CONTRAST
                verdicts.append(Verdict.OK if clear else Verdict.REVIEW)
        return verdicts

    def _region_verdicts(self, item: Prepared) -> tuple[RegionVerdict, ...]:
        views = item.views
        found = zip(views.regions, self._verdicts(item), self._probabilities(item), views.parts, strict=False)
        return tuple(
            RegionVerdict(region=region, verdict=verdict, ng_probability=probability, views=len(part))
            for region, verdict, probability, part in found
        )

    def _raw_items(self, item: Prepared, view: int) -> Sequence[ParsedItem]:
        """The defects of one view as the model gives them; read off a finished answer only."""
        if view not in item.found:
            item.found[view] = self._find_items(item, view)
        return item.found[view]

    def _find_items(self, item: Prepared, view: int) -> Sequence[ParsedItem]:
        if not item.grounded:
            return item.rows[view].parsed().items
        assert item.evidence is not None
        recipe, known = item.job.recipe, self._package.processor.grounding_labels
        # All labels of the recipe compete, also when the prompt asks for one of them.
        labels = tuple(label for label in recipe.label_names if label in known)
        found = evidence_items(
            item.evidence[view], known, labels, iou=recipe.merge_iou, limit=recipe.max_defects_per_view
        )
        return [part for part in found if part.label in item.prompt.labels]

    def _items(self, item: Prepared, view: int) -> list[ParsedItem]:
        """The defects of one view, boxes in 0..1 of it, with the confidence of the recipe's calibration."""
        calibration = self._calibration(item)
        found = self._raw_items(item, view)
        return [replace(part, confidence=_calibrated_confidence(part.confidence, calibration)) for part in found]

    def _defect(self, item: Prepared, view: int, part: ParsedItem) -> Defect:
        box = item.plan[view].to_source(part.box, item.image.width, item.image.height)
        region = item.views.region_of(view)
        if region is not None:
            box = Box(
                x1=max(box.x1, region.x),
                y1=max(box.y1, region.y),
                x2=min(box.x2, region.x + region.width),
                y2=min(box.y2, region.y + region.height),
            )
        return Defect(
            label=part.label,
            severity=item.job.recipe.label(part.label).severity,
            box=box,
            confidence=part.confidence,
            region="" if region is None else region.name,
        )

    def raw_defects(self, item: Prepared) -> list[Defect]:
        """Merged defects of all views with the confidences that the calibration is fitted on."""
        found = [self._defect(item, i, part) for i in range(len(item.plan)) for part in self._raw_items(item, i)]
        return merge_defects(found, item.job.recipe.merge_iou)

    def defects(self, item: Prepared) -> tuple[Defect, ...]:
        """Defects of all views in source pixels, merged, at or above the recipe's confidence, most confident first."""
        recipe = item.job.recipe
        found = [self._defect(item, i, part) for i in range(len(item.plan)) for part in self._items(item, i)]
        kept = [defect for defect in found if defect.confidence >= recipe.min_confidence(defect.label)]
        return tuple(merge_defects(kept, recipe.merge_iou))

    # -- results ---------------------------------------------------------------------------------------------------

    def _answer_texts(self, item: Prepared) -> list[str]:
        """The answer of each view as tokens spell it."""
        if not item.grounded:
            return [row.parsed().text for row in item.rows]
        tok, recipe = self._package.tokenizer, item.job.recipe
        texts = []
        for view, row in enumerate(item.rows):
            kept = [p for p in self._items(item, view) if p.confidence >= recipe.min_confidence(p.label)]
            defective = (row.verdict_logit or 0.0) > 0
            texts.append(tok.decode([row.ids[0], *(item_tokens(tok, kept) if defective else [])]))
        return texts

    def _timings(self, item: Prepared) -> StageTimings:
        return StageTimings(
            decode_ms=item.decode_ms,
            preprocess_ms=item.views.preprocess_ms,
            vision_ms=item.vision_ms,
            prefill_ms=item.prefill_ms,
            verdict_ms=item.verdict_ms,
            generate_ms=item.generate_ms,
            total_ms=elapsed_ms(item.began),
        )

    def result(self, item: Prepared, *, partial: bool = False) -> InspectionResult:
        """The result of an inspection; `partial` as soon as the verdict is known."""
        recipe, info = item.job.recipe, self._package.info
        verdict = self.verdict(item)
        defects: tuple[Defect, ...] = ()
        warnings: tuple[str, ...] = ()
        label: str | None = None
        class_probability: float | None = None
        if not partial and verdict is not Verdict.OK:
            if item.prompt.kind is PromptKind.INSPECT:
                defects = self.defects(item)
                if verdict is Verdict.NG and not defects:
                    warnings = ("The verdict is NG, but no defect reached the recipe's confidence.",)
            if item.prompt.kind is PromptKind.CLASSIFY:
                answer = item.rows[item.worst].parsed()
                label, class_probability = answer.label, answer.label_confidence
        if min(item.views.contrasts) < LEAST_CONTRAST:
            what = "A region" if item.views.regions else "The frame"
            warnings = (*warnings, f"{what} is almost uniform: is the light on and the lens uncovered?")
        return InspectionResult(
            result_id=item.result_id,
            request=item.job.request,
            verdict=verdict,
            ng_probability=self.ng_probability(item),
            recipe_id=recipe.id,
            recipe_version=recipe.version,
            recipe_sha256=recipe.sha256,
            thresholds=recipe.thresholds,
            defects=defects,
            predicted_class=label,
            class_probability=class_probability,
            answer_text="" if partial else "\n".join(self._answer_texts(item)),
            text=_result_text(verdict, defects, label),
            model_id=info.model_id,
            engine_sha256=info.engine_sha256,
            image_sha256=item.image.sha256,
            image_width=item.image.width,
            image_height=item.image.height,
            image_name=item.job.image_name,
            reference_used=item.views.reference_used,
            views=len(item.plan),
            is_partial=partial,
            timings=self._timings(item),
            warnings=warnings,
            regions=self._region_verdicts(item),
        )

    def answer(self, item: Prepared, asked: Prompt) -> Answer:
        """The answer to `asked`, which item.prompt put to the model: a count may be asked for as boxes.

        Over several views: present anywhere is present, a count is that of the merged boxes.
        """
        info = self._package.info
        free = asked.kind is PromptKind.FREE
        verdict = None if free else self.verdict(item)
        boxed = item.prompt.kind in (PromptKind.INSPECT, PromptKind.LOCATE)
        defects = self.defects(item) if boxed and verdict is not Verdict.OK else ()
        worst = item.rows[item.worst].parsed()
        label = worst.label if asked.kind is PromptKind.CLASSIFY else None
        count = None
        if asked.kind is PromptKind.COUNT:
            count = len(defects) if boxed else 0 if verdict is Verdict.OK else worst.count
        return Answer(
            kind=asked.kind,
            prompt=asked.text,
            text=_answer_text(asked, verdict, defects, count, self._answer_texts(item), label),
            verdict=verdict,
            ng_probability=None if free else self.ng_probability(item),
            defects=defects,
            count=count,
            predicted_class=label,
            timings=self._timings(item),
            request=item.job.request,
            recipe_id=item.job.recipe.id,
            recipe_version=item.job.recipe.version,
            recipe_sha256=item.job.recipe.sha256,
            model_id=info.model_id,
            engine_sha256=info.engine_sha256,
            image_sha256=item.image.sha256,
            image_width=item.image.width,
            image_height=item.image.height,
        )


def _counts(defects: Sequence[Defect]) -> str:
    return ", ".join(f"{n} {label}" for label, n in Counter(d.label for d in defects).most_common())


def _result_text(verdict: Verdict, defects: Sequence[Defect], label: str | None) -> str:
    detail = _counts(defects) or label or ("no defects" if verdict is Verdict.OK else "")
    return f"{verdict.value}: {detail}" if detail else verdict.value


def _answer_text(
    prompt: Prompt,
    verdict: Verdict | None,
    defects: Sequence[Defect],
    count: int | None,
    texts: Sequence[str],
    label: str | None,
) -> str:
    """The answer in words, over all views."""
    match prompt.kind:
        case PromptKind.EXISTS:
            return {Verdict.OK: "no", Verdict.NG: "yes"}.get(verdict or Verdict.ERROR, "uncertain")
        case PromptKind.COUNT:
            return str(count)
        case PromptKind.CLASSIFY:
            return label or "no defect"
        case PromptKind.INSPECT | PromptKind.LOCATE:
            return _counts(defects) or "none found"
        case _:
            return "; ".join(dict.fromkeys(t for t in texts if t))
