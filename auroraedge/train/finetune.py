"""Fine-tuning on one's own parts: `auroraedge finetune --data DIR --out DIR`.

Augmented views are drawn once and go once through the encoder layers that do not move; training then runs on what
they gave (on disk, float16), so that a step costs the last layers, the connectors and the decoder alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from auroraedge.data.instructions import Sample, make_sample
from auroraedge.data.pack import PackItem
from auroraedge.errors import TrainingError
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.views import patchify
from auroraedge.train.auxiliary import dense_loss, dense_targets, presence_loss
from auroraedge.train.batches import Batch, collate, soft_location_targets, token_weights
from auroraedge.train.checkpoint import Progress as Standing
from auroraedge.train.checkpoint import load_checkpoint, save_checkpoint
from auroraedge.train.finetune_data import HeldOut, held_out_views, training_source
from auroraedge.train.finetune_model import Base, Tuned, tokenizer_of
from auroraedge.train.finetune_score import score_held_out
from auroraedge.train.finetune_settings import RATES, FinetuneSettings

_TYPICAL_WEIGHT = 8.0  # as in train.run
_CHUNK = 8  # views that go through the frozen layers together; fixed, so that a resumed run sees the same numbers
_EMPTY = np.zeros((1, 1, 3), dtype=np.uint8)


class FineTuner:
    """One run: the tuned model, its pool of views, val, and where it stands. `run` trains and exports."""

    def __init__(
        self,
        *,
        base: Base,
        items: Sequence[PackItem],
        recipe: Recipe,
        settings: FinetuneSettings,
        out: Path,
        content_sha256: str,
        console: Console,
    ) -> None:
        """items: of all splits; content_sha256: of the data, so that a checkpoint of other data is refused."""
        self.base, self.recipe, self.settings, self.out, self.console = base, recipe, settings, out, console
        self.work = out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads or os.cpu_count() or 1)
        cv2.setNumThreads(1)
        self.tokenizer = tokenizer_of(base, recipe.label_names)
        self.tuned = Tuned(base, recipe.label_names, settings)
        self.train_items = [item for item in items if item.split == "train"]
        self.val_items = [item for item in items if item.split == "val"]
        self.labels = list(self.tuned.model.config.grounding_labels)
        self.index = {label: i for i, label in enumerate(self.labels)}
        vocab = self.tuned.model.config.text_config.vocab_size
        self._weight_of = token_weights(self.tokenizer, vocab)
        self._soft = soft_location_targets(self.tokenizer, vocab) if vocab <= 8192 else None
        self._floor = None if self._soft is None else torch.special.entr(self._soft).sum(-1)
        self.sha = settings.sha256(base.weights_sha256, content_sha256, recipe.sha256)
        self.steps = settings.steps_for(len(self.train_items))
        self.step = 0
        self.best: dict[str, torch.Tensor] = {}
        self.best_score, self.best_step, self.stale = -1.0, 0, 0
        self.history: list[dict[str, float]] = []

    # -- views -----------------------------------------------------------------------------------------------------

    def _draw(self, count: int) -> Iterator[Sample]:
        source = training_source(self.train_items, self.recipe, paste=self.settings.paste)
        for index in range(count):
            rng = np.random.default_rng([self.settings.seed, 7, index])
            yield make_sample(rng, source, self.tokenizer, extra_prompts=0.2)

    def _encode(self, name: str, samples: Iterator[Sample], count: int) -> tuple[list[Sample], np.ndarray]:
        """Samples without their pixels, and what the frozen layers make of them, [count, 256, E] float16 on disk.

        Goes on where an interrupted call stopped.
        """
        width = self.tuned.model.config.vision_config.hidden_size
        store, mark = self.work / f"{name}.npy", self.work / f"{name}.json"
        known = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {}
        done = int(known.get("done", 0)) if known.get("sha256") == self.sha and store.is_file() else 0
        array = np.lib.format.open_memmap(
            store, mode="r+" if done else "w+", dtype=np.float16, shape=None if done else (count, 256, width)
        )
        kept: list[Sample] = []
        chunk: list[Sample] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as bar, torch.no_grad():
            task = bar.add_task(f"{name} views", total=count)
            for sample in samples:
                chunk.append(sample)
                if len(chunk) == _CHUNK or len(kept) + len(chunk) == count:
                    first = len(kept)
                    if first + len(chunk) > done:
                        pixels = torch.from_numpy(patchify(np.stack([s.pixels for s in chunk])))
                        hidden = self.tuned.stem(pixels.float().div_(127.5).sub_(1.0))
                        array[first : first + len(chunk)] = hidden.float().numpy().astype(np.float16)
                        array.flush()
                        mark.write_text(json.dumps({"sha256": self.sha, "done": first + len(chunk)}), encoding="utf-8")
                    kept += [replace(s, pixels=_EMPTY) for s in chunk]
                    chunk = []
                    bar.update(task, completed=len(kept))
        return kept, array

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        """Prompts and answers of samples. Their pixels are gone, so the batch's pixel_values say nothing."""
        blank = np.zeros((256, 256, 3), dtype=np.uint8)
        return collate([replace(s, pixels=blank) for s in samples], self.tokenizer, self._weight_of)

    # -- losses ----------------------------------------------------------------------------------------------------

    def losses(self, samples: Sequence[Sample], hidden: np.ndarray) -> dict[str, torch.Tensor]:
        """Token, presence and dense losses; `total` is their sum. hidden [B, 256, E]: what `Tuned.stem` gave.

        The decoder answers for the first `answer_views` samples alone; the grounding head is trained on all of them.
        """
        model = self.tuned.model
        visual = self.tuned.visual(torch.from_numpy(hidden.astype(np.float32)))
        mask = visual.new_ones(visual.shape[:2])
        evidence, presence = model.grounding(visual, mask)
        losses = {"presence": presence_loss(presence.float(), samples, self.index)}
        asked = min(self.settings.answer_views, len(samples))
        if asked:
            batch = self._batch(samples[:asked])
            logits = self._answer_logits(batch, visual[:asked], mask[:asked])
            losses["tokens"] = self._token_loss(logits, batch)
        boxed = [i for i, sample in enumerate(samples) if sample.image_class is None or sample.targets]
        if boxed:
            raw = evidence[boxed].float()
            grid = round(raw.shape[1] ** 0.5)
            classes, boxes, _ = dense_targets([samples[i] for i in boxed], self.index, grid)
            # The labels of a sample's recipe compete with each other alone, as they do at inference.
            others = torch.full((len(boxed), 1, len(self.labels)), -1e4)
            for row, i in enumerate(boxed):
                others[row, 0, [self.index[label] for label in samples[i].labels]] = 0.0
            raw = torch.cat([raw[..., :1], raw[..., 1:-4] + others, raw[..., -4:]], -1)
            losses |= {f"visual/{k}": v for k, v in dense_loss(raw, classes, boxes, grid).items()}
        return {**losses, "total": torch.stack(list(losses.values())).sum()}

    def _answer_logits(self, batch: Batch, visual: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        model = self.tuned.model
        compressed = model.compressor(visual, mask)
        fused = model.fuse(batch.input_ids, batch.attention_mask, visual[batch.view], mask[batch.view])
        inputs = model.decoder_inputs(
            compressed[batch.view], fused, batch.attention_mask, batch.answer_ids, batch.answer_mask
        )
        return model.language_model(**inputs, use_cache=False, logits_to_keep=batch.labels.shape[1]).logits.float()

    def _token_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        if self._soft is None:  # a vocabulary too large for a table of soft targets
            entropy = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
            entropy = entropy.view(batch.labels.shape)
        else:
            entropy = -(self._soft[batch.labels] * F.log_softmax(logits, -1)).sum(-1) - self._floor[batch.labels]
        return (entropy * batch.weights).sum() / (len(batch.view) * _TYPICAL_WEIGHT)

    # -- validation ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, held: Sequence[HeldOut], samples: Sequence[Sample], hidden: np.ndarray) -> dict[str, float]:
        """Scores of val with the weights as they are; see finetune_score."""
        model = self.tuned.model.eval()
        evidence, presence, verdict = [], [], []
        for first in range(0, len(samples), 16):
            part = [replace(s, answers=((self.tokenizer.eos_id,),)) for s in samples[first : first + 16]]
            batch = self._batch(part)
            visual = self.tuned.visual(torch.from_numpy(hidden[first : first + 16].astype(np.float32)))
            mask = visual.new_ones(visual.shape[:2])
            e, p = model.grounding(visual, mask)
            first_token = self._answer_logits(batch, visual, mask)[:, 0]
            evidence += list(e.float().numpy())
            presence += list(p.float().numpy())
            verdict += (first_token[:, self.tokenizer.ng_id] - first_token[:, self.tokenizer.ok_id]).tolist()
        self.tuned.model.train()
        ends = np.cumsum([len(h.samples) for h in held])[:-1]
        groups = [np.split(np.array(values), ends) for values in (evidence, presence, verdict)]
        return score_held_out(held, *groups, self.recipe, self.labels)

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Trains to the end, or to the last better score on val, and writes OUT/model. Ctrl-C saves first."""
        self._resume()
        pool = self.settings.pool_for(len(self.train_items))
        samples, hidden = self._encode("train", self._draw(pool), pool)
        held = held_out_views(self.val_items, self.recipe)
        flat = [sample for h in held for sample in h.samples]
        val_samples, val_hidden = self._encode("val", iter(flat), len(flat)) if flat else ([], np.zeros((0,)))
        held = [replace(h, samples=tuple(replace(s, pixels=_EMPTY) for s in h.samples)) for h in held]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task("training", total=self.steps, completed=self.step)
            try:
                while self.step < self.steps and self.stale < self.settings.patience:
                    values = self._one_step(samples, hidden)
                    bar.update(task, completed=self.step, description=f"loss {values['total']:.3f}")
                    last = self.step == self.steps
                    if held and (self.step % self.settings.validate_every == 0 or last):
                        self._judge(self.validate(held, val_samples, val_hidden))
                    if self.step % self.settings.checkpoint_every == 0 or last:
                        self.save()
            except KeyboardInterrupt:
                self.save()
                self.console.print(f"Interrupted and saved at step {self.step}; run the same command again to go on.")
                raise
        self.save()
        masters = self.best or self.tuned.optimizer.masters
        model = self.tuned.export(self.out / "model", masters, self.about())
        for name in ("train.npy", "val.npy"):  # hundreds of megabytes that nothing needs any more
            (self.work / name).unlink(missing_ok=True)
        return model

    def _one_step(self, samples: Sequence[Sample], hidden: np.ndarray) -> dict[str, float]:
        began = time.perf_counter()
        rng = np.random.default_rng([self.settings.seed, 8, self.step])
        chosen = rng.choice(len(samples), size=min(self.settings.batch_size, len(samples)), replace=False)
        losses = self.losses([samples[i] for i in chosen], np.stack([hidden[i] for i in chosen]))
        losses["total"].backward()
        factor = min(1.0, (self.step + 1) / max(1, self.settings.warmup_steps))
        # Constant for the first half, then linearly down to a twentieth.
        rest = (self.steps - self.step) / self.steps
        factor *= max(0.05, min(1.0, 2 * rest)) * self.settings.rate_factor
        rates = {part: rate * factor for part, rate in RATES[self.settings.mode].items()}
        norm = self.tuned.optimizer.step(rates, self.settings.clip_norm)
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not np.isfinite(values["total"]):
            raise TrainingError(
                f"The loss of step {self.step} is {values['total']}.", remedy="Lower the rates with --rate-factor 0.3."
            )
        self.step += 1
        self._log({"step": self.step, **values, "norm": norm, "seconds": time.perf_counter() - began})
        return values

    def _judge(self, scores: dict[str, float]) -> None:
        """Keeps the weights of the best score; a tie goes to the later ones."""
        self.history.append({"step": float(self.step), **scores})
        if scores["score"] >= self.best_score:
            self.best = {name: tensor.detach().clone() for name, tensor in self.tuned.optimizer.masters.items()}
            self.best_score, self.best_step, self.stale = scores["score"], self.step, 0
        else:
            self.stale += 1
        text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self.console.print(f"step {self.step}: val {text}{' (best)' if self.stale == 0 else ''}")
        self._log({"step": self.step, "val": scores})

    def _log(self, record: dict[str, Any]) -> None:
        with (self.work / "log.jsonl").open("a", encoding="utf-8") as log:
            rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()}
            log.write(json.dumps(rounded) + "\n")

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """A checkpoint: trained weights, moments, the best weights, the scores so far."""
        tensors = {f"optimizer.{n}": t for n, t in self.tuned.optimizer.state_tensors().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        standing = torch.tensor([self.best_score, float(self.best_step), float(self.stale)], dtype=torch.float64)
        tensors["standing"] = standing
        text = json.dumps(self.history).encode()
        tensors["history"] = torch.from_numpy(np.frombuffer(text, np.uint8).copy())
        save_checkpoint(self.work / "checkpoint", Standing(stage=0, step=self.step, settings_sha256=self.sha), tensors)

    def _resume(self) -> None:
        found = load_checkpoint(self.work / "checkpoint")
        if found is None:
            return
        standing, tensors = found
        if standing.settings_sha256 != self.sha:
            raise TrainingError(
                f"{self.out} holds a run on other data, another base or other settings.",
                field="out",
                remedy="Choose another folder, or delete its `work` folder to start again.",
            )

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.tuned.optimizer.load_state_tensors(part("optimizer."))
        self.best = part("best.")
        self.best_score = float(tensors["standing"][0])
        self.best_step, self.stale = int(tensors["standing"][1]), int(tensors["standing"][2])
        self.history = json.loads(bytes(tensors["history"].numpy()).decode())
        self.step = standing.step
        self.console.print(f"Resuming after step {self.step}.")

    def about(self) -> dict[str, Any]:
        """What the exported model is made of, for finetune.json."""
        return {
            "sha256": self.sha,
            "base": self.base.name,
            "base_weights_sha256": self.base.weights_sha256,
            "settings": self.settings.model_dump(mode="json", exclude={"threads"}),
            "recipe_id": self.recipe.id,
            "labels": list(self.recipe.label_names),
            "new_labels": [label for label in self.recipe.label_names if label not in self.base.labels],
            "train_images": len(self.train_items),
            "val_images": len(self.val_items),
            "steps": self.step,
            "best_step": self.best_step if self.best else self.step,
            "best_val": {
                k: v for h in self.history if h["step"] == self.best_step for k, v in h.items() if k != "step"
            },
            "trained_parameters": self.tuned.trained,
        }
