"""Free questions to an engine, as general benchmarks ask them: what it says, and how likely it finds a given text.

Inspection never comes here: it has its own prompts and its grammar (runtime.inspector). What a model says to a free
prompt is text from its plain vocabulary; verdict and location tokens are left out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.grammar import AnswerGrammar
from auroraedge.inspection.images import ImageLimits, decode_image
from auroraedge.inspection.prompts import Prompt, PromptKind
from auroraedge.inspection.views import View, patchify, render_view
from auroraedge.runtime import Engine, open_engine
from auroraedge.runtime.decoding import Cache, decoder_of
from auroraedge.runtime.frames import ImageSource
from auroraedge.runtime.generation import Row, stream

# Longer prompts would leave the positions that the presets are made for.
MAX_PROMPT_TOKENS = 800


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """log_likelihood: natural logarithm of the probability of all `tokens`. greedy: each of them was the likeliest."""

    log_likelihood: float
    tokens: int
    greedy: bool

    @property
    def per_token(self) -> float:
        return self.log_likelihood / max(self.tokens, 1)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """V [1, 256, D] and C [64, D] of a picture."""

    visual: np.ndarray
    compressed: np.ndarray


def montage(images: Sequence[np.ndarray]) -> np.ndarray:
    """Several pictures as one, side by side at the height of the first, uint8 RGB; mid-grey without any.

    The model sees one frame: this is how it is asked about several, at the cost of resolution.
    """
    if not images:
        return np.full((256, 256, 3), 128, dtype=np.uint8)
    height = images[0].shape[0]
    fitted = [
        image
        if image.shape[0] == height
        else cv2.resize(
            image, (max(1, round(image.shape[1] * height / image.shape[0])), height), interpolation=cv2.INTER_AREA
        )
        for image in images
    ]
    return np.ascontiguousarray(np.hstack(fitted))


class Respondent:
    """An open engine that is asked free questions about one picture at a time; the last picture is encoded once."""

    def __init__(self, engine: Engine, limits: ImageLimits | None = None) -> None:
        self._engine = engine
        self._limits = limits or ImageLimits()
        text = engine.tokenizer.text_ids
        self._text_ids = text[text < engine.manifest.decoder.vocab]
        self._last: tuple[str, _Seen] | None = None

    @classmethod
    def open(cls, engine: Path, *, threads: int | None = None) -> Respondent:
        """An engine package or a model folder. Raises EngineError and MissingDependencyError."""
        return cls(open_engine(engine, threads=threads))

    @property
    def name(self) -> str:
        info = self._engine.info
        return f"{info.model_id}@{info.engine_sha256[:16]}"

    def close(self) -> None:
        self._engine.close()

    def log_likelihoods(
        self, image: ImageSource, prompt: str, continuations: Sequence[str], *, template: ImageSource | None = None
    ) -> list[Likelihood]:
        """How likely each text is after `prompt` about `image`, among texts.

        template: a defect-free picture of the same part, seen as a golden sample (inspection.views.composite), brought
        to the picture's size. Raises InvalidRequestError for an overlong prompt and an empty continuation,
        InvalidImageError and EngineError.
        """
        answers = [self._engine.tokenizer.encode(text) for text in continuations]
        for text, ids in zip(continuations, answers, strict=True):
            if not ids:
                raise InvalidRequestError(f"The continuation {text!r} is no token.", field="continuation")
        if not answers:
            return []
        prefix = self._prefix(image, prompt, template)
        cache = decoder_of(self._engine.decoder, self._engine.manifest.decoder).start(1)
        try:
            first = cache.feed(prefix[None], np.ones((1, len(prefix)), dtype=np.float32))
            return [self._follow(cache.fork([0]), first[0], ids) for ids in answers]
        finally:
            cache.close()

    def _follow(self, cache: Cache, logits: np.ndarray, ids: Sequence[int]) -> Likelihood:
        """Feeds `ids` behind what the cache holds; logits [vocab] are those of the first one. Closes the cache."""
        total, greedy = 0.0, True
        one = np.ones((1, 1), dtype=np.float32)
        try:
            for place, token in enumerate(ids):
                if place:
                    logits = cache.feed(self._engine.embed(np.array([[ids[place - 1]]])), one)[0]
                scores = logits[self._text_ids].astype(np.float64)
                peak = float(scores.max())
                total += float(logits[token]) - peak - float(np.log(np.exp(scores - peak).sum()))
                greedy = greedy and float(logits[token]) >= peak
        finally:
            cache.close()
        return Likelihood(log_likelihood=total, tokens=len(ids), greedy=greedy)

    def generate(
        self,
        image: ImageSource,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        until: Sequence[str] = (),
        template: ImageSource | None = None,
    ) -> str:
        """The likeliest text, token by token, up to the first of `until` or the end token. Errors as above."""
        tokenizer = self._engine.tokenizer
        grammar = AnswerGrammar(tokenizer, Prompt(kind=PromptKind.FREE, labels=(), text=prompt))
        row = Row(prefix=self._prefix(image, prompt, template), grammar=grammar, max_new_tokens=max_new_tokens)
        text = ""
        for _ in stream(self._engine, row):
            text = tokenizer.decode(row.ids)
            ends = [place for stop in until if stop and (place := text.find(stop)) >= 0]
            if ends:
                return text[: min(ends)]
        return text

    def _prefix(self, image: ImageSource, prompt: str, template: ImageSource | None) -> np.ndarray:
        """float32 [64 + t, D]: compressed tokens and fused prompt."""
        ids = self._engine.tokenizer.encode(prompt)
        if not 0 < len(ids) <= MAX_PROMPT_TOKENS:
            raise InvalidRequestError(
                f"The prompt has {len(ids)} tokens; 1 to {MAX_PROMPT_TOKENS} can be asked.",
                field="prompt",
                remedy="Shorten the question, or leave its options out.",
            )
        seen = self._see(image, template)
        fused = self._engine.fuse(np.array(ids, dtype=np.int64), seen.visual)
        return np.concatenate([seen.compressed, fused[0]])

    def _see(self, image: ImageSource, template: ImageSource | None) -> _Seen:
        frame = decode_image(image, self._limits)
        golden = None if template is None else decode_image(template, self._limits, field="template")
        key = frame.sha256 + ("" if golden is None else golden.sha256)
        if self._last is None or self._last[0] != key:
            reference = None
            if golden is not None:
                size = (frame.width, frame.height)
                same = (golden.width, golden.height) == size
                reference = golden.pixels if same else cv2.resize(golden.pixels, size, interpolation=cv2.INTER_AREA)
            view = render_view(frame.pixels, View(0, 0, frame.width, frame.height), reference)
            encoded = self._engine.encode(patchify(view[None]))
            self._last = key, _Seen(visual=encoded.visual, compressed=encoded.compressed[0])
        return self._last[1]
