"""All sealed cells of a database: whether they open, and their change to the first key."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from aggregator.store.database import Connection, Database
from aggregator.store.schema import metadata
from aggregator.store.sealing import SEALED, Place


async def opened(database: Database) -> int:
    """Open every sealed cell; how many there are.

    Raises:
        CellRefused: one does not open.
    """
    count = 0
    async with database.read() as connection:
        for place in SEALED:
            for row, cell in await _cells(connection, place):
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
            old = [
                (row, cell)
                for row, cell in await _cells(connection, place)
                if not cells.is_current(cell)
            ]
            for row, cell in old:
                here = [table.c[name] == value for name, value in zip(place.row, row, strict=True)]
                sealed = cells.seal(place, row, cells.open(place, row, cell))
                await connection.execute(
                    sa.update(table).where(*here).values({place.column: sealed})
                )
            count += len(old)
    return count


async def _cells(connection: Connection, place: Place) -> list[tuple[tuple[Any, ...], bytes]]:
    """(values that name the row, cell) of each row."""
    table = metadata.tables[place.table]
    query = sa.select(*(table.c[name] for name in place.row), table.c[place.column])
    return [(tuple(row[:-1]), row[-1]) for row in await connection.execute(query)]
