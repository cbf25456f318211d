"""Training: samples are right and reproducible, a resumed run is the uninterrupted one, losses fall."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import yaml  # noqa: E402

from auroraedge.data.instructions import make_sample  # noqa: E402
from auroraedge.data.sources import SOURCE_NAMES, open_sources  # noqa: E402
from auroraedge.errors import TrainingError  # noqa: E402
from auroraedge.inspection.prompts import PromptKind  # noqa: E402
from auroraedge.inspection.tokenizer import InspectionTokenizer  # noqa: E402
from auroraedge.model import AuroraEdgeForConditionalGeneration  # noqa: E402
from auroraedge.train.auxiliary import decode_boxes, dense_loss, dense_targets, giou  # noqa: E402
from auroraedge.train.run import Trainer, main_train  # noqa: E402
from auroraedge.train.settings import load_training  # noqa: E402
from auroraedge.train.validate import score_views  # noqa: E402

GENERATED = ["generated_board", "generated_ground", "generated_rolled"]


def _recipe(folder: Path, steps: int = 3) -> Path:
    """A run of two stages on generated parts, small enough for a test."""
    mix = {"generated_board": 0.5, "generated_ground": 0.3, "generated_rolled": 0.2}
    first = {"name": "a", "steps": 2, "batch_size": 3, "learning_rate": {"connectors": 1e-3, "decoder": 1e-3}}
    second = {**first, "name": "b", "steps": steps, "learning_rate": {"encoder": 1e-5, "connectors": 1e-3}}
    for stage in (first, second):
        (folder / f"{stage['name']}.yaml").write_text(yaml.safe_dump({**stage, "mix": mix}), encoding="utf-8")
    run = {
        "name": "tiny",
        "model": "nano",
        "initial_encoder": "none",
        "precision": "fp32",
        "threads": 1,
        "checkpoint_every": 1,
        "validate_every": 10_000,
        "validation_views": 2,
        "stages": [str(folder / "a.yaml"), str(folder / "b.yaml")],
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    return folder / "run.yaml"


@pytest.fixture(autouse=True)
def _small_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """One encoder layer: what is tested here does not depend on depth."""
    from dataclasses import replace

    from auroraedge import config
    from auroraedge.model import configuration

    small = {**config.PRESETS, "nano": replace(config.PRESETS["nano"], vision_layers=1, text_layers=1)}
    monkeypatch.setattr(configuration, "PRESETS", small)


def test_samples_are_functions_of_their_seed(tokenizer: InspectionTokenizer) -> None:
    for source in open_sources(GENERATED, None).values():
        one, two = (make_sample(np.random.default_rng(5), source, tokenizer) for _ in range(2))
        assert np.array_equal(one.pixels, two.pixels)
        assert one.answers == two.answers
        assert one.pixels.shape == (256, 256, 3)


def test_boxes_lie_on_what_differs_from_the_golden_sample(tokenizer: InspectionTokenizer) -> None:
    """Through crop, flips, shift and resize: the difference channel inside the boxes departs from its neutral 128."""
    source = open_sources(["generated_board"], None)["generated_board"]
    rng = np.random.default_rng(3)
    checked = 0
    for _ in range(12):
        sample = make_sample(rng, source, tokenizer, kinds={PromptKind.INSPECT: 1.0})
        difference = np.abs(sample.pixels[..., 2].astype(int) - 128)
        for target in sample.targets:
            x1, y1, x2, y2 = (round(v * 256) for v in target.box)
            assert difference[y1:y2, x1:x2].max() > 40
            checked += 1
    assert checked > 10


def test_real_sources_give_samples_without_file_names(tokenizer: InspectionTokenizer, pack_dir: Path) -> None:
    for name, source in open_sources(SOURCE_NAMES[:4], pack_dir).items():
        rng = np.random.default_rng(0)
        labels = set(source.recipe.label_names)
        for _ in range(4):
            sample = make_sample(rng, source, tokenizer)
            assert {t.label for t in sample.targets} <= labels, name
            assert not any(".png" in p.text or ".jpg" in p.text for p in sample.prompts)


def test_no_part_is_in_two_splits(pack_dir: Path) -> None:
    from auroraedge.data.pack import load_pack_set

    for name in ("magnetic_tile", "ball_screw", "steel_strip_xsdd"):
        groups = {split: {i.group for i in load_pack_set(pack_dir, name, split)} for split in ("train", "val", "test")}
        assert not groups["train"] & groups["val"]
        assert not (groups["train"] | groups["val"]) & groups["test"]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = str(_recipe(tmp_path))
    whole = main_train(recipe, out=tmp_path / "whole")

    run, stages = load_training(recipe)
    cut = Trainer(run, stages, None, tmp_path / "cut")
    record = cut._record

    def stop_at_four(step: int, *args: object) -> None:
        record(step, *args)  # type: ignore[arg-type]
        if step == 4:
            raise KeyboardInterrupt

    cut._record = stop_at_four  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = main_train(recipe, out=tmp_path / "cut")
    a, b = (AuroraEdgeForConditionalGeneration.from_pretrained(p).state_dict() for p in (whole, resumed))
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key
    scores = json.loads((tmp_path / "whole" / "validation.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert set(scores["scores"]) == set(GENERATED)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    main_train(str(_recipe(tmp_path)), out=tmp_path / "out")
    with pytest.raises(TrainingError, match="other settings"):
        main_train(str(_recipe(tmp_path, steps=4)), out=tmp_path / "out")


def test_stages_freeze_what_they_do_not_train(tmp_path: Path) -> None:
    run, stages = load_training(str(_recipe(tmp_path)))
    trainer = Trainer(run, stages, None, tmp_path / "out")
    assert not any(p.requires_grad for p in trainer.model.vision_model.parameters())
    assert all(p.requires_grad for p in trainer.model.fusion.parameters())
    trainer._optimizer(stages[1])
    assert all(p.requires_grad for p in trainer.model.vision_model.parameters())
    assert not any(p.requires_grad for p in trainer.model.language_model.parameters())


def test_unknown_recipe_and_stage_errors(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training recipe"):
        load_training("no_such")
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\nsteps: 0\n", encoding="utf-8")
    with pytest.raises(TrainingError, match="not a valid"):
        load_training(str(bad))


def test_the_shipped_recipe_has_the_three_stages_of_the_paper() -> None:
    _, stages = load_training("nano")
    assert [s.name for s in stages] == ["connectors", "decoder", "joint"]
    assert "encoder" not in stages[0].learning_rate
    assert stages[0].prompt_kinds == {PromptKind.DESCRIBE: 1.0}
    assert "encoder" in stages[2].learning_rate


def test_dense_targets_and_losses(tokenizer: InspectionTokenizer) -> None:
    source = open_sources(["generated_board"], None)["generated_board"]
    rng = np.random.default_rng(1)
    samples = [make_sample(rng, source, tokenizer) for _ in range(6)]
    index = {label: i for i, label in enumerate(source.recipe.label_names)}
    classes, boxes, _ = dense_targets(samples, index, 16)
    for i, sample in enumerate(samples):
        assert {int(c) for c in classes[i] if c >= 0} == {index[t.label] for t in sample.targets}
    raw = torch.zeros(6, 256, 1 + len(index) + 4)
    positive = classes >= 0
    # A head that knows the truth has next to no loss.
    centre = (torch.arange(16) + 0.5) / 16
    cy, cx = (m.reshape(-1) for m in torch.meshgrid(centre, centre, indexing="ij"))
    raw[..., 0] = torch.where(positive, 12.0, -12.0)
    raw[..., 1:-4] = torch.nn.functional.one_hot(classes.clamp(min=0), len(index)) * 20.0
    raw[..., -4] = ((boxes[..., 0] + boxes[..., 2]) / 2 - cx) * 16
    raw[..., -3] = ((boxes[..., 1] + boxes[..., 3]) / 2 - cy) * 16
    raw[..., -2] = ((boxes[..., 2] - boxes[..., 0]).clamp(min=1e-3) * 16).log()
    raw[..., -1] = ((boxes[..., 3] - boxes[..., 1]).clamp(min=1e-3) * 16).log()
    assert torch.allclose(decode_boxes(raw[..., -4:], 16)[positive], boxes[positive], atol=1e-5)
    known = dense_loss(raw, classes, boxes, 16)
    assert all(float(v) < 0.01 for v in known.values())
    unknown = dense_loss(torch.zeros_like(raw), classes, boxes, 16)
    assert all(float(unknown[k]) > 0.2 for k in known)
    square = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert float(giou(square, square)) == pytest.approx(1.0)
    assert float(giou(square, square + 2)) < 0


def test_view_scores(tokenizer: InspectionTokenizer) -> None:
    """The reference answers score 1; the same answers on the wrong samples do not."""
    from auroraedge.inspection.grammar import AnswerGrammar, parse_answer
    from auroraedge.train.validate import Answer

    source = open_sources(["generated_board"], None)["generated_board"]
    rng = np.random.default_rng(8)
    samples = [make_sample(rng, source, tokenizer, kinds={PromptKind.INSPECT: 1.0}) for _ in range(8)]
    answers = [
        Answer(parse_answer(AnswerGrammar(tokenizer, s.prompts[0]), s.answers[0]), float(s.defective)) for s in samples
    ]
    assert score_views(samples, answers) == {"verdict": 1, "precision": 1, "recall": 1, "f": 1, "places": 1}
    assert score_views(samples, answers[1:] + answers[:1])["f"] < 0.5
