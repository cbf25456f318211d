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


async def occupy(queue: Scheduler, inspector: GatedInspector, client: str = "") -> asyncio.Task[Any]:
    """Keeps the worker busy until the gate opens."""
    task = asyncio.create_task(queue.run(work("first", client=client)))
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


# --- shares, deadlines by estimate, token streams, another engine ----------------------------------------------------


def test_a_client_that_fills_the_queue_leaves_places_to_others() -> None:
    async def main() -> None:
        async with scheduler(max_frames=8, max_batch=1) as (queue, inspector):
            first = await occupy(queue, inspector, "flood")
            flood = await queued(queue, *(work(f"flood {i}", client="flood") for i in range(8)))
            assert queue.waiting == 8
            with pytest.raises(QueueFullError):
                await queue.run(work("camera", client="camera"))
            flood.pop().cancel()
            await asyncio.sleep(0)
            # The place that came free is the other's: the flood holds more than its half.
            with pytest.raises(QueueFullError):
                await queue.run(work("flood again", client="flood"))
            (camera,) = await queued(queue, work("camera", client="camera"))
            inspector.gate.set()
            await asyncio.gather(first, *flood, camera)
            assert inspector.seen.index("camera") <= 3, "it waits for its turn, not for the flood"

    run(main())


def test_refused_clients_are_told_different_times() -> None:
    async def main() -> None:
        async with scheduler(max_frames=1, max_batch=1) as (queue, inspector):
            first = await occupy(queue, inspector)
            (taken,) = await queued(queue, work("taken"))
            delays = []
            for number in range(5):
                with pytest.raises(QueueFullError) as caught:
                    await queue.run(work(number))
                assert caught.value.retry_after_s is not None
                delays.append(caught.value.retry_after_s)
            assert delays == sorted(delays) and len({round(delay, 3) for delay in delays}) == 5
            for _ in range(5000):
                with pytest.raises(QueueFullError) as caught:
                    await queue.run(work("no end"))
            assert caught.value.retry_after_s == pytest.approx(10, abs=0.1)
            inspector.gate.set()
            await asyncio.gather(first, taken)

    run(main())


def test_hopeless_deadline_is_refused_at_once_and_a_possible_one_is_not() -> None:
    async def main() -> None:
        async with scheduler(max_frames=50, max_batch=1) as (queue, inspector):
            inspector.gate.set()

            def slow(_: Any, own: Work) -> str:
                time.sleep(0.05)
                return "done"

            def frame(deadline_s: float) -> Work:
                return Work(call=slow, size_bytes=1, kind="slow", deadline=time.monotonic() + deadline_s)

            for _ in range(3):
                assert await queue.run(frame(5)) == "done"
            began = time.monotonic()
            with pytest.raises(DeadlineExceededError, match="takes"):
                await queue.run(frame(0.02))
            assert time.monotonic() - began < 0.02
            assert await queue.run(frame(1)) == "done"
            tasks = await queued(queue, *(frame(5) for _ in range(20)))
            with pytest.raises(DeadlineExceededError, match="wait"):
                await queue.run(frame(0.3))
            assert await asyncio.gather(*tasks) == ["done"] * 20

    run(main())


def test_an_old_estimate_refuses_nothing() -> None:
    async def main() -> None:
        now = 1000.0
        inspector = GatedInspector()
        inspector.gate.set()
        queue = Scheduler(inspector, max_frames=3, max_bytes=9, max_batch=1, clock=lambda: now)  # type: ignore[arg-type]

        def slow(_: Any, own: Work) -> str:
            nonlocal now
            now += 5
            return "slow"

        await queue.run(Work(call=slow, size_bytes=1, kind="k"))
        with pytest.raises(DeadlineExceededError):
            await queue.run(work("a", kind="k", deadline=now + 1))
        now += 60
        assert await queue.run(work("b", kind="k", deadline=now + 1)) == "result b"
        assert await queue.stop(20)

    run(main())


def test_token_streams_let_frames_in_between_and_share_the_worker() -> None:
    async def main() -> None:
        async with scheduler(max_frames=10, max_batch=1) as (queue, inspector):
            inspector.gate.set()
            order: list[str] = []
            hold = threading.Event()

            def tokens(name: str) -> Any:
                def steps(_: Any) -> Any:
                    for number in range(6):
                        if number == 2:
                            assert hold.wait(20)
                        order.append(f"{name}{number}")
                        yield number

                return steps

            got: list[int] = []
            a = Work(steps=tokens("a"), on_step=got.append, size_bytes=1)
            b = Work(steps=tokens("b"), size_bytes=1)
            streams = await queued(queue, a, b)

            def note(_: Any, own: Work) -> str:
                order.append("frame")
                return "frame"

            frames = await queued(queue, *(Work(call=note, size_bytes=1) for _ in range(3)))
            hold.set()
            assert await asyncio.gather(*streams, *frames) == [None, None, "frame", "frame", "frame"]
            assert got == list(range(6))
            last_frame = max(i for i, name in enumerate(order) if name == "frame")
            assert last_frame < len(order) - 3, "the frames did not wait for the answers"
            late = [name for name in order if name[0] in "ab"][4:10]
            assert {"a", "b"} == {name[0] for name in late[:3]}, "the answers take turns"

    run(main())


def test_token_stream_ends_when_nobody_listens_or_its_deadline_passes() -> None:
    async def main() -> None:
        async with scheduler(max_frames=10, max_batch=1) as (queue, inspector):
            inspector.gate.set()
            closed: list[str] = []

            def endless(name: str) -> Any:
                def steps(_: Any) -> Any:
                    try:
                        while True:
                            time.sleep(0.001)
                            yield 1
                    finally:
                        closed.append(name)

                return steps

            (gone,) = await queued(queue, Work(steps=endless("gone"), size_bytes=1))
            late = Work(steps=endless("late"), size_bytes=1, deadline=time.monotonic() + 0.1)
            with pytest.raises(DeadlineExceededError):
                await queue.run(late)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            limit = time.monotonic() + 10
            while len(closed) < 2 and time.monotonic() < limit:
                await asyncio.sleep(0.01)
            assert sorted(closed) == ["gone", "late"]

    run(main())


def test_another_engine_takes_over_between_batches() -> None:
    async def main() -> None:
        async with scheduler(max_frames=10, max_batch=1) as (queue, old):
            first = await occupy(queue, old)
            waiting = await queued(queue, work("a"), work("b"))
            new = GatedInspector()
            new.gate.set()
            swapping = asyncio.create_task(queue.swap(new))  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
            assert not swapping.done(), "the old one is still at work"
            old.gate.set()
            assert await asyncio.gather(first, *waiting) == ["result first", "result a", "result b"]
            assert await swapping is old
            assert (old.seen, new.seen) == (["first"], ["a", "b"])

    run(main())


def test_an_answer_is_finished_by_the_engine_that_began_it() -> None:
    async def main() -> None:
        async with scheduler(max_frames=10, max_batch=1) as (queue, old):
            old.gate.set()
            hold = threading.Event()
            used: list[Any] = []

            def steps(inspector: Any) -> Any:
                for number in range(3):
                    used.append(inspector)
                    yield number
                    assert hold.wait(20)

            (answer,) = await queued(queue, Work(steps=steps, size_bytes=1))
            limit = time.monotonic() + 10
            while not used and time.monotonic() < limit:
                await asyncio.sleep(0.01)
            new = GatedInspector()
            new.gate.set()
            swapping = asyncio.create_task(queue.swap(new))  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
            assert not swapping.done()
            hold.set()
            await answer
            assert await swapping is old
            assert used == [old] * 3

    run(main())


def test_company_is_waited_for_where_that_is_asked_for() -> None:
    async def main() -> None:
        async with scheduler(max_frames=10, max_batch=3, max_batch_wait_s=5.0) as (queue, inspector):
            inspector.gate.set()
            tasks = await queued(queue, work("a"))
            await asyncio.sleep(0.05)
            tasks += await queued(queue, work("b"), work("c"))
            began = time.monotonic()
            await asyncio.gather(*tasks)
            assert time.monotonic() - began < 4, "a full batch does not wait for the time to pass"
            assert inspector.batches == [["a", "b", "c"]]

    run(main())


def test_company_that_would_break_a_deadline_is_left_out() -> None:
    async def main() -> None:
        now = 0.0
        inspector = GatedInspector()
        queue = Scheduler(inspector, max_frames=9, max_bytes=99, max_batch=3, clock=lambda: now)  # type: ignore[arg-type]
        first = await occupy(queue, inspector)
        tasks = await queued(queue, work("hurried", deadline=0.12), work("a"), work("b"))
        inspector.gate.set()
        await asyncio.gather(first, *tasks)
        assert inspector.batches == [["first"], ["hurried", "a"], ["b"]]  # 0.05 s each is the first guess
        assert await queue.stop(20)

    run(main())
