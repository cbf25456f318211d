"""How fast results are made durable, and how much memory it takes to read them back.

    python -m benchmarks.store --json benchmarks/results/store.json
    python -m benchmarks.store --postgres postgresql://... --folder /path/on/the/disk/to/measure

Every commit is synced. The disk's own sync is measured beside it, because a virtual disk may answer before the platter.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from auroraedge.inspection.recipe import Severity
from auroraedge.inspection.results import Box, Defect, InspectionResult, RequestInfo, StageTimings, Verdict
from auroraedge.store import NewResult, ResultFilter, Store
from benchmarks.environment import environment, percentiles

GROUPS = (1, 8, 32, 128)
PICTURE_BYTES = 100_000


def _result(number: int) -> InspectionResult:
    verdict = (Verdict.OK, Verdict.OK, Verdict.OK, Verdict.NG, Verdict.REVIEW)[number % 5]
    box = Box(x1=10.5, y1=20.0, x2=60.0, y2=80.0)
    found = (Defect(label="open", severity=Severity.CRITICAL, box=box, confidence=0.9),)
    return InspectionResult(
        request=RequestInfo(request_id=f"r{number}", part_id=f"P{number:06}", lot=f"L{number // 500}", line="A"),
        verdict=verdict,
        ng_probability=0.5,
        recipe_id="pcb",
        recipe_version=1,
        recipe_sha256="a" * 64,
        defects=found if verdict is not Verdict.OK else (),
        model_id="auroraedge-nano",
        engine_sha256="b" * 64,
        image_sha256=f"{number:064x}",
        image_width=640,
        image_height=640,
        text="one defect" if found else "no defect",
        timings=StageTimings(verdict_ms=60.0, total_ms=70.0),
    )


def _sync_ms(folder: Path, samples: int = 50) -> dict[str, float]:
    """What one 4 KiB append with fsync costs on this disk."""
    path, found = folder / "sync", []
    with path.open("wb") as file:
        for _ in range(samples):
            began = time.perf_counter()
            file.write(os.urandom(4096))
            file.flush()
            os.fsync(file.fileno())
            found.append((time.perf_counter() - began) * 1000)
    path.unlink()
    return percentiles(found)


def _rate(store: Store, first: int, group: int, seconds: float, *, pictures: bool) -> tuple[int, dict[str, Any]]:
    """Commits groups for about so many seconds; returns the next unused number, and the figures."""
    number, samples = first, []
    picture = os.urandom(PICTURE_BYTES)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        entries = [
            NewResult(
                result=_result(number + index),
                image=(number + index).to_bytes(8, "big") + picture if pictures else None,
                fingerprint="f",
            )
            for index in range(group)
        ]
        started = time.perf_counter()
        store.record_many(entries)
        samples.append((time.perf_counter() - started) * 1000)
        number += group
    spent = sum(samples) / 1000
    return number, {
        "group": group,
        "pictures": pictures,
        "rows": number - first,
        "rows_per_s": (number - first) / spent,
        "commit_ms": percentiles(samples),
        "samples_ms": [round(sample, 3) for sample in samples],
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(url: str | Path, folder: Path, seconds: float, rows: int) -> dict[str, Any]:
    report: dict[str, Any] = {"rates": []}
    with Store.open(url, images=folder / "images") as store:
        number = 0
        for pictures in (False, True):
            for group in GROUPS if not pictures else GROUPS[:3]:
                number, figures = _rate(store, number, group, seconds, pictures=pictures)
                report["rates"].append(figures)
        began = time.perf_counter()
        for start in range(number, rows, 1000):
            store.record_many([NewResult(result=_result(n)) for n in range(start, min(rows, start + 1000))])
        report["fill"] = {"rows": max(0, rows - number), "seconds": time.perf_counter() - began}
        sum(1 for _ in store.results(limit=2000))
        before = _peak_mib()
        began = time.perf_counter()
        count = sum(1 for _ in store.results())
        report["stream"] = {
            "rows": count,
            "seconds": time.perf_counter() - began,
            "peak_rss_mib": _peak_mib(),
            "grown_mib": _peak_mib() - before,
        }
        for name, call in {
            "count": lambda: store.count(),
            "verdict_counts": lambda: store.verdict_counts(),
            "one_lot": lambda: sum(1 for _ in store.results(ResultFilter(lot="L7"))),
            "review_queue_first_50": lambda: sum(1 for _ in store.review_queue(limit=50)),
            "newest_100": lambda: sum(1 for _ in store.results(newest_first=True, limit=100)),
            "find_request": lambda: store.find("r777"),
        }.items():
            began = time.perf_counter()
            call()
            report.setdefault("queries_ms", {})[name] = (time.perf_counter() - began) * 1000
        report["database_bytes"] = store.info().database_bytes
    return report


def _print(name: str, report: dict[str, Any], console: Console) -> None:
    table = Table(title=name)
    for column in ("rows a commit", "picture", "rows/s", "commit p50 ms", "p95", "p99"):
        table.add_column(column, justify="right")
    for rate in report["rates"]:
        commit = rate["commit_ms"]
        picture = f"{PICTURE_BYTES // 1000} kB" if rate["pictures"] else "none"
        figures = (f"{commit[key]:.2f}" for key in ("p50", "p95", "p99"))
        table.add_row(str(rate["group"]), picture, f"{rate['rows_per_s']:,.0f}", *figures)
    console.print(table)
    stream = report["stream"]
    console.print(
        f"{stream['rows']:,} results read in {stream['seconds']:.1f} s, peak {stream['peak_rss_mib']:.0f} MiB, "
        f"{stream['grown_mib']:.1f} MiB more than after the first 2,000"
    )
    console.print("queries: " + ", ".join(f"{key} {value:.1f} ms" for key, value in report["queries_ms"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to put the stores; a temporary folder without it")
    parser.add_argument("--postgres", help="URL of an empty PostgreSQL database to measure too")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each rate")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to fill up to before reading")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="store-bench-", dir=options.folder))
    console = Console()
    try:
        report: dict[str, Any] = {"environment": environment(), "fsync_4k_ms": _sync_ms(folder)}
        console.print(f"one 4 KiB fsync on this disk: p50 {report['fsync_4k_ms']['p50']:.2f} ms")
        targets: dict[str, str | Path] = {"sqlite": folder / "sqlite"}
        if options.postgres:
            targets["postgresql"] = options.postgres
        for name, url in targets.items():
            report[name] = _measure(url, folder / name, options.seconds, options.rows)
            _print(name, report[name], console)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
