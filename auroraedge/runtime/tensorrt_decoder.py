"""A TensorRT plan of a decoder that writes into its cache, for runtime.in_place: memory, steps and copies on a GPU.

A block is what one concurrent user of the decoder holds: device memory for past.*, which is present.* too, a context
for prompts, and for single-token steps one context and one CUDA graph a batch size (rounded up to a power of two; the
rows that fill up write into free rows of the block). The graphs' contexts share one scratch memory: they never run at
once. Where a graph cannot be captured, the steps are enqueued one by one, and `graph_note` says why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from auroraedge.errors import EngineError
from auroraedge.manifest import GraphSpec
from auroraedge.runtime.in_place import Move, places_of
from auroraedge.runtime.tensorrt_session import Execution, Plan, fill

_LOGITS = "logits"


@dataclass
class Step:
    """A single-token step of one batch size: bound once, and launched as a graph where that is possible."""

    execution: Execution
    staged: dict[str, np.ndarray]
    wanted: dict[str, np.ndarray]
    launch: Callable[[], None] | None = None


@dataclass
class Block:
    """memory: address by input of the cache, all in one allocation at `base`."""

    base: int
    memory: dict[str, int]
    prompts: Execution
    scratch: int = 0
    steps: dict[int, Step] = field(default_factory=dict)


class TensorRtInPlaceGraph:
    """See `in_place.InPlaceGraph`."""

    def __init__(self, plan: Plan, spec: GraphSpec, *, graphs: bool = True) -> None:
        """graphs: False enqueues every step, to compare."""
        self.plan = plan
        self.rows, self.places = plan.most_rows, places_of(spec)
        self._caches = [name for name in plan.inputs if name.startswith("past.")]
        heads, width = next((int(t.shape[1]), int(t.shape[3])) for t in spec.inputs if t.name.startswith("past."))
        self._heads, self._place_bytes = heads, width * plan.dtypes[self._caches[0]].itemsize
        self._row_bytes = heads * self.places * self._place_bytes
        self._free: list[Block] = []
        self._lock = threading.Lock()
        self._graphs = graphs
        self.graph_note = ""
        self._check_aliases()

    def _check_aliases(self) -> None:
        """Raises EngineError where the library says that an output is not its cache's memory."""
        engine = self.plan.engine
        if not hasattr(engine, "get_aliased_input_tensor"):
            return  # older than the question; the plan is what engine_build made it
        for name in self._caches:
            twin = "present" + name.removeprefix("past")
            if engine.get_aliased_input_tensor(twin) not in (name, None, ""):
                raise EngineError(f"{self.plan.name}: {twin} is not written in place of {name}.", field=twin)

    # -- memory ----------------------------------------------------------------------------------------------------

    def block(self) -> Block:
        with self._lock:
            if self._free:
                return self._free.pop()
        with self.plan.gpu.current():
            size = self._row_bytes * self.rows
            # 256 bytes: what TensorRT asks of every address.
            size = -(-size // 256) * 256
            base = self.plan.gpu.allocate(size * len(self._caches))
            try:
                memory = {name: base + size * index for index, name in enumerate(self._caches)}
                return Block(base=base, memory=memory, prompts=Execution(self.plan))
            except BaseException:
                self.plan.gpu.free(base)
                raise

    def release(self, block: Block) -> None:
        """Kept for the next user: its values are finite, which is all that a new cache asks for."""
        with self._lock:
            self._free.append(block)

    def close(self) -> None:
        """Frees the blocks that nobody holds."""
        with self.plan.gpu.current(), self._lock:
            for block in self._free:
                for step in block.steps.values():
                    step.execution.close()
                block.prompts.close()
                if block.scratch:
                    self.plan.gpu.free(block.scratch)
                self.plan.gpu.free(block.base)
            self._free = []

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(
        self,
        block: Block,
        embeds_BSD: np.ndarray,
        position_BS: np.ndarray,
        bias_B1ST: np.ndarray,
        write_index_B: np.ndarray,
    ) -> np.ndarray:
        inputs = {
            "inputs_embeds": embeds_BSD,
            "position_ids": position_BS,
            "attention_bias": bias_B1ST,
            "write_index": write_index_B,
        }
        rows, length = embeds_BSD.shape[:2]
        with self.plan.gpu.current():
            logits = self._single(block, inputs, rows) if length == 1 else self._prompt(block, inputs, rows)
        return logits[:rows].astype(np.float32)

    def _placed(self, block: Block, rows: int) -> dict[str, tuple[int, Sequence[int]]]:
        width = self._place_bytes // self.plan.dtypes[self._caches[0]].itemsize
        shape = (rows, self._heads, self.places, width)
        past = {name: (address, shape) for name, address in block.memory.items()}
        return past | {"present" + name.removeprefix("past"): place for name, place in past.items()}

    def _prompt(self, block: Block, inputs: dict[str, np.ndarray], rows: int) -> np.ndarray:
        self.plan.profile_for({name: array.shape for name, array in inputs.items()})
        staged, wanted = block.prompts.bind(inputs, (_LOGITS,), self._placed(block, rows))
        fill(staged, inputs)
        block.prompts.enqueue(staged, wanted)
        block.prompts.stream.synchronize()
        return wanted[_LOGITS]

    def _single(self, block: Block, inputs: dict[str, np.ndarray], rows: int) -> np.ndarray:
        size = min(self.rows, 1 << (rows - 1).bit_length())
        step = block.steps.get(size)
        fresh = step is None
        if step is None:
            step = block.steps[size] = self._bound(block, inputs, size)
        fill(step.staged, inputs)
        if step.launch is not None:
            step.launch()
        else:
            step.execution.enqueue(step.staged, step.wanted)
        step.execution.stream.synchronize()
        if fresh and self._graphs and not self.plan.captures_itself:
            # Behind the first, plain run: TensorRT finishes its own preparations in it.
            step.launch = self._captured(step)
        return step.wanted[_LOGITS]

    def _bound(self, block: Block, inputs: dict[str, np.ndarray], size: int) -> Step:
        if not block.scratch:
            block.scratch = self.plan.gpu.allocate(self.plan.scratch_bytes)
        execution = Execution(self.plan, scratch=block.scratch, capture=self._graphs)
        wide = {name: np.broadcast_to(array[:1], (size, *array.shape[1:])) for name, array in inputs.items()}
        self.plan.profile_for({name: array.shape for name, array in wide.items()})
        staged, wanted = execution.bind(wide, (_LOGITS,), self._placed(block, size))
        return Step(execution=execution, staged=staged, wanted=wanted)

    def _captured(self, step: Step) -> Callable[[], None] | None:
        execution = step.execution
        if hasattr(execution.context, "is_stream_capturable") and not execution.context.is_stream_capturable(
            execution.stream.handle
        ):
            self._graphs, self.graph_note = False, "the plan cannot be captured"
            return None
        try:
            found = execution.stream.capture(lambda: execution.enqueue(step.staged, step.wanted))
        except EngineError as error:
            self._graphs, self.graph_note = False, error.message
            return None
        if found is None:
            self._graphs, self.graph_note = False, "pycuda has no graphs; cuda-bindings does"
        return found

    # -- copies ----------------------------------------------------------------------------------------------------

    def copy(self, moves: Sequence[Move]) -> None:
        """On the stream of the first target: every step before has been waited for."""
        if not moves:
            return
        pitch = self.places * self._place_bytes
        with self.plan.gpu.current():
            stream = moves[0].target.prompts.stream
            for move in moves:
                source = move.source_row * self._row_bytes + move.source_place * self._place_bytes
                target = move.target_row * self._row_bytes + move.target_place * self._place_bytes
                for name, base in move.source.memory.items():
                    stream.copy(
                        move.target.memory[name] + target,
                        base + source,
                        width=move.count * self._place_bytes,
                        height=self._heads,
                        pitch=pitch,
                    )
            stream.synchronize()
