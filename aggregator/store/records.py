"""The ledger's leaves and head. Every function works in its caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from aggregator.store.database import Connection, Database, expect_one
from aggregator.store.schema import ledger_head, ledger_leaves


@dataclass(frozen=True)
class Head:
    """``size``: number of leaves. ``checkpoint``: signed, over all of them."""

    size: int
    checkpoint: str


async def begin(connection: Connection, checkpoint: str) -> None:
    """Insert the head of a ledger without a leaf."""
    await connection.execute(sa.insert(ledger_head).values(id=1, size=0, checkpoint=checkpoint))


async def head(connection: Connection) -> Head | None:
    """None before :func:`begin`."""
    found = await connection.execute(sa.select(ledger_head.c.size, ledger_head.c.checkpoint))
    row = found.first()
    return None if row is None else Head(**row._mapping)


async def present_size(database: Database) -> int:
    """Number of leaves that are committed; 0 before :func:`begin`."""
    rows = await database.few(sa.select(ledger_head.c.size))
    return rows[0].size if rows else 0


async def locked_size(connection: Connection) -> int:
    """Number of leaves; on PostgreSQL locked to the transaction's end."""
    found = await connection.execute(sa.select(ledger_head.c.size).with_for_update())
    return int(found.scalar_one())


async def leaves(connection: Connection, first: int, end: int) -> list[bytes]:
    """The records with indices from ``first`` to before ``end``."""
    rows = await connection.execute(
        sa.select(ledger_leaves.c.record)
        .where(ledger_leaves.c.leaf_index >= first, ledger_leaves.c.leaf_index < end)
        .order_by(ledger_leaves.c.leaf_index)
    )
    return list(rows.scalars())


async def append(
    connection: Connection, size: int, records: Sequence[bytes], checkpoint: str
) -> None:
    """Insert records behind the first ``size`` leaves. ``checkpoint``: over all of them.

    Raises:
        Conflict: the ledger has grown.
    """
    await connection.execute(
        sa.insert(ledger_leaves),
        [{"leaf_index": size + n, "record": record} for n, record in enumerate(records)],
    )
    await expect_one(
        connection,
        sa.update(ledger_head)
        .where(ledger_head.c.id == 1, ledger_head.c.size == size)
        .values(size=size + len(records), checkpoint=checkpoint),
    )
