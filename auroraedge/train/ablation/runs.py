"""Training of one variant with one seed: the same start, views, questions and number of steps for all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from safetensors.torch import load_file, save_file

from auroraedge.errors import TrainingError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.train.ablation.bank import Bank, Example, part_examples, single_view_examples
from auroraedge.train.ablation.network import (
    Reconstruction,
    build_network,
    connect,
    logits_at,
    packed_hidden,
    patch_pixels,
    token_loss,
)
from auroraedge.train.ablation.questions import pack, teach
from auroraedge.train.ablation.scoring import answer, features_of
from auroraedge.train.ablation.variants import Variant
from auroraedge.train.batches import soft_location_targets
from auroraedge.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from auroraedge.train.initialise import ordered_location_embeddings
from auroraedge.train.optimiser import MasterAdamW, named_parts

MIX = {"deeppcb": 0.5, "magnetic_tile": 0.22, "ball_screw": 0.1, "steel_strip_xsdd": 0.18}
# The start learns to read any number of block averages, so that it prefers none of the variants.
POOLS = {256: 0.1, 128: 0.2, 64: 0.3, 32: 0.2, 16: 0.2}
START = Variant(tokens=256, fusion="none")
_SAVE_EVERY = 50
_LOG_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every variant gets. start_steps: of the common start, which is trained once."""

    steps: int = 120
    start_steps: int = 600
    batch_size: int = 8
    rate: float = 1.5e-3
    start_rate: float = 2e-3
    warmup_steps: int = 20
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    reconstruction_weight: float = 0.5
    threads: int = 1

    def sha256(self, keys: dict[str, str]) -> str:
        content = {**asdict(self), **keys}
        content.pop("threads")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Run:
    """One training run in a folder of its own: `checkpoint` while it lasts, `result.json` and weights when finished."""

    def __init__(
        self,
        folder: Path,
        variant: Variant,
        seed: int,
        budget: Budget,
        banks: dict[str, Bank],
        tokenizer: InspectionTokenizer,
        start: Path | None,
    ) -> None:
        self.folder, self.variant, self.seed, self.budget = folder, variant, seed, budget
        self.banks, self.tokenizer = banks, tokenizer
        self.is_start = start is None
        self.steps = budget.start_steps if self.is_start else budget.steps
        self.rate = budget.start_rate if self.is_start else budget.rate
        start_sha = "" if start is None else hashlib.sha256(start.read_bytes()).hexdigest()[:16]
        keys = {split: bank.key for split, bank in sorted(banks.items())}
        keys |= {"variant": json.dumps(asdict(variant), sort_keys=True), "start": start_sha}
        self.sha = budget.sha256(keys)
        torch.set_num_threads(budget.threads)
        torch.manual_seed(seed)
        vocab = -(-tokenizer.vocab_size // 64) * 64
        width = banks["train"].features.shape[-1]
        self.model = build_network(variant, vocab, tokenizer.eos_id, tokenizer.pad_id, width)
        if start is None:
            std = self.model.config.text_config.initializer_range
            ordered_location_embeddings(self.model.get_input_embeddings(), tokenizer.loc_ids, std)
        else:
            self._load_start(start)
        self.rebuild: Reconstruction | None = None
        if variant.reconstruction != "none":
            size = self.model.config.text_config.hidden_size
            self.rebuild = Reconstruction(variant.reconstruction, variant.tokens, 256, size)
        parts: list[tuple[str, str, torch.nn.Module]] = [
            ("all", name, module)
            for name, module in (
                ("projector", self.model.projector),
                ("compressor", self.model.compressor),
                ("fusion", self.model.fusion),
                ("frame_embedding", self.model.frame_embedding),
                ("language_model", self.model.language_model),
                ("rebuild", self.rebuild),
            )
            if module is not None
        ]
        self.optimizer = MasterAdamW(named_parts(parts), budget.weight_decay)
        self.soft = soft_location_targets(tokenizer, vocab)
        self.floor = torch.special.entr(self.soft).sum(-1)
        self.examples = {split: self._examples(bank) for split, bank in banks.items()}
        self.by_set: dict[str, list[Example]] = {}
        for example in self.examples["train"]:
            self.by_set.setdefault(example.set_name, []).append(example)
        self.done = 0
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []

    def _examples(self, bank: Bank) -> list[Example]:
        return part_examples(bank, self.variant.frames) if self.variant.parts else single_view_examples(bank)

    @torch.no_grad()
    def _load_start(self, start: Path) -> None:
        """Projector, decoder and norm of the common start; compressor and fusion begin anew from the seed."""
        missing, unexpected = self.model.load_state_dict(load_file(start), strict=False)
        wrong = [name for name in missing if name.startswith(("projector.", "language_model.model."))]
        if wrong or unexpected:
            raise TrainingError(f"{start} does not fit the variant: {[*wrong, *unexpected][:3]}.", field="out")

    def weights(self) -> dict[str, torch.Tensor]:
        state = self.model.state_dict()
        left_out = ("vision_model.", "language_model.lm_head.")
        return {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith(left_out)}

    # -- training ------------------------------------------------------------------------------------------------

    def _loss(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, step])
        names = [name for name in MIX if name in self.by_set]
        mix = np.array([MIX[name] for name in names])
        drawn = rng.choice(len(names), size=self.budget.batch_size, p=mix / mix.sum())
        pools = [self.by_set[names[int(k)]] for k in drawn]
        batch = [pool[int(rng.integers(len(pool)))] for pool in pools]
        packed = pack([teach(self.tokenizer, example, rng) for example in batch], self.tokenizer.pad_id)
        pool = int(rng.choice(list(POOLS), p=list(POOLS.values()))) if self.is_start else None
        bank = self.banks["train"]
        connected = connect(self.model, features_of(bank, batch), pool)
        hidden = packed_hidden(self.model, connected, packed)
        logits = logits_at(self.model, hidden, packed.targets >= 0)
        losses = {"tokens": token_loss(logits, packed, self.soft, self.floor)}
        losses["total"] = losses["tokens"]
        if self.rebuild is not None:
            if self.variant.reconstruction == "visual":
                target = connected[0]
            else:
                views = [view for example in batch for view in example.views]
                target = patch_pixels(torch.from_numpy(bank.thumbs[views]))
            losses["rebuild"] = self.rebuild(connected[1], target)
            losses["total"] = losses["tokens"] + self.budget.reconstruction_weight * losses["rebuild"]
        return losses

    def train(self, console: Console, title: str) -> None:
        """Runs the remaining steps; a checkpoint every 50, and on Ctrl-C or SIGTERM."""
        self._resume()
        self.model.train()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        recent: list[dict[str, float]] = []
        with Bar(*columns, console=console) as bar:
            task = bar.add_task(title, total=self.steps, completed=self.done)
            try:
                while self.done < self.steps:
                    began = time.process_time()
                    losses = self._loss(self.done)
                    losses["total"].backward()
                    warm = min(1.0, (self.done + 1) / max(self.budget.warmup_steps, 1))
                    rate = self.rate * warm * (1 - self.done / self.steps)
                    norm = self.optimizer.step({"all": rate}, self.budget.clip_norm)
                    recent.append({**{k: float(v.detach()) for k, v in losses.items()}, "norm": norm})
                    self.seconds += time.process_time() - began
                    self.done += 1
                    if not np.isfinite(recent[-1]["total"]):
                        raise TrainingError(f"The loss of step {self.done} of {title} is not finite.")
                    if self.done % _LOG_EVERY == 0:
                        means = {k: round(float(np.mean([r[k] for r in recent])), 4) for k in recent[0]}
                        self.log.append({"step": self.done, **means})
                        recent = []
                        bar.update(task, description=f"{title} {means['tokens']:.3f}")
                    bar.update(task, completed=self.done)
                    if self.done % _SAVE_EVERY == 0 and self.done < self.steps:
                        self._save()
            except KeyboardInterrupt:
                self._save()
                raise

    def _save(self) -> None:
        progress = Progress(stage=0, step=self.done, settings_sha256=self.sha)
        tensors = {f"optimizer.{k}": v for k, v in self.optimizer.state_tensors().items()}
        save_checkpoint(self.folder / "checkpoint", progress, tensors)
        about = {"seconds": self.seconds, "log": self.log}
        (self.folder / "log.json").write_text(json.dumps(about), encoding="utf-8")

    def _resume(self) -> None:
        found = load_checkpoint(self.folder / "checkpoint")
        if found is None:
            return
        progress, tensors = found
        if progress.settings_sha256 != self.sha:
            raise _other_settings(self.folder)
        self.optimizer.load_state_tensors({k.removeprefix("optimizer."): v for k, v in tensors.items()})
        self.done = progress.step
        if (self.folder / "log.json").is_file():
            about = json.loads((self.folder / "log.json").read_text(encoding="utf-8"))
            self.seconds = about["seconds"]
            self.log = [entry for entry in about["log"] if entry["step"] <= self.done]

    def finish(self, console: Console) -> dict[str, Any]:
        """Scores `test` (the start: `val`), writes weights and result, drops the checkpoint."""
        pool = 64 if self.is_start else None
        scores = {}
        for split in ("val",) if self.is_start else ("test",):
            console.print(f"  {self.folder.name}: scoring {split}")
            found = answer(self.model, self.tokenizer, self.banks[split], self.examples[split], pool)
            scores[split] = {name: [round(v, 4) for v in values] for name, values in found.items()}
        save_file(self.weights(), self.folder / "weights.safetensors")
        result = {
            "variant": asdict(self.variant),
            "seed": self.seed,
            "settings_sha256": self.sha,
            "budget": asdict(self.budget),
            "steps": self.steps,
            "cpu_seconds": round(self.seconds, 1),
            "parameters": sum(p.numel() for p in self.optimizer.masters.values()),
            "log": self.log,
            "scores": scores,
        }
        fresh = self.folder / "result.json.new"
        fresh.write_text(json.dumps(result), encoding="utf-8")
        os.replace(fresh, self.folder / "result.json")
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        return result


def _other_settings(folder: Path) -> TrainingError:
    return TrainingError(
        f"{folder} holds a run of other settings.",
        field="out",
        remedy="Choose another --out, or restore the settings.",
    )


@contextmanager
def claimed(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone works in the folder; the claim ends with the process. wait: until it does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def finished(folder: Path, sha: str | None = None) -> dict[str, Any] | None:
    """The result of a finished run, or None. Raises TrainingError when it is one of other settings."""
    if not (folder / "result.json").is_file():
        return None
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if sha is not None and result["settings_sha256"] != sha:
        raise _other_settings(folder)
    return result
