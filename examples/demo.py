"""Sample parts, a served verdict and an HTML report: what `make demo` runs.

    python -m examples.demo --out demo

Draws parts with the project's own generator, starts the gRPC server with the embedded engine, inspects one board over
the network, then runs the whole folder into a report. Needs neither a GPU nor torch.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from auroraedge.client import InspectionClient
from auroraedge.data.samples import write_samples
from auroraedge.errors import AuroraEdgeError
from auroraedge.inspection.draw import draw_result, save_picture
from auroraedge.inspection.images import decode_image
from auroraedge.inspection.results import RequestInfo
from auroraedge.report import run_report

console = Console()


def start_server(log: Path) -> tuple[subprocess.Popen[str], str]:
    """The server on a free port of this machine, and its address, once it says that it is ready."""
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "--port", "0", "--store", "none"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    for line in process.stdout:
        if "is ready on" in line:
            console.print(line.strip(), style="green")
            return process, line.split("is ready on ")[1].split(": ")[0]
    process.wait()
    raise SystemExit(f"The server did not start; see {log}.")


def show(address: str, parts: Path, out: Path) -> None:
    """Inspects one sample board over gRPC and draws what was found."""
    image = sorted((parts / "references").glob("*.png"))[0]
    image = parts / "images" / image.name
    reference = parts / "references" / image.name
    with InspectionClient(address) as client:
        result = client.inspect(image, "pcb", reference=reference, request=RequestInfo(part_id=image.stem))
    table = Table(title=f"{image.name}: {result.verdict} with P(NG) = {result.ng_probability or 0.0:.3f}")
    for column in ("defect", "severity", "confidence", "box in pixels"):
        table.add_column(column)
    for d in result.defects:
        box = "" if d.box is None else f"{d.box.x1:.0f}, {d.box.y1:.0f} - {d.box.x2:.0f}, {d.box.y2:.0f}"
        table.add_row(d.label, d.severity, f"{d.confidence:.2f}", box)
    console.print(table)
    console.print(
        f"verdict after {result.timings.verdict_ms:.0f} ms, full answer after {result.timings.total_ms:.0f} ms"
    )
    picture = out / f"{image.stem}_inspected.png"
    save_picture(picture, draw_result(decode_image(image).pixels, result, reference=decode_image(reference).pixels))
    console.print(f"picture: {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--count", type=int, default=8, help="parts of each of the three kinds")
    options = parser.parse_args()
    out: Path = options.out
    parts = out / "parts"
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(parts, ignore_errors=True)
    started = time.perf_counter()
    write_samples(parts, seed=7, n_per_kind=options.count)
    console.print(f"{3 * options.count} sample parts drawn in {time.perf_counter() - started:.1f} s: {parts}")
    server, address = start_server(out / "server.log")
    try:
        show(address, parts, out)
        with InspectionClient(address) as client:
            summary = run_report(parts / "manifest.csv", out / "report", None, client, console=console)
    except AuroraEdgeError as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=40)
    console.print(f"report: {summary.out_dir / 'report.html'}", style="green")


if __name__ == "__main__":
    main()
