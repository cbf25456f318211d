"""Where keys and values lie between two steps of the decoder, behind one interface.

    handed on   the graph takes the cache and gives it back, longer by the new tokens (ONNX Runtime; TensorRT 10.3)
    in place    the graph writes into memory that stays where it is (runtime.in_place)
    torch       the cache of transformers (runtime.torch_engine)

Suffixes: R rows, S new places, T places so far, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from auroraedge.errors import EngineError
from auroraedge.manifest import DecoderSpec
from auroraedge.runtime.session import GraphSession


class Cache(Protocol):
    """Keys and values of some rows, in order; one thread at a time. Rows are padded on the left, at every step."""

    def feed(self, embeds_RSD: np.ndarray, real_RS: np.ndarray) -> np.ndarray:
        """Logits float32 [R, vocab] behind the last of S new places. float32 in; `real` is 1, or 0 where padded.

        Raises EngineError when the graph fails, when the places are used up, and for logits that are no numbers: a
        failure must not become a verdict.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these rows, in this order; the others are done."""
        ...

    def fork(self, rows: Sequence[int]) -> Cache:
        """A new cache whose rows begin as the given ones, which may repeat; this one stays as it is."""
        ...

    def close(self) -> None:
        """Gives the memory back."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A decoder that keeps its cache itself. Thread-safe: every cache is on its own."""

    def start(self, rows: int) -> Cache: ...


def decoder_of(graph: GraphSession | Decoder, spec: DecoderSpec) -> Decoder:
    """The decoder behind a graph of a package; one that hands its cache on is a plain graph."""
    return graph if isinstance(graph, Decoder) else HandedOnDecoder(graph, spec)


def checked(logits: np.ndarray) -> np.ndarray:
    """The logits. Raises EngineError when they are not numbers."""
    if not np.isfinite(logits).all():
        raise EngineError("The decoder's output has NaN or infinite values.", field="decoder")
    return logits


def positions_of(mask_RT: np.ndarray, length: int) -> np.ndarray:
    """Positions int64 [R, length] of the last places: real tokens are counted, padded ones have no meaning."""
    return np.maximum(np.cumsum(mask_RT, axis=1).astype(np.int64) - 1, 0)[:, -length:]


class HandedOnDecoder:
    """A graph whose inputs are attention_mask [R, T] and past.*, and whose outputs present.*."""

    def __init__(self, graph: GraphSession, spec: DecoderSpec) -> None:
        self.graph, self.spec = graph, spec

    def start(self, rows: int) -> HandedOnCache:
        empty = np.zeros((rows, self.spec.kv_heads, 0, self.spec.head_dim), dtype=np.float32)
        past = {f"past.{layer}.{kind}": empty for layer in range(self.spec.layers) for kind in ("key", "value")}
        return HandedOnCache(self.graph, np.zeros((rows, 0), dtype=np.float32), past)


class HandedOnCache:
    """Arrays [R, K, T, d], by name of the decoder's input."""

    def __init__(self, graph: GraphSession, mask_RT: np.ndarray, past: dict[str, np.ndarray]) -> None:
        self._graph, self._mask, self._past = graph, mask_RT, past

    def feed(self, embeds_RSD: np.ndarray, real_RS: np.ndarray) -> np.ndarray:
        self._mask = np.concatenate([self._mask, real_RS], axis=1)
        positions = positions_of(self._mask, embeds_RSD.shape[1])
        output = self._graph.run(
            {"inputs_embeds": embeds_RSD, "attention_mask": self._mask, "position_ids": positions, **self._past}
        )
        self._past = {name: output["present" + name.removeprefix("past")] for name in self._past}
        return checked(output["logits"].reshape(len(embeds_RSD), -1))

    def keep(self, rows: Sequence[int]) -> None:
        self._mask = self._mask[list(rows)]
        self._past = {name: tensor[list(rows)] for name, tensor in self._past.items()}

    def fork(self, rows: Sequence[int]) -> HandedOnCache:
        chosen = list(rows)
        past = {name: tensor[chosen] for name, tensor in self._past.items()}
        return HandedOnCache(self._graph, self._mask[chosen], past)

    def close(self) -> None:
        self._past = {}
