"""Typed reading of annotated image folders in the inspection-pack format. Torch-free.

A pack is a folder of sets; a set is a folder with one `annotations.jsonl`, one JSON object a line:

    file, width, height       image path relative to the set's folder, size in pixels
    reference, mask           optional paths (or null): the aligned defect-free image, the 1-bit defect mask
    split, group              any names; images of one group show the same part or place
    image_label               "ok" | "ok_presumed" | "defective" | the name of the image's class
    objects                   list of {label, bbox: [x1, y1, x2, y2]}, pixels, origin top left, x2 and y2 exclusive;
                              optional area (pixels) and polygon ([[x, y], ...])

Fields beyond these are kept in `PackItem.extra`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from auroraedge.errors import DatasetError, InvalidImageError

ANNOTATIONS = "annotations.jsonl"
GOOD_LABELS = frozenset({"ok", "good", "defect_free"})
PRESUMED_GOOD_LABELS = frozenset({"ok_presumed"})

_Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_Coordinate = Annotated[float, Field(allow_inf_nan=False)]


class Truth(StrEnum):
    """What is known of a whole image. PRESUMED_GOOD: believed defect-free, but nobody said so."""

    GOOD = "good"
    PRESUMED_GOOD = "presumed_good"
    DEFECTIVE = "defective"


class PackObject(BaseModel):
    """One annotated defect. `bbox` is (x1, y1, x2, y2) in source pixels, x2 and y2 exclusive."""

    model_config = ConfigDict(extra="allow", frozen=True)

    label: _Name
    bbox: tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate]
    area: float | None = Field(default=None, ge=0)
    polygon: tuple[tuple[_Coordinate, _Coordinate], ...] | None = None


class PackItem(BaseModel):
    """One annotated image, its paths resolved against the set's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    set_name: str
    file: _Name
    path: Path
    reference: Path | None = None
    mask: Path | None = None
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    split: _Name
    group: _Name
    image_label: _Name
    objects: tuple[PackObject, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _boxes_inside(self) -> PackItem:
        for index, item in enumerate(self.objects):
            x1, y1, x2, y2 = item.bbox
            if not (0 <= x1 < x2 <= self.width and 0 <= y1 < y2 <= self.height):
                raise ValueError(
                    f"objects.{index}.bbox {list(item.bbox)} is empty or outside the {self.width}x{self.height} image"
                )
        return self

    @property
    def truth(self) -> Truth:
        """Defect-free, presumed so, or defective: an annotated object always makes an image defective."""
        if self.objects:
            return Truth.DEFECTIVE
        if self.image_label in GOOD_LABELS:
            return Truth.GOOD
        return Truth.PRESUMED_GOOD if self.image_label in PRESUMED_GOOD_LABELS else Truth.DEFECTIVE

    def load(self) -> NDArray[np.uint8]:
        """The image, uint8 RGB [height, width, 3]. Raises DatasetError when its size is not the annotated one."""
        return self._checked(self.path)

    def load_reference(self) -> NDArray[np.uint8] | None:
        """The defect-free image, uint8 RGB [height, width, 3], or None where the annotation names none."""
        return None if self.reference is None else self._checked(self.reference)

    def load_mask(self) -> NDArray[np.bool_] | None:
        """The defect mask, bool [height, width], or None where the annotation names none."""
        return None if self.mask is None else self._checked(self.mask)[..., 0] > 127

    def _checked(self, path: Path) -> NDArray[np.uint8]:
        rgb = load_image(path)
        if rgb.shape[:2] != (self.height, self.width):
            raise DatasetError(
                f"{path} has {rgb.shape[1]}x{rgb.shape[0]} pixels, its annotation says {self.width}x{self.height}.",
                field="width",
                remedy="Correct width and height (and the boxes), or restore the image.",
            )
        return rgb


def image_bytes(path: Path) -> bytes:
    """The encoded image file. Raises DatasetError when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DatasetError(
            f"The image {path} cannot be read ({error.strerror}).", field="file", remedy="Restore the file."
        ) from error


def load_image(path: Path) -> NDArray[np.uint8]:
    """One image file as uint8 RGB [H, W, 3]; 1-bit and 16-bit images are scaled to 0..255.

    Raises DatasetError when the file cannot be read, InvalidImageError when it is not an image.
    """
    data = image_bytes(path)
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:
        bgr = None
    if bgr is None:
        raise InvalidImageError(f"{path} is not a complete image file.", field="file", remedy="Restore the file.")
    return np.ascontiguousarray(bgr[..., ::-1], dtype=np.uint8)


def list_sets(pack_dir: Path | str) -> list[str]:
    """Names of the sets in `pack_dir`: its folders that hold an annotations.jsonl. Raises DatasetError."""
    root = Path(pack_dir)
    if not root.is_dir():
        raise DatasetError(
            f"There is no data folder {root}.", field="pack_dir", remedy="Give the folder that holds the sets."
        )
    return sorted(entry.name for entry in root.iterdir() if (entry / ANNOTATIONS).is_file())


def load_pack_set(pack_dir: Path | str, set_name: str, split: str | None = None) -> list[PackItem]:
    """All items of one set in file order, or those of one split. Split names are free text.

    Raises DatasetError naming the file and line for a missing folder or file, a line that is not a valid annotation,
    an image named twice, a box outside its image, or a split that no item has.
    """
    known = list_sets(pack_dir)
    folder = Path(pack_dir) / set_name
    if set_name not in known:
        what = f"{folder} has no {ANNOTATIONS}." if folder.is_dir() else f"There is no set '{set_name}' in {pack_dir}."
        raise DatasetError(
            what, field="set", remedy=f"Choose one of: {', '.join(known)}." if known else "Check the data folder."
        )
    items = list(_read_items(folder, set_name))
    if split is None:
        return items
    chosen = [item for item in items if item.split == split]
    if not chosen:
        names = ", ".join(sorted({item.split for item in items})) or "none"
        raise DatasetError(
            f"Set '{set_name}' has no item of split '{split}'.", field="split", remedy=f"Its splits are: {names}."
        )
    return chosen


def _read_items(folder: Path, set_name: str) -> Iterable[PackItem]:
    path = folder / ANNOTATIONS
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as UTF-8 text: {error}.", field="annotations") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        item = _read_line(line, folder, set_name, f"{path}, line {number}")
        if item.file in seen:
            raise DatasetError(
                f"{path}, line {number}: '{item.file}' is already annotated in line {seen[item.file]}.",
                field="file",
                remedy="Keep one line an image.",
            )
        seen[item.file] = number
        yield item


def _read_line(line: str, folder: Path, set_name: str, where: str) -> PackItem:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}: not valid JSON ({error.msg}, column {error.colno}).", field="line") from error
    if not isinstance(record, dict):
        raise DatasetError(f"{where}: a JSON object is expected, not {type(record).__name__}.", field="line")
    own = {"width", "height", "split", "group", "image_label", "objects"}
    content: dict[str, Any] = {key: value for key, value in record.items() if key in own}
    paths = {"file", "reference", "mask"}
    content["extra"] = {key: value for key, value in record.items() if key not in own | paths}
    resolved = {key: _resolve(folder, record.get(key), key, where) for key in sorted(paths)}
    if resolved["file"] is None:
        raise DatasetError(f"{where}: the path of the image is missing.", field="file")
    content |= {"set_name": set_name, "file": record["file"], "path": resolved["file"]}
    content |= {"reference": resolved["reference"], "mask": resolved["mask"]}
    try:
        return PackItem.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "bbox"
        raise DatasetError(f"{where}: {field}: {first['msg']}.", field=field) from error


def _resolve(folder: Path, value: object, field: str, where: str) -> Path | None:
    """`value` as an existing file under `folder`; null stays None. A path that leaves the folder is refused."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise DatasetError(f"{where}: {field} must be a relative path.", field=field)
    if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or ".." in Path(value).parts:
        raise DatasetError(f"{where}: {field} '{value}' leaves the set's folder.", field=field)
    path = folder / value
    if not path.is_file():
        raise DatasetError(f"{where}: there is no file {path}.", field=field, remedy="Restore the file or the line.")
    return path
