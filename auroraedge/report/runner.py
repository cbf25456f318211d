"""Inspects many images and writes the report. Can be interrupted at any moment and continued."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
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
from auroraedge.report.backend import LocalBackend, ServerBackend, as_backend
from auroraedge.report.gallery import PageLimits
from auroraedge.report.inputs import InputItem, InputSet, Sampling, SkippedFile, collect_inputs
from auroraedge.report.journal import Journal, Record, read_file, record_key
from auroraedge.report.outputs import RESULTS, Draft, ReportOptions, prepare, write_report
from auroraedge.report.page import Report
from auroraedge.report.pictures import FilePictures
from auroraedge.report.statistics import Entry
from auroraedge.report.video import FrameReader
from auroraedge.report.words import Words

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
        return self.report.figures.counts


def run_report(
    source: str | Path,
    out_dir: Path,
    recipe: Recipe | str | None,
    inspector_or_client: Any,
    *,
    references: Path | None = None,
    generated_at: datetime | None = None,
    recipe_dirs: Sequence[Path] = (),
    console: Console | None = None,
    sampling: Sampling | None = None,
    title: str | None = None,
    language: str = "en",
    limits: PageLimits | None = None,
    options: ReportOptions | None = None,
) -> ReportSummary:
    """Inspects the images of `source` and writes results.jsonl and the report beside it.

    source: folder (recursive), image, glob pattern, CSV manifest or video (see collect_inputs; `sampling` says which
    frames). recipe: for every image whose manifest row names none; may be None when all do.
    inspector_or_client: auroraedge.runtime.Inspector or auroraedge.client.InspectionClient.
    references: folder with golden samples of the same names.
    generated_at: the time printed in the report; without it the newest result's, so that a second report is the same.
    console: shows a progress bar there (none: silent). options: what to write and how; without them title,
    language and limits count.

    An image that cannot be inspected becomes an ERROR result and is tried again by the next run. A result in
    results.jsonl is used again when path, image, golden sample, recipe, engine and request are the same.
    On Ctrl-C, or when the engine or the server fails, the report of what is done is written and the summary says so.
    Raises InvalidRequestError, RecipeNotFoundError or RecipeError before anything is inspected.
    """
    options = options or ReportOptions(title=title, language=language, limits=limits or PageLimits())
    prepare(options)
    backend = as_backend(inspector_or_client, recipe_dirs)
    inputs = collect_inputs(source, references=references, exclude=out_dir, sampling=sampling)
    recipes = _Recipes(backend, recipe)
    items, skipped = recipes.resolve_all(inputs)
    make_folder(out_dir)
    with Journal(out_dir / RESULTS) as journal:
        run = _Run(backend, journal, console)
        pictures = FilePictures(run.frames)
        try:
            done = run.inspect_all(items)
            draft = Draft(
                title=_title(inputs.source),
                source=inputs.source,
                references=str(references) if references else None,
                recipes=tuple(sorted(recipes.used.values(), key=lambda r: r.id)),
                model_id=backend.model_id,
                engine_sha256=backend.engine_sha256,
                skipped=(*inputs.skipped, *skipped, *run.skipped),
                notes=(*inputs.notes, *_journal_notes(journal, options.words())),
                planned=len(items) - len(run.skipped),
                generated_at=generated_at,
            )
            report = write_report(draft, done, pictures, out_dir, options)
        finally:
            pictures.close()
    return ReportSummary(
        out_dir=out_dir,
        report=report,
        inspected=run.inspected,
        reused=run.reused,
        interrupted=run.interrupted,
        stopped_by=run.stopped_by,
    )


def make_folder(out_dir: Path) -> None:
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


def _journal_notes(journal: Journal, t: Words) -> list[str]:
    if not journal.damaged:
        return []
    text = "{n} unreadable lines of {file} were ignored; their images were inspected again."
    return [t(text, n=journal.damaged, file=RESULTS)]


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
        self.frames = FrameReader()
        self.skipped: list[SkippedFile] = []
        self.inspected = 0
        self.reused = 0
        self.interrupted = False
        self.stopped_by: AuroraEdgeError | None = None

    def inspect_all(self, items: Sequence[tuple[InputItem, Recipe]]) -> Iterator[Entry]:
        """Inspects, then gives the results in the order of the items: each is read when asked for."""
        done: list[tuple[InputItem, str]] = []
        counts: Counter[Verdict] = Counter()
        with _progress(self._console) as progress:
            task = progress.add_task("", total=len(items), verdicts="")
            try:
                for item, recipe in items:
                    found = self._one(item, recipe)
                    if found is None:
                        continue
                    key, verdict = found
                    done.append((item, key))
                    counts[verdict] += 1
                    shown = "  ".join(f"{verdict} {counts[verdict]}" for verdict in Verdict if counts[verdict])
                    progress.update(task, advance=1, verdicts=shown)
            except KeyboardInterrupt:
                self.interrupted = True
            except _FATAL as error:
                self.stopped_by = error
        return self._entries(done)

    def _entries(self, done: Sequence[tuple[InputItem, str]]) -> Iterator[Entry]:
        for number, (item, key) in enumerate(done, start=1):
            record = self._journal.get(key)
            assert record is not None
            yield Entry(item=item, result=record.result, number=number)

    def _one(self, item: InputItem, recipe: Recipe) -> tuple[str, Verdict] | None:
        """The key and the verdict of one item; None for a frame that its video turns out not to have."""
        try:
            image, reference, failure = self._read(item)
        except InvalidImageError as error:
            self.skipped.append(SkippedFile(name=item.name, reason=error.message))
            return None
        key = record_key(
            file=item.name,
            image_sha256=_sha(image) or "",
            reference_sha256=_sha(reference),
            recipe_sha256=recipe.sha256,
            engine_sha256=self._backend.engine_sha256,
            request=item.request,
        )
        before = self._journal.get(key)
        if before is not None and before.result.verdict is not Verdict.ERROR:
            self.reused += 1
            return key, before.result.verdict
        if failure is not None:
            result = error_result(failure, recipe, request=item.request, image_name=item.name)
        else:
            assert image is not None
            result = self._inspect(item, recipe, image, reference)
        self.inspected += 1
        if before is not None and before.result.error == result.error and result.error is not None:
            return key, before.result.verdict  # the same failure again: nothing new to write down
        self._journal.append(
            Record(
                key=key,
                file=item.name,
                reference=item.reference.name if item.reference else None,
                reference_sha256=_sha(reference),
                result=result,
            )
        )
        return key, result.verdict

    def _read(self, item: InputItem) -> tuple[bytes | None, bytes | None, InvalidImageError | None]:
        """The bytes of the image and of its golden sample, or why they cannot be read."""
        image = reference = None
        # Frames are counted from what the file says of itself, which may be a few too many: no failure of a part.
        frame = None if item.frame is None else self.frames.read(item.path, item.frame)
        try:
            image = read_file(item.path, "image") if frame is None else frame
            if item.reference is not None:
                reference = read_file(item.reference, "reference")
        except InvalidImageError as error:
            return image, None, error
        return image, reference, None

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


def _progress(console: Console | None) -> Progress:
    return Progress(
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[verdicts]}", markup=False),
        TimeRemainingColumn(),
        console=console or Console(quiet=True),
        disable=console is None,
    )
