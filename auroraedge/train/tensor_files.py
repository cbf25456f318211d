"""safetensors files read and written one tensor at a time, so that a model larger than memory can pass through.

The safetensors library writes a whole file from tensors that are all in memory; here the header is written first, from
shapes and dtypes alone, and the data follow. The format: 8 bytes length of the header, the header as JSON, the data
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from auroraedge.errors import InvalidRequestError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """A tensor that will be written: its name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        count = 1
        for side in self.shape:
            count *= side
        return count * self.dtype.itemsize


class TensorWriter:
    """Writes one safetensors file: the plan first, then every tensor once, in the order of the plan."""

    def __init__(self, path: Path, plan: Iterable[TensorPlan], metadata: dict[str, str] | None = None) -> None:
        self.path = path
        self._left = list(plan)
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        offset = 0
        for entry in self._left:
            span = [offset, offset + entry.size]
            header[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": span}
            offset += entry.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """The next tensor of the plan, cast to its dtype there."""
        entry = self._left.pop(0)
        assert name == entry.name and tuple(tensor.shape) == entry.shape, f"{name} {tuple(tensor.shape)}, not {entry}"
        flat = tensor.detach().to("cpu", entry.dtype).contiguous().reshape(-1)
        self._file.write(flat.view(torch.uint8).numpy().data)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            assert not self._left, f"{self._left[0].name} and {len(self._left) - 1} more were not written"
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()


def split_plan(plan: Iterable[TensorPlan], limit: int) -> list[list[TensorPlan]]:
    """The plan in runs of at most `limit` bytes each; a larger tensor stands alone."""
    shards: list[list[TensorPlan]] = [[]]
    size = 0
    for entry in plan:
        if shards[-1] and size + entry.size > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.size
    return shards


def write_model_files(folder: Path, plan: list[TensorPlan], limit: int, tensors: Iterator[torch.Tensor]) -> list[Path]:
    """model.safetensors, or as many files of at most `limit` bytes as it takes with their index; in plan order."""
    shards = split_plan(plan, limit)
    single = len(shards) == 1
    files, places = [], {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE_FILE if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files.append(folder / name)
        with TensorWriter(folder / name, shard) as writer:
            for entry in shard:
                writer.write(entry.name, next(tensors))
                places[entry.name] = name
    if not single:
        total = sum(entry.size for entry in plan)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return files


class TensorFiles:
    """The tensors of a checkpoint folder: model.safetensors, or shards with an index. Data are read when asked for."""

    def __init__(self, folder: Path, *, field: str = "") -> None:
        self.folder, self.field = folder, field
        self._open: dict[str, Any] = {}
        self.places = self._find()

    def _find(self) -> dict[str, str]:
        index, single = self.folder / INDEX_FILE, self.folder / SINGLE_FILE
        if index.is_file():
            try:
                places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise self._error(f"{index} is not an index of safetensors shards.", "Download it again.") from error
            missing = sorted({name for name in places.values() if not (self.folder / name).is_file()})
            if missing:
                raise self._error(
                    f"{len(missing)} of the shards that {index.name} names are missing, {missing[0]} first.",
                    "Download the checkpoint completely.",
                )
            return places
        if single.is_file():
            return dict.fromkeys(self._file(SINGLE_FILE).keys(), SINGLE_FILE)
        others = sorted(p.name for p in self.folder.glob("*.bin")) if self.folder.is_dir() else []
        raise self._error(
            f"{self.folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}"
            + (f", but {others[0]}: pickled weights are not read." if others else "."),
            "Give the folder of a Hugging Face checkpoint in safetensors format.",
        )

    def _error(self, message: str, remedy: str) -> InvalidRequestError:
        return InvalidRequestError(message, field=self.field, remedy=remedy)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.folder / name, framework="pt")
            except (SafetensorError, OSError) as error:
                raise self._error(
                    f"{self.folder / name} cannot be read: {error}.", "Download the file again."
                ) from error
        return self._open[name]

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def _slice(self, name: str) -> Any:
        try:
            return self._file(self.places[name]).get_slice(name)
        except SafetensorError as error:
            raise self._error(
                f"{self.places[name]} does not hold {name}, which the index says.", "Download the checkpoint again."
            ) from error

    def read(self, name: str) -> torch.Tensor:
        self._slice(name)
        return self._file(self.places[name]).get_tensor(name)


def open_tensor_file(path: Path) -> Any:
    """An open safetensors file of any name (keys, get_tensor, get_slice)."""
    return safe_open(path, framework="pt")
