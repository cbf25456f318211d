"""The project's own format: an annotations.jsonl (see data.pack), in the folder itself or in the one set below it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from auroraedge.data.importers.types import (
    DEFECTIVE,
    Finding,
    RawDataset,
    RawItem,
    RawObject,
    Severity,
    relative_name,
)
from auroraedge.data.pack import ANNOTATIONS, PRESUMED_GOOD_LABELS
from auroraedge.errors import DatasetError


def pack_folders(root: Path) -> list[Path]:
    """The folder itself, or the folders below it, that hold an annotations.jsonl."""
    if (root / ANNOTATIONS).is_file():
        return [root]
    return sorted(entry for entry in root.iterdir() if (entry / ANNOTATIONS).is_file())


def read_pack(root: Path) -> RawDataset:
    """One set. Lines that cannot be read are findings, so that all are named at once. Raises DatasetError."""
    folders = pack_folders(root)
    if len(folders) != 1:
        names = ", ".join(folder.name for folder in folders)
        what = f"{root} holds {len(folders)} sets." if folders else f"{root} has no {ANNOTATIONS}."
        raise DatasetError(
            what, field="data", remedy=f"Give one of them: {names}." if folders else "Name the format with --format."
        )
    folder = folders[0]
    items: dict[str, RawItem] = {}
    broken: list[str] = []
    missing: list[str] = []
    text = (folder / ANNOTATIONS).read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{ANNOTATIONS}:{number}"
        try:
            record = json.loads(line)
            item = _item(record, folder)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            broken.append(f"{where} ({type(error).__name__}: {error})")
            continue
        gone = [path for path in (item.path, item.reference) if path is not None and not path.is_file()]
        if gone:
            missing += [relative_name(path, folder) for path in gone]
        elif item.name in items:
            broken.append(f"{where} ('{item.name}' is already annotated)")
        else:
            items[item.name] = item
    findings = []
    if broken:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                code="broken-annotation",
                message=f"{len(broken)} lines of {ANNOTATIONS} cannot be used.",
                remedy="docs/training.md describes the format.",
                names=tuple(broken),
            )
        )
    if missing:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                code="missing-image",
                message=f"{len(missing)} annotated files are not there.",
                remedy="Restore them, or remove the lines.",
                names=tuple(missing),
            )
        )
    presumed = sum(item.image_label in PRESUMED_GOOD_LABELS for item in items.values())
    notes = [f"The project's own format: {ANNOTATIONS}."]
    if presumed:
        notes.append(f"{presumed} images are only presumed good: trained on as good, left out of strict scores.")
    return RawDataset(
        root=root, format="pack", items=tuple(items.values()), findings=tuple(findings), notes=tuple(notes)
    )


def _item(record: dict[str, Any], folder: Path) -> RawItem:
    file = str(record["file"])
    reference = record.get("reference")
    for path in (file, reference):
        if path is not None and (Path(path).is_absolute() or ".." in Path(path).parts):
            raise ValueError(f"'{path}' leaves the folder")
    objects = tuple(
        RawObject(label=str(o["label"]), bbox=tuple(float(v) for v in o["bbox"]))  # type: ignore[arg-type]
        for o in record.get("objects") or ()
        if len(o["bbox"]) == 4 or _wrong_box(o["bbox"])
    )
    label = str(record["image_label"])
    return RawItem(
        name=file,
        path=folder / file,
        image_label=DEFECTIVE if objects and label == "ok" else label,
        objects=objects,
        split=record.get("split"),
        group=record.get("group"),
        reference=None if reference is None else folder / str(reference),
        width=int(record["width"]),
        height=int(record["height"]),
    )


def _wrong_box(box: Any) -> bool:
    raise ValueError(f"bbox {box} has not four numbers")
