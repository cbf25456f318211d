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
from auroraedge.manifest import EngineManifest  # noqa: E402
from engine_build.targets import GRAPHS, Target, list_targets, load_target  # noqa: E402


def _targets(targets: list[Target]) -> Table:
    table = Table(title="Targets", caption="The first precision of a target is its default.")
    for column in ("target", "machine", f"precision: {' / '.join(GRAPHS)}"):
        table.add_column(column, no_wrap=column != "machine")
    for target in targets:
        machine = (
            f"{target.title} ({target.compute_capability or 'no GPU'}, {target.memory_gb:g} GB)",
            f"compiler {', '.join(target.compilers)}",
            f"decoder {', '.join(target.decoder_backends)}",
        )
        names = sorted(target.precisions, key=lambda name: name != target.default_precision)
        offered = [f"{name}: {' / '.join(target.precisions[name][graph] for graph in GRAPHS)}" for name in names]
        table.add_row(target.name, "\n".join(machine), "\n".join(offered))
        table.add_section()
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Builds an engine package from model weights.")
    parser.add_argument("--target", default="cpu", help="one that --list shows (default: cpu)")
    parser.add_argument("--model", default="nano", help="nano, 2b, or a folder that save_pretrained wrote")
    parser.add_argument("--out", type=Path, help="engine package (default: auroraedge/assets/engines/MODEL-TARGET)")
    parser.add_argument("--precision", help="one that --list shows for the target")
    parser.add_argument("--decoder", help="decoder backend that --list shows; for short: trtllm, edgellm")
    parser.add_argument(
        "--calibration",
        metavar="SOURCE",
        help="dataset pack (its train splits), set of calib.gather, result store, or folder or video with ,recipe=ID",
    )
    parser.add_argument("--views", type=int, default=96, help="calibration views (default: 96)")
    parser.add_argument("--workspace", type=Path, help="folder of the build's steps (default: build/MODEL-TARGET)")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted build in the workspace")
    parser.add_argument("--method", default="percentile", choices=("max", "percentile", "entropy"), help="input ranges")
    parser.add_argument(
        "--keep-worst", type=int, default=3, metavar="N", help="layers left in 16 bits: the N most sensitive (3)"
    )
    parser.add_argument(
        "--simulate", action="store_true", help="a package for this CPU that rounds as the GPU engine will, to score it"
    )
    parser.add_argument(
        "--random-weights", action="store_true", help="build the preset --model with random weights, to measure"
    )
    parser.add_argument(
        "--kernel-packs", type=Path, metavar="DIR", help="of kernels.pack: its kernels as plug-ins, where TensorRT can"
    )
    parser.add_argument("--kit", action="store_true", help="write a build kit even where this machine could compile")
    parser.add_argument("--list", action="store_true", help="show the targets and stop")
    parser.add_argument("--plan", action="store_true", help="show what the build needs, and whether it fits, and stop")
    parser.add_argument("--json", action="store_true", help="with --plan: JSON instead of a table")
    return parser


def _build(target: Target, options: argparse.Namespace, out: Path, console: Console) -> EngineManifest | None:
    """The published package; None where only the compiler was measured. torch is needed from here on."""
    if target.kind == "cpu":
        from engine_build import cpu_large

        random = options.random_weights
        if precision := cpu_large.precision_for(target, options.precision, options.model, random_weights=random):
            return cpu_large.build_large_engine(
                target,
                cpu_large.source_of(options.model, random_weights=random),
                out,
                precision=precision,
                workspace=options.workspace or ROOT / "build" / f"{Path(options.model).name}-{precision}-{target.name}",
                resume=options.resume,
                pack=options.calibration,
                parity_views=min(options.views, cpu_large.PARITY_VIEWS),
                console=console,
            )
        from engine_build.steps import build_engine

        return build_engine(
            target,
            options.model,
            out,
            precision=options.precision,
            pack=options.calibration,
            views=options.views,
            console=console,
        )
    from engine_build import gpu_build

    build = gpu_build.GpuBuild(
        target=target,
        model=options.model,
        precision=target.precision(options.precision),
        method=options.method,
        random_weights=options.random_weights,
        pack=options.calibration,
        views=options.views,
        keep_worst=options.keep_worst,
        kernel_packs=options.kernel_packs,
        decoder=options.decoder,
    )
    workspace = options.workspace or ROOT / "build" / f"{Path(options.model).name}-{target.name}"
    if options.simulate:
        return gpu_build.simulate(build, out, console, workspace, resume=options.resume)
    if options.random_weights:
        gpu_build.measure_compiler(build, workspace, console, resume=options.resume)
        return None
    from engine_build.decoders import choose_decoder
    from engine_build.plan import choose_compiler

    backend, why = choose_decoder(target, options.decoder)
    console.print(f"decoder: {backend} ({why})")
    if choose_compiler(target)[1] or options.kit:
        from engine_build.kit import write_kit

        folder = options.out or ROOT / "build" / f"{Path(options.model).name}-{target.name}-kit"
        write_kit(build, folder, console, workspace, resume=options.resume)
        console.print(f"{folder}: build kit for {target.title}. Copy it there, then: python3 finish.py --out ENGINE")
        return None
    return gpu_build.build_gpu_engine(build, out, workspace, console, resume=options.resume)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        if options.list:
            console.print(_targets([load_target(name) for name in list_targets()]))
            return 0
        target = load_target(options.target)
        target.precision(options.precision)
        target.decoder_backend(options.decoder)
        if options.plan:
            from engine_build.plan import model_size, plan_build, plan_json, plan_table

            plan = plan_build(target, model_size(options.model), options.precision, options.decoder)
            print(plan_json(plan)) if options.json else console.print(plan_table(plan))
            return 0 if plan.fits else 1
        name = Path(options.model).name
        kind = "simulated" if options.simulate else target.name
        out = options.out or ROOT / "auroraedge" / "assets" / "engines" / f"{name}-{kind}"
        manifest = _build(target, options, out, console)
        if manifest is None:
            return 0
        size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
        console.print(f"{out}: {manifest.model_id}, {size:.1f} MB, engine {manifest.engine_sha256[:12]}", style="green")
    except AuroraEdgeError as error:
        console.print(f"error: {error}", style="red")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; the earlier package, if any, is unchanged. --resume goes on.", style="yellow")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
