"""For all tests: services of tests are on this machine, whatever proxy its environment names; and
databases, of which the server is started once for all tests of a process that ask for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kits.databases import BACKENDS, Postgres, postgres_server

PROXIES = ("http_proxy", "https_proxy", "all_proxy")

if any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
    os.environ["no_proxy"] = "127.0.0.1,localhost,::1"


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing of proxies."""
    for name in (*PROXIES, "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture
async def postgres_url(postgres: Postgres) -> str:
    """An empty database of PostgreSQL."""
    return await postgres.create()


@pytest.fixture(params=BACKENDS)
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database: what a test says of it holds for SQLite and for PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.db'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return await postgres.create()
