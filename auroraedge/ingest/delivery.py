"""What leaves: the document of one result, and the thread that empties the outbox of one output."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import Any, Protocol

from auroraedge.ingest.backoff import Backoff
from auroraedge.ingest.journal import Journal, Message
from auroraedge.inspection.results import InspectionResult

log = logging.getLogger("auroraedge.ingest")

_BATCH = 50


def document(source: str, result: InspectionResult) -> dict[str, Any]:
    """What every output gives for one result. `id` is the same in every attempt, and in every output."""
    return {"id": message_key(result), "source": source, "result": result.model_dump(mode="json", exclude_none=True)}


def message_key(result: InspectionResult) -> str:
    return result.request.request_id or result.result_id


def print_result(body: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")
    sys.stdout.flush()


class Output(Protocol):
    """An output with an outbox. `send` returns the ids of the messages that the other side has confirmed or that are
    to be given up (`bury`), and raises OSError or a subclass when it cannot be reached."""

    name: str

    def send(self, messages: list[Message], stop: threading.Event) -> list[int]: ...
    def idle(self) -> None: ...
    def close(self) -> None: ...


class Courier:
    """Empties the outbox of one output in a thread of its own: inspection never waits for it."""

    def __init__(self, output: Output, journal: Journal, *, limit: int) -> None:
        self.output, self._journal, self._limit = output, journal, limit
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"output-{output.name}", daemon=True)
        self.sent = self.failures = self.buried = 0
        self.last_error = ""

    def start(self) -> None:
        self._thread.start()

    def notify(self) -> None:
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """What is not sent by then stays in the outbox for the next run."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not self.last_error and self._journal.waiting(self.output.name):
            self._wake.set()
            time.sleep(0.05)
        self._stop.set()
        self._wake.set()
        self._thread.join(max(1.0, deadline - time.monotonic()))

    def _run(self) -> None:
        backoff = Backoff()
        try:
            while not self._stop.is_set():
                try:
                    messages = self._journal.messages(self.output.name, limit=_BATCH)
                    if not messages:
                        self.output.idle()
                        self._wake.wait(0.25)
                        self._wake.clear()
                        continue
                    done = self.output.send(messages, self._stop)
                    self._journal.delivered(done)
                    self.sent += len(done)
                    if len(done) == len(messages):
                        backoff.reset()
                        self.last_error = ""
                        continue
                    raise OSError("not every message was confirmed")
                except OSError as error:
                    self._failed(error)
                    self._stop.wait(backoff.next())
        except Exception:
            log.exception("Output %s has ended.", self.output.name)
            self.last_error = "ended by an internal error; see the log"
        finally:
            self.output.close()

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        text = str(error) or type(error).__name__
        if text != self.last_error:
            log.warning("%s: %s; %d messages wait", self.output.name, text, self._journal.waiting(self.output.name))
        self.last_error = text
        too_many = self._journal.waiting(self.output.name) - self._limit
        if too_many > 0:
            oldest = self._journal.messages(self.output.name, limit=too_many)
            self._journal.bury(self.output.name, oldest, "the outbox is full")
            self.buried += len(oldest)

    def snapshot(self) -> dict[str, Any]:
        return {
            "sent": self.sent,
            "waiting": self._journal.waiting(self.output.name),
            "failures": self.failures,
            "dead_letters": self.buried + getattr(self.output, "buried", 0),
            "last_error": self.last_error,
        }
