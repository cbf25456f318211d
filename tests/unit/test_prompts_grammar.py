"""Prompts, the answer grammar, and parsing: whatever is allowed parses, whatever is right is allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auroraedge.data.instructions import Target, answer_ids, reading_order
from auroraedge.errors import InvalidRequestError, UnknownLabelError
from auroraedge.inspection.grammar import AnswerGrammar, parse_answer, quantise_box
from auroraedge.inspection.prompts import Prompt, PromptKind, build_prompt, parse_prompt
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.inspection.tokenizer import InspectionTokenizer

PCB = load_recipe("pcb")
# Labels that nano's tokenizer spells in several tokens, one a prefix of the other.
SPELT = Recipe.model_validate({"id": "s", "labels": [{"name": "chip"}, {"name": "chipped_rim"}, {"name": "Kerbe"}]})
KINDS = [kind for kind in PromptKind if kind is not PromptKind.FREE]


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("Is there a short?", PromptKind.EXISTS, "short"),
        ("are there any pin_hole", PromptKind.EXISTS, "pin_hole"),
        ("count spur", PromptKind.COUNT, "spur"),
        ("How many  open ?", PromptKind.COUNT, "open"),
        ("locate the mousebite.", PromptKind.LOCATE, "mousebite"),
        ("where is short", PromptKind.LOCATE, "short"),
        ("Describe the part", PromptKind.DESCRIBE, None),
        ("inspect", PromptKind.INSPECT, None),
        ("classify the image.", PromptKind.CLASSIFY, None),
        ("what colour is the solder mask?", PromptKind.FREE, None),
    ],
)
def test_prompts_are_recognised(text: str, kind: PromptKind, target: str | None) -> None:
    prompt = parse_prompt(text, PCB)
    assert (prompt.kind, prompt.target) == (kind, target)


def test_prompt_errors() -> None:
    with pytest.raises(UnknownLabelError):
        parse_prompt("is there a dragon?", PCB)
    for bad in ("  ", "x" * 3000):
        with pytest.raises(InvalidRequestError):
            parse_prompt(bad, PCB)
    with pytest.raises(InvalidRequestError):
        build_prompt(PromptKind.LOCATE, PCB.label_names)


def test_reference_is_part_of_the_prompt() -> None:
    texts = {build_prompt(PromptKind.INSPECT, ("open",), reference=r).text for r in (False, True)}
    assert len(texts) == 2


def _prompt(kind: PromptKind, recipe: Recipe) -> Prompt:
    return build_prompt(kind, recipe.label_names, recipe.label_names[1])


@pytest.mark.parametrize("recipe", [PCB, SPELT], ids=["one-token", "spelt"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_allowed_path_parses(tokenizer: InspectionTokenizer, recipe: Recipe, kind: PromptKind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grammar = AnswerGrammar(tokenizer, _prompt(kind, recipe), max_items=3)
    state, ids = grammar.start(), []
    while not grammar.done(state) and len(ids) < 60:
        allowed = grammar.allowed(state)
        assert len(allowed)
        ids.append(int(rng.choice(allowed)))
        state = grammar.advance(state, ids[-1])
    parsed = parse_answer(grammar, ids, [0.5] * len(ids))
    assert parsed.defective is (ids[0] == tokenizer.ng_id)
    assert len(parsed.items) <= 3
    for item in parsed.items:
        x1, y1, x2, y2 = item.box
        assert 0 <= x1 < x2 <= 1
        assert 0 <= y1 < y2 <= 1
        assert item.label in recipe.label_names
        assert 0 < item.confidence <= 0.5
    if kind in (PromptKind.INSPECT, PromptKind.LOCATE) and grammar.done(state):
        assert bool(parsed.items) == parsed.defective


_BOX = st.tuples(*[st.floats(0, 0.9)] * 2, *[st.floats(0.02, 1)] * 2).map(
    lambda b: (b[0], b[1], min(1.0, b[0] + b[2]), min(1.0, b[1] + b[3]))
)


@pytest.mark.parametrize("recipe", [PCB, SPELT], ids=["one-token", "spelt"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_right_answer_is_allowed_and_comes_back(
    tokenizer: InspectionTokenizer, recipe: Recipe, data: st.DataObject
) -> None:
    target = st.builds(lambda label, box: Target(label=label, box=box), st.sampled_from(recipe.label_names), _BOX)
    targets = data.draw(st.lists(target, max_size=4))
    kind = data.draw(st.sampled_from(KINDS))
    prompt = _prompt(kind, recipe)
    image_class = targets[0].label if targets else None
    ids = answer_ids(
        tokenizer, prompt, targets, image_class=image_class, describe="board: no defects", defective=bool(targets)
    )
    grammar = AnswerGrammar(tokenizer, prompt)
    state = grammar.start()
    for token in ids:
        assert token in grammar.allowed(state)
        state = grammar.advance(state, token)
    assert grammar.done(state)
    parsed = parse_answer(grammar, ids)
    named = [t for t in reading_order(targets) if t.label in prompt.labels]
    if kind in (PromptKind.INSPECT, PromptKind.LOCATE):
        assert [i.label for i in parsed.items] == [t.label for t in named]
        for item, true in zip(parsed.items, named, strict=True):
            assert np.allclose(item.box, true.box, atol=1.01 / 127)
    elif kind is PromptKind.COUNT:
        assert parsed.count == len(named)
    elif kind is PromptKind.CLASSIFY:
        assert parsed.label == image_class
    elif kind is PromptKind.DESCRIBE:
        assert parsed.text == "board: no defects"


def test_a_cut_off_answer_keeps_its_complete_items(tokenizer: InspectionTokenizer) -> None:
    grammar = AnswerGrammar(tokenizer, build_prompt(PromptKind.INSPECT, PCB.label_names))
    ids = answer_ids(
        tokenizer,
        grammar.prompt,
        [Target(label="open", box=(0.1, 0.1, 0.2, 0.2)), Target(label="short", box=(0.1, 0.6, 0.2, 0.7))],
        image_class=None,
        describe="",
        defective=True,
    )
    assert [i.label for i in parse_answer(grammar, ids[:-3]).items] == ["open"]


def test_item_confidence_is_the_product_over_the_label(tokenizer: InspectionTokenizer) -> None:
    grammar = AnswerGrammar(tokenizer, build_prompt(PromptKind.INSPECT, SPELT.label_names))
    ids = answer_ids(
        tokenizer,
        grammar.prompt,
        [Target(label="chipped_rim", box=(0.1, 0.1, 0.2, 0.2))],
        image_class=None,
        describe="",
        defective=True,
    )
    length = len(tokenizer.label_ids("chipped_rim"))
    assert length > 1
    probabilities = [0.9] + [0.5] * length + [0.7] * 4 + [1.0]
    assert parse_answer(grammar, ids, probabilities).items[0].confidence == pytest.approx(0.5**length)


def test_quantised_boxes_keep_an_area() -> None:
    for box in ((0.5, 0.5, 0.5, 0.5), (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0)):
        x1, y1, x2, y2 = quantise_box(*box)
        assert 0 <= x1 < x2 <= 127
        assert 0 <= y1 < y2 <= 127
