"""The training loop: `auroraedge train --recipe nano --pack DIR --out DIR`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from auroraedge.data.instructions import Source, corpus
from auroraedge.data.sources import open_sources
from auroraedge.errors import TrainingError
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.recipe import list_recipes
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model.configuration import AuroraEdgeConfig
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration, parameter_counts
from auroraedge.train.auxiliary import DenseHead, TokenHead, dense_loss, dense_targets, presence_loss, token_head_loss
from auroraedge.train.batches import Batch, draw_batch, prefetch, soft_location_targets, token_weights
from auroraedge.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from auroraedge.train.initialise import (
    build_tokenizer,
    encoder_from_dinov2,
    find_encoder,
    load_dinov2,
    ordered_location_embeddings,
)
from auroraedge.train.optimiser import MasterAdamW, named_parts
from auroraedge.train.settings import StageSettings, TrainSettings, load_training, settings_sha256
from auroraedge.train.validate import greedy_answers, score_views

console = Console()
_ENCODER_GRID, _COMPRESSED_GRID = 16, 8
# Mean loss of an answer is divided by its typical summed weight, so that long answers count for more, not for all.
_TYPICAL_WEIGHT = 8.0


class Trainer:
    """One run: model, heads, optimiser and where it stands."""

    def __init__(self, run: TrainSettings, stages: Sequence[StageSettings], pack: Path | None, out: Path) -> None:
        self.run, self.stages, self.out = run, list(stages), out
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(run.seed)
        torch.set_num_threads(run.threads or os.cpu_count() or 1)
        cv2.setNumThreads(1)  # samples are drawn in a thread of their own, beside torch's
        recipes = list_recipes()
        tokenizer_file = out / "tokenizer.json"
        if not tokenizer_file.exists():
            labels = [label for recipe in recipes for label in recipe.label_names]
            built = build_tokenizer(corpus(recipes), labels, run.vocab_size)
            tokenizer_file.write_text(built.to_str(pretty=False), encoding="utf-8")
        self.tokenizer = InspectionTokenizer.load(tokenizer_file)
        vocab = -(-self.tokenizer.vocab_size // 64) * 64
        self.classes = sorted({label for recipe in recipes for label in recipe.label_names})
        config = AuroraEdgeConfig.from_preset(
            run.model,
            vocab_size=vocab,
            eos_token_id=self.tokenizer.eos_id,
            pad_token_id=self.tokenizer.pad_id,
            grounding_labels=self.classes,
        )
        self.model = AuroraEdgeForConditionalGeneration(config)
        # On CPU in bfloat16 plain matrix products are 1.4 times as fast as scaled_dot_product_attention at 256 tokens.
        for part in (config.vision_config, config.text_config):
            part._attn_implementation = "eager"
        if run.initial_encoder == "dinov2_small":
            encoder_from_dinov2(self.model.vision_model, load_dinov2(find_encoder()))
        ordered_location_embeddings(
            self.model.get_input_embeddings(), self.tokenizer.loc_ids, config.text_config.initializer_range
        )
        width = config.text_config.hidden_size
        self.heads = nn.ModuleDict(
            {
                "compressed": DenseHead(width, len(self.classes), _COMPRESSED_GRID),
                "copy": TokenHead(width),
                "presence": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1)),
            }
        )
        if run.precision == "bf16":
            self.model.bfloat16()
        self.dtype = self.model.projector.fc1.weight.dtype
        names = sorted({name for stage in stages for name in stage.mix})
        self.sources = open_sources(names, pack)
        self.held_out = open_sources(names, pack, split="val")
        self.weight_of = token_weights(self.tokenizer, vocab)
        self.soft_targets = soft_location_targets(self.tokenizer, vocab)
        # The least cross-entropy that a soft target allows; subtracted, so that a perfect answer has loss 0.
        self.floor = torch.special.entr(self.soft_targets).sum(-1)
        # Labels that the tokenizer spells in several tokens are recognised by their first.
        self.label_ids = torch.tensor([self.tokenizer.label_ids(label)[0] for label in self.classes])
        self.loc_ids = torch.from_numpy(self.tokenizer.loc_ids)
        self.settings_sha = settings_sha256(run, self.stages)
        self.progress = Progress(stage=0, step=0, settings_sha256=self.settings_sha)
        self.writer = SummaryWriter(str(out / "tensorboard"))
        self.optimizer = self._optimizer(self.stages[0])
        self.last = float("nan")
        self._history: list[dict[str, float]] = []

    def _optimizer(self, stage: StageSettings) -> MasterAdamW:
        """An optimiser over the parts that the stage trains; the others are frozen."""
        model = self.model
        groups = named_parts(
            [
                ("encoder", "vision_model", model.vision_model),
                ("connectors", "projector", model.projector),
                ("connectors", "compressor", model.compressor),
                ("connectors", "fusion", model.fusion),
                ("decoder", "language_model", model.language_model),
                ("connectors", "grounding", model.grounding),
                ("connectors", "heads", self.heads),
            ]
        )
        for part, named in groups.items():
            for _, parameter in named:
                parameter.requires_grad_(part in stage.learning_rate)
        trained = {part: named for part, named in groups.items() if part in stage.learning_rate}
        return MasterAdamW(trained, stage.weight_decay)

    # -- one step ------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, stage: StageSettings) -> dict[str, torch.Tensor]:
        """Losses by name; `total` is their weighted sum."""
        model = self.model
        with torch.set_grad_enabled("encoder" in stage.learning_rate):
            features = model.vision_model(
                pixel_values=batch.pixel_values.to(self.dtype),
                pixel_attention_mask=torch.ones(batch.pixel_values.shape[:2], dtype=torch.long),
                spatial_shapes=torch.full((len(batch.samples), 2), _ENCODER_GRID),
            ).last_hidden_state
        visual = model.projector(features)
        patch_mask = visual.new_ones(visual.shape[:2])
        compressed = model.compressor(visual, patch_mask)
        fused = model.fuse(batch.input_ids, batch.attention_mask, visual[batch.view], patch_mask[batch.view])
        inputs = model.decoder_inputs(
            compressed[batch.view], fused, batch.attention_mask, batch.answer_ids, batch.answer_mask
        )
        logits = model.language_model(**inputs, use_cache=False, logits_to_keep=batch.labels.shape[1]).logits
        entropy = -(self.soft_targets[batch.labels] * F.log_softmax(logits.float(), -1)).sum(-1)
        entropy = entropy - self.floor[batch.labels]
        losses = {"tokens": (entropy * batch.weights).sum() / (len(batch.view) * _TYPICAL_WEIGHT)}
        verdict = entropy[:, 0].detach().mean()
        total = losses["tokens"]
        asked = batch.presence >= 0
        if asked.any():
            # Each label of the prompt must know, after the fusion, whether it is on the view.
            logit = self.heads["presence"](fused[asked].float())[:, 0]
            losses["presence"] = F.binary_cross_entropy_with_logits(logit, batch.presence[asked])
            total = total + stage.presence * losses["presence"]
        boxed = [i for i, sample in enumerate(batch.samples) if sample.image_class is None or sample.targets]
        index = {name: i for i, name in enumerate(self.classes)}
        evidence, presence = model.grounding(visual, patch_mask)
        losses["visual/presence"] = presence_loss(presence.float(), batch.samples, index)
        total = total + stage.presence * losses["visual/presence"]
        if boxed:
            chosen = [batch.samples[i] for i in boxed]
            for name, raw, grid, weight in (
                ("visual", evidence, _ENCODER_GRID, stage.dense_visual),
                ("compressed", self.heads["compressed"](compressed.float()), _COMPRESSED_GRID, stage.dense_compressed),
            ):
                if weight:
                    classes, boxes, _ = dense_targets(chosen, index, grid)
                    parts = dense_loss(raw[boxed].float(), classes, boxes, grid)
                    losses |= {f"{name}/{key}": value for key, value in parts.items()}
                    total = total + weight * sum(parts.values())
                    if name == "compressed" and (classes >= 0).any():
                        there = classes >= 0
                        table = model.get_input_embeddings().weight
                        spelt = self.heads["copy"](compressed[boxed][there], table)
                        losses["copy"] = token_head_loss(
                            spelt, classes[there], boxes[there], self.label_ids, self.loc_ids, self.soft_targets
                        )
                        total = total + stage.copy_tokens * losses["copy"]
        return {**losses, "verdict": verdict, "total": total}

    def _rate(self, stage: StageSettings, step: int) -> float:
        """Factor of the learning rate: linear warm-up, constant, linear decay over the last part of the stage."""
        decay = stage.steps * stage.decay_fraction
        factor = min(1.0, (step + 1) / max(stage.warmup_steps, 1))
        return factor if decay == 0 else factor * min(1.0, (stage.steps - step) / decay)

    def _batches(self, stage: StageSettings, number: int, first: int) -> Iterator[Batch]:
        sources = [self.sources[name] for name in stage.mix]
        mix = np.array(list(stage.mix.values()))
        for step in range(first, stage.steps):
            yield draw_batch(
                (self.run.seed, number, step),
                sources,
                mix / mix.sum(),
                stage.batch_size,
                self.tokenizer,
                weight_of=self.weight_of,
                extra_prompts=stage.extra_prompts,
                kinds=stage.prompt_kinds,
            )

    def train(self) -> None:
        """Runs the remaining steps of all stages. Ctrl-C saves a checkpoint first."""
        global_step = sum(stage.steps for stage in self.stages[: self.progress.stage]) + self.progress.step
        for number in range(self.progress.stage, len(self.stages)):
            stage = self.stages[number]
            if number != self.progress.stage:
                self.progress = Progress(stage=number, step=0, settings_sha256=self.settings_sha)
                self.optimizer = self._optimizer(stage)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Bar(*columns, console=console) as bar:
                task = bar.add_task(stage.name, total=stage.steps, completed=self.progress.step)
                try:
                    for batch in prefetch(self._batches(stage, number, self.progress.step)):
                        began = time.perf_counter()
                        losses = self.loss(batch, stage)
                        losses["total"].backward()
                        factor = self._rate(stage, self.progress.step)
                        rates = {part: rate * factor for part, rate in stage.learning_rate.items()}
                        norm = self.optimizer.step(rates, stage.clip_norm)
                        self.progress = Progress(
                            stage=number, step=self.progress.step + 1, settings_sha256=self.settings_sha
                        )
                        global_step += 1
                        self._record(global_step, losses, norm, factor, time.perf_counter() - began)
                        bar.update(task, completed=self.progress.step, description=f"{stage.name} {self.last:.3f}")
                        if global_step % self.run.validate_every == 0:
                            self.validate(global_step)
                        if global_step % self.run.checkpoint_every == 0:
                            self.save()
                except KeyboardInterrupt:
                    self.save()
                    console.print(
                        f"Interrupted and saved at {stage.name} step {self.progress.step}; "
                        "run the same command again to go on."
                    )
                    raise
            self.save()
        self.validate(global_step)
        self.export()

    def _record(self, step: int, losses: dict[str, torch.Tensor], norm: float, factor: float, seconds: float) -> None:
        values = {name: float(value.detach()) for name, value in losses.items()}
        self.last = values["total"]
        if not np.isfinite(self.last):
            raise TrainingError(f"The loss of step {step} is {self.last}.", remedy="Lower the learning rate.")
        self._history = [*self._history, {**values, "norm": norm, "rate": factor, "seconds": seconds}]
        if len(self._history) >= 20:
            means = {key: float(np.mean([h.get(key, 0.0) for h in self._history])) for key in self._history[-1]}
            self._history = []
            for name, value in means.items():
                self.writer.add_scalar(f"train/{name}", value, step)
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": step, **{k: round(v, 4) for k, v in means.items()}}) + "\n")

    # -- validation, checkpoints, export -------------------------------------------------------------------------

    def validate(self, step: int) -> dict[str, dict[str, float]]:
        """View-level scores by source on the `val` split (generated sources: on seeds that training never draws)."""
        self.model.eval()
        scores = {}
        for position, (name, source) in enumerate(self.held_out.items()):
            samples, answers = [], []
            for first in range(0, self.run.validation_views, 16):
                batch = self._validation_batch(source, position, first)
                samples += batch.samples
                answers += greedy_answers(self.model, self.tokenizer, batch)
            scores[name] = score_views(samples, answers)
            for key, value in scores[name].items():
                self.writer.add_scalar(f"val/{name}/{key}", value, step)
        self.model.train()
        text = "; ".join(f"{n} " + " ".join(f"{k}={v:.3f}" for k, v in s.items()) for n, s in scores.items())
        console.print(f"step {step}: {text}")
        with (self.out / "validation.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, "scores": scores}) + "\n")
        return scores

    def _validation_batch(self, source: Source, position: int, first: int) -> Batch:
        kind = PromptKind.CLASSIFY if source.recipe.task == "classify" else PromptKind.INSPECT
        return draw_batch(
            (2**31 + self.run.seed, position, first),
            [source],
            np.ones(1),
            min(16, self.run.validation_views - first),
            self.tokenizer,
            weight_of=self.weight_of,
            extra_prompts=0.0,
            kinds={kind: 1.0},
        )

    def save(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors.pop("model.language_model.lm_head.weight", None)  # tied to the embedding table
        tensors |= {f"heads.{name}": tensor for name, tensor in self.heads.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state_tensors().items()}
        save_checkpoint(self.out / "checkpoint", self.progress, tensors)

    def resume(self, *, extend: bool = False) -> bool:
        """Goes on from the checkpoint in `out`, where there is one. `extend` allows changed settings."""
        found = load_checkpoint(self.out / "checkpoint")
        if found is None:
            return False
        progress, tensors = found
        if progress.settings_sha256 != self.settings_sha and not extend:
            raise TrainingError(
                f"{self.out} holds a checkpoint of other settings.",
                field="out",
                remedy="Choose another folder, restore the settings, or pass --extend to go on with the new ones.",
            )

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."), strict=False)
        self.heads.load_state_dict(part("heads."), strict=not extend)
        self.progress = Progress(stage=progress.stage, step=progress.step, settings_sha256=self.settings_sha)
        self.optimizer = self._optimizer(self.stages[progress.stage])
        self.optimizer.load_state_tensors(part("optimizer."))
        console.print(f"Resuming stage {self.stages[progress.stage].name} after step {progress.step}.")
        return True

    def export(self) -> Path:
        """The model in Hugging Face form (float16 safetensors), with tokenizer, in `out`/model."""
        folder = self.out / "model"
        exported = AuroraEdgeForConditionalGeneration(self.model.config)
        state = dict(self.model.state_dict())
        state |= {n: m for n, m in self.optimizer.masters.items() if n in state}
        exported.load_state_dict(state)
        exported.half().save_pretrained(folder)
        (folder / "tokenizer.json").write_text(
            (self.out / "tokenizer.json").read_text(encoding="utf-8"), encoding="utf-8"
        )
        return folder


def main_train(
    recipe: str = "nano",
    *,
    pack: Path | None = None,
    out: Path = Path("runs/nano"),
    extend: bool = False,
    stage_overrides: dict[str, dict[str, Any]] | None = None,
    **overrides: Any,
) -> Path:
    """Trains a recipe, resuming where `out` holds a checkpoint; returns the folder of the exported model.

    Without a pack the generator's parts are all there is: the other sources of the stages' mixes are left out.
    overrides replace fields of TrainSettings, stage_overrides[name] fields of a stage. Raises TrainingError,
    DatasetError, MissingDependencyError.
    """
    run, stages = load_training(recipe)
    run = run.model_copy(update={k: v for k, v in overrides.items() if v is not None})
    stages = [s.model_copy(update=(stage_overrides or {}).get(s.name, {})) for s in stages]
    if pack is None:
        stages = [
            s.model_copy(update={"mix": {n: w for n, w in s.mix.items() if n.startswith("generated_")}}) for s in stages
        ]
    trainer = Trainer(run, stages, pack, out)
    trainer.resume(extend=extend)
    counts = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in parameter_counts(trainer.model).items())
    console.print(f"{run.name}: {counts}")
    trainer.train()
    return out / "model"
