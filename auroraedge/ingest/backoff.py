"""Exponential back-off with jitter."""

from __future__ import annotations

import random


class Backoff:
    """`next` gives the seconds to wait: first_s, twice that, ... up to max_s, each between half and all of it."""

    def __init__(self, first_s: float = 0.25, max_s: float = 15.0) -> None:
        self._first, self._max = first_s, max_s
        self._failures = 0

    def next(self) -> float:
        delay = min(self._first * 2 ** min(self._failures, 30), self._max)
        self._failures += 1
        return delay * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._failures = 0
