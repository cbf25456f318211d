"""Rows of a batch side by side: the same bits as one by one and as all together, and no thread left behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from auroraedge.errors import EngineError
from auroraedge.runtime.engine import EnginePackage
from auroraedge.runtime.inspector import DEFAULT_ENGINE
from auroraedge.runtime.session import Arrays, OrtSession
from auroraedge.runtime.side_by_side import SideBySideSession


class Recorder:
    """Doubles its first input, and notes how many rows came together and in which thread."""

    def __init__(self, faulty: float | None = None) -> None:
        self.calls: list[tuple[int, str]] = []
        self.faulty = faulty

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self.calls.append((len(inputs["x"]), threading.current_thread().name))
        if self.faulty is not None and (inputs["x"] == self.faulty).any():
            raise EngineError("The graph failed.")
        return {"y": inputs["x"] * 2, "z": inputs["m"] + 1}


def _inputs(rows: int) -> dict[str, np.ndarray]:
    x = np.repeat(np.arange(rows, dtype=np.float32)[:, None, None], 4, axis=1)
    return {"x": x, "m": np.ones((rows, 4), np.float32)}


@pytest.mark.parametrize(
    ("rows", "threads", "apart", "shared"),
    [
        (1, 2, 0, [1]),
        (2, 2, 2, []),
        (5, 2, 4, [1]),
        (3, 4, 3, []),
        (6, 4, 4, [1, 1]),
        (4, 1, 0, [1, 1, 1, 1]),
    ],
)
def test_which_rows_run_alone(rows: int, threads: int, apart: int, shared: list[int]) -> None:
    """One a thread, or nearly, side by side; what is left over one by one on all threads."""
    all_threads, single = Recorder(), Recorder()
    session = SideBySideSession(all_threads, lambda: single, threads)
    inputs = _inputs(rows)
    found = session.run(inputs)
    assert np.array_equal(found["y"], inputs["x"] * 2) and np.array_equal(found["z"], inputs["m"] + 1)
    assert [count for count, _ in single.calls] == [1] * apart
    assert [count for count, _ in all_threads.calls] == shared
    assert all(name.startswith("engine-row") for _, name in single.calls)
    session.close()
    assert not any(thread.name.startswith("engine-row") for thread in threading.enumerate())


def test_a_row_that_fails_fails_the_batch_and_not_the_next_one() -> None:
    session = SideBySideSession(Recorder(), lambda: Recorder(faulty=1.0), 2)
    with pytest.raises(EngineError, match="The graph failed"):
        session.run(_inputs(4))
    assert len(session.run(_inputs(1))["y"]) == 1
    session.close()


def test_company_changes_no_bit_of_any_graph() -> None:
    package = EnginePackage(DEFAULT_ENGINE, threads=2)
    rng = np.random.default_rng(0)
    width = package.manifest.decoder.hidden
    text_mask = np.ones((5, 20), np.float32)
    text_mask[1, :7] = 0.0
    inputs = {
        "vision": {
            "patches": rng.integers(0, 256, (5, 256, 768), dtype=np.uint8),
            "position": np.repeat(package.position_table[None], 5, axis=0),
            "patch_mask": np.ones((5, 256), np.float32),
        },
        "fusion": {
            "text": rng.normal(size=(5, 20, width)).astype(np.float32),
            "visual": rng.normal(size=(5, 256, width)).astype(np.float32),
            "patch_mask": np.ones((5, 256), np.float32),
            "text_mask": text_mask,
        },
    }
    for name, arrays in inputs.items():
        session = getattr(package, name)
        assert isinstance(session, SideBySideSession)
        found = session.run(arrays)
        spec = package.manifest.graphs[name]
        plain = OrtSession(DEFAULT_ENGINE / spec.file, threads=2, fold_weights=name != "vision")
        for row in range(5):
            alone = plain.run({key: array[row : row + 1] for key, array in arrays.items()})
            for output, value in alone.items():
                assert np.array_equal(found[output][row : row + 1], value), (name, output, row)
    package.close()
