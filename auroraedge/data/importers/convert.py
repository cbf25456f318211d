"""Writes checked items as a set in the project's own format, from which training and evaluation read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from auroraedge.data.importers.types import RawItem
from auroraedge.data.pack import ANNOTATIONS
from auroraedge.errors import DatasetError


def set_lines(items: Sequence[RawItem]) -> list[dict[str, object]]:
    """The annotation lines of checked items (width, height, split and group are set), in their order."""
    lines: list[dict[str, object]] = []
    for item in items:
        lines.append(
            {
                "file": f"images/{_plain(item.name)}",
                "reference": None if item.reference is None else f"references/{_plain(item.name, item.reference)}",
                "width": item.width,
                "height": item.height,
                "split": item.split,
                "group": item.group,
                "image_label": item.image_label,
                "objects": [{"label": o.label, "bbox": list(o.bbox)} for o in item.objects],
                "source": item.name,
            }
        )
    return lines


def write_set(items: Sequence[RawItem], folder: Path) -> str:
    """Writes images and annotations.jsonl into `folder`; returns the SHA-256 of everything that training depends on.

    Images are linked where the file system can, else copied. A folder with the same content is left as it is; another
    one is replaced in one step. Raises DatasetError when it cannot be written.
    """
    lines = set_lines(items)
    digest = hashlib.sha256()
    for item, line in zip(items, lines, strict=True):
        digest.update(json.dumps(line, sort_keys=True).encode())
        for path in (item.path, item.reference):
            if path is not None:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    mark = folder / "content.sha256"
    if mark.is_file() and mark.read_text(encoding="utf-8") == digest.hexdigest():
        return digest.hexdigest()
    fresh = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        for item, line in zip(items, lines, strict=True):
            _place(item.path, fresh / str(line["file"]))
            if item.reference is not None:
                _place(item.reference, fresh / str(line["reference"]))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (fresh / ANNOTATIONS).write_text(text, encoding="utf-8")
        (fresh / mark.name).write_text(digest.hexdigest(), encoding="utf-8")
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.replace(old)
            fresh.replace(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            fresh.replace(folder)
    except OSError as error:
        raise DatasetError(
            f"The converted set cannot be written to {folder} ({error.strerror}).", field="out", remedy="Free the disk."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return digest.hexdigest()


def _plain(name: str, path: Path | None = None) -> str:
    """A name below images/: relative, without '..', with the suffix of `path` where one is given."""
    parts = [part for part in Path(name).parts if part not in ("..", "/", "\\", Path(name).anchor)]
    plain = Path(*parts)
    return (plain if path is None else plain.with_suffix(path.suffix)).as_posix()


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
