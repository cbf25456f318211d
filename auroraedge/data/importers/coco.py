"""COCO: one or several JSON files with images, annotations and categories. Source: https://cocodataset.org/#format-data

Also the training set that the operator's page exports (service/ui/training_set.py): its `auroraedge` fields carry the
person's verdict, the golden sample and the part.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from auroraedge.data.importers.types import (
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

_KEYS = {"images", "annotations", "categories"}


def coco_files(root: Path) -> list[Path]:
    """The COCO annotation files of a dataset: in its folder, in annotations/, or one in each split's folder."""
    places = [root, root / "annotations", *sorted(p for p in root.iterdir() if p.is_dir() and split_of(p.name))]
    candidates = [file for place in places if place.is_dir() for file in sorted(place.glob("*.json"))]
    return [file for file in candidates if _looks_like_coco(file)]


def _looks_like_coco(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False
    return isinstance(content, dict) and content.keys() >= _KEYS


def read_coco(root: Path) -> RawDataset:
    """All annotation files together. A file named after a split ('instances_val2017') gives it to its images.

    An image without annotations is taken as good. Raises DatasetError for a file that is not COCO.
    """
    files = coco_files(root)
    if not files:
        raise DatasetError(
            f"{root} has no COCO annotation file (a JSON with images, annotations and categories).",
            field="data",
            remedy="Put the JSON into that folder or into annotations/, or name the format with --format.",
        )
    reader = _Reader(root)
    for file in files:
        reader.read(file)
    notes = [f"COCO: {', '.join(relative_name(file, root) for file in files)}."]
    unmarked = sum(not item.objects and item.image_label == GOOD for item in reader.items.values())
    if unmarked and not reader.exported:
        notes.append(f"{unmarked} images without annotations are taken as good parts.")
    return RawDataset(
        root=root,
        format="coco",
        items=tuple(reader.items.values()),
        findings=tuple(reader.findings()),
        notes=tuple(notes),
    )


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.items: dict[str, RawItem] = {}
        self.exported = False
        self._missing: list[str] = []
        self._broken: Counter[str] = Counter()
        self._crowds = 0
        self._by_name: dict[str, list[Path]] | None = None

    def read(self, file: Path) -> None:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        where = relative_name(file, self.root)
        try:
            names = {int(c["id"]): str(c["name"]) for c in content["categories"]}
            images = {int(image["id"]): image for image in content["images"]}
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{where}: an entry of images or categories lacks {error}.",
                field="images",
                remedy="Each needs an id and a file_name or name.",
            ) from error
        objects: dict[int, list[RawObject]] = defaultdict(list)
        classes: dict[int, str] = {}
        for annotation in content["annotations"]:
            self._annotation(annotation, names, images, objects, classes)
        split = split_of(file.stem) or split_of(file.parent.name if file.parent != self.root else "")
        for number, image in images.items():
            self._image(image, tuple(objects[number]), classes.get(number), split, file)

    def _annotation(
        self,
        annotation: dict[str, Any],
        names: dict[int, str],
        images: dict[int, dict[str, Any]],
        objects: dict[int, list[RawObject]],
        classes: dict[int, str],
    ) -> None:
        label = names.get(annotation.get("category_id", -1))
        number = annotation.get("image_id")
        if label is None or number not in images:
            self._broken["an annotation names an unknown category or image"] += 1
            return
        if annotation.get("iscrowd"):
            self._crowds += 1
            return
        box = _box(annotation)
        if box is not None:
            if not is_good_name(label):
                objects[number].append(RawObject(label=label, bbox=box))
        else:  # no place: the class of the image
            classes[number] = label

    def _image(
        self,
        image: dict[str, Any],
        objects: tuple[RawObject, ...],
        image_class: str | None,
        split: str | None,
        file: Path,
    ) -> None:
        written = str(image.get("file_name", ""))
        path = self._find(written, file)
        if path is None:
            self._missing.append(written)
            return
        facts = image.get("auroraedge") if isinstance(image.get("auroraedge"), dict) else None
        label = GOOD if image_class is None or is_good_name(image_class) else image_class
        reference, group = None, None
        if facts is not None:
            self.exported = True
            group = facts.get("part_id") or facts.get("result_id")
            if facts.get("verdict") == "NG" and not objects and label == GOOD:
                label = DEFECTIVE
            if facts.get("reference"):
                reference = self._find(str(facts["reference"]), file)
                if reference is None:
                    self._missing.append(str(facts["reference"]))
        name = relative_name(path, self.root)
        if name in self.items:
            self._broken[f"'{name}' is listed more than once; the first entry counts"] += 1
            return
        self.items[name] = RawItem(
            name=name,
            path=path,
            image_label=label if not objects else DEFECTIVE,
            objects=objects,
            split=split,
            group=str(group) if group else None,
            reference=reference,
            width=_size(image.get("width")),
            height=_size(image.get("height")),
        )

    def _find(self, written: str, file: Path) -> Path | None:
        """The image: beside the JSON, in the dataset, in images/ or a split's folder, else by its unique file name."""
        if not written:
            return None
        parts = Path(written.replace("\\", "/"))
        for base in (file.parent, self.root, self.root / "images", self.root / file.stem.rpartition("_")[2]):
            candidate = base / parts
            if candidate.is_file() and candidate.resolve().is_relative_to(self.root.resolve()):
                return candidate
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for path in images_in(self.root):
                self._by_name[path.name].append(path)
        found = self._by_name.get(parts.name, [])
        return found[0] if len(found) == 1 else None

    def findings(self) -> list[Finding]:
        found = []
        if self._missing:
            found.append(
                Finding(
                    severity=Severity.ERROR,
                    code="missing-image",
                    message=f"{len(self._missing)} images of the annotation file are not in the folder.",
                    remedy="Restore the files, or remove their entries.",
                    names=tuple(self._missing),
                )
            )
        for what, count in self._broken.items():
            found.append(
                Finding(
                    severity=Severity.WARNING,
                    code="broken-annotation",
                    message=f"{what} ({count} times).",
                    remedy="Correct the annotation file.",
                )
            )
        if self._crowds:
            found.append(
                Finding(
                    severity=Severity.NOTE,
                    code="crowd",
                    message=f"{self._crowds} annotations with iscrowd are left out.",
                )
            )
        return found


def _size(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and value > 0 else None


def _box(annotation: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Corners of the annotation's bbox [x, y, w, h], or of its polygons' hull; None without a place."""
    box = annotation.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box):
        x, y, w, h = (float(v) for v in box)
        return x, y, x + w, y + h
    outline = annotation.get("segmentation")
    if isinstance(outline, list):
        flat = [float(v) for polygon in outline if isinstance(polygon, list) for v in polygon]
        if len(flat) >= 6 and len(flat) % 2 == 0:
            return min(flat[::2]), min(flat[1::2]), max(flat[::2]), max(flat[1::2])
    return None
