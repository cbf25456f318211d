"""Where the pictures of a report come from: files, frames of videos, or a result store."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from auroraedge.report.journal import read_file
from auroraedge.report.statistics import Entry
from auroraedge.report.video import FrameReader

if TYPE_CHECKING:
    from auroraedge.store import Store


class PictureGoneError(Exception):
    """The picture is not there any more, or is not the one that was inspected."""


class Pictures(Protocol):
    """Gives the encoded pictures of an entry: the frame, and the golden sample where it was used."""

    def kept(self, entry: Entry) -> bool:
        """Whether a picture of this entry was ever kept; one that was never kept is not missed."""
        ...

    def load(self, entry: Entry) -> tuple[bytes, bytes | None]:
        """Raises PictureGoneError, OSError or AuroraEdgeError."""
        ...

    def close(self) -> None: ...


class FilePictures:
    """The files and videos that were inspected."""

    def __init__(self, frames: FrameReader | None = None) -> None:
        self._frames = frames or FrameReader()

    def kept(self, entry: Entry) -> bool:
        return True

    def load(self, entry: Entry) -> tuple[bytes, bytes | None]:
        item = entry.item
        content = read_file(item.path, "image") if item.frame is None else self._frames.read(item.path, item.frame)
        _check(content, entry)
        golden = None
        if entry.result.reference_used and item.reference is not None:
            golden = read_file(item.reference, "reference")
        return content, golden

    def close(self) -> None:
        self._frames.close()


class NoPictures:
    """Results without pictures."""

    def kept(self, entry: Entry) -> bool:
        return False

    def load(self, entry: Entry) -> tuple[bytes, bytes | None]:
        raise PictureGoneError

    def close(self) -> None:
        return


class FolderPictures(NoPictures):
    """Pictures of a results.jsonl by their names below a folder; golden samples likewise below another."""

    def __init__(self, folder: Path, references: Path | None = None) -> None:
        self._folder, self._references = folder, references

    def kept(self, entry: Entry) -> bool:
        return True

    def load(self, entry: Entry) -> tuple[bytes, bytes | None]:
        content = (self._folder / entry.item.name).read_bytes()
        _check(content, entry)
        golden = None
        if entry.result.reference_used and self._references is not None and entry.item.reference is not None:
            path = self._references / entry.item.reference.name
            golden = path.read_bytes() if path.is_file() else None
        return content, golden


class StorePictures(NoPictures):
    """The pictures that a result store keeps."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def kept(self, entry: Entry) -> bool:
        return entry.image_sha256 is not None

    def load(self, entry: Entry) -> tuple[bytes, bytes | None]:
        assert entry.image_sha256 is not None
        content = self._store.image(entry.image_sha256)
        if content is None:
            raise PictureGoneError
        golden = self._store.image(entry.reference_sha256) if entry.reference_sha256 else None
        return content, golden


def _check(content: bytes, entry: Entry) -> None:
    if entry.result.image_sha256 and hashlib.sha256(content).hexdigest() != entry.result.image_sha256:
        raise PictureGoneError
