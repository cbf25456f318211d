"""The check at the start of a shift: golden parts through the real system, and a look at what production became.

Everything goes into the store: the golden parts' results (marked, so that no yield counts them), the outcome, and an
audit entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from auroraedge.errors import AuroraEdgeError, StoreDamagedError, StudyError
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import Verdict
from auroraedge.studies.drift import (
    Baseline,
    DriftTest,
    GoldenFrame,
    Window,
    compare,
    compare_golden,
    window_of,
)
from auroraedge.studies.frames import FrameStatistics, frame_statistics
from auroraedge.studies.parts import Inspecting, Judged, Part, judge

if TYPE_CHECKING:
    from auroraedge.store import ResultFilter, Store, StudyRecord

ALPHA = 0.01
# Stored frames that are looked at; evenly spread over the window.
_FRAMES = 500
_KIND, _BASELINE = "challenge", "baseline"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GoldenOutcome(_Model):
    """One golden part. what: escape (bad, judged OK), overkill (good, judged NG), undecided, error; "" when right."""

    part: str
    image: str
    standard: Verdict
    verdict: Verdict
    ng_probability: float | None
    baseline_ng_probability: float | None
    what: str
    detail: str = ""


class ChallengeReport(_Model):
    """A challenge. alpha: at most this share of challenges alarm by drift although nothing has changed; a wrong verdict
    on a golden part is never by chance."""

    name: str
    at: AwareDatetime
    passed: bool
    alarms: tuple[str, ...]
    notes: tuple[str, ...]
    recipe_id: str
    recipe_sha256: str
    model_id: str
    engine_sha256: str
    golden: tuple[GoldenOutcome, ...]
    alpha: float
    tests: tuple[DriftTest, ...]
    baseline_id: str | None
    baseline_at: AwareDatetime | None
    window_since: AwareDatetime | None
    window_until: AwareDatetime | None
    window_results: int
    window_frames: int
    study_id: str = ""


def make_baseline(
    store: Store,
    inspecting: Inspecting,
    recipe: Recipe,
    where: ResultFilter,
    *,
    name: str,
    parts: Sequence[Part] = (),
    who: str,
    why: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Baseline, StudyRecord]:
    """Stores what is normal: the production of `where`, and the golden parts as they are now."""
    from auroraedge.store import Purpose

    window = read_window(store, replace(where, recipe_id=recipe.id))
    if not window.results and not parts:
        raise StudyError(
            "There is no production and no golden part to make a baseline of.",
            field="since",
            remedy="Choose a time with results of this recipe, or name golden parts.",
        )
    judged = judge(
        inspecting,
        parts,
        recipe,
        name=name,
        store=store,
        purpose=Purpose.CHALLENGE,
        on_progress=on_progress,
    )
    baseline = Baseline(
        name=name,
        recipe_id=recipe.id,
        recipe_sha256=recipe.sha256,
        model_id=inspecting.model_id,
        engine_sha256=inspecting.engine_sha256,
        where=_conditions(where),
        window=window,
        golden=golden_frames(judged),
    )
    summary = {"results": window.results, "frames": window.frames, "golden_parts": len(baseline.golden)}
    record = store.record_study(
        kind=_BASELINE,
        name=name,
        who=who,
        passed=None,
        document=baseline.model_dump(mode="json"),
        summary=summary,
        why=why,
    )
    return baseline, record


def newest_baseline(store: Store, name: str) -> tuple[Baseline, StudyRecord] | None:
    """The baseline that challenges of this name compare with."""
    found = store.studies(kind=_BASELINE, name=name, limit=1)
    if not found:
        return None
    try:
        return Baseline.model_validate(found[0].document), found[0]
    except ValidationError as error:
        raise StoreDamagedError(
            f"The baseline '{name}' cannot be read: {error.errors()[0]['msg']}.",
            remedy="Make a new one: `auroraedge study baseline`.",
        ) from error


def challenge(
    store: Store,
    inspecting: Inspecting,
    recipe: Recipe,
    parts: Sequence[Part],
    where: ResultFilter,
    *,
    name: str,
    who: str,
    window_hours: float = 8.0,
    alpha: float = ALPHA,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ChallengeReport:
    """Runs the golden parts and compares the last hours with the baseline; records the outcome.

    where: which production (line, camera, ...). Without `since` it begins after the baseline's end, at most
    `window_hours` ago. Raises StudyError for a list without bad parts, which could find nothing.
    """
    from auroraedge.store import Purpose

    if not any(part.standard is Verdict.NG for part in parts):
        raise StudyError(
            "The list of golden parts has no bad part: an escape could not be seen.",
            field="parts",
            remedy="Add known bad parts, at least one of each defect that matters.",
        )
    if not 0 < alpha < 0.5:
        raise StudyError(f"alpha is {alpha}; it must lie between 0 and 0.5.", field="alpha")
    now = datetime.now(UTC)
    judged = judge(
        inspecting,
        parts,
        recipe,
        name=name,
        store=store,
        purpose=Purpose.CHALLENGE,
        on_progress=on_progress,
    )
    found = newest_baseline(store, name)
    baseline = found[0] if found else None
    outcomes = tuple(_outcome(item, baseline) for item in judged)
    alarms = [f"{o.part}: {o.what} ({o.standard.value} was judged {o.verdict.value})" for o in outcomes if o.what]
    notes: list[str] = []
    tests: list[DriftTest] = []
    window: Window | None = None
    if baseline is None:
        notes.append(
            f"There is no baseline '{name}': drift was not checked. Make one with `auroraedge study baseline`."
        )
    else:
        since = where.since or now - timedelta(hours=window_hours)
        if baseline.window.until is not None and where.since is None:
            # What made the baseline cannot drift from it.
            since = max(since, baseline.window.until + timedelta(microseconds=1))
        window = read_window(store, replace(where, since=since, recipe_id=recipe.id))
        tests = compare(baseline.window, window, alpha) + compare_golden(baseline.golden, golden_frames(judged), alpha)
        alarms += [f"drift: {test.reason}" for test in tests if test.outcome == "alarm"]
        notes += _changes(baseline, recipe, inspecting, where)
        skipped: dict[str, list[str]] = {}
        for test in tests:
            if test.outcome == "skipped":
                skipped.setdefault(test.reason, []).append(test.title.lower())
        notes += [f"Not tested: {', '.join(titles)}: {reason}." for reason, titles in skipped.items()]
    report = ChallengeReport(
        name=name,
        at=now,
        passed=not alarms,
        alarms=tuple(alarms),
        notes=tuple(notes),
        recipe_id=recipe.id,
        recipe_sha256=recipe.sha256,
        model_id=inspecting.model_id,
        engine_sha256=inspecting.engine_sha256,
        golden=outcomes,
        alpha=alpha,
        tests=tuple(tests),
        baseline_id=found[1].study_id if found else None,
        baseline_at=found[1].at if found else None,
        window_since=window.since if window else None,
        window_until=window.until if window else None,
        window_results=window.results if window else 0,
        window_frames=window.frames if window else 0,
    )
    record = store.record_study(
        kind=_KIND,
        name=name,
        who=who,
        passed=report.passed,
        document=report.model_dump(mode="json", exclude={"study_id"}),
        summary={"golden_parts": len(outcomes), "alarms": list(alarms)},
        why="golden-part challenge",
    )
    return report.model_copy(update={"study_id": record.study_id})


def read_window(store: Store, where: ResultFilter) -> Window:
    """Verdicts and frame statistics of production. Only the verdicts after inspection count, not the reviews."""
    verdicts: list[Verdict] = []
    shown: list[str] = []
    first = last = None
    for stored in store.results(where):
        verdicts.append(stored.result.verdict)
        if stored.has_image and stored.image_sha256:
            shown.append(stored.image_sha256)
        created = stored.result.created_at
        first = created if first is None else min(first, created)
        last = created if last is None else max(last, created)
    if len(shown) > _FRAMES:
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, _FRAMES).round().astype(int)]
    frames = [statistics for statistics in (_statistics(store.image(sha)) for sha in shown) if statistics is not None]
    return window_of(verdicts, frames, since=where.since or first, until=where.until or last)


def _statistics(image: bytes | None) -> FrameStatistics | None:
    """None for a picture that retention took, or that nobody can read."""
    if not image:
        return None
    try:
        return frame_statistics(image)
    except AuroraEdgeError:
        return None


def golden_frames(judged: Sequence[Judged]) -> dict[str, GoldenFrame]:
    """Golden parts by part; of several pictures of one the first."""
    found: dict[str, GoldenFrame] = {}
    for item in judged:
        if item.part.part not in found:
            found[item.part.part] = GoldenFrame(
                ng_probability=item.result.ng_probability,
                verdict=item.result.verdict,
                frame_sha256=hashlib.sha256(item.frame).hexdigest() if item.frame else "",
                statistics=_statistics(item.frame),
            )
    return found


def _outcome(item: Judged, baseline: Baseline | None) -> GoldenOutcome:
    standard, verdict = item.part.standard, item.result.verdict
    what = ""
    if verdict is Verdict.ERROR:
        what = "error"
    elif verdict is Verdict.REVIEW:
        what = "undecided"
    elif verdict is not standard:
        what = "escape" if standard is Verdict.NG else "overkill"
    before = baseline.golden.get(item.part.part) if baseline else None
    return GoldenOutcome(
        part=item.part.part,
        image=item.part.image.name,
        standard=standard,
        verdict=verdict,
        ng_probability=item.result.ng_probability,
        baseline_ng_probability=before.ng_probability if before else None,
        what=what,
        detail=item.result.error.message if item.result.error else "",
    )


def _changes(baseline: Baseline, recipe: Recipe, inspecting: Inspecting, where: ResultFilter) -> list[str]:
    """What is different from the baseline on purpose, and makes a new one due."""
    notes = []
    if baseline.engine_sha256 != inspecting.engine_sha256:
        notes.append("The engine is another one than at the baseline: make a new baseline if that is meant.")
    if baseline.recipe_sha256 != recipe.sha256:
        notes.append("The recipe is another one than at the baseline: make a new baseline if that is meant.")
    if baseline.where != _conditions(where):
        notes.append("The baseline was made of another choice of lines, stations or cameras.")
    return notes


def _conditions(where: ResultFilter) -> dict[str, tuple[str, ...]]:
    found = {}
    for name in ("lot", "line", "station", "camera", "job"):
        value = getattr(where, name)
        if value is not None:
            found[name] = (value,) if isinstance(value, str) else tuple(sorted(value))
    return found
