"""The one entry of the benchmarks.

    python -m benchmarks --suite cpu|scaling|service|gpu [--json FILE] [--baseline FILE]
    python -m benchmarks report

With --baseline the exit code is 1 when a figure became slower beyond its noise, and with any suite when a contender of
equal weights and arithmetic gives another answer.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from auroraedge.errors import AuroraEdgeError
from benchmarks.figures import compare, same_machine
from benchmarks.suite import Document, read_document, write_document

ROOT = Path(__file__).resolve().parents[1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("report",), help="write docs/performance.md from the results")
    parser.add_argument("--suite", choices=("cpu", "scaling", "service", "gpu"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="an earlier result to compare with")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw it (.svg or .png)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=15, help="of each figure (default: 15)")
    parser.add_argument(
        "--large-rounds", type=int, default=2, help="of the models of 256 M parameters and more; 0: none"
    )
    parser.add_argument("--starts", type=int, default=1, help="how often a contender is started to time its loading")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="cpu: these contenders")
    parser.add_argument("--engine", type=Path, help="engine package (default: the embedded one)")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "nano", help="the weights it was built from")
    parser.add_argument("--smoke", action="store_true", help="gpu: the same code, small, on a CPU")
    return parser


def _run(options: argparse.Namespace, console: Console) -> Document:
    if options.suite == "scaling":
        from auroraedge.runtime.inspector import DEFAULT_ENGINE
        from benchmarks import scaling

        engine = options.engine or DEFAULT_ENGINE
        return scaling.run(threads=options.threads, engine=engine, rounds=options.rounds, console=console)
    if options.suite == "cpu":
        from auroraedge.runtime.inspector import DEFAULT_ENGINE
        from benchmarks import cpu

        return cpu.run(
            threads=options.threads,
            engine=options.engine or DEFAULT_ENGINE,
            model=options.model,
            rounds=options.rounds,
            large_rounds=options.large_rounds,
            starts=options.starts,
            only=options.only,
            save=lambda document: write_document(document, options.json) if options.json else None,
            console=console,
        )
    if options.suite == "service":
        from benchmarks import service

        return service.run(requests=options.rounds * 8, console=console)
    from benchmarks import gpu

    return gpu.run(rounds=options.rounds, smoke=options.smoke, console=console)


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    console = Console()
    if (options.what is None) == (options.suite is None):
        parser.error("give either --suite or 'report'")
    try:
        if options.what == "report":
            from benchmarks.report import write_report

            for path in write_report():
                console.print(f"written: {path.relative_to(ROOT)}")
            return 0
        before = read_document(options.baseline) if options.baseline else None
        document = _run(options, console)
        from benchmarks.tables import change_table, document_tables

        for table in document_tables(document):
            console.print(table)
        if options.json:
            write_document(document, options.json)
            console.print(f"written: {options.json}")
        if options.plot:
            from benchmarks.plots import draw

            draw(document, options.plot)
        failed = [p.contender for p in document.parity if p.must and not p.equal]
        for name in failed:
            console.print(f"[red]{name}: its answer differs, so its times say nothing[/red]")
        slower = []
        if before is not None:
            differing = same_machine(document, before)
            if differing:
                console.print(f"[yellow]not the same machine: {'; '.join(differing)}[/yellow]")
            changes = compare(document, before)
            console.print(change_table(changes))
            slower = [change for change in changes if change.finding == "slower"]
        return 1 if failed or slower else 0
    except AuroraEdgeError as error:
        console.print(f"[red]error: {error}[/red]")
        return 2
    except KeyboardInterrupt:
        console.print("[yellow]Interrupted; nothing was written.[/yellow]")
        return 130


if __name__ == "__main__":
    sys.exit(main())
