"""When a client tries again: only where the server took no frame, and never past the caller's timeout."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from auroraedge.errors import AuroraEdgeError, QueueFullError, ServerUnavailableError


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Exponential back-off with jitter for UNAVAILABLE, QUEUE_FULL and every error that carries a RetryInfo.

    attempts: calls in all, the first included. The delay before retry n is first_delay_s * factor**n, at most
    max_delay_s and at least the server's RetryInfo; each delay is lengthened by up to `jitter` of itself, so that
    cameras that were refused together do not come back together.
    """

    attempts: int = 4
    first_delay_s: float = 0.1
    factor: float = 2.0
    max_delay_s: float = 5.0
    jitter: float = 0.25

    def start(self, timeout_s: float | None) -> RetryBudget:
        """The retries of one call that may take `timeout_s` seconds in all (None: no limit)."""
        return RetryBudget(policy=self, deadline=None if timeout_s is None else time.monotonic() + timeout_s)


@dataclass(kw_only=True)
class RetryBudget:
    policy: RetryPolicy
    deadline: float | None
    failures: int = field(default=0, init=False)

    @property
    def remaining_s(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def delay_after(self, error: AuroraEdgeError) -> float | None:
        """Seconds to wait before the next attempt; None when `error` has to be raised."""
        self.failures += 1
        passing = isinstance(error, QueueFullError | ServerUnavailableError) or error.retry_after_s is not None
        if self.failures >= self.policy.attempts or not passing:
            return None
        backoff = min(self.policy.first_delay_s * self.policy.factor ** (self.failures - 1), self.policy.max_delay_s)
        delay = max(backoff, error.retry_after_s or 0.0) * (1 + random.uniform(0, self.policy.jitter))
        remaining = self.remaining_s
        return None if remaining is not None and delay >= remaining else delay
