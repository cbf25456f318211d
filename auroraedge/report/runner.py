"""Inspects many images and writes the report. Can be interrupted at any moment and continued."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from auroraedge.errors import (
    AuroraEdgeError,
    EngineError,
    InvalidImageError,
    InvalidRequestError,
    MissingDependencyError,
    QueueFullError,
    ServerUnavailableError,
)
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import InspectionResult, Verdict, error_result
from auroraedge.report import statistics, tables
from auroraedge.report.backend import LocalBackend, ServerBackend, as_backend
from auroraedge.report.gallery import PageLimits
from auroraedge.report.inputs import InputItem, InputSet, SkippedFile, collect_inputs
from auroraedge.report.journal import Journal, Record, read_file, record_key, write_atomically
from auroraedge.report.page import Report, render_page
from auroraedge.report.statistics import Entry

RESULTS = "results.jsonl"
OUTPUTS = ("images.csv", "defects.csv", "coco.json", "summary.json", "report.html")
# Not the fault of one image: going on would only fail for all the others too.
_FATAL = (EngineError, ServerUnavailableError, MissingDependencyError, QueueFullError)


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """What a run did. `reused`: images whose result was there already. `stopped_by`: why it ended early."""

    out_dir: Path
    report: Report
    inspected: int
    reused: int
    interrupted: bool = False
    stopped_by: AuroraEdgeError | None = None

    @property
    def page(self) -> Path:
        return self.out_dir / "report.html"

    @property
    def counts(self) -> dict[Verdict, int]:
        return statistics.verdict_counts(self.report.entries)


def run_report(
    source: str | Path,
    out_dir: Path,
    recipe: Recipe | str | None,
    inspector_or_client: Any,
    *,
    references: Path | None = None,
    title: str | None = None,
    language: str = "en",
    generated_at: datetime | None = None,
    recipe_dirs: Sequence[Path] = (),
    limits: PageLimits | None = None,
    console: Console | None = None,
) -> ReportSummary:
    """Inspects the images of `source` and writes results.jsonl, CSVs, coco.json, summary.json, report.html.

    source: folder (recursive), image, glob pattern or CSV manifest (see collect_inputs).
    recipe: for every image whose manifest row names none; may be None when all do.
    inspector_or_client: auroraedge.runtime.Inspector or auroraedge.client.InspectionClient.
    references: folder with golden samples of the same names. language: of the labels, where the recipe has titles.
    generated_at: the time printed in the report (now); all else depends on the inputs and results.jsonl alone.
    console: shows a progress bar there (none: silent).

    An image that cannot be inspected becomes an ERROR result and is tried again by the next run. A result in
    results.jsonl is used again when path, image, golden sample, recipe, engine and request are the same.
    On Ctrl-C, or when the engine or the server fails, the report of what is done is written and the summary says so.
    Raises InvalidRequestError, RecipeNotFoundError or RecipeError before anything is inspected.
    """
    backend = as_backend(inspector_or_client, recipe_dirs)
    inputs = collect_inputs(source, references=references, exclude=out_dir)
    recipes = _Recipes(backend, recipe)
    items, skipped = recipes.resolve_all(inputs)
    _make_folder(out_dir)
    with Journal(out_dir / RESULTS) as journal:
        run = _Run(backend, journal, console)
        entries = run.inspect_all(items)
        notes = [*inputs.notes, *_journal_notes(journal)]
        report = Report(
            title=title or _title(inputs.source),
            generated_at=generated_at or datetime.now(UTC),
            source=inputs.source,
            references=str(references) if references else None,
            recipes=tuple(sorted(recipes.used.values(), key=lambda r: r.id)),
            model_id=backend.model_id,
            engine_sha256=backend.engine_sha256,
            entries=tuple(entries),
            skipped=(*inputs.skipped, *skipped),
            notes=tuple(notes),
            planned=len(items),
            language=language,
        )
        write_outputs(report, out_dir, limits)
    return ReportSummary(
        out_dir=out_dir,
        report=report,
        inspected=run.inspected,
        reused=run.reused,
        interrupted=run.interrupted,
        stopped_by=run.stopped_by,
    )


def write_outputs(report: Report, out_dir: Path, limits: PageLimits | None = None) -> None:
    """Writes the files of OUTPUTS, each in one step. The same report gives the same bytes."""
    entries = report.entries
    contents = (
        tables.images_csv(entries),
        tables.defects_csv(entries),
        tables.coco_json(entries, statistics.all_labels(report.recipes)),
        tables.summary_json(
            entries,
            skipped=len(report.skipped),
            is_complete=report.is_complete,
            generated_at=report.generated_at.astimezone(UTC).isoformat(),
        ),
        render_page(report, limits),
    )
    for name, content in zip(OUTPUTS, contents, strict=True):
        write_atomically(out_dir / name, content)


def _make_folder(out_dir: Path) -> None:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(
            f"{out_dir} cannot be made: {error.strerror or error}.",
            field="out_dir",
            remedy="Name a folder that you may write to.",
        ) from error


def _title(source: str) -> str:
    path = Path(source)
    path = path.resolve()
    return path.name if path.is_dir() else f"{path.parent.name}/{path.name}"


def _journal_notes(journal: Journal) -> list[str]:
    if not journal.damaged:
        return []
    return [f"{journal.damaged} unreadable lines of {RESULTS} were ignored; their images were inspected again."]


class _Recipes:
    """The recipe of each item, each looked up once."""

    def __init__(self, backend: LocalBackend | ServerBackend, default: Recipe | str | None) -> None:
        self._backend = backend
        self.used: dict[str, Recipe] = {}
        self._found: dict[str, Recipe | AuroraEdgeError] = {}
        if isinstance(default, Recipe):
            self._default: Recipe | None = backend.check(default) if isinstance(backend, ServerBackend) else default
        else:
            self._default = backend.recipe(default) if default is not None else None

    def resolve_all(self, inputs: InputSet) -> tuple[list[tuple[InputItem, Recipe]], list[SkippedFile]]:
        resolved, skipped = [], []
        for item in inputs.items:
            recipe = self._resolve(item)
            if isinstance(recipe, AuroraEdgeError):
                skipped.append(SkippedFile(name=item.name, reason=recipe.message))
            else:
                self.used[recipe.sha256] = recipe
                resolved.append((item, recipe))
        if self._default is not None and not self.used:
            self.used[self._default.sha256] = self._default
        return resolved, skipped

    def _resolve(self, item: InputItem) -> Recipe | AuroraEdgeError:
        if item.recipe is None:
            if self._default is None:
                raise InvalidRequestError(
                    f"No recipe for {item.name}.",
                    field="recipe",
                    remedy="Name a recipe, or give each row of the manifest one.",
                )
            return self._default
        if item.recipe not in self._found:
            try:
                self._found[item.recipe] = self._backend.recipe(item.recipe)
            except AuroraEdgeError as error:
                self._found[item.recipe] = error
        return self._found[item.recipe]


class _Run:
    """One pass over the items: reuse what the journal has, inspect the rest."""

    def __init__(self, backend: LocalBackend | ServerBackend, journal: Journal, console: Console | None) -> None:
        self._backend = backend
        self._journal = journal
        self._console = console
        self.inspected = 0
        self.reused = 0
        self.interrupted = False
        self.stopped_by: AuroraEdgeError | None = None

    def inspect_all(self, items: Sequence[tuple[InputItem, Recipe]]) -> list[Entry]:
        entries: list[Entry] = []
        counts: Counter[Verdict] = Counter()
        with _progress(self._console) as progress:
            task = progress.add_task("", total=len(items), verdicts="")
            try:
                for item, recipe in items:
                    result = self._one(item, recipe)
                    entries.append(Entry(item=item, result=result))
                    counts[result.verdict] += 1
                    shown = "  ".join(f"{verdict} {counts[verdict]}" for verdict in Verdict if counts[verdict])
                    progress.update(task, advance=1, verdicts=shown)
            except KeyboardInterrupt:
                self.interrupted = True
            except _FATAL as error:
                self.stopped_by = error
        return entries

    def _one(self, item: InputItem, recipe: Recipe) -> InspectionResult:
        image, reference, failure = _read(item)
        key = record_key(
            file=item.name,
            image_sha256=_sha(image) or "",
            reference_sha256=_sha(reference),
            recipe_sha256=recipe.sha256,
            engine_sha256=self._backend.engine_sha256,
            request=item.request,
        )
        before = self._journal.records.get(key)
        if before is not None and before.result.verdict is not Verdict.ERROR:
            self.reused += 1
            return before.result
        if failure is not None:
            result = error_result(failure, recipe, request=item.request, image_name=item.name)
        else:
            assert image is not None
            result = self._inspect(item, recipe, image, reference)
        self.inspected += 1
        if before is not None and before.result.error == result.error and result.error is not None:
            return before.result  # the same failure again: nothing new to write down
        self._journal.append(
            Record(
                key=key,
                file=item.name,
                reference=item.reference.name if item.reference else None,
                reference_sha256=_sha(reference),
                result=result,
            )
        )
        return result

    def _inspect(self, item: InputItem, recipe: Recipe, image: bytes, reference: bytes | None) -> InspectionResult:
        attempts = 5
        while True:
            attempts -= 1
            try:
                # A recipe that takes no golden sample is not given one, so that one folder serves several recipes.
                golden = None if recipe.golden_reference == "none" else reference
                return self._backend.inspect(
                    image, recipe, reference=golden, request=item.request, image_name=item.name
                )
            except QueueFullError as error:
                if attempts == 0:
                    raise
                time.sleep(error.retry_after_s or 1.0)
            except _FATAL:
                raise
            except AuroraEdgeError as error:
                return error_result(error, recipe, request=item.request, image_name=item.name)
            except Exception as error:  # one image that nobody foresaw must not cost the other thousand
                unforeseen = AuroraEdgeError(f"Unforeseen {type(error).__name__}: {error}.")
                return error_result(unforeseen, recipe, request=item.request, image_name=item.name)


def _sha(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _read(item: InputItem) -> tuple[bytes | None, bytes | None, InvalidImageError | None]:
    """The bytes of the image and of its golden sample, or why they cannot be read."""
    image = reference = None
    try:
        image = read_file(item.path, "image")
        if item.reference is not None:
            reference = read_file(item.reference, "reference")
    except InvalidImageError as error:
        return image, None, error
    return image, reference, None


def _progress(console: Console | None) -> Progress:
    return Progress(
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[verdicts]}", markup=False),
        TimeRemainingColumn(),
        console=console or Console(quiet=True),
        disable=console is None,
    )
