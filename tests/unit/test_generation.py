"""The generation loop against the plainest one there is: one row, no cache, no batch, no forced tokens taken ahead.

The decoder here is a small causal transformer in numpy with random weights, which sees exactly what the real one sees:
embeddings, mask, positions and cache. So padding, compaction and cache reuse are checked without torch; the last tests
run the same on ONNX graphs of the real exporter, and against transformers.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from auroraedge.errors import EngineError
from auroraedge.inspection.grammar import AnswerGrammar
from auroraedge.inspection.prompts import Prompt, PromptKind, build_prompt
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.manifest import DecoderSpec
from auroraedge.runtime.engine import EnginePackage
from auroraedge.runtime.generation import Row, generate, share_prefix, stream

SPEC = DecoderSpec(layers=2, kv_heads=2, head_dim=8, hidden=16, vocab=640)
# The third and fourth share their first tokens; none is a single token of nano's.
LABELS = ("short", "spur", "chipped", "chipped_rim", "dent")


class NumpyDecoder:
    """decoder.onnx in numpy. Padded places hold garbage, so that a mask that is ignored shows."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        width = SPEC.kv_heads * SPEC.head_dim
        self.layers = [
            {name: rng.normal(size=(16, width)) * 0.7 for name in ("q", "k", "v", "o")} for _ in range(SPEC.layers)
        ]
        self.head = rng.normal(size=(16, SPEC.vocab)) * 1.5
        self.calls: list[tuple[int, int, int]] = []  # rows, new positions, past

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        x, mask, position = inputs["inputs_embeds"], inputs["attention_mask"], inputs["position_ids"]
        rows, new = x.shape[:2]
        past = mask.shape[1] - new
        assert x.dtype == np.float32 and mask.dtype == np.float32 and position.dtype == np.int64
        assert inputs["past.0.key"].shape == (rows, SPEC.kv_heads, past, SPEC.head_dim)
        self.calls.append((rows, new, past))
        x = np.where(mask[:, past:, None] > 0, x.astype(np.float64), 7.0)
        x = x + np.sin(position[..., None] / 10.0 ** (np.arange(16) / 8.0))
        outputs = {}
        for i, weights in enumerate(self.layers):
            q, k, v = (
                (x @ weights[name]).reshape(rows, new, SPEC.kv_heads, -1).swapaxes(1, 2) for name in ("q", "k", "v")
            )
            k = np.concatenate([inputs[f"past.{i}.key"], k], axis=2)
            v = np.concatenate([inputs[f"past.{i}.value"], v], axis=2)
            outputs |= {f"present.{i}.key": k, f"present.{i}.value": v}
            place = np.arange(past + new)
            seen = (mask[:, None, :] > 0) & (place[None, :] <= place[past:, None])[None]
            score = np.where(seen[:, None], q @ k.swapaxes(2, 3) / 3.0, -1e9)
            weight = np.exp(score - score.max(-1, keepdims=True))
            mixed = (weight / weight.sum(-1, keepdims=True)) @ v
            x = x + np.tanh(mixed.swapaxes(1, 2).reshape(rows, new, -1) @ weights["o"].T)
        return {"logits": x[:, -1] @ self.head, **outputs}


def toy_engine(seed: int = 0) -> SimpleNamespace:
    table = np.random.default_rng(seed + 100).normal(size=(SPEC.vocab, SPEC.hidden)).astype(np.float32)
    return SimpleNamespace(
        manifest=SimpleNamespace(decoder=SPEC), decoder=NumpyDecoder(seed), embed=lambda ids: table[ids]
    )


def prompts() -> list[Prompt]:
    return [
        build_prompt(PromptKind.INSPECT, LABELS),
        build_prompt(PromptKind.CLASSIFY, LABELS),
        build_prompt(PromptKind.EXISTS, LABELS, "spur"),
        build_prompt(PromptKind.COUNT, LABELS, "short"),
        build_prompt(PromptKind.LOCATE, LABELS, "chipped_rim"),
        build_prompt(PromptKind.DESCRIBE, LABELS),
        Prompt(kind=PromptKind.FREE, labels=LABELS, text="what is this?"),
    ]


def make_rows(tokenizer: InspectionTokenizer, seed: int, **options: object) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        Row(
            prefix=rng.normal(size=(int(rng.integers(3, 12)), SPEC.hidden)).astype(np.float32),
            grammar=AnswerGrammar(tokenizer, prompt, max_items=3),
            max_new_tokens=24,
            **options,  # type: ignore[arg-type]
        )
        for prompt in prompts()
    ]


def plainly(
    engine: SimpleNamespace, row: Row, *, bias: dict[int, float] | None = None
) -> tuple[list[int], list[float]]:
    """Ids and probabilities of greedy decoding that computes the whole sequence anew for each token."""
    grammar, state, ids, found = row.grammar, row.grammar.start(), [], []
    while not grammar.done(state) and len(ids) < row.max_new_tokens:
        embeds = np.concatenate([row.prefix, engine.embed(np.array(ids, dtype=np.int64))])[None]
        length = embeds.shape[1]
        empty = np.zeros((1, SPEC.kv_heads, 0, SPEC.head_dim))
        inputs = {f"past.{i}.{kind}": empty for i in range(SPEC.layers) for kind in ("key", "value")}
        inputs |= {"inputs_embeds": embeds.astype(np.float32), "attention_mask": np.ones((1, length), np.float32)}
        logits = engine.decoder.run(inputs | {"position_ids": np.arange(length)[None]})["logits"][0]
        allowed = grammar.allowed(state)
        scores = logits[allowed].copy()
        if bias and state.phase == "word" and not state.trie:
            scores += [bias.get(int(token), 0.0) for token in allowed]
        share = np.exp(scores - scores.max())
        ids.append(int(allowed[scores.argmax()]))
        found.append(float((share / share.sum())[scores.argmax()]))
        state = grammar.advance(state, ids[-1])
    return ids, found


@pytest.mark.parametrize("seed", range(6))
def test_rows_in_a_batch_answer_as_the_plainest_loop(tokenizer: InspectionTokenizer, seed: int) -> None:
    engine = toy_engine(seed)
    rows = make_rows(tokenizer, seed)
    generate(engine, rows)  # type: ignore[arg-type]
    for row, fresh in zip(rows, make_rows(tokenizer, seed), strict=True):
        ids, probabilities = plainly(engine, fresh)
        assert row.ids == ids
        assert np.allclose(row.probabilities, probabilities, atol=1e-4)
        assert len(row.unconstrained) == len(ids)


def test_the_loop_wastes_nothing(tokenizer: InspectionTokenizer) -> None:
    """Done rows leave, forced tokens need no step of their own, and the cache holds what was fed and no more."""
    engine = toy_engine(1)
    rows = make_rows(tokenizer, 1)
    generate(engine, rows)  # type: ignore[arg-type]
    calls = engine.decoder.calls
    counts = [call[0] for call in calls]
    assert counts == sorted(counts, reverse=True) and counts[0] == len(rows) and counts[-1] < len(rows)
    assert all(past == before[1] + before[2] for before, (_, _, past) in pairwise(calls))
    alone = make_rows(tokenizer, 1)[4]  # locate: the label's tokens are forced
    engine.decoder.calls.clear()
    generate(engine, [alone])  # type: ignore[arg-type]
    chosen = sum(value is not None for value in alone.unconstrained)
    assert chosen < len(alone.ids)
    assert len(engine.decoder.calls) == chosen


def test_probabilities_among_all_tokens(tokenizer: InspectionTokenizer) -> None:
    engine = toy_engine(2)
    row = make_rows(tokenizer, 2)[0]
    seen = []
    run = engine.decoder.run
    engine.decoder.run = lambda inputs: seen.append(run(inputs)) or seen[-1]
    generate(engine, [row])  # type: ignore[arg-type]
    steps = iter(seen)
    for token, value, among in zip(row.ids, row.unconstrained, row.probabilities, strict=True):
        if value is None:
            assert among == 1.0
            continue
        logits = next(steps)["logits"][0]
        share = np.exp(logits - logits.max())
        assert value == pytest.approx(share[token] / share.sum())
        assert value <= among + 1e-12


def test_a_shared_beginning_changes_nothing(tokenizer: InspectionTokenizer) -> None:
    engine = toy_engine(3)
    beginnings = np.random.default_rng(9).normal(size=(2, 5, SPEC.hidden)).astype(np.float32)
    rows = make_rows(tokenizer, 3)
    for i, row in enumerate(rows):
        row.shared = i % 2
    shared = share_prefix(engine, beginnings)  # type: ignore[arg-type]
    generate(engine, rows, shared=shared)  # type: ignore[arg-type]
    for i, (row, fresh) in enumerate(zip(rows, make_rows(tokenizer, 3), strict=True)):
        fresh.prefix = np.concatenate([beginnings[i % 2], fresh.prefix])
        ids, probabilities = plainly(engine, fresh)
        assert row.ids == ids
        assert np.allclose(row.probabilities, probabilities, atol=1e-4)


def test_the_bias_on_the_end_trades_recall(tokenizer: InspectionTokenizer) -> None:
    engine = toy_engine(4)
    lengths = []
    for bias in (-50.0, 0.0, 50.0):
        row = make_rows(tokenizer, 4, word_bias={tokenizer.eos_id: bias}, verdict_token=tokenizer.ng_id)[0]
        generate(engine, [row])  # type: ignore[arg-type]
        lengths.append(len(row.parsed().items))
        if bias == 0.0:
            assert row.ids[0] == tokenizer.ng_id
    assert lengths[0] == 3 and lengths[2] == 1


def test_a_bias_acts_where_a_label_starts(tokenizer: InspectionTokenizer) -> None:
    engine = toy_engine(5)
    for label in ("spur", "dent"):
        bias = {tokenizer.label_ids(label)[0]: 60.0}
        row = make_rows(tokenizer, 5, word_bias=bias, verdict_token=tokenizer.ng_id)[1]
        generate(engine, [row])  # type: ignore[arg-type]
        assert row.parsed().label == label


@pytest.mark.parametrize("seed", range(4))
def test_a_bias_leaves_the_spelling_of_a_label_alone(tokenizer: InspectionTokenizer, seed: int) -> None:
    """Between 'chipped' and 'chipped_rim' <eos> is a candidate inside a word, where it ends no list."""
    start = tokenizer.label_ids("chipped")[0]
    labels = []
    for bias in (-60.0, 60.0):
        word_bias = {start: 60.0, tokenizer.eos_id: bias}
        row = make_rows(tokenizer, seed, word_bias=word_bias, verdict_token=tokenizer.ng_id)[1]
        generate(toy_engine(seed), [row])  # type: ignore[arg-type]
        labels.append(row.parsed().label)
    assert labels[0] == labels[1] and str(labels[0]).startswith("chipped")


def test_the_verdict_is_known_before_any_token_and_can_be_overruled(tokenizer: InspectionTokenizer) -> None:
    engine = toy_engine(6)
    rows = make_rows(tokenizer, 6)[:3]
    rows[2].verdict_only = True
    moments = []

    def known() -> None:
        moments.append([(row.verdict_logit is not None, row.ids) for row in rows])
        rows[0].verdict_token, rows[1].verdict_token = tokenizer.ok_id, tokenizer.ng_id

    generate(engine, rows, on_prefill=known)  # type: ignore[arg-type]
    assert moments == [[(True, rows[0].ids), (True, rows[1].ids), (True, rows[2].ids)]]
    assert rows[0].ids == [tokenizer.ok_id, tokenizer.eos_id]
    assert rows[1].ids[0] == tokenizer.ng_id and rows[1].parsed().label in LABELS
    assert len(rows[2].ids) == 1
    p = rows[0].probabilities[0]
    assert np.log((1 - p) / p) == pytest.approx(rows[0].verdict_logit)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_limit_holds(tokenizer: InspectionTokenizer, limit: int) -> None:
    engine = toy_engine(7)
    rows = make_rows(tokenizer, 7, verdict_token=tokenizer.ng_id)
    for row in rows:
        row.max_new_tokens = limit
    generate(engine, rows)  # type: ignore[arg-type]
    assert all(1 <= len(row.ids) <= limit for row in rows)
    for row in rows:
        row.parsed()


def test_a_stream_is_the_same_answer(tokenizer: InspectionTokenizer) -> None:
    engine = toy_engine(8)
    for together, alone in zip(make_rows(tokenizer, 8), make_rows(tokenizer, 8), strict=True):
        generate(engine, [together])  # type: ignore[arg-type]
        assert list(stream(engine, alone)) == together.ids  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_an_error(tokenizer: InspectionTokenizer, value: float) -> None:
    engine = toy_engine(9)
    run = engine.decoder.run

    def broken(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        output = run(inputs)
        output["logits"][-1, 5] = value
        return output

    engine.decoder.run = broken
    with pytest.raises(EngineError, match="NaN or infinite") as caught:
        generate(engine, make_rows(tokenizer, 9))  # type: ignore[arg-type]
    assert caught.value.remedy


def test_nothing_to_do(tokenizer: InspectionTokenizer) -> None:
    engine = toy_engine()
    generate(engine, [], on_prefill=lambda: pytest.fail("nothing is known"))  # type: ignore[arg-type]
    assert engine.decoder.calls == []


# --- on the real exporter's graphs -----------------------------------------------------------------------------------


def _prefixes(package: EnginePackage, tokenizer: InspectionTokenizer, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Compressed tokens of one view, and the fused prompt of every kind on it."""
    patches = np.random.default_rng(seed).integers(0, 256, (1, 256, 768), dtype=np.uint8)
    encoded = package.encode(patches)
    return encoded.compressed, [
        package.fuse(np.array(tokenizer.encode(prompt.text)), encoded.visual)[0] for prompt in prompts()
    ]


def test_prompts_that_share_a_view_answer_as_alone(tiny_engine, tokenizer: InspectionTokenizer) -> None:
    package = EnginePackage(tiny_engine.fp32, threads=1)
    compressed, texts = _prefixes(package, tokenizer, 11)
    together = [
        Row(prefix=text, grammar=AnswerGrammar(tokenizer, prompt, max_items=3), max_new_tokens=24)
        for text, prompt in zip(texts, prompts(), strict=True)
    ]
    generate(package, together, shared=share_prefix(package, compressed))
    for row, text, prompt in zip(together, texts, prompts(), strict=True):
        whole = np.concatenate([compressed[0], text])
        alone = Row(prefix=whole, grammar=AnswerGrammar(tokenizer, prompt, max_items=3), max_new_tokens=24)
        generate(package, [alone])
        assert row.ids == alone.ids
        assert np.allclose(row.probabilities, alone.probabilities, atol=1e-4)


def test_verdict_logits_and_probabilities_are_the_torch_models(tiny_engine, tokenizer: InspectionTokenizer) -> None:
    """Step by step, teacher-forced with our answer: logits of the torch decoder over [C ; F ; answer]."""
    torch = pytest.importorskip("torch")
    package = EnginePackage(tiny_engine.fp32, threads=1)
    patches = np.random.default_rng(12).integers(0, 256, (1, 256, 768), dtype=np.uint8)
    encoded = package.encode(patches)
    for prompt in prompts()[:4]:
        ids = np.array(tokenizer.encode(prompt.text))
        prefix = np.concatenate([encoded.compressed[0], package.fuse(ids, encoded.visual)[0]])
        row = Row(prefix=prefix, grammar=AnswerGrammar(tokenizer, prompt, max_items=3), max_new_tokens=24)
        generate(package, [row])
        with torch.no_grad():
            logits = tiny_engine.model(
                torch.from_numpy(ids)[None],
                torch.from_numpy(patches).float() / 127.5 - 1,
                answer_ids=torch.tensor([row.ids[:-1]], dtype=torch.long),
            ).logits[0]
        assert row.verdict_logit == pytest.approx(
            float(logits[0, tokenizer.ng_id] - logits[0, tokenizer.ok_id]), abs=1e-3
        )
        state = row.grammar.start()
        for step, token in enumerate(row.ids):
            allowed = torch.from_numpy(row.grammar.allowed(state))
            among = torch.softmax(logits[step, allowed].double(), -1)
            place = row.grammar.allowed(state).tolist().index(token)
            assert row.probabilities[step] == pytest.approx(float(among[place]), abs=1e-3)
            assert float(among[place]) == pytest.approx(float(among.max()), abs=1e-3)
            if row.unconstrained[step] is not None:
                whole = torch.softmax(logits[step].double(), -1)[token]
                assert row.unconstrained[step] == pytest.approx(float(whole), abs=1e-3)
            state = row.grammar.advance(state, token)
