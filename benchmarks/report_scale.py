"""Time and memory of a report of many results: python -m benchmarks.report_scale --results 100000.

Draws results as a plant makes them (lines, lots, shifts, clustered defects, reviews, failures), without pictures of
every part, into a results.jsonl and into a result store, and reports both in a process of its own with every format.
Left out: inspecting, and decoding more pictures than a page shows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np

import auroraedge
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.inspection.results import (
    Box,
    Defect,
    ErrorDetail,
    InspectionResult,
    RequestInfo,
    StageTimings,
    Verdict,
)
from auroraedge.store import NewResult, Store

START = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)
ENGINE = hashlib.sha256(b"report_scale").hexdigest()
WIDTH, HEIGHT = 1600, 1200


def _defects(random_: random.Random, recipe: Recipe, count: int) -> tuple[Defect, ...]:
    found = []
    for _ in range(count):
        # A worn tool marks one corner; the rest is anywhere.
        if random_.random() < 0.6:
            x, y = random_.gauss(1250, 90), random_.gauss(300, 70)
        else:
            x, y = random_.uniform(40, WIDTH - 80), random_.uniform(40, HEIGHT - 80)
        w, h = random_.uniform(12, 70), random_.uniform(12, 70)
        x, y = min(max(x, 0), WIDTH - w), min(max(y, 0), HEIGHT - h)
        number = min(len(recipe.labels) - 1, int(random_.expovariate(0.9)))
        label = recipe.labels[number]
        box = Box(x1=x, y1=y, x2=x + w, y2=y + h)
        found.append(Defect(label=label.name, severity=label.severity, box=box, confidence=random_.betavariate(8, 2)))
    return tuple(found)


def results(count: int, seed: int = 7, per_hour: int = 4200) -> Iterator[InspectionResult]:
    """`count` results of four lines, in the order of time; the same seed gives the same results."""
    random_ = random.Random(seed)
    recipes = [load_recipe("pcb"), load_recipe("magnetic_tile")]
    moment = START
    for number in range(count):
        moment += timedelta(seconds=random_.expovariate(per_hour / 3600))
        line = random_.choice((1, 1, 2, 3, 4))
        recipe = recipes[line % 2]
        base = 0.045 if (moment.hour, line) not in ((14, 2), (15, 2)) else 0.16  # a bad hour of one line
        chance = random_.random()
        request = RequestInfo(
            request_id=f"r{number:07d}",
            part_id=f"P{number // 2:07d}",
            lot=f"L{moment:%m%d}-{line}",
            line=f"L{line}",
            station=f"S{line}{'AB'[number % 2]}",
            camera=f"C{line}{'AB'[number % 2]}",
            captured_at=moment - timedelta(milliseconds=80),
        )
        identity = {
            "result_id": str(uuid.UUID(int=random_.getrandbits(128), version=4)),
            "created_at": moment,
            "request": request,
            "recipe_id": recipe.id,
            "recipe_version": recipe.version,
            "recipe_sha256": recipe.sha256,
            "thresholds": recipe.thresholds,
            "image_name": f"{moment:%Y%m%d}/{number:07d}.png",
        }
        if chance < 0.002:
            error = ErrorDetail(
                reason="INVALID_IMAGE",
                message="The image is truncated: 61 % of its rows could be read.",
                remedy="Check cable and trigger of the camera.",
                field="image",
            )
            yield InspectionResult(verdict=Verdict.ERROR, error=error, text=error.message, **identity)
            continue
        if chance < 0.002 + base:
            verdict, probability = Verdict.NG, random_.betavariate(9, 1.3)
            probability = max(probability, recipe.thresholds.ng_above)
        elif chance < 0.002 + base + 0.012:
            verdict = Verdict.REVIEW
            probability = random_.uniform(recipe.thresholds.ok_below, recipe.thresholds.ng_above)
        else:
            verdict, probability = Verdict.OK, min(random_.betavariate(1, 14), recipe.thresholds.ok_below * 0.99)
        count_ = 0 if verdict is Verdict.OK else 1 + int(random_.expovariate(1.1))
        defects = _defects(random_, recipe, count_)
        total = random_.lognormvariate(4.4, 0.16) + (random_.random() < 0.004) * random_.uniform(60, 400)
        queue, store = random_.expovariate(0.4), random_.uniform(1.2, 4)
        kinds = ", ".join(sorted({d.label for d in defects}))
        yield InspectionResult(
            verdict=verdict,
            ng_probability=probability,
            defects=defects,
            model_id="auroraedge-nano",
            engine_sha256=ENGINE,
            image_sha256=hashlib.sha256(str(number).encode()).hexdigest(),
            image_width=WIDTH,
            image_height=HEIGHT,
            reference_used=recipe.golden_reference != "none",
            views=1,
            timings=StageTimings(
                decode_ms=total * 0.08,
                preprocess_ms=total * 0.05,
                vision_ms=total * 0.5,
                prefill_ms=total * 0.2,
                verdict_ms=total * 0.85,
                generate_ms=total * 0.15,
                total_ms=total,
                queue_ms=queue,
                store_ms=store,
                service_ms=total + queue + store,
            ),
            text=f"{verdict}: {kinds}." if defects else f"{verdict}: no defects.",
            warnings=("The frame is darker than the recipe expects.",) if random_.random() < 0.003 else (),
            **identity,
        )


def write_jsonl(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for result in results(count):
            line = f'{{"file": {json.dumps(result.image_name)}, "result": {result.model_dump_json()}}}\n'
            file.write(line)


def _picture(result: InspectionResult) -> bytes:
    """A plain part with its defects as dark spots, as PNG."""
    rng = np.random.default_rng(int(result.image_sha256[:8], 16))
    pixels = rng.normal(150, 6, (HEIGHT // 4, WIDTH // 4)).astype(np.uint8)
    pixels = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    cv2.rectangle(pixels, (100, 80), (WIDTH - 100, HEIGHT - 80), 190, 6)
    for defect in result.defects:
        assert defect.box is not None
        center = (int(defect.box.x1 + defect.box.x2) // 2, int(defect.box.y1 + defect.box.y2) // 2)
        axes = (int(defect.box.width / 2.4), int(defect.box.height / 2.4))
        cv2.ellipse(pixels, center, axes, 0, 0, 360, 40, -1)
    done, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done
    return data.tobytes()


def write_store(folder: Path, count: int, pictures: int = 300) -> None:
    """Records the results, the first `pictures` that did not pass with frame and golden sample; reviews some."""
    doubtful: list[InspectionResult] = []
    left = pictures
    good = InspectionResult(verdict=Verdict.OK, image_sha256="0" * 64)
    golden = _picture(good)
    with Store.open(folder) as store:
        batch: list[NewResult] = []
        for result in results(count):
            shown = left > 0 and result.verdict in (Verdict.NG, Verdict.REVIEW)
            left -= shown
            image = _picture(result) if shown else None
            batch.append(NewResult(result=result, image=image, reference=golden if shown else None))
            if result.verdict is Verdict.REVIEW and len(doubtful) < 200:
                doubtful.append(result)
            if len(batch) == 2000:
                store.record_many(batch)
                batch = []
        store.record_many(batch)
        for number, result in enumerate(doubtful):
            verdict = Verdict.NG if number % 3 == 0 else Verdict.OK
            reason = "scratch confirmed under the lamp" if verdict is Verdict.NG else "dust, wiped off"
            store.review(result.result_id, verdict=verdict, reviewer=("Anna", "李伟")[number % 2], reason=reason)


def measure(arguments: list[str]) -> dict[str, float]:
    """Runs `auroraedge report` with these arguments: seconds, CPU seconds, peak RSS in MB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "auroraedge.cli", "report", *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"the report failed with exit code {process.returncode}")
    del before
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_rss_mb": round(usage.ru_maxrss / 1024, 1),
    }


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/report_scale"), help="where data and reports go")
    parser.add_argument("--language", default="en")
    parser.add_argument("--template", default="batch")
    parser.add_argument("--formats", default="all")
    parser.add_argument("--source", choices=("store", "jsonl", "both"), default="both")
    parser.add_argument("--twice", action="store_true", help="also compare the bytes of a second run")
    parser.add_argument("--json", type=Path, help="figures as JSON")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in ("jsonl", "store") if options.source == "both" else (options.source,):
        source = folder / f"{kind}-{options.results}"
        made = time.perf_counter()
        if not source.exists():
            part = source.with_name(source.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            write_store(part, options.results) if kind == "store" else write_jsonl(
                part / "results.jsonl", options.results
            )
            part.rename(source)
        made = time.perf_counter() - made
        out = folder / f"report-{kind}"
        common = ["--out", str(out), "--language", options.language, "--template", options.template]
        common += ["--format", options.formats, "--takt-ms", "150", "--title", f"{options.results:,} results"]
        where = ["--store", str(source)] if kind == "store" else [str(source / "results.jsonl")]
        shutil.rmtree(out, ignore_errors=True)
        row: dict[str, object] = {"source": kind, "results": options.results, "made_s": round(made, 1)}
        row |= measure([*where, *common])
        row["bytes"] = {p.name: p.stat().st_size for p in sorted(out.iterdir())}
        if options.twice:
            first = _digests(out)
            measure([*where, *common])
            row["identical"] = _digests(out) == first
        rows.append(row)
        print(
            f"{kind:>6}: {options.results} results, {row['seconds']} s, CPU {row['cpu_seconds']} s, "
            f"peak {row['peak_rss_mb']} MB"
            + (f", second run {'identical' if row['identical'] else 'DIFFERENT'}" if options.twice else "")
        )
        for name, size in row["bytes"].items():  # type: ignore[attr-defined]
            print(f"        {name}: {size / 1e6:.2f} MB")
    if options.json:
        machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()}
        content = {"version": auroraedge.__version__, "machine": machine, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
