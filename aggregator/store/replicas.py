"""Replicas of one service: when each was started last.

Every function works in its caller's transaction.
"""

from __future__ import annotations

import sqlalchemy as sa

from aggregator.store.database import Connection
from aggregator.store.schema import replicas


async def started(connection: Connection, replica: str, now: float) -> None:
    """A replica has been started at ``now``, Unix seconds."""
    await connection.execute(sa.delete(replicas).where(replicas.c.replica == replica))
    await connection.execute(sa.insert(replicas).values(replica=replica, started_at=now))


async def any_started_since(connection: Connection, since: float) -> bool:
    """Whether any replica was started after ``since``, so that one may have died before."""
    latest = await connection.scalar(sa.select(sa.func.max(replicas.c.started_at)))
    return latest is not None and bool(latest > since)
