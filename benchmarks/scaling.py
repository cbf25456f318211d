"""The scaling suite: how the cost of our engine grows with prompts on a frame, frames in one batch, and pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from auroraedge.inspection.recipe import Tiling
from auroraedge.inspection.views import plan_views
from benchmarks.figures import median_interval
from benchmarks.process import ContenderProcess, probe_ms
from benchmarks.suite import Document, Target

OURS = "ours"
PROMPTS = (1, 2, 4, 8, 16)
FRAMES = (1, 2, 4, 8, 16, 32, 64)
SIZES = ((640, 480), (1280, 960), (2448, 2048), (4096, 3000), (5472, 3648), (8192, 6144))
VIEW_PX, OVERLAP_PX = 1024, 64
FIRST, SECOND, SECOND_DECODED = (
    "prompts per frame: 1",
    "prompts per frame: 2",
    "a second prompt that decodes its answer",
)
Case = tuple[str, str, dict[str, Any]]


def cases() -> list[Case]:
    """(case, call of contenders.Scaling, its options)."""
    found: list[Case] = [(f"prompts per frame: {n}", "prompts", {"count": n}) for n in PROMPTS]
    found.append((SECOND_DECODED, "classified", {"count": 2}))
    found += [(f"prompts in calls of their own: {n}", "again", {"count": n}) for n in PROMPTS[:3]]
    found += [(f"frames in flight: {n}", "frames", {"count": n}) for n in FRAMES]
    for width, height in SIZES:
        tiling = Tiling(mode="square", size_px=VIEW_PX, overlap_px=OVERLAP_PX, max_views=256)
        views = len(plan_views(width, height, tiling))
        name = f"frame size: {width * height / 1e6:.1f} MP, {views} view{'s' if views > 1 else ''}"
        found.append((name, "size", {"width": width, "height": height, "view_px": VIEW_PX, "overlap_px": OVERLAP_PX}))
    return found


def _is_long(options: dict[str, Any]) -> bool:
    """Seconds of work on two cores: two rounds must do."""
    return options["count"] > 8 if "count" in options else options["width"] * options["height"] > 4e6


def run(*, threads: int, engine: Path, rounds: int, console: Console) -> Document:
    """Raises EngineError when the engine fails."""
    document = Document(
        suite="scaling", title="How the cost of the embedded engine grows on a CPU",
        settings={"threads": threads, "rounds": rounds, "rounds of the longest": min(2, rounds), "engine": engine.name},
        contenders={OURS: "the embedded engine as shipped (INT8 encoder, ONNX Runtime)"},
    )  # fmt: skip
    with ContenderProcess("scaling", "benchmarks.contenders:Scaling", threads=threads, engine=engine) as process:
        for _, call, options in cases()[:4]:
            process.measure(call, **options)  # warms up
        for number in range(rounds):
            document.probe_ms.append(probe_ms())
            for name, call, options in cases():
                if number >= 2 and _is_long(options):
                    continue
                found = process.measure(call, **options)
                document.add(name, OURS, "total", "ms", [found["total"]])
                document.add(name, OURS, "processor time", "ms", [found["processor time"]])
            console.print(f"round {number + 1} of {rounds}")
    _targets(document)
    return document


def _targets(document: Document) -> None:
    """Round by round: what the second prompt adds to a call, as a share of the call with the first alone."""
    for case, text in ((SECOND, "'is there a ...?'"), (SECOND_DECODED, "'classify', which decodes a label")):
        for metric in ("total", "processor time"):
            one, two = document.find(FIRST, OURS, metric), document.find(case, OURS, metric)
            if one is None or two is None:
                continue
            found = median_interval([b / a - 1 for a, b in zip(one.samples, two.samples, strict=True)])
            name = f"second prompt on a frame, share of the first: {text}"
            document.targets.append(
                Target(name=name + (", in processor time" if metric != "total" else ""), wanted="<= 0.35",
                       measured=found.middle, met=found.middle <= 0.35,
                       note=f"95 % interval {found.low:.2f} to {found.high:.2f}, round by round")
            )  # fmt: skip
