"""The machine-readable outputs of a report: images.csv, defects.csv, coco.json, summary.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from auroraedge.report import statistics
from auroraedge.report.statistics import Entry

# fmt: off
IMAGE_COLUMNS = (
    "file", "verdict", "ng_probability", "defects", "labels", "predicted_class", "class_probability", "recipe_id",
    "recipe_version", "recipe_sha256", "model_id", "engine_sha256", "image_sha256", "image_width", "image_height",
    "reference", "reference_used", "views", "request_id", "part_id", "lot", "line", "station", "camera", "job",
    "exposure_us", "captured_at", "verdict_ms", "total_ms", "warnings", "error_reason", "error_message",
    "error_remedy", "result_id", "created_at",
)
DEFECT_COLUMNS = (
    "file", "verdict", "defect", "label", "severity", "confidence", "x1", "y1", "x2", "y2", "image_width",
    "image_height", "recipe_id", "part_id", "lot", "line", "station", "camera", "result_id",
)
# fmt: on
_REQUEST = ("request_id", "part_id", "lot", "line", "station", "camera", "job")


def _cell(value: Any) -> Any:
    """A CSV cell. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    if isinstance(value, str):
        text = value.replace("\r", " ").replace("\n", " ")
        return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else value


def _csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> bytes:
    """UTF-8 with a byte-order mark, without which spreadsheets misread umlauts and Chinese."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({column: _cell(row.get(column)) for column in columns})
    return out.getvalue().encode("utf-8-sig")


def images_csv(entries: Iterable[Entry]) -> bytes:
    """One row an image."""

    def row(entry: Entry) -> dict[str, Any]:
        result = entry.result
        error = result.error
        fields = result.model_dump(mode="json", exclude={"defects", "request", "timings", "warnings", "error"})
        return {
            **fields,
            **{name: getattr(result.request, name) for name in _REQUEST},
            "file": entry.item.name,
            "defects": len(result.defects),
            "labels": "; ".join(sorted({defect.label for defect in result.defects})),
            "reference": entry.item.reference.name if entry.item.reference else None,
            "exposure_us": result.request.exposure_us,
            "captured_at": result.request.captured_at.isoformat() if result.request.captured_at else None,
            "verdict_ms": result.timings.verdict_ms,
            "total_ms": result.timings.total_ms,
            "warnings": "; ".join(result.warnings),
            "error_reason": error.reason if error else None,
            "error_message": error.message if error else None,
            "error_remedy": error.remedy if error else None,
        }

    return _csv(IMAGE_COLUMNS, (row(entry) for entry in entries))


def defects_csv(entries: Iterable[Entry]) -> bytes:
    """One row a defect; x1, y1, x2, y2 in source pixels, x2 and y2 exclusive, empty without a place."""
    rows = (
        {
            "file": entry.item.name,
            "verdict": entry.result.verdict.value,
            "defect": number,
            "label": defect.label,
            "severity": defect.severity.value,
            "confidence": defect.confidence,
            **(defect.box.model_dump() if defect.box else {}),
            "image_width": entry.result.image_width,
            "image_height": entry.result.image_height,
            "recipe_id": entry.result.recipe_id,
            "result_id": entry.result.result_id,
            **{name: getattr(entry.result.request, name) for name in _REQUEST},
        }
        for entry in entries
        for number, defect in enumerate(entry.result.defects, start=1)
    )
    return _csv(DEFECT_COLUMNS, rows)


def coco_json(entries: Sequence[Entry], labels: Iterable[str]) -> bytes:
    """The located defects as COCO detections in a COCO dataset: images, categories, annotations with `score`.

    Images without a verdict are left out: in COCO an image without annotations is a good one.
    labels: the categories in the recipes' order; labels found beyond them follow.
    """
    judged = [entry for entry in entries if entry.result.error is None and entry.result.image_width > 0]
    found = sorted({defect.label for entry in judged for defect in entry.result.defects})
    category_ids = {name: index for index, name in enumerate(dict.fromkeys([*labels, *found]), start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, entry in enumerate(judged, start=1):
        result = entry.result
        images.append(
            {
                "id": image_id,
                "file_name": entry.item.name,
                "width": result.image_width,
                "height": result.image_height,
                "verdict": result.verdict.value,
                "ng_probability": result.ng_probability,
            }
        )
        for defect in result.defects:
            if defect.box is None:
                continue
            box = defect.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[defect.label],
                    "bbox": [round(v, 3) for v in (box.x1, box.y1, box.width, box.height)],
                    "area": round(box.area, 3),
                    "iscrowd": 0,
                    "segmentation": [],
                    "score": round(defect.confidence, 6),
                    "severity": defect.severity.value,
                }
            )
    content = {
        "info": {"description": "AuroraEdge inspection report", "version": "1"},
        "images": images,
        "categories": [{"id": i, "name": name, "supercategory": "defect"} for name, i in category_ids.items()],
        "annotations": annotations,
    }
    return json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n"


def summary_json(entries: Sequence[Entry], *, skipped: int, is_complete: bool, generated_at: str) -> bytes:
    """The figures of the page for other programs. Shares in 0..1, times in milliseconds."""
    share = statistics.first_pass_yield(entries)
    content = {
        "generated_at": generated_at,
        "is_complete": is_complete,
        "images": len(entries),
        "skipped": skipped,
        "verdicts": {verdict.value: count for verdict, count in statistics.verdict_counts(entries).items()},
        "yield": {"value": share.value, "low_95": share.low, "high_95": share.high, "of": share.total},
        "defects": [
            {"label": row.label, "count": row.count, "images": row.images} for row in statistics.pareto(entries)
        ],
        "latency_ms": {
            row.name.removesuffix("_ms"): {"p50": row.p50, "p95": row.p95, "p99": row.p99, "max": row.largest}
            for row in statistics.stage_rows(entries)
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n"
