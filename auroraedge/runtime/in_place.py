"""A decoder whose key/value cache stays where it is: the bookkeeping, the same for every device, and ONNX Runtime.

The graph (engine_build.gpu_graphs, cache "in_place") takes inputs_embeds [B, S, D], position_ids [B, S],
attention_bias [B, 1, S, T], write_index [B] and past.* [B, K, T, d], writes the keys and values of S new places from
write_index on, and gives present.*, which is the memory of past.*. T is fixed when it is compiled.

A cache is a list of blocks of at most B rows, so that more rows than the graph takes at once need no care elsewhere.
Each row has a slot (a block and a place in it), and of its T places those that are written and those that are real:
padded places are holes. Rows that leave free their slot, and the last ones move up, so that a step computes no row that
is done. When a row has no place left, its holes are closed. Nothing else ever moves.

Suffixes: B rows of a block, R rows of a cache, S new places, T places, D width, K key/value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from auroraedge.errors import EngineError
from auroraedge.manifest import GraphSpec
from auroraedge.runtime.decoding import checked
from auroraedge.runtime.session import OrtSession

# As in engine_build.gpu_graphs: within float16.
MASKED = -60000.0
# Rows of a block where the graph itself has no limit (ONNX Runtime).
_BLOCK_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Move:
    """Keys and values of `count` neighbouring places of one row, copied. Source and target never overlap."""

    source: Any  # a block
    source_row: int
    source_place: int
    target: Any
    target_row: int
    target_place: int
    count: int


class InPlaceGraph(Protocol):
    """The compiled graph and its memory. Thread-safe as long as every block is used by one thread at a time."""

    rows: int  # most rows of a block
    places: int

    def block(self) -> Any:
        """Memory for the keys and values of `rows` rows. All its values are finite: masked places count as nought, and
        nought times infinity would not be."""
        ...

    def release(self, block: Any) -> None: ...

    def step(
        self,
        block: Any,
        embeds_BSD: np.ndarray,
        position_BS: np.ndarray,
        bias_B1ST: np.ndarray,
        write_index_B: np.ndarray,
    ) -> np.ndarray:
        """Logits float32 [B, vocab] of the first B rows of a block; returns when the block is written."""
        ...

    def copy(self, moves: Sequence[Move]) -> None:
        """Returns when it is done. Targets may be read after; no move reads what another writes."""
        ...


class InPlaceDecoder:
    """Starts caches on a graph that writes in place."""

    def __init__(self, graph: InPlaceGraph) -> None:
        self.graph = graph

    def close(self) -> None:
        if callable(release := getattr(self.graph, "close", None)):
            release()

    def start(self, rows: int) -> InPlaceCache:
        return InPlaceCache(self.graph, rows)


class InPlaceCache:
    """Rows of a cache in place; see `decoding.Cache`."""

    def __init__(self, graph: InPlaceGraph, rows: int) -> None:
        self._graph = graph
        self._blocks: list[Any] = []
        self._slots = list(range(rows))
        self._real = np.zeros((rows, graph.places), dtype=bool)
        self._written = np.zeros(rows, dtype=np.int64)
        self._blocks = self._new_blocks(rows)

    def _new_blocks(self, rows: int) -> list[Any]:
        found: list[Any] = []
        try:
            for _ in range(-(-rows // self._graph.rows)):
                found.append(self._graph.block())
        except BaseException:
            for block in found:
                self._graph.release(block)
            raise
        return found

    def feed(self, embeds_RSD: np.ndarray, real_RS: np.ndarray) -> np.ndarray:
        length = embeds_RSD.shape[1]
        if (self._written + length).max() > self._graph.places:
            self._close_holes(length)
        real = real_RS > 0
        seen_before = self._real.sum(axis=1)
        position = np.maximum(seen_before[:, None] + np.cumsum(real, axis=1) - 1, 0)
        bias = self._bias(real)
        logits: np.ndarray | None = None
        for index, block in enumerate(self._blocks):
            rows = self._rows_of(index)
            found = self._graph.step(block, embeds_RSD[rows], position[rows], bias[rows], self._written[rows])
            if logits is None:
                logits = np.empty((len(self._slots), found.shape[-1]), dtype=np.float32)
            logits[rows] = found.reshape(len(rows), -1)
        assert logits is not None
        places = self._written[:, None] + np.arange(length)
        np.put_along_axis(self._real, places, real, axis=1)
        self._written += length
        return checked(logits)

    def _rows_of(self, block: int) -> list[int]:
        """Rows in the order of their slots. Slots are filled without gaps, see `keep`."""
        first = block * self._graph.rows
        rows = [row for row, slot in enumerate(self._slots) if first <= slot < first + self._graph.rows]
        return sorted(rows, key=self._slots.__getitem__)

    def _bias(self, real_RS: np.ndarray) -> np.ndarray:
        """Additive float32 [R, 1, S, T]: real places of before are seen, and of the new ones those up to one's own."""
        rows, length = real_RS.shape
        seen = np.repeat(self._real[:, None], length, axis=1)
        causal = np.tril(np.ones((length, length), dtype=bool))[None] & real_RS[:, None]
        places = np.broadcast_to((self._written[:, None] + np.arange(length))[:, None], (rows, length, length))
        np.put_along_axis(seen, places, causal, axis=2)
        return np.where(seen, np.float32(0.0), np.float32(MASKED))[:, None]

    def keep(self, rows: Sequence[int]) -> None:
        slots = [self._slots[row] for row in rows]
        free = sorted(set(range(len(rows))) - set(slots))
        moves: list[Move] = []
        self._real, self._written = self._real[list(rows)], self._written[list(rows)]
        for row, slot in enumerate(slots):
            if slot >= len(rows):
                slots[row] = free.pop(0)
                moves += self._moves(row, slot, self._blocks, slots[row], close=False)
        if moves:
            self._graph.copy(moves)
        self._slots = slots
        needed = -(-len(rows) // self._graph.rows)
        for block in self._blocks[needed:]:
            self._graph.release(block)
        self._blocks = self._blocks[:needed]

    def fork(self, rows: Sequence[int]) -> InPlaceCache:
        twin = InPlaceCache(self._graph, len(rows))
        try:
            moves: list[Move] = []
            for target, row in enumerate(rows):
                moves += self._moves(row, self._slots[row], twin._blocks, target, close=True)
                count = int(self._real[row].sum())
                twin._real[target, :count], twin._written[target] = True, count
            self._graph.copy(moves)
        except BaseException:
            twin.close()
            raise
        return twin

    def _moves(self, row: int, slot: int, blocks: Sequence[Any], target: int, *, close: bool) -> list[Move]:
        """The real places of a row into another slot, one move a run. close: without the holes between them."""
        size = self._graph.rows
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self._real[row], [False]]).astype(np.int8)))
        moves, place = [], 0
        for start, end in edges.reshape(-1, 2).tolist():
            moves.append(
                Move(
                    source=self._blocks[slot // size],
                    source_row=slot % size,
                    source_place=start,
                    target=blocks[target // size],
                    target_row=target % size,
                    target_place=place if close else start,
                    count=end - start,
                )
            )
            place += end - start
        return moves

    def _close_holes(self, length: int) -> None:
        """Makes room for `length` more places of every row. Raises EngineError when there is none."""
        needed = int(self._real.sum(axis=1).max()) + length
        if needed > self._graph.places:
            raise EngineError(
                f"Prompt and answer need {needed} places, and the decoder was compiled for {self._graph.places}.",
                field="decoder",
                remedy="Shorten the prompt or the list of labels, or raise most_tokens of the target and build again.",
            )
        twin = self.fork(range(len(self._slots)))
        self.close()
        self._blocks, self._slots, self._real, self._written = twin._blocks, twin._slots, twin._real, twin._written

    def close(self) -> None:
        for block in self._blocks:
            self._graph.release(block)
        self._blocks = []


class OrtInPlaceGraph:
    """A decoder with its cache in place, in ONNX Runtime on a CPU: past.* and present.* are bound to the same memory.

    For packages whose decoder is the opset-24 form. It needs ONNX Runtime 1.24 or newer (TensorScatter, Attention), and
    attends to all places of the cache, written or not: the other form is the faster one on a CPU.
    """

    def __init__(self, session: OrtSession, spec: GraphSpec) -> None:
        self._session = session
        self._caches = {t.name: tuple(t.shape[1:]) for t in spec.inputs if t.name.startswith("past.")}
        self.rows, self.places = _BLOCK_ROWS, places_of(spec)

    def block(self) -> dict[str, np.ndarray]:
        return {
            name: np.zeros((self.rows, *(int(size) for size in shape)), dtype=np.float32)
            for name, shape in self._caches.items()
        }

    def release(self, block: dict[str, np.ndarray]) -> None:
        block.clear()

    def step(
        self,
        block: dict[str, np.ndarray],
        embeds_BSD: np.ndarray,
        position_BS: np.ndarray,
        bias_B1ST: np.ndarray,
        write_index_B: np.ndarray,
    ) -> np.ndarray:
        feeds = {
            "inputs_embeds": embeds_BSD,
            "position_ids": position_BS,
            "attention_bias": bias_B1ST,
            "write_index": write_index_B,
        }
        aliased = {
            name: (f"present{name.removeprefix('past')}", memory[: len(embeds_BSD)]) for name, memory in block.items()
        }
        return self._session.run_aliased(feeds, aliased, "logits")

    def copy(self, moves: Sequence[Move]) -> None:
        for move in moves:
            here = slice(move.source_place, move.source_place + move.count)
            there = slice(move.target_place, move.target_place + move.count)
            for name, memory in move.source.items():
                move.target[name][move.target_row, :, there] = memory[move.source_row, :, here]


def is_in_place(spec: GraphSpec) -> bool:
    """Whether a decoder graph writes into its cache."""
    return any(tensor.name == "write_index" for tensor in spec.inputs)


def places_of(spec: GraphSpec) -> int:
    """Places of the cache of a decoder in place."""
    return next(int(tensor.shape[2]) for tensor in spec.inputs if tensor.name.startswith("past."))
