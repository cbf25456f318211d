"""The experiments on connectors: packed questions, the common start, runs that resume, figures and their intervals."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from rich.console import Console  # noqa: E402

from auroraedge.errors import TrainingError  # noqa: E402
from auroraedge.evaluate.metrics import roc_auc  # noqa: E402
from auroraedge.inspection.recipe import load_recipe  # noqa: E402
from auroraedge.inspection.tokenizer import InspectionTokenizer  # noqa: E402
from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration  # noqa: E402
from auroraedge.model.flops import auroraedge_shape, measured, uncompressed_shape  # noqa: E402
from auroraedge.train.ablation import bank as bank_module  # noqa: E402
from auroraedge.train.ablation import network, training  # noqa: E402
from auroraedge.train.ablation.bank import (  # noqa: E402
    RECIPES,
    Bank,
    Seen,
    build_bank,
    largest_side,
    load_bank,
    part_examples,
    single_view_examples,
)
from auroraedge.train.ablation.costs import operations  # noqa: E402
from auroraedge.train.ablation.experiments import results_of, run_variants, shared_start  # noqa: E402
from auroraedge.train.ablation.measures import compare, draws, figures, weighted_auc  # noqa: E402
from auroraedge.train.ablation.network import Reader, Reconstruction, connect, packed_hidden, patch_pixels  # noqa: E402
from auroraedge.train.ablation.questions import all_exist, pack, teach  # noqa: E402
from auroraedge.train.ablation.report import between_markers, markdown, write_report  # noqa: E402
from auroraedge.train.ablation.runs import Run, Shared, module_names, one_round  # noqa: E402
from auroraedge.train.ablation.scoring import answer, asked, features_of  # noqa: E402
from auroraedge.train.ablation.training import Budget  # noqa: E402
from auroraedge.train.ablation.variants import EXPERIMENTS, VARIANTS, Variant  # noqa: E402

QUIET = Console(quiet=True)
WIDTH = 32
TINY = Budget(steps=4, shared_steps=5, batch_size=2)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow decoder: what is tested here does not depend on width."""
    small = replace(network.PRESET, text_hidden=32, text_heads=2, text_kv_heads=1, text_head_dim=16)
    monkeypatch.setattr(network, "PRESET", replace(small, text_intermediate=48, compressor_hidden=256))


def _bank(seed: int, boards: int = 3) -> Bank:
    """Random visual tokens; of every board four tiles and the whole, and some tiles and strips."""
    rng = np.random.default_rng(seed)
    seen: list[Seen] = []

    def add(set_name: str, part: int, frame: int, boxes: tuple[tuple[str, float, float, float, float], ...]) -> None:
        image_class = "red_iron" if set_name == "steel_strip_xsdd" else None
        seen.append(
            Seen(
                set_name=set_name,
                group=f"g{part}",
                part=part,
                frame=frame,
                clear=True,
                boxes=boxes,
                image_class=image_class,
                origin=(0.0, 0.0, 1.0, 1.0),
            )
        )

    for part in range(boards):
        for frame in (0, 1, 2, 3, -1):
            add(
                "deeppcb",
                part,
                frame,
                (("short", 0.1, 0.1, 0.15, 0.2), ("open", 0.5, 0.5, 0.6, 0.6))[: part + frame % 2],
            )
    for part in range(boards, boards + 4):
        add("magnetic_tile", part, 0, (("crack", 0.2, 0.2, 0.9, 0.9),) if part % 2 else ())
    for part in range(boards + 4, boards + 6):
        add("steel_strip_xsdd", part, 0, ())
    return Bank(
        features=rng.normal(size=(len(seen), 256, WIDTH)).astype(np.float16),
        thumbs=rng.integers(0, 256, size=(len(seen), 64, 64, 3), dtype=np.uint8),
        seen=tuple(seen),
        key=f"bank{seed}",
        mean=np.zeros(WIDTH, dtype=np.float32),
        deviation=np.ones(WIDTH, dtype=np.float32),
    )


def _network(variant: Variant, tokenizer: InspectionTokenizer) -> AuroraEdgeForConditionalGeneration:
    torch.manual_seed(0)
    model = network.build_network(variant, 640, tokenizer, WIDTH).eval()
    with torch.no_grad():  # larger than at the start, so that every part has a say
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


# -- the model's options -------------------------------------------------------------------------------------------


def test_the_defaults_of_the_model_are_those_that_nano_ships_with() -> None:
    config = AuroraEdgeConfig.from_preset("nano", vocab_size=640)
    assert (config.compression, config.frames) == ("mlp", 1)
    model = AuroraEdgeForConditionalGeneration(config)
    assert model.frame_embedding is None
    features = torch.randn(2, 256, config.vision_config.hidden_size)
    mask = torch.ones(2, 256)
    visual, compressed, same = model.connect(features, mask)
    assert torch.equal(visual, model.projector(features))
    assert torch.equal(compressed, model.compressor(visual, mask))
    assert same is mask


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="compression"):
        AuroraEdgeConfig.from_preset("nano", compression="some")
    with pytest.raises(ValueError, match="256 tokens, not 64"):
        AuroraEdgeConfig.from_preset("nano", compression="none")
    with pytest.raises(ValueError, match="frames"):
        AuroraEdgeConfig.from_preset("nano", frames=0)


def test_frames_stand_side_by_side_and_are_told_apart(tokenizer: InspectionTokenizer) -> None:
    variant = Variant(frames=4, tokens=16)
    model = _network(variant, tokenizer)
    features = torch.randn(4, 256, WIDTH).expand(4, -1, -1)[[0, 0, 0, 0]]  # four times the same view
    visual, compressed, mask = connect(model, features)
    assert visual.shape[:2] == (1, 4 * 256)
    assert compressed.shape[:2] == (1, 4 * 16)
    assert mask.shape == (1, 4 * 256)
    assert model.frame_embedding is not None
    step = compressed[0, 16:32] - compressed[0, :16]
    between = model.frame_embedding.weight[1] - model.frame_embedding.weight[0]
    assert torch.allclose(step, between.expand_as(step), atol=1e-5)
    plain = _network(replace(variant, frame_embedding=False), tokenizer)
    same = connect(plain, features)[1]
    assert torch.equal(same[0, :16], same[0, 16:32])


# -- packed questions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base", "nofusion", "depth4", "all256", "board-4x16"])
def test_a_packed_question_gets_the_logits_of_a_row_of_its_own(name: str, tokenizer: InspectionTokenizer) -> None:
    variant = VARIANTS[name]
    bank, model = _bank(0), _network(variant, tokenizer)
    examples = (part_examples(bank, variant.frames) if variant.parts else single_view_examples(bank))[1:3]
    rng = np.random.default_rng(0)
    rows = [teach(tokenizer, example, rng) for example in examples]
    packed = pack(rows, tokenizer.pad_id)
    features = features_of(bank, examples)
    with torch.no_grad():
        connected = connect(model, features)
        hidden = packed_hidden(model, connected, packed)
        reader = Reader(model, features)
        again = [reader.hidden(packed) for _ in range(2)]  # the cache is as before after each use
        real = packed.segment > 0
        assert torch.allclose(hidden[real], again[0][real], atol=1e-5)
        assert torch.equal(again[0], again[1])
        visual, compressed, mask = connected
        for r, row in enumerate(rows):
            at = 0
            for question in row:
                prompt = torch.tensor([question.prompt])
                known = torch.tensor([question.answer[:-1]], dtype=torch.long)
                fused = model.fuse(prompt, torch.ones_like(prompt), visual[r : r + 1], mask[r : r + 1])
                inputs = model.decoder_inputs(
                    compressed[r : r + 1], fused, torch.ones_like(prompt), known, torch.ones_like(known)
                )
                alone = model.language_model(**inputs, use_cache=False, logits_to_keep=len(question.answer)).logits[0]
                end = at + len(question.prompt) + len(question.answer) - 1
                ours = model.language_model.lm_head(hidden[r, at + len(question.prompt) - 1 : end])
                assert torch.allclose(ours, alone, atol=1e-4)
                at = end


def test_questions_teach_the_truth(tokenizer: InspectionTokenizer) -> None:
    example = next(e for e in single_view_examples(_bank(0)) if len(e.boxes) == 2)
    by_label = {q.label: q for q in all_exist(tokenizer, example)}
    assert {label for label, q in by_label.items() if q.answer == (tokenizer.ng_id,)} == {"short", "open"}
    assert all(q.answer == (tokenizer.ok_id,) for label, q in by_label.items() if label not in ("short", "open"))
    packed = pack([list(by_label.values())], tokenizer.pad_id)
    assert int((packed.targets >= 0).sum()) == len(by_label)  # one verdict each, at the prompt's last place
    assert largest_side(example, "open") == pytest.approx(1.6)


def test_every_kind_has_its_turn_equally_often() -> None:
    """Else the modules of one variant would be trained more than those that it is compared with."""
    grid = [variant for variant in one_round() if not variant.parts]
    fused = Counter((v.fusion, v.depth if v.fusion == "combined" else 0) for v in grid)
    read = Counter((v.tokens, v.reconstruction) for v in grid)
    assert len(set(fused.values())) == len(set(read.values())) == 1
    boards = Counter(str(v) for v in one_round() if v.parts)
    assert len(boards) == 4
    assert len(set(boards.values())) == 1
    own = [name for v in one_round() if v.parts for name in module_names(v).values()]
    shared = {name for v in grid for name in module_names(v).values()}
    assert set(own) & shared == {"projector", "language_model"}


def test_joint_training_changes_what_has_its_turn_and_nothing_else(
    tmp_path: Path, banks: dict[str, Bank], tokenizer: InspectionTokenizer
) -> None:
    shared = Shared(tmp_path, 1, TINY, banks, tokenizer)
    names = set(module_names(shared.variant_of(0)).values())
    before = {key: tensor.clone() for key, tensor in shared.weights().items()}
    shared.losses(0)["total"].backward()
    shared.optimizer.step({"all": 1e-2}, 1.0)
    changed = {
        key.partition(".")[0] for key, tensor in shared.weights().items() if not torch.equal(tensor, before[key])
    }
    assert changed == names
    turns = [shared.variant_of(step) for step in range(len(one_round()))]
    assert sorted(map(str, turns)) == sorted(map(str, one_round()))


def test_reconstruction_can_be_learnt_from_what_c_holds() -> None:
    torch.manual_seed(0)
    head = Reconstruction("visual", 16, 256, 8)
    compressed, target = torch.randn(2, 16, 8), torch.randn(2, 16, 8).repeat_interleave(16, dim=1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    first = float(head(compressed, target).detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss = head(compressed, target)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * first
    thumbs = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    thumbs[0, 4:8, 8:12] = 255  # the patch in row 1, column 2
    pixels = patch_pixels(thumbs)
    assert pixels.shape == (1, 256, 48)
    assert (pixels[0, 18] == 1).all()
    assert (pixels[0, 17] == -1).all()


# -- runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def banks() -> dict[str, Bank]:
    return {split: _bank(i) for i, split in enumerate(("train", "val", "test"))}


def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, banks: dict[str, Bank], tokenizer: InspectionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_SAVE_EVERY", 1)
    start = shared_start(tmp_path, 1, TINY, banks, tokenizer, QUIET)
    variant = VARIANTS["rebuild-visual"]

    def run(name: str) -> Run:
        return Run(tmp_path / name, variant, 1, TINY, banks, tokenizer, start)

    whole = run("whole")
    whole.train(QUIET, "whole")
    cut = run("cut")
    losses = cut.losses

    def stop(step: int) -> dict[str, torch.Tensor]:
        if step == 2:
            raise KeyboardInterrupt
        return losses(step)

    cut.losses = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.train(QUIET, "cut")
    assert (tmp_path / "cut" / "checkpoint" / "progress.json").is_file()
    resumed = run("cut")
    resumed.train(QUIET, "cut")
    assert resumed.done == TINY.steps
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name
    other = Run(tmp_path / "cut", variant, 2, TINY, banks, tokenizer, start)
    with pytest.raises(TrainingError, match="other settings"):
        other.train(QUIET, "other")


def test_finished_runs_are_not_trained_again_and_become_a_report(
    tmp_path: Path, banks: dict[str, Bank], tokenizer: InspectionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["nofusion", "cross"]

    def again(*_: object) -> None:
        pytest.fail("a finished run is trained again")

    for _ in range(2):
        run_variants(names, [1, 2], out=tmp_path, budget=TINY, banks=banks, tokenizer=tokenizer, console=QUIET)
        monkeypatch.setattr(Run, "train", again)
        monkeypatch.setattr(Shared, "train", again)
    found = results_of(tmp_path, "fusion")
    assert {name: sorted(seeds) for name, seeds in found.items()} == {"nofusion": [1, 2], "cross": [1, 2]}
    assert not list(tmp_path.glob("runs/*/checkpoint"))
    with pytest.raises(TrainingError, match="other settings"):
        run_variants(
            names, [1], out=tmp_path, budget=replace(TINY, steps=5), banks=banks, tokenizer=tokenizer, console=QUIET
        )
    docs = tmp_path / "page.md"
    docs.write_text(
        "".join(f"<!-- ablate {n} -->\n<!-- /ablate {n} -->\n" for n in ("fusion", "depth", "ratio", "compression"))
    )
    pytest.importorskip("matplotlib")
    write_report(tmp_path, banks["test"], results=tmp_path / "r", images=tmp_path / "i", docs=docs)
    content = json.loads((tmp_path / "r" / "ablate_fusion.json").read_text())
    assert content["split"] == "test"
    assert len(content["runs"]["cross"]["1"]["answers"]["exists"]) == len(content["exists"])
    assert (tmp_path / "i" / "ablate_fusion.png").stat().st_size > 1000
    assert "| cross |" in docs.read_text()
    assert markdown(content) in docs.read_text()


def test_answers_come_in_the_order_of_the_questions(tokenizer: InspectionTokenizer) -> None:
    bank = _bank(0)
    examples = single_view_examples(bank)
    facts = asked(examples)
    model = _network(VARIANTS["base"], tokenizer)
    found = answer(model, tokenizer, bank, examples)
    assert len(found["exists"]) == len(facts.exists)
    assert len(found["counted"]) == len(found["placed"]) == len(facts.there)
    assert all(0 <= v <= 1 for v in found["exists"] + found["placed"])
    one = answer(model, tokenizer, bank, examples[:1])
    assert np.allclose(one["exists"], found["exists"][: len(one["exists"])], atol=1e-5)


# -- figures -----------------------------------------------------------------------------------------------------


def test_the_weighted_curve_equals_the_plain_one_on_repeated_images() -> None:
    rng = np.random.default_rng(0)
    truth, score = rng.random(40) < 0.4, rng.integers(0, 12, 40) / 12  # with ties
    weights = rng.integers(0, 4, size=(5, 40))
    ours = weighted_auc(truth, score, weights.astype(float))
    for row, value in zip(weights, ours, strict=True):
        assert value == pytest.approx(roc_auc(np.repeat(truth, row), np.repeat(score, row)))


def test_perfect_answers_score_one_and_differences_are_paired() -> None:
    bank = _bank(0, boards=6)
    facts = asked(single_view_examples(bank))
    perfect = {
        "exists": [0.9 if row[2] else 0.1 for row in facts.exists],
        "counted": [float(row[2]) for row in facts.there],
        "placed": [1.0] * len(facts.there),
    }
    found = figures(facts, perfect, np.ones((1, len(facts.groups))))
    assert {name: float(v[0]) for name, v in found.items()} == dict.fromkeys(found, 1.0)
    rng = np.random.default_rng(0)
    blind = {name: list(rng.random(len(values))) for name, values in perfect.items()}
    own, against = compare(facts, {"a": {1: perfect, 2: perfect}, "b": {1: blind, 2: blind}}, "a", replicates=100)
    assert own["a"]["located"].value == 1.0
    assert against["b"]["located"].value < 0
    assert against["b"]["located"].clear
    _, same = compare(facts, {"a": {1: perfect, 2: blind}, "b": {1: perfect, 2: blind}}, "a", replicates=100)
    assert all(f.value == 0 and not f.clear for f in same["b"].values())


def test_parts_are_drawn_whole() -> None:
    facts = asked(single_view_examples(_bank(0)))
    weights = draws(facts, 20)
    for group in set(facts.groups):
        own = [i for i, g in enumerate(facts.groups) if g == group]
        assert (weights[:, own] == weights[:, own[:1]]).all()
    assert np.allclose(weights.sum(1)[:, None][:1], len(facts.groups), rtol=0.6)


# -- costs and report ----------------------------------------------------------------------------------------------


def test_operations_agree_with_the_accounting_and_with_torch() -> None:
    for preset in ("nano", "2b"):
        assert operations(VARIANTS["base"], preset) == auroraedge_shape(preset).count(text=64, new=32)
        bare = operations(VARIANTS["all256-nofusion"], preset)
        assert {k: v for k, v in bare.items() if v} == uncompressed_shape(preset).count(text=64, new=32)
    config = AuroraEdgeConfig.from_preset("nano", vocab_size=1024, frames=4, num_compressed=16)
    config.text_config._attn_implementation = "eager"
    model = AuroraEdgeForConditionalGeneration(config).eval()
    features = torch.zeros(4, 256, config.vision_config.hidden_size)
    with torch.no_grad():
        visual, _, mask = model.connect(features, torch.ones(4, 256))
        text = torch.zeros(1, 64, config.text_config.hidden_size)
        fusion = measured(model.fusion, text, visual, mask, torch.ones(1, 64))
        connectors = measured(model.connect, features, torch.ones(4, 256))
    counted = operations(VARIANTS["board-4x16"], "nano")
    assert counted["fusion"] == fusion
    assert counted["projector"] + counted["compressor"] == connectors


def test_tables_go_between_their_markers() -> None:
    page = "a\n<!-- ablate x -->\nold\n<!-- /ablate x -->\nb\n"
    fresh = between_markers(page, "x", "new \\1")
    assert fresh == "a\n<!-- ablate x -->\nnew \\1\n<!-- /ablate x -->\nb\n"
    with pytest.raises(TrainingError, match="no markers"):
        between_markers(page, "y", "new")


def test_every_experiment_has_its_base_and_known_variants() -> None:
    for experiment in EXPERIMENTS.values():
        assert experiment.base in experiment.variants
        assert set(experiment.variants) <= set(VARIANTS)


def test_a_bank_of_the_pack_goes_on_where_it_was_cut(
    tmp_path: Path, pack_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from auroraedge.runtime.engine import EnginePackage
    from auroraedge.runtime.inspector import DEFAULT_ENGINE

    engine = EnginePackage(DEFAULT_ENGINE, threads=1)
    plan = {"deeppcb": 1, "magnetic_tile": 2, "steel_strip_xsdd": 1}
    monkeypatch.setattr(bank_module, "_CHUNK", 3)
    whole = load_bank(build_bank(pack_dir, tmp_path / "a", "train", engine, QUIET, plan))
    assert [s.frame for s in whole.seen] == [0, 1, 2, 3, -1, 0, 0, 0]
    assert {s.set_name for s in whole.seen} == set(plan)
    labels = {name: set(load_recipe(recipe).label_names) for name, recipe in RECIPES.items()}
    assert all({b[0] for b in s.boxes} <= labels[s.set_name] for s in whole.seen)
    board = part_examples(whole, 4)[0]
    tiles = {b[0] for i in board.views for b in whole.seen[i].boxes}
    assert {b[0] for b in board.boxes} >= tiles

    encode, calls = engine.encode, [0]

    def counted(patches: np.ndarray) -> object:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return encode(patches)

    monkeypatch.setattr(engine, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        build_bank(pack_dir, tmp_path / "b", "train", engine, QUIET, plan)
    again = load_bank(build_bank(pack_dir, tmp_path / "b", "train", engine, QUIET, plan))
    assert calls[0] == 4  # one chunk, the cut one again, and the last
    assert np.array_equal(whole.features, again.features)
    assert again.seen == whole.seen
    build_bank(pack_dir, tmp_path / "b", "train", engine, QUIET, plan)
    assert calls[0] == 4
    with pytest.raises(TrainingError, match="no bank"):
        load_bank(tmp_path / "nowhere")
