"""A deterministic stand-in for the Inspector: dark blobs on a light part are defects. Also run as a script."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np

from auroraedge.errors import ReferenceRequiredError
from auroraedge.inspection.images import decode_image
from auroraedge.inspection.prompts import PromptKind
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import (
    Answer,
    Box,
    Defect,
    InspectionResult,
    RequestInfo,
    StageTimings,
    Verdict,
)

STAMP = datetime(2025, 3, 4, 5, 6, tzinfo=UTC)


@dataclass(frozen=True)
class FakeEngine:
    model_id: str = "fake"
    engine_sha256: str = "f" * 64


class FakeInspector:
    """P(NG) grows with the dark area: none is OK, up to 2 % REVIEW, more is NG. `calls`: names that were inspected."""

    def __init__(self, engine: FakeEngine | None = None, delay_s: float = 0.0) -> None:
        self.engine = engine or FakeEngine()
        self.delay_s = delay_s
        self.calls: list[str] = []

    def inspect(
        self,
        image: bytes,
        recipe: Recipe,
        *,
        reference: bytes | None = None,
        request: RequestInfo | None = None,
        image_name: str = "",
    ) -> InspectionResult:
        self.calls.append(image_name)
        time.sleep(self.delay_s)
        decoded = decode_image(image)
        if recipe.golden_reference == "required" and reference is None:
            raise ReferenceRequiredError("A golden sample is needed.", field="reference")
        grey = cv2.cvtColor(decoded.pixels, cv2.COLOR_RGB2GRAY)
        dark = (grey < 60).astype(np.uint8)
        share = float(dark.mean())
        verdict = Verdict.OK if share == 0 else Verdict.REVIEW if share < 0.02 else Verdict.NG
        defects = []
        if verdict is not Verdict.OK:
            count, _, stats, _ = cv2.connectedComponentsWithStats(dark, connectivity=8)
            for index in range(1, count):
                x, y, w, h, _ = (int(v) for v in stats[index])
                spec = recipe.labels[(index - 1) % len(recipe.labels)]
                box = Box(x1=x, y1=y, x2=x + w, y2=y + h)
                defects.append(Defect(label=spec.name, severity=spec.severity, box=box, confidence=0.9))
        number = len(decoded.sha256) + int(decoded.sha256[:4], 16) / 1000
        return InspectionResult(
            result_id=decoded.sha256[:32],
            created_at=STAMP,
            request=request or RequestInfo(),
            verdict=verdict,
            ng_probability=min(0.99, 0.05 + 10 * share),
            recipe_id=recipe.id,
            recipe_version=recipe.version,
            recipe_sha256=recipe.sha256,
            thresholds=recipe.thresholds,
            defects=tuple(defects),
            text=verdict.value,
            model_id=self.engine.model_id,
            engine_sha256=self.engine.engine_sha256,
            image_sha256=decoded.sha256,
            image_width=decoded.width,
            image_height=decoded.height,
            image_name=image_name,
            reference_used=reference is not None,
            views=1,
            timings=StageTimings(decode_ms=1, vision_ms=number, verdict_ms=number + 2, total_ms=number + 3),
        )

    def ask(self, image: bytes, prompt: str, recipe: Recipe, *, reference: bytes | None = None) -> Answer:
        result = self.inspect(image, recipe, reference=reference)
        return Answer(
            kind=PromptKind.COUNT,
            prompt=prompt,
            text=str(len(result.defects)),
            verdict=result.verdict,
            ng_probability=result.ng_probability,
            defects=result.defects,
            count=len(result.defects),
            recipe_id=recipe.id,
        )


def write_part(path: Path, spots: int = 0, size: int = 4, side: int = 64, shade: int = 0) -> Path:
    """A grey PNG of `side` pixels with `spots` dark squares of `size`. `shade` (0..60) makes images differ."""
    pixels = np.full((side, side), 190 + shade, np.uint8)
    for index in range(spots):
        x = y = 6 + index * (size + 6)
        pixels[y : y + size, x : x + size] = 10
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".png", pixels)
    assert done
    path.write_bytes(data.tobytes())
    return path


def main() -> None:
    """fake_inspector.py SOURCE OUT DELAY: a report run in a process of its own, for tests that end it."""
    from auroraedge.report import run_report

    source, out, delay_s = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    summary = run_report(source, out, "magnetic_tile", FakeInspector(delay_s=delay_s), generated_at=STAMP)
    print(f"inspected {summary.inspected} reused {summary.reused} interrupted {summary.interrupted}")


if __name__ == "__main__":
    main()
