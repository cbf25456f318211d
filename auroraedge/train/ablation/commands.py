"""`auroraedge ablate ...`: the paper's claims and open questions, measured."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from auroraedge.command_line import exit_codes, open_console
from auroraedge.train.ablation.variants import EXPERIMENTS

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
PlacesOption = Annotated[bool, typer.Option("--places", help="Also score the boxes that are named; doubles the time.")]


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _command(experiment: str) -> None:
    """Adds `auroraedge ablate EXPERIMENT`; all experiments have the same options."""

    def command(
        pack: PackOption = None,
        out: OutOption = Path("runs/ablate"),
        engine: EngineOption = None,
        seeds: SeedsOption = 3,
        shared_steps: SharedOption = None,
        steps: StepsOption = None,
        places: PlacesOption = False,
        threads: ThreadsOption = 1,
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
                shared_steps=shared_steps,
                steps=steps,
                places=places,
                threads=threads,
            )

    found = EXPERIMENTS[experiment]
    app.command(experiment, help=f"{found.title}. {found.question}")(command)


for _experiment in EXPERIMENTS:
    _command(_experiment)


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
