"""The in-place decoder of a large CPU engine in ONNX Runtime (engine_build.cpu_network.write_decoder)."""

from __future__ import annotations

import numpy as np

from auroraedge.manifest import GraphSpec
from auroraedge.runtime.in_place import MASKED, OrtInPlaceGraph
from auroraedge.runtime.session import OrtSession


class OrtGroupQueryGraph(OrtInPlaceGraph):
    """A decoder that attends with GroupQueryAttention: it reads the places that are written, and no others.

    What ONNX Runtime asks for, and this class sees to: steps of several new places go sequence by sequence, and the
    first of them leaves one place over, because positions would be taken for 0, 1, 2, ... otherwise.
    """

    def __init__(self, session: OrtSession, spec: GraphSpec) -> None:
        super().__init__(session, spec)
        self.places -= 1

    def step(
        self,
        block: dict[str, np.ndarray],
        embeds_BSD: np.ndarray,
        position_BS: np.ndarray,
        bias_B1ST: np.ndarray,
        write_index_B: np.ndarray,
    ) -> np.ndarray:
        if embeds_BSD.shape[1] == 1 or len(embeds_BSD) == 1:
            return self._step(block, embeds_BSD, position_BS, bias_B1ST, write_index_B)
        logits = []
        for row in range(len(embeds_BSD)):
            one = slice(row, row + 1)
            memory = {name: array[one] for name, array in block.items()}
            logits.append(self._step(memory, embeds_BSD[one], position_BS[one], bias_B1ST[one], write_index_B[one]))
        return np.concatenate(logits)

    def _step(
        self,
        block: dict[str, np.ndarray],
        embeds_BSD: np.ndarray,
        position_BS: np.ndarray,
        bias_B1ST: np.ndarray,
        write_index_B: np.ndarray,
    ) -> np.ndarray:
        length = embeds_BSD.shape[1]
        first = bool((write_index_B == 0).any())
        total = int(write_index_B.max()) + length
        bias = bias_B1ST[..., :total]
        if first:
            bias = np.pad(bias, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=MASKED)
        return super().step(block, embeds_BSD, position_BS, bias, write_index_B)


def reads_written_places(spec: GraphSpec) -> bool:
    """Whether an in-place decoder takes a bias of the places that are written, not of all of the cache."""
    return any(tensor.name == "attention_bias" and isinstance(tensor.shape[-1], str) for tensor in spec.inputs)
