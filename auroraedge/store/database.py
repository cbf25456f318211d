"""The connection: SQLite or PostgreSQL, transactions, migrations, and database errors as errors of this project."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from auroraedge.errors import (
    AuroraEdgeError,
    MissingDependencyError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreNotFoundError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreVersionError,
)

# The newest migration; a test checks that it is.
SCHEMA_VERSION = "0001"
_MIGRATIONS = Path(__file__).resolve().parent / "migrations"
# PostgreSQL: the advisory lock of writers. One at a time, so that `seq` grows in the order of the commits and a reader
# that asks for rows after the last one it saw misses none.
_WRITE_LOCK = 0x41455354  # "AEST"
_WRITES = "auroraedge_writes"


def parse_address(address: str | Path) -> sa.URL:
    """The database URL of a path or URL. A folder, or a name without suffix, is a folder with `store.db` in it.

    Raises StoreError for another scheme.
    """
    text = str(address)
    if "://" not in text:
        path = Path(text).expanduser()
        if path.is_dir() or not path.suffix:
            path = path / "store.db"
        return sa.URL.create("sqlite", database=str(path))
    try:
        url = sa.make_url(text)
    except exc.ArgumentError as error:
        raise StoreError(
            "The address of the store is not a URL.",
            field="store",
            remedy="Use a path, sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE.",
        ) from error
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
            raise StoreError("A store in memory would be lost.", field="store", remedy="Name a file: sqlite:///PATH.")
        return sa.URL.create("sqlite", database=str(Path(url.database).expanduser()))
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise StoreError(
        f"The store cannot be kept in '{backend}'.", field="store", remedy="Use SQLite (a path) or postgresql://..."
    )


class Database:
    """One engine and its rules. Thread-safe."""

    def __init__(self, url: sa.URL, *, create: bool, busy_timeout_s: float) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        # For people: without the password.
        self.shown = str(url.database) if self.is_sqlite else url.render_as_string(hide_password=True)
        self._busy_timeout_s = busy_timeout_s
        # SQLite's own waiting is polling; threads of one process take turns here instead.
        self._writer = threading.Lock()
        self._create = create
        if self.is_sqlite:
            self._check_file()
            self.engine = self._sqlite_engine()
        else:
            self.engine = self._postgres_engine()
        try:
            self._prepare()
        except BaseException:
            self.engine.dispose()
            raise

    @property
    def path(self) -> Path | None:
        """The database file of SQLite."""
        return Path(self.url.database) if self.is_sqlite and self.url.database else None

    def close(self) -> None:
        self.engine.dispose()

    # -- connecting ------------------------------------------------------------------------------------------------

    def _check_file(self) -> None:
        path = self.path
        assert path is not None
        if path.exists():
            return
        if not self._create:
            raise StoreNotFoundError(f"There is no store at {path}.", field="store")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(error, str(path.parent)) from error

    def _sqlite_engine(self) -> sa.Engine:
        engine = sa.create_engine(
            self.url,
            # Transactions are begun below, by name: the driver's own would start without a lock and fail later.
            connect_args={"timeout": self._busy_timeout_s, "check_same_thread": False, "isolation_level": None},
            pool_size=8,
            max_overflow=8,
        )

        @event.listens_for(engine, "connect")
        def on_connect(connection: sqlite3.Connection, _: Any) -> None:
            connection.isolation_level = None
            cursor = connection.cursor()
            cursor.execute("PRAGMA foreign_keys = ON")
            # FULL: a commit is on the disk before it returns, power cut or not.
            cursor.execute("PRAGMA synchronous = FULL")
            mode = cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            cursor.close()
            if mode != "wal":
                raise StoreUnavailableError(
                    f"{self.path} is on a file system without shared memory (journal mode {mode}).",
                    remedy="Put the store on a local disk, or use PostgreSQL.",
                )

        @event.listens_for(engine, "begin")
        def on_begin(connection: sa.Connection) -> None:
            writes = connection.get_execution_options().get(_WRITES, False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    def _postgres_engine(self) -> sa.Engine:
        try:
            engine = sa.create_engine(
                self.url,
                connect_args={"connect_timeout": max(2, round(self._busy_timeout_s))},
                pool_size=8,
                max_overflow=8,
                # A connection that the server or a firewall dropped is replaced before it is used.
                pool_pre_ping=True,
            )
        except ImportError as error:
            raise MissingDependencyError(
                "PostgreSQL needs the package 'psycopg', which is not installed.",
                remedy="Install it: pip install 'auroraedge[postgres]'",
            ) from error
        timeout_ms = max(1, round(self._busy_timeout_s * 1000))

        @event.listens_for(engine, "connect")
        def on_connect(connection: Any, _: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SET TIME ZONE 'UTC'")
                cursor.execute(f"SET lock_timeout = {timeout_ms}")
                cursor.execute("SHOW synchronous_commit")
                if cursor.fetchone()[0] == "off":
                    cursor.execute("SET synchronous_commit = on")
            connection.commit()

        return engine

    # -- transactions ----------------------------------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state. Keep it short: an open one keeps SQLite from reusing its log."""
        with self.errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction with the write lock from its start; committed to disk when the block ends without error."""
        if not self._writer.acquire(timeout=self._busy_timeout_s):
            raise StoreLockedError(f"{self.shown} was busy for {self._busy_timeout_s:g} s.")
        try:
            with self.errors(), self.engine.connect() as connection:
                connection = connection.execution_options(**{_WRITES: True})
                with connection.begin():
                    if not self.is_sqlite:
                        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITE_LOCK)))
                    yield connection
        finally:
            self._writer.release()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of the database and of the disk become errors of this project."""
        try:
            yield
        except AuroraEdgeError:
            raise
        except (exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise store_error(error, self.shown) from error

    # -- schema ----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Brings the schema up to date. Raises StoreVersionError for one that is newer than this program."""
        version = self.schema_version()
        if version == SCHEMA_VERSION:
            return
        if version is None and not self._create:
            raise StoreNotFoundError(f"{self.shown} holds no store.", field="store")
        if version is not None and version not in known_versions():
            raise StoreVersionError(f"{self.shown} has schema {version}; this program knows up to {SCHEMA_VERSION}.")
        with self.write() as connection:
            # Another process may have been faster.
            if self.version_of(connection) != SCHEMA_VERSION:
                self._upgrade(connection)

    def schema_version(self) -> str | None:
        """The migration that the database is at; None when it holds no store."""
        with self.read() as connection:
            return self.version_of(connection)

    @staticmethod
    def version_of(connection: sa.Connection) -> str | None:
        """The migration that the database is at; None when it holds no store."""
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
        return None if row is None else str(row[0])

    @staticmethod
    def _upgrade(connection: sa.Connection) -> None:
        from alembic import command

        config = migration_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def migration_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def known_versions() -> list[str]:
    """All migrations, the newest first."""
    from alembic.script import ScriptDirectory

    return [script.revision for script in ScriptDirectory.from_config(migration_config()).walk_revisions()]


# -- errors --------------------------------------------------------------------------------------------------------

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_SQLITE = {
    "SQLITE_BUSY": StoreLockedError,
    "SQLITE_LOCKED": StoreLockedError,
    "SQLITE_FULL": StoreFullError,
    "SQLITE_READONLY": StoreReadOnlyError,
    "SQLITE_PERM": StoreReadOnlyError,
    "SQLITE_CORRUPT": StoreDamagedError,
    "SQLITE_NOTADB": StoreDamagedError,
    "SQLITE_CANTOPEN": StoreUnavailableError,
    "SQLITE_IOERR": StoreUnavailableError,
}
# SQLSTATE, by its longest known beginning.
_POSTGRES = {
    "53100": StoreFullError,
    "53200": StoreUnavailableError,
    "53300": StoreUnavailableError,
    "55P03": StoreLockedError,
    "57014": StoreLockedError,
    "40": StoreLockedError,
    "25006": StoreReadOnlyError,
    "42501": StoreReadOnlyError,
    "XX001": StoreDamagedError,
    "XX002": StoreDamagedError,
    "08": StoreUnavailableError,
    "57": StoreUnavailableError,
    "58": StoreUnavailableError,
}


def store_error(error: BaseException, place: str) -> StoreError:
    """The error of this project for one of the database or the disk. `place`: the database or file, without secrets."""
    if isinstance(error, exc.TimeoutError):
        return StoreLockedError(f"{place}: all connections are in use.")
    if isinstance(error, exc.DBAPIError) and error.orig is not None:
        return store_error(error.orig, place)
    if isinstance(error, sqlite3.Error):
        return _of_sqlite(error, place)
    if isinstance(error, OSError):
        text = f"{place}: {error.strerror or error}."
        if error.errno in _FULL:
            return StoreFullError(text)
        return StoreReadOnlyError(text) if error.errno in _READ_ONLY else StoreUnavailableError(text)
    sqlstate = getattr(error, "sqlstate", None)
    text = f"{place}: {_first_line(error)}."
    if sqlstate:
        for length in (5, 2):
            if sqlstate[:length] in _POSTGRES:
                return _POSTGRES[sqlstate[:length]](text)
        return StoreError(text)
    # psycopg has no SQLSTATE for a connection that it could not make or lost.
    if type(error).__name__ in ("OperationalError", "InterfaceError", "ConnectionTimeout"):
        return StoreUnavailableError(text)
    return StoreError(text)


def _of_sqlite(error: sqlite3.Error, place: str) -> StoreError:
    text = f"{place}: {_first_line(error)}."
    name = getattr(error, "sqlite_errorname", None) or ""
    if name == "SQLITE_READONLY_DBMOVED":
        return StoreUnavailableError(text, remedy="The file was moved or deleted while it was open: put it back.")
    if name == "SQLITE_CANTOPEN" or name.startswith("SQLITE_CANTOPEN_"):
        with contextlib.suppress(OSError):
            if Path(place).parent.exists():
                return StoreReadOnlyError(text)
    if name.startswith("SQLITE_IOERR") and _is_full(Path(place).parent):
        return StoreFullError(text)
    for known, kind in _SQLITE.items():
        if name == known or name.startswith(known + "_"):
            return kind(text)
    return StoreError(text)


def _is_full(folder: Path) -> bool:
    """SQLite calls a full disk an I/O error where it maps a file into memory."""
    try:
        disk = os.statvfs(folder)
    except (OSError, AttributeError):
        return False
    return disk.f_bavail * disk.f_frsize < 64 * 1024


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
