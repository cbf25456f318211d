"""Benchmarks in MMAD's format: reading, scoring against known answers, resuming, and the free answers behind them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from auroraedge.errors import DatasetError, InvalidRequestError
from auroraedge.evaluate import mmad
from auroraedge.evaluate.mmad import Question, load_questions, parse_letter, run_mmad
from auroraedge.evaluate.respondent import Respondent, montage
from auroraedge.runtime import DEFAULT_ENGINE
from auroraedge.runtime.decoding import decoder_of

DETECT = {
    "Question": "Is there any defect in the object?",
    "Options": {"A": "Yes.", "B": "No."},
    "type": "Anomaly Detection",
}
KIND = {
    "Question": "What kind of defect is it?",
    "Options": {"A": "Hole.", "B": "Scratch.", "C": "Stain.", "D": "Crack."},
    "type": "Defect Classification",
}
DETAIL = {
    "Question": "What is the object made of?",
    "Options": {"A": "Steel.", "B": "Wood."},
    "type": "Object Details",
}


def _picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(60, 180, size=(64, 96, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Two data sets, four pictures with questions, one of them not there."""
    content = {
        "SetA/bolt/good/000.png": {"conversation": [{**DETECT, "Answer": "B"}, {**DETAIL, "Answer": "A"}]},
        "SetA/bolt/image/hole/001.png": {
            "mask_path": "mask/hole/001.png",
            "similar_templates": ["SetA/bolt/train/good/9.png"],
            "conversation": [{**DETECT, "Answer": "A"}, {**KIND, "Answer": "A"}],
        },
        "SetB/tile/test/stain/002.png": {"conversation": [{**DETECT, "Answer": "A"}, {**KIND, "Answer": "C"}]},
        "SetB/tile/test/good/absent.png": {"conversation": [{**DETECT, "Answer": "B"}]},
    }
    for seed, name in enumerate([*list(content)[:3], "SetA/bolt/train/good/9.png"]):
        _picture(tmp_path / name, seed)
    (tmp_path / "mmad.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


class _Fixed:
    """Says 'A' to everything; counts how often it was asked."""

    name = "always-a"
    asked = 0

    def close(self) -> None: ...


def _always_a(monkeypatch: pytest.MonkeyPatch) -> type[_Fixed]:
    _Fixed.asked = 0

    def answer(self: object, asked: object) -> tuple[str, str]:
        _Fixed.asked += 1
        return "A", ""

    monkeypatch.setattr(mmad.Respondent, "open", classmethod(lambda cls, engine, threads=None: _Fixed()))
    monkeypatch.setattr(mmad._Answerer, "answer", answer)
    return _Fixed


def test_scores_are_counted_as_the_paper_counts_them(benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _always_a(monkeypatch)
    report = run_mmad(benchmark, progress=False)
    assert (report.pictures, report.questions, report.missing_pictures) == (3, 6, 1)
    assert report.overall.accuracy.value == pytest.approx(4 / 6)
    assert report.overall.chance == pytest.approx((0.5 * 4 + 0.25 * 2) / 6)
    assert report.by_type["Object Analysis"].accuracy.value == 1.0  # Object Details under the paper's name
    assert report.detection_normal.value == 0.0 and report.detection_defective.value == 1.0
    # SetA: detection (0 + 1) / 2, kind 1, object 1; SetB: detection 1 (no normal picture), kind 0.
    assert report.average.value == pytest.approx(((0.5 + 1 + 1) / 3 + (1 + 0) / 2) / 2)
    assert report.average_chance == pytest.approx(((0.5 + 0.25 + 0.5) / 3 + (0.5 + 0.25) / 2) / 2)
    assert any("not there" in note for note in report.notes)


def test_a_run_goes_on_from_its_answers(benchmark: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fixed = _always_a(monkeypatch)
    out = tmp_path / "answers.jsonl"
    whole = run_mmad(benchmark, out=out, progress=False)
    lines = out.read_text(encoding="utf-8").splitlines()
    out.write_text("\n".join(lines[:4]) + "\n" + lines[4][:20], encoding="utf-8")  # killed in the fourth answer
    fixed.asked = 0
    again = run_mmad(benchmark, out=out, progress=False)
    assert fixed.asked == 3
    assert again.overall == whole.overall
    with pytest.raises(DatasetError, match="another run"):
        run_mmad(benchmark, answer_by="letter", out=out, progress=False)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", "mmad.json"),
        (
            '{"a/b/c.png": {"conversation": [{"Question": "?", "Answer": "C", "Options": {"A": "x", "B": "y"}}]}}',
            "type",
        ),
        (
            '{"a/b/c.png": {"conversation": [{"Question": "?", "Answer": "C", "Options": {"A": "x", "B": "y"}, '
            '"type": "t"}]}}',
            "none of the options",
        ),
        ('{"../b/c.png": {"conversation": []}}', "is not DATASET"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path: Path, broken: str, message: str) -> None:
    (tmp_path / "mmad.json").write_text(broken, encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        load_questions(tmp_path)
    assert message in f"{caught.value.field} {caught.value.message}"


def test_no_picture_and_no_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no mmad\.json"):
        load_questions(tmp_path)
    question = {**DETECT, "Answer": "A"}
    (tmp_path / "mmad.json").write_text(json.dumps({"a/b/c.png": {"conversation": [question]}}), encoding="utf-8")
    with pytest.raises(DatasetError, match="None of the pictures"):
        load_questions(tmp_path)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("Answer: C.", "C"),
        ("it is a crack", "D"),
        ("Z", ""),
        ("", ""),
        ("hole or scratch", ""),
        ("ABC", ""),
    ],
)
def test_letters_are_read_from_text(text: str, letter: str) -> None:
    assert parse_letter(text, KIND["Options"]) == letter  # type: ignore[arg-type]


# -- the embedded engine ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def respondent() -> Respondent:
    return Respondent.open(DEFAULT_ENGINE, threads=1)


def test_likelihoods_are_those_of_the_text_in_one_piece(respondent: Respondent) -> None:
    """The chain rule, against one pass over prompt and answer by hand."""
    image = np.random.default_rng(0).integers(0, 255, size=(80, 60, 3), dtype=np.uint8)
    engine, prompt, answer = respondent._engine, "what is on the part?", "2 short"
    found = respondent.log_likelihoods(image, prompt, [answer, "short"])
    ids = engine.tokenizer.encode(answer)
    prefix = respondent._prefix(image, prompt, None)
    expected = 0.0
    for place, token in enumerate(ids):
        cache = decoder_of(engine.decoder, engine.manifest.decoder).start(1)
        rows = np.concatenate([prefix, engine.embed(np.array(ids[:place], dtype=np.int64))])
        logits = cache.feed(rows[None].astype(np.float32), np.ones((1, len(rows)), dtype=np.float32))[0]
        cache.close()
        scores = logits[respondent._text_ids].astype(np.float64)
        expected += float(logits[token]) - float(np.log(np.exp(scores).sum()))
    assert found[0].tokens == len(ids) > 1
    assert found[0].log_likelihood == pytest.approx(expected, abs=1e-3)
    assert found[0].log_likelihood < 0 and found[1].tokens < found[0].tokens


def test_what_is_generated_is_greedy_and_ends_where_asked(respondent: Respondent) -> None:
    image = np.random.default_rng(1).integers(0, 255, size=(64, 64, 3), dtype=np.uint8)
    text = respondent.generate(image, "describe the part please", max_new_tokens=6)
    assert text
    tokens = respondent._engine.tokenizer.encode(text)
    if respondent._engine.tokenizer.decode(tokens) == text and len(tokens) <= 6:
        assert respondent.log_likelihoods(image, "describe the part please", [text])[0].greedy
    stop = text[len(text) // 2]
    assert respondent.generate(image, "describe the part please", max_new_tokens=6, until=[stop]) == text.split(stop)[0]
    with pytest.raises(InvalidRequestError, match="tokens"):
        respondent.generate(image, "word " * 3000)


def test_several_pictures_become_one() -> None:
    wide = montage([np.zeros((40, 20, 3), np.uint8), np.full((80, 80, 3), 255, np.uint8)])
    assert wide.shape == (40, 20 + 40, 3)
    assert wide[:, 20:].min() == 255
    assert montage([]).shape == (256, 256, 3)


@pytest.mark.parametrize("answer_by", ["options", "letter", "generate"])
def test_the_embedded_engine_answers_a_whole_benchmark(benchmark: Path, answer_by: str) -> None:
    template = answer_by == "options"
    report = run_mmad(benchmark, answer_by=answer_by, template=template, threads=1, progress=False)
    assert report.questions == 6
    assert report.model.startswith("auroraedge-nano") or "@" in report.model
    assert report.without_answer == 0 or answer_by == "generate"


def test_the_command_prints_a_table_and_json(benchmark: Path) -> None:
    from auroraedge.cli import app

    arguments = [
        "bench",
        "mmad",
        "--data",
        str(benchmark),
        "--threads",
        "1",
        "--limit",
        "2",
        "--recipe",
        "magnetic_tile",
    ]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    assert "Anomaly Detection" in shown.output and "random choice" in shown.output
    done = CliRunner().invoke(app, [*arguments, "--json"])
    found = json.loads(done.stdout)
    assert found["pictures"] == 2 and found["recipe_id"] == "magnetic_tile"
    assert CliRunner().invoke(app, [*arguments, "--answer-by", "guess"]).exit_code != 0


def test_the_question_model_reads_the_file_s_keys() -> None:
    question = Question.model_validate({**DETAIL, "Answer": "B", "annotation": True})
    assert question.kind == "Object Analysis" and question.options["B"] == "Wood."
