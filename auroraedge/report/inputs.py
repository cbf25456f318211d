"""What a report inspects: the images of a folder, a glob pattern, a CSV manifest or a video, in a fixed order."""

from __future__ import annotations

import csv
import glob
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from pydantic import ValidationError

from auroraedge.errors import InvalidRequestError
from auroraedge.inspection.results import RequestInfo

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
# Columns of a manifest beside `image`, `reference` and `recipe`: what a result carries about its frame.
REQUEST_COLUMNS = tuple(RequestInfo.model_fields)
_LITTER = frozenset({"thumbs.db", "desktop.ini"})


# Shared, because a hundred thousand of them would be held.
_NO_REQUEST = RequestInfo()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a video: every `every`-th, or `per_second` of each second. Nothing given: one a second."""

    every: int | None = None
    per_second: float | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.per_second is not None:
            raise InvalidRequestError(
                "Both every and per_second are given.", field="every", remedy="Give one of --every and --per-second."
            )
        if (self.every is not None and self.every < 1) or (self.per_second is not None and not self.per_second > 0):
            raise InvalidRequestError("Frames are counted from 1.", field="every", remedy="Give a number above 0.")


@dataclass(frozen=True, kw_only=True)
class InputItem:
    """One image to inspect. `name`: its path relative to the folder, pattern or manifest, with forward slashes.

    frame: the number of a frame, from 0, where `path` is a video.
    """

    name: str
    path: Path
    reference: Path | None = None
    recipe: str | None = None
    request: RequestInfo = _NO_REQUEST
    frame: int | None = None


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """A file or manifest row that was not inspected, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class InputSet:
    """The images in the order of the report, what was left out, and remarks for the reader."""

    source: str
    items: tuple[InputItem, ...]
    skipped: tuple[SkippedFile, ...] = ()
    notes: tuple[str, ...] = ()


def collect_inputs(
    source: str | Path,
    *,
    references: Path | None = None,
    exclude: Path | None = None,
    sampling: Sampling | None = None,
) -> InputSet:
    """The images behind `source`: a folder (recursive), one image, a glob pattern, a CSV manifest, or a video.

    references: a folder with golden samples of the same names (a manifest's `reference` column goes first).
    exclude: a folder that is not searched (the report's own). Raises InvalidRequestError when there is no such source.
    """
    lookup = _References(references) if references is not None else None
    path = Path(source)
    skip = tuple(p.resolve() for p in (exclude, references) if p is not None)
    if path.is_dir():
        return _from_folder(path, lookup, skip)
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return _from_manifest(path, lookup)
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return _from_video(path, references, sampling or Sampling())
        return _from_paths(str(path), path.parent, [path], lookup)
    if glob.has_magic(str(source)):
        # Path.glob takes no absolute pattern.
        paths = (Path(p) for p in glob.glob(str(source), recursive=True))  # noqa: PTH207
        found = sorted(p for p in paths if p.is_file())
        return _from_paths(str(source), _glob_base(str(source)), found, lookup)
    raise InvalidRequestError(
        f"There is no file or folder '{source}'.",
        field="inputs",
        remedy="Name a folder, an image, a quoted glob pattern, a CSV manifest, a video or a results.jsonl.",
    )


class _References:
    """Golden samples by relative path, else by file name, else by name without suffix when that is unambiguous."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InvalidRequestError(
                f"There is no references folder '{folder}'.", field="references", remedy="Name an existing folder."
            )
        self.folder = folder
        self._by_name: dict[str, list[Path]] = {}
        for path in _walk(folder, ()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                for key in {path.name, path.stem}:
                    self._by_name.setdefault(key, []).append(path)

    def find(self, name: str) -> Path | None:
        same = self.folder / name
        if same.is_file():
            return same
        for key in (PurePath(name).name, PurePath(name).stem):
            found = self._by_name.get(key, [])
            if len(found) == 1:
                return found[0]
        return None


def _walk(folder: Path, skip: tuple[Path, ...]) -> Iterator[Path]:
    """All visible files below `folder`, sorted, without following links to folders."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(d for d in folders if not d.startswith(".") and Path(here, d).resolve() not in skip)
        for name in sorted(files):
            if not name.startswith(".") and name.lower() not in _LITTER:
                yield Path(here, name)


def _glob_base(pattern: str) -> Path:
    """The leading folders of `pattern` that hold no wildcard."""
    parts = []
    for part in Path(pattern).parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts) if parts else Path()


def _relative(path: Path, base: Path) -> str:
    try:
        return path.relative_to(base).as_posix()
    except ValueError:
        return path.as_posix()


def _from_folder(folder: Path, lookup: _References | None, skip: tuple[Path, ...]) -> InputSet:
    if folder.resolve() in skip:
        raise InvalidRequestError(
            f"'{folder}' is also the report's or the references' folder.",
            field="inputs",
            remedy="Give images, references and report a folder each.",
        )
    return _from_paths(str(folder), folder, _walk(folder, skip), lookup)


def _from_paths(source: str, base: Path, paths: Iterator[Path] | list[Path], lookup: _References | None) -> InputSet:
    items, skipped = [], []
    for path in paths:
        name = _safe_name(_relative(path, base))
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            what = f"not an image file ({path.suffix or 'no suffix'})"
            if path.suffix.lower() in VIDEO_SUFFIXES:
                what = "a video: name it as the source to inspect its frames"
            skipped.append(SkippedFile(name=name, reason=what))
            continue
        reference = lookup.find(_relative(path, base)) if lookup else None
        items.append(InputItem(name=name, path=path, reference=reference))
    items.sort(key=lambda item: item.name)
    return InputSet(source=source, items=tuple(items), skipped=tuple(skipped), notes=_reference_note(items, lookup))


def _from_video(path: Path, references: Path | None, sampling: Sampling) -> InputSet:
    """The chosen frames. One golden sample, if any, is for all: the file of the video's name in `references`."""
    from auroraedge.report.video import frame_count, frame_numbers

    reference = _References(references).find(path.name) if references is not None else None
    count, fps = frame_count(path)
    numbers = frame_numbers(count, fps, sampling)
    items = tuple(
        InputItem(name=f"{_safe_name(path.name)}#{number:06d}", path=path, reference=reference, frame=number)
        for number in numbers
    )
    note = f"{len(items)} of about {count} frames of the video were chosen, {fps:.4g} frames a second in it."
    return InputSet(source=str(path), items=items, notes=(note,))


def _reference_note(items: list[InputItem], lookup: _References | None) -> tuple[str, ...]:
    missing = sum(item.reference is None for item in items) if lookup else 0
    if not missing or lookup is None:
        return ()
    return (f"{missing} of {len(items)} images have no golden sample of their name in {lookup.folder}.",)


def _safe_name(name: str) -> str:
    """`name` as valid Unicode: bytes of a file name that are not UTF-8 become replacement characters."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _from_manifest(path: Path, lookup: _References | None) -> InputSet:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{path} is not UTF-8 text.", field="inputs", remedy="Save the manifest as CSV UTF-8."
        ) from error
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = {name: (name or "").strip().lower() for name in reader.fieldnames or ()}
    if "image" not in columns.values():
        raise InvalidRequestError(
            f"{path} has no column 'image' (it has: {', '.join(columns.values()) or 'none'}).",
            field="inputs",
            remedy=f"Columns: image, and optionally reference, recipe, {', '.join(REQUEST_COLUMNS)}.",
        )
    known = {"image", "reference", "recipe", *REQUEST_COLUMNS}
    unknown = [name for name in columns.values() if name not in known]
    notes = [f"Manifest columns that were not used: {', '.join(unknown)}."] if unknown else []
    items: list[InputItem] = []
    skipped: list[SkippedFile] = []
    seen: set[InputItem] = set()
    for row in reader:
        cells = {columns[k]: v.strip() for k, v in row.items() if k in columns and isinstance(v, str) and v.strip()}
        if not cells:
            continue
        where = f"{path.name}, line {reader.line_num}"
        item = _manifest_item(cells, path.parent, lookup)
        if isinstance(item, str):
            skipped.append(SkippedFile(name=cells.get("image", where), reason=f"{where}: {item}"))
        elif item in seen:
            skipped.append(SkippedFile(name=item.name, reason=f"{where}: repeats an earlier line"))
        else:
            items.append(item)
            seen.add(item)
    return InputSet(
        source=str(path),
        items=tuple(items),
        skipped=tuple(skipped),
        notes=(*notes, *_reference_note(items, lookup)),
    )


def _manifest_item(cells: Mapping[str, str], base: Path, lookup: _References | None) -> InputItem | str:
    """The item of one row, or what is wrong with it."""
    image = cells.get("image", "").replace("\\", "/")
    if not image:
        return "no image named"
    try:
        request = RequestInfo.model_validate({k: v for k, v in cells.items() if k in REQUEST_COLUMNS})
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    own = cells.get("reference", "").replace("\\", "/")
    reference = base / own if own else (lookup.find(image) if lookup else None)
    return InputItem(name=image, path=base / image, reference=reference, recipe=cells.get("recipe"), request=request)
