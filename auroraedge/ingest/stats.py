"""Counters of one source, and the text and JSON made of them."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Any


class SourceStats:
    """Thread-safe. Latencies are milliseconds from the arrival of a frame until its result was in the outbox."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=1000)
        self.online = True
        self.last_error = ""

    def add(self, name: str, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def answered(self, verdict: str, latency_ms: float) -> None:
        with self._lock:
            self._counts["answered"] += 1
            self._counts[verdict] += 1
            self._latencies.append(latency_ms)

    def __getitem__(self, name: str) -> int:
        with self._lock:
            return self._counts[name]

    def snapshot(self) -> dict[str, Any]:
        """frames: taken from the source. dropped: replaced by newer ones. spool_full: lost for want of room on disk."""
        with self._lock:
            counts, latencies = dict(self._counts), sorted(self._latencies)
        names = ("frames", "answered", "OK", "NG", "REVIEW", "ERROR", "dropped", "spool_full", "retries", "reconnects")
        return {name: counts.get(name, 0) for name in names} | {
            "online": self.online,
            "p50_ms": round(latencies[len(latencies) // 2], 1) if latencies else None,
            "p99_ms": round(latencies[int(len(latencies) * 0.99)], 1) if latencies else None,
            "last_error": self.last_error,
        }


def status_line(name: str, values: dict[str, Any]) -> str:
    verdicts = " ".join(f"{each} {values[each]}" for each in ("OK", "NG", "REVIEW", "ERROR") if values[each])
    parts = [f"{name}: {values['frames']} frames, {values['answered']} answered"]
    parts += [f"({verdicts})"] if verdicts else []
    for key in ("dropped", "spool_full", "retries", "reconnects", "waiting"):
        if values.get(key):
            parts.append(f"{key.replace('_', ' ')} {values[key]}")
    if values["p50_ms"] is not None:
        parts.append(f"p50 {values['p50_ms']} ms p99 {values['p99_ms']} ms")
    if not values["online"]:
        parts.append(f"OFFLINE: {values['last_error']}")
    return ", ".join(parts)
