"""Constrained greedy generation with a key/value cache, batched over views.

Rows are padded on the left; positions count real tokens, so padding and company never change an answer. A row that is
done leaves the batch, and tokens that the grammar forces are fed along with the next step instead of in one of their
own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from auroraedge.inspection.grammar import AnswerGrammar, ParsedAnswer, State, parse_answer
from auroraedge.runtime.engine import EnginePackage

MAX_NEW_TOKENS = 160


@dataclass
class Row:
    """One answer in the making. `prefix` float32 [S, D]: compressed tokens and fused prompt.

    word_bias: added to the logits of tokens that may start or go on a label. verdict_only: stop once the verdict is
    known, because the rest of the answer comes from the evidence.
    """

    prefix: np.ndarray
    grammar: AnswerGrammar
    word_bias: dict[int, float] = field(default_factory=dict)
    verdict_only: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS
    ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    verdict_logit: float | None = None  # logit(<NG>) - logit(<OK>)
    state: State = field(init=False)
    pending: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = self.grammar.start()

    @property
    def done(self) -> bool:
        limit = 1 if self.verdict_only else self.max_new_tokens
        return self.grammar.done(self.state) or len(self.ids) >= limit

    def choose(self, logits: np.ndarray) -> None:
        """Takes the likeliest allowed token of logits [vocab], and those that the grammar then forces."""
        grammar = self.grammar
        allowed = grammar.allowed(self.state)
        scores = logits[allowed].astype(np.float64)
        if self.state.phase == "verdict":
            tok = grammar.tokenizer
            self.verdict_logit = float(logits[tok.ng_id]) - float(logits[tok.ok_id])
        if self.state.phase == "word" and self.word_bias:
            scores += [self.word_bias.get(int(token), 0.0) for token in allowed]
        best = int(scores.argmax())
        exp = np.exp(scores - scores[best])
        self._take(int(allowed[best]), float(1.0 / exp.sum()))
        while not self.done and len(forced := grammar.allowed(self.state)) == 1:
            self._take(int(forced[0]), 1.0)

    def _take(self, token: int, probability: float) -> None:
        self.ids.append(token)
        self.probabilities.append(probability)
        self.pending.append(token)
        self.state = self.grammar.advance(self.state, token)

    def parsed(self) -> ParsedAnswer:
        return parse_answer(self.grammar, self.ids, self.probabilities)


class _Batch:
    """The cache of the rows that are still open."""

    def __init__(self, engine: EnginePackage, rows: Sequence[Row]) -> None:
        self.engine = engine
        self.rows = list(rows)
        decoder = engine.manifest.decoder
        longest = max(len(row.prefix) for row in rows)
        embeds = np.zeros((len(rows), longest, decoder.hidden), dtype=np.float32)
        self.mask = np.zeros((len(rows), longest), dtype=np.float32)
        for i, row in enumerate(rows):
            embeds[i, longest - len(row.prefix) :] = row.prefix
            self.mask[i, longest - len(row.prefix) :] = 1.0
        empty = np.zeros((len(rows), decoder.kv_heads, 0, decoder.head_dim), dtype=np.float32)
        self.cache = {f"past.{layer}.{kind}": empty for layer in range(decoder.layers) for kind in ("key", "value")}
        self.logits = self._run(embeds, longest)

    def _run(self, embeds: np.ndarray, length: int) -> np.ndarray:
        positions = np.maximum(np.cumsum(self.mask, axis=1).astype(np.int64) - 1, 0)[:, -length:]
        output = self.engine.decoder.run(
            {"inputs_embeds": embeds, "attention_mask": self.mask, "position_ids": positions, **self.cache}
        )
        self.cache = {name: output[name.replace("past", "present", 1)] for name in self.cache}
        return output["logits"]

    def step(self) -> None:
        """Feeds the pending tokens of every row; rows with fewer are padded on the left."""
        longest = max(len(row.pending) for row in self.rows)
        ids = np.zeros((len(self.rows), longest), dtype=np.int64)
        mask = np.zeros((len(self.rows), longest), dtype=np.float32)
        for i, row in enumerate(self.rows):
            ids[i, longest - len(row.pending) :] = row.pending
            mask[i, longest - len(row.pending) :] = 1.0
            row.pending = []
        self.mask = np.concatenate([self.mask, mask], axis=1)
        self.logits = self._run(self.engine.embed(ids), longest)

    def choose(self) -> None:
        """Extends every row by its next tokens and drops the rows that are done."""
        for row, logits in zip(self.rows, self.logits.reshape(len(self.rows), -1), strict=True):
            row.choose(logits)
        kept = [i for i, row in enumerate(self.rows) if not row.done]
        if 0 < len(kept) < len(self.rows):
            self.mask = self.mask[kept]
            self.cache = {name: tensor[kept] for name, tensor in self.cache.items()}
        self.rows = [self.rows[i] for i in kept]


def generate(engine: EnginePackage, rows: Sequence[Row], *, on_prefill: Callable[[], None] | None = None) -> None:
    """Completes the answers of `rows` in place. `on_prefill` is called when every verdict is known."""
    if not rows:
        return
    batch = _Batch(engine, rows)
    batch.choose()
    if on_prefill is not None:
        on_prefill()
    while batch.rows:
        batch.step()
        batch.choose()


def stream(engine: EnginePackage, row: Row) -> Iterator[int]:
    """Completes one answer, yielding its token ids as they are chosen."""
    batch = _Batch(engine, [row])
    sent = 0
    while True:
        batch.choose()
        yield from row.ids[sent:]
        sent = len(row.ids)
        if not batch.rows:
            return
        batch.step()
