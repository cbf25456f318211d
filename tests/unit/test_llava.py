"""LLaVA JSON, tar shards and their mix: read right, the same on any number of processes, resumed exactly."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("webdataset")
from scale_support import phrase, picture, stage, write_llava, write_shards  # noqa: E402

from auroraedge.errors import DatasetError, TrainingError  # noqa: E402
from auroraedge.inspection.tokenizer import InspectionTokenizer  # noqa: E402
from auroraedge.train.batches import token_weights  # noqa: E402
from auroraedge.train.conversations import CAPTION_PROMPTS, TextLimits, exchanges_of, make_conversation  # noqa: E402
from auroraedge.train.feeds import (  # noqa: E402
    DataSpec,
    Feed,
    parse_data,
    positions_from_json,
    positions_to_json,
)
from auroraedge.train.llava import LlavaFile  # noqa: E402
from auroraedge.train.scale_settings import ScaleStage, load_scale_recipe  # noqa: E402
from auroraedge.train.shards import ShardLanes  # noqa: E402

LIMITS = TextLimits()
IMAGE = np.full((20, 30, 3), 7, dtype=np.uint8)


def _record(*turns: tuple[str, str]) -> dict[str, object]:
    return {"image": "000.png", "conversations": [{"from": who, "value": text} for who, text in turns]}


def test_conversations_become_prompts_and_answers(tokenizer: InspectionTokenizer) -> None:
    pairs = exchanges_of(
        _record(("human", "<image>\nWhat is it?"), ("gpt", "a board"), ("human", "How many?"), ("gpt", "2")), "here"
    )
    assert pairs == [("What is it?", "a board"), ("How many?", "2")]
    assert exchanges_of({"question": " why? ", "answer": "so"}, "here") == [("why?", "so")]
    (prompt, answer), *more = exchanges_of({"caption": "a red part"}, "here")
    assert prompt in CAPTION_PROMPTS and answer == "a red part" and not more
    sample = make_conversation(IMAGE, pairs, tokenizer, LIMITS)
    assert [p.text for p in sample.prompts] == ["What is it?", "How many?"]
    assert [tokenizer.decode(a) for a in sample.answers] == ["a board", "2"]
    assert all(a[-1] == tokenizer.eos_id for a in sample.answers)
    assert sample.pixels.shape == (256, 256, 3)


def test_long_texts_are_cut(tokenizer: InspectionTokenizer) -> None:
    """Of a prompt the end stays; a cut answer has no <eos>; further exchanges come in later epochs."""
    limits = TextLimits(prompt=5, answer=4, exchanges=2)
    pairs = [(f"{'very ' * 30}long {i}", "much longer than four tokens in any case") for i in range(5)]
    sample = make_conversation(IMAGE, pairs, tokenizer, limits)
    assert len(sample.prompts) == 2 and sample.prompts[1].text.endswith("1")
    assert all(len(a) == 4 and a[-1] != tokenizer.eos_id for a in sample.answers)
    later = [make_conversation(IMAGE, pairs, tokenizer, limits, turn=t).prompts[0].text[-1] for t in range(5)]
    assert set(later) == {"0", "2", "4", "1", "3"}


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (_record(("gpt", "first")), "before any question"),
        (_record(("human", "alone")), "no question has an answer"),
        (_record(("robot", "x"), ("gpt", "y")), "from 'robot'"),
        ({"conversations": "text"}, "not a list"),
        ({"conversations": [{"from": "human"}]}, "lacks"),
        ({"image": "a.png"}, "neither 'conversations'"),
    ],
)
def test_wrong_records_are_named(record: dict[str, object], match: str) -> None:
    with pytest.raises(DatasetError, match=match) as caught:
        exchanges_of(record, "chat.json, record 7")
    assert "record 7" in caught.value.message


def test_a_llava_file(tokenizer: InspectionTokenizer, tmp_path: Path) -> None:
    path = write_llava(tmp_path / "a")
    file = LlavaFile("chat", path, path.parent / "images", tokenizer, LIMITS)
    assert (len(file), file.skipped) == (10, 1)
    order = np.arange(10)
    assert tokenizer.decode(file.draw(order, 3, 0).answers[1]) == phrase(31)
    # JSON lines are the same data.
    lines = tmp_path / "a" / "chat.jsonl"
    lines.write_text("\n".join(json.dumps(r) for r in json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    assert file.record(4) == LlavaFile("chat", lines, path.parent / "images", tokenizer, LIMITS).record(4)
    # An image that cannot be read gives way to the next one; none that can is an error.
    (path.parent / "images" / "003.png").write_bytes(b"no image")
    assert tokenizer.decode(file.draw(order, 3, 0).answers[0]) == phrase(40)
    for image in (path.parent / "images").iterdir():
        image.unlink()
    with pytest.raises(DatasetError, match="10 images in a row"):
        file.draw(order, 0, 0)
    for wrong, match in (("[1]", "not an object"), ("[]", "no record with an image"), ("[{", "not JSON")):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(DatasetError, match=match):
            LlavaFile("chat", path, path.parent / "images", tokenizer, LIMITS)


def _lanes(pattern: str, tokenizer: InspectionTokenizer, **changes: object) -> ShardLanes:
    return ShardLanes("captions", pattern, tokenizer, LIMITS, **{"lanes": 2, "seed": 1, **changes})  # type: ignore[arg-type]


def test_shards_are_dealt_shuffled_and_resumed(tokenizer: InspectionTokenizer, tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "s", shards=4, samples=3)

    def drawn(lanes: ShardLanes, lane: int, count: int) -> list[str]:
        return [tokenizer.decode(lanes.next(lane).answers[0]) for _ in range(count)]

    both = _lanes(pattern, tokenizer)
    first = [drawn(both, lane, 6) for lane in (0, 1)]
    everything = {phrase(100 + 10 * shard + i) for shard in range(4) for i in range(3)}
    assert set(first[0]) | set(first[1]) == everything and not set(first[0]) & set(first[1])
    assert first[0] != drawn(both, 0, 6)  # another epoch, another order
    # From any position on, and with the other lane in another process, the same samples follow.
    for cut in (0, 2, 3, 5, 7):
        one = _lanes(pattern, tokenizer)
        drawn(one, 0, cut)
        further = drawn(one, 0, 4)
        again = _lanes(pattern, tokenizer)
        drawn(again, 0, cut)
        stored = positions_from_json(json.loads(json.dumps(positions_to_json({"x": again.positions()}))))["x"]
        assert drawn(_lanes(pattern, tokenizer, positions=stored), 0, 4) == further


def test_wrong_shards_are_named(tokenizer: InspectionTokenizer, tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "s", shards=2)
    with pytest.raises(DatasetError, match="no shard"):
        _lanes(str(tmp_path / "nothing-{0..1}.tar"), tokenizer)
    with pytest.raises(DatasetError, match="cannot be dealt to 8 lanes"):
        _lanes(pattern, tokenizer, lanes=8)
    for shard in (tmp_path / "s").iterdir():
        shard.write_bytes(b"not a tar file" * 100)
    with pytest.raises(DatasetError, match="cannot be read as a tar file"):
        _lanes(pattern, tokenizer).next(0)


def _feed(tmp_path: Path, tokenizer: InspectionTokenizer, **changes: object) -> Feed:
    if not (tmp_path / "a").exists():
        write_llava(tmp_path / "a")
        write_shards(tmp_path / "s", shards=4)
    data = {
        "chat": DataSpec(format="llava", path=str(tmp_path / "a" / "chat.json"), images=str(tmp_path / "a" / "images")),
        "captions": DataSpec(format="webdataset", path=f"{tmp_path}/s/part-{{000..003}}.tar"),
    }
    mix = {"chat": 0.4, "captions": 0.4, "generated_ground": 0.2}
    settings = ScaleStage.model_validate(stage(steps=5, batch_size=6, samples=30, micro_batch=2, mix=mix))
    weights = token_weights(tokenizer, tokenizer.vocab_size)
    options = {"seed": 4, "streams": 2, "workers": 2, **changes}
    return Feed(settings, 1, data, tokenizer, weights, **options)  # type: ignore[arg-type]


def _texts(share: object) -> list[str]:
    return [f"{s.source}: {p.text}" for batch in share.micro for s in batch.samples for p in s.prompts]  # type: ignore[attr-defined]


def test_an_update_is_the_same_on_any_number_of_processes(tokenizer: InspectionTokenizer, tmp_path: Path) -> None:
    whole = [_texts(share) for share in _feed(tmp_path, tokenizer).shares(0)]
    split = [list(_feed(tmp_path, tokenizer, rank=r, processes=2).shares(0)) for r in range(2)]
    assert len(whole) == 5 and {t.split(":")[0] for step in whole for t in step} == {
        "chat",
        "captions",
        "generated_ground",
    }
    for step, texts in enumerate(whole):
        assert sorted(texts) == sorted(t for process in split for t in _texts(process[step]))
    # Resumed in the middle, with the positions of the update before.
    before = next(islice(_feed(tmp_path, tokenizer).shares(0), 2, None))
    resumed = _feed(tmp_path, tokenizer, positions=before.positions).shares(3)
    assert [_texts(share) for share in resumed] == whole[3:]


def test_data_arguments(tmp_path: Path) -> None:
    found = parse_data(["chat=a.json", "captions=s-{0..9}.tar"])
    assert (found["chat"].format, found["captions"].format) == ("llava", "webdataset")
    (tmp_path / "data.yaml").write_text("x: {format: llava, path: a.json, images: b}", encoding="utf-8")
    assert parse_data([str(tmp_path / "data.yaml")])["x"].images == "b"
    (tmp_path / "data.yaml").write_text("x: {format: parquet, path: a}", encoding="utf-8")
    for wrong in (str(tmp_path / "data.yaml"), str(tmp_path / "none.yaml")):
        with pytest.raises(DatasetError, match="does not describe data"):
            parse_data([wrong])


def test_a_source_that_is_not_given(tokenizer: InspectionTokenizer) -> None:
    settings = ScaleStage.model_validate(stage(mix={"questions": 1.0}))
    with pytest.raises(TrainingError, match="reads 'questions', which --data does not give"):
        Feed(settings, 0, {}, tokenizer, np.ones(1), seed=0, streams=1, workers=1)


def test_the_shipped_recipe_has_the_three_stages_of_the_paper() -> None:
    recipe = load_scale_recipe("2b")
    assert [set(s.learning_rate) for s in recipe.stages] == [
        {"connectors"},
        {"connectors", "decoder"},
        {"encoder", "connectors", "decoder"},
    ]
    assert recipe.stages[0].mix == {"captions": 1.0}
    assert max(recipe.stages[2].learning_rate.values()) < min(recipe.stages[0].learning_rate.values()) / 10
    recipe.check_processes(8)
    with pytest.raises(TrainingError, match="no multiple of 7 processes"):
        recipe.check_processes(7)
    first = recipe.stages[0]
    assert first.steps == 2180 and first.rate(0) < 0.02 and first.rate(66) == pytest.approx(1, abs=1e-3)
    assert first.rate(first.steps - 1) < 1e-5


def test_pictures_differ() -> None:
    assert picture(0) != picture(1)
