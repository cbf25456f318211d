"""`auroraedge store ...`: look into a store and look after it."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from auroraedge.command_line import JsonOption, exit_codes, open_console
from auroraedge.store.options import (
    CameraOption,
    FilterRecipeOption,
    ImagesOption,
    JobOption,
    LineOption,
    LotOption,
    PartOption,
    SinceOption,
    StationOption,
    StoreOption,
    UntilOption,
    WhoOption,
    build_filter,
    login,
    open_store,
    parse_days,
    parse_size,
)

app = typer.Typer(help="The result store: what was inspected, decided and changed.", no_args_is_help=True)

# The store is not as it should be: exit code of `check`.
_UNSOUND = 4
_CONFLICTS = 2


def _dump(value: Any, indent: int | None = None) -> str:
    return json.dumps(
        value, indent=indent, ensure_ascii=False, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v)
    )


def _print_json(value: Any) -> None:
    typer.echo(_dump(dataclasses.asdict(value), indent=2))


@app.command()
def info(store: StoreOption = None, images: ImagesOption = None, as_json: JsonOption = False) -> None:
    """What the store holds: results, pictures, sizes, history."""
    with exit_codes():
        from auroraedge.store.console import info_view

        with open_store(store, images) as opened:
            found = opened.info()
        if as_json:
            _print_json(found)
        else:
            open_console().print(info_view(found))


@app.command()
def migrate(store: StoreOption = None, images: ImagesOption = None) -> None:
    """Creates the store, or brings an older one up to date."""
    with exit_codes(), open_store(store, images, create=True) as opened:
        version = opened.database.schema_version()
        typer.echo(f"{opened.database.shown}: schema {version}, store {opened.store_id}")


@app.command()
def results(
    store: StoreOption = None,
    images: ImagesOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    verdict: Annotated[list[str] | None, typer.Option("--verdict", help="After review; may be repeated.")] = None,
    lot: LotOption = None,
    line: LineOption = None,
    station: StationOption = None,
    camera: CameraOption = None,
    job: JobOption = None,
    part: PartOption = None,
    recipe: FilterRecipeOption = None,
    waiting: Annotated[bool, typer.Option("--waiting", help="Only what waits for a person.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Golden-part checks and studies too.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0 for all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, the oldest first.")] = False,
) -> None:
    """Lists results."""
    with exit_codes():
        from auroraedge.store.console import results_view

        where = build_filter(
            since=since,
            until=until,
            verdicts=["REVIEW"] if waiting else verdict,
            reviewed=False if waiting else None,
            lot=lot,
            line=line,
            station=station,
            camera=camera,
            job=job,
            part_id=part,
            recipe_id=recipe,
        )
        if everything:
            where = dataclasses.replace(where, purposes=None)
        with open_store(store, images) as opened:
            if as_json:
                # Without a limit the list is streamed: it may be longer than the memory is large.
                chosen = opened.results(where) if not limit else _newest(opened.results, where, limit)
                for found in chosen:
                    typer.echo(_line(found))
                return
            total = opened.count(where)
            shown = _newest(opened.results, where, limit or total)
            open_console().print(results_view(shown, total))


def _newest(read: Any, where: Any, limit: int) -> list[Any]:
    return list(read(where, newest_first=True, limit=limit))[::-1]


def _line(found: Any) -> str:
    review = None
    if found.review is not None:
        review = dataclasses.asdict(found.review)
        if found.review.defects is not None:
            review["defects"] = [defect.model_dump(mode="json") for defect in found.review.defects]
    facts = {
        "seq": found.seq,
        "stored_at": found.stored_at.isoformat(),
        "purpose": found.purpose,
        "effective_verdict": found.effective_verdict,
        "has_image": found.has_image,
        "image_sha256": found.image_sha256,
        "review": review,
        "result": found.result.model_dump(mode="json"),
    }
    return _dump(facts)


@app.command()
def show(
    result_id: Annotated[str, typer.Argument(help="Id of a result.", metavar="RESULT")],
    store: StoreOption = None,
    images: ImagesOption = None,
    save: Annotated[Path | None, typer.Option(help="Writes the stored picture to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """One result with its defects, reviews and picture."""
    with exit_codes():
        from auroraedge.errors import ResultNotFoundError
        from auroraedge.store.console import result_view

        with open_store(store, images) as opened:
            found = opened.get(result_id)
            reviews = opened.reviews(result_id)
            if save is not None:
                content = opened.image(found.image_sha256 or "")
                if content is None:
                    raise ResultNotFoundError("The picture is not kept.", remedy="See `auroraedge store retain`.")
                save.write_bytes(content)
        if as_json:
            typer.echo(json.dumps(json.loads(_line(found)), indent=2, ensure_ascii=False))
        else:
            open_console().print(result_view(found, reviews))


@app.command()
def check(
    store: StoreOption = None,
    images: ImagesOption = None,
    mend: Annotated[bool, typer.Option("--mend", help="Removes orphans, derives again what is derived.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Reads every picture.")] = False,
    who: WhoOption = None,
    as_json: JsonOption = False,
) -> None:
    """Examines database, documents, audit trail and pictures; exit code 4 when something is wrong."""
    with exit_codes():
        from auroraedge.store.console import check_view

        with open_store(store, images) as opened:
            report = opened.check(mend=mend, deep=deep, who=login(who))
        if as_json:
            _print_json(report)
        else:
            open_console().print(check_view(report))
        if not report.is_sound:
            raise typer.Exit(_UNSOUND)


@app.command()
def mend(
    store: StoreOption = None,
    images: ImagesOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="Reads every picture.")] = False,
    who: WhoOption = None,
    as_json: JsonOption = False,
) -> None:
    """The same as `check --mend`."""
    check(store=store, images=images, mend=True, deep=deep, who=who, as_json=as_json)


@app.command()
def retain(
    store: StoreOption = None,
    images: ImagesOption = None,
    ok_days: Annotated[str, typer.Option(help="Days to keep pictures of OK; 'forever' for good.")] = "30",
    error_days: Annotated[str, typer.Option(help="... of ERROR.")] = "30",
    review_days: Annotated[str, typer.Option(help="... of REVIEW that a person left so.")] = "180",
    ng_days: Annotated[str, typer.Option(help="... of NG.")] = "365",
    max_size: Annotated[str | None, typer.Option(help="All pictures together, e.g. 200GB; OK goes first.")] = None,
    result_days: Annotated[str, typer.Option(help="Days to keep results themselves.")] = "forever",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tells what would go.")] = False,
    who: WhoOption = None,
    as_json: JsonOption = False,
) -> None:
    """Removes old pictures. What waits for a person is never removed. Made for a daily timer."""
    with exit_codes():
        from auroraedge.store import RetentionPolicy
        from auroraedge.store.console import retention_view

        policy = RetentionPolicy(
            ok_days=parse_days(ok_days, "ok-days"),
            error_days=parse_days(error_days, "error-days"),
            review_days=parse_days(review_days, "review-days"),
            ng_days=parse_days(ng_days, "ng-days"),
            max_image_bytes=parse_size(max_size, "max-size"),
            result_days=parse_days(result_days, "result-days"),
        )
        with open_store(store, images) as opened:
            report = opened.retain(policy, dry_run=dry_run, who=login(who))
        if as_json:
            _print_json(report)
        else:
            open_console().print(retention_view(report))


@app.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(help="Zip file to write.", metavar="FILE")],
    store: StoreOption = None,
    images: ImagesOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    lot: LotOption = None,
    line: LineOption = None,
    recipe: FilterRecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Writes results, pictures and history into one zip file of JSON lines and pictures."""
    with exit_codes():
        from auroraedge.store.console import transfer_view

        where = dataclasses.replace(
            build_filter(since=since, until=until, lot=lot, line=line, recipe_id=recipe), purposes=None
        )
        with open_store(store, images) as opened:
            report = opened.export_to(file, where)
        if as_json:
            _print_json(report)
        else:
            open_console().print(transfer_view(report, f"written to {file}"))


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="Zip file of an export.", metavar="FILE")],
    store: StoreOption = None,
    images: ImagesOption = None,
    who: WhoOption = None,
    as_json: JsonOption = False,
) -> None:
    """Adds an export to the store; what is there stays. Exit code 2 when something contradicts."""
    with exit_codes():
        from auroraedge.store.console import transfer_view

        with open_store(store, images, create=True) as opened:
            report = opened.import_from(file, who=login(who))
        if as_json:
            _print_json(report)
        else:
            open_console().print(transfer_view(report, f"new from {file}"))
        if report.conflict_count:
            raise typer.Exit(_CONFLICTS)


@app.command()
def audit(
    store: StoreOption = None,
    images: ImagesOption = None,
    subject: Annotated[str | None, typer.Option(help="Only about this: result:ID, recipe:ID, store.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0 for all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, the newest first.")] = False,
) -> None:
    """Who changed what, when and why."""
    with exit_codes():
        from auroraedge.store.console import audit_view

        with open_store(store, images) as opened:
            entries = opened.audit_trail(subject=subject, limit=limit or None)
            if as_json:
                for entry in entries:
                    typer.echo(_dump(dataclasses.asdict(entry)))
            else:
                open_console().print(audit_view(list(entries)))
