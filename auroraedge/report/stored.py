"""Reports of results that are there already: in a result store, or in the results.jsonl of an earlier report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from auroraedge.errors import InvalidRequestError, RecipeError, RecipeNotFoundError
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.inspection.results import Defect, InspectionResult, Verdict
from auroraedge.report.inputs import InputItem, SkippedFile
from auroraedge.report.outputs import Draft, ReportOptions, prepare, write_report
from auroraedge.report.pictures import FolderPictures, NoPictures, Pictures, StorePictures
from auroraedge.report.runner import ReportSummary, make_folder
from auroraedge.report.statistics import Entry
from auroraedge.report.words import Words
from auroraedge.store.types import ResultFilter, Review, StoredResult

if TYPE_CHECKING:
    from auroraedge.store import Store

_FILTERS = ("line", "lot", "part_id", "station", "camera", "job", "recipe_id")


def run_store_report(
    store: Store,
    where: ResultFilter,
    out_dir: Path,
    options: ReportOptions,
    *,
    source: str = "",
    generated_at: datetime | None = None,
) -> ReportSummary:
    """Reports the results of `store` that meet `where`, in the order in which they were stored.

    A review counts in place of the model's verdict, and is shown. source: what the report calls the store.
    Interrupting leaves an earlier report as it is; nothing is inspected, so a second run has nothing to catch up.
    """
    prepare(options)
    make_folder(out_dir)
    t = options.words()
    others = store.count(replace(where, purposes=None)) - store.count(where) if where.purposes is not None else 0
    notes = []
    if others:
        notes.append(t("{n} golden-part checks and study results are not counted.", n=t.count(others)))
    conditions = _conditions(where, t)
    draft = Draft(
        title=_title(where, options.template, t),
        source=" · ".join(part for part in (source or t("result store"), conditions) if part),
        find_recipes=lambda names: _recipes(store, names),
        notes=tuple(notes),
        generated_at=generated_at,
    )
    entries = (_entry(stored, number) for number, stored in enumerate(store.results(where), start=1))
    report = write_report(draft, entries, StorePictures(store), out_dir, options, own_results=False)
    return ReportSummary(out_dir=out_dir, report=report, inspected=0, reused=report.figures.total)


def _entry(stored: StoredResult, number: int) -> Entry:
    result = stored.result
    name = result.image_name or result.request.request_id or result.result_id
    return Entry(
        item=InputItem(name=name, path=Path(), request=result.request),
        result=result,
        number=number,
        review=stored.review,
        image_sha256=stored.image_sha256,
        reference_sha256=stored.reference_sha256,
    )


def _recipes(store: Store, names: Iterable[str]) -> tuple[Recipe, ...]:
    """The recipes of the store, else the built-in ones: they give labels their titles."""
    found = {recipe.id: recipe for recipe in store.recipes()}
    return tuple(recipe for name in names for recipe in ([found[name]] if name in found else _built_in([name])))


def _built_in(names: Iterable[str], folders: tuple[Path, ...] = ()) -> tuple[Recipe, ...]:
    found = []
    for name in names:
        try:
            found.append(load_recipe(name, folders))
        except (RecipeNotFoundError, RecipeError):
            continue
    return tuple(found)


def _values(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(str(v) for v in value)


def _conditions(where: ResultFilter, t: Words) -> str:
    """The filter in words."""
    parts = []
    if where.since and where.until:
        parts.append(t.span(where.since, where.until))
    elif where.since:
        parts.append(t("since {time}", time=f"{t.time(where.since)} {t.time_zone}"))
    elif where.until:
        parts.append(t("until {time}", time=f"{t.time(where.until)} {t.time_zone}"))
    names = {"part_id": "part", "recipe_id": "recipe"}
    for name in _FILTERS:
        value = getattr(where, name)
        if value is not None:
            parts.append(f"{t(names.get(name, name))} {_values(value)}")
    if where.effective_verdicts is not None:
        parts.append(_values(where.effective_verdicts))
    return " · ".join(parts)


def _title(where: ResultFilter, template: str, t: Words) -> str:
    if template == "part" and where.part_id:
        return f"{t('Part')} {_values(where.part_id)}"
    if template == "lot" and where.lot:
        return f"{t('Lot')} {_values(where.lot)}"
    if template == "shift":
        line = f"{t('Line')} {_values(where.line)}" if where.line else t("All lines")
        when = t.span(where.since, where.until) if where.since and where.until else ""
        return f"{line}, {when}" if when else line
    return _conditions(where, t) or t("All results")


class _StoredReview(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Verdict
    reviewer: str
    at: AwareDatetime
    reason: str
    defects: tuple[Defect, ...] | None = None


class _Line(BaseModel):
    """A line of results.jsonl, of an inspection or of a store's report."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    file: str
    reference: str | None = None
    review: _StoredReview | None = None
    result: InspectionResult


class _Lines:
    """The results of a file. `damaged`: lines that cannot be read, by number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged: list[int] = []

    def newest(self) -> dict[str, int]:
        """The place of the newest line of each file with the same recipe: a failure that was mended is not counted."""
        places: dict[str, int] = {}
        with self.path.open("rb") as file:
            place = 0
            for number, raw in enumerate(file, start=1):
                try:
                    line = _Line.model_validate_json(raw)
                except ValidationError:
                    self.damaged.append(number)
                else:
                    # Moved to the end: the order is that of the newest lines.
                    key = line.result.result_id if line.review else f"{line.file}\0{line.result.recipe_id}"
                    key += f"\0{line.result.request.part_id}\0{line.result.request.request_id}"
                    places.pop(key, None)
                    places[key] = place
                place += len(raw)
        return places

    def entries(self, places: list[int]) -> Iterator[Entry]:
        with self.path.open("rb") as file:
            for number, place in enumerate(places, start=1):
                file.seek(place)
                line = _Line.model_validate_json(file.readline())
                review = (
                    None
                    if line.review is None
                    else Review(
                        number=number,
                        result_id=line.result.result_id,
                        at=line.review.at,
                        reviewer=line.review.reviewer,
                        verdict=line.review.verdict,
                        reason=line.review.reason,
                        defects=line.review.defects,
                    )
                )
                item = InputItem(
                    name=line.file,
                    path=Path(line.file),
                    reference=Path(line.reference) if line.reference else None,
                    request=line.result.request,
                )
                yield Entry(item=item, result=line.result, number=number, review=review)


def run_results_report(
    path: Path,
    out_dir: Path,
    options: ReportOptions,
    *,
    images: Path | None = None,
    references: Path | None = None,
    generated_at: datetime | None = None,
    recipe_dirs: tuple[Path, ...] = (),
) -> ReportSummary:
    """Reports a results.jsonl without inspecting anything. images, references: folders of the pictures by name."""
    prepare(options)
    if path.resolve().parent == out_dir.resolve():
        raise InvalidRequestError(
            f"{path} lies in the report's folder.", field="out_dir", remedy="Name another folder with --out."
        )
    make_folder(out_dir)
    t = options.words()
    lines = _Lines(path)
    places = list(lines.newest().values())
    pictures: Pictures = FolderPictures(images, references) if images is not None else NoPictures()
    reason = t("the line cannot be read")
    draft = Draft(
        title=path.resolve().parent.name or path.name,
        source=str(path),
        references=str(references) if references else None,
        find_recipes=lambda names: _built_in(names, recipe_dirs),
        skipped=tuple(SkippedFile(name=f"{path.name}:{number}", reason=reason) for number in lines.damaged),
        generated_at=generated_at,
    )
    report = write_report(draft, lines.entries(places), pictures, out_dir, options, own_results=False)
    return ReportSummary(out_dir=out_dir, report=report, inspected=0, reused=report.figures.total)
