"""Export and import: one zip file with everything in open formats.

    results.jsonl   a line a result: the document, when and by whom it was stored, picture addresses, its reviews
    recipes.jsonl, engines.jsonl, studies.jsonl, audit.jsonl
    images/ab/abcdef...jpg
    manifest.json   format, store id, counts, SHA-256 of each .jsonl; written last, so that half a file has none

Importing never changes what is there: a result, review, recipe version or audit entry that is known is left alone, one
that contradicts is told. So an import that was cut short is simply repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

import auroraedge
from auroraedge.errors import AuroraEdgeError, InvalidRequestError, StoreDamagedError
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Defect, InspectionResult, Verdict
from auroraedge.store import schema
from auroraedge.store.audit import append_audit
from auroraedge.store.database import SCHEMA_VERSION, store_error
from auroraedge.store.images import Picture, sync_folder
from auroraedge.store.recording import Draft, insert_results, sort_out
from auroraedge.store.rows import conditions, dump_defects, dump_json, plain, select_in
from auroraedge.store.types import NewResult, Purpose, ResultFilter, StoredResult

if TYPE_CHECKING:
    from auroraedge.store.store import Store

_PAGE = 500
# Results and their pictures that are imported in one transaction.
_BATCH = 200
_TABLES = ("results", "recipes", "engines", "studies", "audit")
_CONFLICTS_TOLD = 100


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """What was written, or what was new to the store. skipped: known already; missing_images: without their file."""

    results: int = 0
    reviews: int = 0
    images: int = 0
    recipes: int = 0
    engines: int = 0
    studies: int = 0
    audit_entries: int = 0
    skipped: int = 0
    missing_images: int = 0
    conflict_count: int = 0
    conflicts: tuple[str, ...] = ()


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Manifest(_Model):
    format: Literal[1]
    auroraedge: str
    schema_version: str
    store_id: str
    exported_at: AwareDatetime
    sha256: dict[str, str]
    counts: dict[str, int]


class _Review(_Model):
    at: AwareDatetime
    reviewer: str
    verdict: Verdict
    reason: str
    defects: tuple[Defect, ...] | None = None


class _Result(_Model):
    seq: int
    stored_at: AwareDatetime
    purpose: Purpose
    principal: str
    fingerprint: str
    image: str | None
    reference: str | None
    result: InspectionResult
    reviews: tuple[_Review, ...] = ()


class _Recipe(_Model):
    at: AwareDatetime
    who: str
    why: str
    recipe: Recipe


class _Engine(_Model):
    at: AwareDatetime
    engine_sha256: str
    model_id: str
    target: str
    who: str
    why: str
    details: dict[str, Any]


class _Study(_Model):
    study_id: str
    at: AwareDatetime
    kind: str
    name: str
    who: str
    passed: bool | None
    document: dict[str, Any]


class _Audit(_Model):
    origin: str
    at: AwareDatetime
    who: str
    action: str
    subject: str
    old: Any
    new: Any
    why: str
    sha256: str


# -- export --------------------------------------------------------------------------------------------------------


def export_store(store: Store, path: Path, where: ResultFilter) -> TransferReport:
    """Writes the zip beside `path` and renames it there when it is complete. Memory does not grow with the store.

    A picture that retention removed is left out; a file that is damaged raises StoreDamagedError.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, allowZip64=True, compresslevel=1) as archive:
                report = _Export(store, archive, where).run()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise store_error(error, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return report


class _Export:
    def __init__(self, store: Store, archive: zipfile.ZipFile, where: ResultFilter) -> None:
        self._store = store
        self._archive = archive
        self._where = where
        self._sha256: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._reviews = 0

    def run(self) -> TransferReport:
        # What is stored while this runs stays out: every table ends where it ended at the start.
        with self._store.database.read() as connection:
            last_seq = int(connection.scalar(sa.select(sa.func.max(schema.results.c.seq))) or 0)
        chosen = sa.and_(schema.results.c.seq <= last_seq, *conditions(self._where))
        self._lines("results", self._results(chosen))
        for name, lines in (
            ("recipes", self._recipes()),
            ("engines", self._numbered(schema.engines, ("details",))),
            ("studies", self._numbered(schema.studies, ("document",))),
            ("audit", self._audit()),
        ):
            self._lines(name, lines)
        images, missing = self._images(chosen)
        manifest = _Manifest(
            format=1,
            auroraedge=auroraedge.__version__,
            schema_version=SCHEMA_VERSION,
            store_id=self._store.store_id,
            exported_at=datetime.now(UTC),
            sha256=self._sha256,
            counts={**self._counts, "images": images},
        )
        self._archive.writestr("manifest.json", manifest.model_dump_json(indent=2))
        return TransferReport(
            results=self._counts["results"],
            reviews=self._reviews,
            images=images,
            recipes=self._counts["recipes"],
            engines=self._counts["engines"],
            studies=self._counts["studies"],
            audit_entries=self._counts["audit"],
            missing_images=missing,
        )

    def _lines(self, name: str, lines: Iterable[str]) -> None:
        digest, count = hashlib.sha256(), 0
        with self._archive.open(f"{name}.jsonl", "w", force_zip64=True) as file:
            for line in lines:
                data = line.encode() + b"\n"
                digest.update(data)
                file.write(data)
                count += 1
        self._sha256[name] = digest.hexdigest()
        self._counts[name] = count

    def _pages(self, query: sa.Select[Any], key: sa.Column[Any]) -> Iterator[tuple[sa.Connection, list[sa.Row[Any]]]]:
        place: Any = None
        while True:
            page = query.order_by(key).limit(_PAGE)
            if place is not None:
                page = page.where(key > place)
            with self._store.database.read() as connection:
                found = list(connection.execute(page))
                if found:
                    yield connection, found
            if len(found) < _PAGE:
                return
            place = getattr(found[-1], key.name)

    def _results(self, chosen: sa.ColumnElement[bool]) -> Iterator[str]:
        results, reviews = schema.results, schema.reviews
        for connection, page in self._pages(sa.select(results).where(chosen), results.c.seq):
            decided: dict[int, list[dict[str, Any]]] = {}
            query = sa.select(reviews).order_by(reviews.c.number)
            for row in select_in(connection, query, reviews.c.seq, [row.seq for row in page]):
                review = {"at": row.at.isoformat(), "reviewer": row.reviewer, "verdict": row.verdict}
                review |= {"reason": row.reason, "defects": None if row.defects is None else json.loads(row.defects)}
                decided.setdefault(row.seq, []).append(review)
                self._reviews += 1
            for row in page:
                facts = {
                    "seq": row.seq,
                    "stored_at": row.stored_at.isoformat(),
                    "purpose": row.purpose,
                    "principal": row.principal,
                    "fingerprint": row.fingerprint,
                    "image": row.image_sha256,
                    "reference": row.reference_sha256,
                    "reviews": decided.get(row.seq, []),
                }
                # The document goes in as it was stored, to the byte.
                yield f'{dump_json(facts)[:-1]},"result":{row.document}}}'

    def _recipes(self) -> Iterator[str]:
        recipes = schema.recipes
        with self._store.database.read() as connection:
            found = connection.execute(sa.select(recipes).order_by(recipes.c.recipe_id, recipes.c.version)).all()
        for row in found:
            facts = {"at": row.at.isoformat(), "who": row.who, "why": row.why, "recipe": json.loads(row.document)}
            yield dump_json(facts)

    def _numbered(self, table: sa.Table, documents: tuple[str, ...]) -> Iterator[str]:
        for _, page in self._pages(sa.select(table), table.c.number):
            for row in page:
                facts = dict(row._mapping)
                del facts["number"]
                facts["at"] = row.at.isoformat()
                yield dump_json({**facts, **{name: json.loads(facts[name]) for name in documents}})

    def _audit(self) -> Iterator[str]:
        for _, page in self._pages(sa.select(schema.audit), schema.audit.c.number):
            for row in page:
                facts = dict(row._mapping)
                facts["origin"] = row.origin or f"{self._store.store_id}:{row.number}"
                del facts["number"]
                facts["at"] = row.at.isoformat()
                for name in ("old", "new"):
                    facts[name] = None if facts[name] is None else json.loads(facts[name])
                yield dump_json(facts)

    def _images(self, chosen: sa.ColumnElement[bool]) -> tuple[int, int]:
        """Writes the pictures of the chosen results, each once; returns how many, and how many were not there."""
        images, results = schema.images, schema.results
        users = (results.c.image_sha256, results.c.reference_sha256)
        # Not two EXISTS with an OR between them, which PostgreSQL would run for every picture.
        addresses = sa.union_all(*(sa.select(column).where(column.is_not(None), chosen) for column in users))
        used = images.c.sha256.in_(addresses)
        written = missing = 0
        for _, page in self._pages(sa.select(images).where(images.c.removed_at.is_(None), used), images.c.sha256):
            for row in page:
                content = self._store.image(row.sha256)
                if content is None:
                    missing += 1
                    continue
                name = zipfile.ZipInfo(f"images/{row.sha256[:2]}/{row.sha256}{row.suffix}")
                self._archive.writestr(name, content, zipfile.ZIP_STORED)  # compressed already
                written += 1
        return written, missing


# -- import --------------------------------------------------------------------------------------------------------


def import_store(store: Store, path: Path, *, who: str) -> TransferReport:
    """Reads an export into the store. Raises InvalidRequestError for a file that is not a complete export."""
    with _open(path) as archive:
        manifest = _manifest(archive, path)
        for name in _TABLES:
            _verify(archive, f"{name}.jsonl", manifest.sha256.get(name), path)
        run = _Import(store, archive, manifest, path)
        with store.database.errors():
            run.results()
            run.recipes()
            run.engines()
            run.studies()
            run.audit()
        report = run.report()
    store.audit(
        who=who,
        action="store.import",
        subject="store",
        new={"from": manifest.store_id, "exported_at": manifest.exported_at.isoformat(), "results": report.results},
        why=f"import of {path.name}",
    )
    return report


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError) as error:
        raise _not_an_export(path, str(error)) from error
    except FileNotFoundError as error:
        raise InvalidRequestError(f"There is no file {path}.", field="path", remedy="Name an export.") from error
    except OSError as error:
        raise store_error(error, str(path)) from error


def _not_an_export(path: Path, reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{path} is not a complete export: {reason.rstrip('.')}.",
        field="path",
        remedy="Export again: `auroraedge store export FILE.zip`.",
    )


def _manifest(archive: zipfile.ZipFile, path: Path) -> _Manifest:
    try:
        return _Manifest.model_validate_json(archive.read("manifest.json"))
    except KeyError as error:
        raise _not_an_export(path, "it has no manifest.json") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise _not_an_export(path, f"manifest.json: {first['loc']}: {first['msg']}") from error


def _verify(archive: zipfile.ZipFile, name: str, expected: str | None, path: Path) -> None:
    digest = hashlib.sha256()
    try:
        with archive.open(name) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except KeyError as error:
        raise _not_an_export(path, f"{name} is missing") from error
    if digest.hexdigest() != expected:
        raise _not_an_export(path, f"{name} is not what was exported")


class _Import:
    def __init__(self, store: Store, archive: zipfile.ZipFile, manifest: _Manifest, path: Path) -> None:
        self._store = store
        self._archive = archive
        self._manifest = manifest
        self._path = path
        self._names = {PurePosixPath(name).stem: name for name in archive.namelist() if name.startswith("images/")}
        self._counts = dict.fromkeys(("results", "reviews", "images", "recipes", "engines", "studies", "audit"), 0)
        self._skipped = 0
        self._missing = 0
        self._conflicts: list[str] = []
        self._conflict_count = 0

    def report(self) -> TransferReport:
        return TransferReport(
            results=self._counts["results"],
            reviews=self._counts["reviews"],
            images=self._counts["images"],
            recipes=self._counts["recipes"],
            engines=self._counts["engines"],
            studies=self._counts["studies"],
            audit_entries=self._counts["audit"],
            skipped=self._skipped,
            missing_images=self._missing,
            conflict_count=self._conflict_count,
            conflicts=tuple(self._conflicts),
        )

    def _conflict(self, text: str) -> None:
        self._conflict_count += 1
        if len(self._conflicts) < _CONFLICTS_TOLD:
            self._conflicts.append(text)

    def _lines(self, name: str, kind: Callable[[bytes], Any]) -> Iterator[Any]:
        file: IO[bytes]
        with self._archive.open(f"{name}.jsonl") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield kind(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(str(part) for part in first["loc"])
                    raise _not_an_export(self._path, f"{name}.jsonl, line {number}: {where}: {first['msg']}") from error

    def results(self) -> None:
        batch: list[_Result] = []
        for line in self._lines("results", _Result.model_validate_json):
            batch.append(line)
            if len(batch) == _BATCH:
                self._record(batch)
                batch = []
        if batch:
            self._record(batch)

    def _record(self, lines: list[_Result]) -> None:
        drafts = []
        for line in lines:
            image, reference = (self._picture(address) for address in (line.image, line.reference))
            entry = NewResult(
                result=line.result,
                image=image.content if image else None,
                reference=reference.content if reference else None,
                fingerprint=line.fingerprint,
                principal=line.principal,
                purpose=line.purpose,
            )
            drafts.append(Draft.of(entry, image_sha256=line.image, reference_sha256=line.reference))
        database = self._store.database
        with database.read() as connection:
            plans, _ = sort_out(connection, drafts, all_or_none=False)
        wanted = [draft for draft, plan in zip(drafts, plans, strict=True) if isinstance(plan, int)]
        pictures = {picture.sha256: picture for draft in wanted for picture in draft.pictures}
        if pictures:
            self._store.images_folder().put(pictures.values())
        with database.write() as connection:
            plans, fresh = sort_out(connection, drafts, all_or_none=False)
            if pictures:
                self._counts["images"] += self._store.keep_pictures(connection, list(pictures.values()))
            addresses = {a for draft in fresh for a in (draft.image_sha256, draft.reference_sha256) if a is not None}
            self._store.note_removed(connection, addresses - set(pictures))
            moments = [line.stored_at for line, plan in zip(lines, plans, strict=True) if isinstance(plan, int)]
            inserted = insert_results(connection, fresh, moments) if fresh else []
            for line, plan in zip(lines, plans, strict=True):
                self._settle(connection, line, plan, inserted)

    def _settle(self, connection: sa.Connection, line: _Result, plan: Any, inserted: list[StoredResult]) -> None:
        if isinstance(plan, AuroraEdgeError):
            self._conflict(f"result {line.result.result_id}: {plan.message}")
            return
        if isinstance(plan, int):
            seq = inserted[plan].seq
            self._counts["results"] += 1
        else:
            if plan.result.result_id != line.result.result_id:
                self._conflict(
                    f"result {line.result.result_id}: its request id belongs to result {plan.result.result_id} here."
                )
                return
            seq = plan.seq
            self._skipped += 1
        self._review(connection, seq, line)

    def _review(self, connection: sa.Connection, seq: int, line: _Result) -> None:
        """Adds the reviews that are not here yet; the newest by time counts, wherever it was made."""
        if not line.reviews:
            return
        reviews, results = schema.reviews, schema.results
        here = sa.select(reviews).where(reviews.c.seq == seq)
        known = {(row.at, row.reviewer, row.verdict) for row in connection.execute(here)}
        for review in line.reviews:
            if (review.at, plain(review.reviewer), review.verdict.value) in known:
                continue
            values = {
                "seq": seq,
                "at": review.at,
                "reviewer": plain(review.reviewer),
                "verdict": review.verdict.value,
                "reason": plain(review.reason),
                "defects": None if review.defects is None else dump_defects(review.defects),
            }
            connection.execute(sa.insert(reviews).values(values))
            self._counts["reviews"] += 1
        newest = connection.execute(here.order_by(reviews.c.at.desc(), reviews.c.number.desc()).limit(1)).one()
        changes = {"effective_verdict": newest.verdict, "review_number": newest.number}
        connection.execute(sa.update(results).where(results.c.seq == seq).values(changes))

    def _picture(self, address: str | None) -> Picture | None:
        if address is None:
            return None
        name = self._names.get(address)
        if name is None:
            self._missing += 1
            return None
        picture = Picture.of(self._archive.read(name))
        if picture.sha256 != address:
            raise StoreDamagedError(f"{self._path}: {name} is not what was exported.", remedy="Export again.")
        return picture

    def recipes(self) -> None:
        table = schema.recipes
        for line in self._lines("recipes", _Recipe.model_validate_json):
            recipe = line.recipe
            with self._store.database.write() as connection:
                same = sa.and_(table.c.recipe_id == recipe.id, table.c.version == recipe.version)
                known = connection.scalar(sa.select(table.c.sha256).where(same))
                if known == recipe.sha256:
                    self._skipped += 1
                elif known is not None:
                    self._conflict(f"recipe {recipe.id} version {recipe.version}: here it is another one.")
                else:
                    values = {"recipe_id": recipe.id, "version": recipe.version, "at": line.at, "who": line.who}
                    values |= {"why": line.why, "sha256": recipe.sha256, "document": recipe.model_dump_json()}
                    connection.execute(sa.insert(table).values(values))
                    self._counts["recipes"] += 1

    def engines(self) -> None:
        table = schema.engines
        for line in self._lines("engines", _Engine.model_validate_json):
            same = sa.and_(table.c.at == line.at, table.c.engine_sha256 == line.engine_sha256)
            values = {**line.model_dump(), "details": dump_json(line.details)}
            self._append(table, "engines", same, values)

    def studies(self) -> None:
        table = schema.studies
        for line in self._lines("studies", _Study.model_validate_json):
            values = {**line.model_dump(), "document": dump_json(line.document)}
            self._append(table, "studies", table.c.study_id == line.study_id, values)

    def _append(self, table: sa.Table, name: str, same: sa.ColumnElement[bool], values: dict[str, Any]) -> None:
        with self._store.database.write() as connection:
            if connection.scalar(sa.select(table.c.number).where(same)) is not None:
                self._skipped += 1
                return
            connection.execute(sa.insert(table).values(values))
        self._counts[name] += 1

    def audit(self) -> None:
        """Entries of another store join this one's chain, with where they come from."""
        own = f"{self._store.store_id}:"
        batch: list[_Audit] = []
        for line in self._lines("audit", _Audit.model_validate_json):
            if line.origin.startswith(own):
                self._skipped += 1
                continue
            batch.append(line)
            if len(batch) == _PAGE:
                self._append_audit(batch)
                batch = []
        self._append_audit(batch)

    def _append_audit(self, lines: list[_Audit]) -> None:
        if not lines:
            return
        origin = schema.audit.c.origin
        with self._store.database.write() as connection:
            known = {
                row.origin for row in select_in(connection, sa.select(origin), origin, [line.origin for line in lines])
            }
            for line in lines:
                if line.origin in known:
                    self._skipped += 1
                    continue
                entry = line.model_dump(exclude={"sha256"})
                append_audit(connection, **entry)
                self._counts["audit"] += 1
