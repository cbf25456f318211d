"""The result store. Every write is on the disk before the call returns."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa

from auroraedge.errors import (
    AuroraEdgeError,
    InvalidRequestError,
    RecipeNotFoundError,
    RecipeVersionError,
    ResultNotFoundError,
    StoreDamagedError,
    StoreError,
)
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Defect, InspectionResult, Verdict
from auroraedge.store import schema
from auroraedge.store.audit import append_audit, read_audit
from auroraedge.store.check import CheckReport, check
from auroraedge.store.database import Database, parse_address
from auroraedge.store.images import ImageFolder, Picture
from auroraedge.store.info import StoreInfo, store_info
from auroraedge.store.recording import BY_REQUEST, Draft, check_fingerprint, insert_results, sort_out
from auroraedge.store.retention import RetentionPolicy, RetentionReport, retain
from auroraedge.store.rows import (
    HAS_REQUEST_ID,
    SelectIn,
    chunks,
    conditions,
    dump_defects,
    dump_json,
    engine_of,
    load_recipe,
    plain,
    review_of,
    select_in,
    select_results,
    stored_result,
    study_of,
)
from auroraedge.store.transfer import TransferReport, export_store, import_store
from auroraedge.store.types import (
    AuditEntry,
    EngineRecord,
    NewResult,
    Purpose,
    RecipeVersion,
    ResultFilter,
    Review,
    StoredResult,
    StudyRecord,
)

# Rows that are read in one query: bounds the memory of a stream.
_PAGE = 500
# Pictures by their addresses.
_IMAGES = SelectIn(sa.select(schema.images), schema.images.c.sha256)
ALL = ResultFilter()
EVERYTHING = ResultFilter(purposes=None)


def _now() -> datetime:
    return datetime.now(UTC)


class Store:
    """Results, pictures, reviews, recipes, engines, studies and the audit trail. Thread-safe; calls block.

    Every method raises StoreLockedError, StoreUnavailableError, StoreFullError, StoreReadOnlyError or
    StoreDamagedError when the database or the disk fails; then nothing was stored.
    """

    def __init__(self, database: Database, images: ImageFolder | None, store_id: str) -> None:
        self.database = database
        self.images = images
        self.store_id = store_id

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        images: Path | None = None,
        create: bool = True,
        busy_timeout_s: float = 5.0,
    ) -> Store:
        """Opens a store, creates it if there is none, and brings its schema up to date.

        url: a folder, a database file, sqlite:///PATH or postgresql://... . images: folder of the pictures; None is
        the folder `images` beside the SQLite file, and no pictures with PostgreSQL. create: False raises
        StoreNotFoundError where there is no store. busy_timeout_s: how long a call waits for another writer.
        Raises StoreVersionError for a store of a newer program.
        """
        database = Database(parse_address(url), create=create, busy_timeout_s=busy_timeout_s)
        try:
            store_id = cls._identity(database)
            folder = images
            if folder is None and database.path is not None:
                path = database.path
                folder = path.parent / ("images" if path.name == "store.db" else f"{path.stem}.images")
            found = ImageFolder(Path(folder)) if folder is not None else None
            if found is not None:
                found.claim(store_id)
        except BaseException:
            database.close()
            raise
        return cls(database, found, store_id)

    @staticmethod
    def _identity(database: Database) -> str:
        query = sa.select(schema.meta.c.value).where(schema.meta.c.key == "store_id")
        with database.read() as connection:
            found = connection.scalar(query)
        if found is None:
            with database.write() as connection:
                found = connection.scalar(query)
                if found is None:
                    found = str(uuid.uuid4())
                    values = [
                        {"key": "store_id", "value": found},
                        {"key": "created_at", "value": _now().isoformat()},
                    ]
                    connection.execute(sa.insert(schema.meta), values)
        return str(found)

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- recording -------------------------------------------------------------------------------------------------

    def record(
        self,
        result: InspectionResult,
        *,
        image: bytes | None = None,
        reference: bytes | None = None,
        fingerprint: str = "",
        principal: str = "",
        purpose: Purpose = Purpose.PRODUCTION,
    ) -> StoredResult:
        """Commits one result with its pictures. Repeating a request, or a result, returns the row that is there.

        Raises RequestIdConflictError when the principal used the request id for another fingerprint, and
        DuplicateResultError when another result has this result_id.
        """
        entry = NewResult(
            result=result,
            image=image,
            reference=reference,
            fingerprint=fingerprint,
            principal=principal,
            purpose=purpose,
        )
        return self.record_many([entry])[0]

    def record_many(self, entries: Sequence[NewResult]) -> list[StoredResult]:
        """Commits all entries in one transaction, or none of them. The errors of `record`."""
        stored: list[StoredResult] = []
        for outcome in self._record(entries, all_or_none=True):
            assert not isinstance(outcome, AuroraEdgeError)
            stored.append(outcome)
        return stored

    def record_group(self, entries: Sequence[NewResult]) -> list[StoredResult | AuroraEdgeError]:
        """Commits unrelated entries together, for speed: one that conflicts yields its error in its place.

        Raises what concerns them all: a store that is locked, full or not available; then none is stored.
        """
        return self._record(entries, all_or_none=False)

    def _record(self, entries: Sequence[NewResult], *, all_or_none: bool) -> list[StoredResult | AuroraEdgeError]:
        if not entries:
            return []
        drafts = [Draft.of(entry) for entry in entries]
        if any(draft.pictures for draft in drafts):
            # A repeated request brings no picture that is not here already, so look before writing any.
            with self.database.read() as connection:
                expected, _ = sort_out(connection, drafts, all_or_none=all_or_none)
            wanted = [draft for draft, plan in zip(drafts, expected, strict=True) if isinstance(plan, int)]
            self.images_folder().put({p.sha256: p for draft in wanted for p in draft.pictures}.values())
        with self.database.write() as connection:
            plans, fresh = sort_out(connection, drafts, all_or_none=all_or_none)
            inserted: list[StoredResult] = []
            if fresh:
                pictures = {picture.sha256: picture for draft in fresh for picture in draft.pictures}
                if pictures:
                    self.keep_pictures(connection, list(pictures.values()))
                inserted = insert_results(connection, fresh, [_now()] * len(fresh))
        found: list[StoredResult | AuroraEdgeError] = []
        used: set[int] = set()
        for plan in plans:
            if isinstance(plan, int):
                stored = inserted[plan]
                found.append(replace(stored, replayed=True) if plan in used else stored)
                used.add(plan)
            else:
                found.append(plan)
        return found

    def images_folder(self) -> ImageFolder:
        """Where pictures go. Raises StoreError when the store keeps none."""
        if self.images is None:
            raise StoreError(
                "The store has no folder for pictures.",
                field="images",
                remedy="Open it with images=FOLDER (a PostgreSQL store needs one), or record without pictures.",
            )
        return self.images

    def keep_pictures(self, connection: sa.Connection, pictures: Sequence[Picture]) -> int:
        """In a write transaction: makes sure that pictures have rows, and files whatever retention did meanwhile.

        Returns how many are new.
        """
        moment = _now()
        folder = self.images_folder()
        missing = [picture for picture in pictures if not folder.has(picture)]
        if missing:
            folder.put(missing)
        known = {row.sha256: row.removed_at for row in _IMAGES.rows(connection, [p.sha256 for p in pictures])}
        values = [
            {"sha256": p.sha256, "size_bytes": len(p.content), "suffix": p.suffix, "stored_at": moment}
            for p in pictures
            if p.sha256 not in known
        ]
        if values:
            connection.execute(sa.insert(schema.images), values)
        back = [p.sha256 for p in pictures if known.get(p.sha256) is not None]
        for chunk in chunks(back):
            connection.execute(
                sa.update(schema.images)
                .where(schema.images.c.sha256.in_(chunk))
                .values(removed_at=None, stored_at=moment)
            )
        return len(values) + len(back)

    def note_removed(self, connection: sa.Connection, addresses: Collection[str]) -> None:
        """In a write transaction: keeps the addresses of pictures that retention removed elsewhere."""
        images = schema.images
        known = {row.sha256 for row in select_in(connection, sa.select(images.c.sha256), images.c.sha256, addresses)}
        moment = _now()
        values = [
            {"sha256": sha256, "size_bytes": 0, "suffix": ".bin", "stored_at": moment, "removed_at": moment}
            for sha256 in addresses
            if sha256 not in known
        ]
        if values:
            connection.execute(sa.insert(images), values)

    # -- reading ---------------------------------------------------------------------------------------------------

    def find(self, request_id: str, *, principal: str = "", fingerprint: str = "") -> StoredResult | None:
        """The result of an earlier request, as a replay; None when there is none.

        fingerprint: where given, another one under the same id raises RequestIdConflictError.
        """
        if not request_id:
            return None
        with self.database.read() as connection:
            rows = list(BY_REQUEST.rows(connection, [request_id], principal=principal))
        if not rows:
            return None
        found = replace(stored_result(rows[0]), replayed=True)
        if fingerprint:
            check_fingerprint(request_id, fingerprint, found.fingerprint)
        return found

    def recent_requests(self, limit: int) -> list[tuple[str, str]]:
        """Principal and request id of the newest results that have one."""
        columns = schema.results.c
        query = sa.select(columns.principal, columns.request_id).where(HAS_REQUEST_ID)
        with self.database.read() as connection:
            found = connection.execute(query.order_by(columns.seq.desc()).limit(limit)).all()
        return [(row.principal, row.request_id) for row in found]

    def get(self, result_id: str) -> StoredResult:
        """Raises ResultNotFoundError."""
        with self.database.read() as connection:
            row = connection.execute(select_results().where(schema.results.c.result_id == result_id)).first()
        if row is None:
            raise ResultNotFoundError(f"There is no result '{result_id}'.", field="result_id")
        return stored_result(row)

    def results(
        self,
        where: ResultFilter = ALL,
        *,
        after_seq: int = 0,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[StoredResult]:
        """The results in the order in which they were committed, read in pages: memory stays constant.

        after_seq: only later ones (with newest_first: only earlier ones, 0 for all). Between two pages others may
        write; a result that is committed while this runs appears at the end.
        """
        seq = schema.results.c.seq
        query = sa.select(schema.results).where(*conditions(where)).order_by(seq.desc() if newest_first else seq)
        order = sa.text("page.seq DESC" if newest_first else "page.seq")
        left = limit
        place = after_seq
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            page = query.limit(size)
            if place or not newest_first:
                page = page.where(seq < place if newest_first else seq > place)
            with self.database.read() as connection:
                found = connection.execute(select_results(page).order_by(order)).all()
            for row in found:
                yield stored_result(row)
            if len(found) < size:
                return
            place = found[-1].seq
            left = None if left is None else left - len(found)

    def count(self, where: ResultFilter = ALL) -> int:
        query = sa.select(sa.func.count()).select_from(schema.results).where(*conditions(where))
        with self.database.read() as connection:
            return int(connection.scalar(query) or 0)

    def verdict_counts(self, where: ResultFilter = ALL, *, effective: bool = False) -> dict[Verdict, int]:
        """Results by the model's verdict, or by the verdict after review; every verdict has an entry."""
        column = schema.results.c.effective_verdict if effective else schema.results.c.verdict
        query = sa.select(column, sa.func.count()).where(*conditions(where)).group_by(column)
        with self.database.read() as connection:
            found = {row[0]: int(row[1]) for row in connection.execute(query)}
        return {verdict: found.get(verdict.value, 0) for verdict in Verdict}

    def last_seq(self) -> int:
        """The newest result's seq; 0 when there is none."""
        with self.database.read() as connection:
            return int(connection.scalar(sa.select(sa.func.max(schema.results.c.seq))) or 0)

    def image(self, sha256: str) -> bytes | None:
        """A picture by the address of its content, or by result.image_sha256; None when it is no longer kept.

        Raises StoreDamagedError when the file is not what was stored.
        """
        if self.images is None or not sha256:
            return None
        images, results = schema.images.c, schema.results.c
        kept = sa.select(images.sha256, images.suffix).where(images.removed_at.is_(None))
        with self.database.read() as connection:
            row = connection.execute(kept.where(images.sha256 == sha256)).first()
            if row is None:
                # Raw camera frames are stored encoded: their own hash leads to the file through the result.
                by_frame = kept.join(schema.results, results.image_sha256 == images.sha256)
                row = connection.execute(by_frame.where(results.frame_sha256 == sha256).limit(1)).first()
        if row is None:
            return None
        content = self.images.read(f"{row.sha256}{row.suffix}")
        if content is None or hashlib.sha256(content).hexdigest() != row.sha256:
            what = "is missing" if content is None else "is not what was stored"
            raise StoreDamagedError(f"The picture {row.sha256} {what}.", field="image")
        return content

    # -- people ----------------------------------------------------------------------------------------------------

    def review(
        self,
        result_id: str,
        *,
        verdict: Verdict,
        reviewer: str,
        reason: str,
        defects: Sequence[Defect] | None = None,
    ) -> Review:
        """Records a person's decision; earlier ones stay, the newest counts. Audited.

        defects: the corrected list; None leaves the model's. Raises ResultNotFoundError, and InvalidRequestError
        without a reviewer or for a verdict that a person cannot give.
        """
        if not reviewer.strip():
            raise InvalidRequestError("A review needs the name of the reviewer.", field="reviewer")
        if verdict is Verdict.ERROR:
            raise InvalidRequestError(
                "A person cannot decide ERROR.", field="verdict", remedy="Decide OK, NG or REVIEW."
            )
        results = schema.results
        moment = _now()
        with self.database.write() as connection:
            row = connection.execute(
                sa.select(results.c.seq, results.c.effective_verdict).where(results.c.result_id == result_id)
            ).first()
            if row is None:
                raise ResultNotFoundError(f"There is no result '{result_id}'.", field="result_id")
            values = {
                "seq": row.seq,
                "at": moment,
                "reviewer": plain(reviewer),
                "verdict": verdict.value,
                "reason": plain(reason),
                "defects": None if defects is None else dump_defects(defects),
            }
            number = connection.scalar(sa.insert(schema.reviews).values(values).returning(schema.reviews.c.number))
            assert number is not None
            connection.execute(
                sa.update(results)
                .where(results.c.seq == row.seq)
                .values(effective_verdict=verdict.value, review_number=number)
            )
            new: dict[str, Any] = {"verdict": verdict.value}
            if defects is not None:
                new["defects"] = [defect.model_dump(mode="json") for defect in defects]
            append_audit(
                connection,
                at=moment,
                who=reviewer,
                action="result.review",
                subject=f"result:{result_id}",
                old={"verdict": row.effective_verdict},
                new=new,
                why=reason,
            )
        return Review(
            number=number,
            result_id=result_id,
            at=moment,
            reviewer=reviewer,
            verdict=verdict,
            reason=reason,
            defects=None if defects is None else tuple(defects),
        )

    def reviews(self, result_id: str) -> list[Review]:
        """All decisions about a result, the oldest first. Raises ResultNotFoundError."""
        reviews = schema.reviews
        with self.database.read() as connection:
            seq = connection.scalar(sa.select(schema.results.c.seq).where(schema.results.c.result_id == result_id))
            if seq is None:
                raise ResultNotFoundError(f"There is no result '{result_id}'.", field="result_id")
            found = connection.execute(sa.select(reviews).where(reviews.c.seq == seq).order_by(reviews.c.number)).all()
        return [review_of(row, result_id) for row in found]

    def review_queue(self, where: ResultFilter = ALL, *, limit: int | None = None) -> Iterator[StoredResult]:
        """Results that the model left to a person and nobody has decided yet, the oldest first."""
        # Without a review the verdict after review is the model's; that one has an index.
        waiting = replace(where, effective_verdicts=(Verdict.REVIEW,), reviewed=False)
        yield from self.results(waiting, limit=limit)

    # -- recipes, engines, studies ---------------------------------------------------------------------------------

    def put_recipe(self, recipe: Recipe, *, who: str, why: str, expected_version: int | None = None) -> int:
        """Stores a new version and returns its number. Audited.

        The number is the recipe's own, or the one after the newest stored version where that is higher; a recipe that
        equals the newest version changes nothing. expected_version: the newest version that the caller has seen (0:
        none); raises RecipeVersionError when someone else was faster.
        """
        recipes = schema.recipes
        moment = _now()
        with self.database.write() as connection:
            newest = connection.execute(
                sa.select(recipes).where(recipes.c.recipe_id == recipe.id).order_by(recipes.c.version.desc()).limit(1)
            ).first()
            at = newest.version if newest else 0
            if expected_version is not None and expected_version != at:
                raise RecipeVersionError(
                    f"Recipe '{recipe.id}' is at version {at}, not {expected_version}: someone else changed it.",
                    field="recipe_version",
                    remedy="Load the newest version, make the change again and store that.",
                )
            if newest is not None:
                old = load_recipe(newest.document)
                if recipe.model_copy(update={"version": old.version}) == old:
                    return old.version
            version = max(recipe.version, at + 1)
            kept = recipe.model_copy(update={"version": version})
            document = kept.model_dump_json()
            values = {
                "recipe_id": kept.id,
                "version": version,
                "at": moment,
                "who": plain(who),
                "why": plain(why),
                "sha256": load_recipe(document).sha256,
                "document": document,
            }
            connection.execute(sa.insert(recipes).values(values))
            append_audit(
                connection,
                at=moment,
                who=who,
                action="recipe.put",
                subject=f"recipe:{kept.id}",
                old=None if newest is None else load_recipe(newest.document).model_dump(mode="json"),
                new=kept.model_dump(mode="json"),
                why=why,
            )
        return version

    def recipes(self) -> list[Recipe]:
        """The newest version of every recipe, by id."""
        recipes = schema.recipes
        newest = sa.select(recipes.c.recipe_id, sa.func.max(recipes.c.version).label("version")).group_by(
            recipes.c.recipe_id
        )
        latest = newest.subquery()
        query = sa.select(recipes.c.document).join(
            latest, sa.and_(recipes.c.recipe_id == latest.c.recipe_id, recipes.c.version == latest.c.version)
        )
        with self.database.read() as connection:
            found = connection.scalars(query.order_by(recipes.c.recipe_id)).all()
        return [load_recipe(document) for document in found]

    def recipe(self, recipe_id: str, version: int | None = None) -> Recipe:
        """A version of a recipe; None is the newest. Raises RecipeNotFoundError."""
        recipes = schema.recipes
        query = sa.select(recipes.c.document).where(recipes.c.recipe_id == recipe_id)
        if version is not None:
            query = query.where(recipes.c.version == version)
        with self.database.read() as connection:
            document = connection.scalar(query.order_by(recipes.c.version.desc()).limit(1))
        if document is None:
            which = "" if version is None else f" in version {version}"
            raise RecipeNotFoundError(f"The store has no recipe '{recipe_id}'{which}.", field="recipe_id")
        return load_recipe(document)

    def recipe_history(self, recipe_id: str) -> list[RecipeVersion]:
        """All versions of a recipe, the oldest first; empty when there is none."""
        recipes = schema.recipes
        query = sa.select(recipes).where(recipes.c.recipe_id == recipe_id).order_by(recipes.c.version)
        with self.database.read() as connection:
            found = connection.execute(query).all()
        return [RecipeVersion(recipe=load_recipe(r.document), at=r.at, who=r.who, why=r.why) for r in found]

    def record_engine(
        self,
        *,
        engine_sha256: str,
        model_id: str,
        target: str,
        who: str,
        why: str,
        details: dict[str, Any] | None = None,
    ) -> EngineRecord:
        """Notes that from now on this engine gives the verdicts. Audited.

        When it is the one that was noted last, nothing is written: a restart is no change.
        """
        engines = schema.engines
        moment = _now()
        with self.database.write() as connection:
            last = connection.execute(sa.select(engines).order_by(engines.c.number.desc()).limit(1)).first()
            if last is not None and (last.engine_sha256, last.target) == (engine_sha256, target):
                return engine_of(last)
            values = {
                "at": moment,
                "engine_sha256": engine_sha256,
                "model_id": plain(model_id),
                "target": plain(target),
                "who": plain(who),
                "why": plain(why),
                "details": dump_json(details or {}),
            }
            number = connection.scalar(sa.insert(engines).values(values).returning(engines.c.number))
            assert number is not None
            append_audit(
                connection,
                at=moment,
                who=who,
                action="engine.change",
                subject=f"engine:{target}",
                old=None if last is None else {"engine_sha256": last.engine_sha256, "model_id": last.model_id},
                new={"engine_sha256": engine_sha256, "model_id": model_id},
                why=why,
            )
        return EngineRecord(
            number=number,
            at=moment,
            engine_sha256=engine_sha256,
            model_id=model_id,
            target=target,
            who=who,
            why=why,
            details=details or {},
        )

    def engines(self) -> list[EngineRecord]:
        """The changes of the engine, the oldest first."""
        with self.database.read() as connection:
            found = connection.execute(sa.select(schema.engines).order_by(schema.engines.c.number)).all()
        return [engine_of(row) for row in found]

    def record_study(
        self,
        *,
        kind: str,
        name: str,
        who: str,
        passed: bool | None,
        document: dict[str, Any],
        summary: dict[str, Any] | None = None,
        why: str = "",
    ) -> StudyRecord:
        """Keeps the outcome of a study for good. Audited: kind, name, whether it passed, and `summary`."""
        moment, study_id = _now(), str(uuid.uuid4())
        values = {
            "study_id": study_id,
            "at": moment,
            "kind": kind,
            "name": plain(name),
            "who": plain(who),
            "passed": passed,
            "document": dump_json(document),
        }
        with self.database.write() as connection:
            number = connection.scalar(sa.insert(schema.studies).values(values).returning(schema.studies.c.number))
            assert number is not None
            append_audit(
                connection,
                at=moment,
                who=who,
                action=f"study.{kind}",
                subject=f"study:{name}",
                old=None,
                new={"study_id": study_id, "passed": passed, **(summary or {})},
                why=why,
            )
        return StudyRecord(
            number=number, study_id=study_id, at=moment, kind=kind, name=name, who=who, passed=passed, document=document
        )

    def studies(
        self, *, kind: str | None = None, name: str | None = None, limit: int | None = None
    ) -> list[StudyRecord]:
        """The outcomes of studies, the newest first."""
        studies = schema.studies
        query = sa.select(studies).order_by(studies.c.number.desc()).limit(limit)
        if kind is not None:
            query = query.where(studies.c.kind == kind)
        if name is not None:
            query = query.where(studies.c.name == name)
        with self.database.read() as connection:
            found = connection.execute(query).all()
        return [study_of(row) for row in found]

    # -- audit trail -----------------------------------------------------------------------------------------------

    def audit(
        self, *, who: str, action: str, subject: str, old: Any = None, new: Any = None, why: str = ""
    ) -> AuditEntry:
        """Appends an entry. `old` and `new`: anything that JSON can hold."""
        with self.database.write() as connection:
            return append_audit(
                connection, at=_now(), who=who, action=action, subject=subject, old=old, new=new, why=why
            )

    def audit_trail(
        self, *, subject: str | None = None, limit: int | None = None, newest_first: bool = True
    ) -> Iterator[AuditEntry]:
        """The entries, the newest first."""
        return read_audit(self.database, subject=subject, limit=limit, newest_first=newest_first)

    # -- keeping ---------------------------------------------------------------------------------------------------

    def retain(
        self,
        policy: RetentionPolicy,
        *,
        now: datetime | None = None,
        dry_run: bool = False,
        who: str = "retention",
    ) -> RetentionReport:
        """Removes pictures, and results if the policy says so, by age, verdict and total size. Audited."""
        return retain(self, policy, now=now, dry_run=dry_run, who=who)

    def info(self) -> StoreInfo:
        """What the store holds, in figures."""
        return store_info(self)

    def check(self, *, mend: bool = False, deep: bool = False, who: str = "check") -> CheckReport:
        """Examines database, documents, audit trail and pictures; mends orphans. deep: reads every picture."""
        return check(self, mend=mend, deep=deep, who=who)

    def export_to(self, path: Path, where: ResultFilter = EVERYTHING) -> TransferReport:
        """Writes the store, or the results of `where`, with pictures and history into one zip file."""
        return export_store(self, Path(path), where)

    def import_from(self, path: Path, *, who: str = "import") -> TransferReport:
        """Adds what an export holds; what is here already stays. Repeating an import changes nothing. Audited."""
        return import_store(self, Path(path), who=who)
