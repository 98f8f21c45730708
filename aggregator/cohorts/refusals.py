"""Devices that refused a roster: who objected to whom, why, and for how long that counts.

What a device says of another is not proven. So it binds its sender alone: the two are not put into
one cohort again while the clash holds, and it is the sender that gives way (see
:mod:`aggregator.cohorts.choosing`). A device that objects to more than a few is taken to object to
rosters as such.
"""

from __future__ import annotations

from aggregator.cohorts.choosing import ANYBODY, Clash
from aggregator.store import refusals as stored
from aggregator.store.database import Connection
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
    connection: Connection, task: str, state: State, refused: Refused, now: float
) -> None:
    """Store a refusal of the roster of this cohort."""
    identity = state.facts.identity(refused.index).hex()
    target = state.facts.identity(refused.entry).hex() if refused.entry >= 0 else ANYBODY
    others = await stored.count_of_others(connection, task, identity, target, now)
    if others >= _OBJECTIONS_MAX:
        target = ANYBODY
    expires_at = now + HOLDS_S
    await stored.keep(
        connection, task, identity, target, reason=refused.reason, now=now, expires_at=expires_at
    )


async def clashes_of(connection: Connection, task: str, now: float) -> frozenset[Clash]:
    """The clashes that hold now."""
    return frozenset(await stored.that_hold(connection, task, now))


async def newest(connection: Connection, task: str) -> tuple[RosterRefusal, ...]:
    """The last refusals, for the operator."""
    return await stored.newest(connection, task, _SHOWN_MAX)
