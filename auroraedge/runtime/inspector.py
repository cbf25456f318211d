"""From frames to verdicts: decode, views, vision, fusion, decoding, merging, thresholds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from auroraedge.inspection.grammar import AnswerGrammar
from auroraedge.inspection.images import ImageLimits
from auroraedge.inspection.prompts import Prompt, PromptKind, build_prompt, parse_prompt
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import (
    Answer,
    Defect,
    GeneratedToken,
    InspectionResult,
    Region,
    RequestInfo,
)
from auroraedge.runtime.decoding import Cache
from auroraedge.runtime.engine import Calibration, Encoded, Engine, EngineInfo
from auroraedge.runtime.frames import (
    FrameItem,
    ImageSource,
    InspectionJob,
    LoadedFrame,
    Prepared,
    ViewSet,
    elapsed_ms,
    in_batches,
    prepare,
    prepare_on,
)
from auroraedge.runtime.generation import Row, generate, share_prefix, stream
from auroraedge.runtime.opening import open_engine
from auroraedge.runtime.outcome import Outcome

DEFAULT_ENGINE = Path(__file__).resolve().parent.parent / "assets" / "engines" / "nano-cpu"
# Answers that are decoded together when many prompts are asked of many views; it bounds the memory of the cache.
_MAX_ROWS = 128


class Inspector:
    """An open engine. Thread-safe as far as its sessions are; one frame alone or in a batch gets the same answer."""

    def __init__(self, package: Engine, limits: ImageLimits) -> None:
        self._package = package
        self._limits = limits
        self._outcome = Outcome(package)

    @classmethod
    def open(
        cls, engine: Path | str | None = None, *, threads: int | None = None, limits: ImageLimits | None = None
    ) -> Inspector:
        """Loads and verifies an engine package, or a model folder, which torch runs; None is the embedded nano for CPU.

        threads: of the compute kernels; None uses all cores. Raises EngineNotFoundError, EngineDamagedError,
        EngineIncompatibleError, and MissingDependencyError where the library that runs it is not installed.
        """
        # OpenCV's own pool would compete with the engine for the cores; its work on one frame is a millisecond.
        cv2.setNumThreads(1)
        path = DEFAULT_ENGINE if engine is None else Path(engine)
        return cls(open_engine(path, threads=threads), limits or ImageLimits())

    @property
    def engine(self) -> EngineInfo:
        return self._package.info

    def use_calibration(self, calibration: Calibration) -> None:
        """Replaces the package's calibration, to try another one."""
        self._package.calibration = calibration

    def close(self) -> None:
        """Gives back what the engine holds on a device."""
        self._package.close()

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
        regions: Sequence[Region] = (),
        on_verdict: Callable[[InspectionResult], None] | None = None,
    ) -> InspectionResult:
        """The verdict on one frame, or on `regions` of it, and the defects behind it.

        on_verdict gets a partial result (no defects yet) as soon as OK/NG is known, at the end of prefill. Raises
        AuroraEdgeError for input that cannot be inspected: a failure is never reported as OK.
        """
        job = InspectionJob(
            image=image,
            recipe=recipe,
            reference=reference,
            request=request or RequestInfo(),
            image_name=image_name,
            regions=tuple(regions),
        )
        item = self._prepare(job)
        self._run([item], on_verdict=on_verdict)
        return self._outcome.result(item)

    def inspect_batch(self, jobs: Sequence[InspectionJob]) -> list[InspectionResult | AuroraEdgeError]:
        """Inspects several frames together; a frame that cannot be inspected yields its error in its place."""
        outcomes: dict[int, InspectionResult | AuroraEdgeError] = {}
        items: list[Prepared] = []
        places: list[int] = []
        for index, job in enumerate(jobs):
            try:
                items.append(self._prepare(job))
                places.append(index)
            except AuroraEdgeError as error:
                outcomes[index] = error
        found = [outcome for batch in in_batches(items) for outcome in self._results(batch)]
        outcomes.update(zip(places, found, strict=True))
        return [outcomes[index] for index in range(len(jobs))]

    def _results(self, items: list[Prepared]) -> list[InspectionResult | AuroraEdgeError]:
        try:
            self._run(items)
            return [self._outcome.result(item) for item in items]
        except AuroraEdgeError as error:
            if len(items) == 1:
                return [error]
            # One frame must not take its neighbours with it.
            return [outcome for item in items for outcome in self._results([item])]

    def ask(
        self,
        image: ImageSource,
        prompt: str | Prompt,
        recipe: Recipe,
        *,
        reference: ImageSource | None = None,
        request: RequestInfo | None = None,
        regions: Sequence[Region] = (),
    ) -> Answer:
        """The answer to a prompt about a frame: exists, count, locate, describe, classify, inspect, or free text."""
        return self.ask_all(image, [prompt], recipe, reference=reference, request=request, regions=regions)[0]

    def ask_all(
        self,
        image: ImageSource,
        prompts: Sequence[str | Prompt],
        recipe: Recipe,
        *,
        reference: ImageSource | None = None,
        request: RequestInfo | None = None,
        regions: Sequence[Region] = (),
    ) -> list[Answer]:
        """The answers to several prompts about one frame, which is encoded once for all of them.

        The timings of each answer are those of the whole call. Raises the first prompt's error.
        """
        items = [FrameItem(recipe=recipe, prompt=prompt, regions=tuple(regions)) for prompt in prompts]
        answers: list[Answer] = []
        for outcome in self.inspect_many(image, items, reference=reference, request=request):
            if isinstance(outcome, AuroraEdgeError):
                raise outcome
            assert isinstance(outcome, Answer)
            answers.append(outcome)
        return answers

    def inspect_many(
        self,
        image: ImageSource,
        items: Sequence[FrameItem],
        *,
        reference: ImageSource | None = None,
        request: RequestInfo | None = None,
        image_name: str = "",
    ) -> list[InspectionResult | Answer | AuroraEdgeError]:
        """Several recipes and prompts on one frame: decoded once, and each distinct set of views encoded once.

        The outcomes are in the order of the items: a result, an answer where the item has a prompt, or the item's own
        error. The timings of each are those of the whole call. Raises AuroraEdgeError for a frame that cannot be used.
        """
        if not items:
            return []
        frame = LoadedFrame(image, reference, self._limits)
        outcomes: dict[int, InspectionResult | Answer | AuroraEdgeError] = {}
        prepared: list[Prepared] = []
        asked: dict[str, tuple[int, Prompt | None]] = {}
        for index, wanted in enumerate(items):
            job = InspectionJob(
                image=frame.image,
                recipe=wanted.recipe,
                reference=reference,
                request=wanted.request or request or RequestInfo(),
                image_name=image_name,
                regions=wanted.regions,
            )
            try:
                prompt = None if wanted.prompt is None else self._as_prompt(wanted.prompt, job)
                # A free prompt is about the frame as a whole, and has no verdict that mirror images could make surer.
                whole = prompt is not None and prompt.kind is PromptKind.FREE
                put = None if prompt is None else self._put(prompt, job)
                item = prepare_on(frame, job, put, whole=whole, exposure=self._exposure(job))
            except AuroraEdgeError as error:
                outcomes[index] = error
                continue
            prepared.append(item)
            asked[item.result_id] = index, prompt
        frame.verify()
        for batch in in_batches(prepared, _MAX_ROWS):
            for item, outcome in zip(batch, self._outcomes(batch, asked), strict=True):
                outcomes[asked[item.result_id][0]] = outcome
        return [outcomes[index] for index in range(len(items))]

    def _outcomes(
        self, items: list[Prepared], asked: dict[str, tuple[int, Prompt | None]]
    ) -> list[InspectionResult | Answer | AuroraEdgeError]:
        try:
            self._run(items, keep=True)
            prompts = [asked[item.result_id][1] for item in items]
            return [
                self._outcome.result(item) if prompt is None else self._outcome.answer(item, prompt)
                for item, prompt in zip(items, prompts, strict=True)
            ]
        except AuroraEdgeError as error:
            if len(items) == 1:
                return [error]
            return [outcome for item in items for outcome in self._outcomes([item], asked)]

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

    def examine(self, job: InspectionJob) -> tuple[dict[str, float], list[Defect]]:
        """What calibration is fitted on: the features of P(NG), and the merged defects with raw confidences."""
        item = self._prepare(job)
        self._run([item])
        return self._outcome.features(item), self._outcome.raw_defects(item)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _exposure(self, job: InspectionJob) -> float | None:
        return self._package.calibration.of(job.recipe.id).exposure

    def _prepare(self, job: InspectionJob, prompt: Prompt | None = None, *, whole: bool = False) -> Prepared:
        return prepare(job, self._limits, prompt, whole=whole, exposure=self._exposure(job))

    def _as_prompt(self, prompt: str | Prompt, job: InspectionJob) -> Prompt:
        if isinstance(prompt, Prompt):
            return prompt
        return parse_prompt(prompt, job.recipe, reference=job.compares)

    def _put(self, asked: Prompt, job: InspectionJob) -> Prompt:
        """The prompt that the model gets. Where boxes can be had, they are what is counted: over seams, a number per
        view would count twice."""
        grounded = set(asked.labels) <= set(self._package.processor.grounding_labels)
        if asked.kind is not PromptKind.COUNT or not (grounded or job.recipe.tiling.mode != "whole"):
            return asked
        return build_prompt(PromptKind.LOCATE, asked.labels, asked.target, reference=job.compares)

    def _run(
        self,
        items: Sequence[Prepared],
        *,
        keep: bool = False,
        on_verdict: Callable[[InspectionResult], None] | None = None,
    ) -> None:
        if not items:
            return
        shared = self._encode(items, keep=keep)
        started = time.perf_counter()
        known = started

        def verdicts_known() -> None:
            nonlocal known
            known = time.perf_counter()
            for item in items:
                item.prefill_ms += (known - started) * 1000.0
                item.verdict_ms = (known - item.began) * 1000.0
                self._outcome.settle(item)
                if on_verdict is not None:
                    on_verdict(self._outcome.result(item, partial=True))

        rows = [row for item in items for row in item.all_rows]
        try:
            generate(self._package, rows, shared=shared, on_prefill=verdicts_known)
        finally:
            if shared is not None:
                shared.close()
        for item in items:
            item.generate_ms = elapsed_ms(known)

    def _encode(self, items: Sequence[Prepared], *, keep: bool = False) -> Cache | None:
        """Vision and fusion: fills the rows of every item. Each set of views is encoded once, whatever its prompts.

        keep: also for later batches. Returns the keys and values of the compressed tokens when several prompts continue
        them.
        """
        package = self._package
        started = time.perf_counter()
        sets = list({id(item.views): item.views for item in items}.values())
        starts = np.cumsum([0, *(len(views.patches) for views in sets)]).tolist()
        first = {id(views): start for views, start in zip(sets, starts, strict=False)}
        encoded = self._encoded(sets, keep=keep)
        vision_ms = elapsed_ms(started)
        started = time.perf_counter()
        places = [range(first[id(item.views)], first[id(item.views)] + len(item.views.patches)) for item in items]
        several = len(sets) < len(items)
        for item, place in zip(items, places, strict=True):
            if encoded.evidence is not None and encoded.presence is not None:
                views = slice(place.start, place.stop)
                item.all_evidence, item.all_presence = encoded.evidence[views], encoded.presence[views]
            item.grounded, item.found = self._outcome.is_grounded(item), {}
        fused = self._fuse(items, places, encoded)
        for item, place in zip(items, places, strict=True):
            limit = item.job.recipe.max_defects_per_view
            grammar = AnswerGrammar(package.tokenizer, item.prompt, max_items=limit)
            item.all_rows = [
                Row(
                    prefix=text if several else np.concatenate([encoded.compressed[view], text]),
                    grammar=grammar,
                    shared=view,
                    word_bias=self._outcome.word_bias(item, view - place.start),
                    # Mirror images have a say in the verdict only.
                    verdict_only=item.grounded or (view - place.start) % item.copies > 0,
                )
                for view, text in zip(place, fused[item.result_id], strict=True)
            ]
        shared = share_prefix(package, encoded.compressed) if several else None
        prefill_ms = elapsed_ms(started)
        for item in items:
            item.vision_ms, item.prefill_ms = vision_ms, prefill_ms
        return shared

    def _encoded(self, sets: Sequence[ViewSet], *, keep: bool) -> Encoded:
        """What the encoder says of all the views, those of the first set first."""
        fresh = [views for views in sets if views.encoded is None]
        encoded = None
        if fresh:
            arrays = [views.patches for views in fresh]
            encoded = self._package.encode(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
            if not keep and len(fresh) == len(sets):
                return encoded
            done = 0
            for views in fresh:
                views.encoded = encoded.part(done, done + len(views.patches))
                done += len(views.patches)
        known = [views.encoded for views in sets if views.encoded is not None]
        return encoded if encoded is not None and len(fresh) == len(sets) else Encoded.joined(known)

    def _fuse(self, items: Sequence[Prepared], places: Sequence[range], encoded: Encoded) -> dict[str, np.ndarray]:
        """F [views, t, D] by result id. Frames with the same prompt go through the fusion together."""
        groups: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault(item.prompt.text, []).append(index)
        found = {}
        for text, members in groups.items():
            views = [view for index in members for view in places[index]]
            visual = encoded.visual if views == list(range(len(encoded.visual))) else encoded.visual[views]
            ids = np.array(self._package.tokenizer.encode(text), dtype=np.int64)
            fused = self._package.fuse(ids, visual)
            done = 0
            for index in members:
                count = len(places[index])
                found[items[index].result_id] = fused[done : done + count]
                done += count
        return found
