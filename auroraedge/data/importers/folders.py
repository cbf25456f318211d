"""Folders that say what is in them: MVTec-AD style (train/good, test/<defect>, ground_truth) and plain OK / NG.

Source of the former: Bergmann et al., "MVTec AD", CVPR 2019. Its masks become boxes, one a connected component.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from auroraedge.data.importers.types import (
    BAD_NAMES,
    DEFECTIVE,
    GOOD,
    Finding,
    RawDataset,
    RawItem,
    RawObject,
    Severity,
    images_in,
    is_good_name,
    relative_name,
    split_of,
)
from auroraedge.errors import DatasetError

LEAST_COMPONENT_PX = 12  # smaller specks of a mask are dropped, as in the inspection pack


def is_mvtec(root: Path) -> bool:
    """A category of MVTec AD: train/good and test/<something>."""
    return (root / "train" / "good").is_dir() and (root / "test").is_dir()


def mvtec_categories(root: Path) -> list[str]:
    """Names of the categories below a folder that holds several."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and is_mvtec(entry))


def mask_boxes(mask: np.ndarray, label: str) -> tuple[tuple[RawObject, ...], int]:
    """A box for each 8-connected component of a mask (bool [H, W]) of at least 12 pixels; how many were dropped."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    boxes, dropped = [], 0
    for x, y, w, h, area in stats[1:count].tolist():
        if area < LEAST_COMPONENT_PX:
            dropped += 1
        else:
            boxes.append(RawObject(label=label, bbox=(float(x), float(y), float(x + w), float(y + h))))
    return tuple(boxes), dropped


def read_mvtec(root: Path) -> RawDataset:
    """One category. Its own split is for learning from good parts alone, so splits are made anew.

    Raises DatasetError when it has no category, or several.
    """
    if not is_mvtec(root):
        several = mvtec_categories(root)
        what = f"{root} holds {len(several)} categories." if several else f"{root} has no train/good and test."
        raise DatasetError(
            what,
            field="data",
            remedy=f"Give one of them: {', '.join(several)}." if several else "Name the format with --format.",
        )
    items: list[RawItem] = []
    dropped = 0
    unmasked: list[str] = []
    bad_masks: list[str] = []
    for part in ("train", "test"):
        for folder in sorted(entry for entry in (root / part).iterdir() if entry.is_dir()):
            for path in images_in(folder):
                name = relative_name(path, root)
                if is_good_name(folder.name):
                    items.append(RawItem(name=name, path=path, image_label=GOOD))
                    continue
                objects: tuple[RawObject, ...] = ()
                masks = _masks(root / "ground_truth" / folder.name, path.stem)
                for file in masks:
                    mask = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
                    if mask is None:
                        bad_masks.append(relative_name(file, root))
                        continue
                    found, specks = mask_boxes(mask > 127 if mask.max() > 1 else mask > 0, folder.name)
                    objects, dropped = objects + found, dropped + specks
                if not masks:
                    unmasked.append(name)
                label = DEFECTIVE if objects else folder.name
                items.append(RawItem(name=name, path=path, image_label=label, objects=objects))
    findings = []
    if bad_masks:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                code="unreadable-mask",
                message=f"{len(bad_masks)} masks cannot be read.",
                remedy="Restore the files.",
                names=tuple(bad_masks),
            )
        )
    if unmasked:
        findings.append(
            Finding(
                severity=Severity.WARNING,
                code="no-mask",
                message=f"{len(unmasked)} defective images have no mask in ground_truth.",
                remedy="They count for the verdict alone.",
                names=tuple(unmasked),
            )
        )
    if dropped:
        findings.append(
            Finding(
                severity=Severity.NOTE,
                code="mask-specks",
                message=f"{dropped} components of masks below {LEAST_COMPONENT_PX} pixels are dropped.",
            )
        )
    notes = (
        "MVTec-AD style: masks became boxes, one a connected component.",
        "train and test of the source are put together: its train part has good parts only.",
    )
    return RawDataset(root=root, format="mvtec", items=tuple(items), findings=tuple(findings), notes=notes)


def _masks(folder: Path, stem: str) -> list[Path]:
    if not folder.is_dir():
        return []
    exact = [p for p in images_in(folder, deep=False) if p.stem in (stem, f"{stem}_mask")]
    # MVTec LOCO keeps the masks of one image in a folder of its name.
    return exact or (images_in(folder / stem) if (folder / stem).is_dir() else [])


def class_folders(root: Path) -> list[tuple[str | None, Path]]:
    """(split, folder) of every folder that names a class of its images, below split folders or directly."""
    entries = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    splits = [entry for entry in entries if split_of(entry.name) and not images_in(entry, deep=False)]
    found: list[tuple[str | None, Path]] = []
    for base, split in [(entry, split_of(entry.name)) for entry in splits] or [(root, None)]:
        for folder in sorted(entry for entry in base.iterdir() if entry.is_dir()):
            if images_in(folder):
                found.append((split, folder))
    return found


def is_folders(root: Path) -> bool:
    """OK / NG folders, or a folder a class: at least one name for good or bad parts, or two classes."""
    names = {folder.name.lower() for _, folder in class_folders(root)}
    return bool(names) and (any(is_good_name(n) or n in BAD_NAMES for n in names)) and len(names) > 1


def read_folders(root: Path) -> RawDataset:
    """OK / NG, or OK and a folder for each kind of defect; with or without train, val and test above them."""
    folders = class_folders(root)
    if not folders:
        raise DatasetError(
            f"{root} has no folders of images.",
            field="data",
            remedy="Make a folder OK and a folder NG (or one for each kind of defect).",
        )
    items = []
    counts: Counter[str] = Counter()
    for split, folder in folders:
        name = folder.name
        label = GOOD if is_good_name(name) else "defect" if name.lower() in BAD_NAMES else name
        for path in images_in(folder):
            items.append(RawItem(name=relative_name(path, root), path=path, image_label=label, split=split))
            counts[label] += 1
    listed = ", ".join(f"{count} {label}" for label, count in counts.items())
    notes = (f"A folder a class: {listed}.", "There are no boxes: whole images are told apart, nothing is located.")
    return RawDataset(root=root, format="folders", items=tuple(items), notes=notes)
