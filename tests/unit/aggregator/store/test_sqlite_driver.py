"""How often SQLite's statements go through a thread, and that they say what they found."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from aggregator.store import database as module
from aggregator.store import sqlite_driver
from aggregator.store.database import Conflict, Database
from aggregator.store.urls import sqlite_url
from tests.kits.sealed import CELLS

numbers = sa.Table(
    "numbers",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text),
)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(sqlite_url(tmp_path / "numbers.db"), CELLS)
    async with made.write() as connection:
        await connection.run_sync(numbers.metadata.create_all)
        rows = [{"number": number, "name": f"n{number}"} for number in range(5)]
        await connection.execute(sa.insert(numbers), rows)
    yield made
    await made.close()


async def test_a_statement_visits_its_thread_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = 0
    real = sqlite_driver.Connection._execute

    async def counted(connection, *arguments, **named):
        nonlocal visits
        visits += 1
        return await real(connection, *arguments, **named)

    monkeypatch.setattr(sqlite_driver.Connection, "_execute", counted)
    async with database.write() as connection:
        found = await connection.execute(sa.select(numbers).where(numbers.c.number > 2))
        assert [tuple(row) for row in found] == [(3, "n3"), (4, "n4")]
        changed = await connection.execute(sa.update(numbers).values(name="all"))
        assert changed.rowcount == 5
        gone = await connection.execute(sa.delete(numbers).where(numbers.c.number == 9))
        assert gone.rowcount == 0
    assert visits == 5  # begin, three statements, commit


async def test_what_a_statement_breaks_is_undone(database: Database) -> None:
    async def take_again() -> None:
        async with database.write() as connection:
            await connection.execute(sa.delete(numbers).where(numbers.c.number == 0))
            await connection.execute(sa.insert(numbers).values(number=1))

    with pytest.raises(Conflict):
        await take_again()
    assert len(await database.few(sa.select(numbers.c.number))) == 5


async def test_a_query_that_the_event_loop_may_not_wait_for_goes_to_a_thread(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = module._all_rows, []

    def busy_once(reader, statement):
        asked.append(reader)
        if len(asked) == 1:
            raise OperationalError("select", None, Exception("database is locked"))
        return real(reader, statement)

    monkeypatch.setattr(module, "_all_rows", busy_once)
    assert len(await database.few(sa.select(numbers.c.number))) == 5
    assert asked == [database._inline, database._reader]
