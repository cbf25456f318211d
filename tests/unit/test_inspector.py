"""The runtime on a real (random) engine: batches, prompts, thresholds, and what must raise instead of passing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from auroraedge.data.synthetic import generate_board, generate_ground_surface, generate_rolled_surface
from auroraedge.errors import (
    EngineDamagedError,
    EngineNotFoundError,
    InvalidImageError,
    InvalidRequestError,
    ReferenceRequiredError,
    UnknownLabelError,
)
from auroraedge.inspection.grammar import AnswerGrammar
from auroraedge.inspection.grounding import evidence_items, item_tokens
from auroraedge.inspection.prompts import PromptKind, build_prompt
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.results import InspectionResult, Verdict
from auroraedge.runtime import DEFAULT_ENGINE, InspectionJob, Inspector
from auroraedge.runtime.engine import EnginePackage
from auroraedge.runtime.generation import Row, generate, stream

PCB, TILE, STRIP = load_recipe("pcb"), load_recipe("magnetic_tile"), load_recipe("steel_strip")


@pytest.fixture(scope="module")
def inspector(tiny_engine) -> Inspector:
    return Inspector.open(tiny_engine.int8, threads=1)


def _jobs() -> list[InspectionJob]:
    rng = np.random.default_rng(0)
    board = generate_board(rng, size=640, n_defects=5)
    tile, strip = generate_ground_surface(rng), generate_rolled_surface(rng)
    return [
        InspectionJob(image=board.image, reference=board.reference, recipe=PCB),
        InspectionJob(image=tile.image, recipe=TILE),
        InspectionJob(image=strip.image, recipe=STRIP),
    ]


def _essence(result: InspectionResult) -> dict:
    return result.model_dump(exclude={"result_id", "created_at", "timings", "ng_probability", "defects"})


def test_alone_or_in_a_batch_the_answer_is_the_same(inspector: Inspector) -> None:
    jobs = _jobs()
    together = inspector.inspect_batch(jobs)
    for job, result in zip(jobs, together, strict=True):
        assert isinstance(result, InspectionResult)
        alone = inspector.inspect(job.image, job.recipe, reference=job.reference)
        assert _essence(alone) == _essence(result)
        assert alone.ng_probability == pytest.approx(result.ng_probability, abs=1e-4)
        assert [d.label for d in alone.defects] == [d.label for d in result.defects]
    assert {r.views for r in together if isinstance(r, InspectionResult)} == {4, 1}


def test_a_bad_frame_does_not_harm_its_neighbours(inspector: Inspector) -> None:
    good = _jobs()[1]
    outcomes = inspector.inspect_batch([good, InspectionJob(image=b"not an image", recipe=TILE), good])
    assert isinstance(outcomes[1], InvalidImageError)
    assert isinstance(outcomes[0], InspectionResult)
    assert isinstance(outcomes[2], InspectionResult)


def test_thresholds_decide_the_verdict(inspector: Inspector) -> None:
    job = _jobs()[1]
    p = inspector.inspect(job.image, TILE).ng_probability
    assert p is not None
    for ok_below, ng_above, expected in (
        (min(1.0, p + 1e-3), 1.0, Verdict.OK),
        (0.0, max(0.0, p - 1e-3), Verdict.NG),
        (max(0.0, p - 1e-3), min(1.0, p + 1e-3), Verdict.REVIEW),
    ):
        thresholds = TILE.thresholds.model_copy(update={"ok_below": ok_below, "ng_above": ng_above})
        result = inspector.inspect(job.image, TILE.model_copy(update={"thresholds": thresholds}))
        assert result.verdict is expected
        assert not (expected is Verdict.OK and result.defects)


def test_a_frame_that_shows_nothing_is_never_ok(inspector: Inspector) -> None:
    """Light off, lens covered: the model may call that good, the product must not."""
    thresholds = TILE.thresholds.model_copy(update={"ok_below": 1.0, "ng_above": 1.0})
    lenient = TILE.model_copy(update={"thresholds": thresholds})
    for level in (0, 128, 255):
        result = inspector.inspect(np.full((300, 200, 3), level, np.uint8), lenient)
        assert result.verdict is Verdict.REVIEW
        assert "uniform" in result.warnings[0]
    assert inspector.inspect(_jobs()[1].image, lenient).verdict is Verdict.OK


def test_the_verdict_comes_first(inspector: Inspector) -> None:
    seen: list[InspectionResult] = []
    job = _jobs()[0]
    final = inspector.inspect(job.image, PCB, reference=job.reference, on_verdict=seen.append)
    assert [r.is_partial for r in seen] == [True]
    assert seen[0].verdict is final.verdict
    assert not final.is_partial
    assert final.timings.verdict_ms <= final.timings.total_ms


def test_results_say_what_was_inspected_and_by_whom(inspector: Inspector) -> None:
    job = _jobs()[0]
    result = inspector.inspect(job.image, PCB, reference=job.reference)
    assert result.recipe_sha256 == PCB.sha256
    assert result.engine_sha256 == inspector.engine.engine_sha256
    assert (result.image_width, result.image_height) == (640, 640)
    assert len(result.image_sha256) == 64
    assert result.reference_used
    assert InspectionResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize(
    "prompt", ["is there a short?", "count spur", "locate open", "describe", "classify", "inspect"]
)
def test_every_prompt_kind_is_answered(inspector: Inspector, prompt: str) -> None:
    job = _jobs()[0]
    answer = inspector.ask(job.image, prompt, PCB, reference=job.reference)
    assert answer.verdict in set(Verdict)
    if answer.kind is PromptKind.COUNT:
        assert answer.text == str(answer.count)
    if answer.kind is PromptKind.LOCATE:
        assert {d.label for d in answer.defects} <= {"open"}


def test_several_prompts_encode_the_frame_once(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    job = _jobs()[0]
    prompts = ["inspect", "is there a short?", "count spur", "locate open", "classify", "describe", "what is this?"]
    alone = [inspector.ask(job.image, prompt, PCB, reference=job.reference) for prompt in prompts]
    encode, sizes = inspector._package.encode, []
    monkeypatch.setattr(inspector._package, "encode", lambda p: sizes.append(len(p)) or encode(p))
    together = inspector.ask_all(job.image, prompts, PCB, reference=job.reference)
    assert sizes == [4 + 1]  # the tiles, and the whole frame for the free prompt
    for one, other in zip(alone, together, strict=True):
        assert one.model_dump(exclude={"timings", "ng_probability"}) == other.model_dump(
            exclude={"timings", "ng_probability"}
        )
        assert one.ng_probability == pytest.approx(other.ng_probability, abs=1e-4)
    assert inspector.ask_all(job.image, [], PCB, reference=job.reference) == []


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_class_follows_the_verdict_of_the_thresholds(inspector: Inspector, mirrored: bool) -> None:
    """Whatever the model's own verdict token: a class unless the frame is OK, none if it is."""
    tiling = STRIP.tiling.model_copy(update={"mirrored": mirrored})
    image = _jobs()[2].image
    for ok_below, ng_above, expected in ((1.0, 1.0, Verdict.OK), (0.0, 0.0, Verdict.NG), (0.0, 1.0, Verdict.REVIEW)):
        thresholds = STRIP.thresholds.model_copy(update={"ok_below": ok_below, "ng_above": ng_above})
        recipe = STRIP.model_copy(update={"thresholds": thresholds, "tiling": tiling})
        result = inspector.inspect(image, recipe)
        assert result.verdict is expected
        assert (result.predicted_class is None) == (expected is Verdict.OK)
        assert (result.class_probability is None) == (expected is Verdict.OK)
        assert result.answer_text.startswith("<OK>" if expected is Verdict.OK else "<NG>")
        answer = inspector.ask(image, "classify", recipe)
        assert answer.predicted_class == result.predicted_class


def test_free_prompts_stream(inspector: Inspector) -> None:
    job = _jobs()[1]
    tokens = list(inspector.generate(job.image, "what is this?", TILE, max_new_tokens=6))
    assert 1 <= len(tokens) <= 6
    assert [t.done for t in tokens] == [False] * (len(tokens) - 1) + [True]
    whole = inspector.ask(job.image, "what is this?", TILE)
    assert whole.verdict is None
    with pytest.raises(InvalidRequestError):
        next(inspector.generate(job.image, "x", TILE, max_new_tokens=0))


def test_bad_requests_raise(inspector: Inspector) -> None:
    board = _jobs()[0]
    with pytest.raises(ReferenceRequiredError):
        inspector.inspect(board.image, PCB)
    with pytest.raises(ReferenceRequiredError):
        inspector.inspect(board.image, PCB, reference=np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(UnknownLabelError):
        inspector.ask(board.image, "is there a dragon?", PCB, reference=board.reference)
    for bad in (b"", b"\x89PNG\r\n", np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InvalidImageError):
            inspector.inspect(bad, TILE)


def test_damaged_or_missing_engines_are_refused(tiny_engine, tmp_path: Path) -> None:
    with pytest.raises(EngineNotFoundError):
        Inspector.open(tmp_path / "nothing")
    copy = tmp_path / "engine"
    shutil.copytree(tiny_engine.int8, copy)
    data = bytearray((copy / "decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "decoder.onnx").write_bytes(data)
    with pytest.raises(EngineDamagedError, match=r"decoder\.onnx"):
        Inspector.open(copy)


def test_generation_is_the_torch_models(tiny_engine, tokenizer) -> None:
    """Unconstrained greedy tokens of the engine's own loop and of transformers' generate, from the same weights."""
    torch = pytest.importorskip("torch")
    package, model = EnginePackage(tiny_engine.fp32), tiny_engine.model
    patches = np.random.default_rng(2).integers(0, 256, (1, 256, 768), dtype=np.uint8)
    encoded = package.encode(patches)
    prompt = build_prompt(PromptKind.DESCRIBE, TILE.label_names)
    ids = np.array(tokenizer.encode(prompt.text))
    prefix = np.concatenate([encoded.compressed[0], package.fuse(ids, encoded.visual)[0]])

    class Anything(AnswerGrammar):
        def _allowed(self, state):  # type: ignore[no-untyped-def]
            return np.arange(package.manifest.decoder.vocab)

        def advance(self, state, token_id):  # type: ignore[no-untyped-def]
            return state

    row = Row(prefix=prefix, grammar=Anything(tokenizer, prompt), max_new_tokens=12)
    generate(package, [row])
    theirs = model.generate(
        torch.from_numpy(ids)[None],
        torch.from_numpy(patches).float() / 127.5 - 1,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
    )
    assert row.ids == theirs[0].tolist()


def test_rows_in_company_answer_as_alone(tiny_engine, tokenizer) -> None:
    """Different prompt lengths (left padding), forced tokens, rows that end early: none changes another row."""
    package = EnginePackage(tiny_engine.fp32)
    patches = np.random.default_rng(4).integers(0, 256, (3, 256, 768), dtype=np.uint8)
    encoded = package.encode(patches)
    spelt = ("chip", "chipped_rim")
    prompts = [
        build_prompt(PromptKind.INSPECT, PCB.label_names),
        build_prompt(PromptKind.EXISTS, TILE.label_names, "crack"),
        build_prompt(PromptKind.INSPECT, spelt),
    ]

    def row(i: int) -> Row:
        ids = np.array(tokenizer.encode(prompts[i].text))
        prefix = np.concatenate([encoded.compressed[i], package.fuse(ids, encoded.visual[i : i + 1])[0]])
        return Row(prefix=prefix, grammar=AnswerGrammar(tokenizer, prompts[i], max_items=3))

    together = [row(i) for i in range(3)]
    generate(package, together)
    for i in range(3):
        alone = row(i)
        generate(package, [alone])
        assert alone.ids == together[i].ids
        assert np.allclose(alone.probabilities, together[i].probabilities, atol=1e-4)
        assert alone.grammar.done(alone.state)
        streamed = row(i)
        assert list(stream(package, streamed)) == alone.ids


def test_evidence_becomes_items() -> None:
    labels = ("a", "b", "c")
    evidence = np.full((256, 1 + 3 + 4), -8.0, np.float32)
    evidence[:, -4:] = 0
    for cell, label, size in ((17, 1, 0.0), (18, 1, 0.0), (200, 2, np.log(2.0))):
        evidence[cell, 0] = 4.0
        evidence[cell, 1 + label] = 9.0
        evidence[cell, -2:] = size
    evidence[18, -4] = -1.0  # the same defect, seen from the neighbouring cell
    items = evidence_items(evidence, labels, labels)
    assert sorted(i.label for i in items) == ["b", "c"]
    found = {i.label: i for i in items}
    assert found["b"].box == pytest.approx((1 / 16, 1 / 16, 2 / 16, 2 / 16))
    assert found["c"].box == pytest.approx((7.5 / 16, 11.5 / 16, 9.5 / 16, 13.5 / 16), abs=0.07)
    assert all(0.9 < i.confidence <= 1 for i in items)
    assert evidence_items(evidence, labels, ("a", "b"))[0].label in ("a", "b")
    assert len(evidence_items(evidence, labels, labels, limit=1)) == 1
    evidence[:, 0] = -8
    assert evidence_items(evidence, labels, labels) == []


def test_item_tokens_parse_back(tokenizer) -> None:
    from auroraedge.inspection.grammar import ParsedItem, parse_answer

    grammar = AnswerGrammar(tokenizer, build_prompt(PromptKind.INSPECT, PCB.label_names))
    item = ParsedItem("short", (0.25, 0.5, 0.5, 0.75), 0.9)
    parsed = parse_answer(grammar, [tokenizer.ng_id, *item_tokens(tokenizer, [item]), tokenizer.eos_id])
    assert parsed.items[0].label == "short"
    assert parsed.items[0].box == pytest.approx(item.box, abs=1 / 127)


@pytest.mark.skipif(not (DEFAULT_ENGINE / "manifest.json").is_file(), reason="the embedded engine is not built")
def test_the_embedded_engine_knows_good_from_bad() -> None:
    """Sanity on generated parts, far from the figures of the evaluation: most verdicts and boxes are right."""
    with Inspector.open(threads=2) as inspector:
        right = hits = boxes = 0
        for seed in range(8):
            part = generate_board(np.random.default_rng(100 + seed), size=640, n_defects=4 * (seed % 2))
            result = inspector.inspect(part.image, PCB, reference=part.reference)
            right += (result.verdict is Verdict.NG) == bool(part.objects)
            for label, (x1, y1, x2, y2) in part.objects:
                boxes += 1
                hits += any(
                    d.label == label
                    and d.box
                    and x1 < (d.box.x1 + d.box.x2) / 2 < x2
                    and y1 < (d.box.y1 + d.box.y2) / 2 < y2
                    for d in result.defects
                )
        assert right >= 7
        assert hits >= 0.7 * boxes
        assert json.loads(result.model_dump_json())["model_id"] == "auroraedge-nano"
