"""`python engine_build/build.py --target cpu --model nano`: builds an engine package. Exit code 1 on failure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from auroraedge.errors import AuroraEdgeError  # noqa: E402
from engine_build.targets import GRAPHS, Target, list_targets, load_target  # noqa: E402


def _plan(targets: list[Target]) -> Table:
    table = Table(title="Targets")
    for column in ("target", "what", "compiler", "precision", *GRAPHS):
        table.add_column(column)
    for target in targets:
        for name, graphs in target.precisions.items():
            default = " (default)" if name == target.default_precision else ""
            table.add_row(target.name, target.title, target.compiler, name + default, *(graphs[g] for g in GRAPHS))
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Builds an engine package from model weights.")
    parser.add_argument("--target", default="cpu", help="a file name in engine_build/targets (default: cpu)")
    parser.add_argument("--model", default="nano", help="nano, or a folder that save_pretrained wrote")
    parser.add_argument("--out", type=Path, help="engine package (default: auroraedge/assets/engines/MODEL-TARGET)")
    parser.add_argument("--precision", help="one that --list shows for the target")
    parser.add_argument("--calibration", type=Path, metavar="PACK", help="dataset whose train splits calibrate as well")
    parser.add_argument("--views", type=int, default=96, help="calibration views (default: 96)")
    parser.add_argument("--list", action="store_true", help="show the targets and stop")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        if options.list:
            console.print(_plan([load_target(name) for name in list_targets()]))
            return 0
        target = load_target(options.target)
        from engine_build.steps import build_engine  # torch is needed from here on

        name = Path(options.model).name
        out = options.out or ROOT / "auroraedge" / "assets" / "engines" / f"{name}-{target.name}"
        manifest = build_engine(
            target,
            options.model,
            out,
            precision=options.precision,
            pack=options.calibration,
            views=options.views,
            console=console,
        )
        size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
        console.print(f"{out}: {manifest.model_id}, {size:.1f} MB, engine {manifest.engine_sha256[:12]}", style="green")
    except AuroraEdgeError as error:
        console.print(f"error: {error}", style="red")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; the earlier package, if any, is unchanged.", style="yellow")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
