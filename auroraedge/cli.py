"""The command line. Each command parses, calls one library function, and maps errors to exit codes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from auroraedge.command_line import INTERRUPTED, JsonOption, exit_codes, open_console
from auroraedge.errors import AuroraEdgeError, InvalidRequestError
from auroraedge.evaluate.commands import app as bench_app
from auroraedge.ingest.commands import ingest
from auroraedge.report.commands import report
from auroraedge.serving.commands import app as config_app
from auroraedge.store.commands import app as store_app
from auroraedge.studies.commands import app as study_app
from auroraedge.train.ablation.commands import app as ablate_app
from auroraedge.train.commands import finetune

app = typer.Typer(
    name="auroraedge",
    help="Industrial inspection: frame and prompt in; verdict, defects and report out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
engine_app = typer.Typer(help="Engine packages.", no_args_is_help=True)
recipes_app = typer.Typer(help="Recipes: what to look for on a part.", invoke_without_command=True)
app.command()(finetune)
app.command()(ingest)
app.command()(report)
app.add_typer(engine_app, name="engine")
app.add_typer(recipes_app, name="recipes")
app.add_typer(store_app, name="store")
app.add_typer(study_app, name="study")
app.add_typer(bench_app, name="bench")
app.add_typer(config_app, name="config")
app.add_typer(ablate_app, name="ablate")

RecipeOption = Annotated[
    str | None, typer.Option("--recipe", "-r", envvar="AURORAEDGE_RECIPE", help="Recipe id, or a recipe's YAML file.")
]
ServerOption = Annotated[
    str | None, typer.Option("--server", envvar="AURORAEDGE_SERVER", help="host:port; else this process inspects.")
]
EngineOption = Annotated[
    Path | None, typer.Option("--engine", envvar="AURORAEDGE_ENGINE", help="Engine package; else the embedded one.")
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; else all cores.")]
LanguageOption = Annotated[str, typer.Option(help="Language of the labels where the recipe has titles: de, zh, ...")]


def _need_recipe(recipe: str | None) -> str:
    if recipe is None:
        raise InvalidRequestError(
            "No recipe is named.",
            field="recipe",
            remedy="Name one with --recipe ID; `auroraedge recipes` lists them.",
        )
    return recipe


@app.command()
def inspect(
    image: Annotated[Path, typer.Argument(help="Image file to inspect.", show_default=False)],
    recipe: RecipeOption = None,
    reference: Annotated[Path | None, typer.Option(help="Golden sample: a defect-free part, aligned.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask instead: 'count short', 'locate short', 'describe'.")] = None,
    server: ServerOption = None,
    engine: EngineOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Annotated picture, .png or .jpg; IMAGE_inspected.png here without it, none with --json"),
    ] = None,
    as_json: JsonOption = False,
    language: LanguageOption = "en",
    threads: ThreadsOption = None,
) -> None:
    """Inspects one image: verdict, defects, and a picture with both."""
    from auroraedge.inspection.results import error_result
    from auroraedge.report.backend import open_backend
    from auroraedge.report.console import outcome_view
    from auroraedge.report.single import inspect_file

    picture = out if out is not None or as_json else Path(f"{image.stem}_inspected.png")
    with exit_codes():
        try:
            chosen = _need_recipe(recipe)
            with open_backend(server=server, engine=engine, threads=threads) as backend:
                outcome = inspect_file(
                    backend, image, chosen, reference=reference, prompt=prompt, picture=picture, language=language
                )
        except AuroraEdgeError as error:
            if as_json:  # a program that reads stdout sees ERROR there, never nothing
                typer.echo(error_result(error, image_name=image.name).model_dump_json(indent=2))
            raise
        if as_json:
            found = outcome.result or outcome.answer
            assert found is not None
            typer.echo(found.model_dump_json(indent=2))
        else:
            open_console().print(outcome_view(outcome))


@app.command("eval")
def evaluate(
    pack: Annotated[Path, typer.Option(help="Folder of annotated image sets.")],
    set_name: Annotated[str, typer.Option("--set", help="Set of the pack, e.g. deeppcb.")],
    split: Annotated[str, typer.Option(help="Split of the set, e.g. test.")],
    recipe: RecipeOption = None,
    engine: EngineOption = None,
    out: Annotated[Path | None, typer.Option(help="JSONL of predictions; the same command continues from it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many annotated images.")] = None,
    baseline: Annotated[bool, typer.Option(help="Also score the classical baseline.")] = True,
    as_json: JsonOption = False,
    threads: ThreadsOption = None,
) -> None:
    """Scores an engine on annotated images, with intervals and a classical baseline."""
    with exit_codes():
        from auroraedge.evaluate import evaluate as run_evaluation
        from auroraedge.evaluate import print_report
        from auroraedge.runtime import Inspector

        with Inspector.open(engine, threads=threads) as inspector:
            scores = run_evaluation(pack, set_name, split, inspector, recipe, limit, baseline, out=out)
        if as_json:
            typer.echo(scores.model_dump_json(indent=2, exclude={"predictions", "baseline_predictions"}))
        else:
            print_report(scores)
        if scores.interrupted:
            raise typer.Exit(INTERRUPTED)


@app.command()
def train(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Training recipe, or its YAML file.")] = "nano",
    pack: Annotated[
        Path | None, typer.Option(help="Folder of annotated image sets; without it, generated parts only.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of checkpoints; training resumes from them.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Recipe 2b: model folder to start from, of `auroraedge assemble`.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Recipe 2b: NAME=FILE.json (LLaVA), NAME='SHARDS-{00..99}.tar', or a YAML; repeatable."),
    ] = None,
    extend: Annotated[bool, typer.Option(help="Go on after the last stage with changed settings.")] = False,
    seed: Annotated[int | None, typer.Option(help="Overrides the recipe's.")] = None,
    precision: Annotated[str | None, typer.Option(help="bf16 or fp32; overrides the recipe's.")] = None,
    threads: ThreadsOption = None,
    estimate: Annotated[
        str | None, typer.Option(help="Recipe 2b: only estimate memory and time, e.g. on 8xh100.", metavar="GPUS")
    ] = None,
) -> None:
    """Trains a model (needs the extra `train`). Several GPUs: `accelerate launch -m auroraedge.cli train ...`."""
    with exit_codes():
        from auroraedge.train.launch import estimate_recipe, train_recipe

        if estimate is not None:
            open_console().print(estimate_recipe(recipe, estimate))
            return
        trained = train_recipe(
            recipe,
            pack=pack,
            out=out,
            model=model,
            data=data or (),
            extend=extend,
            seed=seed,
            precision=precision,
            threads=threads,
        )
        typer.echo(f"model: {trained}")


@app.command()
def assemble(
    vision: Annotated[Path, typer.Option(help="Checkpoint folder of a SigLIP2 NaFlex model.", metavar="DIR")],
    llm: Annotated[
        Path, typer.Option(help="Checkpoint folder of a Qwen2.5 model, or a Llama as .gguf.", metavar="PATH")
    ],
    out: Annotated[Path, typer.Option(help="New model folder.", metavar="DIR")],
    dtype: Annotated[str, typer.Option(help="Of the weights: bf16, fp16 or fp32.")] = "bf16",
    max_shard_size: Annotated[str, typer.Option(help="Split the weights into files of at most so much.")] = "5GB",
    grounding: Annotated[
        bool, typer.Option("--grounding", help="Add the grounding head, for the labels of all recipes.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the connectors, which are new.")] = 0,
) -> None:
    """Builds a model from a pretrained encoder and a pretrained decoder (extra `train`)."""
    with exit_codes():
        from auroraedge.inspection.recipe import list_recipes
        from auroraedge.train.assemble import assemble as build

        labels = sorted({label for recipe in list_recipes() for label in recipe.label_names}) if grounding else ()
        build(vision, llm, out, dtype=dtype, max_shard_size=max_shard_size, labels=tuple(labels), seed=seed)


@app.command()
def samples(
    folder: Annotated[Path, typer.Argument(help="New folder to fill.", metavar="DIR")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same parts.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Parts of each of three kinds.")] = 12,
) -> None:
    """Draws sample parts with a manifest, to try the product without photographs."""
    with exit_codes():
        from auroraedge.data.samples import write_samples

        paths = write_samples(folder, seed=seed, n_per_kind=count)
        manifest = folder / "manifest.csv"
        typer.echo(f"{len(paths)} parts in {folder}. Try: auroraedge report {shlex.quote(str(manifest))} --out report")


@engine_app.command("verify")
def engine_verify(folder: Annotated[Path, typer.Argument(help="Engine package.", metavar="DIR")]) -> None:
    """Checks that every file of a package is there and unchanged."""
    with exit_codes():
        from auroraedge.manifest import verify_package

        manifest = verify_package(folder)
        typer.echo(f"{folder}: {manifest.model_id} for {manifest.target}, {len(manifest.files)} files are unchanged")
        typer.echo(f"engine {manifest.engine_sha256}")


@engine_app.command("inspect")
def engine_inspect(
    folder: Annotated[Path, typer.Argument(help="Engine package.", metavar="DIR")], as_json: JsonOption = False
) -> None:
    """Shows what a package holds: model, target, precision, inputs and outputs, parity."""
    with exit_codes():
        from auroraedge.manifest import load_manifest
        from auroraedge.report.console import manifest_view

        manifest = load_manifest(folder)
        if as_json:
            typer.echo(manifest.model_dump_json(indent=2))
        else:
            open_console().print(manifest_view(manifest))


@engine_app.command("diff")
def engine_diff(
    first: Annotated[Path, typer.Argument(help="Engine package.", metavar="DIR")],
    second: Annotated[Path, typer.Argument(help="Engine package.", metavar="DIR")],
) -> None:
    """Shows what two packages differ in: model, target, precision, graphs, parity, files."""
    with exit_codes():
        from auroraedge.packaging import diff
        from auroraedge.report.console import difference_view

        open_console().print(difference_view(diff(first, second), str(first), str(second)))


@engine_app.command("pack")
def engine_pack(
    folder: Annotated[Path, typer.Argument(help="Engine package.", metavar="DIR")],
    file: Annotated[Path | None, typer.Argument(help="File to write; else DIR.engine.tar.", metavar="FILE")] = None,
) -> None:
    """Puts a package into one file, to carry it to another machine."""
    with exit_codes():
        from auroraedge.packaging import SUFFIX, pack

        target = file or folder.with_name(folder.name + SUFFIX)
        manifest = pack(folder, target)
        typer.echo(f"{target}: {target.stat().st_size / 1e6:.1f} MB, engine {manifest.engine_sha256}")


@engine_app.command("unpack")
def engine_unpack(
    file: Annotated[Path, typer.Argument(help="File that `engine pack` wrote.", metavar="FILE")],
    folder: Annotated[Path, typer.Argument(help="Folder of the package; an earlier package is replaced.")],
) -> None:
    """Unpacks and verifies a package."""
    with exit_codes():
        from auroraedge.packaging import unpack

        manifest = unpack(file, folder)
        typer.echo(f"{folder}: {manifest.model_id} for {manifest.target}, engine {manifest.engine_sha256}")


@recipes_app.callback()
def recipes(
    context: typer.Context,
    recipe_dir: Annotated[list[Path] | None, typer.Option(help="Folder with more recipes; may be repeated.")] = None,
) -> None:
    """Lists the recipes; `recipes show ID` prints one."""
    context.obj = tuple(recipe_dir or ())
    if context.invoked_subcommand is None:
        with exit_codes():
            from auroraedge.inspection.recipe import list_recipes
            from auroraedge.report.console import recipe_list

            open_console().print(recipe_list(list_recipes(context.obj)))


@recipes_app.command("show")
def recipes_show(
    context: typer.Context, recipe: Annotated[str, typer.Argument(help="Recipe id, or a YAML file.", metavar="ID")]
) -> None:
    """Prints a recipe as YAML, a start for one of your own."""
    with exit_codes():
        import yaml

        from auroraedge.inspection.recipe import load_recipe

        content: dict[str, Any] = load_recipe(recipe, context.obj).model_dump(mode="json", exclude_none=True)
        typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120).rstrip())


@app.command()
def model(preset: Annotated[str, typer.Option(help="nano or 2b.")] = "nano") -> None:
    """Prints the parameters of a preset by part (needs the extra `train`)."""
    from auroraedge.config import PRESETS

    with exit_codes():
        if preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise InvalidRequestError(f"There is no preset '{preset}'.", field="preset", remedy=f"Known: {known}.")
        from auroraedge.model.summary import summary_table

        open_console().print(summary_table(preset))


@app.command()
def flops(
    preset: Annotated[str, typer.Option(help="nano or 2b.")] = "2b",
    text: Annotated[int, typer.Option(min=1, help="Text tokens of the prompt.")] = 64,
    new: Annotated[int, typer.Option(min=1, help="Generated tokens.")] = 32,
    as_json: JsonOption = False,
) -> None:
    """Counts the operations of one answer by part, beside uncompressed and other models (extra `train`)."""
    import json

    from auroraedge.config import PRESETS

    with exit_codes():
        if preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise InvalidRequestError(f"There is no preset '{preset}'.", field="preset", remedy=f"Known: {known}.")
        from auroraedge.model.flops_table import flops_json, flops_tables

        if as_json:
            typer.echo(json.dumps(flops_json(preset, text=text, new=new), indent=1))
        else:
            for table in flops_tables(preset, text=text, new=new):
                open_console().print(table)


@app.command()
def version() -> None:
    """Prints the version, and the embedded engine's."""
    import auroraedge
    from auroraedge.manifest import load_manifest
    from auroraedge.runtime.inspector import DEFAULT_ENGINE

    typer.echo(f"auroraedge {auroraedge.__version__}")
    try:
        manifest = load_manifest(DEFAULT_ENGINE)
    except AuroraEdgeError as error:
        typer.echo(f"embedded engine: none ({error.message})")
    else:
        typer.echo(f"embedded engine: {manifest.model_id} {manifest.engine_sha256[:12]}")


def main() -> None:
    """Entry point of `auroraedge`."""
    app()


if __name__ == "__main__":
    main()
