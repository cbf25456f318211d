"""Parts with a known standard, and the model's judgement of them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from auroraedge.errors import (
    AuroraEdgeError,
    DuplicateResultError,
    InvalidImageError,
    RecipeNotFoundError,
    RequestIdConflictError,
    ResultNotFoundError,
    StudyError,
)
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.inspection.results import InspectionResult, RequestInfo, Verdict, error_result
from auroraedge.studies.ratings import Rating, RatingSet, parse_verdict

if TYPE_CHECKING:
    from auroraedge.store import NewResult, Purpose, Store

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
_COLUMNS = "image, standard, and optionally part, reference"
# Results that are recorded together.
_GROUP = 16


@dataclass(frozen=True, kw_only=True)
class Part:
    """One picture of a part whose truth is known. Several pictures of one part are several trials of it."""

    part: str
    image: Path
    standard: Verdict
    reference: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A part with what the model said. `frame`: the picture's bytes; empty when the file could not be read."""

    part: Part
    trial: int
    result: InspectionResult
    frame: bytes


class Inspecting(Protocol):
    """Whoever inspects: an engine here or a server."""

    name: str
    model_id: str
    engine_sha256: str

    def recipe(self, id_or_path: str) -> Recipe: ...

    def inspect(
        self, image: bytes, recipe: Recipe, *, reference: bytes | None, request: RequestInfo, image_name: str
    ) -> InspectionResult: ...


class _Local:
    def __init__(self, inspector: Any) -> None:
        self._inspector = inspector
        self.model_id: str = inspector.engine.model_id
        self.engine_sha256: str = inspector.engine.engine_sha256
        self.name = f"{self.model_id} {self.engine_sha256[:8]}"

    def recipe(self, id_or_path: str) -> Recipe:
        return load_recipe(id_or_path)

    def inspect(
        self, image: bytes, recipe: Recipe, *, reference: bytes | None, request: RequestInfo, image_name: str
    ) -> InspectionResult:
        found: InspectionResult = self._inspector.inspect(
            image, recipe, reference=reference, request=request, image_name=image_name
        )
        return found


class _Server:
    def __init__(self, client: Any) -> None:
        self._client = client
        info = client.server_info()
        self.model_id: str = info.model_id
        self.engine_sha256: str = info.engine_sha256
        self.name = f"{self.model_id} {self.engine_sha256[:8]}"
        self._recipes: dict[str, Recipe] = {recipe.id: recipe for recipe in client.recipes()}

    def recipe(self, id_or_path: str) -> Recipe:
        if id_or_path not in self._recipes:
            known = ", ".join(sorted(self._recipes)) or "none"
            raise RecipeNotFoundError(f"The server has no recipe '{id_or_path}' (it has: {known}).", field="recipe")
        return self._recipes[id_or_path]

    def inspect(
        self, image: bytes, recipe: Recipe, *, reference: bytes | None, request: RequestInfo, image_name: str
    ) -> InspectionResult:
        found: InspectionResult = self._client.inspect(
            image,
            recipe.id,
            reference=reference,
            request=request,
            recipe_version=recipe.version,
            image_name=image_name[-1024:],
        )
        return found


@contextmanager
def open_inspecting(
    *,
    server: str | None = None,
    token: str = "",
    ca: Path | None = None,
    engine: Path | None = None,
    threads: int | None = None,
) -> Iterator[Inspecting]:
    """The server at `server` (host:port), else the engine package, else the embedded one.

    token: what the server knows the caller by. ca: certificate to know the server by; without it nothing is encrypted.
    """
    if server is not None:
        from auroraedge.client import InspectionClient

        with InspectionClient(server, token=token, encrypted=ca is not None, root_certificates=ca) as client:
            yield _Server(client)
        return
    from auroraedge.runtime import Inspector

    with Inspector.open(engine, threads=threads) as inspector:
        yield _Local(inspector)


def read_parts(source: Path) -> list[Part]:
    """Parts of a CSV (columns image, standard, part, reference), or of a folder with subfolders such as ok and ng.

    A part is named by its column, else by its file without suffix. Raises StudyError.
    """
    if source.is_dir():
        parts = _from_folder(source)
    elif source.is_file():
        parts = list(_from_csv(source))
    else:
        raise StudyError(f"There is no file or folder {source}.", field="parts", remedy="Name a CSV or a folder.")
    if not parts:
        raise StudyError(
            f"{source} has no parts with a standard.",
            field="parts",
            remedy=f"A folder has subfolders ok and ng; a CSV has the columns {_COLUMNS}.",
        )
    standards: dict[str, Verdict] = {}
    for part in parts:
        if standards.setdefault(part.part, part.standard) is not part.standard:
            raise StudyError(f"Part {part.part} is both OK and NG.", field="standard")
    return parts


def _from_folder(folder: Path) -> list[Part]:
    parts = []
    for group in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            standard = parse_verdict(group.name, str(group))
        except StudyError:
            continue
        parts += [
            Part(part=path.stem, image=path, standard=standard)
            for path in sorted(group.rglob("*"))
            if path.suffix.lower() in _SUFFIXES and path.is_file()
        ]
    return parts


def _from_csv(path: Path) -> Iterator[Part]:
    text = path.read_text(encoding="utf-8-sig")
    header = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    for row in reader:
        cells = {(k or "").strip().lower(): v.strip() for k, v in row.items() if isinstance(v, str) and v.strip()}
        if not cells:
            continue
        where = f"{path.name}, line {reader.line_num}"
        if "image" not in cells or "standard" not in cells:
            raise StudyError(f"{where}: no image or no standard.", field="parts", remedy=f"Columns: {_COLUMNS}.")
        standard = parse_verdict(cells["standard"], where)
        if standard not in (Verdict.OK, Verdict.NG):
            raise StudyError(f"{where}: a standard is OK or NG, not {standard.value}.", field="standard")
        image = path.parent / cells["image"].replace("\\", "/")
        reference = cells.get("reference")
        yield Part(
            part=cells.get("part") or cells.get("part_id") or image.stem,
            image=image,
            standard=standard,
            reference=path.parent / reference.replace("\\", "/") if reference else None,
        )


def judge(
    inspecting: Inspecting,
    parts: Sequence[Part],
    recipe: Recipe,
    *,
    repeat: int = 1,
    name: str,
    purpose: Purpose,
    store: Store | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Judged]:
    """Inspects every picture `repeat` times, round by round, as people do. A failure is an ERROR, never left out.

    purpose: why; the requests carry it in their job, so that a server which records them does not take them for
    production. name: of the challenge or study. store: where to record the results.
    """
    from auroraedge.store import NewResult

    job = f"{purpose.value}:{name}"
    found: list[Judged] = []
    counts: Counter[str] = Counter()
    waiting: list[NewResult] = []
    total = len(parts) * repeat
    for _ in range(repeat):
        for part in parts:
            counts[part.part] += 1
            request = RequestInfo(part_id=part.part[:256], job=job[:256])
            frame = reference = b""
            try:
                frame = _read(part.image)
                reference = _read(part.reference) if part.reference else b""
                result = inspecting.inspect(
                    frame, recipe, reference=reference or None, request=request, image_name=part.image.name
                )
            except AuroraEdgeError as error:
                result = error_result(error, recipe, request=request, image_name=part.image.name)
            found.append(Judged(part=part, trial=counts[part.part], result=result, frame=frame))
            if store is not None:
                waiting.append(
                    NewResult(result=result, image=frame or None, reference=reference or None, purpose=purpose)
                )
                if len(waiting) == _GROUP:
                    _record(store, waiting)
                    waiting = []
            on_progress(len(found), total)
    if store is not None and waiting:
        _record(store, waiting)
    return found


def _record(store: Store, entries: Sequence[NewResult]) -> None:
    """Records results; a server that keeps the same store has recorded its own already."""
    for entry, recorded in zip(entries, store.record_group(entries), strict=True):
        outcome = recorded
        if isinstance(recorded, DuplicateResultError | RequestIdConflictError):
            try:
                outcome = store.get(entry.result.result_id)
            except ResultNotFoundError:
                raise recorded from None
        if isinstance(outcome, AuroraEdgeError):
            raise outcome
        if outcome.purpose is not entry.purpose:
            raise StudyError(
                f"The server recorded part {entry.result.request.part_id} as {outcome.purpose.value}.",
                field="server",
                remedy="Update the server, so that golden parts do not count as production.",
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidImageError(
            f"{path} cannot be read: {error.strerror}.", field="image", remedy="Put the file in place."
        ) from error


def as_ratings(judged: Sequence[Judged], name: str, source: str, repeat: int) -> RatingSet:
    """The model's judgements as an appraiser's."""
    notes = []
    if repeat > 1:
        notes.append(
            f"{name} judged each picture {repeat} times: that shows the model alone. Whether camera, light and placing "
            "repeat themselves takes several pictures of each part."
        )
    errors = sum(item.result.verdict is Verdict.ERROR for item in judged)
    if errors:
        first = next(item.result for item in judged if item.result.verdict is Verdict.ERROR)
        reason = first.error.message if first.error else "no reason"
        notes.append(
            f"{errors} pictures could not be inspected and count as undecided, e.g. {first.image_name}: {reason}"
        )
    ratings = tuple(
        Rating(part=item.part.part, appraiser=name, trial=item.trial, verdict=item.result.verdict) for item in judged
    )
    standards = {item.part.part: item.part.standard for item in judged}
    return RatingSet(ratings=ratings, standards=standards, sources=(source,), notes=tuple(notes))
