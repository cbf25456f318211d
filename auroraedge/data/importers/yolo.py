"""YOLO: data.yaml with class names, one text file an image. Source: https://docs.ultralytics.com/datasets/detect/

Boxes (class x y w h, relative) and outlines (class x1 y1 x2 y2 x3 y3 ...), whose hull is taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import yaml

from auroraedge.data.importers.types import (
    DEFECTIVE,
    GOOD,
    SPLITS,
    Finding,
    RawDataset,
    RawItem,
    RawObject,
    Severity,
    images_in,
    is_good_name,
    relative_name,
)
from auroraedge.errors import DatasetError


def yolo_file(root: Path) -> Path | None:
    """The dataset's YAML: data.yaml, or the only other one with `names`."""
    for file in [root / "data.yaml", root / "data.yml", *sorted(root.glob("*.y*ml"))]:
        if file.is_file():
            try:
                content = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                continue
            if isinstance(content, dict) and "names" in content and any(key in content for key in ("train", "val")):
                return file
    return None


def read_yolo(root: Path) -> RawDataset:
    """Images of the splits that the YAML names, with the labels/ twin of each images/ folder.

    An image without a label file, or with an empty one, is a good part. Raises DatasetError.
    """
    file = yolo_file(root)
    if file is None:
        raise DatasetError(
            f"{root} has no YOLO data.yaml with names and train.",
            field="data",
            remedy="Put it into that folder, or name the format with --format.",
        )
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    names = _names(content["names"], file)
    reader = _Reader(root, names)
    for key in ("train", "val", "valid", "test"):
        if content.get(key):
            for entry in content[key] if isinstance(content[key], list) else [content[key]]:
                reader.read(_place(root, file, content.get("path"), str(entry)), SPLITS[key])
    if not reader.items:
        raise DatasetError(
            f"{file.name} leads to no images below {root}.",
            field="train",
            remedy="Correct path, train and val in it; they are folders relative to the file.",
        )
    unmarked = sum(not item.objects for item in reader.items.values())
    notes = [f"YOLO: {file.name} with {len(names)} classes."]
    if unmarked:
        notes.append(f"{unmarked} images without a box are taken as good parts.")
    return RawDataset(
        root=root,
        format="yolo",
        items=tuple(reader.items.values()),
        findings=tuple(reader.findings()),
        notes=tuple(notes),
    )


def _names(names: Any, file: Path) -> dict[int, str]:
    if isinstance(names, list):
        return {index: str(name) for index, name in enumerate(names)}
    if isinstance(names, dict):
        return {int(index): str(name) for index, name in names.items()}
    raise DatasetError(f"{file.name}: names must be a list or a mapping.", field="names")


def _place(root: Path, file: Path, base: Any, entry: str) -> Path:
    """Where a split's entry leads: relative to `path`, to the YAML, or (after a move) by its last two parts."""
    bases = [file.parent / str(base)] if base else []
    text = entry.replace("\\", "/")
    tries = [b / text for b in (*bases, file.parent)]
    # Roboflow writes ../train/images beside the folder that it means.
    tries += [root.joinpath(*Path(text).parts[-n:]) for n in (2, 1)]
    return next((t for t in tries if t.exists() and t.resolve().is_relative_to(root.resolve())), tries[-1])


class _Reader:
    def __init__(self, root: Path, names: dict[int, str]) -> None:
        self.root, self.names = root, names
        self.items: dict[str, RawItem] = {}
        self._missing: list[str] = []
        self._bad_lines: list[str] = []

    def read(self, place: Path, split: str) -> None:
        if place.is_file():  # a list of image paths
            lines = [line.strip() for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
            paths = []
            for line in lines:
                path = next((p for p in (place.parent / line, self.root / line) if p.is_file()), None)
                if path is None:
                    self._missing.append(line)
                else:
                    paths.append(path)
        else:
            paths = images_in(place) if place.is_dir() else []
            if not place.is_dir():
                self._missing.append(relative_name(place, self.root))
        for path in paths:
            self._image(path, split)

    def _image(self, path: Path, split: str) -> None:
        name = relative_name(path, self.root)
        if name in self.items:
            return
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        height, width = image.shape[:2] if image is not None else (0, 0)
        objects = self._objects(_label_file(path), width, height)
        self.items[name] = RawItem(
            name=name, path=path, image_label=DEFECTIVE if objects else GOOD, objects=objects, split=split
        )

    def _objects(self, file: Path, width: int, height: int) -> tuple[RawObject, ...]:
        if not file.is_file():
            return ()
        found = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                index, *values = line.split()
                numbers = [float(value) for value in values]
                label = self.names[int(float(index))]
            except (ValueError, KeyError):
                self._bad_lines.append(f"{relative_name(file, self.root)}:{number}")
                continue
            if len(numbers) in (4, 5):  # a fifth is a detector's confidence
                x, y, w, h = numbers[:4]
                box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            elif len(numbers) >= 6 and len(numbers) % 2 == 0:
                box = (min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))
            else:
                self._bad_lines.append(f"{relative_name(file, self.root)}:{number}")
                continue
            if not is_good_name(label):
                # Six decimals of a relative coordinate: the sum may pass the border by a thousandth of a pixel.
                sizes = (width, height, width, height)
                scaled = [round(value * size, 2) for value, size in zip(box, sizes, strict=True)]
                found.append(RawObject(label=label, bbox=(scaled[0], scaled[1], scaled[2], scaled[3])))
        return tuple(found)

    def findings(self) -> list[Finding]:
        found = []
        if self._missing:
            found.append(
                Finding(
                    severity=Severity.ERROR,
                    code="missing-image",
                    message=f"{len(self._missing)} entries of the data file lead nowhere.",
                    remedy="Correct the paths.",
                    names=tuple(self._missing),
                )
            )
        if self._bad_lines:
            found.append(
                Finding(
                    severity=Severity.ERROR,
                    code="broken-annotation",
                    message=f"{len(self._bad_lines)} label lines cannot be read or name a class that data.yaml lacks.",
                    remedy="Write 'class x y w h' with numbers relative to the image.",
                    names=tuple(self._bad_lines),
                )
            )
        return found


def _label_file(path: Path) -> Path:
    """The label file of an image: images/ becomes labels/ (the last such part), .txt; else beside the image."""
    parts = list(path.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            return Path(*parts).with_suffix(".txt")
    return path.with_suffix(".txt")
