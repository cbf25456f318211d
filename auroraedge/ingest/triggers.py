"""What releases frames of a live source: lines on stdin, MQTT messages, a clock."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from auroraedge.errors import AuroraEdgeError
from auroraedge.ingest.metadata import Trigger, trigger_from
from auroraedge.ingest.settings import MqttSettings, TriggerSettings

log = logging.getLogger("auroraedge.ingest")

_REMEMBERED = 256


class TriggerQueue:
    """Triggers of one source. An id that came before is the same message again (MQTT's QoS 1), not another part."""

    def __init__(self, name: str, count: Callable[[str], None]) -> None:
        self._name, self._count = name, count
        self._queue: queue.Queue[Trigger] = queue.Queue()
        self._recent: deque[str] = deque(maxlen=_REMEMBERED)

    def put_text(self, text: str) -> None:
        try:
            trigger = trigger_from(text, time.monotonic())
        except AuroraEdgeError as error:
            self._count("bad_triggers")
            log.warning("%s: %s", self._name, error)
            return
        self.put(trigger)

    def put(self, trigger: Trigger) -> None:
        if trigger.id:
            if trigger.id in self._recent:
                self._count("repeated_triggers")
                return
            self._recent.append(trigger.id)
        self._count("triggers")
        self._queue.put(trigger)

    def peek(self) -> Trigger | None:
        with self._queue.mutex:
            return self._queue.queue[0] if self._queue.queue else None

    def pop(self) -> Trigger | None:
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None


def start_trigger(
    settings: TriggerSettings, triggers: TriggerQueue, stop: threading.Event, broker: MqttSettings | None
) -> None:
    """Starts a thread that fills `triggers` until `stop`."""

    def from_stdin() -> None:
        for line in sys.stdin:
            if stop.is_set():
                return
            if line.strip():
                triggers.put_text(line)

    def from_clock() -> None:
        number, begun = 0, time.monotonic()
        while not stop.wait(max(0.0, begun + number * settings.seconds - time.monotonic())):
            triggers.put(Trigger(id="", at=time.monotonic()))
            number += 1

    def from_mqtt() -> None:
        from auroraedge.ingest.mqtt import subscribe

        assert broker is not None
        subscribe(broker, settings.topic, triggers.put_text, stop)

    target = {"stdin": from_stdin, "interval": from_clock, "mqtt": from_mqtt}[settings.kind]
    threading.Thread(target=target, name=f"trigger-{settings.kind}", daemon=True).start()
