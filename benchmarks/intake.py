"""What a frame of 2448x2048 pixels costs on its way in: conversion, transport, and a second question about it.

    python -m benchmarks.intake --json benchmarks/results/intake.json

conversion: raw formats and files to RGB, and their hash, on one thread.
transport: a call of the blocking client to a server in a process of its own over loopback TCP whose inspector decodes
and hashes the frame and nothing else, so that the ways differ by what they send. 'written in place' is what a camera
does that fills the slot itself; 'copied' adds the copy of an array into the slot.
questions: the embedded engine on one frame, by number of prompts and recipes in one call.

Interleaved: every round measures each contender once. Parity first: every way must give the frame's own hash.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from auroraedge.client import InspectionClient
from auroraedge.inspection.images import ImageLimits, decode_image
from auroraedge.inspection.raw import PIXEL_FORMATS, raw_frame
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.results import InspectionResult, RequestInfo, Verdict
from auroraedge.runtime import FrameItem, Inspector
from benchmarks.environment import environment, percentiles

WIDTH, HEIGHT = 2448, 2048
RECIPE = "magnetic_tile"
Contenders = dict[str, Callable[[], object]]


def _scene() -> np.ndarray:
    """uint8 RGB [H, W, 3] with the statistics of a picture: smooth shading, edges and sensor noise."""
    rng = np.random.default_rng(0)
    small = rng.integers(40, 220, (HEIGHT // 64, WIDTH // 64, 3), dtype=np.uint8)
    smooth = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-4, 5, smooth.shape, dtype=np.int16), 0, 255).astype(np.uint8)


def _encoded(rgb: np.ndarray, suffix: str, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, rgb[..., ::-1], list(options))
    assert done
    return bytes(data)


def interleaved(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each contender in each round, after two rounds of warm-up."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 2):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if number >= 2:
                samples[name].append((time.perf_counter() - started) * 1000)
    return samples


# --- conversion ------------------------------------------------------------------------------------------------------


def conversions(rgb: np.ndarray) -> Contenders:
    rng = np.random.default_rng(1)
    found: Contenders = {}
    for name in PIXEL_FORMATS:
        if name.startswith("BAYER") and "_RG" not in name:
            continue  # the other phases take the same steps
        bits = int("".join(c for c in name if c.isdigit()))
        size = 3 if name in ("RGB8", "BGR8") else bits / 8 if name.endswith("P") or bits == 8 else 2
        data = rng.integers(0, 256, int(WIDTH * HEIGHT * size), dtype=np.uint8)
        if size == 2 and bits < 16:
            data[1::2] &= 2 ** (bits - 8) - 1
        frame = raw_frame(data.tobytes(), WIDTH, HEIGHT, 0, name)
        found[f"{name} to RGB"] = frame.rgb
        found[f"{name} hash"] = frame.sha256
    limits = ImageLimits()
    for name, data in _files(rgb).items():
        found[f"{name} to RGB and hash"] = lambda data=data: decode_image(data, limits)
    return found


def _files(rgb: np.ndarray) -> dict[str, bytes]:
    return {
        "JPEG 90": _encoded(rgb, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 90),
        "PNG": _encoded(rgb, ".png", cv2.IMWRITE_PNG_COMPRESSION, 1),
        "BMP": _encoded(rgb, ".bmp"),
    }


# --- transport -------------------------------------------------------------------------------------------------------


class DecodingInspector:
    """Decodes and hashes a frame; its verdict is always REVIEW and says that it is simulated."""

    engine = SimpleNamespace(model_id="none", engine_sha256="0" * 64, target="none", precision={})

    def inspect(self, image: Any, recipe: Any, *, request: Any = None, **_: Any) -> InspectionResult:
        decoded = decode_image(image)
        if decoded.verify is not None:
            decoded.verify()
        return InspectionResult(
            verdict=Verdict.REVIEW,
            ng_probability=0.5,
            is_simulated=True,
            request=request or RequestInfo(),
            recipe_id=recipe.id,
            engine_sha256=self.engine.engine_sha256,
            image_sha256=decoded.sha256,
            image_width=decoded.width,
            image_height=decoded.height,
        )

    def inspect_batch(self, jobs: list[Any]) -> list[InspectionResult]:
        return [self.inspect(job.image, job.recipe, request=job.request) for job in jobs]

    def close(self) -> None:
        pass


def _serve(pipe: Any) -> None:
    from service.config import ServiceConfig
    from service.memory import keep_large_blocks
    from service.server import InspectionServer

    keep_large_blocks()

    async def run() -> None:
        server = InspectionServer(ServiceConfig(port=0, store="none"), make_inspector=lambda *_: DecodingInspector())
        await server.start()
        pipe.send(server.address)
        await asyncio.to_thread(pipe.recv)
        await server.drain()

    asyncio.run(run())


@contextmanager
def _server() -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that a server that does not start ends the wait
    yield pipe.recv()
    pipe.send(None)
    process.join(10)


def transport(rgb: np.ndarray, rounds: int) -> dict[str, list[float]]:
    with ExitStack() as stack:
        client = stack.enter_context(InspectionClient(stack.enter_context(_server())))
        memory = stack.enter_context(client.shared_memory(rgb.nbytes, slots=2))
        in_place = memory.put(rgb)
        files = _files(rgb)

        def copied() -> InspectionResult:
            with memory.put(rgb) as frame:
                return client.inspect(frame, RECIPE)

        ways: dict[str, Callable[[], InspectionResult]] = {
            "raw RGB in the message": lambda: client.inspect(rgb, RECIPE),
            "shared memory, written in place": lambda: client.inspect(in_place, RECIPE),
            "shared memory, copied": copied,
            "JPEG 90 in the message": lambda: client.inspect(files["JPEG 90"], RECIPE),
            "an empty call (GetServerInfo)": lambda: client.server_info(),  # type: ignore[dict-item,return-value]
        }
        own = decode_image(rgb).sha256
        for name in list(ways)[:3]:
            assert ways[name]().image_sha256 == own, f"{name} changes the frame"
        return interleaved(dict(ways), rounds)


# --- questions -------------------------------------------------------------------------------------------------------


def questions(rounds: int) -> dict[str, list[float]]:
    """A 640x640 tile and a board, as the embedded engine sees them."""
    frame = np.ascontiguousarray(_scene()[:640, :640])
    contenders: Contenders = {}
    inspector = Inspector.open()
    for recipe_id in (RECIPE, "pcb"):
        recipe = load_recipe(recipe_id)
        reference = frame if recipe.golden_reference != "none" else None
        label = recipe.label_names[0]
        prompts = ["inspect", f"is there a {label}?", f"locate {label}", "classify"]
        for count in (1, 2, 4):
            contenders[f"{recipe_id}: {count} prompts in one call"] = lambda p=prompts[:count], r=recipe, g=reference: (
                inspector.ask_all(frame, p, r, reference=g)
            )
        contenders[f"{recipe_id}: 2 prompts in two calls"] = lambda p=prompts[:2], r=recipe, g=reference: [
            inspector.ask_all(frame, [each], r, reference=g) for each in p
        ]
    two = [FrameItem(recipe=load_recipe(name)) for name in (RECIPE, "steel_strip")]
    contenders[f"{RECIPE}: the recipe alone"] = lambda: inspector.inspect_many(frame, two[:1])
    contenders[f"{RECIPE}: and steel_strip in one call"] = lambda: inspector.inspect_many(frame, two)
    return interleaved(contenders, rounds)


def _table(console: Console, title: str, samples: dict[str, list[float]]) -> None:
    table = Table(title=title)
    for column in ("", "p50 ms", "p95 ms", "least ms"):
        table.add_column(column, justify="left" if not column else "right")
    for name, values in samples.items():
        figures = percentiles(values)
        table.add_row(name, *(f"{figures[key]:.2f}" for key in ("p50", "p95", "min")))
    console.print(table)


def _ratios(ms: dict[str, float]) -> dict[str, float]:
    found = {
        f"{recipe}: second prompt as share of the first": ms[f"{recipe}: 2 prompts in one call"]
        / ms[f"{recipe}: 1 prompts in one call"]
        - 1
        for recipe in (RECIPE, "pcb")
    }
    found["shared memory in place / raw RGB in the message"] = (
        ms["shared memory, written in place"] / ms["raw RGB in the message"]
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write raw samples and environment here")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    console, rgb = Console(), _scene()
    groups = {
        "conversion": interleaved(conversions(rgb), options.rounds),
        "transport": transport(rgb, options.rounds),
        "questions": questions(options.rounds),
    }
    for name, samples in groups.items():
        _table(console, f"{name} ({WIDTH}x{HEIGHT})" if name != "questions" else "questions (640x640)", samples)
    flat = {name: values for group in groups.values() for name, values in group.items()}
    ratios = {
        "of medians": _ratios({name: float(np.median(values)) for name, values in flat.items()}),
        "of least": _ratios({name: min(values) for name, values in flat.items()}),
    }
    for name in ratios["of medians"]:
        console.print(f"{name}: {ratios['of medians'][name]:.2f} ({ratios['of least'][name]:.2f} of the least)")
    if options.json:
        content = {"environment": environment(), "samples_ms": groups, "ratios": ratios}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
