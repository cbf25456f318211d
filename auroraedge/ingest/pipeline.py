"""Frames to results: the workers that send the frames of one source, and what they do when the server will not."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from auroraedge.errors import AuroraEdgeError, InvalidImageError, InvalidRequestError
from auroraedge.ingest.backoff import Backoff
from auroraedge.ingest.delivery import Courier, document, message_key, print_result
from auroraedge.ingest.feeds import Feed
from auroraedge.ingest.frames import Frame
from auroraedge.ingest.journal import Journal
from auroraedge.ingest.stats import SourceStats
from auroraedge.inspection.results import InspectionResult, Verdict, error_result

log = logging.getLogger("auroraedge.ingest")

# An unexpected failure may be about this one frame: after so many it is an ERROR, or the line would stand still.
_MAX_INTERNAL = 5


class Source(Protocol):
    """finite: it ends by itself. run: fills `feed` until `stop` or the end. after: the frame's result is kept."""

    feed: Feed
    finite: bool

    def run(self, stop: threading.Event) -> None: ...
    def after(self, frame: Frame, *, failed: bool) -> None: ...


class Inspects(Protocol):
    """The part of InspectionClient that is used."""

    def inspect(self, image: Any, recipe_id: str, **options: Any) -> InspectionResult: ...


def is_final(error: AuroraEdgeError) -> bool:
    """Whether the frame itself is at fault, so that sending it again is of no use."""
    return error.grpc_code in ("INVALID_ARGUMENT", "OUT_OF_RANGE")


class Lane:
    """One source with its feed and workers. Nothing of one source waits for another."""

    def __init__(
        self,
        name: str,
        source: Source,
        client: Inspects,
        journal: Journal,
        stats: SourceStats,
        couriers: Sequence[Courier],
        *,
        workers: int,
        reference: Path | None,
        timeout_s: float,
        to_stdout: bool,
    ) -> None:
        self.name, self.source, self.stats = name, source, stats
        self._client, self._journal, self._couriers = client, journal, couriers
        self._workers, self._reference, self._timeout_s, self._to_stdout = workers, reference, timeout_s, to_stdout
        self._stop = threading.Event()
        self._produced = threading.Event()
        self._unreachable_since: float | None = None
        self.failure: BaseException | None = None
        self._threads: list[threading.Thread] = []
        if hasattr(source, "unseen"):
            source.unseen = self._finish_unseen

    def start(self) -> None:
        self._threads = [
            threading.Thread(target=self._work, name=f"{self.name}-{index}", daemon=True)
            for index in range(self._workers)
        ]
        self._producer = threading.Thread(target=self._produce, name=f"{self.name}-source", daemon=True)
        for thread in (*self._threads, self._producer):
            thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for thread in (*self._threads, self._producer):
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def unreachable_s(self) -> float:
        """Seconds since the server last took a frame, 0 while it does."""
        since = self._unreachable_since
        return 0.0 if since is None else time.monotonic() - since

    def _produce(self) -> None:
        try:
            self.source.run(self._stop)
        except AuroraEdgeError as error:
            log.error("%s: %s", self.name, error)
            self.failure = error
            self.stats.online, self.stats.last_error = False, error.message
        except Exception as error:
            log.exception("%s has ended.", self.name)
            self.failure = error
            self.stats.online, self.stats.last_error = False, "internal error, see the log"
        finally:
            self._produced.set()

    def _work(self) -> None:
        while not self._stop.is_set():
            frame = self.source.feed.take(0.2)
            if frame is None:
                if self._produced.is_set() and not self.source.feed.waiting:
                    return
                continue
            result = self._result(frame)
            if result is None:
                self.source.feed.give_back(frame)
                continue
            self._finish(frame, result)

    def _result(self, frame: Frame) -> InspectionResult | None:
        """None when it was stopped, or when a frame that is not kept could not be sent."""
        if frame.problem is not None:
            return self._error(frame, frame.problem)
        try:
            reference = self._reference_of(frame)
        except AuroraEdgeError as error:
            return self._error(frame, error)
        backoff, internal = Backoff(), 0
        while True:
            try:
                result = self._client.inspect(
                    frame.data,
                    frame.recipe,
                    reference=reference,
                    request=frame.request,
                    image_name=frame.image_name,
                    timeout_s=self._timeout_s,
                )
                self._reached()
                return result
            except AuroraEdgeError as error:
                if is_final(error):
                    self._reached()
                    return self._error(frame, error)
                internal += error.grpc_code == "INTERNAL"
                if internal >= _MAX_INTERNAL:
                    return self._error(frame, error)
                self._failed(error)
                delay = max(backoff.next(), error.retry_after_s or 0.0)
            if self._stop.wait(delay) or not self.source.feed.keeps:
                return None

    def _reached(self) -> None:
        if self._unreachable_since is not None:
            log.info("%s: the server takes frames again", self.name)
            self._unreachable_since = None

    def _failed(self, error: AuroraEdgeError) -> None:
        self.stats.add("retries")
        self.stats.last_error = error.message
        if self._unreachable_since is None:
            self._unreachable_since = time.monotonic()
            log.warning("%s: %s", self.name, error)

    def _reference_of(self, frame: Frame) -> bytes | None:
        if self._reference is None:
            return None
        path = self._reference
        if path.is_dir():
            name = Path(frame.image_name)
            candidates = [path / name.name, *sorted(path.glob(f"{name.stem}.*"))]
            path = next((each for each in candidates if each.is_file()), path / name.name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise InvalidImageError(f"The golden sample {path.name} cannot be read.", field="reference") from error

    def _error(self, frame: Frame, error: AuroraEdgeError) -> InspectionResult:
        self.stats.last_error = error.message
        result = error_result(error, request=frame.request, image_name=frame.image_name)
        return result.model_copy(update={"recipe_id": frame.recipe})

    def _finish_unseen(self, frame: Frame) -> None:
        assert frame.problem is not None
        self._finish(frame, self._error(frame, frame.problem))

    def _finish(self, frame: Frame, result: InspectionResult) -> None:
        body = document(self.name, result)
        failed = result.verdict is Verdict.ERROR
        names = [courier.output.name for courier in self._couriers]
        self._journal.finish(frame, failed=failed, sinks=names, key=message_key(result), body=body)
        if self._to_stdout:
            with contextlib.suppress(BrokenPipeError):
                print_result(body)
        for courier in self._couriers:
            courier.notify()
        self.source.after(frame, failed=failed)
        self.stats.answered(result.verdict.value, (time.monotonic() - frame.at) * 1000)


def check_recipes(client: Any, wanted: Callable[[], set[str]]) -> None:
    """Raises InvalidRequestError when a server that can be reached does not know a recipe."""
    known = {recipe.id for recipe in client.recipes(timeout_s=5.0)}
    for recipe in sorted(wanted() - known):
        raise InvalidRequestError(
            f"The server has no recipe '{recipe}'.", field="recipe", remedy=f"It has: {', '.join(sorted(known))}."
        )
