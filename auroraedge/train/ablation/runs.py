"""One variant with one seed: from the joint training of that seed, with steps of its own, to its answers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from auroraedge.errors import TrainingError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration
from auroraedge.train.ablation.bank import Bank
from auroraedge.train.ablation.network import Reconstruction, build_network
from auroraedge.train.ablation.scoring import answer
from auroraedge.train.ablation.training import Budget, Training, examples_of
from auroraedge.train.ablation.variants import VARIANTS, Variant


def module_names(variant: Variant) -> dict[str, str]:
    """Which modules of the joint training a variant is made of: 'projector', ... -> name there."""
    fusion = f"fusion-{variant.fusion}" + (f"-{variant.depth}" if variant.fusion == "combined" else "")
    compressor = f"compressor-{variant.tokens}-{variant.reconstruction}"
    if variant.parts:
        board = f"-board-{variant.frames}x{variant.tokens}" + ("" if variant.frame_embedding else "-noembed")
        fusion, compressor = fusion + board, compressor + board
    names = {"projector": "projector", "language_model": "language_model", "compressor": compressor}
    if variant.fusion != "none":
        names["fusion"] = fusion
    if variant.frames > 1 and variant.frame_embedding:
        names["frame_embedding"] = f"frames-{variant.frames}x{variant.tokens}"
    if variant.reconstruction != "none":
        names["rebuild"] = f"rebuild-{variant.reconstruction}"
    return names


def new_rebuild(variant: Variant, width: int) -> Reconstruction | None:
    if variant.reconstruction == "none":
        return None
    return Reconstruction(variant.reconstruction, variant.tokens, 256, width)


def _part(model: AuroraEdgeForConditionalGeneration, rebuild: Reconstruction | None, own: str) -> torch.nn.Module:
    part = rebuild if own == "rebuild" else getattr(model, own)
    assert isinstance(part, torch.nn.Module)
    return part


def _bank_keys(banks: dict[str, Bank]) -> dict[str, str]:
    return {split: bank.key for split, bank in sorted(banks.items())}


_READ = (
    Variant(tokens=256),
    Variant(tokens=128),
    Variant(tokens=64),
    Variant(tokens=32),
    Variant(tokens=16),
    Variant(reconstruction="visual"),
    Variant(reconstruction="pixels"),
)
_FUSED = (
    Variant(fusion="none"),
    Variant(fusion="cross"),
    Variant(depth=1),
    Variant(depth=2),
    Variant(depth=4),
)
_BOARD_TURNS = 3


def one_round() -> list[Variant]:
    """Every compressor with every fusion once, and every variant about boards three times."""
    grid = [
        replace(read, fusion=fused.fusion, depth=fused.depth if fused.fusion == "combined" else 1)
        for read in _READ
        for fused in _FUSED
    ]
    return grid + [variant for variant in VARIANTS.values() if variant.parts] * _BOARD_TURNS


class Shared(Training):
    """Joint training of all variants of one seed, each step another one in turn.

    Projector and decoder are one for all. Each kind of compressor meets each kind of fusion equally often, so no kind
    is trained more than another of its sort; the variants about boards have modules of their own. Sharing what is not
    compared is how one pays for many variants at once (single path one-shot, arXiv 1904.00420).
    """

    def __init__(
        self, folder: Path, seed: int, budget: Budget, banks: dict[str, Bank], tokenizer: InspectionTokenizer
    ) -> None:
        torch.set_num_threads(budget.threads)
        torch.manual_seed(seed)
        vocab = -(-tokenizer.vocab_size // 64) * 64
        bank = banks["train"]
        self.seed, self.round = seed, one_round()
        # One model a number of frames carries whichever connectors have their turn.
        self.models: dict[int, AuroraEdgeForConditionalGeneration] = {}
        modules: dict[str, torch.nn.Module] = {}
        for variant in self.round:
            names = module_names(variant)
            if variant.frames in self.models and set(names.values()) <= set(modules):
                continue
            model = build_network(variant, vocab, tokenizer, bank.features.shape[-1])
            self.models.setdefault(variant.frames, model)
            rebuild = new_rebuild(variant, model.config.text_config.hidden_size)
            for own, name in names.items():
                modules.setdefault(name, _part(model, rebuild, own))
        self.no_fusion = build_network(Variant(fusion="none"), vocab, tokenizer, bank.features.shape[-1]).fusion
        self.examples = {
            (parts, frames): examples_of(Variant(parts=parts, frames=frames), bank)
            for parts, frames in {(variant.parts, variant.frames) for variant in self.round}
        }
        keys = {**_bank_keys(banks), "seed": str(seed), "steps": "", "rate": "", "places": ""}
        keys["round"] = json.dumps([asdict(variant) for variant in self.round], sort_keys=True)
        super().__init__(
            folder,
            budget.sha256(keys),
            modules,
            budget,
            bank,
            tokenizer,
            steps=budget.shared_steps,
            rate=budget.shared_rate,
        )

    def variant_of(self, step: int) -> Variant:
        turn, place = divmod(step, len(self.round))
        order = np.random.default_rng([self.seed, 0, turn]).permutation(len(self.round))
        return self.round[int(order[place])]

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        variant = self.variant_of(step)
        model = self.models[variant.frames]
        chosen: dict[str, torch.nn.Module | None] = {"fusion": self.no_fusion, "frame_embedding": None, "rebuild": None}
        chosen |= {own: self.modules[name] for own, name in module_names(variant).items()}
        rebuild = chosen.pop("rebuild")
        assert rebuild is None or isinstance(rebuild, Reconstruction)
        for own, module in chosen.items():
            setattr(model, own, module)
        return self.batch_loss((self.seed, 1, step), model, rebuild, self.examples[variant.parts, variant.frames])

    def finish(self) -> None:
        """Writes the weights that every variant of this seed starts from."""
        fresh = self.folder / "weights.new"
        save_file(self.weights(), fresh)
        result = {"settings_sha256": self.sha, "cpu_seconds": round(self.seconds, 1), "log": self.log}
        os.replace(fresh, self.folder / "weights.safetensors")
        _publish(self.folder, result)


class Run(Training):
    """A variant's own steps (none, where the budget has none) and its answers to the questions of `test`."""

    def __init__(
        self,
        folder: Path,
        variant: Variant,
        seed: int,
        budget: Budget,
        banks: dict[str, Bank],
        tokenizer: InspectionTokenizer,
        shared: Path,
    ) -> None:
        torch.set_num_threads(budget.threads)
        self.variant, self.seed, self.banks = variant, seed, banks
        vocab = -(-tokenizer.vocab_size // 64) * 64
        bank = banks["train"]
        self.model = build_network(variant, vocab, tokenizer, bank.features.shape[-1])
        self.rebuild = new_rebuild(variant, self.model.config.text_config.hidden_size)
        names = module_names(variant)
        modules = {own: _part(self.model, self.rebuild, own) for own in names}
        state = load_file(shared)
        for own, name in names.items():
            part = {k.removeprefix(f"{name}."): t for k, t in state.items() if k.startswith(f"{name}.")}
            missing, unexpected = modules[own].load_state_dict(part, strict=False)
            if unexpected or [k for k in missing if k != "lm_head.weight"]:
                raise TrainingError(f"{shared} does not fit the variant: {own}.", field="out")
        self.examples = examples_of(variant, bank)
        keys = {**_bank_keys(banks), "variant": json.dumps(asdict(variant), sort_keys=True), "seed": str(seed)}
        keys["shared"] = hashlib.sha256(shared.read_bytes()).hexdigest()[:16]
        super().__init__(
            folder, budget.sha256(keys), modules, budget, bank, tokenizer, steps=budget.steps, rate=budget.rate
        )

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        return self.batch_loss((self.seed, 2, step), self.model, self.rebuild, self.examples)

    def finish(self, console: Console, split: str = "test") -> dict[str, Any]:
        """Scores `test`, writes weights and result, drops the checkpoint."""
        console.print(f"  {self.folder.name}: scoring {split}")
        bank = self.banks[split]
        found = answer(self.model, self.tokenizer, bank, examples_of(self.variant, bank), places=self.budget.places)
        if self.steps:
            save_file(self.weights(), self.folder / "weights.safetensors")
        result = {
            "variant": asdict(self.variant),
            "seed": self.seed,
            "settings_sha256": self.sha,
            "budget": asdict(self.budget),
            "cpu_seconds": round(self.seconds, 1),
            "parameters": sum(p.numel() for p in self.optimizer.masters.values()),
            "log": self.log,
            "scores": {split: {name: [round(v, 4) for v in values] for name, values in found.items()}},
        }
        _publish(self.folder, result)
        return result


def _publish(folder: Path, result: dict[str, Any]) -> None:
    fresh = folder / "result.json.new"
    fresh.write_text(json.dumps(result), encoding="utf-8")
    os.replace(fresh, folder / "result.json")
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
