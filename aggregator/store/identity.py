"""Whose database it is: the keys and the ledger's name of the one service that fills it.

The first start enters them, also into a database of before, whose ledger and manifests say whose
they are. Every later start compares: a replica with keys of its own would sign a second history.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection

import sqlalchemy as sa

from aggregator.store.database import Conflict, Connection, Database
from aggregator.store.schema import ledger_head, service_facts, tasks

BLOB_STORE = "blob-store"
SEALING_KEYS = "sealing-keys"  # ids of the keys that seal cells, between spaces


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


async def enter_blob_store(database: Database, own: str, put: Callable[[], Awaitable[None]]) -> str:
    """What the database knows of its blob store, after ``own`` was entered where it knew nothing.

    ``put`` tells the store the same, before the row counts. Of replicas that start at once one
    does both.
    """
    with contextlib.suppress(Conflict):  # another replica was first
        async with database.write() as connection:
            row = {"name": BLOB_STORE, "value": own}
            await connection.execute(sa.insert(service_facts).values(row))
            await put()
    return (await read(database))[BLOB_STORE]


async def enter_sealing_key(database: Database, ids: Collection[str], sealing: str) -> list[str]:
    """Note that a key seals from now on. Returns the keys that seal cells already; nothing is
    noted if one of them is not among ``ids``.

    Raises:
        Conflict: another replica was first; try again.
    """
    async with database.write() as connection:
        here = service_facts.c.name == SEALING_KEYS
        noted = await connection.scalar(
            sa.select(service_facts.c.value).where(here).with_for_update()
        )
        known = (noted or "").split()
        if set(known) <= set(ids) and sealing not in known:
            values = {"value": " ".join([*known, sealing])}
            if noted is None:
                values["name"] = SEALING_KEYS
                await connection.execute(sa.insert(service_facts).values(values))
            else:
                await connection.execute(sa.update(service_facts).where(here).values(values))
        return known


async def only_sealing_key(database: Database, sealing: str) -> None:
    """Note that no other key seals any cell."""
    async with database.write() as connection:
        await connection.execute(
            sa.delete(service_facts).where(service_facts.c.name == SEALING_KEYS)
        )
        row = {"name": SEALING_KEYS, "value": sealing}
        await connection.execute(sa.insert(service_facts).values(row))


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
