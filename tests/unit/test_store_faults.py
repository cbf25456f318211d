"""The store when things go wrong: killed processes, full disks, locks, damage, other versions."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from store_support import START, make_picture, make_result

from auroraedge.errors import (
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreNotFoundError,
    StoreUnavailableError,
    StoreVersionError,
)
from auroraedge.store import NewResult, ResultFilter, RetentionPolicy, Store, database, schema

HERE = Path(__file__).parent


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "plant" / "store.db")
    return str(request.getfixturevalue("postgres_url"))


def start_writer(address: str, images: Path, name: str, count: int, group: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "store_writer.py"), address, str(images), name, str(count), str(group)]
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )


# -- kill -9 and several writers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 16])
def test_kill_9_loses_nothing_acknowledged(address: str, tmp_path: Path, group: int) -> None:
    acknowledged: dict[str, int] = {}
    for attempt, lines in enumerate((1, 23, 57)):
        writer = start_writer(address, tmp_path / "images", f"w{attempt}", 100_000, group)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        told = [writer.stdout.readline() for _ in range(lines)]
        writer.kill()
        rest, _ = writer.communicate()
        assert writer.returncode == -9
        for line in [*told, *rest.splitlines(keepends=True)]:
            if line.endswith("\n"):
                seq, result_id = line.split()
                acknowledged[result_id] = int(seq)
    assert len(acknowledged) > 40  # half of the requests of later writers are repeats
    with Store.open(address, images=tmp_path / "images") as store:
        stored = {found.result.result_id: found for found in store.results()}
        for result_id, seq in acknowledged.items():
            assert stored[result_id].seq == seq
        # No half row: document, defects, request and picture are there together, or not at all.
        for found in stored.values():
            assert found.has_image
            assert len(store.image(found.image_sha256 or "") or b"") > 0
        report = store.check(deep=True)
        # A picture may be there whose result was never committed; nothing else may be left.
        assert set(report.counts) <= {"orphan"}
        assert store.check(mend=True).is_sound
        with store.database.read() as connection:
            defects = connection.scalar(sa.select(sa.func.count()).select_from(schema.defects))
        assert defects == len(stored)


def test_a_crash_of_postgresql_loses_nothing_acknowledged(tmp_path: Path, postgres_server: object) -> None:
    from postgres_server import PostgresServer

    server = PostgresServer(fsync=True)
    try:
        url = server.new_database()
        with Store.open(url, images=tmp_path / "images", busy_timeout_s=5) as store:
            acknowledged = [store.record(make_result(n), image=make_picture(n)).seq for n in range(20)]
            server.stop(immediately=True)
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError) as error:
                store.record(make_result(100))
            assert time.monotonic() - began < 10
            assert error.value.retry_after_s
            with pytest.raises(StoreUnavailableError):
                store.count()
            with pytest.raises(StoreUnavailableError):
                Store.open(url, images=tmp_path / "images")
            server.start()
            # The same store goes on without being opened again.
            assert [found.seq for found in store.results()] == acknowledged
            assert store.record(make_result(100)).seq > acknowledged[-1]
            assert store.check(deep=True).is_sound
    finally:
        server.close()


def test_two_processes_write_at_once(address: str, tmp_path: Path) -> None:
    count = 60
    Store.open(address, images=tmp_path / "images").close()
    writers = [start_writer(address, tmp_path / "images", name, count, group) for name, group in (("a", 1), ("b", 4))]
    # A reader that asks for what is new must see every row, in order and once, while both write.
    seen: list[int] = []
    with Store.open(address, images=tmp_path / "images", busy_timeout_s=20) as store:
        while any(writer.poll() is None for writer in writers):
            seen += [found.seq for found in store.results(after_seq=seen[-1] if seen else 0)]
            time.sleep(0.002)
        outputs = [writer.communicate() for writer in writers]
        assert [writer.returncode for writer in writers] == [0, 0], outputs
        seen += [found.seq for found in store.results(after_seq=seen[-1] if seen else 0)]
        stored = list(store.results())
        assert seen == [found.seq for found in stored]
        # Half of the requests are the same for both: one row each, and both were told of it.
        requests = [found.result.request.request_id for found in stored]
        assert len(requests) == len(set(requests)) == count + count // 2
        told = [{int(line.split()[0]) for line in out.splitlines()[1:]} for out, _ in outputs]
        assert len(told[0]) == len(told[1]) == count
        assert len(told[0] & told[1]) == count // 2
        assert store.check(deep=True).is_sound


def test_threads_share_a_store(address: str, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    with Store.open(address, images=tmp_path / "images", busy_timeout_s=20) as store:

        def work(worker: int) -> None:
            try:
                for number in range(15):
                    store.record(make_result(worker * 100 + number), image=make_picture(number))
                    store.count()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert store.count() == 90
        assert store.check(deep=True).is_sound


def test_two_processes_create_the_same_store(address: str, tmp_path: Path) -> None:
    writers = [start_writer(address, tmp_path / "images", name, 4, 1) for name in ("a", "b", "c")]
    outputs = [writer.communicate() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], outputs
    with Store.open(address, images=tmp_path / "images") as store:
        assert store.count() == 2 + 3 * 2


# -- locked --------------------------------------------------------------------------------------------------------


def test_a_lock_is_waited_for_and_then_told(address: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    with Store.open(address, images=images) as holder, Store.open(address, images=images, busy_timeout_s=0.3) as store:
        with holder.database.write():
            began = time.monotonic()
            with pytest.raises(StoreLockedError) as error:
                store.record(make_result(1), image=make_picture())
            assert 0.2 < time.monotonic() - began < 5
            assert error.value.grpc_code == "UNAVAILABLE"
            assert store.count() == 0  # reading goes on
        assert store.record(make_result(1), image=make_picture()).seq == 1


def test_threads_of_one_process_wait_no_longer_than_the_timeout(tmp_path: Path) -> None:
    with Store.open(tmp_path / "plant", busy_timeout_s=0.2) as store, store.database.write():
        failure: list[BaseException] = []

        def work() -> None:
            try:
                store.record(make_result(1))
            except StoreLockedError as error:
                failure.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(5)
        assert len(failure) == 1


# -- full ----------------------------------------------------------------------------------------------------------


def test_a_full_database(tmp_path: Path) -> None:
    with Store.open(tmp_path / "plant") as store:
        store.record(make_result(0))
        with store.database.read() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        limit = f"PRAGMA max_page_count = {pages}"
        sa.event.listen(store.database.engine, "connect", lambda connection, _: connection.execute(limit))
        store.database.engine.dispose()  # the next connections are new ones
        with pytest.raises(StoreFullError) as error:
            store.record_many([NewResult(result=make_result(n, text="x" * 2000)) for n in range(1, 100)])
        assert error.value.grpc_code == "RESOURCE_EXHAUSTED"
        assert "retain" in error.value.remedy
        assert store.count() == 1
        assert store.check().is_sound


def test_a_full_disk_for_pictures(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(address, images=tmp_path / "images") as store:
        store.record(make_result(0), image=make_picture(0))

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreFullError):
            store.record(make_result(1), image=make_picture(1))
        monkeypatch.undo()
        assert store.count() == 1
        assert store.check(deep=True).counts == {}
        assert store.record(make_result(1), image=make_picture(1)).has_image


def test_the_database_keeps_room_to_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "plant") as store:
        store.record(make_result(0), image=make_picture(0))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=31 << 20))
        with pytest.raises(StoreFullError, match="31 MiB are free"):
            store.record(make_result(1), image=make_picture(1))
        assert store.record(make_result(2), image=make_picture(0)).has_image  # nothing to write
        assert store.record(make_result(3)).seq == 3


# -- damaged, read-only, elsewhere ---------------------------------------------------------------------------------


def test_a_damaged_database_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"this is no database" * 300)
    with pytest.raises(StoreDamagedError) as error:
        Store.open(path)
    assert "store.db" in error.value.message
    path.unlink()
    with Store.open(path) as store:
        store.record_many([NewResult(result=make_result(n, text="y" * 500)) for n in range(200)])
    content = bytearray(path.read_bytes())
    for start in range(40 * 4096, len(content) - 4096, 4096):
        content[start : start + 64] = b"\xff" * 64
    path.write_bytes(content)
    with Store.open(path) as store:
        with pytest.raises(StoreDamagedError):
            list(store.results(ResultFilter(purposes=None)))
        report = store.check()
        assert not report.is_sound
        assert report.counts["database"] > 0


@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_folder(exists: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if exists:
            with Store.open(folder) as store:
                store.record(make_result(1))
        folder.chmod(0o555)
        code = (
            "import os\n"
            "from store_support import make_result\n"
            "from auroraedge.store import Store, StoreReadOnlyError\n"
            "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)  # root may write everywhere\n"
            "try:\n"
            f"    with Store.open({name!r}) as store: store.record(make_result(2))\n"
            "except StoreReadOnlyError as error: print(error)\n"
        )
        paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        folder.chmod(0o755)
        assert done.returncode == 0, done.stderr
        assert "writable" in done.stdout


def test_a_newer_schema_is_left_alone(address: str, tmp_path: Path) -> None:
    with Store.open(address, images=tmp_path / "images") as store, store.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreVersionError, match="9999"):
        Store.open(address, images=tmp_path / "images")


def test_no_store_where_one_should_be(tmp_path: Path, postgres_url: str) -> None:
    with pytest.raises(StoreNotFoundError):
        Store.open(tmp_path / "nowhere", create=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreNotFoundError):
        Store.open(postgres_url, create=False)
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(StoreNotFoundError):
        Store.open(other, create=False)


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "://", "postgres"])
def test_addresses(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if url == "postgres":  # a folder of that name
        Store.open(url).close()
        assert (tmp_path / "postgres" / "store.db").is_file()
        return
    with pytest.raises(StoreError) as error:
        Store.open(url)
    assert error.value.field == "store"


def test_passwords_are_never_shown() -> None:
    with pytest.raises(StoreUnavailableError) as error:
        Store.open("postgresql://someone:secret@127.0.0.1:1/nothing", busy_timeout_s=1)
    assert "secret" not in str(error.value)
    assert "127.0.0.1" in str(error.value)


def test_pictures_need_a_folder(postgres_url: str) -> None:
    with Store.open(postgres_url) as store:
        assert store.record(make_result(1)).seq == 1
        assert store.image("0" * 64) is None
        with pytest.raises(StoreError) as error:
            store.record(make_result(2), image=make_picture())
        assert error.value.field == "images"
        assert store.count() == 1


def test_a_picture_that_goes_while_it_is_recorded(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention takes the file between its writing and the commit: the committed row must still have its picture."""
    with Store.open(address, images=tmp_path / "images") as store:
        store.record(make_result(0), image=make_picture())
        assert store.images is not None
        put, calls = store.images.put, []

        def put_and_lose(pictures: object) -> None:
            put(pictures)  # type: ignore[arg-type]
            calls.append(1)
            if len(calls) == 1:
                report = store.retain(RetentionPolicy(ok_days=0), now=START + timedelta(days=1))
                assert report.images_removed == 1

        monkeypatch.setattr(store.images, "put", put_and_lose)
        stored = store.record(make_result(1), image=make_picture())
        assert len(calls) == 2
        assert store.image(stored.image_sha256 or "") == make_picture()
        assert store.check(deep=True).is_sound


# -- schema --------------------------------------------------------------------------------------------------------


def test_migrations_make_the_schema_of_the_code(address: str, tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with Store.open(address, images=tmp_path / "images") as store, store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
    assert database.known_versions()[0] == database.SCHEMA_VERSION


def test_a_migration_that_fails_leaves_nothing(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = database.Database._upgrade

    def fail(connection: sa.Connection) -> None:
        upgrade(connection)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(database.Database, "_upgrade", staticmethod(fail))
    with pytest.raises(StoreFullError):
        Store.open(address, images=tmp_path / "images")
    monkeypatch.undo()
    with pytest.raises(StoreNotFoundError):
        Store.open(address, images=tmp_path / "images", create=False)
    with Store.open(address, images=tmp_path / "images") as store:
        assert store.record(make_result(1)).seq == 1


def test_durability_settings(tmp_path: Path) -> None:
    with Store.open(tmp_path / "plant") as store, store.database.read() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


def test_reading_more_results_needs_no_more_memory(tmp_path: Path) -> None:
    code = (
        "import sys, resource\n"
        "from store_support import make_result\n"
        "from auroraedge.store import NewResult, Store\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    for start in range(0, 20_000, 2000):\n"
        "        store.record_many([NewResult(result=make_result(n)) for n in range(start, start + 2000)])\n"
        "    sum(1 for _ in store.results(limit=2000))\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    count = sum(1 for _ in store.results())\n"
        "    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "plant")],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, grown_kib = map(int, done.stdout.split())
    assert count == 20_000
    assert grown_kib < 4096


def test_lookups_use_their_indices(address: str, tmp_path: Path) -> None:
    """A scan of the table would make every record slower than the one before it."""
    with Store.open(address, images=tmp_path / "images") as store:
        store.record_many([NewResult(result=make_result(n, request_id=f"r{n}")) for n in range(300)])
        statements: list[tuple[str, object]] = []

        def note(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
            statements.append((statement, parameters))

        sa.event.listen(store.database.engine, "before_cursor_execute", note)
        store.record(make_result(999, request_id="new"), image=make_picture())
        store.find("r7")
        store.get("result-7")
        store.image("0" * 64)
        list(store.results(after_seq=100, limit=5))
        list(store.results(ResultFilter(lot="L1"), limit=5))
        list(store.review_queue(limit=5))
        sa.event.remove(store.database.engine, "before_cursor_execute", note)
        queries = [(s, p) for s, p in statements if s.lstrip().startswith("SELECT") and "FROM results" in s]
        assert len(queries) >= 7
        with store.database.write() as connection:
            if not store.database.is_sqlite:
                # A table of a few rows is cheaper to scan; what matters is that there is another way.
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
                connection.exec_driver_sql("ANALYZE")
            explain = "EXPLAIN QUERY PLAN" if store.database.is_sqlite else "EXPLAIN"
            for statement, parameters in queries:
                plan = "\n".join(str(row) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters))  # type: ignore[arg-type]
                assert "SCAN results'" not in plan, (statement, plan)
                assert "Seq Scan on results" not in plan, (statement, plan)
