"""Bans, strikes and revoked certificates of devices.

A function that takes a connection works in its caller's transaction. Identities and partners are
hex, times are Unix seconds; a ``name`` is a hashed identity (:meth:`Cells.name`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from aggregator.store.database import Connection, Database, cells_of
from aggregator.store.schema import bans, cohorts, partners, revoked, strikes
from aggregator.store.sealing import BAN_DEVICE, BAN_EVIDENCE, STRIKE_DEVICE, plain_size
from aggregator.views import BanView


def barred(identity: Any, partner: Any) -> sa.ColumnElement[bool]:
    """SQL: the device is banned or revoked, or its partner was removed. ``partner`` may be empty
    where it is not known."""
    return sa.or_(
        identity.in_(sa.select(bans.c.identity)),
        sa.exists().where(revoked.c.identity == identity, revoked.c.partner == partner),
        sa.and_(partner != "", partner.not_in(sa.select(partners.c.partner_key))),
    )


async def is_barred(database: Database, identity: str, partner: str) -> bool:
    """As :func:`barred`, in one query."""
    name = sa.literal(database.cells.name(identity))
    (row,) = await database.few(sa.select(barred(name, sa.literal(partner)).label("found")))
    return bool(row.found)


async def is_revoked(database: Database, identity: str, partner: str) -> bool:
    """Whether this partner has revoked the device's certificate."""
    name = database.cells.name(identity)
    query = sa.select(revoked.c.partner).where(
        revoked.c.identity == name, revoked.c.partner == partner
    )
    return bool(await database.few(query))


# -- bans ---------------------------------------------------------------------------------------


class Ban(NamedTuple):
    """``handle``: how the ledger names the device in this ban, 32 bytes."""

    identity: bytes
    partner: bytes
    kind: str
    handle: bytes
    task: str = ""
    cohort: bytes = b""
    note: str = ""
    evidence: bytes = b""
    transferable: bool = False


async def ban(connection: Connection, ban: Ban, now: float) -> None:
    cells = cells_of(connection)
    name = cells.name(ban.identity.hex())
    await connection.execute(
        sa.insert(bans).values(
            identity=name,
            device=cells.seal(BAN_DEVICE, (name,), ban.identity),
            partner=ban.partner.hex(),
            kind=ban.kind,
            task=ban.task,
            cohort=ban.cohort.hex(),
            handle=ban.handle.hex(),
            note=ban.note,
            evidence=cells.seal(BAN_EVIDENCE, (name,), ban.evidence),
            transferable=ban.transferable,
            banned_at=now,
        )
    )


@dataclass(frozen=True)
class Banned:
    """A ban that stands. ``task``, ``cohort`` (hex): empty if none caused it."""

    kind: str
    handle: str
    task: str
    cohort: str


_BANNED = sa.select(bans.c.kind, bans.c.handle, bans.c.task, bans.c.cohort)


async def banned(database: Database, identity: str) -> Banned | None:
    rows = await database.few(_BANNED.where(bans.c.identity == database.cells.name(identity)))
    return Banned(**rows[0]._mapping) if rows else None


async def banned_in(connection: Connection, identity: str) -> Banned | None:
    """As :func:`banned`, within a transaction."""
    name = cells_of(connection).name(identity)
    row = (await connection.execute(_BANNED.where(bans.c.identity == name))).first()
    return None if row is None else Banned(**row._mapping)


async def unban(connection: Connection, identity: str) -> None:
    """Remove a device's ban and its strikes."""
    name = cells_of(connection).name(identity)
    await connection.execute(sa.delete(bans).where(bans.c.identity == name))
    await connection.execute(sa.delete(strikes).where(strikes.c.identity == name))


async def evidence_of(database: Database, identity: str) -> bytes:
    """Why a device is banned; empty without evidence or ban."""
    cells = database.cells
    name = cells.name(identity)
    rows = await database.rows(sa.select(bans.c.evidence).where(bans.c.identity == name))
    return cells.open(BAN_EVIDENCE, (name,), rows[0].evidence) if rows else b""


async def ban_views(database: Database) -> tuple[BanView, ...]:
    """All bans, the oldest first."""
    rows = await database.rows(sa.select(bans).order_by(bans.c.banned_at))
    cells = database.cells
    return tuple(
        BanView(
            device=cells.open(BAN_DEVICE, (row.identity,), row.device).hex(),
            partner=row.partner,
            kind=row.kind,
            task=row.task,
            cohort=row.cohort,
            handle=row.handle,
            note=row.note,
            evidence_bytes=plain_size(row.evidence),
            transferable=row.transferable,
            banned_at=row.banned_at,
        )
        for row in rows
    )


# -- strikes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredStrike:
    """``here``: whether the cohort is of a task that was asked for."""

    name: str
    partner: str
    cohort: str
    weight: float
    struck_at: float
    here: bool = False


def _of_task(task: str) -> sa.ColumnElement[bool]:
    return strikes.c.cohort.in_(sa.select(cohorts.c.cohort).where(cohorts.c.task == task))


_STRIKE = (
    strikes.c.identity.label("name"),
    strikes.c.partner,
    strikes.c.cohort,
    strikes.c.weight,
    strikes.c.struck_at,
)


async def strikes_seen_from(connection: Connection, task: str) -> list[StoredStrike]:
    """All strikes, with those of a task marked."""
    rows = await connection.execute(sa.select(*_STRIKE, _of_task(task).label("here")))
    return [StoredStrike(**row._mapping) for row in rows]


async def all_strikes(database: Database) -> list[tuple[str, StoredStrike]]:
    """(identity, strike)."""
    cells = database.cells
    rows = await database.rows(sa.select(*_STRIKE, strikes.c.device))
    found = []
    for row in rows:
        values = dict(row._mapping)
        device = cells.open(STRIKE_DEVICE, (row.name, row.cohort), values.pop("device"))
        found.append((device.hex(), StoredStrike(**values)))
    return found


async def is_struck(connection: Connection, identity: str) -> bool:
    name = cells_of(connection).name(identity)
    query = sa.select(strikes.c.identity).where(strikes.c.identity == name).limit(1)
    return await connection.scalar(query) is not None


async def strike(
    connection: Connection,
    cohort: str,
    kind: str,
    devices: Iterable[tuple[str, str]],
    now: float,
) -> int:
    """Insert a strike of weight 1 for each (identity, partner) that was not struck for this cohort;
    how many."""
    cells = cells_of(connection)
    known = await connection.execute(
        sa.select(strikes.c.identity).where(strikes.c.cohort == cohort)
    )
    struck = set(known.scalars())
    rows = [
        {
            "identity": name,
            "device": cells.seal(STRIKE_DEVICE, (name, cohort), bytes.fromhex(identity)),
            "partner": partner,
            "cohort": cohort,
            "kind": kind,
            "weight": 1.0,
            "struck_at": now,
        }
        for identity, partner in devices
        if (name := cells.name(identity)) not in struck
    ]
    if rows:
        await connection.execute(sa.insert(strikes), rows)
    return len(rows)


async def strikes_by_device(
    connection: Connection, task: str, identities: Iterable[str]
) -> dict[str, int]:
    """Name -> number of its strikes in a task, of those of these devices that have any."""
    cells = cells_of(connection)
    names = {cells.name(identity) for identity in identities}
    counted = await connection.execute(
        sa.select(strikes.c.identity, sa.func.count())
        .where(_of_task(task))
        .group_by(strikes.c.identity)
    )
    return {name: count for name, count in counted.all() if name in names}


async def lighten(connection: Connection, task: str, names: Sequence[str], factor: float) -> None:
    """Multiply the weights of the strikes of these devices in a task."""
    await connection.execute(
        sa.update(strikes)
        .where(strikes.c.identity.in_(names), _of_task(task))
        .values(weight=strikes.c.weight * factor)
    )


async def forget_strikes(connection: Connection, before: float) -> None:
    """Remove strikes that are older."""
    await connection.execute(sa.delete(strikes).where(strikes.c.struck_at < before))
