"""LLaVA's data format: one JSON list (or JSON lines) of records, and a folder of images."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from auroraedge.data.instructions import Sample
from auroraedge.errors import DatasetError
from auroraedge.inspection.tokenizer import InspectionTokenizer
from auroraedge.train.conversations import TextLimits, decode_image, exchanges_of, make_conversation

_log = logging.getLogger(__name__)
_TRIES = 16  # unreadable images in a row after which the data are at fault


def _records(path: Path) -> Iterator[Any]:
    text = path.read_text(encoding="utf-8")
    if text.lstrip()[:1] == "[":
        yield from json.loads(text)
    else:
        yield from (json.loads(line) for line in text.splitlines() if line.strip())


class LlavaFile:
    """The records with an image of one file. Kept as UTF-8 JSON, a tenth of what parsed records would take."""

    def __init__(self, name: str, path: Path, images: Path, tokenizer: InspectionTokenizer, limits: TextLimits) -> None:
        self.name, self.path, self.images = name, path, images
        self._tokenizer, self._limits = tokenizer, limits
        if not path.is_file():
            raise DatasetError(
                f"There is no file {path}.", field=name, remedy="Give an existing JSON file with --data."
            )
        if not images.is_dir():
            raise DatasetError(f"There is no image folder {images}.", field=name, remedy="Give it as `images`.")
        packed = bytearray()
        ends = [0]
        without = 0
        try:
            for number, record in enumerate(_records(path)):
                where = f"{path.name}, record {number}"
                if not isinstance(record, dict):
                    raise DatasetError(f"{where} is not an object.", field=name)
                if not isinstance(record.get("image"), str):
                    if record.get("image") is not None:
                        raise DatasetError(f"{where}: 'image' is not one file name.", field=name)
                    without += 1  # LLaVA mixes in text without an image
                    continue
                exchanges_of(record, where)
                packed += json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
                ends.append(len(packed))
        except ValueError as error:
            raise DatasetError(f"{path} is not JSON: {error}.", field=name) from error
        if len(ends) == 1:
            raise DatasetError(f"{path} has no record with an image.", field=name)
        if without:
            _log.info("%s: %d records without an image are left out", path.name, without)
        self._packed, self._ends = bytes(packed), np.array(ends, dtype=np.int64)
        self.skipped = without

    def __len__(self) -> int:
        return len(self._ends) - 1

    def record(self, index: int) -> dict[str, Any]:
        return json.loads(self._packed[self._ends[index] : self._ends[index + 1]])

    def draw(self, order: np.ndarray, place: int, turn: int) -> Sample:
        """The record at a place of an epoch's order; an image that cannot be read gives way to the next place's."""
        for further in range(min(_TRIES, len(self))):
            index = int(order[(place + further) % len(order)])
            record = self.record(index)
            file = self.images / record["image"]
            image = decode_image(file.read_bytes()) if file.is_file() else None
            if image is not None:
                pairs = exchanges_of(record, f"{self.path.name}, record {index}")
                return make_conversation(image, pairs, self._tokenizer, self._limits, turn=turn, source=self.name)
            _log.warning("%s cannot be read as an image; another record is used", file)
        raise DatasetError(
            f"{min(_TRIES, len(self))} images in a row cannot be read, {file} last.",
            field=self.name,
            remedy="Check the image folder of --data.",
        )
