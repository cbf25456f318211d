"""Frames from files: those that are there, and those that arrive in a watched folder."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from auroraedge.ingest.feeds import FileFeed
from auroraedge.ingest.frames import FileOrigin, Frame, file_request_id, request_info
from auroraedge.ingest.journal import Journal
from auroraedge.ingest.metadata import name_fields, sidecar_fields, sidecar_of
from auroraedge.ingest.settings import FilesSource, WatchSource
from auroraedge.ingest.stats import SourceStats

log = logging.getLogger("auroraedge.ingest")

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# Events of these come late, or not at all, when another machine writes.
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "vboxsf", "virtiofs")
# A file that stays unchanged but does not end as its format does is given so much longer.
_TAIL_WAIT_S = 30.0
_SIDECAR_WAIT_S = 60.0


def file_system(path: Path) -> str:
    """Type of the file system that `path` lies on, e.g. 'ext4' or 'nfs4'; '' where Linux' mount table is not there."""
    best, kind = -1, ""
    with contextlib.suppress(OSError):
        real = path.resolve()
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            left, _, right = line.partition(" - ")
            mount = Path(left.split()[4].replace("\\040", " "))
            if real.is_relative_to(mount) and len(mount.parts) >= best:
                best, kind = len(mount.parts), right.split()[0]
    return kind


def is_network(kind: str) -> bool:
    return kind in _NETWORK or kind.startswith("fuse.")


def ends_whole(path: Path) -> bool:
    """Whether a JPEG or PNG ends as such files do; True for other formats."""
    suffix = path.suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        return True
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(max(0, size - 64))
        tail = file.read()
        return b"IEND" in tail if suffix == ".png" else b"\xff\xd9" in tail
    return False


class _FileReader:
    """Makes frames of files."""

    def __init__(
        self,
        settings: FilesSource | WatchSource,
        recipe: str,
        info: dict[str, str],
        journal: Journal,
        stats: SourceStats,
    ) -> None:
        self.settings, self.recipe, self.info = settings, recipe, info
        self.journal, self.stats = journal, stats
        self.feed = FileFeed(settings.in_flight + 2)

    def frame(self, origin: FileOrigin) -> Frame | None:
        """None when the file is gone or cannot be read now."""
        arrived = time.monotonic()
        try:
            data = origin.path.read_bytes()
        except OSError as error:
            self.stats.last_error = f"{origin.relative}: {error.strerror}"
            return None
        captured = datetime.fromtimestamp(origin.mtime_ns / 1e9, UTC)
        request_id = file_request_id(self.settings.name, origin, data)
        problem: AuroraEdgeError | None = None
        request = request_info({}, request_id=request_id, captured_at=captured)
        try:
            extra = {} if self.settings.sidecar == "none" else self._sidecar(origin)
            named = name_fields(self.settings.pattern, origin.relative)
            request = request_info(
                {"camera": self.settings.name},
                self.info,
                named,
                extra,
                request_id=request_id,
                captured_at=captured,
            )
        except AuroraEdgeError as error:
            problem = error
        self.stats.add("frames")
        return Frame(
            source=self.settings.name,
            data=data,
            request=request,
            image_name=origin.relative[-1024:],
            recipe=self.recipe,
            at=arrived,
            origin=origin,
            problem=problem,
        )

    def _sidecar(self, origin: FileOrigin) -> dict[str, object]:
        path = sidecar_of(origin.path, self.settings.sidecar)
        if path is None:
            raise InvalidRequestError(
                f"'{origin.relative}' has no .{self.settings.sidecar} file beside it.",
                field="sidecar",
                remedy="Write it, or set sidecar: none.",
            )
        return sidecar_fields(path)


def _origin(path: Path, relative: str) -> FileOrigin | None:
    with contextlib.suppress(OSError):
        stat = path.stat()
        return FileOrigin(path=path, relative=relative, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
    return None


class FileSource(_FileReader):
    """Every file once, in the order of their names; those that earlier runs did are skipped."""

    finite = True

    def run(self, stop: threading.Event) -> None:
        for path, relative in self._paths():
            if stop.is_set():
                return
            origin = _origin(path, relative)
            if origin is None:
                self.stats.add("missing")
                log.warning("%s: %s is not there", self.settings.name, path)
                continue
            if self.journal.file_state(self.settings.name, origin) == "done":
                self.stats.add("skipped")
                continue
            frame = self.frame(origin)
            if frame is not None and not self.feed.put(frame, stop):
                return

    def _paths(self) -> Iterator[tuple[Path, str]]:
        assert isinstance(self.settings, FilesSource)
        seen: set[Path] = set()
        for pattern in self.settings.paths:
            base = Path(pattern)
            if base.is_dir():
                found = sorted(path for path in base.rglob("*") if path.suffix.lower() in _IMAGES and path.is_file())
            elif glob.has_magic(pattern) and not base.exists():
                found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 (also absolute)
            else:
                found = [base]
            for path in found:
                real = path.absolute()
                if real not in seen:
                    seen.add(real)
                    yield path, real.as_posix()

    def after(self, frame: Frame, *, failed: bool) -> None:
        """Files that were named stay where they are."""


class WatchedFolder(_FileReader):
    """Files as they become complete, oldest first. Events only wake it up: what counts is what it then reads."""

    finite = False

    def __init__(
        self, settings: WatchSource, recipe: str, info: dict[str, str], journal: Journal, stats: SourceStats
    ) -> None:
        super().__init__(settings, recipe, info, journal, stats)
        self.watched = settings
        # relative path -> the file and its sidecar as last seen, and since when they are so
        self._seen: dict[str, tuple[tuple[FileOrigin, FileOrigin | None], float]] = {}
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()

    def run(self, stop: threading.Event) -> None:
        self._tidy()
        watcher = self._start_watcher(stop)
        try:
            while not stop.is_set():
                soon = self._scan(stop)
                # A file that is settling is looked at again when it may have settled, without an event.
                timeout = min(self.watched.poll_s, soon) if soon is not None else self.watched.poll_s
                deadline = time.monotonic() + timeout
                while not stop.is_set() and time.monotonic() < deadline:
                    if self._wake.wait(min(0.2, max(0.0, deadline - time.monotonic()))):
                        self._wake.clear()
                        break
        finally:
            if watcher is not None:
                watcher.join(2)

    def _start_watcher(self, stop: threading.Event) -> threading.Thread | None:
        kind = file_system(self.watched.folder)
        if self.watched.watch == "poll" or (self.watched.watch == "auto" and is_network(kind)):
            log.info(
                "%s: polling %s every %g s (%s)", self.settings.name, self.watched.folder, self.watched.poll_s, kind
            )
            return None

        def watch() -> None:
            from watchfiles import watch as changes

            try:
                for _ in changes(
                    self.watched.folder, stop_event=stop, debounce=50, step=20, rust_timeout=500, yield_on_timeout=True
                ):
                    self._wake.set()
            except Exception as error:  # inotify's limits, a folder that was unmounted: polling goes on regardless
                log.warning("%s: no events (%s); polling every %g s", self.settings.name, error, self.watched.poll_s)

        thread = threading.Thread(target=watch, name=f"{self.settings.name}-watch", daemon=True)
        thread.start()
        return thread

    def _tidy(self) -> None:
        """Finishes what a kill left between a result and its file, and forgets files that are gone."""
        gone = []
        for relative in self.journal.known_files(self.settings.name):
            origin = _origin(self.watched.folder / relative, relative)
            if origin is None:
                gone.append(relative)
                continue
            state = self.journal.file_state(self.settings.name, origin)
            if state is not None:
                self._dispose(origin, failed=state == "failed")
        if self.watched.folder.is_dir():  # an unmounted share must not make us forget what was done
            self.journal.forget_files(self.settings.name, gone)

    def _scan(self, stop: threading.Event) -> float | None:
        """Queues what is complete. Returns the seconds until another file may be, None if none is settling."""
        try:
            found = list(self._walk(self.watched.folder, ""))
        except OSError as error:
            self.stats.online, self.stats.last_error = False, f"{self.watched.folder}: {error.strerror}"
            return None
        self.stats.online = True
        now, soon = time.monotonic(), None
        present = {origin.relative for origin in found}
        with self._lock:
            for relative in self._seen.keys() - present:
                del self._seen[relative]
        for origin in sorted(found, key=lambda each: (each.mtime_ns, each.relative)):
            if stop.is_set():
                return None
            wait = self._wait_for(origin, now, stop)
            if wait is not None:
                soon = wait if soon is None else min(soon, wait)
        return soon

    def _wait_for(self, origin: FileOrigin, now: float, stop: threading.Event) -> float | None:
        """Queues the file if it is complete; seconds until it may be; None when it is queued or done with."""
        with self._lock:
            if origin.relative in self._busy:
                return None
            sidecar = sidecar_of(origin.path, self.watched.sidecar)
            current = (origin, None if sidecar is None else _origin(sidecar, sidecar.name))
            before, since = self._seen.get(origin.relative, (None, now))
            if before != current:
                since = now
                self._seen[origin.relative] = (current, now)
        if self.journal.file_state(self.settings.name, origin) is not None:
            return None
        unchanged = now - since
        if self.watched.complete == "stable":
            if unchanged < self.watched.settle_s:
                return self.watched.settle_s - unchanged
            if unchanged < self.watched.settle_s + _TAIL_WAIT_S and not ends_whole(origin.path):
                return 0.25
        described = self.watched.sidecar == "none" or sidecar is not None
        if not described and unchanged < _SIDECAR_WAIT_S:
            return self.watched.poll_s
        frame = self.frame(origin)
        if frame is None:
            return self.watched.poll_s
        if _origin(origin.path, origin.relative) != origin:  # it was written to while it was read
            return self.watched.settle_s
        with self._lock:
            self._busy.add(origin.relative)
        if not self.feed.put(frame, stop):
            with self._lock:
                self._busy.discard(origin.relative)
        return None

    def _walk(self, folder: Path, prefix: str) -> Iterator[FileOrigin]:
        with os.scandir(folder) as entries:
            for entry in entries:
                relative = f"{prefix}{entry.name}"
                # Hidden files and folders are other programs' temporary ones.
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        yield from self._walk(Path(entry.path), f"{relative}/")
                elif Path(entry.name).suffix.lower() in self.watched.suffixes:
                    origin = _origin(Path(entry.path), relative)
                    if origin is not None:
                        yield origin

    def after(self, frame: Frame, *, failed: bool) -> None:
        assert frame.origin is not None
        self._dispose(frame.origin, failed=failed)
        with self._lock:
            self._busy.discard(frame.origin.relative)

    def _dispose(self, origin: FileOrigin, *, failed: bool) -> None:
        """Moves or deletes a file that is done. What failed is never deleted."""
        policy = self.watched.done
        if policy == "keep" or (policy == "delete" and failed):
            return
        if _origin(origin.path, origin.relative) != origin:
            return  # another picture under the same name: not inspected yet
        companion = sidecar_of(origin.path, self.watched.sidecar)
        try:
            for path in [origin.path] if companion is None else [origin.path, companion]:
                if policy == "delete":
                    path.unlink(missing_ok=True)
                else:
                    self._move(path, Path(origin.relative).parent / path.name, failed=failed)
        except OSError as error:
            log.warning("%s: %s stays where it is: %s", self.settings.name, origin.relative, error.strerror)
            return
        self.journal.forget_files(self.settings.name, [origin.relative])

    def _move(self, path: Path, relative: Path, *, failed: bool) -> None:
        assert self.watched.done_folder is not None
        target = self.watched.done_folder / ("failed" if failed else "") / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 0
        while target.exists():  # cameras use names again; nothing is overwritten
            number += 1
            target = target.with_name(f"{relative.stem}_{number}{relative.suffix}")
        try:
            os.replace(path, target)
        except OSError:  # another file system
            import shutil

            part = target.with_name(f".{target.name}.part")
            shutil.copy2(path, part)
            os.replace(part, target)
            path.unlink()
