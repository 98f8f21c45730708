"""Where ended cohorts lost their devices, and devices that do not deal.

A function that takes a connection works in its caller's transaction. Identities are hex, times are
Unix seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from aggregator.store.database import Connection
from aggregator.store.schema import drop_outs, not_dealing


async def count(connection: Connection, task: str, lost: Mapping[str, int]) -> None:
    """Add what a cohort lost at each step to what its task's cohorts lost there before."""
    for step, devices in lost.items():
        if not devices:
            continue
        done = await connection.execute(
            sa.update(drop_outs)
            .where(drop_outs.c.task == task, drop_outs.c.step == step)
            .values(devices=drop_outs.c.devices + devices)
        )
        if not done.rowcount:
            await connection.execute(
                sa.insert(drop_outs).values(task=task, step=step, devices=devices)
            )


async def count_not_dealing(
    connection: Connection,
    task: str,
    *,
    missing: Collection[str],
    dealt: Collection[str],
    now: float,
) -> dict[str, int]:
    """Count one cohort more for each device that was missing, and forget those that dealt.

    Returns:
        Identity of each missing device -> cohorts in a row in which it has not dealt.
    """
    found = await connection.execute(
        sa.select(not_dealing.c.identity, not_dealing.c.cohorts).where(not_dealing.c.task == task)
    )
    before = {row.identity: row.cohorts for row in found}
    if back := before.keys() & set(dealt):
        await connection.execute(
            sa.delete(not_dealing).where(
                not_dealing.c.task == task, not_dealing.c.identity.in_(back)
            )
        )
    counted = {identity: before.get(identity, 0) + 1 for identity in missing}
    for identity in counted.keys() & before.keys():
        await connection.execute(
            sa.update(not_dealing)
            .where(not_dealing.c.task == task, not_dealing.c.identity == identity)
            .values(cohorts=counted[identity], last_at=now)
        )
    new = [
        {"task": task, "identity": identity, "cohorts": 1, "first_at": now, "last_at": now}
        for identity in counted.keys() - before.keys()
    ]
    if new:
        await connection.execute(sa.insert(not_dealing), new)
    return counted


@dataclass(frozen=True)
class NotDealing:
    """``cohorts``: in a row."""

    identity: str
    cohorts: int
    first_at: float
    last_at: float


async def devices_not_dealing(
    connection: Connection, task: str, least: int, most: int
) -> list[NotDealing]:
    """Devices that have missed at least so many cohorts in a row; at most so many, the worst
    first."""
    rows = await connection.execute(
        sa.select(
            not_dealing.c.identity,
            not_dealing.c.cohorts,
            not_dealing.c.first_at,
            not_dealing.c.last_at,
        )
        .where(not_dealing.c.task == task, not_dealing.c.cohorts >= least)
        .order_by(not_dealing.c.cohorts.desc(), not_dealing.c.identity)
        .limit(most)
    )
    return [NotDealing(**row._mapping) for row in rows]


async def forget_old(connection: Connection, before: float) -> None:
    """Forget devices that no cohort has missed since."""
    await connection.execute(sa.delete(not_dealing).where(not_dealing.c.last_at < before))
