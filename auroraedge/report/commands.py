"""`auroraedge report`: a batch report from images, a video, a result store, or the results of an earlier report."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from auroraedge.command_line import INTERRUPTED, exit_codes, open_console
from auroraedge.errors import InvalidRequestError
from auroraedge.store.options import (
    CameraOption,
    ImagesOption,
    JobOption,
    LineOption,
    LotOption,
    PartOption,
    SinceOption,
    StationOption,
    StoreOption,
    UntilOption,
)

if TYPE_CHECKING:
    from auroraedge.report.outputs import ReportOptions
    from auroraedge.report.runner import ReportSummary


def report(
    out: Annotated[Path, typer.Option(help="Folder for the report; a report that was cut short is continued there.")],
    source: Annotated[
        str | None,
        typer.Argument(
            help="Folder, image, quoted glob pattern, CSV manifest, video, or results.jsonl; none: the --store.",
            metavar="SOURCE",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", envvar="AURORAEDGE_RECIPE", help="Recipe id, or file; of a store: its results."),
    ] = None,
    references: Annotated[Path | None, typer.Option(help="Folder with golden samples of the same names.")] = None,
    server: Annotated[
        str | None, typer.Option(envvar="AURORAEDGE_SERVER", help="host:port; else this process inspects.")
    ] = None,
    engine: Annotated[
        Path | None, typer.Option(envvar="AURORAEDGE_ENGINE", help="Engine package; else the embedded one.")
    ] = None,
    template: Annotated[str, typer.Option(help="batch, shift, lot, or part.")] = "batch",
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="html, pdf, csv, xlsx, jsonl, coco, json, or all; may be repeated."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the report.")] = None,
    language: Annotated[str, typer.Option(help="en, de or zh; labels in any that the recipe has.")] = "en",
    time_zone: Annotated[str, typer.Option(help="Of all times in the report, as in Europe/Berlin.")] = "UTC",
    takt_ms: Annotated[float | None, typer.Option(help="Milliseconds that the line has for a part.")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Of a video, every so many frames.")] = None,
    per_second: Annotated[float | None, typer.Option(help="Of a video, frames a second; 1 without both.")] = None,
    font: Annotated[Path | None, typer.Option(help="Font of the PDF: .ttf, .otf or .ttc.")] = None,
    store: StoreOption = None,
    images: ImagesOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    lot: LotOption = None,
    line: LineOption = None,
    station: StationOption = None,
    camera: CameraOption = None,
    job: JobOption = None,
    part: PartOption = None,
    verdict: Annotated[list[str] | None, typer.Option(help="After review; may be repeated.")] = None,
    recipe_dir: Annotated[list[Path] | None, typer.Option(help="Folder with more recipes; may be repeated.")] = None,
    generated_at: Annotated[
        datetime | None, typer.Option(help="Time printed in the report, UTC; the newest result's without it.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; else all cores.")] = None,
) -> None:
    """Writes one HTML page, PDF, tables and COCO about many results; inspects images that have none yet."""
    with exit_codes():
        from auroraedge.report.outputs import DEFAULT_FORMATS, FILES, ReportOptions

        chosen = [name for given in formats or DEFAULT_FORMATS for name in given.lower().replace(",", " ").split()]
        options = ReportOptions(
            formats=tuple(FILES) if "all" in chosen else tuple(dict.fromkeys(chosen)),
            template=template,
            title=title,
            language=language,
            time_zone=time_zone,
            takt_ms=takt_ms,
            font=font,
        )
        moment = generated_at.replace(tzinfo=UTC) if generated_at else None
        filters = {"lot": lot, "line": line, "station": station, "camera": camera, "job": job, "part_id": part}
        if source is None:
            given: dict[str, Any] = {
                "since": since,
                "until": until,
                "verdicts": verdict,
                "recipe_id": recipe,
                **filters,
            }
            summary = _from_store(store, images, given, out, options, moment)
        else:
            if since or until or verdict or any(filters.values()):
                raise InvalidRequestError(
                    "Results are chosen by time, lot, line, part or verdict in a store only.",
                    field="source",
                    remedy="Leave SOURCE out and name a --store, or leave these options out.",
                )
            if Path(source).suffix.lower() in (".jsonl", ".ndjson"):
                summary = _from_results(Path(source), images, references, recipe_dir, out, options, moment)
            else:
                from auroraedge.report.backend import open_backend
                from auroraedge.report.inputs import Sampling
                from auroraedge.report.runner import run_report

                sampling = Sampling(every=every, per_second=per_second)
                with open_backend(server=server, engine=engine, threads=threads, recipe_dirs=recipe_dir or ()) as found:
                    summary = run_report(
                        source,
                        out,
                        recipe,
                        found,
                        references=references,
                        generated_at=moment,
                        sampling=sampling,
                        console=open_console(to_stderr=True),
                        options=options,
                    )
        _tell(summary)


def _from_store(
    url: str | None,
    images: Path | None,
    given: dict[str, Any],
    out: Path,
    options: ReportOptions,
    moment: datetime | None,
) -> ReportSummary:
    from auroraedge.report.stored import run_store_report
    from auroraedge.store.options import build_filter, open_store

    if not url:
        raise InvalidRequestError(
            "There is nothing to report.",
            field="source",
            remedy="Name a folder, manifest, video or results.jsonl, or a result store with --store.",
        )
    where = build_filter(**given)
    with open_store(url, images) as store:
        return run_store_report(store, where, out, options, generated_at=moment)


def _from_results(
    path: Path,
    images: Path | None,
    references: Path | None,
    recipe_dirs: list[Path] | None,
    out: Path,
    options: ReportOptions,
    moment: datetime | None,
) -> ReportSummary:
    from auroraedge.report.stored import run_results_report

    if not path.is_file():
        raise InvalidRequestError(
            f"There is no file '{path}'.", field="source", remedy="Name the results.jsonl of an earlier report."
        )
    return run_results_report(
        path,
        out,
        options,
        images=images,
        references=references,
        generated_at=moment,
        recipe_dirs=tuple(recipe_dirs or ()),
    )


def _tell(summary: ReportSummary) -> None:
    from auroraedge.report.console import continue_line, summary_view

    open_console().print(summary_view(summary))
    # Not through the console, which would break them: they are to be copied.
    command = shlex.join(["auroraedge", *sys.argv[1:]])
    for text in (continue_line(summary, command), f"report: {summary.page}"):
        if text:
            typer.echo(text)
    if summary.stopped_by is not None:
        raise summary.stopped_by
    if summary.interrupted:
        raise typer.Exit(INTERRUPTED)
