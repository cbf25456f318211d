"""Who judged which part how: from CSV or JSON lines, and from the result store."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from auroraedge.errors import StudyError
from auroraedge.inspection.results import Verdict

if TYPE_CHECKING:
    from auroraedge.store import ResultFilter, Store

# What inspection sheets say, in the languages that we met; AIAG's forms use 1 for accept and 0 for reject.
_WORDS: dict[str, Verdict] = {
    **dict.fromkeys(("ok", "good", "pass", "passed", "accept", "accepted", "1", "true", "conforming"), Verdict.OK),
    **dict.fromkeys(("gut", "i.o.", "io", "合格", "良品"), Verdict.OK),
    **dict.fromkeys(("ng", "nok", "not ok", "bad", "fail", "failed", "reject", "rejected", "0", "false"), Verdict.NG),
    **dict.fromkeys(
        ("defective", "nonconforming", "schlecht", "n.i.o.", "nio", "不合格", "不良", "不良品"), Verdict.NG
    ),
    **dict.fromkeys(("review", "unsure", "unclear"), Verdict.REVIEW),
    "error": Verdict.ERROR,
}
_COLUMNS = ("part", "appraiser", "trial", "rating", "standard")
# Other names of the columns.
_ALIASES = {"part_id": "part", "sample": "part", "inspector": "appraiser", "operator": "appraiser", "verdict": "rating"}
_ALIASES |= {"assessment": "rating", "result": "rating", "reference": "standard", "truth": "standard", "run": "trial"}


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One judgement. `trial` counts an appraiser's judgements of a part from 1."""

    part: str
    appraiser: str
    trial: int
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class RatingSet:
    """Judgements and, by part, what is true: OK or NG. `notes`: what a reader of the study has to know."""

    ratings: tuple[Rating, ...]
    standards: Mapping[str, Verdict] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def parse_verdict(text: str, where: str) -> Verdict:
    """A verdict from the words that people use. Raises StudyError."""
    found = _WORDS.get(str(text).strip().lower())
    if found is None:
        raise StudyError(
            f"{where}: '{text}' is no verdict.", field="rating", remedy="Write OK or NG (pass/fail, 1/0), or REVIEW."
        )
    return found


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows with where they are, and columns under their own names."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise StudyError(f"There is no file {path}.", field="ratings", remedy="Name a CSV or JSONL file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read: {error}.", field="ratings", remedy="Save it as UTF-8.") from error
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
                if not isinstance(content, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise StudyError(f"{path.name}, line {number}: {error}.", field="ratings") from error
            values = {str(k).strip().lower(): v for k, v in content.items() if v is not None}
            yield f"{path.name}, line {number}", {_ALIASES.get(k, k): str(v).strip() for k, v in values.items()}
        return
    header = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    for row in reader:
        cells = {(k or "").strip().lower(): v.strip() for k, v in row.items() if isinstance(v, str) and v.strip()}
        if cells:
            yield f"{path.name}, line {reader.line_num}", {_ALIASES.get(k, k): v for k, v in cells.items()}


def read_ratings(path: Path, *, appraiser: str | None = None) -> RatingSet:
    """Judgements with the columns part, appraiser, trial (optional), rating and standard (optional).

    appraiser: whose they are where the file has no such column. Without `trial` they count in the order of the file.
    Raises StudyError naming the line.
    """
    ratings: list[Rating] = []
    standards: dict[str, Verdict] = {}
    seen: set[tuple[str, str, int]] = set()
    counts: Counter[tuple[str, str]] = Counter()
    for where, row in _rows(path):
        missing = [n for n in ("part", "appraiser", "rating") if n not in row and not (n == "appraiser" and appraiser)]
        if missing:
            raise StudyError(
                f"{where}: no {', '.join(missing)}.", field="ratings", remedy=f"Columns: {', '.join(_COLUMNS)}."
            )
        part, who = row["part"], row.get("appraiser") or appraiser or ""
        counts[(part, who)] += 1
        trial = _trial(row.get("trial"), where) if "trial" in row else counts[(part, who)]
        if (part, who, trial) in seen:
            raise StudyError(
                f"{where}: {who} judged part {part} twice in trial {trial}.",
                field="trial",
                remedy="Number the trials, or leave the column out to have them counted.",
            )
        seen.add((part, who, trial))
        ratings.append(Rating(part=part, appraiser=who, trial=trial, verdict=parse_verdict(row["rating"], where)))
        if "standard" in row:
            _set_standard(standards, part, row["standard"], where)
    if not ratings:
        raise StudyError(f"{path} has no ratings.", field="ratings", remedy=f"Columns: {', '.join(_COLUMNS)}.")
    return RatingSet(ratings=tuple(ratings), standards=standards, sources=(str(path),))


def _trial(text: str | None, where: str) -> int:
    try:
        number = int(float(text or ""))
    except ValueError as error:
        raise StudyError(f"{where}: '{text}' is no trial number.", field="trial") from error
    return number


def _set_standard(standards: dict[str, Verdict], part: str, text: str, where: str) -> None:
    verdict = parse_verdict(text, where)
    if verdict not in (Verdict.OK, Verdict.NG):
        raise StudyError(f"{where}: a standard is OK or NG, not {verdict.value}.", field="standard")
    if standards.setdefault(part, verdict) is not verdict:
        raise StudyError(f"{where}: part {part} had another standard before.", field="standard")


def read_standards(path: Path) -> dict[str, Verdict]:
    """What is true of each part, from a file with the columns part and standard."""
    standards: dict[str, Verdict] = {}
    for where, row in _rows(path):
        if "part" not in row or "standard" not in row:
            raise StudyError(f"{where}: no part or no standard.", field="standard", remedy="Columns: part, standard.")
        _set_standard(standards, row["part"], row["standard"], where)
    return standards


def ratings_from_store(store: Store, where: ResultFilter) -> RatingSet:
    """Inspections of a part as the model's trials, and every person's review as a judgement of that person.

    Results without a part id are left out. The model is named with the beginning of its engine's hash, so that two
    engines are two appraisers.
    """
    ratings: list[Rating] = []
    counts: Counter[tuple[str, str]] = Counter()
    unnamed = 0

    def add(part: str, who: str, verdict: Verdict) -> None:
        counts[(part, who)] += 1
        ratings.append(Rating(part=part, appraiser=who, trial=counts[(part, who)], verdict=verdict))

    for stored in store.results(where):
        result = stored.result
        part = result.request.part_id
        if not part:
            unnamed += 1
            continue
        add(part, f"{result.model_id or 'model'} {result.engine_sha256[:8]}".strip(), result.verdict)
        if stored.review is not None:
            for review in store.reviews(result.result_id):
                add(part, review.reviewer, review.verdict)
    if not ratings:
        raise StudyError(
            "No stored result of the choice has a part id.",
            field="store",
            remedy="Send part_id with each request, and choose results that have one.",
        )
    notes = (f"{unnamed:,} results without a part id are left out.",) if unnamed else ()
    return RatingSet(ratings=tuple(ratings), sources=(f"store {store.database.shown}",), notes=notes)


def combine(sets: Iterable[RatingSet], standards: Mapping[str, Verdict] | None = None) -> RatingSet:
    """Several sources as one study. Raises StudyError where they contradict each other."""
    ratings: list[Rating] = []
    known: dict[str, Verdict] = dict(standards or {})
    sources: list[str] = []
    notes: list[str] = []
    used: dict[str, str] = {}
    for found in sets:
        source = ", ".join(found.sources)
        for name in sorted({rating.appraiser for rating in found.ratings}):
            if used.setdefault(name, source) != source:
                raise StudyError(f"'{name}' is an appraiser in {used[name]} and in {source}.", field="appraiser")
        for part, verdict in found.standards.items():
            if known.setdefault(part, verdict) is not verdict:
                raise StudyError(f"Part {part} has another standard in {source}.", field="standard")
        ratings += found.ratings
        sources += found.sources
        notes += found.notes
    return RatingSet(ratings=tuple(ratings), standards=known, sources=tuple(sources), notes=tuple(notes))


def by_part(ratings: Sequence[Rating]) -> dict[str, dict[str, list[Verdict]]]:
    """Verdicts by part and appraiser, in the order of the trials."""
    ordered = sorted(ratings, key=lambda r: (r.part, r.appraiser, r.trial))
    found: dict[str, dict[str, list[Verdict]]] = defaultdict(lambda: defaultdict(list))
    for rating in ordered:
        found[rating.part][rating.appraiser].append(rating.verdict)
    return {part: dict(people) for part, people in found.items()}
