"""Attribute agreement analysis: does an appraiser repeat its answers, agree with the others, and with the truth?

After AIAG, "Measurement Systems Analysis", 4th ed. (2010), chapter III C: effectiveness, miss and false-alarm rate and
kappa from cross tables of all trials, with the limits of its table III-C 7. Added are intervals that know that ratings
of one part are not independent, and REVIEW as an answer of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from auroraedge.errors import StudyError
from auroraedge.inspection.results import Verdict
from auroraedge.studies.kappa import Kappa, cohen_kappa, fleiss_kappa
from auroraedge.studies.proportions import Share, clustered_share, share, z_of
from auroraedge.studies.ratings import RatingSet, by_part

CATEGORIES = (Verdict.OK, Verdict.NG, Verdict.REVIEW, Verdict.ERROR)
_PLACE = {verdict: index for index, verdict in enumerate(CATEGORIES)}
ReviewAs = Literal["own", "ng"]
Grade = Literal["acceptable", "marginal", "unacceptable"]

# AIAG MSA 4th ed., table III-C 7: effectiveness at least, miss rate and false-alarm rate at most.
LIMITS: dict[str, tuple[float, float]] = {
    "effectiveness": (0.90, 0.80),
    "miss_rate": (0.02, 0.05),
    "false_alarm_rate": (0.05, 0.10),
}
# AIAG: kappa above 0.75 is good to excellent agreement, below 0.40 poor.
KAPPA_LIMITS = (0.75, 0.40)
# Below these an analysis says little; AIAG's own example has 50 parts and 3 trials.
_FEW_PARTS = 20

People = Mapping[str, Sequence[Verdict]]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Appraiser(_Model):
    """One appraiser. Rates need a standard; `within` needs two trials.

    within: parts judged the same in every trial. effectiveness: parts judged right in every trial. miss_rate:
    judgements OK of bad parts (escape); false_alarm_rate: judgements NG of good parts (overkill); undecided_rate:
    REVIEW and ERROR. table: judgements by standard and verdict.
    """

    name: str
    parts: int
    trials: int
    within: Share | None
    within_kappa: Kappa | None
    effectiveness: Share | None
    standard_kappa: Kappa | None
    miss_rate: Share | None
    false_alarm_rate: Share | None
    undecided_rate: Share
    table: dict[str, dict[str, int]]
    missed_parts: tuple[str, ...]
    false_alarm_parts: tuple[str, ...]
    mixed_parts: tuple[str, ...]
    grades: dict[str, Grade]
    grade: Grade | None


class Pair(_Model):
    """Two appraisers, trial by trial. table: judgements of the first (outer) and the second."""

    first: str
    second: str
    agreement: Share
    kappa: Kappa
    table: dict[str, dict[str, int]]


class PartRow(_Model):
    """How one part was judged. wrong: judgements that are not the standard, or without one not the majority's."""

    part: str
    standard: Verdict | None
    ratings: dict[str, tuple[Verdict, ...]]
    wrong: int
    total: int


class AgreementReport(_Model):
    """The whole study. Shares `between` and `all_standard` count the parts that everyone judged in every trial."""

    title: str
    level: float
    review_as: ReviewAs
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    parts: int
    good_parts: int
    bad_parts: int
    has_standard: bool
    categories: tuple[Verdict, ...]
    appraisers: tuple[Appraiser, ...]
    pairs: tuple[Pair, ...]
    between: Share | None
    between_kappa: Kappa | None
    all_standard: Share | None
    all_standard_kappa: Kappa | None
    rows: tuple[PartRow, ...]


def analyse(
    study: RatingSet, *, title: str = "Attribute agreement", level: float = 0.95, review_as: ReviewAs = "own"
) -> AgreementReport:
    """Every agreement of the study. review_as: "ng" takes REVIEW and ERROR as NG, because someone has to look.

    Raises StudyError for a study without anything to compare.
    """
    if not 0.5 < level < 1:
        raise StudyError(f"The level is {level}; it must lie between 0.5 and 1.", field="level")
    table = by_part(study.ratings)
    if review_as == "ng":
        table = {
            part: {who: [_as_ng(v) for v in verdicts] for who, verdicts in people.items()}
            for part, people in table.items()
        }
    names = sorted({who for people in table.values() for who in people})
    standards = {part: study.standards[part] for part in table if part in study.standards}
    repeated = any(len(verdicts) > 1 for people in table.values() for verdicts in people.values())
    if len(names) < 2 and not standards and not repeated:
        raise StudyError(
            "One judgement of each part by one appraiser leaves nothing to compare.",
            field="ratings",
            remedy="Add trials, another appraiser, or the standard of each part.",
        )
    trials = max(len(verdicts) for people in table.values() for verdicts in people.values())
    full = {who: max(len(people[who]) for people in table.values() if who in people) for who in names}
    complete = [part for part, people in table.items() if {who: len(v) for who, v in people.items()} == full]
    judged_right = [part for part in complete if part in standards]
    everyone = {part: [v for verdicts in table[part].values() for v in verdicts] for part in table}
    between = between_kappa = None
    if len(names) > 1 and complete:
        between = share(sum(len(set(everyone[part])) == 1 for part in complete), len(complete), level)
        between_kappa = fleiss_kappa(_counts([everyone[part] for part in complete]), level)
    all_standard = all_kappa = None
    if judged_right:
        right = sum(set(everyone[part]) == {standards[part]} for part in judged_right)
        all_standard = share(right, len(judged_right), level)
        all_kappa = cohen_kappa(_against(standards, {part: everyone[part] for part in judged_right}), level)
    return AgreementReport(
        title=title,
        level=level,
        review_as=review_as,
        sources=study.sources,
        notes=(*study.notes, *_notes(table, names, trials, complete, standards, level)),
        parts=len(table),
        good_parts=sum(verdict is Verdict.OK for verdict in standards.values()),
        bad_parts=sum(verdict is Verdict.NG for verdict in standards.values()),
        has_standard=bool(standards),
        categories=tuple(c for c in CATEGORIES if any(c in verdicts for verdicts in everyone.values())),
        appraisers=tuple(_appraiser(name, table, standards, level) for name in names),
        pairs=tuple(_pair(a, b, table, level) for a, b in combinations(names, 2)),
        between=between,
        between_kappa=between_kappa,
        all_standard=all_standard,
        all_standard_kappa=all_kappa,
        rows=_part_rows(table, standards),
    )


def _as_ng(verdict: Verdict) -> Verdict:
    return verdict if verdict is Verdict.OK else Verdict.NG


def _counts(ratings: Sequence[Sequence[Verdict]]) -> NDArray[np.float64]:
    """[parts, categories]"""
    counts = np.zeros((len(ratings), len(CATEGORIES)))
    for row, verdicts in enumerate(ratings):
        for verdict in verdicts:
            counts[row, _PLACE[verdict]] += 1
    return counts


def _against(standards: Mapping[str, Verdict], ratings: Mapping[str, Sequence[Verdict]]) -> NDArray[np.float64]:
    """A table of (rating, standard) for each part: [parts, categories, categories]."""
    tables = np.zeros((len(ratings), len(CATEGORIES), len(CATEGORIES)))
    for row, (part, verdicts) in enumerate(ratings.items()):
        for verdict in verdicts:
            tables[row, _PLACE[verdict], _PLACE[standards[part]]] += 1
    return tables


def _named(
    table: NDArray[np.float64], rows: Sequence[Verdict], columns: Sequence[Verdict]
) -> dict[str, dict[str, int]]:
    return {r.value: {c.value: int(table[_PLACE[r], _PLACE[c]]) for c in columns} for r in rows}


def _appraiser(name: str, table: Mapping[str, People], standards: Mapping[str, Verdict], level: float) -> Appraiser:
    own = {part: people[name] for part, people in table.items() if name in people}
    several = {part: verdicts for part, verdicts in own.items() if len(verdicts) > 1}
    known = {part: verdicts for part, verdicts in own.items() if part in standards}
    mixed = tuple(part for part, verdicts in several.items() if len(set(verdicts)) > 1)
    within = within_kappa = effectiveness = kappa = misses = alarms = None
    if several:
        within = share(len(several) - len(mixed), len(several), level)
        within_kappa = fleiss_kappa(_counts(list(several.values())), level)
    bad = {part: verdicts for part, verdicts in known.items() if standards[part] is Verdict.NG}
    good = {part: verdicts for part, verdicts in known.items() if standards[part] is Verdict.OK}
    tables = _against(standards, known)
    if known:
        right = sum(set(verdicts) == {standards[part]} for part, verdicts in known.items())
        effectiveness = share(right, len(known), level)
        kappa = cohen_kappa(tables, level)
        misses = _rate(bad, (Verdict.OK,), level)
        alarms = _rate(good, (Verdict.NG,), level)
    measured = {"effectiveness": effectiveness, "miss_rate": misses, "false_alarm_rate": alarms}
    grades = {name: _grade(name, rate.value) for name, rate in measured.items() if rate and rate.value is not None}
    order: tuple[Grade, ...] = ("unacceptable", "marginal", "acceptable")
    return Appraiser(
        name=name,
        parts=len(own),
        trials=max(len(verdicts) for verdicts in own.values()),
        within=within,
        within_kappa=within_kappa,
        effectiveness=effectiveness,
        standard_kappa=kappa,
        miss_rate=misses,
        false_alarm_rate=alarms,
        undecided_rate=_rate(own, (Verdict.REVIEW, Verdict.ERROR), level),
        table=_named(tables.sum(0).T, (Verdict.OK, Verdict.NG), CATEGORIES) if known else {},
        missed_parts=tuple(part for part, verdicts in bad.items() if Verdict.OK in verdicts),
        false_alarm_parts=tuple(part for part, verdicts in good.items() if Verdict.NG in verdicts),
        mixed_parts=mixed,
        grades=grades,
        grade=next((grade for grade in order if grade in grades.values()), None),
    )


def _rate(parts: Mapping[str, Sequence[Verdict]], wanted: Sequence[Verdict], level: float) -> Share:
    hits = [sum(verdict in wanted for verdict in verdicts) for verdicts in parts.values()]
    return clustered_share(hits, [len(verdicts) for verdicts in parts.values()], level)


def _grade(name: str, value: float) -> Grade:
    good, marginal = LIMITS[name]
    if name == "effectiveness":
        return "acceptable" if value >= good else "marginal" if value >= marginal else "unacceptable"
    return "acceptable" if value <= good else "marginal" if value <= marginal else "unacceptable"


def _pair(first: str, second: str, table: Mapping[str, People], level: float) -> Pair:
    both = [people for people in table.values() if first in people and second in people]
    tables = np.zeros((len(both), len(CATEGORIES), len(CATEGORIES)))
    same = []
    totals = []
    for row, people in enumerate(both):
        pairs = list(zip(people[first], people[second], strict=False))
        for a, b in pairs:
            tables[row, _PLACE[a], _PLACE[b]] += 1
        same.append(sum(a is b for a, b in pairs))
        totals.append(len(pairs))
    total = tables.sum(0)
    used = [c for c in CATEGORIES if total[_PLACE[c]].any() or total[:, _PLACE[c]].any()]
    return Pair(
        first=first,
        second=second,
        agreement=clustered_share(same, totals, level),
        kappa=cohen_kappa(tables, level),
        table=_named(total, used, used),
    )


def _part_rows(table: Mapping[str, People], standards: Mapping[str, Verdict]) -> tuple[PartRow, ...]:
    """All parts, those with the largest share of wrong judgements first."""
    rows = []
    for part, people in table.items():
        every = [verdict for verdicts in people.values() for verdict in verdicts]
        expected = standards.get(part) or max(CATEGORIES, key=every.count)
        rows.append(
            PartRow(
                part=part,
                standard=standards.get(part),
                ratings={who: tuple(verdicts) for who, verdicts in sorted(people.items())},
                wrong=sum(verdict is not expected for verdict in every),
                total=len(every),
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.wrong / row.total, row.part)))


def _notes(
    table: Mapping[str, People],
    names: Sequence[str],
    trials: int,
    complete: Sequence[str],
    standards: Mapping[str, Verdict],
    level: float,
) -> list[str]:
    """What limits the study."""
    notes = []
    left_out = len(table) - len(complete)
    if left_out and len(names) > 1:
        notes.append(
            f"{left_out} of {len(table)} parts were not judged by everyone in every trial; they are left out of the "
            "comparison of all appraisers."
        )
    if trials == 1:
        notes.append("Each part was judged once: nobody knows whether an appraiser would give the same answer again.")
    if len(table) < _FEW_PARTS:
        notes.append(f"{len(table)} parts are few; AIAG works with 50, the intervals show what these can tell.")
    if standards:
        bad = sum(verdict is Verdict.NG for verdict in standards.values())
        if len(standards) < len(table):
            notes.append(f"{len(table) - len(standards)} parts have no standard.")
        limit = LIMITS["miss_rate"][1]
        # Wilson's upper bound for no miss in n parts is z^2 / (n + z^2).
        needed = int(np.ceil(z_of(level) ** 2 * (1 - limit) / limit))
        if bad < needed:
            notes.append(
                f"{bad} bad parts: even without one miss a miss rate above {limit:.0%} cannot be ruled out; "
                f"that takes {needed} different bad parts."
            )
        good = len(standards) - bad
        if not bad or not good:
            notes.append("All parts have the same standard: kappa against it says nothing.")
    else:
        notes.append("No standard is known: the study tells agreement, not correctness.")
    return notes
