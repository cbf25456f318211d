"""The cache in place against the cache handed on: the same weights, two ONNX graphs, one answer.

The graph in place (TensorScatter, Attention) runs in ONNX Runtime with past.* and present.* bound to the same memory,
which is what a TensorRT plan does. So the bookkeeping that a GPU needs is run here for real: slots, write indices,
masks, holes, blocks, copies.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from auroraedge.data.synthetic import generate_board, generate_ground_surface
from auroraedge.errors import EngineError
from auroraedge.inspection.grammar import AnswerGrammar
from auroraedge.inspection.prompts import Prompt, PromptKind, build_prompt
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.runtime import EnginePackage, Inspector
from auroraedge.runtime.decoding import Cache, Decoder, HandedOnDecoder
from auroraedge.runtime.generation import Row, generate, share_prefix
from auroraedge.runtime.in_place import InPlaceCache, InPlaceDecoder

PCB, TILE = load_recipe("pcb"), load_recipe("magnetic_tile")


@pytest.fixture(scope="module")
def handed_on(tiny_forms) -> EnginePackage:
    return EnginePackage(tiny_forms.handed_on, threads=1)


@pytest.fixture(scope="module")
def in_place(tiny_forms) -> EnginePackage:
    return EnginePackage(tiny_forms.in_place, threads=1)


@pytest.fixture
def decoders(handed_on: EnginePackage, in_place: EnginePackage, monkeypatch) -> tuple[Decoder, InPlaceDecoder]:
    """The two decoders; blocks of three rows, so that a handful of rows needs several."""
    assert isinstance(in_place.decoder, InPlaceDecoder)
    monkeypatch.setattr(in_place.decoder.graph, "rows", 3)
    assert not isinstance(handed_on.decoder, Decoder)
    return HandedOnDecoder(handed_on.decoder, handed_on.manifest.decoder), in_place.decoder


def _new(rng: np.random.Generator, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and mask of new places, each row padded on the left by a length of its own."""
    embeds = rng.normal(size=(rows, length, 256)).astype(np.float32)
    real = (np.arange(length)[None] >= rng.integers(0, length, size=(rows, 1))).astype(np.float32)
    return embeds * real[..., None], real


def _same(first: Cache, second: Cache, embeds: np.ndarray, real: np.ndarray) -> None:
    ours, reference = first.feed(embeds, real), second.feed(embeds, real)
    assert ours.shape == reference.shape
    assert np.abs(ours - reference).max() <= 2e-4 * np.abs(reference).max()


def test_feeding_dropping_and_reordering(decoders) -> None:
    reference, ours = decoders
    rng = np.random.default_rng(0)
    a, b = ours.start(8), reference.start(8)
    _same(a, b, *_new(rng, 8, 20))
    for rows, length in (([0, 1, 2, 4, 5, 6, 7], 1), ([6, 2, 4, 0, 1], 3), ([4, 3], 1), ([1, 0], 2), ([1], 1)):
        a.keep(rows)
        b.keep(rows)
        _same(a, b, *_new(rng, len(rows), length))
    assert isinstance(a, InPlaceCache)
    assert len(a._blocks) == 1  # rows have moved up into the first block, and the others are given back
    a.close()


def test_forks_share_a_beginning_and_go_their_own_ways(decoders) -> None:
    reference, ours = decoders
    rng = np.random.default_rng(1)
    a, b = ours.start(4), reference.start(4)
    _same(a, b, *_new(rng, 4, 9))
    chosen = [3, 0, 0, 3, 2, 3, 1]
    twin, twin_reference = a.fork(chosen), b.fork(chosen)
    _same(twin, twin_reference, *_new(rng, 7, 6))
    _same(a, b, *_new(rng, 4, 2))  # what the fork wrote is not here
    twin.keep([5, 1])
    twin_reference.keep([5, 1])
    _same(twin, twin_reference, *_new(rng, 2, 1))
    twin.close()
    a.close()


def test_holes_are_closed_when_the_places_are_used_up(decoders) -> None:
    """Steps of 8 places of which some rows use one: 256 places would be full after 30 steps."""
    reference, ours = decoders
    rng = np.random.default_rng(2)
    a, b = ours.start(4), reference.start(4)
    _same(a, b, *_new(rng, 4, 30))
    written = []
    for step in range(50):
        embeds, real = _new(rng, 4, 8)
        real[:] = 0
        real[np.arange(4), -1] = 1
        real[step % 4, -2:] = 1
        _same(a, b, embeds * real[..., None], real)
        written.append(int(a._written.max()))
    assert any(later < before for before, later in pairwise(written))
    a.close()


def test_an_answer_without_a_place_is_an_error(decoders) -> None:
    _, ours = decoders
    cache = ours.start(2)
    embeds = np.zeros((2, 200, 256), np.float32)
    cache.feed(embeds, np.ones((2, 200), np.float32))
    with pytest.raises(EngineError, match="compiled for 256") as caught:
        cache.feed(embeds[:, :60], np.ones((2, 60), np.float32))
    assert "most_tokens" in caught.value.remedy
    cache.feed(embeds[:, :56], np.ones((2, 56), np.float32))  # it goes on as before
    cache.close()


def _prompts() -> list[Prompt]:
    labels = PCB.label_names
    return [
        build_prompt(PromptKind.INSPECT, labels),
        build_prompt(PromptKind.COUNT, labels, labels[0]),
        build_prompt(PromptKind.LOCATE, labels, labels[1]),
        build_prompt(PromptKind.DESCRIBE, labels),
        Prompt(kind=PromptKind.FREE, labels=labels, text="what is this?"),
    ]


def _rows(package: EnginePackage, tokenizer: InspectionTokenizer, views: int) -> tuple[np.ndarray, list[Row]]:
    patches = np.random.default_rng(3).integers(0, 256, (views, 256, 768), dtype=np.uint8)
    encoded = package.encode(patches)
    rows = []
    for prompt in _prompts():
        fused = package.fuse(np.array(tokenizer.encode(prompt.text)), encoded.visual)
        grammar = AnswerGrammar(tokenizer, prompt, max_items=3)
        rows += [Row(prefix=text, grammar=grammar, shared=i, max_new_tokens=20) for i, text in enumerate(fused)]
    return encoded.compressed, rows


def test_several_prompts_on_several_views_answer_alike(handed_on, in_place, decoders, tokenizer) -> None:
    """Ten answers that begin with one of two views: the prefix is computed once and copied."""
    found = {}
    for name, package in (("handed on", handed_on), ("in place", in_place)):
        compressed, rows = _rows(package, tokenizer, views=2)
        shared = share_prefix(package, compressed)
        generate(package, rows, shared=shared)
        shared.close()
        found[name] = rows
    assert len({len(row.ids) for row in found["in place"]}) > 1  # some leave early
    for ours, reference in zip(found["in place"], found["handed on"], strict=True):
        assert ours.ids == reference.ids
        assert ours.verdict_logit == pytest.approx(reference.verdict_logit, abs=1e-3)
        assert np.allclose(ours.probabilities, reference.probabilities, atol=1e-4)


def test_blocks_are_given_back(in_place: EnginePackage, decoders, tokenizer, monkeypatch) -> None:
    """Also after an error in the middle of an answer."""
    _, ours = decoders
    taken: list[int] = []
    block, release, step = ours.graph.block, ours.graph.release, ours.graph.step
    monkeypatch.setattr(ours.graph, "block", lambda: taken.append(1) or block())
    monkeypatch.setattr(ours.graph, "release", lambda found: taken.append(-1) or release(found))
    compressed, rows = _rows(in_place, tokenizer, views=2)
    shared = share_prefix(in_place, compressed)
    generate(in_place, rows, shared=shared)
    shared.close()
    assert sum(taken) == 0 and len(taken) > 4
    calls = iter(range(100))

    def broken(*arguments: object) -> np.ndarray:
        if next(calls) == 4:
            raise EngineError("The graph failed.", field="decoder")
        return step(*arguments)

    monkeypatch.setattr(ours.graph, "step", broken)
    shared = share_prefix(in_place, compressed)
    with pytest.raises(EngineError, match="The graph failed"):
        generate(in_place, _rows(in_place, tokenizer, views=2)[1], shared=shared)
    shared.close()
    assert sum(taken) == 0


def test_inspections_are_the_same(tiny_forms) -> None:
    rng = np.random.default_rng(4)
    board, tile = generate_board(rng, size=416, n_defects=4), generate_ground_surface(rng)
    found = []
    for folder in (tiny_forms.handed_on, tiny_forms.in_place):
        with Inspector.open(folder, threads=1) as inspector:
            results = [
                inspector.inspect(board.image, PCB, reference=board.reference),
                inspector.inspect(tile.image, TILE),
            ]
            texts = [token.token_id for token in inspector.generate(tile.image, "what?", TILE, max_new_tokens=12)]
            answers = inspector.ask_all(tile.image, ["inspect", "count crack", "is there a crack"], TILE)
        found.append((results, texts, answers))
    (results, texts, answers), (others, other_texts, other_answers) = found
    assert texts == other_texts
    for one, other in zip(results, others, strict=True):
        assert (one.verdict, len(one.defects)) == (other.verdict, len(other.defects))
        assert one.ng_probability == pytest.approx(other.ng_probability, abs=1e-5)
    assert [a.text for a in answers] == [a.text for a in other_answers]


def test_a_package_for_other_weights_is_refused(tiny_forms: Path) -> None:
    with pytest.raises(EngineError, match="weights_sha256") as caught:
        EnginePackage(tiny_forms.in_place, weights_sha256="0" * 64)
    assert "build.py" in caught.value.remedy
