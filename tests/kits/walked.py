"""A database with a row in every table, walked through all versions of its schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from aggregator.store import migrating
from aggregator.store.database import Database
from aggregator.store.schema import metadata

Rows = dict[str, list[dict[str, Any]]]
_TEXT, _BYTES = "ab" * 32, b"bytes of it"


def _value(column: sa.Column[Any]) -> Any:
    for key in column.foreign_keys:
        return _value(key.column)
    kind = column.type
    if isinstance(kind, sa.LargeBinary):
        return _BYTES
    if isinstance(kind, sa.Boolean):
        return True
    if isinstance(kind, sa.Integer | sa.Float):
        return 1
    return _TEXT[: kind.length] if isinstance(kind, sa.String) and kind.length else _TEXT


async def filled(database: Database) -> None:
    """One row in each table, with a value in each column."""
    async with database.write() as connection:
        for table in metadata.sorted_tables:
            row = {column.key: _value(column) for column in table.columns}
            await connection.execute(sa.insert(table).values(row))


async def stored(database: Database) -> Rows:
    """All rows of all tables that there are, as the database has them."""

    def read(connection: sa.Connection) -> Rows:
        found = sa.MetaData()
        found.reflect(connection)
        return {
            table.name: [dict(row) for row in connection.execute(table.select()).mappings()]
            for table in found.sorted_tables
            if table.name != "alembic_version"
        }

    async with database.read() as connection:
        return await connection.run_sync(read)


def same(found: Rows, before: Rows) -> bool:
    """Whether what both have, tables and columns, is equal; nothing else is looked at."""
    for table in found.keys() & before.keys():
        (now,), (then,) = found[table], before[table]
        if any(now[name] != then[name] for name in now.keys() & then.keys()):
            return False
    return True


async def walk(database: Database) -> None:
    """Down to nothing and up again, version by version, with data in every table."""
    await database.migrate()
    await filled(database)
    first = await stored(database)
    assert set(first) == set(metadata.tables)
    versions = migrating.known()
    before = first
    for version in versions[-2::-1]:
        await database.migrate_down(version)
        assert await database.schema() == version
        found = await stored(database)
        assert len(found) <= len(before)
        assert same(found, before), version
        before = found
    assert all(rows for rows in before.values())
    for version in versions[1:]:
        await database.migrate(version)
        found = await stored(database)
        kept = {table: rows for table, rows in found.items() if rows}
        assert kept.keys() >= before.keys()
        assert same(kept, before), version
        before = kept
    await database.migrate_down(migrating.EMPTY)
    assert await stored(database) == {}
    await database.migrate()
