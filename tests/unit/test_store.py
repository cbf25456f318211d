"""The result store: what goes in comes out, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from store_support import START, defect, make_picture, make_result

from auroraedge.errors import (
    AuroraEdgeError,
    DuplicateResultError,
    InvalidRequestError,
    RecipeNotFoundError,
    RecipeVersionError,
    RequestIdConflictError,
    ResultNotFoundError,
    StoreError,
)
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.results import StageTimings, Verdict
from auroraedge.store import NewResult, Purpose, ResultFilter, Store


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    is_sqlite = request.param == "sqlite"
    url = tmp_path / "plant" if is_sqlite else request.getfixturevalue("postgres_url")
    with Store.open(url, images=None if is_sqlite else tmp_path / "images") as opened:
        yield opened


def ids(store: Store, **where: object) -> list[str]:
    return [found.result.result_id for found in store.results(ResultFilter(**where))]  # type: ignore[arg-type]


def test_a_result_comes_back_as_it_was(store: Store) -> None:
    result = make_result(1, Verdict.NG, request_id="r1", part_id='Teil "ß" 电路板')
    picture, golden = make_picture(1), make_picture(2)
    stored = store.record(result, image=picture, reference=golden, fingerprint="f", principal="line-a")
    found = store.get("result-1")
    assert found == stored
    assert found.result == result
    assert found.seq == 1
    assert found.has_image
    assert found.review is None
    assert found.effective_verdict is Verdict.NG
    assert store.image(found.image_sha256 or "") == picture
    assert store.image(found.reference_sha256 or "") == golden


def test_everything_survives_closing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store:
        store.record(make_result(1), image=make_picture())
        store_id = store.store_id
    with Store.open(f"sqlite:///{tmp_path}/a.db", create=False) as store:
        assert store.store_id == store_id
        found = store.get("result-1")
        assert found.result == make_result(1)
        assert store.image(found.image_sha256 or "") == make_picture()
    assert (tmp_path / "a.images" / "store-id").read_text().strip() == store_id


def test_a_repeated_request_is_one_row(store: Store) -> None:
    first = store.record(make_result(1, request_id="r"), image=make_picture(1), fingerprint="f", principal="p")
    again = store.record(make_result(2, request_id="r"), image=make_picture(9), fingerprint="f", principal="p")
    assert again == replace(first, replayed=True)
    assert store.count() == 1
    assert store.images is not None
    assert len(list(store.images.files())) == 1  # the repeated request's picture was not even written
    with pytest.raises(RequestIdConflictError) as error:
        store.record(make_result(3, request_id="r"), fingerprint="other", principal="p")
    assert error.value.field == "info.request_id"
    assert error.value.grpc_code == "INVALID_ARGUMENT"
    # Another principal has request ids of its own, and "" is no id.
    assert not store.record(make_result(4, request_id="r"), fingerprint="other", principal="q").replayed
    assert [store.record(make_result(n)).replayed for n in (5, 6)] == [False, False]


def test_find_by_request(store: Store) -> None:
    stored = store.record(make_result(1, request_id="r"), fingerprint="f", principal="p")
    assert store.find("r", principal="p") == replace(stored, replayed=True)
    assert store.find("r", principal="p", fingerprint="f") == replace(stored, replayed=True)
    assert store.find("r") is None
    assert store.find("") is None
    with pytest.raises(RequestIdConflictError):
        store.find("r", principal="p", fingerprint="g")


def test_a_result_is_recorded_once(store: Store) -> None:
    stored = store.record(make_result(1))
    assert store.record(make_result(1)) == replace(stored, replayed=True)
    with pytest.raises(DuplicateResultError):
        store.record(make_result(1, Verdict.NG))
    assert store.get("result-1").result.verdict is Verdict.OK


def test_many_are_all_or_none(store: Store) -> None:
    store.record(make_result(1, request_id="r"), fingerprint="f")
    entries = [
        NewResult(result=make_result(2)),
        NewResult(result=make_result(3, request_id="r"), fingerprint="g"),
        NewResult(result=make_result(4)),
    ]
    with pytest.raises(RequestIdConflictError):
        store.record_many(entries)
    assert store.count() == 1
    outcomes = store.record_group(entries)
    assert isinstance(outcomes[1], RequestIdConflictError)
    assert [o.seq for o in outcomes if not isinstance(o, AuroraEdgeError)] == [2, 3]
    assert ids(store) == ["result-1", "result-2", "result-4"]


def test_repeats_within_one_call(store: Store) -> None:
    entries = [
        NewResult(result=make_result(1, request_id="r"), fingerprint="f"),
        NewResult(result=make_result(2, request_id="r"), fingerprint="f"),
        NewResult(result=make_result(3, request_id="r"), fingerprint="g"),
        NewResult(result=make_result(4)),
        NewResult(result=make_result(4)),
        NewResult(result=make_result(4, Verdict.NG)),
    ]
    first, twin, conflict, four, same, other = store.record_group(entries)
    assert not isinstance(first, AuroraEdgeError)
    assert twin == replace(first, replayed=True)
    assert isinstance(conflict, RequestIdConflictError)
    assert not isinstance(four, AuroraEdgeError)
    assert same == replace(four, replayed=True)
    assert isinstance(other, DuplicateResultError)
    assert ids(store) == ["result-1", "result-4"]
    assert store.record_many([]) == []


def test_a_result_that_could_not_be_read_again_is_refused(store: Store) -> None:
    with pytest.raises(InvalidRequestError) as error:
        store.record(make_result(1, timings=StageTimings(total_ms=float("nan"))))
    assert "total_ms" in error.value.field
    assert store.count() == 0


def test_filters(store: Store) -> None:
    ng, review = Verdict.NG, Verdict.REVIEW
    rows = [
        NewResult(result=make_result(0, lot="L1", line="A", camera="c1", station="s1", job="j1")),
        NewResult(result=make_result(1, ng, lot="L2", line="A", camera="c2", recipe_id="tile")),
        NewResult(result=make_result(2, review, lot="L2", line="B", is_simulated=True, engine_sha256="x")),
        NewResult(result=make_result(3, lot="L3"), purpose=Purpose.CHALLENGE),
    ]
    store.record_many(rows)
    assert ids(store) == ["result-0", "result-1", "result-2"]
    assert ids(store, purposes=None)[-1] == "result-3"
    assert ids(store, purposes=[Purpose.CHALLENGE]) == ["result-3"]
    assert ids(store, lot="L2") == ["result-1", "result-2"]
    assert ids(store, lot=["L1", "L2"], line="A") == ["result-0", "result-1"]
    assert ids(store, part_id="part-1") == ["result-1"]
    assert ids(store, camera="c1", station="s1", job="j1") == ["result-0"]
    assert ids(store, recipe_id="tile") == ["result-1"]
    assert ids(store, verdicts=[ng, review]) == ["result-1", "result-2"]
    assert ids(store, simulated=False) == ["result-0", "result-1"]
    assert ids(store, engine_sha256="x") == ["result-2"]
    assert ids(store, since=START + timedelta(seconds=1), until=START + timedelta(seconds=2)) == ["result-1"]
    assert ids(store, lot=[]) == []
    assert store.count(ResultFilter(lot="L2")) == 2
    assert store.verdict_counts() == {Verdict.OK: 1, ng: 1, review: 1, Verdict.ERROR: 0}
    with pytest.raises(ValueError, match="time zone"):
        ResultFilter(since=START.replace(tzinfo=None))


def test_the_job_tells_what_is_no_production(store: Store) -> None:
    jobs = ["", "order 7", "challenge:line A", "study:march", "challenge", "challenger:x"]
    stored = store.record_many([NewResult(result=make_result(n, job=job)) for n, job in enumerate(jobs)])
    assert [found.purpose.value for found in stored] == [
        "production",
        "production",
        "challenge",
        "study",
        "production",
        "production",
    ]
    assert [found.purpose for found in store.results(ResultFilter(purposes=None))] == [f.purpose for f in stored]
    assert store.count() == 4


def test_pages(store: Store) -> None:
    store.record_many([NewResult(result=make_result(n)) for n in range(1201)])
    seqs = [found.seq for found in store.results()]
    assert seqs == list(range(1, 1202))
    assert [found.seq for found in store.results(newest_first=True)] == seqs[::-1]
    assert [found.seq for found in store.results(after_seq=1190)] == seqs[1190:]
    assert [found.seq for found in store.results(after_seq=3, newest_first=True)] == [2, 1]
    assert len(list(store.results(limit=501))) == 501
    assert list(store.results(limit=0)) == []
    assert store.last_seq() == 1201


def test_reviews(store: Store) -> None:
    store.record(make_result(1, Verdict.REVIEW))
    store.record(make_result(2, Verdict.REVIEW))
    assert [found.result.result_id for found in store.review_queue()] == ["result-1", "result-2"]
    first = store.review("result-1", verdict=Verdict.NG, reviewer="Ada", reason="crack", defects=[defect("crack")])
    assert [found.result.result_id for found in store.review_queue()] == ["result-2"]
    found = store.get("result-1")
    assert found.review == first
    assert found.effective_verdict is Verdict.NG
    assert [d.label for d in found.effective_defects] == ["crack"]
    assert found.result.verdict is Verdict.REVIEW
    second = store.review("result-1", verdict=Verdict.OK, reviewer="Bob", reason="dirt")
    assert store.reviews("result-1") == [first, second]
    assert store.get("result-1").effective_verdict is Verdict.OK
    assert store.verdict_counts(effective=True)[Verdict.OK] == 1
    assert store.verdict_counts()[Verdict.OK] == 0
    assert ids(store, effective_verdicts=[Verdict.OK]) == ["result-1"]
    assert ids(store, reviewed=False) == ["result-2"]
    newest, oldest = store.audit_trail(subject="result:result-1")
    assert (oldest.old, oldest.new["verdict"]) == ({"verdict": "REVIEW"}, "NG")
    assert (newest.who, newest.old, newest.new, newest.why) == ("Bob", {"verdict": "NG"}, {"verdict": "OK"}, "dirt")
    with pytest.raises(ResultNotFoundError):
        store.review("nobody", verdict=Verdict.OK, reviewer="Ada", reason="")
    with pytest.raises(InvalidRequestError):
        store.review("result-2", verdict=Verdict.OK, reviewer=" ", reason="")
    with pytest.raises(InvalidRequestError):
        store.review("result-2", verdict=Verdict.ERROR, reviewer="Ada", reason="")


def test_recipes_have_versions(store: Store) -> None:
    pcb = load_recipe("pcb")
    assert store.put_recipe(pcb, who="Ada", why="start") == pcb.version
    assert store.put_recipe(pcb, who="Ada", why="nothing new") == pcb.version
    changed = pcb.model_copy(update={"title": "PCB, stricter"})
    assert store.put_recipe(changed, who="Bob", why="escape on Tuesday", expected_version=pcb.version) == 2
    with pytest.raises(RecipeVersionError):
        store.put_recipe(pcb, who="Eve", why="did not look", expected_version=1)
    assert [recipe.version for recipe in store.recipes()] == [2]
    assert store.recipe("pcb").title == "PCB, stricter"
    assert store.recipe("pcb", 1) == pcb
    assert store.recipe("pcb").sha256 != pcb.sha256
    assert [version.who for version in store.recipe_history("pcb")] == ["Ada", "Bob"]
    with pytest.raises(RecipeNotFoundError):
        store.recipe("pcb", 7)
    newest = next(store.audit_trail(subject="recipe:pcb"))
    assert newest.old["title"] == pcb.title
    assert newest.new["title"] == "PCB, stricter"
    assert newest.why == "escape on Tuesday"


def test_engine_history_has_changes_only(store: Store) -> None:
    for sha in ("a", "a", "b", "a"):
        store.record_engine(engine_sha256=sha, model_id="nano", target="cpu", who="service", why="start")
    assert [engine.engine_sha256 for engine in store.engines()] == ["a", "b", "a"]
    assert next(store.audit_trail()).old["engine_sha256"] == "b"


def test_studies(store: Store) -> None:
    store.record_study(kind="challenge", name="line A", who="Ada", passed=False, document={"wrong": 1})
    store.record_study(kind="agreement", name="line A", who="Ada", passed=None, document={"kappa": 0.9})
    assert [study.kind for study in store.studies()] == ["agreement", "challenge"]
    (challenge,) = store.studies(kind="challenge", name="line A", limit=1)
    assert challenge.document == {"wrong": 1}
    assert challenge.passed is False


def test_a_folder_of_pictures_belongs_to_one_store(tmp_path: Path) -> None:
    Store.open(tmp_path / "a.db", images=tmp_path / "pictures").close()
    with pytest.raises(StoreError, match="another store"):
        Store.open(tmp_path / "b.db", images=tmp_path / "pictures")
