"""Devices that refused a roster: who objected to whom, why, and for how long that counts.

What a device says of another is not proven. So it binds its sender alone: the two are not put into
one cohort again while the clash holds, and it is the sender that gives way (see
:mod:`aggregator.cohorts.choosing`). A device that objects to more than a few is taken to object to
rosters as such.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from aggregator.cohorts.choosing import ANYBODY, Clash
from aggregator.store.schema import refusals
from aggregator.views import RosterRefusal
from secagg.server import Refused, State

HOLDS_S = 3_600.0  # a certificate may be renewed, a policy changed
_OBJECTIONS_MAX = 8  # of one device in one task
_SHOWN_MAX = 20
# What a device of this version may say. Anything else counts as "other": names are for metrics.
REASONS = frozenset(
    {
        "advert-expired",
        "certificate-expired",
        "certificate-invalid",
        "cohort-size",
        "kem-key-malformed",
        "partner-unknown",
        "roster-advert",
        "roster-manifest",
        "roster-models",
        "roster-neighbours",
        "threshold-unreachable",
    }
)


async def keep(
    connection: AsyncConnection, task: str, state: State, refused: Refused, now: float
) -> None:
    """Store a refusal of the roster of this cohort."""
    identity = state.facts.identity(refused.index).hex()
    target = state.facts.identity(refused.entry).hex() if refused.entry >= 0 else ANYBODY
    own = (refusals.c.task == task, refusals.c.identity == identity)
    others = await connection.scalar(
        sa.select(sa.func.count()).where(
            *own, refusals.c.target != target, refusals.c.expires_at > now
        )
    )
    if (others or 0) >= _OBJECTIONS_MAX:
        target = ANYBODY
    times = await connection.scalar(
        sa.select(refusals.c.times).where(*own, refusals.c.target == target)
    )
    await connection.execute(sa.delete(refusals).where(*own, refusals.c.target == target))
    await connection.execute(
        sa.insert(refusals).values(
            task=task,
            identity=identity,
            target=target,
            reason=refused.reason,
            times=(times or 0) + 1,
            refused_at=now,
            expires_at=now + HOLDS_S,
        )
    )


async def clashes_of(connection: AsyncConnection, task: str, now: float) -> frozenset[Clash]:
    """The clashes that hold now."""
    rows = await connection.execute(
        sa.select(refusals.c.identity, refusals.c.target).where(
            refusals.c.task == task, refusals.c.expires_at > now
        )
    )
    return frozenset((row.identity, row.target) for row in rows)


async def newest(connection: AsyncConnection, task: str) -> tuple[RosterRefusal, ...]:
    """The last refusals, for the operator."""
    rows = await connection.execute(
        sa.select(
            refusals.c.identity,
            refusals.c.target,
            refusals.c.reason,
            refusals.c.times,
            refusals.c.refused_at,
            refusals.c.expires_at,
        )
        .where(refusals.c.task == task)
        .order_by(refusals.c.refused_at.desc())
        .limit(_SHOWN_MAX)
    )
    return tuple(
        RosterRefusal(**{**row, "target": row["target"] or None}) for row in rows.mappings()
    )
