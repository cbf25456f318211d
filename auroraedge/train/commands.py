"""`auroraedge finetune`: from a folder of labelled parts to an engine and a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from auroraedge.command_line import application, exit_codes, open_console
from auroraedge.errors import DatasetError

if TYPE_CHECKING:
    from rich.console import Console

    from auroraedge.data.validation import CheckedDataset


def checked(data: Path, format: str, out: Path, console: Console, **options: object) -> CheckedDataset:
    """Reads and checks a dataset, prints the report and writes OUT/check.html. `options`: of check_dataset.

    Raises DatasetError where it cannot be read at all; errors within it are left to the caller.
    """
    from rich.progress import Progress

    from auroraedge.data.importers import read_dataset
    from auroraedge.data.validation import check_dataset, check_page, check_table

    dataset = read_dataset(data, format)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reading images", total=len(dataset.items))
        found = check_dataset(dataset, each=lambda: bar.advance(task), **options)  # type: ignore[arg-type]
    console.print(check_table(found))
    out.mkdir(parents=True, exist_ok=True)
    page = out / "check.html"
    page.write_text(check_page(found), encoding="utf-8")
    console.print(f"Report with pictures: {page}")
    return found


def _need_no_errors(found: CheckedDataset) -> None:
    if found.errors:
        codes = ", ".join(dict.fromkeys(finding.code for finding in found.errors))
        raise DatasetError(
            f"The dataset has {len(found.errors)} errors ({codes}).",
            field="data",
            remedy="Mend them; the report shows each with pictures.",
        )


def finetune(
    data: Annotated[Path, typer.Option(help="Folder of labelled parts, or the zip file of one.", metavar="DIR")],
    out: Annotated[Path, typer.Option(help="Folder of everything that is made; the same command goes on from it.")],
    format: Annotated[str, typer.Option(help="auto, pack, coco, yolo, voc, mvtec or folders.")] = "auto",
    check: Annotated[bool, typer.Option("--check", help="Only check the dataset.")] = False,
    model: Annotated[str, typer.Option(help="Base: nano, or a model folder.")] = "nano",
    name: Annotated[str | None, typer.Option(help="Id of the new recipe; else the folder's name.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Recipe to start from: tiling, titles.")] = None,
    train_all: Annotated[bool, typer.Option("--all", help="Train all parameters instead of LoRA.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; else by the number of images.")] = None,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA matrices.")] = 8,
    encoder_layers: Annotated[int, typer.Option(min=0, help="Last encoder layers with LoRA.")] = 0,
    rate_factor: Annotated[float, typer.Option(min=0.001, help="Multiplies the learning rates.")] = 1.0,
    group_by: Annotated[str | None, typer.Option(help="Regular expression: the part in an image's name.")] = None,
    resplit: Annotated[bool, typer.Option("--resplit", help="Make new splits, whatever the dataset says.")] = False,
    engine: Annotated[bool, typer.Option(help="End with engine, calibration and evaluation.")] = True,
    precision: Annotated[str | None, typer.Option(help="Of the engine: int8 or fp32; else the target's.")] = None,
    baseline: Annotated[bool, typer.Option(help="Score the classical baseline beside it.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of splits, views and steps.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; else all cores.")] = None,
) -> None:
    """Fine-tunes a model on your own labelled parts: COCO, VOC, YOLO, MVTec-style or OK / NG folders."""
    with exit_codes():
        console = open_console()
        # Missing pieces are told before minutes of training, not after.
        finish = application("engine_build.finetune") if engine and not check else None
        from auroraedge.data.importers.archive import open_folder
        from auroraedge.train.finetune_base import base_folder, base_labels

        known = base_labels(base_folder(model)) if not check or model != "nano" else base_labels(None)
        found = checked(
            open_folder(data, out / "source"),
            format,
            out,
            console,
            known_labels=known,
            group_pattern=group_by,
            resplit=resplit,
            seed=seed,
        )
        _need_no_errors(found)
        if check:
            return
        from auroraedge.train.finetune_run import run_finetune
        from auroraedge.train.finetune_settings import FinetuneSettings

        settings = FinetuneSettings(
            mode="all" if train_all else "lora",
            steps=steps,
            rank=rank,
            encoder_layers=encoder_layers,
            rate_factor=rate_factor,
            seed=seed,
            threads=threads,
        )
        tuned = run_finetune(
            found,
            out=out,
            base=base_folder(model),
            name=name or (data.stem if data.is_file() else None),
            recipe=recipe,
            settings=settings,
            console=console,
        )
        if finish is not None:
            finish.finish(tuned, precision=precision, baseline=baseline, threads=threads, console=console)
        else:
            console.print(f"model: {tuned.model}. Build its engine with: engine_build/build.py --model {tuned.model}")
