"""`auroraedge bench ...`: what an evaluation of one split does not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from auroraedge.command_line import JsonOption, exit_codes, open_console

app = typer.Typer(help="Robustness, repeatability, and benchmarks of the field.", no_args_is_help=True)

PackOption = Annotated[Path, typer.Option(help="Folder of annotated image sets.")]
SetOption = Annotated[str, typer.Option("--set", help="Set of the pack, e.g. deeppcb.")]
SplitOption = Annotated[str, typer.Option(help="Split of the set, e.g. val.")]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", "-r", envvar="AURORAEDGE_RECIPE", help="Recipe id, or a recipe's YAML file.")
]
EngineOption = Annotated[
    Path | None,
    typer.Option(
        "--engine", "--model", envvar="AURORAEDGE_ENGINE", help="Engine package or model folder; else the embedded one."
    ),
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; else all cores.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most so many images, spread evenly.")]


@app.command()
def robustness(
    pack: PackOption,
    set_name: SetOption,
    split: SplitOption,
    recipe: RecipeOption = None,
    engine: EngineOption = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this perturbation; may be repeated.")] = None,
    limit: LimitOption = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder of predictions; the same command continues from it.")
    ] = None,
    as_json: JsonOption = False,
    threads: ThreadsOption = None,
) -> None:
    """Scores an engine on images that are darker, brighter, blurred, noisy, compressed, moved and turned."""
    with exit_codes():
        from auroraedge.evaluate.perturb import PERTURBATIONS
        from auroraedge.evaluate.robustness import measure_robustness, print_robustness
        from auroraedge.runtime import Inspector

        with Inspector.open(engine, threads=threads) as inspector:
            report = measure_robustness(
                pack, set_name, split, inspector, recipe, names=only or tuple(PERTURBATIONS), limit=limit, keep=keep
            )
        if as_json:
            typer.echo(report.model_dump_json(indent=1))
        else:
            print_robustness(report, open_console())


@app.command()
def repeatability(
    pack: PackOption,
    set_name: SetOption,
    split: SplitOption,
    recipe: RecipeOption = None,
    engine: EngineOption = None,
    times: Annotated[int, typer.Option(min=1, help="How often each part is inspected alone.")] = 3,
    batches: Annotated[int, typer.Option(min=1, help="How often in a batch, each time in other company.")] = 3,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    threads: ThreadsOption = None,
) -> None:
    """Inspects the same parts again and again, alone and in company, and reports what differs."""
    with exit_codes():
        from auroraedge.data.pack import load_pack_set
        from auroraedge.evaluate.repeatability import measure_repeatability, pack_jobs
        from auroraedge.evaluate.run import recipe_for
        from auroraedge.evaluate.samples import evenly
        from auroraedge.runtime import Inspector

        chosen = recipe_for(set_name, recipe)
        items = evenly(load_pack_set(pack, set_name, split), limit)
        with Inspector.open(engine, threads=threads) as inspector:
            report = measure_repeatability(inspector, pack_jobs(items, chosen), times=times, batches=batches)
        if as_json:
            typer.echo(report.model_copy(update={"set_name": set_name, "split": split}).model_dump_json(indent=1))
        else:
            open_console().print(report.summary())


@app.command()
def mmad(
    data: Annotated[Path, typer.Option(help="Folder with mmad.json and the image folders that it names.")],
    engine: EngineOption = None,
    answer_by: Annotated[
        str, typer.Option(help="options: likeliest option text; letter: likeliest letter; generate: parse the text.")
    ] = "options",
    template: Annotated[bool, typer.Option(help="Show the first similar template as golden sample (1-shot).")] = False,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Answer 'is there a defect' by the verdict under this recipe.")
    ] = None,
    limit: LimitOption = None,
    out: Annotated[Path | None, typer.Option(help="JSONL of answers; the same command continues from it.")] = None,
    as_json: JsonOption = False,
    threads: ThreadsOption = None,
) -> None:
    """Multiple-choice questions about industrial pictures (MMAD, arXiv 2410.09453), beside random choice."""
    with exit_codes():
        from auroraedge.evaluate.mmad import print_mmad, run_mmad

        report = run_mmad(
            data,
            engine,
            answer_by=answer_by,
            template=template,
            recipe=recipe,
            limit=limit,
            out=out,
            threads=threads,
        )
        if as_json:
            typer.echo(report.model_dump_json(indent=1))
        else:
            print_mmad(report, open_console())
