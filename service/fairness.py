"""The order in which waiting work is done: by priority without starvation, by client in turn, oldest first.

Between priorities: the more urgent first; but a class whose turn has been put off for its patience gets one frame in.
Between the clients of a class: deficit round robin, in seconds of work, so that a client with large frames, or with
many, gets its share of the engine's time and no more. Not thread-safe.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, Protocol, TypeVar


class Priority(IntEnum):
    """As in the API."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


# Seconds for which a class may be passed over before one of its frames goes first.
PATIENCE_S = {Priority.LOW: 2.0, Priority.NORMAL: 0.5}


class Item(Protocol):
    """What can wait. client: whose share it takes; cost_s: estimated seconds of work."""

    client: str
    priority: Priority
    cost_s: float


T = TypeVar("T", bound=Item)


@dataclass
class _Client(Generic[T]):
    items: deque[T] = field(default_factory=deque)
    deficit_s: float = 0.0
    has_turn: bool = False  # it got this round's seconds
    cost_s: float = 0.0  # of all its items


class _Class(Generic[T]):
    """The work of one priority."""

    def __init__(self) -> None:
        # The client whose turn it is comes first.
        self.clients: OrderedDict[str, _Client[T]] = OrderedDict()
        self.passed_over_since: float | None = None

    def push(self, item: T) -> None:
        client = self.clients.setdefault(item.client, _Client())
        client.items.append(item)
        client.cost_s += item.cost_s

    @property
    def quantum_s(self) -> float:
        """Seconds that each client gets in a round: enough for anybody's next item, so that a round has one of each."""
        return max((client.items[0].cost_s for client in self.clients.values()), default=0.0)

    def next(self) -> T:
        """The item that is due; it stays where it is."""
        while True:
            name, client = next(iter(self.clients.items()))
            if not client.has_turn:
                client.has_turn = True
                client.deficit_s += self.quantum_s
            if client.items[0].cost_s <= client.deficit_s:
                return client.items[0]
            client.has_turn = False
            self.clients.move_to_end(name)

    def remove(self, item: T) -> None:
        client = self.clients[item.client]
        client.items.remove(item)
        self._removed(item, client)

    def take(self) -> T:
        item = self.next()
        client = self.clients[item.client]
        client.items.popleft()
        client.deficit_s -= item.cost_s
        self._removed(item, client)
        return item

    def _removed(self, item: T, client: _Client[T]) -> None:
        client.cost_s -= item.cost_s
        if not client.items:
            # Whoever has nothing to do saves nothing up.
            del self.clients[item.client]

    @property
    def cost_s(self) -> float:
        return sum(client.cost_s for client in self.clients.values())

    def ahead_of(self, name: str, cost_s: float) -> float:
        """Seconds of work done before a new item of this client: its own, and the turns of the others meanwhile."""
        own = self.clients[name].cost_s if name in self.clients else 0.0
        share = own + cost_s + self.quantum_s
        others = sum(min(client.cost_s, share) for other, client in self.clients.items() if other != name)
        return own + others


class FairQueue(Generic[T]):
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._classes: dict[Priority, _Class[T]] = {priority: _Class() for priority in sorted(Priority, reverse=True)}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        for one in self._classes.values():
            for client in one.clients.values():
                yield from client.items

    def push(self, item: T) -> None:
        one = self._classes[item.priority]
        if not one.clients:
            one.passed_over_since = self._clock()
        one.push(item)
        self._size += 1

    def pop(self, accept: Callable[[T], bool] | None = None) -> T | None:
        """Takes the item that is due; None when there is none, or `accept` does not want it."""
        one = self._due()
        if one is None or (accept is not None and not accept(one.next())):
            return None
        self._size -= 1
        item = one.take()
        one.passed_over_since = self._clock()
        return item

    def remove(self, item: T) -> None:
        self._classes[item.priority].remove(item)
        self._size -= 1

    def held_by(self, client: str) -> int:
        """Items of one client."""
        return sum(len(one.clients[client].items) for one in self._classes.values() if client in one.clients)

    @property
    def clients(self) -> set[str]:
        return {name for one in self._classes.values() for name in one.clients}

    def wait_s(self, item: T) -> float:
        """Estimated seconds until a new item's turn, with the work that waits now."""
        return sum(
            one.cost_s if priority > item.priority else one.ahead_of(item.client, item.cost_s)
            for priority, one in self._classes.items()
            if priority >= item.priority
        )

    def _due(self) -> _Class[T] | None:
        waiting = [(priority, one) for priority, one in self._classes.items() if one.clients]
        if not waiting:
            return None
        now = self._clock()
        for priority, one in waiting[1:]:
            since = one.passed_over_since
            if since is not None and now - since >= PATIENCE_S[priority]:
                return one
        return waiting[0][1]
