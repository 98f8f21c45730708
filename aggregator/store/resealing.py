"""All sealed cells of a database: whether they open, and their change to the first key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa

from aggregator.store.database import Connection, Database
from aggregator.store.schema import metadata
from aggregator.store.sealing import SEALED, Place

_CELLS_AT_ONCE = 32  # of up to megabytes each


async def opened(database: Database) -> int:
    """Open every sealed cell; how many there are.

    Raises:
        CellRefused: one does not open.
    """
    count = 0
    async with database.read() as connection:
        for place in SEALED:
            async for row, cell in _cells(connection, place):
                database.cells.open(place, row, cell)
                count += bool(cell)
    return count


async def reseal(database: Database) -> int:
    """Seal under the first key what another sealed, in one transaction; how many cells.

    Raises:
        CellRefused: one does not open; nothing was changed.
    """
    count = 0
    cells = database.cells
    async with database.write() as connection:
        for place in SEALED:
            table = metadata.tables[place.table]
            async for row, cell in _cells(connection, place):
                if cells.is_current(cell):
                    continue
                here = [table.c[name] == value for name, value in zip(place.row, row, strict=True)]
                sealed = cells.seal(place, row, cells.open(place, row, cell))
                await connection.execute(
                    sa.update(table).where(*here).values({place.column: sealed})
                )
                count += 1
    return count


async def _cells(
    connection: Connection, place: Place
) -> AsyncIterator[tuple[tuple[Any, ...], bytes]]:
    """(values that name the row, cell) of each row. Names are in memory, and few cells at a time:
    a table may be larger than memory."""
    table = metadata.tables[place.table]
    named = [table.c[name] for name in place.row]
    names = [tuple(row) for row in await connection.execute(sa.select(*named))]
    for start in range(0, len(names), _CELLS_AT_ONCE):
        among = sa.tuple_(*named).in_(names[start : start + _CELLS_AT_ONCE])
        found = await connection.execute(sa.select(*named, table.c[place.column]).where(among))
        for row in found:
            yield tuple(row[:-1]), row[-1]
