"""Constrained greedy generation with a key/value cache, batched over views.

Rows are padded on the left; positions count real tokens, so padding and company never change an answer. A row that is
done leaves the batch, and tokens that the grammar forces are fed along with the next step instead of in one of their
own. Rows that begin alike (several prompts on one view) share the keys and values of their beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from auroraedge.errors import EngineError
from auroraedge.inspection.grammar import AnswerGrammar, ParsedAnswer, State, parse_answer
from auroraedge.runtime.engine import EnginePackage

MAX_NEW_TOKENS = 160


@dataclass
class Row:
    """One answer in the making. `prefix` float32 [S, D]: compressed tokens and fused prompt.

    shared: with a SharedPrefix, which of its sequences `prefix` continues. word_bias: added to the logits of tokens
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


@dataclass(frozen=True, kw_only=True)
class SharedPrefix:
    """Keys and values [V, K, P, d], by name of the decoder's input, of V sequences of P tokens that rows begin with."""

    cache: dict[str, np.ndarray]
    length: int


def share_prefix(engine: EnginePackage, embeds: np.ndarray) -> SharedPrefix:
    """Runs the decoder once over what rows have in common, float32 [V, P, D]."""
    count, length = embeds.shape[:2]
    cache = _empty_cache(engine, count)
    positions = np.repeat(np.arange(length, dtype=np.int64)[None], count, axis=0)
    output = engine.decoder.run(
        {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((count, length), dtype=np.float32),
            "position_ids": positions,
            **cache,
        }
    )
    return SharedPrefix(cache={name: output[_present(name)] for name in cache}, length=length)


def _empty_cache(engine: EnginePackage, rows: int) -> dict[str, np.ndarray]:
    decoder = engine.manifest.decoder
    empty = np.zeros((rows, decoder.kv_heads, 0, decoder.head_dim), dtype=np.float32)
    return {f"past.{layer}.{kind}": empty for layer in range(decoder.layers) for kind in ("key", "value")}


def _present(name: str) -> str:
    return "present" + name.removeprefix("past")


class _Batch:
    """The cache of the rows that are still open."""

    def __init__(self, engine: EnginePackage, rows: Sequence[Row], shared: SharedPrefix | None) -> None:
        self.engine = engine
        self.rows = list(rows)
        longest = max(len(row.prefix) for row in rows)
        known = 0 if shared is None else shared.length
        embeds = np.zeros((len(rows), longest, engine.manifest.decoder.hidden), dtype=np.float32)
        self.mask = np.zeros((len(rows), known + longest), dtype=np.float32)
        self.mask[:, :known] = 1.0
        for i, row in enumerate(rows):
            embeds[i, longest - len(row.prefix) :] = row.prefix
            self.mask[i, known + longest - len(row.prefix) :] = 1.0
        if shared is None:
            self.cache = _empty_cache(engine, len(rows))
        else:
            places = [row.shared for row in rows]
            self.cache = {name: tensor[places] for name, tensor in shared.cache.items()}
        self.logits = self._run(embeds, longest)
        for row, logits in zip(self.rows, self.logits, strict=True):
            row.see_verdict(logits)

    def _run(self, embeds: np.ndarray, length: int) -> np.ndarray:
        """Logits [rows, vocab]. Raises EngineError when they are not numbers: a failure must not become a verdict."""
        positions = np.maximum(np.cumsum(self.mask, axis=1).astype(np.int64) - 1, 0)[:, -length:]
        output = self.engine.decoder.run(
            {"inputs_embeds": embeds, "attention_mask": self.mask, "position_ids": positions, **self.cache}
        )
        self.cache = {name: output[_present(name)] for name in self.cache}
        logits = output["logits"].reshape(len(self.rows), -1)
        if not np.isfinite(logits).all():
            raise EngineError("The decoder's output has NaN or infinite values.", field="decoder")
        return logits

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
        for row, logits in zip(self.rows, self.logits, strict=True):
            row.choose(logits)
        kept = [i for i, row in enumerate(self.rows) if not row.done]
        if 0 < len(kept) < len(self.rows):
            self.mask = self.mask[kept]
            self.cache = {name: tensor[kept] for name, tensor in self.cache.items()}
        self.rows = [self.rows[i] for i in kept]


def generate(
    engine: EnginePackage,
    rows: Sequence[Row],
    *,
    shared: SharedPrefix | None = None,
    on_prefill: Callable[[], None] | None = None,
) -> None:
    """Completes the answers of `rows` in place. Raises EngineError.

    on_prefill is called when every row's `verdict_logit` is known and no token is taken yet: it may still set
    `verdict_token` and `verdict_only`.
    """
    if not rows:
        return
    batch = _Batch(engine, rows, shared)
    if on_prefill is not None:
        on_prefill()
    batch.choose()
    while batch.rows:
        batch.step()
        batch.choose()


def stream(engine: EnginePackage, row: Row) -> Iterator[int]:
    """Completes one answer, yielding its token ids as they are chosen."""
    batch = _Batch(engine, [row], None)
    sent = 0
    while True:
        batch.choose()
        yield from row.ids[sent:]
        sent = len(row.ids)
        if not batch.rows:
            return
        batch.step()
