"""Constrained greedy generation with a key/value cache, batched over views.

Rows are padded on the left; positions count real tokens, so padding and company never change an answer. A row that is
done leaves the batch, and tokens that the grammar forces are fed along with the next step instead of in one of their
own. Rows that begin alike (several prompts on one view) share the keys and values of their beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from auroraedge.inspection.grammar import AnswerGrammar, ParsedAnswer, State, parse_answer
from auroraedge.runtime.decoding import Cache, decoder_of
from auroraedge.runtime.engine import Engine

MAX_NEW_TOKENS = 160


@dataclass
class Row:
    """One answer in the making. `prefix` float32 [S, D]: compressed tokens and fused prompt.

    shared: with a shared prefix, which of its sequences `prefix` continues. word_bias: added to the logits of tokens
    that may start a label or end the list. verdict_token: taken as the verdict instead of the likeliest.
    verdict_only: stop once the verdict is known, because the rest of the answer comes from the evidence.
    """

    prefix: np.ndarray
    grammar: AnswerGrammar
    shared: int = 0
    word_bias: dict[int, float] = field(default_factory=dict)
    verdict_token: int | None = None
    verdict_only: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS
    ids: list[int] = field(default_factory=list)
    # Of each token, among those allowed (1 where only it was) and, for chosen ones, among the whole vocabulary.
    probabilities: list[float] = field(default_factory=list)
    unconstrained: list[float | None] = field(default_factory=list)
    verdict_logit: float | None = None  # logit(<NG>) - logit(<OK>)
    state: State = field(init=False)
    pending: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = self.grammar.start()

    @property
    def done(self) -> bool:
        limit = 1 if self.verdict_only else self.max_new_tokens
        return self.grammar.done(self.state) or len(self.ids) >= limit

    def see_verdict(self, logits: np.ndarray) -> None:
        """Reads the verdict off the logits [vocab] of the prefill, before any token is taken."""
        if self.state.phase == "verdict":
            tok = self.grammar.tokenizer
            self.verdict_logit = float(logits[tok.ng_id]) - float(logits[tok.ok_id])

    def choose(self, logits: np.ndarray) -> None:
        """Takes the likeliest allowed token of logits [vocab], and those that the grammar then forces."""
        grammar = self.grammar
        allowed = grammar.allowed(self.state)
        scores = logits[allowed].astype(np.float64)
        if self.word_bias and self.state.phase == "word" and not self.state.trie:
            scores += [self.word_bias.get(int(token), 0.0) for token in allowed]
        best = int(scores.argmax())
        if self.state.phase == "verdict" and self.verdict_token is not None:
            best = int(np.flatnonzero(allowed == self.verdict_token)[0])
        token, top = int(allowed[best]), float(logits.max())
        probability = float(1.0 / np.exp(scores - scores[best]).sum())
        self._take(token, probability, float(np.exp(logits[token] - top) / np.exp(logits - top).sum()))
        while not self.done and len(forced := grammar.allowed(self.state)) == 1:
            self._take(int(forced[0]), 1.0, None)

    def _take(self, token: int, probability: float, unconstrained: float | None) -> None:
        self.ids.append(token)
        self.probabilities.append(probability)
        self.unconstrained.append(unconstrained)
        self.pending.append(token)
        self.state = self.grammar.advance(self.state, token)

    def parsed(self) -> ParsedAnswer:
        return parse_answer(self.grammar, self.ids, self.probabilities)


def share_prefix(engine: Engine, embeds: np.ndarray) -> Cache:
    """Runs the decoder once over what rows have in common, float32 [V, P, D]. Close it when the rows are done."""
    count, length = embeds.shape[:2]
    cache = decoder_of(engine.decoder, engine.manifest.decoder).start(count)
    try:
        cache.feed(embeds, np.ones((count, length), dtype=np.float32))
    except BaseException:
        cache.close()
        raise
    return cache


class _Batch:
    """The rows that are still open, and their cache."""

    def __init__(self, engine: Engine, rows: Sequence[Row], shared: Cache | None) -> None:
        self.engine = engine
        self.rows = list(rows)
        longest = max(len(row.prefix) for row in rows)
        embeds = np.zeros((len(rows), longest, rows[0].prefix.shape[1]), dtype=np.float32)
        real = np.zeros((len(rows), longest), dtype=np.float32)
        for i, row in enumerate(rows):
            embeds[i, longest - len(row.prefix) :] = row.prefix
            real[i, longest - len(row.prefix) :] = 1.0
        if shared is None:
            self.cache = decoder_of(engine.decoder, engine.manifest.decoder).start(len(rows))
        else:
            self.cache = shared.fork([row.shared for row in rows])
        try:
            self.logits = self.cache.feed(embeds, real)
        except BaseException:
            self.cache.close()
            raise
        for row, logits in zip(self.rows, self.logits, strict=True):
            row.see_verdict(logits)

    def step(self) -> None:
        """Feeds the pending tokens of every row; rows with fewer are padded on the left."""
        longest = max(len(row.pending) for row in self.rows)
        ids = np.zeros((len(self.rows), longest), dtype=np.int64)
        real = np.zeros((len(self.rows), longest), dtype=np.float32)
        for i, row in enumerate(self.rows):
            ids[i, longest - len(row.pending) :] = row.pending
            real[i, longest - len(row.pending) :] = 1.0
            row.pending = []
        self.logits = self.cache.feed(self.engine.embed(ids), real)

    def choose(self) -> None:
        """Extends every row by its next tokens and drops the rows that are done."""
        for row, logits in zip(self.rows, self.logits, strict=True):
            row.choose(logits)
        kept = [i for i, row in enumerate(self.rows) if not row.done]
        if 0 < len(kept) < len(self.rows):
            self.cache.keep(kept)
        self.rows = [self.rows[i] for i in kept]


def generate(
    engine: Engine,
    rows: Sequence[Row],
    *,
    shared: Cache | None = None,
    on_prefill: Callable[[], None] | None = None,
) -> None:
    """Completes the answers of `rows` in place. Raises EngineError.

    on_prefill is called when every row's `verdict_logit` is known and no token is taken yet: it may still set
    `verdict_token` and `verdict_only`.
    """
    if not rows:
        return
    batch = _Batch(engine, rows, shared)
    try:
        if on_prefill is not None:
            on_prefill()
        batch.choose()
        while batch.rows:
            batch.step()
            batch.choose()
    finally:
        batch.cache.close()


def stream(engine: Engine, row: Row) -> Iterator[int]:
    """Completes one answer, yielding its token ids as they are chosen."""
    batch = _Batch(engine, [row], None)
    sent = 0
    try:
        while True:
            batch.choose()
            yield from row.ids[sent:]
            sent = len(row.ids)
            if not batch.rows:
                return
            batch.step()
    finally:
        batch.cache.close()
