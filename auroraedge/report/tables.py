"""The machine-readable outputs, written row by row while the results pass: CSV, JSON lines, COCO; and summary.json.

A writer works on `.NAME.part`; `finish` makes it whole, and the runner then puts all files in place together.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from auroraedge.inspection.results import Verdict
from auroraedge.report.journal import part_of, sync
from auroraedge.report.page import View
from auroraedge.report.statistics import Entry, Figures, Share, yield_of

# fmt: off
IMAGE_COLUMNS = (
    "file", "verdict", "model_verdict", "ng_probability", "defects", "labels", "predicted_class",
    "class_probability", "recipe_id",
    "recipe_version", "recipe_sha256", "model_id", "engine_sha256", "image_sha256", "image_width", "image_height",
    "reference", "reference_used", "views", "request_id", "part_id", "lot", "line", "station", "camera", "job",
    "exposure_us", "captured_at", "verdict_ms", "total_ms", "warnings", "error_reason", "error_message",
    "error_remedy", "result_id", "created_at",
    "reviewer", "reviewed_at", "review_reason",
)
DEFECT_COLUMNS = (
    "file", "verdict", "defect", "label", "severity", "confidence", "x1", "y1", "x2", "y2", "image_width",
    "image_height", "recipe_id", "part_id", "lot", "line", "station", "camera", "result_id",
)
# fmt: on
_REQUEST = ("request_id", "part_id", "lot", "line", "station", "camera", "job")
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


class Writer(Protocol):
    """One output file. `path` is its final place; what is written lies in `part_of(path)` until it is put there."""

    path: Path

    def add(self, entry: Entry) -> None: ...

    def finish(self, view: View) -> None:
        """Makes the file whole and closes it."""
        ...

    def drop(self) -> None:
        """Closes and removes what was written."""
        ...


def image_row(entry: Entry) -> dict[str, Any]:
    """What the list of images says of one result, by IMAGE_COLUMNS."""
    result = entry.result
    error, request, review = result.error, result.request, entry.review
    return {
        "file": entry.item.name,
        "verdict": entry.verdict.value,
        "model_verdict": result.verdict.value,
        "ng_probability": result.ng_probability,
        "defects": len(entry.defects),
        "labels": "; ".join(sorted({defect.label for defect in entry.defects})),
        "predicted_class": result.predicted_class,
        "class_probability": result.class_probability,
        "recipe_id": result.recipe_id,
        "recipe_version": result.recipe_version,
        "recipe_sha256": result.recipe_sha256,
        "model_id": result.model_id,
        "engine_sha256": result.engine_sha256,
        "image_sha256": result.image_sha256,
        "image_width": result.image_width,
        "image_height": result.image_height,
        "reference": entry.item.reference.name if entry.item.reference else entry.reference_sha256,
        "reference_used": result.reference_used,
        "views": result.views,
        "request_id": request.request_id,
        "part_id": request.part_id,
        "lot": request.lot,
        "line": request.line,
        "station": request.station,
        "camera": request.camera,
        "job": request.job,
        "exposure_us": request.exposure_us,
        "captured_at": request.captured_at.isoformat() if request.captured_at else None,
        "verdict_ms": result.timings.verdict_ms,
        "total_ms": result.timings.total_ms,
        "warnings": "; ".join(result.warnings),
        "error_reason": error.reason if error else None,
        "error_message": error.message if error else None,
        "error_remedy": error.remedy if error else None,
        "result_id": result.result_id,
        "created_at": result.created_at.isoformat().replace("+00:00", "Z"),
        "reviewer": review.reviewer if review else None,
        "reviewed_at": review.at.isoformat() if review else None,
        "review_reason": review.reason if review else None,
    }


def defect_rows(entry: Entry) -> list[dict[str, Any]]:
    """One row a defect, by DEFECT_COLUMNS; x2 and y2 exclusive, no coordinates without a place."""
    result = entry.result
    return [
        {
            "file": entry.item.name,
            "verdict": entry.verdict.value,
            "defect": number,
            "label": defect.label,
            "severity": defect.severity.value,
            "confidence": defect.confidence,
            "x1": defect.box.x1 if defect.box else None,
            "y1": defect.box.y1 if defect.box else None,
            "x2": defect.box.x2 if defect.box else None,
            "y2": defect.box.y2 if defect.box else None,
            "image_width": result.image_width,
            "image_height": result.image_height,
            "recipe_id": result.recipe_id,
            "result_id": result.result_id,
            **{name: getattr(result.request, name) for name in _REQUEST},
        }
        for number, defect in enumerate(entry.defects, start=1)
    ]


def _cell(value: Any) -> Any:
    """A CSV cell. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    if isinstance(value, str):
        text = value.replace("\r", " ").replace("\n", " ")
        return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else value


class _CsvWriter:
    """UTF-8 with a byte-order mark, without which spreadsheets misread umlauts and Chinese."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self._columns = columns
        self._file = part_of(path).open("w", encoding="utf-8", newline="")
        self._file.write(_BOM)
        self._writer = csv.writer(self._file, lineterminator="\r\n")
        self._writer.writerow(columns)

    def _write(self, row: dict[str, Any]) -> None:
        self._writer.writerow([_cell(row.get(column)) for column in self._columns])

    def finish(self, view: View) -> None:
        self._file.close()
        sync(part_of(self.path))

    def drop(self) -> None:
        self._file.close()
        part_of(self.path).unlink(missing_ok=True)


class ImagesCsv(_CsvWriter):
    """images.csv: one row an image."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, IMAGE_COLUMNS)

    def add(self, entry: Entry) -> None:
        self._write(image_row(entry))


class DefectsCsv(_CsvWriter):
    """defects.csv: one row a defect."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, DEFECT_COLUMNS)

    def add(self, entry: Entry) -> None:
        for row in defect_rows(entry):
            self._write(row)


def review_json(entry: Entry) -> dict[str, Any] | None:
    review = entry.review
    if review is None:
        return None
    return {
        "verdict": review.verdict.value,
        "reviewer": review.reviewer,
        "at": review.at.isoformat(),
        "reason": review.reason,
        "defects": None if review.defects is None else [d.model_dump(mode="json") for d in review.defects],
    }


class JsonLines:
    """results.jsonl of a report from a store: one line a result, with its review."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = part_of(path).open("wb")

    def add(self, entry: Entry) -> None:
        review = review_json(entry)
        head = json.dumps({"file": entry.item.name, "review": review}, ensure_ascii=False)[:-1]
        self._file.write(f'{head}, "result": {entry.result.model_dump_json()}}}\n'.encode())

    def finish(self, view: View) -> None:
        self._file.close()
        sync(part_of(self.path))

    def drop(self) -> None:
        self._file.close()
        part_of(self.path).unlink(missing_ok=True)


class Coco:
    """The located defects as COCO detections in a COCO dataset: images, categories, annotations with `score`.

    Images without a verdict are left out: in COCO an image without annotations is a good one. Categories follow the
    recipes' order; labels beyond them follow as they come. Annotations wait in a file of their own until the end.
    """

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self.path = path
        self._categories = {name: number for number, name in enumerate(dict.fromkeys(labels), start=1)}
        self._later = part_of(path.with_name(f"{path.name}.annotations"))
        self._file = part_of(path).open("w", encoding="utf-8", newline="\n")
        self._annotations = self._later.open("w+", encoding="utf-8", newline="\n")
        self._images = self._count = 0
        self._file.write('{\n "info": {"description": "AuroraEdge inspection report", "version": "1"},\n "images": [')

    def add(self, entry: Entry) -> None:
        result = entry.result
        if result.error is not None or result.image_width <= 0 or entry.verdict is Verdict.ERROR:
            return
        self._images += 1
        image = {
            "id": self._images,
            "file_name": entry.item.name,
            "width": result.image_width,
            "height": result.image_height,
            "verdict": entry.verdict.value,
            "ng_probability": result.ng_probability,
            "reviewed": entry.review is not None,
        }
        self._file.write(("," if self._images > 1 else "") + "\n  " + json.dumps(image, ensure_ascii=False))
        for defect in entry.defects:
            box = defect.box
            if box is None:
                continue
            self._count += 1
            annotation = {
                "id": self._count,
                "image_id": self._images,
                "category_id": self._categories.setdefault(defect.label, len(self._categories) + 1),
                "bbox": [round(v, 3) for v in (box.x1, box.y1, box.width, box.height)],
                "area": round(box.area, 3),
                "iscrowd": 0,
                "segmentation": [],
                "score": round(defect.confidence, 6),
                "severity": defect.severity.value,
            }
            self._annotations.write(("," if self._count > 1 else "") + "\n  " + json.dumps(annotation))

    def finish(self, view: View) -> None:
        categories = [{"id": i, "name": name, "supercategory": "defect"} for name, i in self._categories.items()]
        self._file.write(f'\n ],\n "categories": {json.dumps(categories, ensure_ascii=False)},\n "annotations": [')
        self._annotations.seek(0)
        while chunk := self._annotations.read(1 << 20):
            self._file.write(chunk)
        self._file.write("\n ]\n}\n")
        self._file.close()
        self._annotations.close()
        self._later.unlink(missing_ok=True)
        sync(part_of(self.path))

    def drop(self) -> None:
        self._file.close()
        self._annotations.close()
        self._later.unlink(missing_ok=True)
        part_of(self.path).unlink(missing_ok=True)


def _share(share: Share) -> dict[str, Any]:
    return {"value": share.value, "low_95": share.low, "high_95": share.high, "of": share.total}


def summary_json(figures: Figures, *, skipped: int, is_complete: bool, generated_at: str) -> bytes:
    """The figures of the page for other programs. Shares in 0..1, times in milliseconds."""
    takt = figures.takt()
    content = {
        "generated_at": generated_at,
        "is_complete": is_complete,
        "images": figures.total,
        "skipped": skipped,
        "verdicts": {verdict.value: count for verdict, count in figures.counts.items()},
        "yield": _share(figures.share),
        "model": {
            "verdicts": {verdict.value: count for verdict, count in figures.model_counts.items()},
            "yield": _share(yield_of(figures.model_counts)),
        },
        "reviewed": figures.reviewed,
        "parts": {verdict.value: count for verdict, count in figures.part_counts().items()},
        "defects": [{"label": row.label, "count": row.count, "images": row.images} for row in figures.pareto()],
        "latency_ms": {
            row.name.removesuffix("_ms"): {"p50": row.p50, "p95": row.p95, "p99": row.p99, "max": row.largest}
            for row in figures.stage_rows()
        },
        "takt": None
        if takt is None
        else {"takt_ms": takt.takt_ms, "late": takt.share.count, "share": _share(takt.share), "p99_ms": takt.p99_ms},
        "recipes": [
            {"id": id, "version": version, "sha256": sha256, "images": count}
            for (id, version, sha256), count in figures.recipes.most_common()
        ],
        "engines": [
            {"model_id": model, "sha256": sha256, "images": count}
            for (model, sha256), count in figures.engines.most_common()
        ],
    }
    return json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n"
