"""One behaviour of two databases: a SQLite file, and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import sqlalchemy as sa

from aggregator.settings.options import Settings
from aggregator.store import migrating
from aggregator.store.database import Conflict, Database, expect_one
from secagg.errors import ConfigurationError
from tests.kits.sealed import CELLS
from tests.kits.walked import walk

_metadata = sa.MetaData()
counts = sa.Table(
    "counts",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
)
values = sa.Table(
    "values_of_all_kinds",
    _metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(64), sa.ForeignKey("counts.name")),
    sa.Column("seconds", sa.Float(53)),
    sa.Column("data", sa.LargeBinary),
    sa.Column("words", sa.Text),
    sa.Column("sure", sa.Boolean),
)

Open = Callable[[], Database]


@pytest.fixture
async def open_database(database_url: str) -> AsyncIterator[Open]:
    """Opens it once more, as another replica does."""
    opened: list[Database] = []

    def open_() -> Database:
        opened.append(Database(Settings.load(database_url=database_url).database, CELLS))
        return opened[-1]

    yield open_
    for database in opened:
        await database.close()


@pytest.fixture
async def database(open_database: Open) -> Database:
    """With two counts, both 0."""
    made = open_database()
    async with made.write() as connection:
        await connection.run_sync(_metadata.create_all)
        await connection.execute(
            sa.insert(counts), [{"name": name, "count": 0} for name in ("a", "b")]
        )
    return made


async def counted(database: Database) -> dict[str, int]:
    found = await database.rows(sa.select(counts))
    return {row.name: row[1] for row in found}


async def test_every_way_of_reading_sees_the_last_commit(
    database: Database, open_database: Open
) -> None:
    one = sa.select(counts).where(counts.c.name == "a")
    for number, reader in enumerate((database, open_database(), database), 1):
        async with database.write() as connection:
            await connection.execute(sa.update(counts).values(count=number))
        async with reader.read() as connection:
            found = (await connection.execute(one)).all()
        expected = [("a", number)]
        assert [tuple(row) for row in found] == expected
        assert [tuple(row) for row in await reader.rows(one)] == expected
        assert [tuple(row) for row in await reader.few(one)] == expected


async def test_what_is_not_committed_is_seen_by_nobody_else(
    database: Database, open_database: Open
) -> None:
    other = open_database()
    async with database.write() as connection:
        await connection.execute(sa.update(counts).values(count=7))
        assert await counted(other) == {"a": 0, "b": 0}
    assert await counted(other) == {"a": 7, "b": 7}


async def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    async def fails() -> None:
        async with database.write() as connection:
            await connection.execute(sa.update(counts).values(count=7))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await fails()
    assert await counted(database) == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    "late",
    [
        sa.insert(counts).values(name="b", count=1),
        sa.insert(values).values(number=1, owner="nobody"),
        sa.delete(counts).where(counts.c.name == "a"),
    ],
    ids=["a key twice", "a row of nobody", "a row that another needs"],
)
async def test_what_breaks_a_constraint_is_a_conflict_and_undone(
    database: Database, late: sa.Insert | sa.Delete
) -> None:
    async with database.write() as connection:
        await connection.execute(sa.insert(values).values(number=0, owner="a"))

    async def breaks() -> None:
        async with database.write() as connection:
            await connection.execute(sa.update(counts).values(count=7))
            await connection.execute(late)

    with pytest.raises(Conflict):
        await breaks()
    assert await counted(database) == {"a": 0, "b": 0}


async def test_of_two_conditional_updates_one_finds_its_row_changed(
    database: Database, open_database: Open
) -> None:
    async def step(replica: Database) -> None:
        async with replica.write() as connection:
            free = (counts.c.name == "a", counts.c.count == 0)
            await expect_one(connection, sa.update(counts).where(*free).values(count=1))

    ends = await asyncio.gather(
        step(database), step(open_database()), step(database), return_exceptions=True
    )
    assert sorted(type(end).__name__ for end in ends) == ["Conflict", "Conflict", "NoneType"]
    assert await counted(database) == {"a": 1, "b": 0}


async def test_steps_of_two_replicas_at_once_are_all_counted(
    database: Database, open_database: Open
) -> None:
    async def step(replica: Database) -> None:
        async with replica.write() as connection:
            await connection.execute(sa.update(counts).values(count=counts.c.count + 1))

    other = open_database()
    await asyncio.gather(*(step(replica) for replica in (database, other) * 10))
    assert await counted(database) == {"a": 20, "b": 20}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # in SQLite they queue
async def test_writers_that_wait_for_each_other_are_in_conflict(database: Database) -> None:
    """One of them is tried again, as if the other had been first; that is not a failure."""
    first_steps = asyncio.Barrier(2)

    async def touch(*names: str) -> None:
        async with database.write() as connection:
            for name in names:
                here = counts.c.name == name
                await connection.execute(sa.update(counts).where(here).values(count=1))
                if name == names[0]:
                    await first_steps.wait()

    ends = await asyncio.gather(touch("a", "b"), touch("b", "a"), return_exceptions=True)
    assert [type(end) for end in ends if end is not None] == [Conflict]


async def test_values_come_back_as_they_were(database: Database) -> None:
    rows = [
        (2**63 - 1, "a", 1.7e308, bytes(range(256)), "ä \U0001f9ee 'quoted' \\", True),
        (-(2**63), "b", 0.1 + 0.2, b"", "", False),
        (0, None, None, None, None, None),
    ]
    async with database.write() as connection:
        names = values.c.keys()
        await connection.execute(
            sa.insert(values), [dict(zip(names, row, strict=True)) for row in rows]
        )
    found = await database.rows(sa.select(values))
    assert {tuple(row) for row in found} == set(rows)
    large = sa.select(values.c.number).where(values.c.number > 2**62)
    assert [tuple(row) for row in await database.few(large)] == [(2**63 - 1,)]


async def test_every_migration_goes_up_and_down_with_data(open_database: Open) -> None:
    await walk(open_database())


async def test_a_schema_is_made_once_and_moves_to_versions_that_there_are(
    open_database: Open,
) -> None:
    database = open_database()
    assert await database.schema() is None
    for _ in range(2):
        await database.prepare()
        assert await database.schema() == migrating.of_code()
    with pytest.raises(ConfigurationError, match="schema-unknown"):
        await database.migrate("7777")
    await database.migrate_down("0002")
    assert await open_database().schema() == "0002"
    await database.migrate()
    assert await database.schema() == migrating.of_code()
