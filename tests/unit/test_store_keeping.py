"""Keeping results for years: retention, checking and mending, export and import."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_support import START, defect, make_picture, make_result

from auroraedge.errors import InvalidRequestError, StoreDamagedError
from auroraedge.inspection.recipe import load_recipe
from auroraedge.inspection.results import Verdict
from auroraedge.store import Purpose, ResultFilter, RetentionPolicy, Store, schema

OK, NG, REVIEW = Verdict.OK, Verdict.NG, Verdict.REVIEW
DAY = 24 * 3600


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    is_sqlite = request.param == "sqlite"
    url = tmp_path / "plant" if is_sqlite else request.getfixturevalue("postgres_url")
    with Store.open(url, images=None if is_sqlite else tmp_path / "images") as opened:
        yield opened


def put(store: Store, day: float, verdict: Verdict, shade: int, **changes: object) -> None:
    """A result of that day with a picture; `shade` tells pictures and results apart."""
    created = START + timedelta(days=day)
    result = make_result(shade, verdict, created_at=created, **changes)
    store.record(result, image=make_picture(shade), reference=make_picture(9999))


def kept(store: Store) -> set[str]:
    """Results whose picture is kept, checked against the files."""
    found = set()
    for stored in store.results(ResultFilter(purposes=None)):
        picture = store.image(stored.image_sha256 or "")
        assert (picture is not None) == stored.has_image
        if picture is not None:
            found.add(stored.result.result_id.removeprefix("result-"))
    return found


def files(store: Store) -> int:
    assert store.images is not None
    return sum(1 for _ in store.images.files())


# -- retention -----------------------------------------------------------------------------------------------------


def test_pictures_go_by_age_and_verdict(store: Store) -> None:
    for shade, (day, verdict) in enumerate([(0, OK), (0, NG), (0, REVIEW), (0, REVIEW), (0, Verdict.ERROR), (50, OK)]):
        put(store, day, verdict, shade)
    store.review("result-3", verdict=OK, reviewer="Ada", reason="dust")
    policy = RetentionPolicy(ok_days=30, error_days=30, review_days=90, ng_days=300)
    at = START + timedelta(days=60)
    plan = store.retain(policy, now=at, dry_run=True)
    assert (plan.images_removed, plan.images_left) == (3, 4)
    assert kept(store) == {"0", "1", "2", "3", "4", "5"}
    report = store.retain(policy, now=at)
    assert kept(store) == {"1", "2", "5"}  # the OK after review went with the other OK
    assert (report.images_removed, report.bytes_removed) == (plan.images_removed, plan.bytes_removed)
    assert report.images_left == 4  # and the golden sample, which younger results were compared with
    assert files(store) == 4
    assert store.count() == 6
    store.retain(policy, now=START + timedelta(days=4000))
    assert kept(store) == {"2"}  # what waits for a person stays
    assert files(store) == 2
    assert next(store.audit_trail()).action == "store.retain"
    assert store.check().is_sound


def test_pictures_go_by_size_the_least_important_first(store: Store) -> None:
    verdicts = [NG, OK, REVIEW, OK, REVIEW, Verdict.ERROR]
    for shade, verdict in enumerate(verdicts):
        put(store, shade, verdict, shade)
    store.review("result-4", verdict=REVIEW, reviewer="Ada", reason="ask the customer")
    size = len(make_picture(0))
    policy = RetentionPolicy(ok_days=None, ng_days=None, review_days=None, error_days=None)
    expected = [{"0", "2", "3", "4", "5"}, {"0", "2", "4", "5"}, {"0", "2", "4"}, {"0", "2"}, {"2"}]
    for step, left in enumerate(expected):
        limit = store.retain(policy, dry_run=True).bytes_left - 1
        by_size = RetentionPolicy(**{**vars(policy), "max_image_bytes": limit})
        plan = store.retain(by_size, dry_run=True)
        report = store.retain(by_size)
        assert kept(store) == left, step
        assert (plan.images_removed, plan.bytes_left) == (report.images_removed, report.bytes_left)
        assert report.over_limit_bytes == 0
    # The golden sample and the picture that waits for a person: nothing more may go, and the report says so.
    report = store.retain(RetentionPolicy(**{**vars(policy), "max_image_bytes": 1}))
    assert kept(store) == {"2"}
    assert report.over_limit_bytes == report.bytes_left - 1 >= size


def test_old_results_go_with_everything(store: Store) -> None:
    put(store, 0, OK, 0)
    put(store, 0, NG, 1)
    put(store, 0, REVIEW, 2)
    put(store, 40, OK, 3)
    store.review("result-1", verdict=NG, reviewer="Ada", reason="crack")
    policy = RetentionPolicy(result_days=30)
    at = START + timedelta(days=41)
    assert store.retain(policy, now=at, dry_run=True).results_removed == 2
    assert store.retain(policy, now=at).results_removed == 2
    assert [found.result.result_id for found in store.results()] == ["result-2", "result-3"]
    with store.database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(schema.reviews)) == 0
        assert connection.scalar(sa.select(sa.func.count()).select_from(schema.defects)) == 0
    assert files(store) == 3
    assert any(entry.action == "result.review" for entry in store.audit_trail())  # what a person did stays on record
    assert store.record(make_result(9)).seq == 5  # numbers are never used again
    assert store.check().is_sound


def test_a_removed_picture_comes_back_when_it_is_recorded_again(store: Store) -> None:
    put(store, 0, OK, 0)
    store.retain(RetentionPolicy(), now=START + timedelta(days=400))
    assert kept(store) == set()
    store.record(make_result(1), image=make_picture(0))
    assert kept(store) == {"0", "1"}


def test_policies_are_checked() -> None:
    with pytest.raises(InvalidRequestError) as error:
        RetentionPolicy(ng_days=-1)
    assert error.value.field == "ng_days"


# -- check and mend ------------------------------------------------------------------------------------------------


def test_a_sound_store(store: Store) -> None:
    put(store, 0, NG, 0)
    put(store, 0, OK, 1)
    store.review("result-0", verdict=OK, reviewer="Ada", reason="dust")
    report = store.check(deep=True)
    assert report.is_sound
    assert (report.results, report.images, report.files, report.counts) == (2, 3, 3, {})


def test_orphans_are_found_and_mended(store: Store) -> None:
    for shade in range(3):
        put(store, 0, NG, shade)
    assert store.images is not None
    pictures = {p.name: p for p in (Path(entry.path) for entry in store.images.files())}
    lost = store.get("result-0").image_sha256 or ""
    changed = store.get("result-1").image_sha256 or ""
    next(path for name, path in pictures.items() if name.startswith(lost)).unlink()
    victim = next(path for name, path in pictures.items() if name.startswith(changed))
    victim.write_bytes(b"x" * victim.stat().st_size)
    shard = store.images.root / "ab"
    shard.mkdir(exist_ok=True)
    (shard / f"ab{'0' * 62}.png").write_bytes(b"nobody's")
    for name, age in ((".old.part", 7200), (".young.part", 0)):
        (shard / name).write_bytes(b"half")
        os.utime(shard / name, (shard.stat().st_mtime - age,) * 2)
    with pytest.raises(StoreDamagedError):
        store.image(changed)
    report = store.check(deep=True)
    assert report.counts == {"orphan": 2, "picture": 2}
    assert not report.is_sound
    assert store.check().counts == {"orphan": 2, "picture": 1}  # only a deep check reads the pictures
    mended = store.check(mend=True, deep=True, who="Ada")
    assert mended.is_sound
    assert mended.mended == mended.counts == report.counts
    assert kept(store) == {"2"}
    assert [path.name for path in shard.iterdir() if path.name.startswith(".")] == [".young.part"]
    assert store.check(deep=True).counts == {}
    assert next(store.audit_trail()).who == "Ada"


def test_what_is_derived_is_derived_again(store: Store) -> None:
    put(store, 0, NG, 0)
    store.review("result-0", verdict=OK, reviewer="Ada", reason="dust")
    with store.database.write() as connection:
        connection.execute(sa.delete(schema.defects))
        connection.execute(sa.update(schema.results).values(effective_verdict="NG", review_number=None))
    assert store.check().counts == {"defects": 1, "review": 1}
    assert store.check(mend=True).is_sound
    assert store.get("result-0").effective_verdict is OK
    assert store.check().counts == {}


def test_a_changed_audit_trail_is_found(store: Store) -> None:
    for number in range(5):
        store.audit(who="Ada", action="test", subject="x", new=number)
    with store.database.write() as connection:
        if store.database.is_sqlite:
            connection.exec_driver_sql("DROP TRIGGER audit_no_update")
        else:
            connection.exec_driver_sql("ALTER TABLE audit DISABLE TRIGGER USER")
        connection.execute(sa.update(schema.audit).where(schema.audit.c.number == 3).values(who="Eve"))
    report = store.check(mend=True)
    assert not report.is_sound
    assert report.counts == {"audit": 1, "triggers": 1}
    assert "audit entry 3" in {finding.subject for finding in report.findings}


def test_a_damaged_document_is_told_and_not_guessed(store: Store) -> None:
    put(store, 0, OK, 0)
    with store.database.write() as connection:
        off = (
            "DROP TRIGGER results_no_update" if store.database.is_sqlite else "ALTER TABLE results DISABLE TRIGGER USER"
        )
        connection.exec_driver_sql(off)
        connection.execute(sa.update(schema.results).values(document='{"verdict":"OK"'))
    with pytest.raises(StoreDamagedError, match="number 1"):
        store.get("result-0")
    report = store.check(mend=True)
    assert report.counts["document"] == 1
    assert not report.is_sound


@pytest.mark.parametrize("table", ["audit", "recipes", "engines", "studies", "reviews", "results", "defects"])
@pytest.mark.parametrize("what", ["UPDATE", "DELETE"])
def test_history_cannot_be_changed(store: Store, table: str, what: str) -> None:
    put(store, 0, NG, 0)
    store.review("result-0", verdict=OK, reviewer="Ada", reason="dust")
    store.put_recipe(load_recipe("pcb"), who="Ada", why="start")
    store.record_engine(engine_sha256="a", model_id="nano", target="cpu", who="Ada", why="start")
    store.record_study(kind="challenge", name="A", who="Ada", passed=True, document={})
    if what == "DELETE" and table in ("results", "defects"):
        return  # retention deletes results, with their defects
    columns = {"reviews": "reason", "results": "document", "defects": "label"}
    column = columns.get(table, "document" if table in ("recipes", "studies") else "who")
    statement = f"UPDATE {table} SET {column} = 'x'" if what == "UPDATE" else f"DELETE FROM {table}"
    with pytest.raises(Exception, match="append-only"), store.database.write() as connection:
        connection.exec_driver_sql(statement)
    assert store.check().is_sound


# -- export and import ---------------------------------------------------------------------------------------------


def fill(store: Store) -> None:
    put(store, 0, NG, 0, request_id="r0", part_id='Teil "ß" 电路板')
    put(store, 1, REVIEW, 1, lot="L2")
    store.record(make_result(2), purpose=Purpose.CHALLENGE)
    put(store, 0, OK, 3)
    store.review("result-1", verdict=REVIEW, reviewer="Ada", reason="ask", defects=[defect("crack")])
    store.review("result-1", verdict=NG, reviewer="Bob", reason="crack")
    store.put_recipe(load_recipe("pcb"), who="Ada", why="start")
    store.record_engine(engine_sha256="a", model_id="nano", target="cpu", who="Ada", why="start", details={"n": 1})
    store.record_study(kind="challenge", name="A", who="Ada", passed=True, document={"parts": 3})
    store.retain(RetentionPolicy(ok_days=0, error_days=None, ng_days=None), now=START + timedelta(days=0.5))


def test_an_export_restores_the_store(store: Store, tmp_path: Path) -> None:
    fill(store)
    written = store.export_to(tmp_path / "export.zip")
    assert (written.results, written.reviews, written.images, written.recipes, written.studies) == (4, 2, 3, 1, 1)
    with Store.open(tmp_path / "other") as other:
        read = other.import_from(tmp_path / "export.zip", who="Ada")
        assert (read.results, read.reviews, read.images, read.recipes, read.studies) == (4, 2, 3, 1, 1)
        assert read.audit_entries == written.audit_entries
        assert read.conflicts == ()
        for mine, theirs in zip(
            store.results(ResultFilter(purposes=None)), other.results(ResultFilter(purposes=None)), strict=True
        ):
            assert theirs.result == mine.result
            assert (theirs.stored_at, theirs.purpose) == (mine.stored_at, mine.purpose)
            assert theirs.effective_verdict is mine.effective_verdict
            assert theirs.has_image == mine.has_image
            assert other.image(theirs.image_sha256 or "") == store.image(mine.image_sha256 or "")
        assert [r.defects for r in other.reviews("result-1")] == [r.defects for r in store.reviews("result-1")]
        assert other.recipe("pcb") == store.recipe("pcb")
        assert other.engines()[0].details == {"n": 1}
        assert other.studies()[0].study_id == store.studies()[0].study_id
        assert other.find("r0") is not None
        origins = [entry.origin for entry in other.audit_trail(newest_first=False)]
        assert origins[0] == f"{store.store_id}:1"
        assert other.check(deep=True).is_sound
        # Again: nothing new. Back home: nothing new either.
        again = other.import_from(tmp_path / "export.zip")
        assert (again.results, again.reviews, again.audit_entries, again.conflict_count) == (0, 0, 0, 0)
        other.export_to(tmp_path / "back.zip")
        back = store.import_from(tmp_path / "back.zip")
        assert (back.results, back.reviews, back.recipes, back.engines, back.studies) == (0, 0, 0, 0, 0)
        assert back.audit_entries == 2  # the two imports


def test_a_part_of_the_store(store: Store, tmp_path: Path) -> None:
    fill(store)
    assert store.export_to(tmp_path / "lot.zip", ResultFilter(lot="L2")).results == 1
    with zipfile.ZipFile(tmp_path / "lot.zip") as archive:
        (line,) = archive.read("results.jsonl").splitlines()
        assert json.loads(line)["result"]["result_id"] == "result-1"
        assert sum(name.startswith("images/") for name in archive.namelist()) == 2


def test_contradictions_are_told_and_change_nothing(store: Store, tmp_path: Path) -> None:
    fill(store)
    store.export_to(tmp_path / "export.zip")
    with Store.open(tmp_path / "other") as other:
        other.record(make_result(0, OK))
        other.record(make_result(77, request_id="x"))
        other.put_recipe(load_recipe("pcb").model_copy(update={"title": "mine"}), who="Eve", why="mine")
        report = other.import_from(tmp_path / "export.zip")
        assert report.conflict_count == 2
        assert "result-0" in report.conflicts[0]
        assert "pcb" in report.conflicts[1]
        assert other.get("result-0").result.verdict is OK
        assert other.recipe("pcb").title == "mine"
        assert report.results == 3


def test_reviews_made_elsewhere_are_merged(store: Store, tmp_path: Path) -> None:
    put(store, 0, REVIEW, 0)
    store.export_to(tmp_path / "a.zip")
    with Store.open(tmp_path / "office") as office:
        office.import_from(tmp_path / "a.zip")
        office.review("result-0", verdict=NG, reviewer="Bob", reason="crack")
        office.export_to(tmp_path / "b.zip")
    report = store.import_from(tmp_path / "b.zip")
    assert (report.results, report.reviews) == (0, 1)
    assert store.get("result-0").effective_verdict is NG
    assert store.check().is_sound


def test_half_an_export_is_refused(store: Store, tmp_path: Path) -> None:
    fill(store)
    path = tmp_path / "export.zip"
    store.export_to(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidRequestError, match="not a complete export"):
        store.import_from(path)
    with zipfile.ZipFile(tmp_path / "export2.zip", "w") as changed:
        path.write_bytes(whole)
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                content = archive.read(name)
                changed.writestr(name, content.replace(b"NG", b"OK") if name == "results.jsonl" else content)
    with pytest.raises(InvalidRequestError, match="not what was exported"):
        store.import_from(tmp_path / "export2.zip")
    with pytest.raises(InvalidRequestError, match="no file"):
        store.import_from(tmp_path / "nothing.zip")
    assert list(tmp_path.glob(".*.part")) == []
