"""A live source: takes frames from a camera, reconnects it, and keeps or replaces what is not sent yet."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from auroraedge.errors import AuroraEdgeError, CameraLostError, InvalidRequestError
from auroraedge.ingest.backoff import Backoff
from auroraedge.ingest.feeds import LatestFeed, SpoolFeed
from auroraedge.ingest.frames import Frame, live_request_id, request_info
from auroraedge.ingest.journal import Journal
from auroraedge.ingest.metadata import Trigger
from auroraedge.ingest.settings import GenICamSource, VideoSource
from auroraedge.ingest.stats import SourceStats
from auroraedge.ingest.triggers import TriggerQueue

log = logging.getLogger("auroraedge.ingest")


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """What a camera gives: uint8 pixels [H, W] or BGR [H, W, 3], and what it says about them."""

    pixels: NDArray[np.uint8]
    info: dict[str, Any]


class Camera(Protocol):
    """One connection to a camera. All calls come from one thread."""

    ends: bool  # a file, which is over after its last frame

    def open(self) -> None:
        """Raises CameraLostError, or another AuroraEdgeError where trying again is of no use."""
        ...

    def grab(self) -> bool:
        """Waits for the next frame. False when nothing came in time; raises CameraLostError when it is gone."""
        ...

    def retrieve(self) -> Picture | None:
        """The pixels of the grabbed frame."""
        ...

    def skip(self) -> None:
        """Gives the grabbed frame back unseen."""
        ...

    def close(self) -> None: ...


def encode(pixels: NDArray[np.uint8], encoding: str) -> bytes:
    """PNG at its fastest setting (a frame is encoded while the next one is awaited), or JPEG of quality 95."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if encoding == "png" else [cv2.IMWRITE_JPEG_QUALITY, 95]
    done, data = cv2.imencode(f".{encoding}", pixels, options)
    if not done:
        raise InvalidRequestError("The frame cannot be encoded.", field="encoding")
    return data.tobytes()


class LiveSource:
    """Runs one camera. `session` makes the request ids of this run its own; of a file, it is the file's identity."""

    def __init__(
        self,
        settings: VideoSource | GenICamSource,
        recipe: str,
        info: dict[str, str],
        journal: Journal,
        stats: SourceStats,
        *,
        make_camera: Callable[[], Camera],
        session: str | None = None,
    ) -> None:
        self.settings, self.recipe, self.info, self.stats = settings, recipe, info, stats
        self._make_camera = make_camera
        self._session = session or secrets.token_hex(6)
        self._number = 0
        self.triggers = TriggerQueue(settings.name, stats.add) if settings.trigger is not None else None
        self.feed: SpoolFeed | LatestFeed = (
            SpoolFeed(settings.name, journal, stats) if settings.policy == "every" else LatestFeed(stats)
        )
        self.finite = False
        self._backoff = Backoff()
        self._next_at = 0.0
        # Set by the pipeline: takes the frame of a trigger without a picture.
        self.unseen: Callable[[Frame], None] = lambda frame: None

    def run(self, stop: threading.Event) -> None:
        connected_before = False
        while not stop.is_set():
            camera = self._make_camera()
            self.finite = camera.ends
            try:
                camera.open()
                if connected_before:
                    self.stats.add("reconnects")
                connected_before = True
                self._online()
                if self._take_all(camera, stop):
                    return
            except CameraLostError as error:
                self._offline(error)
            finally:
                camera.close()
            self._wait_offline(stop)

    def _take_all(self, camera: Camera, stop: threading.Event) -> bool:
        """True at the end of a file, or when stopped. Raises CameraLostError."""
        last = time.monotonic()
        while not stop.is_set():
            if camera.grab():
                last = time.monotonic()
                self._backoff.reset()
                self._grabbed(camera, stop)
            elif camera.ends:
                return True
            elif time.monotonic() - last > self.settings.stall_s:
                if self.triggers is None and not getattr(self.settings, "hardware_trigger", ""):
                    raise CameraLostError(f"No frame for {self.settings.stall_s:g} s.")
                last = time.monotonic()
            self._expire_triggers()
        return True

    def _grabbed(self, camera: Camera, stop: threading.Event) -> None:
        now = time.monotonic()
        trigger: Trigger | None = None
        if self.triggers is not None:
            trigger = self.triggers.pop()
            if trigger is None:
                camera.skip()
                return
        if self.settings.fps is not None:
            if camera.ends and trigger is None:
                stop.wait(max(0.0, self._next_at - now))
                now = time.monotonic()
            elif now < self._next_at and trigger is None:
                camera.skip()
                return
            self._next_at = max(self._next_at + 1 / self.settings.fps, now)
        picture = camera.retrieve()
        if picture is not None:
            self._emit(picture, trigger, camera, stop)
        elif trigger is not None:
            self._fail(trigger, "The camera gave no picture for this trigger.")

    def _emit(self, picture: Picture, trigger: Trigger | None, camera: Camera, stop: threading.Event) -> None:
        self.stats.add("frames")
        number, self._number = self._number, self._number + 1
        arrived, captured = time.monotonic(), datetime.now(UTC)

        def make() -> Frame:
            data = encode(picture.pixels, self.settings.encoding)
            return self._frame(number, arrived, captured, data, picture.info, trigger)

        if isinstance(self.feed, LatestFeed):
            while camera.ends and self.feed.waiting and not stop.is_set():
                time.sleep(0.002)  # a file runs no faster than it is inspected; nothing of it is dropped
            self.feed.put(make)
            return
        frame = make()
        while not self.feed.put(frame):
            if not camera.ends or stop.wait(0.2):
                self.stats.add("spool_full")
                self.stats.last_error = "the spool is full"
                return

    def _frame(
        self,
        number: int,
        arrived: float,
        captured: datetime,
        data: bytes,
        extra: dict[str, Any],
        trigger: Trigger | None,
        problem: AuroraEdgeError | None = None,
    ) -> Frame:
        request_id = live_request_id(self.settings.name, self._session, number)
        fields: dict[str, Any] = {} if trigger is None else dict(trigger.info) | {"trigger_id": trigger.id}
        base = {"camera": self.settings.name}
        try:
            request = request_info(base, self.info, extra, fields, request_id=request_id, captured_at=captured)
        except AuroraEdgeError as error:
            problem = problem or error
            request = request_info(base, request_id=request_id, captured_at=captured)
        return Frame(
            source=self.settings.name,
            data=data,
            request=request,
            image_name=f"{self.settings.name}/{number:08d}",
            recipe=self.recipe,
            at=arrived,
            problem=problem,
        )

    def _fail(self, trigger: Trigger, text: str) -> None:
        """A part that was announced and not seen gets its result, too: ERROR."""
        number, self._number = self._number, self._number + 1
        problem = CameraLostError(text)
        now, captured = time.monotonic(), datetime.now(UTC)
        self.stats.add("frames")
        self.unseen(self._frame(number, now, captured, b"", {}, trigger, problem))

    def _expire_triggers(self) -> None:
        while self.triggers is not None and (trigger := self.triggers.peek()) is not None:
            if time.monotonic() - trigger.at < self.settings.stall_s:
                return
            self.triggers.pop()
            self._fail(trigger, f"No picture within {self.settings.stall_s:g} s of the trigger.")

    def _online(self) -> None:
        if not self.stats.online:
            log.info("%s: connected", self.settings.name)
        self.stats.online = True

    def _offline(self, error: AuroraEdgeError) -> None:
        if self.stats.online:
            log.warning("%s: %s", self.settings.name, error)
        self.stats.online, self.stats.last_error = False, error.message

    def _wait_offline(self, stop: threading.Event) -> None:
        until = time.monotonic() + self._backoff.next()
        while not stop.is_set() and time.monotonic() < until:
            self._expire_triggers()
            stop.wait(min(0.2, max(0.0, until - time.monotonic())))

    def after(self, frame: Frame, *, failed: bool) -> None:
        """Nothing is left to do with a camera's frame."""
