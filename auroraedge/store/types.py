"""What goes into the store and comes out of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Defect, InspectionResult, Verdict


class Purpose(StrEnum):
    """Why a frame was inspected. Only production counts in yields, trends and the review queue.

    A request whose job begins with "challenge:" or "study:" has that purpose, whoever records it: golden parts that go
    through a server stay out of its yield without the server knowing of studies.
    """

    PRODUCTION = "production"
    CHALLENGE = "challenge"  # a golden part of the check at the start of a shift
    STUDY = "study"  # a part of an agreement study


def purpose_of(job: str, purpose: Purpose = Purpose.PRODUCTION) -> Purpose:
    """The purpose that the job names, else the given one."""
    prefix = job.partition(":")[0]
    named = (Purpose.CHALLENGE, Purpose.STUDY)
    return next((known for known in named if ":" in job and prefix == known.value), purpose)


@dataclass(frozen=True, kw_only=True)
class NewResult:
    """One result to record.

    image: the frame's encoded bytes, kept beside the database; None keeps none. reference: the golden sample that it
    was compared with. fingerprint: tells a repeated request from another one under the same request id, e.g. a hash
    of the request; principal: who sent it, "" where callers are not told apart.
    """

    result: InspectionResult
    image: bytes | None = None
    reference: bytes | None = None
    fingerprint: str = ""
    principal: str = ""
    purpose: Purpose = Purpose.PRODUCTION


@dataclass(frozen=True, kw_only=True)
class Review:
    """A person's decision about a result. Of several the newest counts. `defects` None: the model's are kept."""

    number: int
    result_id: str
    at: datetime
    reviewer: str
    verdict: Verdict
    reason: str
    defects: tuple[Defect, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """A recorded result. `seq` grows with every committed result, across all writers, and is never used again.

    image_sha256: content address of the stored picture (of the bytes as stored; result.image_sha256 is of the frame as
    inspected, which differs where raw pixels were sent), None where none was given. has_image: it is still kept.
    replayed: this request was recorded before, and nothing new was written.
    """

    seq: int
    result: InspectionResult
    stored_at: datetime
    has_image: bool
    image_sha256: str | None = None
    reference_sha256: str | None = None
    review: Review | None = None
    replayed: bool = False
    principal: str = ""
    fingerprint: str = ""
    purpose: Purpose = Purpose.PRODUCTION

    @property
    def effective_verdict(self) -> Verdict:
        """The reviewer's verdict, else the model's."""
        return self.review.verdict if self.review else self.result.verdict

    @property
    def effective_defects(self) -> tuple[Defect, ...]:
        """The reviewer's defects where one corrected them, else the model's."""
        corrected = self.review.defects if self.review else None
        return self.result.defects if corrected is None else corrected


@dataclass(frozen=True, kw_only=True)
class ResultFilter:
    """Which results: every given condition holds. A text matches exactly; give several values for any of them.

    since, until: aware; since <= created_at < until. verdicts: the model's; effective_verdicts: after review.
    reviewed: with or without a person's decision. purposes: None takes golden-part checks and studies too.
    """

    since: datetime | None = None
    until: datetime | None = None
    lot: str | Collection[str] | None = None
    line: str | Collection[str] | None = None
    station: str | Collection[str] | None = None
    camera: str | Collection[str] | None = None
    job: str | Collection[str] | None = None
    part_id: str | Collection[str] | None = None
    recipe_id: str | Collection[str] | None = None
    verdicts: Collection[Verdict] | None = None
    effective_verdicts: Collection[Verdict] | None = None
    engine_sha256: str | None = None
    simulated: bool | None = None
    reviewed: bool | None = None
    purposes: Collection[Purpose] | None = (Purpose.PRODUCTION,)

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"{name} needs a time zone")


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """Who changed what, when and why. `sha256` covers the entry and the one before it, so that a gap shows.

    origin: "store:number" of an entry that came from another store, else "".
    """

    number: int
    at: datetime
    who: str
    action: str
    subject: str
    old: Any
    new: Any
    why: str
    sha256: str
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class RecipeVersion:
    """One version of a recipe, and who made it."""

    recipe: Recipe
    at: datetime
    who: str
    why: str


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One change of the engine that gives the verdicts."""

    number: int
    at: datetime
    engine_sha256: str
    model_id: str
    target: str
    who: str
    why: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """The outcome of a study, a golden-part challenge or a baseline. `document`: its JSON, by kind."""

    number: int
    study_id: str
    at: datetime
    kind: str
    name: str
    who: str
    passed: bool | None
    document: dict[str, Any]
