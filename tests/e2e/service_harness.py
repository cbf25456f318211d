"""What the service tests share: a deterministic inspector that needs no engine, and a server in this process.

python service_harness.py PAUSE_S [options of python -m service]     # the server with that inspector
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from auroraedge.errors import AuroraEdgeError, ReferenceRequiredError
from auroraedge.inspection.images import ImageLimits, decode_image
from auroraedge.inspection.prompts import Prompt
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import (
    Answer,
    Box,
    Defect,
    GeneratedToken,
    InspectionResult,
    Region,
    RegionVerdict,
    RequestInfo,
    Verdict,
)
from auroraedge.inspection.views import check_reference, place_regions
from auroraedge.runtime import FrameItem, InspectionJob
from service.config import ServiceConfig, config_from_arguments
from service.server import InspectionServer, run_until_stopped


@dataclass
class StatisticsInspector:
    """Calls bright frames NG: P(NG) is the mean grey value over 255, the one defect is the box of pixels above 200.

    It answers as auroraedge.runtime.Inspector does, and stops in front of every job until `gate` is open.
    """

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    names: list[str] = field(default_factory=list)
    closed: bool = False
    pause_s: float = 0.0  # in every inspection and before each generated token

    def __post_init__(self) -> None:
        self.gate.set()
        self.engine = SimpleNamespace(
            model_id="statistics", engine_sha256="5" * 64, target="test", precision={"vision": "none"}
        )

    def inspect(
        self,
        image: Any,
        recipe: Recipe,
        *,
        reference: Any = None,
        request: RequestInfo | None = None,
        image_name: str = "",
        regions: Sequence[Region] = (),
        on_verdict: Callable[[InspectionResult], None] | None = None,
    ) -> InspectionResult:
        self.entered.release()
        assert self.gate.wait(30)
        if self.pause_s:
            time.sleep(self.pause_s)
        self.names.append(image_name)
        loaded = decode_image(image, ImageLimits()).pixels
        if recipe.golden_reference == "required" and reference is None:
            raise ReferenceRequiredError(f"Recipe '{recipe.id}' compares with a golden sample.", field="reference")
        if reference is not None:
            check_reference(loaded, decode_image(reference, ImageLimits(), "reference").pixels)
        grey = loaded.mean(axis=2)
        probability = float(grey.mean() / 255)
        ys, xs = np.nonzero(grey > 200)
        box = Box(x1=xs.min(), y1=ys.min(), x2=xs.max() + 1, y2=ys.max() + 1) if len(xs) else None
        label = recipe.labels[0]
        placed = place_regions(regions, loaded.shape[1], loaded.shape[0])
        found = tuple(_judge(region, grey) for region in placed)
        if found:
            probability = max(each.ng_probability for each in found)
        result = InspectionResult(
            verdict=Verdict.NG if probability >= 0.5 else Verdict.OK,
            ng_probability=probability,
            request=request or RequestInfo(),
            recipe_id=recipe.id,
            recipe_version=recipe.version,
            recipe_sha256=recipe.sha256,
            thresholds=recipe.thresholds,
            defects=(Defect(label=label.name, severity=label.severity, box=box, confidence=1.0),) if box else (),
            model_id=self.engine.model_id,
            engine_sha256=self.engine.engine_sha256,
            image_sha256=hashlib.sha256(loaded.tobytes()).hexdigest(),
            image_width=loaded.shape[1],
            image_height=loaded.shape[0],
            image_name=image_name,
            reference_used=reference is not None,
            views=1,
            regions=found,
        )
        if on_verdict is not None:
            on_verdict(result.model_copy(update={"is_partial": True, "defects": ()}))
        return result

    def inspect_batch(self, jobs: list[InspectionJob]) -> list[InspectionResult | AuroraEdgeError]:
        outcomes: list[InspectionResult | AuroraEdgeError] = []
        for job in jobs:
            try:
                outcomes.append(
                    self.inspect(
                        job.image,
                        job.recipe,
                        reference=job.reference,
                        request=job.request,
                        image_name=job.image_name,
                        regions=job.regions,
                    )
                )
            except AuroraEdgeError as error:
                outcomes.append(error)
        return outcomes

    def inspect_many(
        self,
        image: Any,
        items: Sequence[FrameItem],
        *,
        reference: Any = None,
        request: RequestInfo | None = None,
        image_name: str = "",
    ) -> list[InspectionResult | Answer | AuroraEdgeError]:
        outcomes: list[InspectionResult | Answer | AuroraEdgeError] = []
        loaded = decode_image(image, ImageLimits())
        for item in items:
            common = {"reference": reference, "request": item.request, "regions": item.regions}
            try:
                if item.prompt is not None:
                    outcomes.append(self.ask(loaded, item.prompt, item.recipe, **common))
                else:
                    outcomes.append(self.inspect(loaded, item.recipe, image_name=image_name, **common))
            except AuroraEdgeError as error:
                outcomes.append(error)
        return outcomes

    def ask(
        self,
        image: Any,
        prompt: Any,
        recipe: Recipe,
        *,
        reference: Any = None,
        request: RequestInfo | None = None,
        regions: Sequence[Region] = (),
    ) -> Answer:
        result = self.inspect(image, recipe, reference=reference, request=request, regions=regions)
        return Answer(kind=prompt.kind, prompt=prompt.text, text="yes", verdict=result.verdict, request=result.request)

    def generate(
        self, image: Any, prompt: Prompt, recipe: Recipe, *, reference: Any = None, max_new_tokens: int = 64
    ) -> Iterator[GeneratedToken]:
        self.inspect(image, recipe, reference=reference)
        words = prompt.text.split()[:max_new_tokens]
        for index, word in enumerate(words):
            time.sleep(self.pause_s)
            self.names.append(word)
            yield GeneratedToken(text=f"{word} ", token_id=index + 100, index=index, done=index == len(words) - 1)

    def close(self) -> None:
        self.closed = True


def _judge(region: Region, grey: np.ndarray) -> RegionVerdict:
    inside = grey[region.y : region.y + region.height, region.x : region.x + region.width]
    probability = float(inside.mean() / 255)
    verdict = Verdict.NG if probability >= 0.5 else Verdict.OK
    return RegionVerdict(region=region, verdict=verdict, ng_probability=probability, views=1)


class RunningServer:
    """A server whose event loop runs in a thread of this process."""

    def __init__(self, inspector: Any, config: ServiceConfig, make_inspector: Any = None) -> None:
        self.inspector = inspector
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="server-loop", daemon=True)
        self._thread.start()

        async def make() -> InspectionServer:
            return InspectionServer(config, make_inspector=make_inspector or (lambda *_: inspector))

        self.server = self.run(make())

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    @property
    def address(self) -> str:
        return self.server.address

    def stop(self) -> None:
        self.run(self.server.drain())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextmanager
def running_server(inspector: Any = None, *, make_inspector: Any = None, **settings: Any) -> Iterator[RunningServer]:
    """A ready server on a free port."""
    config = ServiceConfig(**({"port": 0, "drain_seconds": 5, "store": "none"} | settings))
    running = RunningServer(StatisticsInspector() if inspector is None else inspector, config, make_inspector)
    try:
        running.run(running.server.start())
        yield running
    finally:
        if hasattr(running.inspector, "gate"):
            running.inspector.gate.set()
        running.stop()


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def frame(width: int = 64, height: int = 48, *, bright: bool = False) -> np.ndarray:
    """uint8 RGB: grey 60 with a bright rectangle x 10..20, y 8..18; or all bright, which is NG."""
    pixels = np.full((height, width, 3), 230 if bright else 60, np.uint8)
    pixels[8:18, 10:20] = 255
    return pixels


async def _serve(pause_s: float, options: list[str]) -> None:
    inspector = StatisticsInspector(pause_s=pause_s)
    if "--store" not in options:
        options = [*options, "--store", "none"]
    server = InspectionServer(config_from_arguments(options), make_inspector=lambda *_: inspector)
    await run_until_stopped(server)


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]), sys.argv[2:]))
