"""What every importer yields: items as annotated, unchecked, and findings about them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from auroraedge.data.pack import GOOD_LABELS

GOOD = "ok"
DEFECTIVE = "defective"
# Folder and class names that mean a good part, beside those of the pack.
GOOD_NAMES = GOOD_LABELS | {"normal", "pass", "no_defect", "nodefect", "non_defective", "perfect", "fine", "io"}
BAD_NAMES = frozenset(
    {"ng", "bad", "defect", "defects", "defective", "nok", "fail", "reject", "anomaly", "nio", "scrap"}
)
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
SPLITS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


class Severity(StrEnum):
    """An error stops, a warning does not, a note says what was decided for the user."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class RawObject:
    """A box as annotated, (x1, y1, x2, y2) in pixels, x2 and y2 exclusive; nothing about it is checked."""

    label: str
    bbox: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class RawItem:
    """One annotated image. name: its path for people, unique in the dataset.

    image_label: 'ok', 'ok_presumed', 'defective' or the class of the image. split and group: None where not given.
    width, height: as annotated, None where the annotation says nothing.
    """

    name: str
    path: Path
    image_label: str
    objects: tuple[RawObject, ...] = ()
    split: str | None = None
    group: str | None = None
    reference: Path | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture for the report: an image file, what is wrong with it, and the boxes to draw."""

    path: Path
    caption: str
    objects: tuple[RawObject, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to know about a dataset. `names`: the images concerned, by RawItem.name or path."""

    severity: Severity
    code: str
    message: str
    remedy: str = ""
    names: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """Everything that an importer read. notes: how the format was understood."""

    root: Path
    format: str
    items: tuple[RawItem, ...]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def is_good_name(name: str) -> bool:
    """Whether a folder or class of this name holds good parts."""
    return name.strip().lower().replace("-", "_").replace(" ", "_") in GOOD_NAMES


def images_in(folder: Path, *, deep: bool = True) -> list[Path]:
    """Image files below `folder` (or directly in it), sorted; hidden ones are left out."""
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() and not p.name.startswith("."))


def split_of(text: str) -> str | None:
    """train, val or test where a folder or file name says so: 'valid', 'instances_train2017', 'test_annotations'."""
    words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def relative_name(path: Path, root: Path) -> str:
    """`path` for people: relative to the dataset where it lies in it."""
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return path.as_posix()
