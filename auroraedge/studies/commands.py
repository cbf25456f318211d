"""`auroraedge study ...`: agreement studies and the golden-part challenge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from auroraedge.command_line import JsonOption, exit_codes, open_console
from auroraedge.errors import InvalidRequestError, StudyError
from auroraedge.store.options import (
    CameraOption,
    ImagesOption,
    LineOption,
    LotOption,
    SinceOption,
    StationOption,
    StoreOption,
    UntilOption,
    WhoOption,
    build_filter,
    login,
    open_store,
)

if TYPE_CHECKING:
    from auroraedge.store import ResultFilter
    from auroraedge.studies.ratings import RatingSet

app = typer.Typer(help="Agreement studies and golden-part checks.", no_args_is_help=True)

# A challenge found something wrong: its own code, so that a line can be stopped by it.
ALARM = 6

RecipeOption = Annotated[str | None, typer.Option("--recipe", "-r", envvar="AURORAEDGE_RECIPE", help="Recipe id.")]
ServerOption = Annotated[
    str | None, typer.Option("--server", envvar="AURORAEDGE_SERVER", help="host:port; else this process inspects.")
]
TokenOption = Annotated[str, typer.Option("--token", envvar="AURORAEDGE_TOKEN", help="Access token of the server.")]
CaOption = Annotated[
    Path | None, typer.Option("--ca", envvar="AURORAEDGE_CA", help="PEM file to know the server by: encrypted.")
]
EngineOption = Annotated[
    Path | None, typer.Option("--engine", envvar="AURORAEDGE_ENGINE", help="Engine package; else the embedded one.")
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; else all cores.")]
NameOption = Annotated[str, typer.Option("--name", help="What is watched, e.g. 'line A'; each has its own baseline.")]


def _need_recipe(recipe: str | None) -> str:
    if recipe is None:
        raise InvalidRequestError(
            "No recipe is named.", field="recipe", remedy="Name one with --recipe ID; `auroraedge recipes` lists them."
        )
    return recipe


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while pictures are inspected; nothing where nobody watches."""
    from rich.progress import Progress

    console = open_console(to_stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@app.command()
def agreement(
    ratings: Annotated[
        list[Path] | None,
        typer.Argument(help="CSV or JSONL: part, appraiser, trial, rating, standard.", metavar="[RATINGS]..."),
    ] = None,
    parts: Annotated[
        Path | None,
        typer.Option("--parts", help="Let the model judge: CSV (image, standard, part) or folder with ok/ and ng/."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, max=100, help="How often it judges each picture.")] = 3,
    recipe: RecipeOption = None,
    standard: Annotated[Path | None, typer.Option("--standard", help="CSV: part, standard.")] = None,
    from_store: Annotated[
        bool, typer.Option("--from-store", help="Stored results by part id, and their reviews by reviewer.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for study.html and study.json.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Attribute agreement",
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    review: Annotated[str, typer.Option(help="REVIEW and ERROR: 'own' answers, or taken as 'ng'.")] = "own",
    store: StoreOption = None,
    images: ImagesOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    lot: LotOption = None,
    line: LineOption = None,
    station: StationOption = None,
    camera: CameraOption = None,
    server: ServerOption = None,
    token: TokenOption = "",
    ca: CaOption = None,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    who: WhoOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do people and model repeat themselves, agree with each other, and with the truth (AIAG MSA)?"""
    with exit_codes():
        from auroraedge.studies.agreement import analyse
        from auroraedge.studies.console import agreement_view
        from auroraedge.studies.page import render_page
        from auroraedge.studies.ratings import combine, ratings_from_store, read_ratings, read_standards

        if review not in ("own", "ng"):
            raise InvalidRequestError(f"--review is '{review}'.", field="review", remedy="Write own or ng.")
        sets: list[RatingSet] = [read_ratings(path) for path in ratings or ()]
        facts: list[tuple[str, str]] = []
        if parts is not None:
            found, facts = _model_ratings(
                parts, _need_recipe(recipe), repeat, server, token, ca, engine, threads, store, images
            )
            sets.append(found)
        if from_store:
            where = build_filter(since=since, until=until, lot=lot, line=line, station=station, camera=camera)
            with open_store(store, images) as opened:
                sets.append(ratings_from_store(opened, where))
        if not sets:
            raise StudyError(
                "There is nothing to study.", field="ratings", remedy="Name a file, or use --parts or --from-store."
            )
        study = combine(sets, read_standards(standard) if standard else None)
        report = analyse(study, title=title, level=level, review_as="ng" if review == "ng" else "own")
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            page = render_page(report, generated_at=datetime.now(UTC), facts=facts)
            _write(out / "study.html", page)
            _write(out / "study.json", report.model_dump_json(indent=2).encode() + b"\n")
        if store is not None:
            with open_store(store, images, create=True) as opened:
                summary = {a.name: a.grade for a in report.appraisers}
                opened.record_study(
                    kind="agreement",
                    name=title,
                    who=login(who),
                    passed=None,
                    document=report.model_dump(mode="json"),
                    summary={"grades": summary},
                )
        if as_json:
            typer.echo(report.model_dump_json(indent=2))
        else:
            open_console().print(agreement_view(report))
            if out is not None:
                open_console().print(f"page: {out / 'study.html'}", style="bold", highlight=False)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def _model_ratings(
    source: Path,
    recipe_id: str,
    repeat: int,
    server: str | None,
    token: str,
    ca: Path | None,
    engine: Path | None,
    threads: int | None,
    store: str | None,
    images: Path | None,
) -> tuple[RatingSet, list[tuple[str, str]]]:
    from contextlib import ExitStack

    from auroraedge.store import Purpose
    from auroraedge.studies.parts import as_ratings, judge, open_inspecting, read_parts

    chosen = read_parts(source)
    with ExitStack() as stack:
        inspecting = stack.enter_context(
            open_inspecting(server=server, token=token, ca=ca, engine=engine, threads=threads)
        )
        recipe = inspecting.recipe(recipe_id)
        opened = stack.enter_context(open_store(store, images, create=True)) if store else None
        progress = stack.enter_context(_progress("inspecting"))
        judged = judge(
            inspecting,
            chosen,
            recipe,
            repeat=repeat,
            name="agreement",
            store=opened,
            purpose=Purpose.STUDY,
            on_progress=progress,
        )
        facts = [
            ("Recipe", f"{recipe.id} v{recipe.version}, {recipe.sha256[:12]}"),
            ("Model", f"{inspecting.model_id}, engine {inspecting.engine_sha256}"),
        ]
        return as_ratings(judged, inspecting.name, str(source), repeat), facts


@app.command()
def baseline(
    name: NameOption,
    store: StoreOption = None,
    images: ImagesOption = None,
    parts: Annotated[
        Path | None, typer.Option("--parts", help="Golden parts: CSV, or folder with ok/ and ng/.")
    ] = None,
    recipe: RecipeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    lot: LotOption = None,
    line: LineOption = None,
    station: StationOption = None,
    camera: CameraOption = None,
    server: ServerOption = None,
    token: TokenOption = "",
    ca: CaOption = None,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    who: WhoOption = None,
    why: Annotated[str, typer.Option(help="For the audit trail.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Stores what is normal: production of a good time, and the golden parts. Challenges compare with it."""
    with exit_codes():
        from auroraedge.studies.challenge import make_baseline
        from auroraedge.studies.console import baseline_view
        from auroraedge.studies.parts import open_inspecting, read_parts

        chosen = read_parts(parts) if parts else []
        where = _where(since, until, lot, line, station, camera)
        with (
            open_store(store, images) as opened,
            open_inspecting(server=server, token=token, ca=ca, engine=engine, threads=threads) as inspecting,
            _progress("golden parts") as progress,
        ):
            found, record = make_baseline(
                opened,
                inspecting,
                inspecting.recipe(_need_recipe(recipe)),
                where,
                name=name,
                parts=chosen,
                who=login(who),
                why=why,
                on_progress=progress,
            )
        if as_json:
            typer.echo(found.model_dump_json(indent=2))
        else:
            open_console().print(baseline_view(found, record.study_id))


@app.command()
def challenge(
    parts: Annotated[
        Path, typer.Argument(help="Golden parts: CSV (image, standard, part), or folder with ok/ and ng/.")
    ],
    name: NameOption,
    store: StoreOption = None,
    images: ImagesOption = None,
    recipe: RecipeOption = None,
    window: Annotated[float, typer.Option(help="Hours of production to compare, unless --since is given.")] = 8.0,
    alpha: Annotated[
        float, typer.Option(help="Share of challenges that may alarm by drift without any change.")
    ] = 0.01,
    since: SinceOption = None,
    until: UntilOption = None,
    line: LineOption = None,
    station: StationOption = None,
    camera: CameraOption = None,
    server: ServerOption = None,
    token: TokenOption = "",
    ca: CaOption = None,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    who: WhoOption = None,
    as_json: JsonOption = False,
) -> None:
    """The check of a shift: are known parts judged right, and has production drifted? Exit code 6 on an alarm."""
    with exit_codes():
        from auroraedge.studies.challenge import challenge as run_challenge
        from auroraedge.studies.console import challenge_view
        from auroraedge.studies.parts import open_inspecting, read_parts

        chosen = read_parts(parts)
        where = _where(since, until, None, line, station, camera)
        with (
            open_store(store, images, create=True) as opened,
            open_inspecting(server=server, token=token, ca=ca, engine=engine, threads=threads) as inspecting,
            _progress("golden parts") as progress,
        ):
            report = run_challenge(
                opened,
                inspecting,
                inspecting.recipe(_need_recipe(recipe)),
                chosen,
                where,
                name=name,
                who=login(who),
                window_hours=window,
                alpha=alpha,
                on_progress=progress,
            )
        if as_json:
            typer.echo(report.model_dump_json(indent=2))
        else:
            open_console().print(challenge_view(report))
        if not report.passed:
            raise typer.Exit(ALARM)


def _where(since: Any, until: Any, lot: Any, line: Any, station: Any, camera: Any) -> ResultFilter:
    return build_filter(since=since, until=until, lot=lot, line=line, station=station, camera=camera)


@app.command("list")
def list_command(
    store: StoreOption = None,
    images: ImagesOption = None,
    kind: Annotated[str | None, typer.Option(help="agreement, challenge or baseline.")] = None,
    name: Annotated[str | None, typer.Option(help="Of this name only.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """The studies that the store keeps, the newest first."""
    with exit_codes():
        import json

        from auroraedge.studies.console import studies_view

        with open_store(store, images) as opened:
            records = opened.studies(kind=kind, name=name, limit=limit)
        if not as_json:
            open_console().print(studies_view(records))
            return
        for record in records:
            facts = {"study_id": record.study_id, "at": record.at.isoformat(), "kind": record.kind}
            facts |= {"name": record.name, "who": record.who}
            typer.echo(json.dumps({**facts, "passed": record.passed, "document": record.document}, ensure_ascii=False))
