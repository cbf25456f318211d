"""One run of `auroraedge ingest`: puts sources, server and outputs together, and takes them apart in good order."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from auroraedge.client import InspectionClient, RetryPolicy
from auroraedge.errors import AuroraEdgeError, ServerUnavailableError
from auroraedge.ingest.delivery import Courier, Output
from auroraedge.ingest.files import FileSource, WatchedFolder
from auroraedge.ingest.journal import Journal
from auroraedge.ingest.pipeline import Lane, check_recipes
from auroraedge.ingest.settings import FilesSource, GenICamSource, IngestConfig, Source, VideoSource, WatchSource
from auroraedge.ingest.stats import SourceStats, status_line

log = logging.getLogger("auroraedge.ingest")

# How long an ordinary end waits for frames that are under way, and for the outputs.
_STOP_S = 10.0
_FLUSH_S = 5.0
# A run over files ends with an error when the server stays away for so long; what is left is done by the next one.
_GIVE_UP_S = 60.0


def open_client(config: IngestConfig) -> InspectionClient:
    server = config.server
    token = server.read(server.token_file, "server.token_file") if server.token_file is not None else ""
    return InspectionClient(
        server.address,
        timeout_s=server.timeout_s,
        # The pipeline repeats frames itself: for as long as it takes, and counted.
        retry=RetryPolicy(attempts=1),
        token=token,
        root_certificates=server.ca,
        certificate=server.cert,
        key=server.key,
    )


class Ingest:
    """`start`, then `wait` or `stop`. A context manager that does both."""

    def __init__(self, config: IngestConfig, *, client: Any = None) -> None:
        """client: anything with `inspect` as InspectionClient has it. Raises AuroraEdgeError for what cannot work."""
        self.config = config
        self._own_client = client is None
        self.client: Any = open_client(config) if client is None else client
        self.journal = Journal(config.state, spool_bytes=config.spool_mb << 20)
        self.stats = {source.name: SourceStats() for source in config.sources}
        self._stop = threading.Event()
        try:
            self.couriers = self._make_couriers()
            self.lanes = [self._make_lane(source) for source in config.sources]
        except BaseException:
            self.journal.close()
            raise

    def _make_couriers(self) -> list[Courier]:
        found: list[Output] = []
        outputs = self.config.outputs
        if outputs.mqtt is not None:
            from auroraedge.ingest.mqtt import MqttOutput

            names = tuple(source.name for source in self.config.sources)
            found.append(MqttOutput(outputs.mqtt, self.journal, names, lambda name: self.stats[name].online))
        if outputs.webhooks:
            from auroraedge.ingest.webhook import Webhook

            found += [Webhook(hook, self.journal) for hook in outputs.webhooks]
        return [Courier(output, self.journal, limit=outputs.outbox_messages) for output in found]

    def _make_lane(self, settings: Source) -> Lane:
        return Lane(
            settings.name,
            self._make_source(settings),
            self.client,
            self.journal,
            self.stats[settings.name],
            self.couriers,
            workers=settings.in_flight,
            reference=settings.reference,
            timeout_s=self.config.server.timeout_s,
            to_stdout=self.config.outputs.jsonl,
        )

    def _make_source(self, settings: Source) -> Any:
        recipe = settings.recipe or self.config.recipe
        info = self.config.info | settings.info
        stats = self.stats[settings.name]
        if isinstance(settings, FilesSource):
            return FileSource(settings, recipe, info, self.journal, stats)
        if isinstance(settings, WatchSource):
            return WatchedFolder(settings, recipe, info, self.journal, stats)
        from auroraedge.ingest.live import Camera, LiveSource

        session = None
        if isinstance(settings, VideoSource):
            from auroraedge.ingest import video

            video.check_backend(settings)
            session = video.file_session(settings)

            def make_camera() -> Camera:
                return video.VideoCamera(settings)
        else:
            assert isinstance(settings, GenICamSource)
            from auroraedge.ingest import genicam

            genicam.check_harvesters(settings)

            def make_camera() -> Camera:
                return genicam.GenICamCamera(settings)

        stats.online = False
        return LiveSource(settings, recipe, info, self.journal, stats, make_camera=make_camera, session=session)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Raises InvalidRequestError when the server is there and knows a recipe not."""
        if hasattr(self.client, "recipes"):
            try:
                check_recipes(self.client, lambda: {s.recipe or self.config.recipe for s in self.config.sources})
            except ServerUnavailableError as error:
                log.warning("%s Frames are kept until it answers.", error)
            except AuroraEdgeError:
                self.journal.close()
                raise
        for courier in self.couriers:
            courier.start()
        for lane in self.lanes:
            lane.start()
        from auroraedge.ingest.triggers import start_trigger

        for lane in self.lanes:
            trigger = getattr(getattr(lane.source, "settings", None), "trigger", None)
            if trigger is not None:
                start_trigger(trigger, lane.source.triggers, self._stop, self.config.outputs.mqtt)  # type: ignore[attr-defined]

    def request_stop(self) -> None:
        """May be called from a signal handler."""
        self._stop.set()

    def wait(self, *, show_status: bool = False) -> None:
        """Returns when all sources have ended, or after `request_stop`. Raises the error that ended the only source."""
        next_status = time.monotonic() + self.config.status_s
        while not self._stop.wait(0.2):
            if all(lane.done for lane in self.lanes):
                break
            if self.config.status_s and time.monotonic() >= next_status:
                next_status += self.config.status_s
                self.write_status(show=show_status)
            finite = all(isinstance(source, FilesSource) for source in self.config.sources)
            if finite and any(lane.unreachable_s > _GIVE_UP_S for lane in self.lanes):
                raise ServerUnavailableError(
                    f"{self.config.server.address} has taken no frame for {_GIVE_UP_S:g} s.",
                    remedy="Start the server, then run the same command: it goes on where it was.",
                )
        failures = [lane.failure for lane in self.lanes if lane.failure is not None]
        if failures and len(failures) == len(self.lanes):
            raise failures[0]

    def stop(self) -> None:
        """Sources stop, frames under way are finished, outputs are given a moment; the rest stays on disk."""
        self._stop.set()
        for lane in self.lanes:
            lane.stop()
        for lane in self.lanes:
            lane.join(_STOP_S)
        for courier in self.couriers:
            courier.stop(_FLUSH_S)
        self.write_status(show=False)
        if self._own_client:
            self.client.close()
        self.journal.close()

    def status(self) -> dict[str, Any]:
        sources = {}
        for lane in self.lanes:
            sources[lane.name] = self.stats[lane.name].snapshot() | {"waiting": lane.source.feed.waiting}
        return {
            "at": time.time(),
            "pid": os.getpid(),
            "sources": sources,
            "outputs": {courier.output.name: courier.snapshot() for courier in self.couriers},
            "spool_bytes": self.journal.spooled_bytes(),
        }

    def write_status(self, *, show: bool) -> None:
        """STATE/status.json, and lines on stderr."""
        status = self.status()
        path = Path(self.config.state) / "status.json"
        part = path.with_suffix(".part")
        try:
            part.write_text(json.dumps(status, indent=1), encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            log.warning("status.json cannot be written: %s", error.strerror)
        if show:
            for name, values in status["sources"].items():
                print(status_line(name, values), file=sys.stderr)
            for name, values in status["outputs"].items():
                if values["waiting"] or values["last_error"]:
                    print(f"{name}: {values['waiting']} wait, {values['last_error'] or 'sending'}", file=sys.stderr)
