"""The answer grammar: constrained decoding, and parsing of what was decoded.

    inspect, locate   <OK> | <NG> (label <x1><y1><x2><y2>)+          then <eos>
    classify          <OK> | <NG> label                              then <eos>
    exists            <OK> (absent) | <NG> (present)                 then <eos>
    count             <OK> | <NG> number                             then <eos>
    describe          (<OK> | <NG>) text                             then <eos>
    free              text                                           then <eos>

Coordinates are location tokens (as in Pix2Seq, PaliGemma and Florence-2) on the view: bin b stands for b / 127 of its
side, and x2 > x1, y2 > y1 is part of the grammar, so every answer parses to boxes of positive area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from auroraedge.config import LOCATION_BINS
from auroraedge.inspection.prompts import Prompt, PromptKind
from auroraedge.inspection.tokenizer import InspectionTokenizer

MAX_COUNT = 64
_BOXED = (PromptKind.INSPECT, PromptKind.LOCATE)
_LAST_BIN = LOCATION_BINS - 1


def quantise_box(x1: float, y1: float, x2: float, y2: float) -> tuple[int, int, int, int]:
    """Bins of a box given in 0..1 of the view; the bins satisfy x2 > x1 and y2 > y1."""

    def pair(low: float, high: float) -> tuple[int, int]:
        a = int(np.clip(round(low * _LAST_BIN), 0, _LAST_BIN - 1))
        b = int(np.clip(round(high * _LAST_BIN), 0, _LAST_BIN))
        return a, max(a + 1, b)

    (xa, xb), (ya, yb) = pair(x1, x2), pair(y1, y2)
    return xa, ya, xb, yb


@dataclass(frozen=True)
class ParsedItem:
    """One defect of an answer; the box is in 0..1 of the view."""

    label: str
    box: tuple[float, float, float, float]
    confidence: float


@dataclass(frozen=True)
class ParsedAnswer:
    """`defective`: the verdict token was <NG> (None for a free prompt)."""

    defective: bool | None
    items: tuple[ParsedItem, ...] = ()
    label: str | None = None
    label_confidence: float | None = None
    count: int | None = None
    text: str = ""


@dataclass(frozen=True)
class State:
    """Where an answer stands. `trie`: ids of the open label or number; `bins`: location bins of the open box."""

    phase: str
    items: int = 0
    trie: tuple[int, ...] = ()
    bins: tuple[int, ...] = ()


DONE = State("done")


@dataclass
class AnswerGrammar:
    """Which token may come next. Stateless between answers: `start`, `allowed` and `advance` work on State values."""

    tokenizer: InspectionTokenizer
    prompt: Prompt
    max_items: int = 16
    _cache: dict[State, np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def _words(self) -> dict[tuple[int, ...], str]:
        """Token sequences that may be completed: the prompt's labels, or numbers for a count."""
        if self.prompt.kind is PromptKind.COUNT:
            return {self.tokenizer.label_ids(str(n)): str(n) for n in range(MAX_COUNT + 1)}
        return {self.tokenizer.label_ids(label): label for label in self.prompt.labels}

    def start(self) -> State:
        return State("text" if self.prompt.kind is PromptKind.FREE else "verdict")

    def done(self, state: State) -> bool:
        return state.phase == "done"

    def allowed(self, state: State) -> np.ndarray:
        """Ids [n] int64 that may follow; never empty before the end."""
        found = self._cache.get(state)
        if found is None:
            found = self._cache[state] = self._allowed(state)
        return found

    def _allowed(self, state: State) -> np.ndarray:
        tok = self.tokenizer
        match state.phase:
            case "verdict":
                return np.array([tok.ok_id, tok.ng_id], dtype=np.int64)
            case "text":
                return tok.text_ids
            case "end":
                return np.array([tok.eos_id], dtype=np.int64)
            case "word":
                depth = len(state.trie)
                ids = {word[depth] for word in self._words if len(word) > depth and word[:depth] == state.trie}
                if depth and state.trie in self._words:
                    ids.update(self._after_word())
                elif not depth and state.items > 0:
                    ids.add(tok.eos_id)
                return np.array(sorted(ids), dtype=np.int64)
            case "box":
                bins = state.bins
                low = 0 if len(bins) < 2 else bins[len(bins) - 2] + 1
                # The first corner leaves room for the second one.
                high = _LAST_BIN if len(bins) < 2 else LOCATION_BINS
                return tok.loc_ids[low:high]
        raise AssertionError(f"no continuation in phase {state.phase}")

    def _after_word(self) -> list[int]:
        if self.prompt.kind in _BOXED:
            return [int(i) for i in self.tokenizer.loc_ids[:_LAST_BIN]]
        return [self.tokenizer.eos_id]

    def advance(self, state: State, token_id: int) -> State:
        """The state after `token_id`, which must be one of `allowed(state)`."""
        tok, kind = self.tokenizer, self.prompt.kind
        if token_id == tok.eos_id:
            return DONE
        match state.phase:
            case "verdict":
                if kind is PromptKind.DESCRIBE:
                    return State("text")
                if (token_id == tok.ok_id and kind is not PromptKind.COUNT) or kind is PromptKind.EXISTS:
                    return State("end")
                return State("word")
            case "text":
                return state
            case "word":
                bin_ = tok.location_bin(token_id)
                if bin_ is not None:
                    return State("box", state.items, bins=(bin_,))
                return self._close_word(State("word", state.items, (*state.trie, token_id)))
            case "box":
                bin_ = tok.location_bin(token_id)
                assert bin_ is not None
                bins = (*state.bins, bin_)
                if len(bins) < 4:
                    return State("box", state.items, bins=bins)
                items = state.items + 1
                return State("end") if items >= self.max_items else State("word", items)
        raise AssertionError(f"token {token_id} does not continue phase {state.phase}")

    def _close_word(self, state: State) -> State:
        """A completed word that nothing can extend goes on to its box or to the end."""
        depth = len(state.trie)
        extends = any(len(word) > depth and word[:depth] == state.trie for word in self._words)
        if extends:
            return state
        return State("box", state.items) if self.prompt.kind in _BOXED else State("end")


def parse_answer(
    grammar: AnswerGrammar, ids: Sequence[int], probabilities: Sequence[float] | None = None
) -> ParsedAnswer:
    """Typed content of an answer that `grammar` allowed.

    ids: generated tokens [n], with or without the final <eos>. An answer that was cut off (token limit) keeps its
    complete items. probabilities: P of each token among those allowed; a defect's confidence is the product over its
    label's tokens, where the alternatives are the other labels and the end.
    """
    tok, prompt = grammar.tokenizer, grammar.prompt
    probs = np.ones(len(ids)) if probabilities is None else np.asarray(probabilities, dtype=np.float64)
    body = [int(i) for i in ids if i != tok.eos_id]
    if prompt.kind is PromptKind.FREE:
        return ParsedAnswer(None, text=tok.decode(body).strip())
    if not body:
        return ParsedAnswer(None)
    defective = body[0] == tok.ng_id
    if prompt.kind is PromptKind.DESCRIBE:
        return ParsedAnswer(defective, text=tok.decode(body[1:]).strip())
    items: list[ParsedItem] = []
    word: list[int] = []
    bins: list[int] = []
    confidence = 1.0
    label: str | None = None
    for token, prob in zip(body[1:], probs[1:], strict=False):
        bin_ = tok.location_bin(token)
        if bin_ is None:
            confidence = prob if not word else confidence * prob
            word.append(token)
            continue
        if not bins:
            label, word = grammar._words[tuple(word)], []
        bins.append(bin_)
        if len(bins) == 4:
            assert label is not None
            x1, y1, x2, y2 = (b / _LAST_BIN for b in bins)
            items.append(ParsedItem(label, (x1, y1, x2, y2), float(confidence)))
            bins = []
    closed = grammar._words.get(tuple(word)) if word else None
    count: int | None = None
    if prompt.kind is PromptKind.COUNT:
        count = int(closed) if closed is not None else 0
        closed = None
    return ParsedAnswer(
        defective,
        items=tuple(items),
        label=closed if prompt.kind is PromptKind.CLASSIFY else None,
        label_confidence=float(confidence) if closed and prompt.kind is PromptKind.CLASSIFY else None,
        count=count,
        text=tok.decode(body).strip(),
    )
