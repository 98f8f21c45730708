"""SQLite's driver for SQLAlchemy: aiosqlite, with one visit to its thread for each statement.

aiosqlite's own cursor makes four: it is made, executes, fetches and is closed. A visit costs more
processor time than most statements of this service.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import aiosqlite

_Row = tuple[Any, ...]


class _Cursor:
    """What SQLAlchemy asks of a cursor. All rows are fetched with the statement."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: list[_Row] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    async def __aenter__(self) -> _Cursor:
        return self

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        await self._connection.visit(self._run, sqlite3.Cursor.execute, sql, parameters)

    async def executemany(self, sql: str, parameters: Iterable[Sequence[Any]]) -> None:
        await self._connection.visit(self._run, sqlite3.Cursor.executemany, sql, parameters)

    def _run(self, raw: sqlite3.Connection, execute: Any, sql: str, parameters: Any) -> None:
        cursor = raw.cursor()
        try:
            execute(cursor, sql, parameters)
            self.description, self.lastrowid = cursor.description, cursor.lastrowid
            self._rows = cursor.fetchall() if cursor.description else []
            self.rowcount = cursor.rowcount
        finally:
            cursor.close()

    async def fetchall(self) -> list[_Row]:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        self._rows = []


class Connection(aiosqlite.Connection):
    """A connection with such cursors."""

    def cursor(self) -> Any:
        return _Cursor(self)

    async def rollback(self) -> None:
        """SQLAlchemy asks for one whenever a connection goes back to its pool."""
        if self.in_transaction:
            await super().rollback()

    async def visit(self, work: Any, *arguments: Any) -> None:
        """Run ``work(raw connection, *arguments)`` in the connection's thread."""
        await self._execute(partial(work, self._conn), *arguments)  # type: ignore[no-untyped-call]


async def connect(*arguments: Any, **options: Any) -> Connection:
    """As :func:`sqlite3.connect`."""
    connection = Connection(partial(sqlite3.connect, *arguments, **options), iter_chunk_size=64)
    connection._thread.daemon = True  # as SQLAlchemy sets it
    await connection
    return connection
