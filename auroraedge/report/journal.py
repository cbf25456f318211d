"""results.jsonl: one line an inspected image, written so that a run can be killed at any moment and continued."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from auroraedge.errors import InvalidImageError, InvalidRequestError
from auroraedge.inspection.results import InspectionResult, RequestInfo

try:
    import fcntl
except ImportError:  # Windows: no advisory lock; two runs on one folder are then the user's to avoid
    fcntl = None  # type: ignore[assignment]


class Record(BaseModel):
    """One line of results.jsonl. `key` is the identity of the work: see `record_key`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    file: str
    reference: str | None = None
    reference_sha256: str | None = None
    result: InspectionResult


def record_key(
    *,
    file: str,
    image_sha256: str,
    reference_sha256: str | None,
    recipe_sha256: str,
    engine_sha256: str,
    request: RequestInfo,
) -> str:
    """SHA-256 over everything that a result depends on; a change of any of it means inspecting again."""
    parts: list[Any] = [file, image_sha256, reference_sha256, recipe_sha256, engine_sha256]
    parts.append(request.model_dump(mode="json", exclude_defaults=True))
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Journal:
    """The records of results.jsonl, found by key; in memory are only their places. `append` returns when the line is
    on disk.

    Opening repairs a last line that a kill or a power cut left incomplete. `damaged` counts the lines that cannot be
    read; their images are inspected again. `repaired` tells whether a torn line was removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        self.damaged = 0
        self.repaired = False
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise InvalidRequestError(
                f"{self.path} cannot be written: {error.strerror or error}.",
                field="out_dir",
                remedy="Name a folder that you may write to.",
            ) from error
        self._lock(self._file)
        try:
            self._load(self._file)
        except BaseException:
            self._file.close()
            raise
        _sync_folder(self.path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, record: Record) -> None:
        """Writes one line in one call and waits until the disk has it."""
        assert self._file is not None
        line = record.model_dump_json().encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._places[record.key] = (self._end, len(line))
        self._end += len(line)

    def get(self, key: str) -> Record | None:
        """The newest record of this key."""
        place = self._places.get(key)
        if place is None:
            return None
        assert self._file is not None
        self._file.seek(place[0])
        return Record.model_validate_json(self._file.read(place[1]))

    def records(self) -> Iterator[Record]:
        """The newest record of every key, one at a time."""
        for key in list(self._places):
            record = self.get(key)
            assert record is not None
            yield record

    def _lock(self, file: IO[bytes]) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise InvalidRequestError(
                f"Another run is writing to {self.path}.",
                field="out_dir",
                remedy="Wait until it has ended, or name another folder.",
            ) from error
        except OSError:  # a file system without locks, e.g. some network shares
            return

    def _load(self, file: IO[bytes]) -> None:
        file.seek(0)
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(self._end)
                os.fsync(file.fileno())
                self.repaired = True
                break
            try:
                record = Record.model_validate_json(line)
            except ValidationError:
                self.damaged += 1
            else:
                self._places[record.key] = (self._end, len(line))
            self._end += len(line)


def _sync_folder(folder: Path) -> None:
    """Makes a new file's name durable. Not possible on every system, and then not needed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` with `content` in one step: a reader sees the old file or the new one, never a part."""
    temporary = part_of(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def part_of(path: Path) -> Path:
    """The name under which a file is written until it is whole."""
    return path.with_name(f".{path.name}.part")


def sync(path: Path) -> None:
    """Waits until the disk has the file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_file(path: Path, field: str) -> bytes:
    """The bytes of an image file. Raises InvalidImageError naming `field` when it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidImageError(
            f"{path} cannot be read: {reason}.",
            field=field,
            remedy="Put the file in place and make it readable, then run again.",
        ) from error
