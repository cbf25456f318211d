"""What a benchmark writes: one JSON document, whatever the suite. The `benchmarks/results/*.json` that carry a `suite`
are of this form; the comparison with a baseline, the plots and docs/performance.md are made from it.

A measurement is the raw samples of one figure of one contender in one case, in the order in which they were taken.
Samples of one case with the same index come from the same round, so contenders can be compared round by round.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from auroraedge.errors import InvalidRequestError
from benchmarks.environment import environment

SCHEMA_VERSION = 1
RESULTS = Path(__file__).resolve().parent / "results"


def read_result(name: str) -> dict[str, Any] | None:
    """A committed result of any form; None where it is not there."""
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Measurement(_Strict):
    """case: the work, such as 'one view'; contender: a key of Document.contenders; metric: what was measured, such as
    'verdict', 'answer', 'load', 'memory', 'decode' (of a token), 'throughput'. unit: 'ms', 's', 'MB', '1/s',
    'tokens/s', 'J'. better: whether less or more of it is wanted."""

    case: str
    contender: str
    metric: str
    unit: str
    samples: list[float] = Field(min_length=1)
    better: Literal["less", "more"] = "less"


class Parity(_Strict):
    """Whether a contender gave the same answer as another one, before it was timed. figures: cosine, largest error and
    the like, by name; must: a contender with equal weights whose answer differs makes the run fail."""

    case: str
    contender: str
    against: str
    equal: bool
    must: bool = False
    figures: dict[str, float] = Field(default_factory=dict)


class Target(_Strict):
    """measured None: not measured in this run, and `note` says why."""

    name: str
    wanted: str
    measured: float | None = None
    met: bool | None = None
    note: str = ""


class Floor(_Strict):
    """What the hardware allows at best. how: the formula with its numbers, in words."""

    case: str
    metric: str
    unit: str
    value: float
    how: str


class Document(_Strict):
    """One run of a suite. contenders: what each is, in words. notes: what is left out or favours somebody. probe_ms: a
    fixed piece of arithmetic, timed once a round, which shows how fast the machine was just then."""

    schema_version: int = SCHEMA_VERSION
    suite: str
    title: str
    environment: dict[str, Any] = Field(default_factory=environment)
    settings: dict[str, Any] = Field(default_factory=dict)
    contenders: dict[str, str] = Field(default_factory=dict)
    measurements: list[Measurement] = Field(default_factory=list)
    parity: list[Parity] = Field(default_factory=list)
    floors: list[Floor] = Field(default_factory=list)
    targets: list[Target] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    probe_ms: list[float] = Field(default_factory=list)

    def find(self, case: str, contender: str, metric: str) -> Measurement | None:
        wanted = (case, contender, metric)
        return next((m for m in self.measurements if (m.case, m.contender, m.metric) == wanted), None)

    def add(
        self, case: str, contender: str, metric: str, unit: str, samples: list[float], better: str = "less"
    ) -> None:
        """Appends samples to their measurement, which is made where there is none."""
        found = self.find(case, contender, metric)
        if found is not None:
            found.samples += samples
        elif samples:
            fields = dict(case=case, contender=contender, metric=metric, unit=unit, samples=samples, better=better)
            self.measurements.append(Measurement.model_validate(fields))

    @property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(m.case for m in self.measurements))


def write_document(document: Document, path: Path) -> None:
    """Atomic; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = document.model_dump_json(indent=1) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8", suffix=".part") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    os.replace(file.name, path)


def read_document(path: Path) -> Document:
    """Raises InvalidRequestError for a file that is missing or of another form."""
    try:
        return Document.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequestError(
            f"{path} cannot be read: {error.strerror}.", field="baseline", remedy="Write one with --json FILE."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidRequestError(
            f"{path} is not a result of `python -m benchmarks`: {where}: {first['msg']}.",
            field="baseline",
            remedy="Give a file that --json wrote.",
        ) from error
