"""The engine: SQLite (one file, the default) or PostgreSQL, through SQLAlchemy Core.

On SQLite a writer takes the write lock at BEGIN (a deferred transaction that upgrades later fails
at once instead of waiting), and freed pages are zeroed, since the event log holds revealed shares
until its cohort ends. On PostgreSQL READ COMMITTED suffices: every decision is a conditional
update or an insert under a primary key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from aggregator.errors import DatabaseAway
from aggregator.logs import get_logger
from aggregator.store import migrating, sqlite_driver
from aggregator.store.presence import FilePresence, Presence, ServerPresence
from aggregator.store.sealing import Cells
from aggregator.store.urls import address, postgres_arguments
from secagg.errors import ConfigurationError

_BUSY_MS = 30_000  # how long SQLite waits for another process's write
_INLINE_BUSY_MS = 20  # where the event loop would wait
_QUIET_S = 1.0
_MIGRATION_LOCK = 0x5EC_A66  # PostgreSQL advisory lock: one replica migrates at a time
_log = get_logger("database")

Connection = AsyncConnection
"""One transaction, or one moment of reads."""


class Conflict(Exception):
    """Another writer was first; read again and retry."""


class Database:
    """Connections and transactions of one replica."""

    def __init__(self, url: str | sa.URL, cells: Cells) -> None:
        """
        Args:
            cells: seals what must not lie open.

        Raises:
            ConfigurationError: ``database-dependency``.
        """
        self.cells = cells
        parsed = make_url(url)
        self.address = address(parsed)
        self._away_since: float | None = None
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._arguments: Mapping[str, Any] | None = None
        self._file = Path(parsed.database) if self.is_sqlite and parsed.database else None
        options: dict[str, Any] = {
            "pool_pre_ping": not self.is_sqlite,
            "hide_parameters": True,
            "execution_options": {"cells": cells},
        }
        if self.is_sqlite and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            options["async_creator"] = partial(
                sqlite_driver.connect, parsed.database, timeout=_BUSY_MS / 1_000
            )
        else:
            options["pool_size"] = 10
        if parsed.drivername == "postgresql+asyncpg":
            self._arguments = postgres_arguments(parsed)
            options["async_creator"] = partial(_connect_postgres, self._arguments)
            parsed = parsed.set(query={})
        try:
            self._engine = create_async_engine(parsed, **options)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "database-dependency",
                f"PostgreSQL needs the package {error.name}, which is not installed.",
                remedy="pip install 'secagg[postgres]'",
            ) from error
        self._reader = self._inline = None
        if self.is_sqlite and parsed.database:
            self._reader = _sqlite_reader(parsed, _BUSY_MS)
            self._inline = _sqlite_reader(parsed, _INLINE_BUSY_MS)
        self._writer = asyncio.Lock()
        if self.is_sqlite:
            sa.event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
            sa.event.listen(self._engine.sync_engine, "begin", _begin_sqlite)

    async def demand_own_file(self) -> None:
        """
        Raises:
            ConfigurationError: ``database-taken``: a SQLite file that is not of this service.
        """
        if self._reader is not None:
            await asyncio.to_thread(_demand_own_file, self._reader)

    async def prepare(self) -> None:
        """Make the schema of a new database, or bring an older SQLite file up; safe when replicas
        start together.

        Raises:
            ConfigurationError: ``schema-newer``; ``schema-older`` on PostgreSQL; as
                :meth:`migrate`.
        """
        await self._move(migrating.of_code(), self._prepare)

    def _prepare(self, connection: sa.Connection, target: str) -> None:
        found = migrating.of_database(connection)
        if found is not None and not self.is_sqlite:
            migrating.demand_present(found)
        if found != target:
            migrating.upgrade(connection, target)

    async def migrate(self, target: str = migrating.NEWEST) -> None:
        """Bring the schema up to a version.

        Raises:
            ConfigurationError: ``database-taken``: a SQLite file that is not of this service;
                ``database-unreachable``; ``schema-newer``; ``schema-unknown``.
        """
        await self._move(target, migrating.upgrade)

    async def migrate_down(self, target: str) -> None:
        """Bring the schema down to a version.

        Raises:
            ConfigurationError: as :meth:`migrate`.
        """
        await self._move(target, migrating.downgrade)

    async def _move(self, target: str, move: Callable[[sa.Connection, str], None]) -> None:
        """In one transaction; on PostgreSQL no two replicas do so at once."""
        await self.demand_own_file()
        await self.demand_answer()
        async with self.write() as connection:
            if not self.is_sqlite:
                lock = sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)
                await connection.execute(sa.select(lock))
            await connection.run_sync(move, target)

    def presence(self) -> Presence | None:
        """None: of a database in memory, or of a kind that it is not known of."""
        if self._file is not None:
            return FilePresence(self._file.with_name(f"{self._file.name}-replicas"))
        if self._arguments is None:
            return None
        return ServerPresence(partial(_connect_postgres, self._arguments))

    async def schema(self) -> str | None:
        """The version of the schema; None: there is none yet.

        Raises:
            ConfigurationError: ``database-unreachable``.
        """
        await self.demand_answer()
        return await self.answers()

    async def demand_answer(self) -> None:
        """Raises: ConfigurationError: ``database-unreachable``."""
        try:
            async with self._engine.connect():
                pass
        except Exception as error:  # the driver's own, of many kinds
            raise ConfigurationError(
                "database-unreachable",
                f"{DatabaseAway(self.address, _cause(error))}.",
                remedy="Check database_url, its options, and that the database is running.",
            ) from error

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        """
        Raises:
            DatabaseAway: there was no connection to be had, or it broke. The first time is logged,
                and when there is one again.
        """
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self._engine.connect())
            except Exception as error:  # the driver's own, of many kinds
                raise self._away(error) from error
            if self._away_since is not None:
                away_s = time.monotonic() - self._away_since
                self._away_since = None
                # As a warning it is counted where a database comes and goes.
                _log.warning("database-back", address=self.address, seconds=round(away_s, 1))
            try:
                yield connection
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise self._away(error) from error
                raise

    def _away(self, error: Exception) -> DatabaseAway:
        away = DatabaseAway(self.address, _cause(error))
        if self._away_since is None:
            self._away_since = time.monotonic()
            _log.error(
                "database-away",
                exc_info=away,
                remedy="Check that the database runs, that this machine reaches it, and its log.",
            )
        return away

    async def answers(self) -> str | None:
        """As :meth:`schema`, with the driver's own error."""
        async with self.read() as connection:
            return await connection.run_sync(migrating.of_database)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Reads as of one moment.

        Raises:
            DatabaseAway: the database did not answer.
        """
        async with self._connected() as connection:
            if not self.is_sqlite:  # else each statement there has a moment of its own
                await connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    async def rows(self, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """All rows of one query that needs no other beside it.

        On SQLite it runs in a thread at one go, which costs a tenth of :meth:`read`: there every
        step of a connection is a message to a thread of its own and back.
        """
        if self._reader is not None:
            return await asyncio.to_thread(_all_rows, self._reader, statement)
        async with self.read() as connection:
            found: Sequence[sa.Row[Any]] = (await connection.execute(statement)).all()
            return found

    async def few(self, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """As :meth:`rows`, for a query that finds a few small rows by a key.

        On SQLite it runs in the event loop: that takes 0.07 ms, a thread and back three times that.
        """
        if self._inline is not None:
            with suppress(DBAPIError):  # another process keeps the file for a moment
                return _all_rows(self._inline, statement)
        return await self.rows(statement)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction; commits at the end, rolls back on an exception.

        Raises:
            Conflict: a primary key or unique claim was taken by another writer, or two writers
                waited for each other.
            DatabaseAway: the database did not answer.
        """
        try:
            if not self.is_sqlite:
                async with self._connected() as connection, connection.begin():
                    yield connection
                return
            # Writers of this process queue here instead of in SQLite's busy handler.
            async with self._writer, self._connected() as plain:
                connection = await plain.execution_options(sqlite_write=True)
                async with connection.begin():
                    yield connection
        except DBAPIError as error:
            if isinstance(error, IntegrityError) or _is_deadlock(error):
                raise Conflict(str(error.orig)) from error
            raise

    async def checkpoint(self) -> None:
        """On SQLite, move the write-ahead log into the file and cut it (erased rows leave it).

        A reader that holds an older state makes it wait for the next time.
        """
        if self.is_sqlite:
            async with self._writer, self._engine.connect() as plain:
                connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
                await connection.exec_driver_sql("PRAGMA busy_timeout=100")
                await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
                await connection.exec_driver_sql(f"PRAGMA busy_timeout={_BUSY_MS}")

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """No write of this process is under way on SQLite, unless one hangs.

        To cancel tasks in: a cancelled statement can leave its connection, and with it the write
        lock, to the garbage collector.
        """
        try:
            async with asyncio.timeout(_QUIET_S):
                await self._writer.acquire()
        except TimeoutError:
            yield
            return
        try:
            yield
        finally:
            self._writer.release()

    async def close(self) -> None:
        await self._engine.dispose()
        for reader in (self._reader, self._inline):
            if reader is not None:
                reader.dispose()


async def _connect_postgres(arguments: Mapping[str, Any]) -> Any:
    import asyncpg

    return await asyncpg.connect(**arguments)


def _sqlite_reader(url: sa.URL, busy_ms: int) -> sa.Engine:
    """Connections for single queries in threads; each query is a transaction of its own."""
    reader = sa.create_engine(
        url.set(drivername="sqlite"),
        hide_parameters=True,
        connect_args={"timeout": busy_ms / 1_000},
        isolation_level="AUTOCOMMIT",
    )

    def configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA query_only=ON").close()

    sa.event.listen(reader, "connect", configure)
    return reader


def _demand_own_file(reader: sa.Engine) -> None:
    """A new or empty file, or one that this service has made."""
    try:
        tables = sa.inspect(reader).get_table_names()
    except DBAPIError as error:
        taken = f"cannot be read as a SQLite database: {error.orig}"
    else:
        if not tables or "alembic_version" in tables:
            return
        taken = f"holds another program's tables: {', '.join(sorted(tables)[:3])}"
    raise ConfigurationError(
        "database-taken",
        f"{reader.url.database} {taken}.",
        remedy="Name another file in database_url, or another data_dir. Nothing was changed.",
    )


def _all_rows(reader: sa.Engine, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
    with reader.connect() as connection:
        return connection.execute(statement).all()


def _configure_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver must not begin on its own
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",
        f"busy_timeout={_BUSY_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("sqlite_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _cause(error: Exception) -> BaseException:
    """What the driver raised, without what was made of it since."""
    original = error.orig if isinstance(error, DBAPIError) else None
    return (original and original.__cause__) or original or error


def _is_deadlock(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) == "40P01"  # of PostgreSQL


def cells_of(connection: Connection) -> Cells:
    """What seals and opens the cells of its database."""
    plain = connection.sync_connection
    assert plain is not None  # noqa: S101  it was begun
    cells: Cells = plain.get_execution_options()["cells"]
    return cells


async def expect_one(connection: AsyncConnection, statement: sa.Update | sa.Delete) -> None:
    """Run a conditional update that must hit exactly one row.

    Raises:
        Conflict: the condition no longer holds.
    """
    result = await connection.execute(statement)
    if result.rowcount != 1:
        raise Conflict(f"{statement.table.description}: {result.rowcount} rows")
