"""Whose database it is: the keys and the ledger's name of the one service that fills it.

The first start enters them, also into a database of before, whose ledger and manifests say whose
they are. Every later start compares: a replica with keys of its own would sign a second history.
"""

from __future__ import annotations

import sqlalchemy as sa

from aggregator.store.database import Conflict, Connection, Database
from aggregator.store.schema import ledger_head, service_facts, tasks


async def enter(database: Database, own: dict[str, str]) -> dict[str, str]:
    """Name -> value of what the database knows of its service, after ``own`` was entered where it
    knew nothing. Of replicas that start at once one enters."""
    known = await read(database)
    missing = {name: value for name, value in own.items() if name not in known}
    if missing:
        try:
            async with database.write() as connection:
                rows = [{"name": name, "value": value} for name, value in missing.items()]
                await connection.execute(sa.insert(service_facts), rows)
        except Conflict:  # another replica was first
            pass
        known = await read(database)
    return known


async def read(database: Database) -> dict[str, str]:
    """Name -> value; nothing, where the schema has no place for it yet."""
    async with database.read() as connection:
        if not await _has(connection, service_facts):
            return {}
        rows = await connection.execute(sa.select(service_facts.c.name, service_facts.c.value))
        return {row.name: row.value for row in rows}


async def signed_before(database: Database) -> tuple[str | None, bytes | None]:
    """(newest checkpoint, some task's manifest) of a database; None where there is none."""
    async with database.read() as connection:
        if not await _has(connection, ledger_head):
            return None, None
        checkpoint = await connection.scalar(sa.select(ledger_head.c.checkpoint))
        manifest = await connection.scalar(sa.select(tasks.c.manifest).limit(1))
        return checkpoint, manifest


async def _has(connection: Connection, table: sa.Table) -> bool:
    return await connection.run_sync(lambda plain: sa.inspect(plain).has_table(table.name))
