"""A database with a row in every table, walked through all versions of its schema."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import sqlalchemy as sa

from aggregator.store import migrating
from aggregator.store.database import Database
from aggregator.store.identity import SEALING_KEYS, enter_sealing_key
from aggregator.store.schema import metadata
from aggregator.store.sealing import SEALED, Cells

Rows = dict[str, list[dict[str, Any]]]
_TEXT, _BYTES = "ab" * 32, b"bytes of it"
_DEVICES = ("device", "target_device")
_NAMED = defaultdict[str, tuple[str, ...]](
    tuple,
    {
        "sessions": ("identity",),
        "contributions": ("identity",),
        "bans": ("identity",),
        "strikes": ("identity",),
        "refusals": ("identity", "target"),
        "revoked": ("identity",),
        "not_dealing": ("identity",),
    },
)


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
    """One row in each table, with a value in each column; and the key that seals."""
    cells = database.cells
    async with database.write() as connection:
        for table in metadata.sorted_tables:
            row = {column.key: _value(column) for column in table.columns}
            for named in _NAMED[table.name]:
                row[named] = cells.name(_TEXT)
            for place in SEALED:
                if place.table == table.name:
                    plain = bytes.fromhex(_TEXT) if place.column in _DEVICES else _BYTES
                    row[place.column] = cells.seal(place, [row[n] for n in place.row], plain)
            await connection.execute(sa.insert(table).values(row))
    await enter_sealing_key(database, cells.ids, cells.sealing)  # as a service does


async def stored(database: Database) -> Rows:
    """All rows of all tables that there are, with sealed cells open and identities for hashes."""

    def read(connection: sa.Connection) -> Rows:
        found = sa.MetaData()
        found.reflect(connection)
        return {
            table.name: [dict(row) for row in connection.execute(table.select()).mappings()]
            for table in found.sorted_tables
            if table.name != "alembic_version"
        }

    async with database.read() as connection:
        found = await connection.run_sync(read)
        version = await connection.run_sync(migrating.of_database)
    facts = found.get("service_facts", [])
    noted = [facts.pop(at)["value"] for at, row in enumerate(facts) if row["name"] == SEALING_KEYS]
    assert noted == ([database.cells.sealing] if migrating.is_sealed(version) else [])
    if any("device" in row for row in found.get("sessions", ())):
        for table, rows in found.items():
            for row in rows:
                _open(database.cells, table, row)
    return found


def _open(cells: Cells, table: str, row: dict[str, Any]) -> None:
    opened = {
        place.column: cells.open(place, [row[name] for name in place.row], row[place.column])
        for place in SEALED
        if place.table == table
    }
    for named in _NAMED[table]:
        assert row[named] == cells.name(_TEXT)
        row[named] = _TEXT
    row.update(opened)


def same(found: Rows, before: Rows) -> bool:
    """Whether what both have, tables and columns, is equal; nothing else is looked at."""
    for table in found.keys() & before.keys():
        (now,), (then,) = found[table], before[table]
        if any(now[name] != then[name] for name in now.keys() & then.keys()):
            return False
    return True


async def walk(database: Database) -> None:
    """Down to the first version and up again, one by one, with data in every table."""
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
