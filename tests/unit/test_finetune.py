"""Fine-tuning: new labels beside old rows, LoRA merged into a stock model, exact resume, and the whole command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
from dataset_support import BOX, H, W, coco, own, texture  # noqa: E402
from rich.console import Console  # noqa: E402

from auroraedge.cli import app  # noqa: E402
from auroraedge.config import PRESETS  # noqa: E402
from auroraedge.data.augment import Scene, SceneObject  # noqa: E402
from auroraedge.data.importers import read_dataset  # noqa: E402
from auroraedge.data.pack import PackItem, PackObject, load_pack_set  # noqa: E402
from auroraedge.data.validation import check_dataset  # noqa: E402
from auroraedge.errors import TrainingError  # noqa: E402
from auroraedge.inspection.recipe import Recipe, load_recipe  # noqa: E402
from auroraedge.inspection.tokenizer import InspectionTokenizer  # noqa: E402
from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration  # noqa: E402
from auroraedge.train import finetune_data  # noqa: E402
from auroraedge.train.finetune import FineTuner  # noqa: E402
from auroraedge.train.finetune_model import Tuned, load_extended, open_base  # noqa: E402
from auroraedge.train.finetune_run import run_finetune  # noqa: E402
from auroraedge.train.finetune_score import best_f, roc_auc  # noqa: E402
from auroraedge.train.finetune_settings import FinetuneSettings  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = FinetuneSettings(
    steps=4, pool=8, batch_size=4, answer_views=2, validate_every=2, checkpoint_every=1, threads=1
)


def make_base(folder: Path, *, labels: tuple[str, ...] = ("crack", "pitting"), **sizes: int) -> Path:
    """A model folder of one layer everywhere, with random weights."""
    tokenizer = InspectionTokenizer.load(ROOT / "models" / "nano")
    preset = replace(PRESETS["nano"], vision_layers=2, text_layers=1, **sizes)
    torch.manual_seed(5)
    config = AuroraEdgeConfig.from_preset(
        preset,
        vocab_size=-(-tokenizer.vocab_size // 64) * 64,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        grounding_labels=labels,
    )
    model = AuroraEdgeForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((ROOT / "models" / "nano" / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def tune(base: Path, data: Path, out: Path, settings: FinetuneSettings = SETTINGS, **options: Any) -> Any:
    checked = check_dataset(read_dataset(data))
    return run_finetune(checked, out=out, base=base, settings=settings, console=Console(quiet=True), **options)


def test_old_rows_of_the_head_stay_and_new_labels_get_their_own(base: Path) -> None:
    old = AuroraEdgeForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    new = load_extended(open_base(base), ("pitting", "dark_spot"))
    assert new.config.grounding_labels == ["crack", "pitting", "dark_spot"]
    visual, mask = torch.randn(2, 256, 256), torch.ones(2, 256)
    with torch.no_grad():
        (e, p), (e2, p2) = (model.grounding(visual, mask) for model in (old, new))
    assert torch.allclose(e2[..., [0, 1, 2, 4, 5, 6, 7]], e, atol=1e-6)
    assert torch.allclose(p2[..., [0, 1, 3]], p, atol=1e-6)


def test_a_base_without_a_head_gets_one(tmp_path: Path) -> None:
    """As 2b has it: no grounding head, another width, tied or not."""
    bare = make_base(tmp_path, labels=(), text_hidden=128, text_heads=2, text_kv_heads=1)
    model = load_extended(open_base(bare), ("dark_spot",))
    with torch.no_grad():
        evidence, presence = model.grounding(torch.zeros(1, 256, 128), torch.ones(1, 256))
    assert evidence.shape == (1, 256, 6)
    assert presence.shape == (1, 2)
    assert float(evidence[0, 0, 0]) == pytest.approx(-4.0, abs=0.3)  # most tokens hold nothing


@pytest.mark.parametrize("mode", ["lora", "decoder", "all"])
def test_what_moves_and_what_stays(base: Path, mode: Any) -> None:
    settings = SETTINGS.model_copy(update={"mode": mode, "encoder_layers": 1})
    tuned = Tuned(open_base(base), ("dark_spot",), settings)
    moving = {name for name, p in tuned.model.named_parameters() if p.requires_grad}
    assert any(name.startswith("grounding.") for name in moving)
    assert any(name.startswith("fusion.") for name in moving)
    first = {name for name in moving if ".layers.0." in name and name.startswith("vision_model")}
    assert tuned.cut == {"lora": 1, "decoder": 2, "all": 0}[mode]
    assert bool(first) is (mode == "all")
    assert any("lora_" in name for name in moving) is (mode == "lora")
    whole = any(name.startswith("language_model") and "lora_" not in name for name in moving)
    assert whole is (mode != "lora")


def test_merged_lora_is_a_stock_model_of_the_same_outputs(base: Path, tmp_path: Path) -> None:
    tuned = Tuned(open_base(base), ("dark_spot",), SETTINGS.model_copy(update={"encoder_layers": 1}))
    for name, parameter in tuned.optimizer.parameters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
            tuned.optimizer.masters[name].copy_(parameter)
    pixels = torch.rand(1, 256, 768) * 2 - 1
    tuned.model.eval()
    with torch.no_grad():
        before = tuned.visual(tuned.stem(pixels))
    folder = tuned.export(tmp_path / "model", tuned.optimizer.masters, {})
    stock = AuroraEdgeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    plain = AuroraEdgeForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    assert not any("lora" in name for name in stock.state_dict())
    with torch.no_grad():
        after, untouched = stock.encode(pixels)[0], plain.encode(pixels)[0]
    assert (after - before).abs().max() < 0.02 * before.abs().max()  # float16 on disk
    assert (untouched - before).abs().max() > 0.05 * before.abs().max()
    state = plain.state_dict()
    query = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(stock.state_dict()[query], state[query], atol=1e-3)
    embedding = "language_model.model.embed_tokens.weight"
    assert torch.allclose(stock.state_dict()[embedding], state[embedding].half().float())


def test_a_resumed_run_equals_an_uninterrupted_one(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = own(tmp_path / "data")
    whole = tune(base, data, tmp_path / "whole")
    step = FineTuner._one_step

    def stop(self: FineTuner, *args: Any) -> Any:
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FineTuner, "_one_step", stop)
        tune(base, data, tmp_path / "cut")
    assert not (tmp_path / "cut" / "model").exists()
    resumed = tune(base, data, tmp_path / "cut")
    states = [AuroraEdgeForConditionalGeneration.from_pretrained(t.model).state_dict() for t in (whole, resumed)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    about = [json.loads((t.model / "finetune.json").read_text()) for t in (whole, resumed)]
    assert about[0] == about[1]
    assert about[0]["new_labels"] == ["dark_spot"]
    written = (resumed.model / "model.safetensors").stat().st_mtime_ns
    tune(base, data, tmp_path / "cut")  # finished: taken as it is
    assert (resumed.model / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(TrainingError, match="other settings"):
        tune(base, data, tmp_path / "cut", SETTINGS.model_copy(update={"steps": 5}))


def test_losses_fall_on_a_few_parts(base: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 30, "validate_every": 100, "warmup_steps": 1, "answer_views": 4})
    done = tune(base, own(tmp_path / "data"), tmp_path / "out", settings)
    log = [json.loads(line) for line in (done.out / "work" / "log.jsonl").read_text().splitlines()]
    totals = [record["total"] for record in log if "total" in record]
    assert np.mean(totals[-5:]) < 0.7 * np.mean(totals[:5])


def _item(width: int, height: int, boxes: list[tuple[float, float, float, float]]) -> PackItem:
    objects = tuple(PackObject(label="spot", bbox=box) for box in boxes)
    fields: dict[str, Any] = {"width": width, "height": height, "objects": objects, "image_label": "defective"}
    return PackItem(set_name="s", file="a", path=Path("a"), split="train", group="g", **fields)


def test_the_tiling_suits_frame_and_defects() -> None:
    def tiling(width: int, height: int, side: float) -> Any:
        items = [_item(width, height, [(0, 0, side, side)])]
        return finetune_data.draft_recipe("My part!", items, ["spot"], "inspect").tiling

    assert tiling(300, 280, 20).mode == "whole"
    assert tiling(1130, 460, 60).mode == "square"
    assert tiling(1130, 460, 60).size_px is None
    fine = tiling(2000, 1600, 12)
    assert fine.mode == "square"
    assert fine.size_px is not None and 12 * 256 / fine.size_px >= 8
    recipe = finetune_data.draft_recipe("My part!", [_item(9, 9, [])], ["spot"], "inspect")
    assert recipe.id == "my_part"
    assert recipe.label_names == ("spot",)
    more = finetune_data.with_labels(recipe, ["spot", "new"])
    assert more.label_names == ("spot", "new")
    assert more.sha256 != recipe.sha256


def test_a_pasted_defect_lies_where_its_box_says() -> None:
    good = Scene(image=texture(1))
    donor = Scene(image=texture(2, defect=True), objects=(SceneObject("spot", *BOX),))
    found = 0
    for seed in range(10):
        scene = finetune_data._paste(good, donor, np.random.default_rng(seed))
        if not scene.objects:
            continue
        found += 1
        box = scene.objects[0]
        changed = np.abs(scene.image.astype(int) - good.image.astype(int)).max(-1)
        assert 0 <= box.x1 < box.x2 <= W and 0 <= box.y1 < box.y2 <= H
        inside = changed[int(box.y1) + 1 : int(box.y2) - 1, int(box.x1) + 1 : int(box.x2) - 1]
        assert inside.mean() > 30
        assert changed.sum() == pytest.approx(changed[max(0, int(box.y1) - 25) : int(box.y2) + 25].sum())
    assert found >= 5


def test_scores_without_thresholds() -> None:
    assert roc_auc(np.array([True, True, False]), np.array([2.0, 1.0, 1.0])) == pytest.approx(0.75)
    assert best_f(np.array([0.9, 0.8, 0.7]), np.array([1.0, 0.0, 1.0]), 2) == pytest.approx(0.8)
    assert best_f(np.zeros(0), np.zeros(0), 3) == 0.0


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


def test_the_command_only_checks_when_asked(tmp_path: Path) -> None:
    done = run("--data", own(tmp_path / "data"), "--out", tmp_path / "out", "--check")
    assert done.exit_code == 0, done.output
    assert "0 errors" in done.output
    assert (tmp_path / "out" / "check.html").is_file()
    assert not (tmp_path / "out" / "data").exists()
    (tmp_path / "data" / "images" / "003.png").write_bytes(b"broken")
    bad = run("--data", tmp_path / "data", "--out", tmp_path / "out", "--check")
    assert bad.exit_code == 2
    assert "unreadable-image" in bad.output


def test_without_a_checkout_the_remedy_comes_before_the_training(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from auroraedge import command_line

    monkeypatch.setattr(command_line, "__file__", str(tmp_path / "site" / "auroraedge" / "command_line.py"))
    monkeypatch.chdir(tmp_path)
    done = run("--data", own(tmp_path / "data"), "--out", tmp_path / "out", "--model", base)
    assert done.exit_code == 4
    assert "checkout" in done.output
    assert not (tmp_path / "out").exists()


def test_the_whole_command_ends_with_an_engine_that_inspects(base: Path, tmp_path: Path) -> None:
    """Training, engine, calibration, evaluation and recipe, as a user runs it; then the next command of the summary."""
    (tmp_path / "my part").mkdir()
    data, out = coco(tmp_path / "my part"), tmp_path / "out"
    options = ("--data", data, "--out", out, "--model", base, "--steps", 2, "--precision", "fp32", "--threads", 1)
    done = run(*options)
    assert done.exit_code == 0, done.output
    recipe = load_recipe(out / "recipe.yaml")
    assert isinstance(recipe, Recipe) and recipe.id == "my_part"
    assert load_recipe("my_part", [out / "recipes"]) == recipe
    assert {i.split for i in load_pack_set(out / "data", "my_part")} == {"train", "val", "test"}
    calibration = json.loads((out / "engine" / "calibration.json").read_text())
    assert list(calibration["recipes"]) == ["my_part"]
    report = json.loads((out / "evaluation.json").read_text())
    assert report["split"] == "test" and report["model"]["errors"] == 0
    for name in ("summary.md", "summary.html"):
        text = (out / name).read_text(encoding="utf-8")
        assert "dark_spot" in text and "F-score" in text
    image = sorted(data.rglob("*.png"))[0]
    looked = CliRunner().invoke(
        app, ["inspect", str(image), "--recipe", str(out / "recipe.yaml"), "--engine", str(out / "engine"), "--json"]
    )
    assert looked.exit_code == 0, looked.output
    assert json.loads(looked.stdout)["verdict"] in ("OK", "NG", "REVIEW")
