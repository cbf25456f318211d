"""Fixtures for all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from requires import lacks


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Weights and inputs that a test draws are the same in every run; without torch there are none."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(2026)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[object]:
    """A PostgresServer for the whole run (tests/postgres_server.py)."""
    try:
        from postgres_server import PostgresServer
    except ImportError:
        lacks("psycopg is not installed: pip install 'auroraedge[postgres]'")
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres_url(postgres_server: object) -> str:
    """The URL of an empty PostgreSQL database."""
    return postgres_server.new_database()  # type: ignore[attr-defined,no-any-return]
