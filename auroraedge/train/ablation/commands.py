"""`auroraedge ablate ...`: the paper's claims and open questions, measured."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from auroraedge.command_line import exit_codes, open_console

app = typer.Typer(help="Experiments on the connectors (extra `train`, docs/experiments.md).", no_args_is_help=True)

PackOption = Annotated[
    Path | None, typer.Option(help="Folder of annotated image sets; not needed once they are encoded.")
]
OutOption = Annotated[
    Path, typer.Option(help="Folder of banks and runs, shared by all experiments; runs resume from it.")
]
EngineOption = Annotated[
    Path | None,
    typer.Option("--engine", envvar="AURORAEDGE_ENGINE", help="Whose encoder is used; else the embedded one."),
]
SeedsOption = Annotated[int, typer.Option(min=1, help="Runs of each variant.")]
StepsOption = Annotated[int | None, typer.Option(min=0, help="Further steps of each variant alone.")]
SharedOption = Annotated[int | None, typer.Option(min=1, help="Steps of the joint training of all variants, a seed.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads.")]


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # saves a checkpoint, as Ctrl-C does


def _run(
    experiment: str,
    pack: Path | None,
    out: Path,
    engine: Path | None,
    seeds: int,
    steps: int | None,
    shared_steps: int | None,
    threads: int,
) -> None:
    with exit_codes():
        from auroraedge.train.ablation.experiments import main_experiment

        signal.signal(signal.SIGTERM, _terminated)
        main_experiment(
            experiment,
            pack=pack,
            out=out,
            engine=engine,
            seeds=seeds,
            console=open_console(),
            steps=steps,
            shared_steps=shared_steps,
            threads=threads,
        )


@app.command()
def compression(
    pack: PackOption = None,
    out: OutOption = Path("runs/ablate"),
    engine: EngineOption = None,
    seeds: SeedsOption = 3,
    steps: StepsOption = None,
    shared_steps: SharedOption = None,
    threads: ThreadsOption = 1,
) -> None:
    """The decoder reads 64 compressed tokens or all 256: operations, latency, quality."""
    _run("compression", pack, out, engine, seeds, steps, shared_steps, threads)


@app.command()
def fusion(
    pack: PackOption = None,
    out: OutOption = Path("runs/ablate"),
    engine: EngineOption = None,
    seeds: SeedsOption = 3,
    steps: StepsOption = None,
    shared_steps: SharedOption = None,
    threads: ThreadsOption = 1,
) -> None:
    """Fusion none, cross-attention alone, and combined."""
    _run("fusion", pack, out, engine, seeds, steps, shared_steps, threads)


@app.command()
def ratio(
    pack: PackOption = None,
    out: OutOption = Path("runs/ablate"),
    engine: EngineOption = None,
    seeds: SeedsOption = 3,
    steps: StepsOption = None,
    shared_steps: SharedOption = None,
    threads: ThreadsOption = 1,
) -> None:
    """256 visual tokens to 128, 64, 32 and 16, with recall by defect size."""
    _run("ratio", pack, out, engine, seeds, steps, shared_steps, threads)


@app.command()
def reconstruction(
    pack: PackOption = None,
    out: OutOption = Path("runs/ablate"),
    engine: EngineOption = None,
    seeds: SeedsOption = 3,
    steps: StepsOption = None,
    shared_steps: SharedOption = None,
    threads: ThreadsOption = 1,
) -> None:
    """An auxiliary loss that rebuilds the visual tokens, or the pixels, from the compressed tokens."""
    _run("reconstruction", pack, out, engine, seeds, steps, shared_steps, threads)


@app.command()
def frames(
    pack: PackOption = None,
    out: OutOption = Path("runs/ablate"),
    engine: EngineOption = None,
    seeds: SeedsOption = 3,
    steps: StepsOption = None,
    shared_steps: SharedOption = None,
    threads: ThreadsOption = 1,
) -> None:
    """Four tiles of a board at 16 or 64 tokens each, with and without a frame embedding."""
    _run("frames", pack, out, engine, seeds, steps, shared_steps, threads)


@app.command()
def depth(
    pack: PackOption = None,
    out: OutOption = Path("runs/ablate"),
    engine: EngineOption = None,
    seeds: SeedsOption = 3,
    steps: StepsOption = None,
    shared_steps: SharedOption = None,
    threads: ThreadsOption = 1,
) -> None:
    """Fusion depth 0, 1, 2 and 4, and deeper fusion at 32 and 16 tokens."""
    _run("depth", pack, out, engine, seeds, steps, shared_steps, threads)


@app.command()
def latency(
    out: OutOption = Path("runs/ablate"),
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds.")] = 15,
    threads: ThreadsOption = 1,
) -> None:
    """Times an answer with and without compression at nano's sizes, all variants in turn."""
    with exit_codes():
        from auroraedge.train.ablation.experiments import main_latency

        typer.echo(f"latency: {main_latency(out, rounds=rounds, threads=threads)}")


@app.command()
def report(
    out: OutOption = Path("runs/ablate"),
    results: Annotated[Path | None, typer.Option(help="Folder of the JSON files; else OUT/report.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the plots; else OUT/report/images.")] = None,
    docs: Annotated[Path | None, typer.Option(help="Document whose marked tables are replaced.")] = None,
) -> None:
    """Writes all finished experiments as JSON, tables and plots."""
    with exit_codes():
        from auroraedge.train.ablation.bank import load_bank
        from auroraedge.train.ablation.report import write_report

        bank = load_bank(out / "bank" / "test")
        for file in write_report(out, bank, results=results, images=images, docs=docs):
            typer.echo(f"report: {file}")
