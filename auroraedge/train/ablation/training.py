"""The loop that all training of the experiments runs in, with checkpoints that resume to the exact step."""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from auroraedge.errors import TrainingError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration
from auroraedge.train.ablation.bank import Bank, Example, part_examples, single_view_examples
from auroraedge.train.ablation.network import (
    Reconstruction,
    connect,
    logits_at,
    packed_hidden,
    patch_pixels,
    token_loss,
)
from auroraedge.train.ablation.questions import pack, teach
from auroraedge.train.ablation.scoring import features_of
from auroraedge.train.ablation.variants import Variant
from auroraedge.train.batches import soft_location_targets
from auroraedge.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from auroraedge.train.optimiser import MasterAdamW, named_parts

MIX = {"deeppcb": 0.5, "magnetic_tile": 0.22, "ball_screw": 0.1, "steel_strip_xsdd": 0.18}
_SAVE_EVERY = 50
_LOG_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every variant gets: its turn in `shared_steps` of joint training, then `steps` of its own.

    places: also score the boxes that are named, which takes as long as all other scoring together and needs a longer
    training than the default to show anything.
    """

    shared_steps: int = 705
    steps: int = 0
    batch_size: int = 8
    shared_rate: float = 4e-3
    rate: float = 2e-3
    warmup_steps: int = 20
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    reconstruction_weight: float = 0.5
    places: bool = False
    threads: int = 1

    def sha256(self, keys: dict[str, str]) -> str:
        content = {**asdict(self), **keys}
        content.pop("threads")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def examples_of(variant: Variant, bank: Bank) -> list[Example]:
    return part_examples(bank, variant.frames) if variant.parts else single_view_examples(bank)


class Training:
    """Steps of one optimiser over `modules` (by name) in a folder of its own. Subclasses say what a step learns."""

    def __init__(
        self,
        folder: Path,
        sha: str,
        modules: dict[str, torch.nn.Module],
        budget: Budget,
        bank: Bank,
        tokenizer: InspectionTokenizer,
        *,
        steps: int,
        rate: float,
    ) -> None:
        self.folder, self.sha, self.modules, self.budget = folder, sha, modules, budget
        self.bank, self.tokenizer, self.steps, self.rate = bank, tokenizer, steps, rate
        parts = [("all", name, module) for name, module in modules.items()]
        self.optimizer = MasterAdamW(named_parts(parts), budget.weight_decay)
        vocab = -(-tokenizer.vocab_size // 64) * 64
        self.soft = soft_location_targets(tokenizer, vocab)
        self.floor = torch.special.entr(self.soft).sum(-1)
        self.done = 0
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        """Losses of a step by name; `total` is what is learnt."""
        raise NotImplementedError

    def batch_loss(
        self,
        seed: Sequence[int],
        model: AuroraEdgeForConditionalGeneration,
        rebuild: Reconstruction | None,
        examples: Sequence[Example],
    ) -> dict[str, torch.Tensor]:
        """Losses of the batch that the seed draws from `examples`."""
        rng = np.random.default_rng(list(seed))
        by_set: dict[str, list[Example]] = {}
        for example in examples:
            by_set.setdefault(example.set_name, []).append(example)
        names = [name for name in MIX if name in by_set]
        mix = np.array([MIX[name] for name in names])
        # A board costs up to four views.
        size = max(1, self.budget.batch_size // 2) if examples[0].whole else self.budget.batch_size
        drawn = rng.choice(len(names), size=size, p=mix / mix.sum())
        pools = [by_set[names[int(k)]] for k in drawn]
        batch = [pool[int(rng.integers(len(pool)))] for pool in pools]
        packed = pack([teach(self.tokenizer, example, rng) for example in batch], self.tokenizer.pad_id)
        connected = connect(model, features_of(self.bank, batch))
        hidden = packed_hidden(model, connected, packed)
        logits = logits_at(model, hidden, packed.targets >= 0)
        losses = token_loss(logits, packed, self.soft, self.floor, (self.tokenizer.ok_id, self.tokenizer.ng_id))
        losses["total"] = losses["tokens"]
        if rebuild is not None:
            if rebuild.kind == "visual":
                target = connected[0]
            else:
                views = [view for example in batch for view in example.views]
                target = patch_pixels(torch.from_numpy(self.bank.thumbs[views]))
            losses["rebuild"] = rebuild(connected[1], target)
            losses["total"] = losses["tokens"] + self.budget.reconstruction_weight * losses["rebuild"]
        return losses

    def weights(self) -> dict[str, torch.Tensor]:
        """All that is trained, by module and name; a tied LM head once."""
        found = {f"{name}.{key}": t for name, module in self.modules.items() for key, t in module.state_dict().items()}
        return {key: t.contiguous() for key, t in found.items() if not key.endswith("lm_head.weight")}

    def train(self, console: Console, title: str) -> None:
        """Runs the remaining steps, with a checkpoint every 50.

        An interrupt loses what came after the last one: it may fall into the middle of a step, and half a step saved
        would not be resumed to the same weights.
        """
        self._resume()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        recent: list[dict[str, float]] = []
        with Bar(*columns, console=console) as bar:
            task = bar.add_task(title, total=self.steps, completed=self.done)
            while self.done < self.steps:
                began = time.process_time()
                losses = self.losses(self.done)
                losses["total"].backward()
                warm = min(1.0, (self.done + 1) / max(self.budget.warmup_steps, 1))
                rate = self.rate * warm * min(1.0, 3 * (1 - self.done / self.steps))
                norm = self.optimizer.step({"all": rate}, self.budget.clip_norm)
                recent.append({**{k: float(v.detach()) for k, v in losses.items()}, "norm": norm})
                self.seconds += time.process_time() - began
                self.done += 1
                if not np.isfinite(recent[-1]["total"]):
                    raise TrainingError(f"The loss of step {self.done} of {title} is not finite.")
                if self.done % _LOG_EVERY == 0:
                    means = {
                        k: round(float(np.mean([r[k] for r in recent if k in r])), 4)
                        for k in ("tokens", "verdict", "norm")
                    }
                    self.log.append({"step": self.done, **means})
                    recent = []
                    bar.update(task, description=f"{title} {means['tokens']:.3f}")
                bar.update(task, completed=self.done)
                if self.done % _SAVE_EVERY == 0 and self.done < self.steps:
                    self._save()

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
            raise other_settings(self.folder)
        self.optimizer.load_state_tensors({k.removeprefix("optimizer."): v for k, v in tensors.items()})
        self.done = progress.step
        if (self.folder / "log.json").is_file():
            about = json.loads((self.folder / "log.json").read_text(encoding="utf-8"))
            self.seconds = about["seconds"]
            self.log = [entry for entry in about["log"] if entry["step"] <= self.done]


def other_settings(folder: Path) -> TrainingError:
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
        raise other_settings(folder)
    return result
