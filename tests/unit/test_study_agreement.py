"""Agreement studies: reading judgements, analysing them, the page, the command."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_inspector import FakeInspector, write_part
from store_support import make_result
from typer.testing import CliRunner, Result

from auroraedge.cli import app
from auroraedge.errors import StudyError
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.results import InspectionResult, Verdict, new_result_id
from auroraedge.store import Purpose, ResultFilter, Store
from auroraedge.studies.agreement import analyse
from auroraedge.studies.page import render_page
from auroraedge.studies.parts import read_parts
from auroraedge.studies.ratings import Rating, RatingSet, combine, ratings_from_store, read_ratings, read_standards

OK, NG, REVIEW = Verdict.OK, Verdict.NG, Verdict.REVIEW
SHORT = {"o": OK, "n": NG, "r": REVIEW}
STAMP = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)


def study(people: dict[str, list[str]], standards: str = "") -> RatingSet:
    """people: a text of o, n, r for each part, one letter a trial; standards: one letter a part."""
    ratings = [
        Rating(part=f"p{number}", appraiser=who, trial=trial, verdict=SHORT[letter])
        for who, parts in people.items()
        for number, letters in enumerate(parts)
        for trial, letter in enumerate(letters, start=1)
    ]
    known = {f"p{number}": SHORT[letter] for number, letter in enumerate(standards)}
    return RatingSet(ratings=tuple(ratings), standards=known, sources=("test",))


# -- analysis ------------------------------------------------------------------------------------------------------


def test_the_figures_of_aiag() -> None:
    """Counted by hand."""
    report = analyse(study({"Ada": ["ooo", "nnn", "non", "ooo"], "Bob": ["ooo", "nnn", "nnn", "nnn"]}, "onno"))
    ada, bob = report.appraisers
    assert (ada.within.count, ada.within.total) == (3, 4)  # type: ignore[union-attr]
    assert (ada.effectiveness.count, ada.effectiveness.total) == (3, 4)  # type: ignore[union-attr]
    assert (ada.miss_rate.count, ada.miss_rate.total) == (1, 6)  # type: ignore[union-attr]
    assert (ada.false_alarm_rate.count, ada.false_alarm_rate.total) == (0, 6)  # type: ignore[union-attr]
    assert (bob.false_alarm_rate.count, bob.effectiveness.count) == (3, 3)  # type: ignore[union-attr]
    assert ada.table == {
        "OK": {"OK": 6, "NG": 0, "REVIEW": 0, "ERROR": 0},
        "NG": {"OK": 1, "NG": 5, "REVIEW": 0, "ERROR": 0},
    }
    assert (ada.missed_parts, ada.mixed_parts, bob.false_alarm_parts) == (("p2",), ("p2",), ("p3",))
    assert (report.between.count, report.all_standard.count) == (2, 2)  # type: ignore[union-attr]
    (pair,) = report.pairs
    assert (pair.agreement.count, pair.agreement.total) == (8, 12)
    assert pair.kappa.value == pytest.approx((8 / 12 - (7 * 3 + 5 * 9) / 144) / (1 - (7 * 3 + 5 * 9) / 144))
    assert ada.grades == {
        "effectiveness": "unacceptable",
        "miss_rate": "unacceptable",
        "false_alarm_rate": "acceptable",
    }
    assert [row.part for row in report.rows] == ["p3", "p2", "p0", "p1"]
    assert report.categories == (OK, NG)


def test_grades_follow_the_table_of_aiag() -> None:
    def graded(misses: int, alarms: int) -> dict[str, str]:
        bad = ["o"] * misses + ["n"] * (100 - misses)
        good = ["n"] * alarms + ["o"] * (100 - alarms)
        (found,) = analyse(study({"Ada": bad + good}, "n" * 100 + "o" * 100)).appraisers
        return dict(found.grades)

    assert graded(2, 5) == {
        "effectiveness": "acceptable",
        "miss_rate": "acceptable",
        "false_alarm_rate": "acceptable",
    }
    assert graded(3, 6) == {"effectiveness": "acceptable", "miss_rate": "marginal", "false_alarm_rate": "marginal"}
    assert graded(6, 20)["miss_rate"] == graded(6, 20)["false_alarm_rate"] == "unacceptable"
    assert graded(0, 40)["effectiveness"] == "marginal"
    assert graded(0, 41)["effectiveness"] == "unacceptable"


def test_undecided_is_an_answer_of_its_own() -> None:
    people = {"model": ["rr", "nn", "oo", "ro"]}
    (own,) = analyse(study(people, "nnoo")).appraisers
    assert (own.miss_rate.count, own.miss_rate.total) == (0, 4)  # type: ignore[union-attr]
    assert own.undecided_rate.count == 3
    assert own.effectiveness.count == 2  # type: ignore[union-attr]
    (strict,) = analyse(study(people, "nnoo"), review_as="ng").appraisers
    assert strict.undecided_rate.count == 0
    assert strict.false_alarm_rate.count == 1  # type: ignore[union-attr]
    assert strict.effectiveness.count == 3  # type: ignore[union-attr]


def test_without_a_standard_only_agreement_is_told() -> None:
    report = analyse(study({"Ada": ["oo", "nn", "on"], "Bob": ["oo", "nn", "nn"]}))
    assert not report.has_standard
    ada = report.appraisers[0]
    assert (ada.effectiveness, ada.miss_rate, ada.grade) == (None, None, None)
    assert ada.within is not None
    assert any("No standard" in note for note in report.notes)
    assert report.rows[0].part == "p2"


def test_incomplete_studies_say_so() -> None:
    ratings = study({"Ada": ["oo", "nn", "on"], "Bob": ["oo", "nn"]}, "ono")
    report = analyse(ratings)
    assert report.between is not None
    assert report.between.total == 2
    assert any("1 of 3 parts were not judged by everyone" in note for note in report.notes)
    assert any("73 different bad parts" in note for note in report.notes)
    single = analyse(study({"Ada": ["o", "n", "n"]}, "onn"))
    assert single.appraisers[0].within is None
    assert any("judged once" in note for note in single.notes)
    with pytest.raises(StudyError, match="nothing to compare"):
        analyse(study({"Ada": ["o", "n"]}))
    with pytest.raises(StudyError):
        analyse(ratings, level=95)


def test_trials_may_differ_between_appraisers() -> None:
    report = analyse(study({"Ada": ["ooo", "nnn"], "model": ["oo", "nn"]}, "on"))
    assert report.between is not None
    assert (report.between.count, report.between.total) == (2, 2)


# -- reading -------------------------------------------------------------------------------------------------------


def write_csv(path: Path, rows: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def test_ratings_of_people(tmp_path: Path) -> None:
    rows = [
        ["Part_ID", "Inspector", "Assessment", "Reference"],
        ["1", "Ädä", "i.O.", "gut"],
        ["1", "Ädä", "n.i.O.", ""],
        ["2", "李雷", "不合格", "0"],
        ["2", "李雷", "1", ""],
    ]
    found = read_ratings(write_csv(tmp_path / "a.csv", rows, ";"))
    assert [(r.part, r.appraiser, r.trial, r.verdict) for r in found.ratings] == [
        ("1", "Ädä", 1, OK),
        ("1", "Ädä", 2, NG),
        ("2", "李雷", 1, NG),
        ("2", "李雷", 2, OK),
    ]
    assert found.standards == {"1": OK, "2": NG}
    lines = [
        json.dumps({"part": r.part, "appraiser": r.appraiser, "trial": r.trial, "rating": r.verdict})
        for r in found.ratings
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    assert read_ratings(tmp_path / "b.jsonl").ratings == found.ratings
    write_csv(tmp_path / "s.csv", [["part", "standard"], ["1", "OK"], ["2", "NG"]])
    assert read_standards(tmp_path / "s.csv") == found.standards


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["part", "rating"], ["1", "OK"]], "no appraiser"),
        ([["part", "appraiser", "rating"], ["1", "A", "perhaps"]], "line 2: 'perhaps'"),
        ([["part", "appraiser", "trial", "rating"], ["1", "A", "x", "OK"]], "no trial number"),
        ([["part", "appraiser", "trial", "rating"], ["1", "A", "1", "OK"], ["1", "A", "1", "NG"]], "twice"),
        ([["part", "appraiser", "rating", "standard"], ["1", "A", "OK", "review"]], "OK or NG"),
        ([["part", "appraiser", "rating", "standard"], ["1", "A", "OK", "OK"], ["1", "A", "OK", "NG"]], "another"),
        ([["part", "appraiser", "rating"]], "no ratings"),
    ],
)
def test_bad_files_are_refused_by_line(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        read_ratings(write_csv(tmp_path / "a.csv", rows))


def test_sources_may_not_contradict(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="'Ada' is an appraiser"):
        first, second = study({"Ada": ["o"]}), study({"Ada": ["n"]})
        combine([first, RatingSet(ratings=second.ratings, sources=("other",))])
    with pytest.raises(StudyError, match="another standard"):
        combine([study({"Ada": ["o"]}, "o")], {"p0": NG})
    with pytest.raises(StudyError, match="no file"):
        read_ratings(tmp_path / "none.csv")


def test_ratings_of_the_store(tmp_path: Path) -> None:
    with Store.open(tmp_path / "plant") as store:
        for index, (part, verdict) in enumerate([("a", OK), ("a", NG), ("b", REVIEW), ("", OK)]):
            store.record(make_result(index, verdict, part_id=part))
        store.record(make_result(9, part_id="golden"), purpose=Purpose.CHALLENGE)
        store.review("result-2", verdict=NG, reviewer="Ada", reason="crack")
        store.review("result-2", verdict=OK, reviewer="Bob", reason="dirt")
        found = ratings_from_store(store, ResultFilter())
        assert [(r.part, r.appraiser, r.trial, r.verdict) for r in found.ratings] == [
            ("a", "nano eeeeeeee", 1, OK),
            ("a", "nano eeeeeeee", 2, NG),
            ("b", "nano eeeeeeee", 1, REVIEW),
            ("b", "Ada", 1, NG),
            ("b", "Bob", 1, OK),
        ]
        assert "1 results without a part id" in found.notes[0]
        with pytest.raises(StudyError):
            ratings_from_store(store, ResultFilter(lot="none"))


def test_parts(tmp_path: Path) -> None:
    write_part(tmp_path / "set" / "good" / "a.png")
    write_part(tmp_path / "set" / "ng" / "deep" / "b.png", 2)
    write_part(tmp_path / "set" / "elsewhere" / "c.png")
    assert [(part.part, part.standard) for part in read_parts(tmp_path / "set")] == [("a", OK), ("b", NG)]
    table = write_csv(
        tmp_path / "set" / "parts.csv",
        [
            ["image", "standard", "part", "reference"],
            ["good/a.png", "OK", "A1", "ng/deep/b.png"],
            ["x.png", "0", "", ""],
        ],
    )
    first, second = read_parts(table)
    assert (first.part, first.reference) == ("A1", tmp_path / "set" / "ng" / "deep" / "b.png")
    assert (second.part, second.standard, second.reference) == ("x", NG, None)
    for bad in (tmp_path / "nothing", tmp_path / "set" / "elsewhere"):
        with pytest.raises(StudyError):
            read_parts(bad)
    with pytest.raises(StudyError, match="both OK and NG"):
        read_parts(write_csv(tmp_path / "c.csv", [["image", "standard", "part"], ["a", "1", "A"], ["b", "0", "A"]]))


# -- page and command ----------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_escapes() -> None:
    people = {"<script>alert(1)</script>": ["ooo", "nno"], "Ada & Bob": ["ooo", "nnn"]}
    report = analyse(study(people, "on"), title="</title><script>x</script>")
    content = render_page(report, generated_at=STAMP, facts=[("Recipe", "<b>pcb</b>")])
    assert content == render_page(report, generated_at=STAMP, facts=[("Recipe", "<b>pcb</b>")])
    page = _Page(content.decode())
    assert "script" not in page.tags
    assert page.links == []
    assert page.tags.count("svg") == 4
    assert "url(" not in content.decode()
    for text in ("Ada & Bob", "<script>alert(1)</script>", "<b>pcb</b>", "p1", "Miss rate", "Kappa"):
        assert text in page.text


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["study", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


class _Inspector(FakeInspector):
    """Its results have ids of their own, as the real one's."""

    def inspect(self, image: bytes, recipe: Recipe, **options: Any) -> InspectionResult:
        return super().inspect(image, recipe, **options).model_copy(update={"result_id": new_result_id()})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeInspector:
    inspector = _Inspector()
    monkeypatch.setattr("auroraedge.runtime.Inspector.open", lambda *_, **__: _Opened(inspector))
    monkeypatch.delenv("AURORAEDGE_STORE", raising=False)
    return inspector


class _Opened:
    def __init__(self, inspector: FakeInspector) -> None:
        self.inspector = inspector

    def __enter__(self) -> FakeInspector:
        return self.inspector

    def __exit__(self, *_: object) -> None:
        pass


def test_model_and_people_in_one_study(fake: FakeInspector, tmp_path: Path) -> None:
    for number in range(4):
        write_part(tmp_path / "parts" / "ok" / f"g{number}.png", shade=number)
        write_part(tmp_path / "parts" / "ng" / f"b{number}.png", 3, size=8, shade=number)
    write_part(tmp_path / "parts" / "ng" / "escape.png")  # a bad part on which nothing is seen
    (tmp_path / "parts" / "ok" / "broken.png").write_bytes(b"nothing")
    names = [f"g{n}" for n in range(4)] + [f"b{n}" for n in range(4)]
    rows = [["part", "appraiser", "rating"], *([n, "Ada", "OK" if n[0] == "g" else "NG"] for n in names for _ in "ab")]
    people = write_csv(tmp_path / "people.csv", rows)
    store = tmp_path / "plant"
    command = ["agreement", people, "--parts", tmp_path / "parts", "-r", "magnetic_tile", "--repeat", 2]
    result = run(*command, "--out", tmp_path / "out", "--store", store, "--title", "März", "--json")
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "out" / "study.json").read_text(encoding="utf-8"))
    ada, model = report["appraisers"]
    assert (ada["name"], model["name"]) == ("Ada", "fake ffffffff")
    assert model["missed_parts"] == ["escape"]
    assert (model["miss_rate"]["count"], model["miss_rate"]["total"]) == (2, 10)
    assert model["undecided_rate"]["count"] == 2  # the broken picture is an ERROR, not left out
    assert model["within"]["value"] == 1.0
    assert any("could not be inspected" in note for note in report["notes"])
    assert "März" in (tmp_path / "out" / "study.html").read_text(encoding="utf-8")
    assert len(fake.calls) == 20
    with Store.open(store) as opened:
        assert opened.count() == 0  # nothing of it is production
        assert opened.count(ResultFilter(purposes=[Purpose.STUDY])) == 20
        (record,) = opened.studies(kind="agreement")
        assert record.name == "März"
        assert next(opened.audit_trail()).new["grades"]["Ada"] == "acceptable"
    assert "escape" in run(*command).stdout
    assert "März" in run("list", "--store", store).stdout


def test_a_study_of_the_store(fake: FakeInspector, tmp_path: Path) -> None:
    with Store.open(tmp_path / "plant") as store:
        for index in range(8):
            store.record(make_result(index, NG if index % 4 > 1 else OK, part_id=f"p{index // 2}"))
    standard = write_csv(
        tmp_path / "s.csv", [["part", "standard"], *([f"p{n}", "NG" if n % 2 else "OK"] for n in range(4))]
    )
    result = run("agreement", "--from-store", "--store", tmp_path / "plant", "--standard", standard, "--json")
    (model,) = json.loads(result.stdout)["appraisers"]
    assert (model["effectiveness"]["count"], model["trials"]) == (4, 2)


def test_the_command_says_what_is_missing(fake: FakeInspector, tmp_path: Path) -> None:
    assert "nothing to study" in run("agreement", code=2).stderr
    write_part(tmp_path / "ok" / "a.png")
    assert "--recipe" in run("agreement", "--parts", tmp_path, code=2).stderr
    run("agreement", "--parts", tmp_path, "-r", "nosuch", code=3)
    assert "own or ng" in run("agreement", tmp_path / "x.csv", "--review", "ok", code=2).stderr
    assert "no file" in run("agreement", tmp_path / "x.csv", code=2).stderr
