"""The order of waiting work: priorities without starvation, clients in turn, seconds instead of frames."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from service.fairness import PATIENCE_S, FairQueue, Priority


@dataclass(eq=False)
class Frame:
    client: str
    cost_s: float = 0.05
    priority: Priority = Priority.NORMAL
    number: int = 0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def drain(queue: FairQueue[Frame], count: int, clock: Clock | None = None) -> list[Frame]:
    """Takes frames as a worker would; each lasts as long as it costs."""
    found = []
    for _ in range(count):
        item = queue.pop()
        assert item is not None
        found.append(item)
        if clock is not None:
            clock.now += item.cost_s
    return found


def test_one_client_is_served_in_its_order(clock: Clock) -> None:
    queue: FairQueue[Frame] = FairQueue(clock)
    for number in range(5):
        queue.push(Frame("a", number=number))
    assert [item.number for item in drain(queue, 5)] == [0, 1, 2, 3, 4]
    assert queue.pop() is None and len(queue) == 0


def test_a_flood_does_not_delay_the_others(clock: Clock) -> None:
    queue: FairQueue[Frame] = FairQueue(clock)
    for _ in range(50):
        queue.push(Frame("flood"))
    queue.push(Frame("b"))
    queue.push(Frame("c"))
    assert {"b", "c"} <= {item.client for item in drain(queue, 4)}


def test_shares_are_of_seconds_and_not_of_frames(clock: Clock) -> None:
    queue: FairQueue[Frame] = FairQueue(clock)
    for _ in range(400):
        queue.push(Frame("large", cost_s=0.4))
        queue.push(Frame("small", cost_s=0.05))
    served = drain(queue, 180)
    seconds = {name: sum(item.cost_s for item in served if item.client == name) for name in ("large", "small")}
    assert seconds["large"] == pytest.approx(seconds["small"], abs=0.5)


def test_who_comes_later_has_saved_nothing_up(clock: Clock) -> None:
    queue: FairQueue[Frame] = FairQueue(clock)
    for _ in range(40):
        queue.push(Frame("a"))
    drain(queue, 30)
    for _ in range(10):
        queue.push(Frame("b"))
    names = [item.client for item in drain(queue, 12)]
    assert 5 <= names.count("b") <= 7


def test_urgent_first_but_nobody_starves(clock: Clock) -> None:
    queue: FairQueue[Frame] = FairQueue(clock)
    for _ in range(400):
        queue.push(Frame("gripper", priority=Priority.HIGH))
    for _ in range(20):
        queue.push(Frame("camera", priority=Priority.NORMAL))
        queue.push(Frame("archive", priority=Priority.LOW))
    served = drain(queue, 200, clock)  # 10 s
    count = {priority: sum(item.priority is priority for item in served) for priority in Priority}
    assert served[0].priority is Priority.HIGH
    assert 10 / PATIENCE_S[Priority.NORMAL] - 3 <= count[Priority.NORMAL] <= 10 / PATIENCE_S[Priority.NORMAL] + 1
    assert 10 / PATIENCE_S[Priority.LOW] - 2 <= count[Priority.LOW] <= 10 / PATIENCE_S[Priority.LOW] + 1


def test_wait_counts_what_goes_before(clock: Clock) -> None:
    queue: FairQueue[Frame] = FairQueue(clock)
    for _ in range(20):
        queue.push(Frame("flood", cost_s=0.1))
    queue.push(Frame("gripper", cost_s=0.3, priority=Priority.HIGH))
    queue.push(Frame("archive", cost_s=9.0, priority=Priority.LOW))
    assert queue.wait_s(Frame("flood", cost_s=0.1)) == pytest.approx(2.3)
    # The flood gets its turns while the newcomer gets one, and not more.
    assert 0.3 < queue.wait_s(Frame("new", cost_s=0.1)) < 0.6
    assert queue.wait_s(Frame("gripper", cost_s=0.1, priority=Priority.HIGH)) == pytest.approx(0.3)


def test_random_work_is_served_exactly_once(clock: Clock) -> None:
    rng = random.Random(4)
    queue: FairQueue[Frame] = FairQueue(clock)
    pushed: list[Frame] = []
    served: list[Frame] = []
    removed: list[Frame] = []
    for number in range(2000):
        frame = Frame(rng.choice("abcd"), rng.choice([1e-6, 0.01, 0.3, 2.0]), rng.choice(list(Priority)), number)
        queue.push(frame)
        pushed.append(frame)
        clock.now += rng.random() * 0.1
        if rng.random() < 0.3:
            gone = rng.choice(list(queue))
            queue.remove(gone)
            removed.append(gone)
        if rng.random() < 0.5 and (item := queue.pop()) is not None:
            served.append(item)
    while (item := queue.pop()) is not None:
        served.append(item)
    assert sorted(f.number for f in served + removed) == [f.number for f in pushed]
    for client in "abcd":
        for priority in Priority:
            own = [f.number for f in served if f.client == client and f.priority is priority]
            assert own == sorted(own)


def test_what_is_not_wanted_stays(clock: Clock) -> None:
    queue: FairQueue[Frame] = FairQueue(clock)
    queue.push(Frame("a"))
    assert queue.pop(lambda item: False) is None
    assert len(queue) == 1 and queue.held_by("a") == 1 and queue.clients == {"a"}
    assert queue.pop(lambda item: True) is not None
