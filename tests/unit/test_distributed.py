"""The distributed trainer: the same losses on one process and on two (DDP, FSDP), exact resume, freezing, estimates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
import yaml  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from scale_support import ROOT, losses, stage, write_llava, write_model, write_recipe, write_shards  # noqa: E402

from auroraedge.config import PRESETS  # noqa: E402
from auroraedge.errors import InvalidRequestError, TrainingError  # noqa: E402
from auroraedge.inspection.tokenizer import InspectionTokenizer  # noqa: E402
from auroraedge.model import AuroraEdgeForConditionalGeneration  # noqa: E402
from auroraedge.model.flops import auroraedge_shape  # noqa: E402
from auroraedge.train import distributed  # noqa: E402
from auroraedge.train.checkpoint import find_checkpoint  # noqa: E402
from auroraedge.train.distributed import main_distributed  # noqa: E402
from auroraedge.train.estimate import estimate, training_flops  # noqa: E402
from auroraedge.train.launch import estimate_recipe, train_recipe  # noqa: E402
from auroraedge.train.scale_settings import ScaleStage, load_scale_recipe  # noqa: E402

ALL = {"encoder": 1e-4, "connectors": 1e-3, "decoder": 1e-3}
MIX = {"chat": 0.4, "captions": 0.4, "generated_ground": 0.2}


@dataclass(frozen=True)
class World:
    folder: Path
    model: Path
    data: str

    def train(self, recipe: Path, out: str, **overrides: object) -> Path:
        return main_distributed(str(recipe), model=self.model, data=[self.data], out=self.folder / out, **overrides)

    def recipe(self, name: str, stages: list[dict[str, object]], **run: object) -> Path:
        return write_recipe(self.folder / name, stages, **run)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("scale")
    chat = write_llava(folder / "chat")
    data = {
        "chat": {"format": "llava", "path": str(chat), "images": str(chat.parent / "images")},
        "captions": {"format": "webdataset", "path": write_shards(folder / "shards")},
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    model = write_model(folder / "model", ROOT / "models" / "nano" / "tokenizer.json")
    return World(folder=folder, model=model, data=str(folder / "data.yaml"))


def _state(folder: Path) -> dict[str, torch.Tensor]:
    return AuroraEdgeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()


def _stages() -> list[dict[str, object]]:
    """The paper's three, in small: connectors, with the decoder, everything; gradients accumulate in the last."""
    return [
        stage("connectors", 1, learning_rate={"connectors": 1e-3}),
        stage("decoder", 2),
        stage("joint", 3, learning_rate=ALL, micro_batch=1, mix=MIX),
    ]


@pytest.fixture(scope="module")
def single(world: World) -> Path:
    """One process, uninterrupted; two samples at a time in the last stage, as each of two processes has."""
    stages = _stages()
    stages[2]["micro_batch"] = 2
    world.train(world.recipe("single", stages), "single_out")
    return world.folder / "single_out"


def test_two_processes_learn_what_one_does(world: World, single: Path) -> None:
    """By `accelerate launch`, with gloo on CPU: DDP from the first update on; FSDP from a checkpoint that one process
    wrote in the middle of the last stage, so that weights and moments are cut and gathered, too."""
    recipe = world.recipe("two", _stages(), shard="ddp")
    sharded = world.recipe("sharded", _stages(), shard="fsdp", checkpoint_every=1)
    _interrupt(world, sharded, "fsdp_out", after=4)
    # accelerate's name for its torchrun launcher is --multi_gpu; without a GPU the processes meet over gloo.
    launch = ["launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", *launch),
            str(Path(__file__).with_name("scale_worker.py")),
            *(str(world.model), world.data),
            f"{recipe}:{world.folder / 'ddp_out'}",
            f"{sharded}:{world.folder / 'fsdp_out'}",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 x cpu (ddp)" in done.stdout and "2 x cpu (fsdp)" in done.stdout
    truth = losses(single)
    assert len(truth) == 6 and len(set(truth)) == 6
    for name in ("ddp_out", "fsdp_out"):
        assert losses(world.folder / name) == pytest.approx(truth, abs=2e-5)
    one = _state(single / "model")
    for name in ("ddp_out", "fsdp_out"):
        two = _state(world.folder / name / "model")
        moved = max(float((one[key] - _state(world.model)[key]).abs().max()) for key in one)
        apart = max(float((one[key] - two[key]).abs().max()) for key in one)
        assert apart < 0.02 * moved, name


def _interrupt(world: World, recipe: Path, out: str, *, after: int) -> None:
    """Trains until so many updates are done in all, then as Ctrl-C does."""
    original = distributed.DistributedTrainer._record

    def record(self: distributed.DistributedTrainer, step: int, values: dict[str, float]) -> None:
        original(self, step, values)
        if step == after - 1:
            self._interrupted()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed.DistributedTrainer, "_record", record)
        with pytest.raises(KeyboardInterrupt):
            world.train(recipe, out)


def test_a_resumed_run_equals_an_uninterrupted_one(world: World, single: Path) -> None:
    recipe = world.folder / "single" / "run.yaml"
    _interrupt(world, recipe, "cut_out", after=5)
    found = find_checkpoint(world.folder / "cut_out" / "checkpoint")
    assert found is not None and (found[0].stage, found[0].step) == (2, 2)
    world.train(recipe, "cut_out")
    assert losses(world.folder / "cut_out") == losses(single)
    one, two = _state(single / "model"), _state(world.folder / "cut_out" / "model")
    assert all(torch.equal(one[key], two[key]) for key in one)
    # A finished run is left as it is.
    before = losses(single)
    world.train(recipe, "single_out")
    assert losses(single) == before
    with pytest.raises(TrainingError, match="other settings"):
        world.train(recipe, "single_out", seed=9)


def test_stages_train_their_parts_alone(world: World) -> None:
    model = world.train(world.recipe("first", _stages()[:1]), "first_out")
    before, after = _state(world.model), _state(model)
    for key in before:
        frozen = key.startswith(("vision_model.", "language_model."))
        if frozen:
            assert torch.equal(before[key], after[key]), key
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("fusion."))
    stored = json.loads((model / "training.json").read_text(encoding="utf-8"))
    assert (stored["recipe"], stored["step"]) == ("tiny", 1)
    assert InspectionTokenizer.load(model).vocab_size


def test_checkpointing_and_bf16(world: World, single: Path) -> None:
    """Gradient checkpointing changes nothing; bfloat16 stays close, and its weights are still float32."""
    stages = _stages()
    stages[2]["micro_batch"] = 2
    world.train(world.recipe("checkpointed", stages, gradient_checkpointing=True), "checkpointed_out")
    assert losses(world.folder / "checkpointed_out") == pytest.approx(losses(single), abs=1e-6)
    AcceleratorState._reset_state()  # one precision a process, says accelerate
    world.train(world.recipe("low", stages, precision="bf16"), "low_out")
    AcceleratorState._reset_state()
    low = losses(world.folder / "low_out")
    assert low == pytest.approx(losses(single), rel=0.01) and low != losses(single)
    found = find_checkpoint(world.folder / "low_out" / "checkpoint")
    from auroraedge.train.tensor_files import open_tensor_file

    assert found is not None
    with open_tensor_file(found[1] / "state.safetensors") as state:
        assert {state.get_slice(name).get_dtype() for name in state.keys()} == {"F32"}  # noqa: SIM118


def test_wrong_arguments(world: World, tmp_path: Path) -> None:
    recipe = str(world.folder / "single" / "run.yaml")
    with pytest.raises(TrainingError, match="starts from a pretrained model"):
        train_recipe(recipe, out=tmp_path)
    with pytest.raises(TrainingError, match="no model folder"):
        train_recipe(recipe, out=tmp_path, model=tmp_path)
    with pytest.raises(TrainingError, match="starts from nothing"):
        train_recipe("nano", out=tmp_path, model=world.model)
    with pytest.raises(TrainingError, match="does not give"):
        train_recipe(recipe, out=tmp_path, model=world.model)


def test_estimates_follow_from_counts() -> None:
    """Against sums made by hand, and in the directions that they must have."""
    recipe = load_scale_recipe("2b")
    few, many = estimate(recipe, gpus=1, gpu="h100"), estimate(recipe, gpus=8, gpu="h100")
    for one, eight in zip(few, many, strict=True):
        assert one.flops_per_sample == eight.flops_per_sample
        assert one.hours == pytest.approx(8 * eight.hours)
        assert one.weight_bytes > eight.weight_bytes
    assert many[0].weight_bytes < many[1].weight_bytes < many[2].weight_bytes
    # One exchange of 40 + 60 tokens with everything trained: three forward passes, without checkpointing.
    preset = PRESETS["2b"]
    settings = ScaleStage.model_validate(stage(mix={"questions": 1.0}, learning_rate=ALL, max_exchanges=1))
    shape = auroraedge_shape("2b")
    head = 2 * preset.text_hidden * preset.vocab_size
    forward = shape.encoder.flops + sum(shape.connector(40).values()) + shape.decoder.prefill(164) + 59 * head
    assert training_flops(preset, settings, checkpointing=False) == pytest.approx(3 * forward)
    assert estimate_recipe("2b", "8xh100").row_count == 4
    for wrong in ("h100", "0xh100", "8xabacus"):
        with pytest.raises(InvalidRequestError, match="names no GPUs"):
            estimate_recipe("2b", wrong)
    with pytest.raises(InvalidRequestError, match="no estimate"):
        estimate_recipe("nano", "8xh100")
