"""Training of a pretrained model over one or several processes (accelerate; DDP or FSDP2).

`accelerate launch --num_processes 8 -m auroraedge.cli train --recipe 2b --model DIR --data NAME=PATH --out DIR`

Weights are float32 and the arithmetic bfloat16 (autocast under DDP, the mixed-precision policy of FSDP), so the weights
are their own master copy: this is what MasterAdamW gives a model that is kept in bfloat16, without the second copy, and
under FSDP each process holds its share of weights, gradients and moments. Rules that are the same: matrices decay,
vectors do not, every part is clipped by itself.

The loss of an update is the weighted mean over the answer tokens of all processes and micro-batches, so that it does
not depend on how they were split.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.tensorboard import SummaryWriter
from transformers.utils.logging import disable_progress_bar

from auroraedge.errors import TrainingError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model import AuroraEdgeConfig, AuroraEdgeForConditionalGeneration
from auroraedge.train.batches import Batch, prefetch, token_weights
from auroraedge.train.checkpoint import STATE_FILE, Progress, find_checkpoint, replacing, unreadable, write_progress
from auroraedge.train.feeds import DataSpec, Feed, Share, parse_data, positions_from_json, positions_to_json
from auroraedge.train.optimiser import named_parts
from auroraedge.train.scale_settings import ScaleRecipe, ScaleStage, load_scale_recipe
from auroraedge.train.settings import settings_sha256
from auroraedge.train.sharding import Sharding
from auroraedge.train.tensor_files import TensorPlan, TensorWriter, open_tensor_file, write_model_files
from auroraedge.train.token_loss import TokenLoss

console = Console()
_LANES_FILE = "lanes.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class DistributedTrainer:
    """One run of a recipe. Every process makes one; process 0 writes."""

    def __init__(
        self, recipe: ScaleRecipe, base: Path, data: dict[str, DataSpec], pack: Path | None, out: Path
    ) -> None:
        self.recipe, self.run, self.base, self.data, self.pack, self.out = recipe, recipe.run, base, data, pack, out
        torch.manual_seed(self.run.seed)
        if self.run.threads:
            torch.set_num_threads(self.run.threads)
        cv2.setNumThreads(1)  # images are decoded in threads of their own
        disable_progress_bar()  # of transformers, once a process and stage
        # Without `cpu` accelerate takes every process on a machine without an accelerator for a run of its own.
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(), mixed_precision="bf16" if self.run.precision == "bf16" else "no"
        )
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != self.accelerator.num_processes:
            raise TrainingError(
                f"{launched} processes were launched and {self.accelerator.num_processes} work together.",
                remedy="Start them with `accelerate launch` or torchrun, without settings of another launcher.",
            )
        self.main = self.accelerator.is_main_process
        recipe.check_processes(self.accelerator.num_processes)
        self.config = AuroraEdgeConfig.from_pretrained(base)
        self.tokenizer = InspectionTokenizer.load(base)
        self.weight_of = token_weights(self.tokenizer, self.config.text_config.vocab_size)
        self.settings_sha = settings_sha256(self.run, list(recipe.stages))
        self.progress = Progress(stage=0, step=0, settings_sha256=self.settings_sha)
        self.trained: set[str] = set()
        self._stop = False
        self._history: list[dict[str, float]] = []
        if self.main:
            out.mkdir(parents=True, exist_ok=True)
        self.writer = SummaryWriter(str(out / "tensorboard")) if self.main else None

    # -- a stage: model, freezing, sharding, optimiser --------------------------------------------------------------

    def _enter(self, number: int) -> None:
        """Builds the model of a stage anew: frozen and sharded as the stage wants it, with what is in the checkpoint.

        The transition from one stage to the next is therefore the same code as a resumed run.
        """
        stage = self.recipe.stages[number]
        self.sharding = None
        model = AuroraEdgeForConditionalGeneration.from_pretrained(self.base, dtype=torch.float32, use_safetensors=True)
        found = self._checkpoint()
        with ExitStack() as stack:
            state = stack.enter_context(open_tensor_file(found / STATE_FILE)) if found else None
            there = set(state.keys()) if state is not None else set()
            if state is not None:
                parameters = dict(model.named_parameters())
                self.trained = {name.removeprefix("weight.") for name in there if name.startswith("weight.")}
                with torch.no_grad():
                    for name in sorted(self.trained):
                        parameters[name].copy_(state.get_tensor(f"weight.{name}"))
            trained = [
                name for part, named in self._parts(model).items() for name, _ in named if part in stage.learning_rate
            ]
            if not trained:
                raise TrainingError(f"Stage {stage.name} trains nothing.", field="learning_rate")
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in set(trained))
            if self.run.gradient_checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            module = TokenLoss(model, self.tokenizer, train_encoder="encoder" in stage.learning_rate)
            module.train()
            self.sharding = Sharding(module, self.accelerator, self.run.shard)
            self.model = model
            self.optimizer = self._optimizer(stage)
            if state is not None and any(name.startswith("exp_avg.") for name in there):
                self._load_moments(state)
        self.trained |= set(trained)

    def _parts(self, model: AuroraEdgeForConditionalGeneration) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Parameters by part. The grounding head has losses of its own, which only the trainer of nano has."""
        return named_parts(
            [
                ("encoder", "vision_model", model.vision_model),
                ("connectors", "projector", model.projector),
                ("connectors", "compressor", model.compressor),
                ("connectors", "fusion", model.fusion),
                ("decoder", "language_model", model.language_model),
            ]
        )

    def _optimizer(self, stage: ScaleStage) -> torch.optim.AdamW:
        groups = []
        for part, named in self._parts(self.model).items():
            for decayed in (True, False):
                chosen = [p for _, p in named if (p.ndim > 1) is decayed]
                if chosen and part in stage.learning_rate:
                    decay = stage.weight_decay if decayed else 0.0
                    groups.append({"params": chosen, "weight_decay": decay, "part": part})
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))

    def _named_trained(self) -> dict[str, nn.Parameter]:
        return {name: p for named in self._parts(self.model).values() for name, p in named if p.requires_grad}

    # -- the loop -----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Runs what is left of all stages. Ctrl-C and SIGTERM end it after the step, with a checkpoint."""
        found = find_checkpoint(self.out / "checkpoint")
        if found is not None:
            if found[0].settings_sha256 != self.settings_sha:
                raise TrainingError(
                    f"{self.out} holds a checkpoint of other settings.",
                    field="out",
                    remedy="Choose another folder, or restore the settings.",
                )
            self.progress = found[0]
        before = {number: signal.signal(number, self._interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number in range(self.progress.stage, len(self.recipe.stages)):
                if number != self.progress.stage:
                    self.progress = Progress(stage=number, step=0, settings_sha256=self.settings_sha)
                self._enter(number)
                self._run_stage(number)
            self.export()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupted(self, *_: object) -> None:
        self._stop = True

    def _run_stage(self, number: int) -> None:
        stage = self.recipe.stages[number]
        done = sum(earlier.steps for earlier in self.recipe.stages[:number])
        first = self.progress.step
        self.positions = self._load_positions() if first else {}
        feed = Feed(
            stage,
            number,
            self.data,
            self.tokenizer,
            self.weight_of,
            seed=self.run.seed,
            streams=self.run.streams,
            workers=self.run.workers,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            pack=self.pack,
            positions=self.positions,
        )
        if self.main:
            self._say(stage)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=console, disable=not self.main) as bar:
            task = bar.add_task(stage.name, total=stage.steps, completed=first)
            for share in prefetch(feed.shares(first)):
                values, stop = self._step(share, stage)
                self.positions = share.positions
                self.progress = Progress(stage=number, step=share.step + 1, settings_sha256=self.settings_sha)
                self._record(done + share.step + 1, values)
                bar.update(task, completed=share.step + 1, description=f"{stage.name} {values['loss']:.3f}")
                last = share.step + 1 == stage.steps
                if stop and not last:
                    self.save()
                    if self.main:
                        console.print(f"Interrupted and saved at {stage.name} step {self.progress.step}.")
                    raise KeyboardInterrupt
                if not last and (share.step + 1) % self.run.checkpoint_every == 0:
                    self.save()
        # A finished stage is the beginning of the next one: its moments are of no more use.
        if number + 1 < len(self.recipe.stages):
            self.progress = Progress(stage=number + 1, step=0, settings_sha256=self.settings_sha)
            self.positions = {}
            self.save(moments=False)
        elif first < stage.steps:
            self.save()

    def _step(self, share: Share, stage: ScaleStage) -> tuple[dict[str, float], bool]:
        """One update. Returns what is logged, and whether any process was told to stop."""
        began = time.perf_counter()
        assert self.sharding is not None
        device, processes = self.accelerator.device, self.accelerator.num_processes
        own = torch.tensor([sum(float(b.weights.sum()) for b in share.micro), float(self._stop)], device=device)
        total, stop = (float(v) for v in self.accelerator.reduce(own, "sum"))
        losses = torch.zeros((), device=device)
        for i, batch in enumerate(share.micro):
            with self.sharding.accumulating(last=i + 1 == len(share.micro)):
                summed = self.sharding.module(**_on(batch, device))
                # Gradients are averaged over the processes; this makes their mean the gradient of the mean loss.
                self.accelerator.backward(summed * (processes / total))
            losses += summed.detach().float()
        factor = stage.rate(share.step)
        norms: dict[str, float] = {}
        by_part: dict[str, list[nn.Parameter]] = {}
        for group in self.optimizer.param_groups:
            group["lr"] = stage.learning_rate[group["part"]] * factor
            by_part.setdefault(group["part"], []).extend(group["params"])
        for part, parameters in by_part.items():
            norm = nn.utils.clip_grad_norm_(parameters, stage.clip_norm)
            norms[f"norm/{part}"] = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        loss = float(self.accelerator.reduce(losses, "sum")) / total
        if not math.isfinite(loss):
            raise TrainingError(f"The loss of step {share.step + 1} is {loss}.", remedy="Lower the learning rate.")
        if all(math.isfinite(norm) for norm in norms.values()):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        return {"loss": loss, **norms, "rate": factor, "seconds": seconds, "weight": total}, stop > 0

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._history.append(values)
        if len(self._history) < self.run.log_every or self.writer is None:
            self._history = self._history if self.main else []
            return
        means = {key: float(np.mean([h[key] for h in self._history])) for key in values}
        self._history = []
        for name, value in means.items():
            self.writer.add_scalar(f"train/{name}", value, step)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in means.items()}}) + "\n")

    def _say(self, stage: ScaleStage) -> None:
        counts = sum(p.numel() for p in self._named_trained().values())
        everything = sum(p.numel() for p in self.model.parameters())
        how = self.run.shard if self.accelerator.num_processes > 1 else "one process"
        console.print(
            f"{stage.name}: {counts / 1e6:,.1f} of {everything / 1e6:,.1f} M parameters, {stage.steps:,} updates of "
            f"{stage.batch_size} images, {self.accelerator.num_processes} x {self.accelerator.device.type} ({how}), "
            f"{self.run.precision}"
        )

    # -- checkpoints and the result -----------------------------------------------------------------------------------

    def _checkpoint(self) -> Path | None:
        found = find_checkpoint(self.out / "checkpoint")
        return None if found is None else found[1]

    def _load_positions(self) -> dict[str, dict[int, Any]]:
        found = self._checkpoint()
        assert found is not None
        try:
            return positions_from_json(json.loads((found / _LANES_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise unreadable(found, error) from error

    def _load_moments(self, state: Any) -> None:
        for name, parameter in self._named_trained().items():
            self.optimizer.state[parameter] = {
                "step": state.get_tensor(f"step.{name}"),
                **{key: _like(state.get_tensor(f"{key}.{name}"), parameter) for key in _MOMENTS},
            }

    def save(self, *, moments: bool = True) -> None:
        """One checkpoint of all processes: gathered tensor by tensor, so that no process holds more than its share
        and the largest one. It does not depend on the number of processes and may be resumed on another."""
        named = {name: p for name, p in self.model.named_parameters() if name in self.trained}
        optimised = self._named_trained() if moments else {}
        plan = [(f"weight.{name}", p) for name, p in named.items()]
        for key in _MOMENTS:
            plan += [(f"{key}.{name}", self.optimizer.state[p][key]) for name, p in optimised.items()]
        steps = {f"step.{name}": self.optimizer.state[p]["step"] for name, p in optimised.items()}
        entries = [TensorPlan(name=n, shape=tuple(t.shape), dtype=torch.float32) for n, t in [*plan, *steps.items()]]
        positions: dict[str, dict[int, Any]] = {}
        for own in gather_object([positions_to_json(self.positions)]):
            for name, lanes in own.items():
                positions.setdefault(name, {}).update(lanes)
        with ExitStack() as stack:
            writer = None
            if self.main:
                fresh = stack.enter_context(replacing(self.out / "checkpoint"))
                writer = stack.enter_context(TensorWriter(fresh / STATE_FILE, entries))
            for name, tensor in [*plan, *steps.items()]:
                whole = _whole(tensor)
                if writer is not None:
                    writer.write(name, whole)
            if self.main:
                (fresh / _LANES_FILE).write_text(json.dumps(positions), encoding="utf-8")
                write_progress(fresh, self.progress)
        self.accelerator.wait_for_everyone()

    def export(self) -> Path:
        """The model in the form and dtype that it came in, in `out`/model: for engine_build, or for another run."""
        folder = self.out / "model"
        dtype = self.config.dtype or torch.bfloat16
        named = dict(self.model.named_parameters())
        plan = [TensorPlan(name=n, shape=tuple(p.shape), dtype=dtype) for n, p in named.items()]

        def tensors() -> Iterator[torch.Tensor]:
            for parameter in named.values():
                yield _whole(parameter)

        if self.main:
            with replacing(folder) as fresh:
                write_model_files(fresh, plan, 5 * 10**9, tensors())
                for name in ("config.json", "tokenizer.json"):
                    (fresh / name).write_bytes((self.base / name).read_bytes())
                content = {"recipe": self.run.name, "settings_sha256": self.settings_sha, **asdict(self.progress)}
                (fresh / "training.json").write_text(json.dumps(content), encoding="utf-8")
        else:
            for _ in tensors():
                pass
        self.accelerator.wait_for_everyone()
        return folder


def _on(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """The batch's tensors by the names of TokenLoss.forward."""
    names = ("pixel_values", "view", "input_ids", "attention_mask", "answer_ids", "answer_mask", "labels", "weights")
    return {name: getattr(batch, name).to(device, non_blocking=True) for name in names}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor gathered from its shards (every process must ask)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor in the sharding of a parameter; each process cuts its own share."""
    if not isinstance(parameter, DTensor):
        return whole.to(parameter.device)
    whole = whole.to(parameter.device_mesh.device_type)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def main_distributed(
    recipe: str,
    *,
    model: Path,
    data: Sequence[str],
    pack: Path | None = None,
    out: Path,
    **overrides: Any,
) -> Path:
    """Trains a recipe from the model folder `model`, going on where `out` holds a checkpoint; returns `out`/model.

    The processes stay connected; the caller ends that. data: as feeds.parse_data reads it. overrides replace fields of
    ScaleSettings. Raises TrainingError, DatasetError.
    """
    if not (model / "config.json").is_file() or not (model / "tokenizer.json").is_file():
        raise TrainingError(
            f"{model} is no model folder (config.json and tokenizer.json are looked for).",
            field="--model",
            remedy="Make one with `auroraedge assemble`.",
        )
    loaded = load_scale_recipe(recipe)
    changed = loaded.run.model_copy(update={k: v for k, v in overrides.items() if v is not None})
    # One thread a process is what torchrun sets; images are decoded in threads of their own.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    trainer = DistributedTrainer(ScaleRecipe(run=changed, stages=loaded.stages), model, parse_data(data), pack, out)
    try:
        trainer.train()
    finally:
        if trainer.writer is not None:
            trainer.writer.close()
    return out / "model"
