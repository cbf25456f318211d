"""Where the frames of one source wait for a worker. What happens when it is slow is the difference between them."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from auroraedge.ingest.frames import Frame
from auroraedge.ingest.journal import Journal
from auroraedge.ingest.stats import SourceStats


class Feed(Protocol):
    """`keeps`: a frame that cannot be sent is tried until it can; otherwise it is dropped and counted."""

    keeps: bool

    def take(self, timeout_s: float) -> Frame | None: ...
    def give_back(self, frame: Frame) -> None: ...
    @property
    def waiting(self) -> int: ...


class FileFeed:
    """Frames whose file is still there: few in memory, the producer waits, nothing else need be kept."""

    keeps = True

    def __init__(self, size: int) -> None:
        self._queue: queue.Queue[Frame] = queue.Queue(size)

    def put(self, frame: Frame, stop: threading.Event) -> bool:
        """False when it was stopped before there was room."""
        while not stop.is_set():
            try:
                self._queue.put(frame, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def take(self, timeout_s: float) -> Frame | None:
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def give_back(self, frame: Frame) -> None:
        """The next start finds the file."""

    @property
    def waiting(self) -> int:
        return self._queue.qsize()


class SpoolFeed:
    """Every frame of a camera: on disk before anything else happens to it."""

    keeps = True

    def __init__(self, name: str, journal: Journal, stats: SourceStats) -> None:
        self._name, self._journal, self._stats = name, journal, stats
        self._arrived = threading.Event()

    def put(self, frame: Frame) -> bool:
        """False when the spool is full: the frame is lost, and counted."""
        kept = self._journal.spool(frame)
        if kept:
            self._arrived.set()
        return kept

    def take(self, timeout_s: float) -> Frame | None:
        frame = self._journal.take(self._name)
        if frame is None:
            self._arrived.clear()
            frame = self._journal.take(self._name)  # one may have come in between
            if frame is None and self._arrived.wait(timeout_s):
                frame = self._journal.take(self._name)
        return frame

    def give_back(self, frame: Frame) -> None:
        self._journal.give_back(frame)

    @property
    def waiting(self) -> int:
        return self._journal.spooled(self._name)


class LatestFeed:
    """One place: a newer frame replaces the one that waits. Frames are made (encoded) only when they are taken."""

    keeps = False

    def __init__(self, stats: SourceStats) -> None:
        self._stats = stats
        self._place: deque[Callable[[], Frame]] = deque()
        self._condition = threading.Condition()

    def put(self, make: Callable[[], Frame]) -> None:
        with self._condition:
            if self._place:
                self._place.clear()
                self._stats.add("dropped")
            self._place.append(make)
            self._condition.notify()

    def take(self, timeout_s: float) -> Frame | None:
        with self._condition:
            if not self._place and not self._condition.wait(timeout_s):
                return None
            make = self._place.popleft() if self._place else None
        return None if make is None else make()

    def give_back(self, frame: Frame) -> None:
        self._stats.add("dropped")

    @property
    def waiting(self) -> int:
        return len(self._place)
