"""Where ended cohorts lost their devices, and devices that do not deal.

A function that takes a connection works in its caller's transaction. Identities are hex, times are
Unix seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from aggregator.store.database import Connection, cells_of
from aggregator.store.schema import bans, drop_outs, not_dealing, revoked, tasks
from aggregator.store.sealing import NOT_DEALING_DEVICE


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
    cells = cells_of(connection)
    found = await connection.execute(
        sa.select(not_dealing.c.identity, not_dealing.c.cohorts).where(not_dealing.c.task == task)
    )
    before = {row.identity: row.cohorts for row in found}
    if back := before.keys() & {cells.name(identity) for identity in dealt}:
        await connection.execute(
            sa.delete(not_dealing).where(
                not_dealing.c.task == task, not_dealing.c.identity.in_(back)
            )
        )
    named = {identity: cells.name(identity) for identity in missing}
    counted = {identity: before.get(name, 0) + 1 for identity, name in named.items()}
    for identity, name in named.items():
        if name in before:
            await connection.execute(
                sa.update(not_dealing)
                .where(not_dealing.c.task == task, not_dealing.c.identity == name)
                .values(cohorts=counted[identity], last_at=now)
            )
    new = [
        {
            "task": task,
            "identity": name,
            "device": cells.seal(NOT_DEALING_DEVICE, (task, name), bytes.fromhex(identity)),
            "cohorts": 1,
            "first_at": now,
            "last_at": now,
        }
        for identity, name in named.items()
        if name not in before
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


def holds_up(least: int) -> sa.ColumnElement[bool]:
    """SQL: a row of ``not_dealing`` that somebody should do something about: at least so many
    cohorts, of a task that goes on, and of a device that may still be in the next."""
    name = not_dealing.c.identity
    return sa.and_(
        not_dealing.c.cohorts >= least,
        not_dealing.c.task.in_(sa.select(tasks.c.task).where(tasks.c.state != "finished")),
        name.not_in(sa.select(bans.c.identity)),
        name.not_in(sa.select(revoked.c.identity)),
    )


async def devices_not_dealing(
    connection: Connection, task: str, least: int, most: int
) -> list[NotDealing]:
    """Devices that hold the task's cohorts up (:func:`holds_up`); at most so many, the worst
    first."""
    rows = await connection.execute(
        sa.select(
            not_dealing.c.identity,
            not_dealing.c.device,
            not_dealing.c.cohorts,
            not_dealing.c.first_at,
            not_dealing.c.last_at,
        )
        .where(not_dealing.c.task == task, holds_up(least))
        .order_by(not_dealing.c.cohorts.desc(), not_dealing.c.identity)
        .limit(most)
    )
    cells = cells_of(connection)
    found = []
    for row in rows.mappings():
        values = dict(row)
        device = cells.open(NOT_DEALING_DEVICE, (task, row["identity"]), values.pop("device"))
        found.append(NotDealing(**{**values, "identity": device.hex()}))
    return found


async def of_task(connection: Connection, task: str) -> dict[str, int]:
    """Step -> devices that the task's ended cohorts lost there."""
    rows = await connection.execute(
        sa.select(drop_outs.c.step, drop_outs.c.devices).where(drop_outs.c.task == task)
    )
    return {row.step: row.devices for row in rows}


async def forget_old(connection: Connection, before: float) -> None:
    """Forget devices that no cohort has missed since."""
    await connection.execute(sa.delete(not_dealing).where(not_dealing.c.last_at < before))
