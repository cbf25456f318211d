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
    SharedMemoryOverwrittenError,
    UnknownLabelError,
)
from auroraedge.inspection.grammar import AnswerGrammar
from auroraedge.inspection.grounding import evidence_items, item_tokens
from auroraedge.inspection.prompts import PromptKind, build_prompt
from auroraedge.inspection.raw import raw_frame
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.results import Answer, Box, InspectionResult, Region, RequestInfo, Verdict
from auroraedge.runtime import DEFAULT_ENGINE, FrameItem, InspectionJob, Inspector
from auroraedge.runtime.engine import EnginePackage
from auroraedge.runtime.generation import Row, generate, stream

PCB, TILE, STRIP = load_recipe("pcb"), load_recipe("magnetic_tile"), load_recipe("steel_strip")
# Four views of a board, each seen once: a quarter of the work.
PCB = PCB.model_copy(update={"tiling": PCB.tiling.model_copy(update={"mirrored": False})})


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


def test_regions_are_frames_of_their_own(inspector: Inspector) -> None:
    """The views of a region are those of the cropped frame, so the answer must be, moved by the region's corner."""
    image = np.ascontiguousarray(np.random.default_rng(5).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    lenient = TILE.thresholds.model_copy(update={"ok_below": 0.0, "ng_above": 0.0, "defect_confidence": 0.0})
    tiling = TILE.tiling.model_copy(update={"mode": "square", "size_px": 96, "overlap_px": 16})
    recipe = TILE.model_copy(update={"thresholds": lenient, "tiling": tiling})
    regions = [Region(name="left", x=11, y=20, width=130, height=100), Region(x=250, y=150, width=96, height=121)]
    whole = inspector.inspect(image, recipe, regions=regions)
    assert [found.region.name for found in whole.regions] == ["left", "region-2"]
    for region, found in zip(regions, whole.regions, strict=True):
        rows, columns = slice(region.y, region.y + region.height), slice(region.x, region.x + region.width)
        alone = inspector.inspect(image[rows, columns], recipe)
        assert found.verdict is alone.verdict and found.views == alone.views
        assert found.ng_probability == pytest.approx(alone.ng_probability, abs=1e-4)
        mine = [d for d in whole.defects if d.region == found.region.name]
        assert len(mine) == len(alone.defects) > 0
        for defect, other in zip(
            sorted(mine, key=lambda d: d.box.model_dump_json()),
            sorted(
                (
                    d.model_copy(
                        update={
                            "box": Box(
                                x1=d.box.x1 + region.x,
                                y1=d.box.y1 + region.y,
                                x2=d.box.x2 + region.x,
                                y2=d.box.y2 + region.y,
                            )
                        }
                    )
                    for d in alone.defects
                ),
                key=lambda d: d.box.model_dump_json(),
            ),
            strict=True,
        ):
            assert defect.label == other.label
            assert defect.box.model_dump() == pytest.approx(other.box.model_dump(), abs=1e-6)
            assert region.x <= defect.box.x1 < defect.box.x2 <= region.x + region.width
    assert whole.ng_probability == max(found.ng_probability for found in whole.regions)
    assert whole.views == sum(found.views for found in whole.regions)
    assert InspectionResult.model_validate_json(whole.model_dump_json()) == whole
    assert inspector.inspect(image, recipe).regions == ()


def test_a_region_that_shows_nothing_is_looked_at_by_a_person(inspector: Inspector) -> None:
    thresholds = TILE.thresholds.model_copy(update={"ok_below": 1.0, "ng_above": 1.0})
    recipe = TILE.model_copy(update={"thresholds": thresholds})
    image = np.array(_jobs()[1].image)
    image[:100, :100] = 7
    regions = [Region(name="dark", x=0, y=0, width=100, height=100), Region(x=0, y=100, width=100, height=100)]
    result = inspector.inspect(image, recipe, regions=regions)
    assert [found.verdict for found in result.regions] == [Verdict.REVIEW, Verdict.OK]
    assert result.verdict is Verdict.REVIEW and result.warnings[0].startswith("A region")


@pytest.mark.parametrize(
    ("regions", "field"),
    [
        ([Region(x=0, y=0, width=10, height=10), Region(x=300, y=0, width=10_000, height=1)], "regions[1]"),
        ([Region(name="a", x=0, y=0, width=9, height=9), Region(name="a", x=1, y=1, width=9, height=9)], "regions[1]."),
        ([Region(x=0, y=i, width=9, height=9) for i in range(65)], "regions"),
    ],
)
def test_regions_that_cannot_be_inspected_are_named(inspector: Inspector, regions: list[Region], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        inspector.inspect(_jobs()[1].image, TILE, regions=regions)
    assert caught.value.field.startswith(field)


def test_recipes_and_prompts_share_a_frame(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each distinct set of views is encoded once, and every outcome is that of a call of its own."""
    job = _jobs()[0]
    region = (Region(name="corner", x=3, y=4, width=200, height=100),)
    items = [
        FrameItem(recipe=PCB),
        FrameItem(recipe=TILE, request=RequestInfo(request_id="tile")),
        FrameItem(recipe=TILE, prompt="count crack"),
        FrameItem(recipe=PCB, prompt="is there a dragon?"),
        FrameItem(recipe=STRIP, regions=region),
        FrameItem(recipe=PCB, prompt="locate open"),
        FrameItem(recipe=PCB, prompt="what is this?"),
        FrameItem(recipe=TILE, regions=(Region(x=9, y=9, width=9999, height=1),)),
    ]
    alone: list[InspectionResult | Answer] = [
        inspector.inspect(job.image, PCB, reference=job.reference),
        inspector.inspect(job.image, TILE, request=RequestInfo(request_id="tile")),
        inspector.ask(job.image, "count crack", TILE),
        inspector.inspect(job.image, STRIP, regions=region),
        inspector.ask(job.image, "locate open", PCB, reference=job.reference),
        inspector.ask(job.image, "what is this?", PCB, reference=job.reference),
    ]
    encode, sizes = inspector._package.encode, []
    monkeypatch.setattr(inspector._package, "encode", lambda p: sizes.append(len(p)) or encode(p))
    together = inspector.inspect_many(job.image, items, reference=job.reference)
    tile_views, strip_views = (
        int(alone[i].views) * (4 if r.tiling.mirrored else 1) for i, r in ((1, TILE), (3, STRIP))
    )
    assert sizes == [4 + tile_views + strip_views + 1]
    assert isinstance(together[3], UnknownLabelError) and isinstance(together[7], InvalidRequestError)
    assert together[7].field == "regions[0]"
    free = {"timings", "ng_probability", "result_id", "created_at", "defects", "class_probability", "regions"}
    for one, other in zip(alone, [together[i] for i in (0, 1, 2, 4, 5, 6)], strict=True):
        assert type(one) is type(other)
        assert one.model_dump(exclude=free) == other.model_dump(exclude=free)
        assert one.ng_probability == pytest.approx(other.ng_probability, abs=1e-4)
        assert [d.label for d in one.defects] == [d.label for d in other.defects]
    assert inspector.inspect_many(job.image, []) == []
    with pytest.raises(InvalidImageError):
        inspector.inspect_many(b"no image", items)


def test_more_prompts_than_fit_one_batch_still_encode_once(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _jobs()[0]
    encode, sizes = inspector._package.encode, []
    monkeypatch.setattr(inspector._package, "encode", lambda p: sizes.append(len(p)) or encode(p))
    monkeypatch.setattr("auroraedge.runtime.inspector._MAX_ROWS", 8)
    answers = inspector.ask_all(job.image, ["describe"] * 5, PCB, reference=job.reference)
    assert sizes == [4] and len({answer.text for answer in answers}) == 1


def test_a_reference_that_cannot_be_used_harms_only_what_needs_it(inspector: Inspector) -> None:
    items = [FrameItem(recipe=PCB), FrameItem(recipe=TILE)]
    for reference in (None, b"no image", np.zeros((9, 9, 3), np.uint8)):
        needs, needs_not = inspector.inspect_many(_jobs()[1].image, items, reference=reference)
        assert isinstance(needs, ReferenceRequiredError | InvalidImageError) and needs.field == "reference"
        assert isinstance(needs_not, InspectionResult)


def test_a_frame_that_changes_under_the_inspection_has_no_verdict(inspector: Inspector) -> None:
    memory = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    h, w = memory.shape[:2]
    looks: list[int] = []

    def verify() -> None:
        looks.append(1)
        if len(looks) > 1:  # after the decoding, while the views are cut
            raise SharedMemoryOverwrittenError("The slot was written to.", field="frame.shared_memory")

    frame = raw_frame(memory.tobytes(), w, h, 0, "RGB8", verify=verify)
    for call in (
        lambda: inspector.inspect(frame, TILE),
        lambda: inspector.inspect_many(frame, [FrameItem(recipe=TILE)]),
    ):
        looks.clear()
        with pytest.raises(SharedMemoryOverwrittenError):
            call()


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


@pytest.mark.skipif(not (DEFAULT_ENGINE / "manifest.json").is_file(), reason="the embedded engine is not built")
def test_a_defect_outside_the_region_is_not_reported() -> None:
    """Quarters of generated boards: each one's verdict follows its own defects, and none are found elsewhere."""
    quarters = [Region(name=f"{x},{y}", x=x, y=y, width=320, height=320) for y in (0, 320) for x in (0, 320)]
    right = seen = 0
    with Inspector.open(threads=2) as inspector:
        for seed in range(3):
            part = generate_board(np.random.default_rng(200 + seed), size=640, n_defects=2)
            for region in quarters:
                inside = [
                    box
                    for _, box in part.objects
                    if box[0] < region.x + 320 and box[2] > region.x and box[1] < region.y + 320 and box[3] > region.y
                ]
                result = inspector.inspect(part.image, PCB, reference=part.reference, regions=[region])
                for defect in result.defects:
                    assert defect.box is not None
                    assert region.x <= defect.box.x1 and defect.box.x2 <= region.x + 320
                    assert region.y <= defect.box.y1 and defect.box.y2 <= region.y + 320
                right += (result.verdict is Verdict.NG) == bool(inside)
                seen += 1
    assert seen == 12 and right >= 10
