"""The rows of a batch on one thread each, instead of one after the other, or all together, on all threads.

Threads that share one small operator wait for each other at its end, some hundred times a view; threads with a view of
their own never do. So a single row has all threads, and rows of which there is one for each thread run side by side
(what that gives: `python -m benchmarks.graph_forms`). It also keeps company out of the answer: a row is computed as if
it were alone, bit for bit, where a product over several rows may add up in another order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from auroraedge.runtime.session import Arrays, GraphSession


class SideBySideSession:
    """A graph whose inputs and outputs all have rows along their first axis.

    shared: the graph on all threads. alone: makes the same graph on one thread, at its first use; its runs must be
    thread-safe, as this one's are.
    """

    def __init__(self, shared: GraphSession, alone: Callable[[], GraphSession], threads: int) -> None:
        self._shared, self._make_alone, self.threads = shared, alone, threads
        self._lock = threading.Lock()
        self._alone: GraphSession | None = None
        self._pool: ThreadPoolExecutor | None = None

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Raises EngineError when the graph fails on any row."""
        rows = len(next(iter(inputs.values())))
        if rows < 2:
            return self._shared.run(inputs)
        # What is left over when every thread has had the same number of rows has all threads again, one by one, unless
        # more than half of them would be busy anyway.
        left = rows % self.threads
        apart = rows if 2 * left > self.threads else rows - left
        parts = []
        if apart and self.threads > 1:
            alone, pool = self._single()
            parts = list(pool.map(alone.run, [_row(inputs, row) for row in range(apart)]))
        parts += [self._shared.run(_row(inputs, row)) for row in range(len(parts), rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _single(self) -> tuple[GraphSession, ThreadPoolExecutor]:
        with self._lock:
            if self._alone is None or self._pool is None:
                self._alone = self._make_alone()
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="engine-row")
            return self._alone, self._pool

    def close(self) -> None:
        """Ends the threads."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown()
            self._pool = self._alone = None


def _row(inputs: Arrays, row: int) -> dict[str, np.ndarray]:
    return {name: array[row : row + 1] for name, array in inputs.items()}
