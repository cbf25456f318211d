"""From frames to verdicts: decode, views, vision, fusion, decoding, merging, thresholds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from auroraedge.errors import AuroraEdgeError, InvalidRequestError, ReferenceRequiredError
from auroraedge.inspection.grammar import AnswerGrammar, ParsedItem
from auroraedge.inspection.grounding import evidence_items, item_tokens
from auroraedge.inspection.images import DecodedImage, ImageLimits, decode_image
from auroraedge.inspection.prompts import Prompt, PromptKind, build_prompt, parse_prompt
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import (
    Answer,
    Defect,
    GeneratedToken,
    InspectionResult,
    RequestInfo,
    StageTimings,
    Verdict,
    new_result_id,
)
from auroraedge.inspection.views import (
    View,
    check_reference,
    merge_defects,
    mirror_images,
    patchify,
    plan_views,
    render_view,
)
from auroraedge.runtime.engine import Calibration, EngineInfo, EnginePackage, RecipeCalibration
from auroraedge.runtime.generation import Row, generate, stream

ImageSource = bytes | str | Path | np.ndarray | DecodedImage
DEFAULT_ENGINE = Path(__file__).resolve().parent.parent / "assets" / "engines" / "nano-cpu"


@dataclass(frozen=True, kw_only=True)
class InspectionJob:
    """One frame to inspect."""

    image: ImageSource
    recipe: Recipe
    reference: ImageSource | None = None
    request: RequestInfo = field(default_factory=RequestInfo)
    image_name: str = ""


@dataclass
class _Prepared:
    """A job that is decoded and cut into views; filled in on its way through the engine."""

    job: InspectionJob
    image: DecodedImage
    plan: list[View]
    patches: np.ndarray
    prompt: Prompt
    reference_used: bool
    began: float
    decode_ms: float
    preprocess_ms: float
    result_id: str = field(default_factory=new_result_id)
    copies: int = 1  # each view is seen once, or in its four mirror images; the first copy is the view itself
    all_rows: list[Row] = field(default_factory=list)  # [views * copies], view by view
    all_evidence: np.ndarray | None = None  # [views * copies, 256, 1 + labels + 4]
    all_presence: np.ndarray | None = None  # [views * copies, labels + 1]
    found: dict[int, Sequence[ParsedItem]] = field(default_factory=dict)  # by view, once asked for
    grounded: bool = False  # the list of defects comes from the evidence
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    verdict_ms: float = 0.0
    generate_ms: float = 0.0

    @property
    def rows(self) -> list[Row]:
        """The answer on each view."""
        return self.all_rows[:: self.copies]

    @property
    def evidence(self) -> np.ndarray | None:
        return None if self.all_evidence is None else self.all_evidence[:: self.copies]

    @property
    def presence(self) -> np.ndarray | None:
        return None if self.all_presence is None else self.all_presence[:: self.copies]


def _compares(job: InspectionJob) -> bool:
    """Whether the frame is seen beside its golden sample; one that the recipe does not ask for is left alone."""
    return job.reference is not None and job.recipe.golden_reference != "none"


def _ms(since: float) -> float:
    return (time.perf_counter() - since) * 1000.0


def _sigmoid(x: float) -> float:
    return float(1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0))))


def _calibrated_confidence(p: float, calibration: RecipeCalibration) -> float:
    if calibration.confidence_temperature == 1.0 and calibration.confidence_bias == 0.0:
        return p
    logit = float(np.log(max(p, 1e-9)) - np.log(max(1.0 - p, 1e-9)))
    return _sigmoid(logit / calibration.confidence_temperature + calibration.confidence_bias)


class Inspector:
    """An open engine. Thread-safe as far as its sessions are; one frame alone or in a batch gets the same answer."""

    def __init__(self, package: EnginePackage, limits: ImageLimits) -> None:
        self._package = package
        self._limits = limits

    @classmethod
    def open(
        cls, engine: Path | str | None = None, *, threads: int | None = None, limits: ImageLimits | None = None
    ) -> Inspector:
        """Loads and verifies an engine package; None is the embedded one (nano for CPU).

        threads: of the compute kernels; None uses all cores. Raises EngineNotFoundError, EngineDamagedError,
        EngineIncompatibleError.
        """
        # OpenCV's own pool would compete with the engine for the cores; its work on one frame is a millisecond.
        cv2.setNumThreads(1)
        path = DEFAULT_ENGINE if engine is None else Path(engine)
        return cls(EnginePackage(path, threads=threads), limits or ImageLimits())

    @property
    def engine(self) -> EngineInfo:
        return self._package.info

    def use_calibration(self, calibration: Calibration) -> None:
        """Replaces the package's calibration, to try another one."""
        self._package.calibration = calibration

    def close(self) -> None:
        """Nothing is held open; here for `with`."""

    def __enter__(self) -> Inspector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the public calls ------------------------------------------------------------------------------------------

    def inspect(
        self,
        image: ImageSource,
        recipe: Recipe,
        *,
        reference: ImageSource | None = None,
        request: RequestInfo | None = None,
        image_name: str = "",
        on_verdict: Callable[[InspectionResult], None] | None = None,
    ) -> InspectionResult:
        """The verdict on one frame and the defects behind it.

        on_verdict gets a partial result (no defects yet) as soon as OK/NG is known, at the end of prefill. Raises
        AuroraEdgeError for input that cannot be inspected: a failure is never reported as OK.
        """
        job = InspectionJob(
            image=image,
            recipe=recipe,
            reference=reference,
            request=request or RequestInfo(),
            image_name=image_name,
        )
        prepared = self._prepare(job)
        self._run([prepared], on_verdict=on_verdict)
        return self._result(prepared)

    def inspect_batch(self, jobs: Sequence[InspectionJob]) -> list[InspectionResult | AuroraEdgeError]:
        """Inspects several frames together; a frame that cannot be inspected yields its error in its place."""
        outcomes: list[InspectionResult | AuroraEdgeError | None] = [None] * len(jobs)
        prepared: dict[int, _Prepared] = {}
        for index, job in enumerate(jobs):
            try:
                prepared[index] = self._prepare(job)
            except AuroraEdgeError as error:
                outcomes[index] = error
        self._run(list(prepared.values()))
        for index, item in prepared.items():
            outcomes[index] = self._result(item)
        return [outcome for outcome in outcomes if outcome is not None]

    def ask(
        self,
        image: ImageSource,
        prompt: str | Prompt,
        recipe: Recipe,
        *,
        reference: ImageSource | None = None,
        request: RequestInfo | None = None,
    ) -> Answer:
        """The answer to a prompt about a frame: exists, count, locate, describe, classify, inspect, or free text.

        Over several views: present anywhere is present, a count is that of the merged boxes.
        """
        job = InspectionJob(image=image, recipe=recipe, reference=reference, request=request or RequestInfo())
        parsed = self._as_prompt(prompt, job)
        many = recipe.tiling.mode != "whole"
        # Where boxes can be had, what is counted are the boxes: over seams, a number per view would count twice.
        grounded = set(parsed.labels) <= set(self._package.processor.grounding_labels)
        counted = parsed.kind is PromptKind.COUNT and (many or grounded)
        asked = parsed
        if counted:
            asked = build_prompt(PromptKind.LOCATE, parsed.labels, parsed.target, reference=_compares(job))
        item = self._prepare(job, asked, whole=parsed.kind is PromptKind.FREE)
        self._run([item])
        answers = [row.parsed() for row in item.rows]
        probability = None if parsed.kind is PromptKind.FREE else self._ng_probability(item)
        verdict = None if probability is None else self._verdict(probability, recipe)
        found = self._defects(item) if asked.kind in (PromptKind.INSPECT, PromptKind.LOCATE) else ()
        defects = () if verdict is Verdict.OK else found
        worst = max(range(len(answers)), key=lambda i: item.rows[i].verdict_logit or 0.0)
        count = None
        if parsed.kind is PromptKind.COUNT:
            count = len(defects) if counted else answers[worst].count
        info = self.engine
        return Answer(
            kind=parsed.kind,
            prompt=parsed.text,
            text=_answer_text(parsed, verdict, defects, count, self._answer_texts(item), answers[worst].label),
            verdict=verdict,
            ng_probability=probability,
            defects=defects,
            count=count,
            predicted_class=answers[worst].label if parsed.kind is PromptKind.CLASSIFY else None,
            timings=self._timings(item),
            request=job.request,
            recipe_id=recipe.id,
            model_id=info.model_id,
            engine_sha256=info.engine_sha256,
        )

    def generate(
        self,
        image: ImageSource,
        prompt: str | Prompt,
        recipe: Recipe,
        *,
        reference: ImageSource | None = None,
        max_new_tokens: int = 64,
    ) -> Iterator[GeneratedToken]:
        """Streams the answer to a prompt about the whole frame, seen as one view, token by token."""
        if max_new_tokens < 1:
            raise InvalidRequestError(
                f"max_new_tokens is {max_new_tokens}; it must be positive.", field="max_new_tokens"
            )
        job = InspectionJob(image=image, recipe=recipe, reference=reference)
        item = self._prepare(job, self._as_prompt(prompt, job), whole=True)
        self._encode([item])
        row = item.rows[0]
        row.max_new_tokens = max_new_tokens
        text = ""
        decode = self._package.tokenizer.decode
        for index, token in enumerate(stream(self._package, row)):
            whole = decode(row.ids[: index + 1])
            last = row.done and index + 1 == len(row.ids)
            # A character may take several byte-level tokens: text is sent once it is complete.
            ready = whole if last else whole.rstrip("\ufffd")
            yield GeneratedToken(text=ready[len(text) :], token_id=token, index=index, done=last)
            text = ready

    # -- steps -----------------------------------------------------------------------------------------------------

    def _as_prompt(self, prompt: str | Prompt, job: InspectionJob) -> Prompt:
        if isinstance(prompt, Prompt):
            return prompt
        return parse_prompt(prompt, job.recipe, reference=_compares(job))

    def _prepare(self, job: InspectionJob, prompt: Prompt | None = None, *, whole: bool = False) -> _Prepared:
        began = time.perf_counter()
        recipe = job.recipe
        image = decode_image(job.image, self._limits)
        golden = None
        if recipe.golden_reference == "required" and job.reference is None:
            raise ReferenceRequiredError(f"Recipe '{recipe.id}' compares with a golden sample.", field="reference")
        if job.reference is not None and _compares(job):
            golden = decode_image(job.reference, self._limits, field="reference").pixels
            check_reference(image.pixels, golden)
        decode_ms = _ms(began)
        started = time.perf_counter()
        plan = (
            [View(0, 0, image.width, image.height)] if whole else plan_views(image.width, image.height, recipe.tiling)
        )
        rendered = [render_view(image.pixels, view, golden) for view in plan]
        mirrored = recipe.tiling.mirrored and not whole
        shown = [copy for pixels in rendered for copy in mirror_images(pixels)] if mirrored else rendered
        patches = patchify(np.stack(shown))
        if prompt is None:
            kind = PromptKind.CLASSIFY if recipe.task == "classify" else PromptKind.INSPECT
            prompt = build_prompt(kind, recipe.label_names, reference=golden is not None)
        return _Prepared(
            job=job,
            image=image,
            plan=plan,
            patches=patches,
            prompt=prompt,
            reference_used=golden is not None,
            copies=len(shown) // len(plan),
            began=began,
            decode_ms=decode_ms,
            preprocess_ms=_ms(started),
        )

    def _encode(self, items: Sequence[_Prepared]) -> None:
        """Vision and fusion: fills the rows of every item. Views of several frames share the encoder's batches."""
        package = self._package
        started = time.perf_counter()
        patches = np.concatenate([item.patches for item in items]) if len(items) > 1 else items[0].patches
        encoded = package.encode(patches)
        vision_ms = _ms(started)
        started = time.perf_counter()
        first = 0
        for item in items:
            last = first + len(item.patches)
            if encoded.evidence is not None and encoded.presence is not None:
                item.all_evidence, item.all_presence = encoded.evidence[first:last], encoded.presence[first:last]
            item.grounded = self._is_grounded(item)
            ids = np.array(package.tokenizer.encode(item.prompt.text), dtype=np.int64)
            fused = package.fuse(ids, encoded.visual[first:last])
            grammar = AnswerGrammar(package.tokenizer, item.prompt, max_items=item.job.recipe.max_defects_per_view)
            item.all_rows = [
                Row(
                    prefix=np.concatenate([encoded.compressed[first + i], fused[i]]),
                    grammar=grammar,
                    word_bias=self._word_bias(item, i),
                    # Mirror images have a say in the verdict only.
                    verdict_only=item.grounded or i % item.copies > 0,
                )
                for i in range(len(item.patches))
            ]
            first = last
        fusion_ms = _ms(started)
        for item in items:
            item.vision_ms, item.prefill_ms = vision_ms, fusion_ms

    def _run(self, items: Sequence[_Prepared], *, on_verdict: Callable[[InspectionResult], None] | None = None) -> None:
        if not items:
            return
        self._encode(items)
        started = time.perf_counter()
        known = started

        def verdicts_known() -> None:
            nonlocal known
            known = time.perf_counter()
            for item in items:
                item.prefill_ms += (known - started) * 1000.0
                item.verdict_ms = (known - item.began) * 1000.0
                if on_verdict is not None:
                    on_verdict(self._result(item, partial=True))

        generate(self._package, [row for item in items for row in item.all_rows], on_prefill=verdicts_known)
        for item in items:
            item.generate_ms = (time.perf_counter() - known) * 1000.0

    # -- from answers to results -----------------------------------------------------------------------------------

    def _is_grounded(self, item: _Prepared) -> bool:
        """Whether the defects are read off the evidence: boxed prompts about labels that the head knows."""
        known = set(item.prompt.labels) <= set(self._package.processor.grounding_labels)
        boxed = item.prompt.kind in (PromptKind.INSPECT, PromptKind.LOCATE)
        wanted = self._package.calibration.of(item.job.recipe.id).details == "evidence"
        return item.evidence is not None and known and boxed and wanted

    def _word_bias(self, item: _Prepared, index_of_copy: int) -> dict[int, float]:
        """Additions to the label logits of a classification and to the ending of the decoder's own list."""
        package = self._package
        calibration = package.calibration.of(item.job.recipe.id)
        bias = {package.tokenizer.eos_id: calibration.eos_bias} if calibration.eos_bias else {}
        if item.prompt.kind is PromptKind.CLASSIFY and item.all_presence is not None and calibration.label_presence:
            for index, label in enumerate(package.processor.grounding_labels):
                if label in item.prompt.labels:
                    first_token = package.tokenizer.label_ids(label)[0]
                    bias[first_token] = calibration.label_presence * float(item.all_presence[index_of_copy, index])
        return bias

    def examine(self, job: InspectionJob) -> tuple[dict[str, float], list[Defect]]:
        """What calibration is fitted on: the features of P(NG), and the merged defects with raw confidences."""
        item = self._prepare(job)
        self._run([item])
        image, recipe = item.image, job.recipe
        found = [
            Defect(
                label=part.label,
                severity=recipe.label(part.label).severity,
                box=view.to_source(part.box, image.width, image.height),
                confidence=part.confidence,
            )
            for index, view in enumerate(item.plan)
            for part in self._raw_items(item, index)
        ]
        return self._features(item), merge_defects(found, recipe.merge_iou)

    def _features(self, item: _Prepared) -> dict[str, float]:
        """What P(NG) is computed from (see RecipeCalibration): means over mirror images, the largest over views."""
        values = {"verdict": np.array([row.verdict_logit for row in item.all_rows])}
        if item.all_evidence is not None and item.all_presence is not None:
            values |= {"evidence": item.all_evidence[..., 0].max(axis=1), "presence": item.all_presence[:, -1]}
        return {name: float(x.reshape(-1, item.copies).mean(axis=1).max()) for name, x in values.items()}

    def _ng_probability(self, item: _Prepared) -> float:
        """Calibrated P(NG) of the frame. A prompt about one label is answered by the verdict token alone."""
        calibration = self._package.calibration.of(item.job.recipe.id)
        features = self._features(item)
        if item.prompt.target is not None:
            return _sigmoid(features["verdict"])
        return _sigmoid(calibration.bias + sum(getattr(calibration, name) * x for name, x in features.items()))

    def _items(self, item: _Prepared, view: int) -> Sequence[ParsedItem]:
        """The defects of one view, boxes in 0..1 of it, with the confidence of the recipe's calibration."""
        recipe = item.job.recipe
        calibration = self._package.calibration.of(recipe.id)
        found = self._raw_items(item, view)
        return [replace(part, confidence=_calibrated_confidence(part.confidence, calibration)) for part in found]

    def _raw_items(self, item: _Prepared, view: int) -> Sequence[ParsedItem]:
        """The defects of one view with raw confidences, read once."""
        if view not in item.found:
            item.found[view] = self._read_items(item, view)
        return item.found[view]

    def _read_items(self, item: _Prepared, view: int) -> Sequence[ParsedItem]:
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

    def _answer_texts(self, item: _Prepared) -> list[str]:
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

    @staticmethod
    def _verdict(probability: float, recipe: Recipe) -> Verdict:
        if probability >= recipe.thresholds.ng_above:
            return Verdict.NG
        return Verdict.OK if probability < recipe.thresholds.ok_below else Verdict.REVIEW

    def _defects(self, item: _Prepared) -> tuple[Defect, ...]:
        """Defects of all views in source pixels, merged, at or above the recipe's confidence, most confident first."""
        recipe, image = item.job.recipe, item.image
        found = [
            Defect(
                label=part.label,
                severity=recipe.label(part.label).severity,
                box=view.to_source(part.box, image.width, image.height),
                confidence=part.confidence,
            )
            for index, view in enumerate(item.plan)
            for part in self._items(item, index)
        ]
        kept = [d for d in found if d.confidence >= recipe.min_confidence(d.label)]
        return tuple(merge_defects(kept, recipe.merge_iou))

    def _timings(self, item: _Prepared) -> StageTimings:
        return StageTimings(
            decode_ms=item.decode_ms,
            preprocess_ms=item.preprocess_ms,
            vision_ms=item.vision_ms,
            prefill_ms=item.prefill_ms,
            verdict_ms=item.verdict_ms,
            generate_ms=item.generate_ms,
            total_ms=_ms(item.began),
        )

    def _result(self, item: _Prepared, *, partial: bool = False) -> InspectionResult:
        recipe, info = item.job.recipe, self.engine
        probability = self._ng_probability(item)
        verdict = self._verdict(probability, recipe)
        defects: tuple[Defect, ...] = ()
        warnings: tuple[str, ...] = ()
        label: str | None = None
        class_probability: float | None = None
        if not partial:
            if verdict is not Verdict.OK and item.prompt.kind is PromptKind.INSPECT:
                defects = self._defects(item)
                if verdict is Verdict.NG and not defects:
                    warnings = ("The verdict is NG, but no defect reached the recipe's confidence.",)
            if item.prompt.kind is PromptKind.CLASSIFY:
                answers = [row.parsed() for row in item.rows]
                best = max(range(len(answers)), key=lambda i: item.rows[i].verdict_logit or 0.0)
                label, class_probability = answers[best].label, answers[best].label_confidence
        return InspectionResult(
            result_id=item.result_id,
            request=item.job.request,
            verdict=verdict,
            ng_probability=probability,
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
            reference_used=item.reference_used,
            views=len(item.plan),
            is_partial=partial,
            timings=self._timings(item),
            warnings=warnings,
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
