"""Batches of several data sources for one process of many.

Each of the B places of an update draws from the source that (seed, stage, step) gives it, and place i belongs to
process i modulo the processes. So the B samples of an update are the same on any number of processes, and a resumed run
sees what it would have seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError

from auroraedge.data.instructions import Sample, Source, make_sample
from auroraedge.data.sources import SOURCE_NAMES, open_sources
from auroraedge.errors import DatasetError, TrainingError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.train.batches import Batch, collate
from auroraedge.train.conversations import TextLimits
from auroraedge.train.llava import LlavaFile
from auroraedge.train.scale_settings import ScaleStage
from auroraedge.train.settings import RecipeModel
from auroraedge.train.shards import Position, ShardLanes, pattern_of, source_seed


class DataSpec(RecipeModel):
    """Where one source of the mix is. llava: a JSON or JSONL and its image folder; webdataset: tar shards."""

    format: Literal["llava", "webdataset"]
    path: str | list[str] = Field(description="The file; for webdataset a pattern with braces, or several.")
    images: str | None = Field(default=None, description="llava: folder of the images; else that of the file.")


def parse_data(entries: Sequence[str]) -> dict[str, DataSpec]:
    """From NAME=PATH entries and YAML files that map names to specifications.

    A path that ends with .json or .jsonl is LLaVA's format, any other one tar shards. Raises DatasetError.
    """
    found: dict[str, DataSpec] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if equals:
            kind = "llava" if path.endswith((".json", ".jsonl")) else "webdataset"
            found[name] = DataSpec(format=kind, path=path)
            continue
        file = Path(entry)
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it is no mapping of names")
            found |= {str(name): DataSpec.model_validate(spec) for name, spec in content.items()}
        except (OSError, ValueError, ValidationError, yaml.YAMLError) as error:
            raise DatasetError(
                f"{entry} does not describe data: {error}",
                field="--data",
                remedy="Give NAME=FILE.json, NAME='SHARDS-{000..099}.tar', or a YAML file (docs/full-size.md).",
            ) from error
    return found


@dataclass(frozen=True, kw_only=True)
class Share:
    """A process's part of one update: its micro-batches, and where the lanes stand after it."""

    step: int
    micro: tuple[Batch, ...]
    positions: dict[str, dict[int, Position]]


class Feed:
    """The updates of one stage as one process sees them."""

    def __init__(
        self,
        stage: ScaleStage,
        number: int,
        data: dict[str, DataSpec],
        tokenizer: InspectionTokenizer,
        weight_of: np.ndarray,
        *,
        seed: int,
        streams: int,
        workers: int,
        rank: int = 0,
        processes: int = 1,
        pack: Path | None = None,
        positions: dict[str, dict[int, Position]] | None = None,
    ) -> None:
        self._stage, self._number, self._tokenizer, self._weight_of = stage, number, tokenizer, weight_of
        self._seed, self._streams, self._workers = seed, streams, workers
        self._rank, self._processes = rank, processes
        self._names = list(stage.mix)
        weights = np.array(list(stage.mix.values()), dtype=np.float64)
        self._mix = weights / weights.sum()
        limits = TextLimits(
            prompt=stage.max_prompt_tokens, answer=stage.max_answer_tokens, exchanges=stage.max_exchanges
        )
        unknown = [name for name in self._names if name not in data and name not in SOURCE_NAMES]
        if unknown:
            raise TrainingError(
                f"Stage {stage.name} reads '{unknown[0]}', which --data does not give.",
                field="--data",
                remedy=f"Pass --data {unknown[0]}=PATH, or change the stage's mix.",
            )
        self._files: dict[str, LlavaFile] = {}
        self._lanes: dict[str, ShardLanes] = {}
        for name in self._names:
            spec = data.get(name)
            if spec is None:
                continue
            if spec.format == "llava":
                path = Path(pattern_of(spec.path))
                folder = path.parent if spec.images is None else Path(spec.images)
                self._files[name] = LlavaFile(name, path, folder, tokenizer, limits)
            else:
                self._lanes[name] = ShardLanes(
                    name,
                    pattern_of(spec.path),
                    tokenizer,
                    limits,
                    lanes=streams,
                    seed=source_seed(seed, f"{number}/{name}"),
                    positions=(positions or {}).get(name),
                )
        own = [name for name in self._names if name not in data]
        self._parts: dict[str, Source] = open_sources(own, pack) if own else {}
        self._orders: dict[tuple[str, int], np.ndarray] = {}

    def _chosen(self, step: int) -> list[str]:
        """The source of each place of an update."""
        rng = np.random.default_rng([self._seed, self._number, step])
        return [self._names[i] for i in rng.choice(len(self._names), size=self._stage.batch_size, p=self._mix)]

    def _order(self, name: str, epoch: int) -> np.ndarray:
        key = (name, epoch)
        if key not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[0] != name}  # one epoch a source at a time
            rng = np.random.default_rng([source_seed(self._seed, f"{self._number}/{name}"), epoch])
            self._orders[key] = rng.permutation(len(self._files[name]))
        return self._orders[key]

    def _draw(self, name: str, step: int, slot: int, count: int) -> Callable[[], Sample]:
        """What draws the sample of a place; `count`: samples that its source gave before it."""
        if name in self._files:
            file = self._files[name]
            epoch, place = divmod(count, len(file))
            return partial(file.draw, self._order(name, epoch), place, epoch)
        if name in self._lanes:
            sample = self._lanes[name].next(slot % self._streams)  # in order, so not in a thread
            return lambda: sample
        rng = np.random.default_rng([self._seed, self._number, step, slot])
        return partial(make_sample, rng, self._parts[name], self._tokenizer, kinds=self._stage.prompt_kinds)

    def shares(self, first: int) -> Iterator[Share]:
        """The remaining updates from step `first` on."""
        counts: Counter[str] = Counter()
        for step in range(first):
            counts.update(self._chosen(step))
        size = self._stage.micro_batch
        with ThreadPoolExecutor(self._workers) as pool:
            for step in range(first, self._stage.steps):
                draws = []
                for slot, name in enumerate(self._chosen(step)):
                    if slot % self._processes == self._rank:
                        draws.append(self._draw(name, step, slot, counts[name]))
                    counts[name] += 1
                samples = list(pool.map(lambda draw: draw(), draws))
                yield Share(
                    step=step,
                    micro=tuple(
                        collate(samples[i : i + size], self._tokenizer, self._weight_of)
                        for i in range(0, len(samples), size)
                    ),
                    positions={name: lanes.positions() for name, lanes in self._lanes.items()},
                )


def positions_to_json(positions: dict[str, dict[int, Position]]) -> dict[str, Any]:
    return {name: {str(lane): asdict(p) for lane, p in lanes.items()} for name, lanes in positions.items()}


def positions_from_json(content: dict[str, Any]) -> dict[str, dict[int, Position]]:
    return {name: {int(lane): Position(**p) for lane, p in lanes.items()} for name, lanes in content.items()}
