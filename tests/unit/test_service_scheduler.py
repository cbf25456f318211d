"""The queue in front of the worker: bounds, deadlines, cancellation, batches, and what a fault takes with it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from auroraedge.errors import (
    AuroraEdgeError,
    DeadlineExceededError,
    InvalidImageError,
    QueueFullError,
    ServerUnavailableError,
)
from service.scheduler import Scheduler, Work


class GatedInspector:
    """Returns each job as its result, once `gate` is open; records the batches it was given."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[Any]] = []

    def inspect_batch(self, jobs: list[Any]) -> list[Any]:
        self.batches.append(jobs)
        self.entered.set()
        assert self.gate.wait(20)
        if "poison" in jobs:
            raise RuntimeError("poison")
        return [InvalidImageError("Bad.") if job == "bad" else f"result {job}" for job in jobs]

    @property
    def seen(self) -> list[Any]:
        return [job for batch in self.batches for job in batch]


def work(job: Any, **changes: Any) -> Work:
    return Work(**({"job": job, "size_bytes": 1} | changes))


@asynccontextmanager
async def scheduler(**changes: Any) -> AsyncIterator[tuple[Scheduler, GatedInspector]]:
    inspector = GatedInspector()
    limits = {"max_frames": 3, "max_bytes": 1000, "max_batch": 2} | changes
    queue = Scheduler(inspector, **limits)  # type: ignore[arg-type]
    try:
        yield queue, inspector
    finally:
        inspector.gate.set()
        assert await queue.stop(20)


async def occupy(queue: Scheduler, inspector: GatedInspector) -> asyncio.Task[Any]:
    """Keeps the worker busy until the gate opens."""
    task = asyncio.create_task(queue.run(work("first")))
    await asyncio.to_thread(inspector.entered.wait, 20)
    return task


async def queued(queue: Scheduler, *works: Work, wait_for_room: bool = False) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(queue.run(item, wait_for_room=wait_for_room)) for item in works]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_results_reach_their_callers_in_batches_of_neighbours() -> None:
    async def main() -> None:
        async with scheduler() as (queue, inspector):
            first = await occupy(queue, inspector)
            tasks = await queued(queue, work("a"), work("b"), work("c"))
            inspector.gate.set()
            assert await asyncio.gather(first, *tasks) == ["result first", "result a", "result b", "result c"]
            assert inspector.batches == [["first"], ["a", "b"], ["c"]]

    run(main())


def test_full_queue_refuses_with_a_delay_and_recovers() -> None:
    async def main() -> None:
        async with scheduler() as (queue, inspector):
            first = await occupy(queue, inspector)
            tasks = await queued(queue, work("a"), work("b"), work("c"))
            with pytest.raises(QueueFullError) as caught:
                await queue.run(work("d"))
            assert caught.value.retry_after_s is not None and caught.value.retry_after_s > 0
            inspector.gate.set()
            await asyncio.gather(first, *tasks)
            assert await queue.run(work("e")) == "result e"
            assert "d" not in inspector.seen

    run(main())


def test_bytes_are_bounded_too_but_one_large_frame_passes() -> None:
    async def main() -> None:
        async with scheduler(max_frames=10) as (queue, inspector):
            first = await occupy(queue, inspector)
            (large,) = await queued(queue, work("large", size_bytes=5000))
            with pytest.raises(QueueFullError):
                await queue.run(work("small"))
            inspector.gate.set()
            assert await asyncio.gather(first, large) == ["result first", "result large"]

    run(main())


def test_cancellation_frees_the_place_before_any_compute() -> None:
    async def main() -> None:
        async with scheduler(max_frames=1) as (queue, inspector):
            first = await occupy(queue, inspector)
            (abandoned,) = await queued(queue, work("abandoned"))
            assert queue.waiting == 1
            abandoned.cancel()
            with pytest.raises(asyncio.CancelledError):
                await abandoned
            assert queue.waiting == 0
            (taken,) = await queued(queue, work("taken"))
            inspector.gate.set()
            assert await asyncio.gather(first, taken) == ["result first", "result taken"]
            assert inspector.seen == ["first", "taken"]

    run(main())


def test_expired_work_is_dropped_before_compute() -> None:
    async def main() -> None:
        async with scheduler() as (queue, inspector):
            first = await occupy(queue, inspector)
            late, timely = await queued(queue, work("late", deadline=time.monotonic()), work("timely"))
            inspector.gate.set()
            assert await asyncio.gather(first, timely) == ["result first", "result timely"]
            with pytest.raises(DeadlineExceededError):
                await late
            assert "late" not in inspector.seen

    run(main())


def test_waiting_for_room_is_back_pressure_not_refusal() -> None:
    async def main() -> None:
        async with scheduler(max_frames=1, max_batch=1) as (queue, inspector):
            first = await occupy(queue, inspector)
            tasks = await queued(queue, *(work(i) for i in range(5)), wait_for_room=True)
            assert queue.waiting == 1
            inspector.gate.set()
            assert await asyncio.gather(first, *tasks) == ["result first", *(f"result {i}" for i in range(5))]

    run(main())


def test_one_bad_frame_spares_its_neighbours() -> None:
    async def main() -> None:
        async with scheduler(max_batch=3) as (queue, inspector):
            first = await occupy(queue, inspector)
            tasks = await queued(queue, work("a"), work("bad"), work("poison"))
            inspector.gate.set()
            outcomes = await asyncio.gather(first, *tasks, return_exceptions=True)
            assert outcomes[:2] == ["result first", "result a"]
            assert type(outcomes[2]) is InvalidImageError
            assert type(outcomes[3]) is AuroraEdgeError, "an unexpected fault is INTERNAL"
            assert "poison" not in str(outcomes[3]), "its text stays in the log"
            assert await queue.run(work("after")) == "result after"

    run(main())


def test_calls_run_alone_and_in_their_turn() -> None:
    async def main() -> None:
        order: list[str] = []

        def call(inspector: Any, own: Work) -> str:
            order.extend(str(job) for job in inspector.seen)
            return "answer"

        async with scheduler(max_frames=5, max_batch=5) as (queue, inspector):
            first = await occupy(queue, inspector)
            tasks = await queued(queue, work("a"), Work(call=call, size_bytes=1), work("b"))
            inspector.gate.set()
            assert await asyncio.gather(first, *tasks) == ["result first", "result a", "answer", "result b"]
            assert order == ["first", "a"]

    run(main())


def test_stop_finishes_what_is_queued_and_refuses_the_rest() -> None:
    async def main() -> None:
        async with scheduler() as (queue, inspector):
            first = await occupy(queue, inspector)
            (task,) = await queued(queue, work("a"))
            stopping = asyncio.create_task(queue.stop(20))
            await asyncio.sleep(0)
            with pytest.raises(ServerUnavailableError) as caught:
                await queue.run(work("late"))
            assert caught.value.retry_after_s
            inspector.gate.set()
            assert await asyncio.gather(first, task) == ["result first", "result a"]
            assert await stopping

    run(main())


def test_stop_reports_a_worker_that_does_not_end() -> None:
    async def main() -> None:
        async with scheduler() as (queue, inspector):
            first = await occupy(queue, inspector)
            assert not await queue.stop(0.05)
            inspector.gate.set()
            assert await first == "result first"

    run(main())
