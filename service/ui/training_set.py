"""Reviewed results as a set to fine-tune on: a zip with pictures, COCO annotations and the inspection-pack format.

    images/SHA256.png             the frames as inspected
    references/SHA256.png         golden samples
    coco.json                     COCO detection format; what COCO has no field for is under "auroraedge"
    annotations.jsonl             the same in the format that `python -m auroraedge.train` and `calib` read
    left_out.csv                  reviewed results that are not in it, and why

The person's verdict is the truth: OK has no boxes, NG has the boxes of the review, or the model's where the person left
them as they were.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from auroraedge import __version__
from auroraedge.errors import StoreDamagedError
from auroraedge.inspection.results import Box, Verdict
from auroraedge.store import ResultFilter, Store, StoredResult
from service.ui.pictures import media_type_of

_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/bmp": ".bmp", "image/webp": ".webp"}
# A zip entry needs a date; the results carry their own, and the same content must give the same file.
_DATE = (1980, 1, 1, 0, 0, 0)


class _Sink(io.RawIOBase):
    """What zipfile writes to: keeps the bytes until they are taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken


@dataclass(kw_only=True)
class _Collected:
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    categories: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def reviewed_filter(where: ResultFilter) -> ResultFilter:
    """The results of `where` that a person decided as OK or NG."""
    decided = {Verdict.OK, Verdict.NG}
    wanted = decided if where.effective_verdicts is None else decided & set(where.effective_verdicts)
    return replace(where, reviewed=True, effective_verdicts=tuple(sorted(wanted)))


def _clipped(box: Box, width: int, height: int) -> tuple[float, float, float, float] | None:
    """Corners inside the picture; None when nothing of the box is."""
    x1, x2 = (min(max(x, 0.0), float(width)) for x in (box.x1, box.x2))
    y1, y2 = (min(max(y, 0.0), float(height)) for y in (box.y1, box.y2))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def training_set(store: Store, where: ResultFilter) -> Iterator[bytes]:
    """The zip file in pieces: one picture at a time is in memory."""
    sink, found = _Sink(), _Collected()
    written: set[str] = set()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for stored in store.results(reviewed_filter(where)):
            problem = _add(archive, store, stored, found, written)
            if problem:
                found.left_out.append((stored.result.result_id, problem))
            yield sink.take()
        for name, text in _documents(found):
            _write(archive, name, text.encode(), zipfile.ZIP_DEFLATED)
    yield sink.take()


def _write(archive: zipfile.ZipFile, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = method
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def _picture(
    archive: zipfile.ZipFile, store: Store, sha256: str | None, folder: str, written: set[str]
) -> tuple[str, str]:
    """Writes a picture once. Its name in the zip and "", or "" and why there is none."""
    try:
        content = store.image(sha256) if sha256 else None
    except StoreDamagedError:
        return "", "the picture is damaged"
    if content is None:
        return "", "the picture is not kept"
    name = f"{folder}/{sha256}{_SUFFIXES.get(media_type_of(content), '.tif')}"
    if name not in written:
        written.add(name)
        _write(archive, name, content)
    return name, ""


def _add(archive: zipfile.ZipFile, store: Store, stored: StoredResult, found: _Collected, written: set[str]) -> str:
    """Adds one result; returns why it was left out, or ""."""
    result, review = stored.result, stored.review
    assert review is not None
    if result.image_width < 1 or result.image_height < 1:
        return "the size of the picture is not known"
    image, problem = _picture(archive, store, stored.image_sha256, "images", written)
    if problem:
        return problem
    reference = ""
    if stored.reference_sha256:
        reference, problem = _picture(archive, store, stored.reference_sha256, "references", written)
        if problem:
            return f"golden sample: {problem}"
    defects = () if review.verdict is Verdict.OK else stored.effective_defects
    boxes = [
        (defect, corners)
        for defect in defects
        if defect.box is not None
        and (corners := _clipped(defect.box, result.image_width, result.image_height)) is not None
    ]
    number = len(found.images) + 1
    facts = {
        "result_id": result.result_id,
        "model_verdict": result.verdict.value,
        "verdict": review.verdict.value,
        "reviewer": review.reviewer,
        "reviewed_at": review.at.isoformat(),
        "reason": review.reason,
        "boxes_by": "model" if review.defects is None else "person",
        "recipe_id": result.recipe_id,
        "recipe_version": result.recipe_version,
        "reference": reference or None,
        "part_id": result.request.part_id,
        "lot": result.request.lot,
    }
    found.images.append(
        {
            "id": number,
            "file_name": image,
            "width": result.image_width,
            "height": result.image_height,
            "date_captured": result.created_at.isoformat(),
            "auroraedge": facts,
        }
    )
    for defect, (x1, y1, x2, y2) in boxes:
        found.annotations.append(
            {
                "id": len(found.annotations) + 1,
                "image_id": number,
                "category_id": found.categories.setdefault(defect.label, len(found.categories) + 1),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "auroraedge": {"severity": defect.severity.value, "confidence": defect.confidence},
            }
        )
    # A class is a defect without a box, or the model's where the person left it.
    named = next((defect.label for defect in defects if defect.box is None), None)
    if named is None and review.defects is None:
        named = result.predicted_class
    label = "ok" if review.verdict is Verdict.OK else named or "defective"
    record = {
        "file": image,
        "reference": reference or None,
        "width": result.image_width,
        "height": result.image_height,
        "split": "train",
        "group": result.request.part_id or result.result_id,
        "image_label": label,
        "objects": [{"label": defect.label, "bbox": list(corners)} for defect, corners in boxes],
        **{key: facts[key] for key in ("result_id", "recipe_id", "reviewer", "boxes_by")},
    }
    found.lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return ""


def _documents(found: _Collected) -> Iterator[tuple[str, str]]:
    coco = {
        "info": {"description": "Results reviewed by people, exported by AuroraEdge", "version": __version__},
        "licenses": [],
        "images": found.images,
        "annotations": found.annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "defect"} for name, number in found.categories.items()
        ],
    }
    yield "coco.json", json.dumps(coco, ensure_ascii=False, indent=1)
    yield "annotations.jsonl", "".join(found.lines)
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("result_id", "reason"), *found.left_out])
    yield "left_out.csv", table.getvalue()
