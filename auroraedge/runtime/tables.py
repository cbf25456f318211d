"""The host's tables of an engine package: embeddings.safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

# Tables from this size on stay on the disk and are read row by row: that of 2b has 467 MB, and a prompt needs 64 rows.
_MAPPED_BYTES = 64_000_000


def read_tables(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """token_embedding [vocab, D] and position_table float32 [256, E].

    The former is float32; a large one is an array of float16 mapped from the file. Raises SafetensorError, KeyError,
    OSError.
    """
    if path.stat().st_size < _MAPPED_BYTES:
        tables = load_file(path)
        return tables["token_embedding"].astype(np.float32), tables["position_table"].astype(np.float32)
    return _mapped(path, "token_embedding"), np.array(_mapped(path, "position_table"), dtype=np.float32)


def _mapped(path: Path, name: str) -> np.ndarray:
    """A tensor of a safetensors file, mapped: eight bytes of length, JSON, data. Raises KeyError, OSError."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            entry = json.loads(file.read(length))[name]
            kind = {"F16": np.float16, "F32": np.float32}[entry["dtype"]]
        except (ValueError, TypeError) as error:
            raise OSError(f"{path.name} has no valid header: {error}") from error
    return np.memmap(
        path, dtype=kind, mode="r", offset=8 + length + entry["data_offsets"][0], shape=tuple(entry["shape"])
    )
