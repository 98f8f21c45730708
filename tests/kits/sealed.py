"""Keys that seal a database of a test, and rows as who has them sees them."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from aggregator.store.schema import cohort_events
from aggregator.store.sealing import EVENT, SEALED, Cells
from secagg.secret import Secret
from tests.kits.service import Served

CELLS = Cells([Secret(b"s" * 32)], Secret(b"n" * 32))
_NAMED = {"device": "identity", "target_device": "target"}


def plain(cells: Cells, table: str, row: Mapping[str, Any]) -> Any:
    """A row with its sealed cells open, and with identity keys where their hashes stand."""
    values = dict(row)
    for place in SEALED:
        if place.table == table:
            key = [row[name] for name in place.row]
            values[place.column] = cells.open(place, key, row[place.column])
            if place.column in _NAMED:
                values[_NAMED[place.column]] = values[place.column].hex()
    return SimpleNamespace(**values)


async def replace_event(server: Served, cohort: str, seq: int, payload: bytes) -> None:
    """Put other bytes, sealed as the service would, into a cohort's log."""
    database = server.service.core.database
    sealed = database.cells.seal(EVENT, (cohort, seq), payload)
    here = (cohort_events.c.cohort == cohort, cohort_events.c.seq == seq)
    async with database.write() as connection:
        await connection.execute(sa.update(cohort_events).where(*here).values(payload=sealed))
