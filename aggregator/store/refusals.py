"""Refusals of rosters: which device refused, because of whom, and until when that counts.

Every function works in its caller's transaction. Identities are hex, times are Unix seconds; an
empty target is the roster as such.
"""

from __future__ import annotations

import sqlalchemy as sa

from aggregator.store.database import Connection, cells_of
from aggregator.store.schema import refusals
from aggregator.store.sealing import REFUSAL_DEVICE, REFUSAL_TARGET
from aggregator.views import RosterRefusal


async def count_of_others(
    connection: Connection, task: str, identity: str, target: str, now: float
) -> int:
    """Refusals of a device that hold now, because of others than ``target``."""
    cells = cells_of(connection)
    count = await connection.scalar(
        sa.select(sa.func.count()).where(
            refusals.c.task == task,
            refusals.c.identity == cells.name(identity),
            refusals.c.target != cells.name(target),
            refusals.c.expires_at > now,
        )
    )
    return count or 0


async def keep(
    connection: Connection,
    task: str,
    identity: str,
    target: str,
    *,
    reason: str,
    now: float,
    expires_at: float,
) -> None:
    """Store a refusal in the place of an earlier one of the same device because of the same."""
    cells = cells_of(connection)
    key = (task, cells.name(identity), cells.name(target))
    same = (
        refusals.c.task == task,
        refusals.c.identity == key[1],
        refusals.c.target == key[2],
    )
    times = await connection.scalar(sa.select(refusals.c.times).where(*same))
    await connection.execute(sa.delete(refusals).where(*same))
    await connection.execute(
        sa.insert(refusals).values(
            task=task,
            identity=key[1],
            target=key[2],
            device=cells.seal(REFUSAL_DEVICE, key, bytes.fromhex(identity)),
            target_device=cells.seal(REFUSAL_TARGET, key, bytes.fromhex(target)),
            reason=reason,
            times=(times or 0) + 1,
            refused_at=now,
            expires_at=expires_at,
        )
    )


async def that_hold(connection: Connection, task: str, now: float) -> list[tuple[str, str]]:
    """(identity, target) of the refusals that hold now, both hashed."""
    rows = await connection.execute(
        sa.select(refusals.c.identity, refusals.c.target).where(
            refusals.c.task == task, refusals.c.expires_at > now
        )
    )
    return [(row.identity, row.target) for row in rows]


async def newest(connection: Connection, task: str, most: int) -> tuple[RosterRefusal, ...]:
    """The last refusals, for the operator."""
    rows = await connection.execute(
        sa.select(
            refusals.c.identity,
            refusals.c.target,
            refusals.c.device,
            refusals.c.target_device,
            refusals.c.reason,
            refusals.c.times,
            refusals.c.refused_at,
            refusals.c.expires_at,
        )
        .where(refusals.c.task == task)
        .order_by(refusals.c.refused_at.desc())
        .limit(most)
    )
    cells = cells_of(connection)
    found = []
    for row in rows.mappings():
        values = dict(row)
        key = (task, row["identity"], row["target"])
        device = cells.open(REFUSAL_DEVICE, key, values.pop("device"))
        target = cells.open(REFUSAL_TARGET, key, values.pop("target_device"))
        named = {"identity": device.hex(), "target": target.hex() or None}
        found.append(RosterRefusal(**{**values, **named}))
    return tuple(found)


async def forget_old(connection: Connection, now: float) -> None:
    """Remove refusals that hold no longer."""
    await connection.execute(sa.delete(refusals).where(refusals.c.expires_at < now))
