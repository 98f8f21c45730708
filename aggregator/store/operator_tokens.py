"""Operators' tokens that were rotated in or out, by the SHA-256 of each, hex.

A function that takes a connection works in its caller's transaction.
"""

from __future__ import annotations

import sqlalchemy as sa

from aggregator.store.database import Connection
from aggregator.store.schema import operator_tokens


async def all_of(connection: Connection) -> dict[str, float | None]:
    """Digest -> until when the token is taken, Unix seconds; None: until it is rotated out."""
    rows = await connection.execute(sa.select(operator_tokens.c.digest, operator_tokens.c.until))
    return {row.digest: row.until for row in rows}


async def insert(
    connection: Connection, digest: str, made_at: float, until: float | None = None
) -> None:
    """
    Raises:
        Conflict: at the transaction's end, if the token is known.
    """
    await connection.execute(
        sa.insert(operator_tokens).values(digest=digest, made_at=made_at, until=until)
    )


async def end_others(connection: Connection, digest: str, until: float) -> None:
    """Every token but this one is taken until then at most."""
    table = operator_tokens.c
    await connection.execute(
        sa.update(operator_tokens)
        .where(table.digest != digest)
        .where(sa.or_(table.until.is_(None), table.until > until))
        .values(until=until)
    )
