"""Pascal VOC: one XML file an image. Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf

The devkit's folders (Annotations, JPEGImages, ImageSets/Main), or XML files beside their images.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from auroraedge.data.importers.types import (
    DEFECTIVE,
    GOOD,
    IMAGE_SUFFIXES,
    SPLITS,
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

_NO_PLACE = (0.0, 0.0, 0.0, 0.0)  # an empty box, which the checks name


def voc_files(root: Path) -> list[Path]:
    """The annotation files: XML whose root is <annotation>."""
    return [file for file in sorted(root.rglob("*.xml")) if b"<annotation" in file.read_bytes()[:400]]


def read_voc(root: Path) -> RawDataset:
    """All annotated images, and images without a file of their own as good parts. Raises DatasetError without any."""
    files = voc_files(root)
    if not files:
        raise DatasetError(
            f"{root} has no Pascal VOC annotation (an XML file with <annotation>).",
            field="data",
            remedy="Put the XML files into Annotations/ or beside the images, or name the format with --format.",
        )
    images = images_in(root)
    by_stem: dict[str, list[Path]] = {}
    for path in images:
        by_stem.setdefault(path.stem, []).append(path)
    splits = _image_sets(root)
    items: list[RawItem] = []
    missing: list[str] = []
    broken: list[str] = []
    seen: set[Path] = set()
    for file in files:
        try:
            tree = ElementTree.fromstring(file.read_bytes())
        except ElementTree.ParseError:
            broken.append(relative_name(file, root))
            continue
        found = _image_of(tree, file, by_stem)
        if found is None:
            missing.append(relative_name(file, root))
            continue
        seen.add(found)
        objects = tuple(
            RawObject(label=(o.findtext("name") or "").strip() or "defect", bbox=_corners(o.find("bndbox")))
            for o in tree.findall("object")
            if not is_good_name(o.findtext("name") or "")
        )
        items.append(
            _item(found, root, objects, splits, width=tree.findtext("size/width"), height=tree.findtext("size/height"))
        )
    bare = [path for path in images if path not in seen and "mask" not in path.stem.lower()]
    items += [_item(path, root, (), splits) for path in bare]
    findings = []
    if missing:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                code="missing-image",
                message=f"{len(missing)} XML files have no image in the folder.",
                remedy="Restore the images, or remove the XML files.",
                names=tuple(missing),
            )
        )
    if broken:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                code="broken-annotation",
                message=f"{len(broken)} XML files cannot be read.",
                remedy="Export them again.",
                names=tuple(broken),
            )
        )
    notes = [f"Pascal VOC: {len(files)} XML files."]
    if bare:
        notes.append(f"{len(bare)} images without an XML file are taken as good parts.")
    return RawDataset(
        root=root,
        format="voc",
        items=tuple(sorted(items, key=lambda item: item.name)),
        findings=tuple(findings),
        notes=tuple(notes),
    )


def _item(
    path: Path,
    root: Path,
    objects: tuple[RawObject, ...],
    splits: dict[str, str],
    *,
    width: str | None = None,
    height: str | None = None,
) -> RawItem:
    inside = path.resolve().relative_to(root.resolve()).parts[:-1]
    return RawItem(
        name=relative_name(path, root),
        path=path,
        image_label=DEFECTIVE if objects else GOOD,
        objects=objects,
        split=splits.get(path.stem) or next((s for part in inside if (s := split_of(part))), None),
        width=_number(width),
        height=_number(height),
    )


def _image_of(tree: ElementTree.Element, file: Path, by_stem: dict[str, list[Path]]) -> Path | None:
    """The image by the XML's <filename> or by its own name; the nearest folder where several are so called."""
    named = Path((tree.findtext("filename") or "").replace("\\", "/"))
    for stem in (named.stem if named.suffix.lower() in IMAGE_SUFFIXES else named.name, file.stem):
        found = by_stem.get(stem, [])
        beside = [path for path in found if path.parent == file.parent]
        if beside or len(found) == 1:
            return (beside or found)[0]
    return None


def _image_sets(root: Path) -> dict[str, str]:
    """Split by image stem from ImageSets/Main; train and val win over trainval."""
    found: dict[str, str] = {}
    for name in ("trainval", "train", "val", "test"):
        file = root / "ImageSets" / "Main" / f"{name}.txt"
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    found[line.split()[0]] = SPLITS[name]
    return found


def _number(text: str | None) -> int | None:
    try:
        value = int(float(text or 0))
    except ValueError:
        return None
    return value if value > 0 else None


def _corners(box: ElementTree.Element | None) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of <bndbox>. VOC counts pixels from 1 and includes the last: (1, 1, w, h) is the whole image."""
    if box is None:
        return _NO_PLACE
    try:
        x1, y1, x2, y2 = (float(box.findtext(key) or "nan") for key in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return _NO_PLACE
    # Many tools write 0-based corners; a corner at 0 cannot be 1-based.
    return max(x1 - 1.0, 0.0), max(y1 - 1.0, 0.0), x2, y2
