"""A real PostgreSQL for tests: started from Debian's binaries in a temporary folder, reached by a Unix socket only."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
from requires import require_tool

_BINARIES = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin")
_START_S = 30.0
_PORT = 5432  # only names the socket; nothing listens on the network
_NOBODY = 65534


class PostgresServer:
    """One server of its own; `new_database` gives each test an empty database."""

    def __init__(self, *, fsync: bool = False) -> None:
        self._initdb = require_tool("initdb", also_in=_BINARIES)
        self._postgres = require_tool("postgres", also_in=_BINARIES)
        # A short path: a socket's name has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="aepg-", dir="/tmp"))
        self.data = self.folder / "data"
        self._numbers = itertools.count(1)
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None
        # PostgreSQL refuses to run as root.
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            os.chown(self.folder, _NOBODY, _NOBODY)
            setpriv = require_tool("setpriv")
            self._as_user = [str(setpriv), f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        try:
            command = [*self._as_user, str(self._initdb), "-D", str(self.data), "-U", "tester", "-A", "trust", "-N"]
            command += ["-E", "UTF8", "--locale=C.UTF-8"]
            done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
            assert done.returncode == 0, done.stderr
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Starts the server, which must not run."""
        settings = {"listen_addresses": "", "unix_socket_directories": str(self.folder), "port": str(_PORT)}
        settings |= {"fsync": "on" if self._fsync else "off", "max_connections": "50", "shared_buffers": "16MB"}
        # Without --pdeathsig the server would outlive a killed test run.
        prefix = [*self._as_user, "--pdeathsig=QUIT"] if self._as_user else []
        command = [*prefix, str(self._postgres), "-D", str(self.data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        log.close()
        end = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def stop(self, *, immediately: bool = False) -> None:
        """Ends the server; immediately: as in a crash, without writing anything more."""
        if self._process is not None:
            self._process.send_signal(3 if immediately else 2)  # SIGQUIT or SIGINT: "immediate" or "fast" shutdown
            self._process.wait(timeout=_START_S)
            self._process = None

    def url(self, database: str) -> str:
        return f"postgresql://tester@/{database}?host={self.folder}&port={_PORT}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def close(self) -> None:
        self.stop(immediately=True)
        shutil.rmtree(self.folder, ignore_errors=True)
