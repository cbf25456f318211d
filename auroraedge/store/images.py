"""Pictures as files named by the SHA-256 of their content: one copy of each, however often it is recorded.

    FOLDER/store-id          which store the folder belongs to
    FOLDER/ab/abcdef...jpg   written beside its place, synced, renamed: a name always has the whole picture behind it

A picture is on the disk before the row that names it is committed. The reverse order of removal (row first, file later)
keeps a committed row from naming a picture that is gone; what a crash leaves behind is a file without a row, which
`auroraedge store check --mend` takes away.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from auroraedge.errors import StoreError, StoreFullError
from auroraedge.store.database import store_error

_MARKER = "store-id"
# Left free on the disk for the database, which needs room even to forget pictures.
RESERVE_BYTES = 32 * 1024 * 1024
# Pictures that are written at the same time.
_WRITERS = 8
_SUFFIXES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
    (b"II+\x00", ".tif"),
    (b"MM\x00+", ".tif"),
)


def suffix_of(content: bytes) -> str:
    """The file suffix that fits the first bytes of `content`."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for start, suffix in _SUFFIXES if content.startswith(start)), ".bin")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture to keep."""

    content: bytes
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Picture:
        return cls(content=content, sha256=hashlib.sha256(content).hexdigest())

    @property
    def suffix(self) -> str:
        return suffix_of(self.content)

    @property
    def name(self) -> str:
        return f"{self.sha256}{self.suffix}"


class ImageFolder:
    """The folder of pictures of one store. Thread-safe; several processes may use it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def claim(self, store_id: str) -> None:
        """Ties the folder to the store, or checks that it is: pictures of another store would look like litter.

        Raises StoreError for the folder of another store.
        """
        marker = self.root / _MARKER
        try:
            if marker.exists():
                found = marker.read_text(encoding="utf-8").strip()
                if found != store_id:
                    raise StoreError(
                        f"{self.root} holds the pictures of another store ({found}, not {store_id}).",
                        field="images",
                        remedy="Name the folder that belongs to the store, or an empty one.",
                    )
                return
            self.root.mkdir(parents=True, exist_ok=True)
            self._write(marker, store_id.encode() + b"\n")
            sync_folder(self.root)
        except OSError as error:
            raise store_error(error, str(self.root)) from error

    def path(self, name: str) -> Path:
        """Where the picture of this file name is."""
        return self.root / name[:2] / name

    def has(self, picture: Picture) -> bool:
        try:
            return self.path(picture.name).stat().st_size == len(picture.content)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise store_error(error, str(self.root)) from error

    def put(self, pictures: Iterable[Picture]) -> None:
        """Makes the pictures durable; those that are there already are left alone. Raises StoreError."""
        missing = [picture for picture in pictures if not self.has(picture)]
        if not missing:
            return
        try:
            self._check_space(sum(len(picture.content) for picture in missing))
            shards = {self.path(picture.name).parent for picture in missing}
            fresh = [shard for shard in shards if not shard.is_dir()]
            for shard in fresh:
                shard.mkdir(parents=True, exist_ok=True)
            if fresh:
                sync_folder(self.root)
            if len(missing) == 1:
                self._keep(missing[0])
            else:
                # Side by side, because a disk syncs several files in hardly more time than one.
                with ThreadPoolExecutor(max_workers=min(_WRITERS, len(missing))) as pool:
                    list(pool.map(self._keep, missing))
        except OSError as error:
            raise store_error(error, str(self.root)) from error

    def read(self, name: str) -> bytes | None:
        """The bytes of a picture; None when the file is not there. Raises StoreError when it cannot be read."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error(error, str(self.root)) from error

    def remove(self, name: str) -> None:
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            raise store_error(error, str(self.root)) from error

    def files(self) -> Iterator[os.DirEntry[str]]:
        """All files of the shards, pictures and litter alike, one shard in memory at a time."""
        try:
            if not self.root.is_dir():
                return
            for shard in sorted(entry.path for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False)):
                with os.scandir(shard) as entries:
                    yield from sorted((e for e in entries if e.is_file(follow_symlinks=False)), key=lambda e: e.name)
        except OSError as error:
            raise store_error(error, str(self.root)) from error

    def _keep(self, picture: Picture) -> None:
        path = self.path(picture.name)
        self._write(path, picture.content)
        sync_folder(path.parent)

    def _check_space(self, size: int) -> None:
        """Raises StoreFullError while there is still room to make room."""
        free = shutil.disk_usage(self.root).free
        if free < size + RESERVE_BYTES:
            raise StoreFullError(f"{self.root}: {free >> 20} MiB are free; {RESERVE_BYTES >> 20} stay in reserve.")

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        # A name of its own: two processes may write the same picture at once.
        temporary = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def sync_folder(folder: Path) -> None:
    """Makes new names in a folder durable. Not possible on every system, and then not needed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (9, 22):  # EBADF, EINVAL: folders cannot be synced here
            raise
    finally:
        os.close(handle)
