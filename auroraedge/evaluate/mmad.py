"""Runs benchmarks in the format of MMAD: multiple-choice questions about pictures of industrial parts.

Source of format and scores: Jiang et al., "MMAD: A Comprehensive Benchmark for Multimodal Large Language Models in
Industrial Anomaly Detection", arXiv 2410.09453, and its repository github.com/jam-cc/MMAD. `mmad.json` maps each
picture, DATASET/CATEGORY/.../NAME, to its `conversation`: a list of {Question, Answer, Options: {A: text, ...}, type},
and to `similar_templates`, defect-free pictures of the same part. A picture is normal where 'good' is in its path.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from rich.console import Console
from rich.progress import track
from rich.table import Table

from auroraedge.data.pack import image_bytes
from auroraedge.errors import DatasetError, InvalidRequestError
from auroraedge.evaluate.metrics import Estimate, cluster_bootstrap, wilson
from auroraedge.evaluate.respondent import Respondent
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.runtime import DEFAULT_ENGINE, Inspector

FILE = "mmad.json"
DETECTION = "Anomaly Detection"
# The paper reports these two as one.
_MERGED = {"Object Structure": "Object Analysis", "Object Details": "Object Analysis"}
_LETTER = re.compile(r"\b([A-Z])\b")
ANSWER_WAYS = ("options", "letter", "generate")


class Question(BaseModel):
    """One question of a conversation; keys of the file that are not listed are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    question: str = Field(alias="Question", min_length=1)
    answer: str = Field(alias="Answer")
    options: dict[Annotated[str, Field(pattern="^[A-Z]$")], str] = Field(alias="Options", min_length=2)
    type: str = Field(min_length=1)

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> Question:
        if self.answer not in self.options:
            raise ValueError(f"Answer '{self.answer}' is none of the options {', '.join(self.options)}")
        return self

    @property
    def kind(self) -> str:
        return _MERGED.get(self.type, self.type)


class Picture(BaseModel):
    """What the file says of one picture."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    conversation: tuple[Question, ...] = ()
    similar_templates: tuple[str, ...] = ()


_FILE = TypeAdapter(dict[str, Picture])


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about a picture; `image` and `template` are paths inside the benchmark's folder."""

    image: str
    number: int
    question: Question
    template: str | None

    @property
    def dataset(self) -> str:
        return PurePosixPath(self.image).parts[0]

    @property
    def category(self) -> str:
        return "/".join(PurePosixPath(self.image).parts[:2])

    @property
    def normal(self) -> bool:
        return "good" in self.image


class Answered(BaseModel):
    """`given`: the letter, or empty where the text held none. Keys as in the answer files of the benchmark's code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str
    number: int
    question_type: str
    correct_answer: str
    gpt_answer: str
    options: int
    text: str = ""


class Share(BaseModel):
    """Right answers of some questions. chance: expected share of a random choice among each question's options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy: Estimate
    chance: float
    most_frequent_letter: float


class MmadReport(BaseModel):
    """average: as the paper counts it, the mean over datasets of the mean over question types, in which the type
    'Anomaly Detection' counts the mean of the accuracies on normal and on defective pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    created_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    model: str
    answer_by: str
    template: bool
    recipe_id: str | None
    pictures: int
    questions: int
    without_answer: int
    missing_pictures: int
    overall: Share
    average: Estimate
    average_chance: float
    by_type: dict[str, Share]
    by_category: dict[str, Share]
    detection_normal: Estimate
    detection_defective: Estimate
    notes: tuple[str, ...]


def load_questions(folder: Path, limit: int | None = None) -> tuple[list[Asked], int]:
    """The questions about all pictures that are there (`limit`: of so many, spread evenly), and how many are not.

    Raises DatasetError for a folder without a valid mmad.json, a path that leaves the folder, and no picture at all.
    """
    path = folder / FILE
    if not path.is_file():
        raise DatasetError(f"There is no {FILE} in {folder}.", field="data", remedy="Name the folder that holds it.")
    try:
        content = _FILE.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise DatasetError(f"{path}: {first['msg']}.", field=where) from error
    for name in (name for key, picture in content.items() for name in (key, *picture.similar_templates[:1])):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or len(PurePosixPath(name).parts) < 3:
            raise DatasetError(f"{path}: '{name}' is not DATASET/CATEGORY/.../NAME.", field=FILE)
    there = [key for key in content if content[key].conversation and (folder / key).is_file()]
    missing = sum(bool(picture.conversation) for picture in content.values()) - len(there)
    if not there:
        raise DatasetError(
            f"None of the pictures that {path} names is in {folder}.",
            field="data",
            remedy="Unpack the data sets beside it, each into the folder of its name.",
        )
    chosen = [there[i * len(there) // limit] for i in range(limit)] if limit and limit < len(there) else there
    return [
        Asked(
            image=key,
            number=number,
            question=question,
            template=next((t for t in content[key].similar_templates if (folder / t).is_file()), None),
        )
        for key in chosen
        for number, question in enumerate(content[key].conversation)
    ], missing


def parse_letter(text: str, options: dict[str, str]) -> str:
    """The first letter of an option that stands alone in `text`, else the option whose text it holds, else ''."""
    for letter in _LETTER.findall(text):
        if letter in options:
            return str(letter)
    words = text.strip().lower()
    held = [letter for letter, option in options.items() if words and option.strip(" .").lower() in words]
    return held[0] if len(held) == 1 else ""


def asked_text(question: Question) -> str:
    """The question with its options, one a line, and how to answer."""
    options = "\n".join(f"{letter}. {text}" for letter, text in question.options.items())
    return f"{question.question}\n{options}\nAnswer with the letter of one option."


class _Answerer:
    """Answers by one of ANSWER_WAYS; where there is a recipe, yes or no about a defect by its verdict."""

    def __init__(
        self, folder: Path, engine: Path, answer_by: str, template: bool, recipe: Recipe | None, threads: int | None
    ):
        self._folder, self._by, self._template, self._recipe = folder, answer_by, template, recipe
        self.respondent = Respondent.open(engine, threads=threads)
        self._inspector = None if recipe is None else Inspector.open(engine, threads=threads)

    def close(self) -> None:
        self.respondent.close()
        if self._inspector is not None:
            self._inspector.close()

    def answer(self, asked: Asked) -> tuple[str, str]:
        """The letter, and the text that it was read from where there is one."""
        question = asked.question
        image = image_bytes(self._folder / asked.image)
        shown = self._template and asked.template is not None
        template = image_bytes(self._folder / str(asked.template)) if shown else None
        if self._inspector is not None and question.kind == DETECTION and (said := _yes_no(question.options)):
            return said[self._defective(image, template)], ""
        if self._by == "generate":
            text = self.respondent.generate(image, asked_text(question), max_new_tokens=32, template=template)
            return parse_letter(text, question.options), text
        letters = list(question.options)
        if self._by == "letter":
            prompt, texts = asked_text(question), letters
        else:
            prompt, texts = question.question, [text.strip() or letter for letter, text in question.options.items()]
        found = self.respondent.log_likelihoods(image, prompt, texts, template=template)
        return letters[max(range(len(found)), key=lambda i: found[i].per_token)], ""

    def _defective(self, image: bytes, template: bytes | None) -> bool:
        assert self._inspector is not None and self._recipe is not None
        result = self._inspector.inspect(image, self._recipe, reference=template)
        # A benchmark has no REVIEW: the probability decides.
        return (result.ng_probability or 0.0) >= 0.5


def _yes_no(options: dict[str, str]) -> dict[bool, str] | None:
    """The letters of 'yes' and 'no' where those are the two options."""
    said = {text.strip(" .").lower(): letter for letter, text in options.items()}
    return {True: said["yes"], False: said["no"]} if set(said) == {"yes", "no"} else None


def _known(out: Path | None, identity: dict[str, str]) -> dict[tuple[str, int], Answered]:
    """What `out` holds of an earlier call; a new file gets its first line. A line that was cut short is dropped."""
    if out is None:
        return {}
    if not out.is_file() or not out.stat().st_size:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(identity) + "\n", encoding="utf-8")
        return {}
    whole = out.read_text(encoding="utf-8").rsplit("\n", 1)[0]
    try:
        header, *lines = whole.split("\n")
        if json.loads(header) != identity:
            raise DatasetError(f"{out} holds answers of another run.", field="out", remedy="Name another file.")
        found = [Answered.model_validate_json(line) for line in lines]
    except (json.JSONDecodeError, ValidationError) as error:
        raise DatasetError(f"{out} is not a file of answers.", field="out", remedy="Name another file.") from error
    out.write_text(whole + "\n", encoding="utf-8")
    return {(each.image, each.number): each for each in found}


def run_mmad(
    folder: Path,
    engine: Path | None = None,
    *,
    answer_by: Literal["options", "letter", "generate"] | str = "options",
    template: bool = False,
    recipe: Recipe | str | Path | None = None,
    limit: int | None = None,
    out: Path | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> MmadReport:
    """Asks an engine package or model folder (None: the embedded nano) all questions.

    out: a file of answers that the same call goes on from. Raises DatasetError, RecipeError, EngineError, and
    InvalidRequestError for another way to answer; KeyboardInterrupt after Ctrl-C, with what is answered kept in `out`.
    """
    if answer_by not in ANSWER_WAYS:
        raise InvalidRequestError(
            f"'{answer_by}' is no way to answer.", field="answer_by", remedy=f"Choose {', '.join(ANSWER_WAYS)}."
        )
    chosen = recipe if isinstance(recipe, Recipe) or recipe is None else load_recipe(recipe)
    if chosen is not None and chosen.golden_reference == "required" and not template:
        raise InvalidRequestError(
            f"Recipe '{chosen.id}' compares with a golden sample.", field="recipe", remedy="Add --template."
        )
    questions, missing = load_questions(folder, limit)
    answerer = _Answerer(folder, engine or DEFAULT_ENGINE, answer_by, template, chosen, threads)
    try:
        identity = {
            "mmad_answers": "1",
            "model": answerer.respondent.name,
            "answer_by": answer_by,
            "template": str(template),
            "recipe_sha256": "" if chosen is None else chosen.sha256,
        }
        known = _known(out, identity)
        answers = []
        steps = track(questions, "mmad", console=Console(stderr=True), transient=True) if progress else questions
        for asked in steps:
            found = known.get((asked.image, asked.number))
            if found is None:
                letter, text = answerer.answer(asked)
                found = Answered(
                    image=asked.image,
                    number=asked.number,
                    question_type=asked.question.kind,
                    correct_answer=asked.question.answer,
                    gpt_answer=letter,
                    options=len(asked.question.options),
                    text=text,
                )
                if out is not None:
                    with out.open("a", encoding="utf-8") as file:
                        file.write(found.model_dump_json() + "\n")
            answers.append(found)
        model = answerer.respondent.name
    finally:
        answerer.close()
    return _report(questions, answers, missing, model, answer_by, template, chosen)


def _report(
    questions: Sequence[Asked],
    answers: Sequence[Answered],
    missing: int,
    model: str,
    answer_by: str,
    template: bool,
    recipe: Recipe | None,
) -> MmadReport:
    kinds = np.array([a.question_type for a in answers])
    datasets = np.array([asked.dataset for asked in questions])
    categories = np.array([asked.category for asked in questions])
    normal = np.array([asked.normal for asked in questions])
    right = np.array([a.gpt_answer == a.correct_answer for a in answers], dtype=float)
    detection = kinds == DETECTION
    notes = ["A question without a usable answer counts as wrong; the benchmark's own code leaves it out."]
    if missing:
        notes.append(f"{missing} pictures of {FILE} are not there and left out: no score of the whole benchmark.")
    if recipe is not None:
        notes.append(f"'Is there a defect' was answered by P(NG) >= 0.5 under recipe '{recipe.id}', not in words.")

    def share(chosen: np.ndarray) -> Share:
        picked = [answers[i] for i in np.flatnonzero(chosen).tolist()]
        letters = Counter(a.correct_answer for a in picked)
        return Share(
            accuracy=wilson(int(right[chosen].sum()), len(picked)),
            chance=float(np.mean([1 / a.options for a in picked])),
            most_frequent_letter=letters.most_common(1)[0][1] / len(picked),
        )

    average = _average_of(kinds, datasets, normal)
    chance = np.array([1 / a.options for a in answers])
    return MmadReport(
        model=model,
        answer_by=answer_by,
        template=template,
        recipe_id=None if recipe is None else recipe.id,
        pictures=len({a.image for a in answers}),
        questions=len(answers),
        without_answer=sum(not a.gpt_answer for a in answers),
        missing_pictures=missing,
        overall=share(np.ones(len(answers), dtype=bool)),
        average=cluster_bootstrap(lambda weights: average(right, weights), [a.image for a in answers]),
        average_chance=average(chance, np.ones(len(answers))),
        by_type={str(kind): share(kinds == kind) for kind in sorted(set(kinds))},
        by_category={str(name): share(categories == name) for name in sorted(set(categories))},
        detection_normal=wilson(int(right[detection & normal].sum()), int((detection & normal).sum())),
        detection_defective=wilson(int(right[detection & ~normal].sum()), int((detection & ~normal).sum())),
        notes=tuple(notes),
    )


def _average_of(
    kinds: np.ndarray, datasets: np.ndarray, normal: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], float]:
    """The paper's average of `right` [n] under weights [n] of the questions; see MmadReport."""

    def mean(right: np.ndarray, weights: np.ndarray, chosen: np.ndarray) -> float:
        total = weights[chosen].sum()
        return float(weights[chosen] @ right[chosen] / total) if total else float("nan")

    def average(right: np.ndarray, weights: np.ndarray) -> float:
        rows = []
        for dataset in sorted(set(datasets)):
            cells = []
            for kind in sorted(set(kinds)):
                chosen = (datasets == dataset) & (kinds == kind)
                parts = [chosen & normal, chosen & ~normal] if kind == DETECTION else [chosen]
                cells.append(_mean([mean(right, weights, part) for part in parts]))
            rows.append(_mean(cells))
        return _mean(rows)

    return average


def _mean(values: Sequence[float]) -> float:
    """Of those that are defined; nan without any."""
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else float("nan")


def print_mmad(report: MmadReport, console: Console) -> None:
    """A row a question type, then the totals."""
    table = Table(title=f"{report.model}: {report.questions} questions about {report.pictures} pictures")
    for column in ("question type", "questions", "accuracy [95 %]", "random choice", "one letter always"):
        table.add_column(column, justify="left" if column == "question type" else "right")
    for name, share in (*report.by_type.items(), ("all questions", report.overall)):
        table.add_row(
            name,
            str(share.accuracy.denominator),
            _figure(share.accuracy),
            f"{share.chance:.3f}",
            f"{share.most_frequent_letter:.3f}",
        )
    table.add_row("average as in the paper", "", _figure(report.average), f"{report.average_chance:.3f}", "")
    console.print(table)
    console.print(
        f"'is there a defect' is right on {_figure(report.detection_defective)} of the defective and on "
        f"{_figure(report.detection_normal)} of the normal pictures; {report.without_answer} without an answer"
    )
    for note in report.notes:
        console.print(f"- {note}")


def _figure(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    if estimate.low is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
