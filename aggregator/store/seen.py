"""What the dashboard asks of partners and devices: who was seen, who is in question.

Every function works in its caller's read and returns at most so many rows. A ``name`` is a hashed
identity (:meth:`Cells.name`), times are Unix seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from aggregator.store.database import Connection, cells_of
from aggregator.store.drop_outs import holds_up
from aggregator.store.schema import bans, cohorts, not_dealing, sessions, strikes, tasks
from aggregator.store.sealing import BAN_DEVICE, NOT_DEALING_DEVICE, SESSION_DEVICE, STRIKE_DEVICE


@dataclass(frozen=True)
class Seen:
    """A session of a device. ``cohort``: None while it waits. ``identity``: its key."""

    name: str
    identity: bytes
    partner: str
    task: str
    cohort: str | None
    received_at: float


async def newest_sessions(connection: Connection, most: int) -> list[Seen]:
    """The newest session of each device, of the newest ``most`` sessions."""
    rows = await connection.execute(
        sa.select(
            sessions.c.session,
            sessions.c.identity,
            sessions.c.device,
            sessions.c.partner,
            sessions.c.task,
            sessions.c.cohort,
            sessions.c.received_at,
        )
        .order_by(sessions.c.received_at.desc(), sessions.c.session)
        .limit(most)
    )
    cells, found = cells_of(connection), {}
    for row in rows:
        if row.identity not in found:
            identity = cells.open(SESSION_DEVICE, (row.session,), row.device)
            found[row.identity] = Seen(
                row.identity, identity, row.partner, row.task, row.cohort, row.received_at
            )
    return list(found.values())


@dataclass(frozen=True)
class PartnerSeen:
    """``devices``: that have a session."""

    devices: int
    last_at: float


async def partners_seen(connection: Connection) -> dict[str, PartnerSeen]:
    """Partner key, hex -> what its devices' sessions tell."""
    rows = await connection.execute(
        sa.select(
            sessions.c.partner,
            sa.func.count(sessions.c.identity.distinct()),
            sa.func.max(sessions.c.received_at),
        ).group_by(sessions.c.partner)
    )
    return {row[0]: PartnerSeen(row[1], row[2]) for row in rows}


async def devices_seen(connection: Connection) -> int:
    """How many devices have a session."""
    query = sa.select(sa.func.count(sessions.c.identity.distinct()))
    return await connection.scalar(query) or 0


@dataclass(frozen=True)
class BannedDevice:
    """``task``: empty where none caused it."""

    name: str
    identity: bytes
    partner: str
    kind: str
    task: str
    banned_at: float


async def newest_bans(connection: Connection, most: int) -> list[BannedDevice]:
    rows = await connection.execute(
        sa.select(
            bans.c.identity,
            bans.c.device,
            bans.c.partner,
            bans.c.kind,
            bans.c.task,
            bans.c.banned_at,
        )
        .order_by(bans.c.banned_at.desc(), bans.c.identity)
        .limit(most)
    )
    cells = cells_of(connection)
    return [
        BannedDevice(
            row.identity,
            cells.open(BAN_DEVICE, (row.identity,), row.device),
            row.partner,
            row.kind,
            row.task,
            row.banned_at,
        )
        for row in rows
    ]


@dataclass(frozen=True)
class StruckDevice:
    name: str
    identity: bytes
    partner: str
    cohort: str
    weight: float
    struck_at: float


async def newest_strikes(connection: Connection, most: int) -> list[StruckDevice]:
    rows = await connection.execute(
        sa.select(
            strikes.c.identity,
            strikes.c.device,
            strikes.c.partner,
            strikes.c.cohort,
            strikes.c.weight,
            strikes.c.struck_at,
        )
        .order_by(strikes.c.struck_at.desc(), strikes.c.identity)
        .limit(most)
    )
    cells = cells_of(connection)
    return [
        StruckDevice(
            row.identity,
            cells.open(STRIKE_DEVICE, (row.identity, row.cohort), row.device),
            row.partner,
            row.cohort,
            row.weight,
            row.struck_at,
        )
        for row in rows
    ]


async def bans_and_strikes(connection: Connection) -> tuple[int, int]:
    """How many devices are banned, and how many have a strike."""
    banned = await connection.scalar(sa.select(sa.func.count()).select_from(bans))
    struck = await connection.scalar(sa.select(sa.func.count(strikes.c.identity.distinct())))
    return banned or 0, struck or 0


@dataclass(frozen=True)
class NeverDeals:
    """``cohorts``: in a row of ``task``."""

    name: str
    identity: bytes
    task: str
    cohorts: int
    last_at: float


async def never_dealing(connection: Connection, least: int, most: int) -> list[NeverDeals]:
    """Devices that hold cohorts up (:func:`holds_up`), the worst first."""
    rows = await connection.execute(
        sa.select(
            not_dealing.c.task,
            not_dealing.c.identity,
            not_dealing.c.device,
            not_dealing.c.cohorts,
            not_dealing.c.last_at,
        )
        .where(holds_up(least))
        .order_by(not_dealing.c.cohorts.desc(), not_dealing.c.identity)
        .limit(most)
    )
    cells = cells_of(connection)
    return [
        NeverDeals(
            row.identity,
            cells.open(NOT_DEALING_DEVICE, (row.task, row.identity), row.device),
            row.task,
            row.cohorts,
            row.last_at,
        )
        for row in rows
    ]


async def failed_in_a_row(connection: Connection) -> dict[str, dict[str, int]]:
    """Open task -> reason -> cohorts that ended so since its last release."""
    rows = await connection.execute(
        sa.select(cohorts.c.task, cohorts.c.reason, sa.func.count())
        .join(
            tasks,
            (tasks.c.task == cohorts.c.task) & (tasks.c.version == cohorts.c.model_version),
        )
        .where(tasks.c.state == "open", cohorts.c.state == "aborted")
        .group_by(cohorts.c.task, cohorts.c.reason)
    )
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        found.setdefault(row[0], {})[row[1] or "not recorded"] = row[2]
    return found
