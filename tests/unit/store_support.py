"""Results to record, for the tests of the store and of what reads it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import cv2
import numpy as np

from auroraedge.inspection.recipe import Severity
from auroraedge.inspection.results import Box, Defect, InspectionResult, RequestInfo, StageTimings, Verdict

START = datetime(2026, 3, 4, 6, 0, tzinfo=UTC)


def defect(label: str = "open", x: float = 10.0) -> Defect:
    box = Box(x1=x, y1=20.0, x2=x + 30, y2=44.5)
    return Defect(label=label, severity=Severity.MAJOR, confidence=0.75, box=box)


def make_result(index: int = 0, verdict: Verdict = Verdict.OK, **changes: object) -> InspectionResult:
    """A result like a camera's; `index` spaces them a second apart. Fields of RequestInfo may be given too."""
    request = {key: changes.pop(key) for key in tuple(changes) if key in RequestInfo.model_fields}
    values: dict[str, object] = {
        "result_id": f"result-{index}",
        "created_at": START + timedelta(seconds=index),
        "request": RequestInfo(**{"part_id": f"part-{index}", "lot": "L1", "line": "A", **request}),  # type: ignore[arg-type]
        "verdict": verdict,
        "ng_probability": 0.9 if verdict is Verdict.NG else 0.1,
        "recipe_id": "pcb",
        "recipe_version": 1,
        "defects": (defect(),) if verdict is Verdict.NG else (),
        "model_id": "nano",
        "engine_sha256": "e" * 64,
        "timings": StageTimings(verdict_ms=10.0, total_ms=12.0),
    }
    return InspectionResult(**{**values, **changes})  # type: ignore[arg-type]


def make_picture(shade: int = 0, side: int = 32) -> bytes:
    """A PNG; another shade is another picture."""
    pixels = np.full((side, side, 3), shade % 256, np.uint8)
    pixels[0, 0] = (shade // 256 % 256, 7, 7)
    done, data = cv2.imencode(".png", pixels)
    assert done
    return data.tobytes()
