"""Datasets of other tools, read as annotated: COCO, Pascal VOC, YOLO, MVTec-AD style, OK / NG folders, our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from auroraedge.data.importers.coco import coco_files, read_coco
from auroraedge.data.importers.folders import is_folders, is_mvtec, mvtec_categories, read_folders, read_mvtec
from auroraedge.data.importers.packs import pack_folders, read_pack
from auroraedge.data.importers.types import (
    Example,
    Finding,
    RawDataset,
    RawItem,
    RawObject,
    Severity,
    images_in,
    is_good_name,
)
from auroraedge.data.importers.voc import read_voc, voc_files
from auroraedge.data.importers.yolo import read_yolo, yolo_file
from auroraedge.errors import DatasetError

__all__ = [
    "FORMATS",
    "Example",
    "Finding",
    "RawDataset",
    "RawItem",
    "RawObject",
    "Severity",
    "detect_format",
    "images_in",
    "is_good_name",
    "read_dataset",
]

_READERS: dict[str, Callable[[Path], RawDataset]] = {
    "pack": read_pack,
    "coco": read_coco,
    "yolo": read_yolo,
    "voc": read_voc,
    "mvtec": read_mvtec,
    "folders": read_folders,
}
# In this order: what says most comes first. An export of the operator's page is COCO and pack at once.
_SIGNS: dict[str, Callable[[Path], object]] = {
    "pack": pack_folders,
    "yolo": yolo_file,
    "coco": coco_files,
    "voc": voc_files,
    "mvtec": lambda root: is_mvtec(root) or mvtec_categories(root),
    "folders": is_folders,
}
FORMATS = tuple(_READERS)


def detect_format(root: Path) -> str:
    """The first format whose marks the folder bears. Raises DatasetError when it bears none."""
    for name, sign in _SIGNS.items():
        if sign(root):
            return name
    inside = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
    raise DatasetError(
        f"The format of {root} is not known (it holds {inside}).",
        field="data",
        remedy=f"Name it with --format ({', '.join(FORMATS)}); docs/finetune.md shows the folder of each.",
    )


def read_dataset(root: Path, format: str = "auto") -> RawDataset:
    """The dataset in `root`, every image with what its annotation says. Nothing is checked yet (data.validation).

    Raises DatasetError when there is no such folder, its format is not known, or its annotations cannot be read at all.
    """
    if not root.is_dir():
        raise DatasetError(f"There is no folder {root}.", field="data", remedy="Give the folder of your dataset.")
    name = detect_format(root) if format == "auto" else format
    if name not in _READERS:
        raise DatasetError(
            f"There is no format '{name}'.", field="format", remedy=f"Known: auto, {', '.join(FORMATS)}."
        )
    dataset = _READERS[name](root)
    if not dataset.items and not dataset.findings:
        raise DatasetError(f"{root} holds no annotated image.", field="data", remedy="Check the folder and --format.")
    return dataset
