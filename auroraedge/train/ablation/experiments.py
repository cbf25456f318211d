"""Runs an experiment: bank, common start, every variant with every seed; what is finished is never done again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.runtime.engine import EnginePackage
from auroraedge.runtime.inspector import DEFAULT_ENGINE
from auroraedge.train.ablation.bank import PLAN, Bank, build_bank, load_bank
from auroraedge.train.ablation.costs import latency
from auroraedge.train.ablation.runs import Run, Shared
from auroraedge.train.ablation.training import Budget, claimed, finished
from auroraedge.train.ablation.variants import EXPERIMENTS, VARIANTS


def prepare(
    out: Path, pack: Path | None, engine: Path, console: Console, plan: dict[str, dict[str, int]] | None = None
) -> tuple[dict[str, Bank], InspectionTokenizer]:
    """The banks of all splits, built from `pack` where they are missing. Raises DatasetError, TrainingError."""
    plan = plan or PLAN
    package: EnginePackage | None = None
    for split in plan:
        with claimed(out / "bank" / f"{split}.claim", wait=True):
            if pack is not None:
                package = package or EnginePackage(engine, threads=1)
                build_bank(pack, out, split, package, console, plan[split])
    return {split: load_bank(out / "bank" / split) for split in plan}, InspectionTokenizer.load(engine)


def shared_start(
    out: Path, seed: int, budget: Budget, banks: dict[str, Bank], tokenizer: InspectionTokenizer, console: Console
) -> Path:
    """Weights after the joint training of a seed, trained here where they are missing."""
    folder = out / "runs" / f"shared-s{seed}"
    with claimed(folder, wait=True):
        shared = Shared(folder, seed, budget, banks, tokenizer)
        if finished(folder, shared.sha) is None:
            shared.train(console, f"all variants, seed {seed}")
            shared.finish()
    return folder / "weights.safetensors"


def run_variants(
    names: Sequence[str],
    seeds: Sequence[int],
    *,
    out: Path,
    budget: Budget,
    banks: dict[str, Bank],
    tokenizer: InspectionTokenizer,
    console: Console,
) -> None:
    """Trains and scores what is missing, seed by seed. Several processes may share `out`: each run belongs to one."""
    for seed in seeds:
        start = shared_start(out, seed, budget, banks, tokenizer, console)
        for name in names:
            folder = out / "runs" / f"{name}-s{seed}"
            with claimed(folder, wait=True):
                run = Run(folder, VARIANTS[name], seed, budget, banks, tokenizer, start)
                if finished(folder, run.sha) is None:
                    run.train(console, f"{name}, seed {seed}")
                    run.finish(console)


def main_experiment(
    experiment: str,
    *,
    pack: Path | None,
    out: Path,
    engine: Path | None,
    seeds: int,
    console: Console,
    steps: int | None = None,
    shared_steps: int | None = None,
    threads: int = 1,
    places: bool = False,
    plan: dict[str, dict[str, int]] | None = None,
) -> None:
    """`auroraedge ablate EXPERIMENT`: what is missing of it. Without `steps` and `shared_steps`: those of `Budget`.

    Raises DatasetError, EngineError, TrainingError.
    """
    changed = {name: value for name, value in (("steps", steps), ("shared_steps", shared_steps)) if value is not None}
    budget = replace(Budget(threads=threads, places=places), **changed)
    banks, tokenizer = prepare(out, pack, engine or DEFAULT_ENGINE, console, plan)
    run_variants(
        EXPERIMENTS[experiment].variants,
        range(1, seeds + 1),
        out=out,
        budget=budget,
        banks=banks,
        tokenizer=tokenizer,
        console=console,
    )
    if experiment == "compression":
        main_latency(out, threads=threads)


def main_latency(out: Path, *, rounds: int = 15, threads: int = 1) -> Path:
    """Times the variants of the experiments on compression and ratio, unless out/latency.json is there already."""
    file = out / "latency.json"
    if not file.is_file():
        names = dict.fromkeys((*EXPERIMENTS["compression"].variants, *EXPERIMENTS["ratio"].variants))
        out.mkdir(parents=True, exist_ok=True)
        found = latency(list(names), rounds=rounds, threads=threads)
        fresh = file.with_name(file.name + ".new")
        fresh.write_text(json.dumps(found), encoding="utf-8")
        fresh.replace(file)
    return file


def results_of(out: Path, experiment: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Finished runs by variant and seed, of those variants that have any."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name in EXPERIMENTS[experiment].variants:
        for file in sorted((out / "runs").glob(f"{name}-s*/result.json")):
            seed = file.parent.name.removeprefix(f"{name}-s")
            if seed.isdigit():
                found.setdefault(name, {})[int(seed)] = json.loads(file.read_text(encoding="utf-8"))
    return found
