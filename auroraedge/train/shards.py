"""WebDataset shards: tar files of images with .json or .txt beside them, in an order that resumes exactly.

The shards are dealt to a fixed number of lanes, and the lanes to the processes. An epoch of a lane goes through its
shards in a shuffled order, and through a buffer that mixes the samples of a shard. A lane's samples therefore do not
depend on how many processes there are, and a position is three numbers.
"""

from __future__ import annotations

import json
import logging
import random
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from webdataset.shardlists import expand_urls

from auroraedge.data.instructions import Sample
from auroraedge.errors import DatasetError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.train.conversations import TextLimits, decode_image, exchanges_of, make_conversation

_log = logging.getLogger(__name__)
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")
_BUFFER = 1000


@dataclass(kw_only=True)
class Position:
    """Where a lane stands: epochs done, shards done in this one, samples taken of the open shard."""

    epoch: int = 0
    shard: int = 0
    offset: int = 0


class ShardLanes:
    """The lanes of a shard list that one process reads. `next` returns the next sample of a lane."""

    def __init__(
        self,
        name: str,
        pattern: str,
        tokenizer: InspectionTokenizer,
        limits: TextLimits,
        *,
        lanes: int,
        seed: int,
        positions: dict[int, Position] | None = None,
    ) -> None:
        self.name, self.lanes, self._seed = name, lanes, seed
        self._tokenizer, self._limits = tokenizer, limits
        self.shards = sorted(expand_urls(pattern))
        missing = [
            shard for shard in self.shards if "://" not in shard and ":" not in shard and not Path(shard).is_file()
        ]
        if not self.shards or missing:
            raise DatasetError(
                f"There is no shard {missing[0] if missing else pattern}.",
                field=name,
                remedy="Give existing tar files, e.g. 'shards/train-{000000..000099}.tar'.",
            )
        if len(self.shards) < lanes:
            raise DatasetError(
                f"{len(self.shards)} shards cannot be dealt to {lanes} lanes.",
                field=name,
                remedy="Split the data into more shards, or lower `streams` in the training recipe.",
            )
        self._positions = {lane: Position(**asdict(p)) for lane, p in (positions or {}).items()}
        self._open: dict[int, Iterator[Sample]] = {}

    def positions(self) -> dict[int, Position]:
        """Copies, by lane: what was drawn so far."""
        return {lane: Position(**asdict(position)) for lane, position in self._positions.items()}

    def next(self, lane: int) -> Sample:
        if lane not in self._open:
            self._positions.setdefault(lane, Position())
            self._open[lane] = self._lane(lane)
        return next(self._open[lane])

    def _lane(self, lane: int) -> Iterator[Sample]:
        position = self._positions[lane]
        while True:
            order = np.random.default_rng([self._seed, position.epoch]).permutation(len(self.shards))
            mine = [self.shards[i] for i in order[lane :: self.lanes]]
            found = position.shard > 0 or position.offset > 0
            while position.shard < len(mine):
                for sample in self._shard(mine[position.shard], position):
                    found = True
                    yield sample
                position.shard, position.offset = position.shard + 1, 0
            position.epoch, position.shard = position.epoch + 1, 0
            if not found:
                raise DatasetError(
                    f"There is no usable sample in {len(mine)} shards, {mine[0]} first.",
                    field=self.name,
                    remedy="A sample is an image with a .json or .txt of the same name.",
                )

    def _shard(self, shard: str, position: Position) -> Iterator[Sample]:
        """The shuffled samples of one shard from position.offset on; the offset counts unreadable ones, too."""
        rng = random.Random(f"{self._seed}/{position.epoch}/{Path(shard).name}")
        try:
            raw = webdataset.tarfile_to_samples()(iter([{"url": shard}]))
            mixed = webdataset.shuffle(_BUFFER, initial=_BUFFER, rng=rng)(raw)
            for found in islice(mixed, position.offset, None):
                position.offset += 1
                sample = self._sample(found, position.epoch, shard)
                if sample is not None:
                    yield sample
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:
            raise DatasetError(
                f"{shard} cannot be read as a tar file: {error}.", field=self.name, remedy="Write the shard again."
            ) from error

    def _sample(self, found: dict[str, Any], epoch: int, shard: str) -> Sample | None:
        where = f"{shard}, sample {found.get('__key__')}"
        image = next((decode_image(found[kind]) for kind in _IMAGES if kind in found), None)
        if image is None:
            _log.warning("%s has no readable image and is left out", where)
            return None
        if "json" in found:
            try:
                record = json.loads(found["json"])
            except ValueError as error:
                raise DatasetError(f"{where}: its .json is not JSON: {error}.", field=self.name) from error
            if not isinstance(record, dict):
                raise DatasetError(f"{where}: its .json is not an object.", field=self.name)
        else:
            record = {"caption": found.get("txt", b"").decode("utf-8", "replace")}
        return make_conversation(
            image, exchanges_of(record, where), self._tokenizer, self._limits, turn=epoch, source=self.name
        )


def source_seed(seed: int, name: str) -> int:
    return zlib.crc32(f"{seed}/{name}".encode())


def pattern_of(path: str | Sequence[str]) -> str:
    """A shard list as webdataset writes it: braces for numbers, '::' between lists."""
    return path if isinstance(path, str) else "::".join(path)
