"""Sessions of devices: signed adverts that wait, and places in rosters.

A function that takes a connection works in its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from aggregator.store.database import Connection, Database, cells_of, expect_one
from aggregator.store.schema import cohorts, mail, revoked, sessions
from aggregator.store.sealing import ADVERT, SESSION_DEVICE
from aggregator.store.standing import barred

# -- devices that wait --------------------------------------------------------------------------


async def identity_of(database: Database, session: str) -> str | None:
    """Hashed, of the device whose session it is; None if there is no such session."""
    rows = await database.few(sa.select(sessions.c.identity).where(sessions.c.session == session))
    return rows[0].identity if rows else None


async def report_in(
    connection: Connection,
    session: str,
    *,
    task: str,
    identity: bytes,
    partner: bytes,
    trusted: Iterable[bytes],
    advert: bytes,
    version: int,
    expires_at: int,
    now: float,
) -> None:
    """Let a device wait with its signed advert, in the place of one that waits.

    It keeps the time since which it waits. ``version``: of the model that it trained on. Times are
    Unix seconds.
    """
    cells = cells_of(connection)
    name = cells.name(identity.hex())
    present = (
        sessions.c.task == task,
        sessions.c.identity == name,
        sessions.c.cohort.is_(None),
    )
    since = await connection.scalar(
        sa.select(sa.func.min(sessions.c.waiting_since)).where(*present)
    )
    await connection.execute(sa.delete(sessions).where(*present))
    await connection.execute(
        sa.insert(sessions).values(
            session=session,
            task=task,
            identity=name,
            device=cells.seal(SESSION_DEVICE, (session,), identity),
            advert=cells.seal(ADVERT, (session,), advert),
            model_version=version,
            expires_at=expires_at,
            received_at=now,
            waiting_since=now if since is None else since,
            partner=partner.hex(),
            trusted=" ".join(sorted(key.hex() for key in trusted)),
        )
    )


@dataclass(frozen=True)
class Waiting:
    """A session that waits, without its advert. ``identity`` is hashed, other keys are hex, times
    Unix seconds; ``trusted``: keys of partners between spaces. ``waiting_since``: of the first
    advert that it replaced."""

    session: str
    model_version: int
    received_at: float
    waiting_since: float
    identity: str
    partner: str
    trusted: str


async def waiting(
    connection: Connection, task: str, *, oldest: int, until: float, with_barred: bool
) -> list[Waiting]:
    """Sessions of a task that wait, those first that have waited longest.

    Args:
        oldest: version of the model that they may have trained on.
        until: Unix seconds that they outlast.
        with_barred: whether devices that may not take part are among them.
    """
    query = (
        sa.select(
            sessions.c.session,
            sessions.c.model_version,
            sessions.c.received_at,
            sessions.c.waiting_since,
            sessions.c.identity,
            sessions.c.partner,
            sessions.c.trusted,
        )
        .where(
            sessions.c.task == task,
            sessions.c.cohort.is_(None),
            sessions.c.model_version >= oldest,
            sessions.c.expires_at > until,
        )
        .order_by(sessions.c.waiting_since, sessions.c.session)
    )
    if not with_barred:
        query = query.where(sa.not_(barred(sessions.c.identity, sessions.c.partner)))
    return [Waiting(**row._mapping) for row in await connection.execute(query)]


async def waiting_names(connection: Connection, task: str) -> list[str]:
    """All sessions of a task that wait, however old they are."""
    rows = await connection.execute(
        sa.select(sessions.c.session).where(sessions.c.task == task, sessions.c.cohort.is_(None))
    )
    return list(rows.scalars())


async def adverts(database: Database, names: Sequence[str]) -> dict[str, bytes]:
    """Session -> signed advert, of those of these sessions that wait."""
    rows = await database.rows(
        sa.select(sessions.c.session, sessions.c.advert).where(
            sessions.c.session.in_(names), sessions.c.cohort.is_(None)
        )
    )
    cells = database.cells
    return {row.session: cells.open(ADVERT, (row.session,), row.advert) for row in rows}


async def drop_waiting(connection: Connection, session: str) -> None:
    """Remove a session, unless a cohort has taken it."""
    await connection.execute(
        sa.delete(sessions).where(sessions.c.session == session, sessions.c.cohort.is_(None))
    )


async def drop_waiting_of_device(connection: Connection, identity: bytes) -> None:
    name = cells_of(connection).name(identity.hex())
    await connection.execute(
        sa.delete(sessions).where(sessions.c.identity == name, sessions.c.cohort.is_(None))
    )


async def drop_waiting_of_partner(connection: Connection, partner: bytes) -> None:
    await connection.execute(
        sa.delete(sessions).where(sessions.c.partner == partner.hex(), sessions.c.cohort.is_(None))
    )


async def drop_waiting_revoked(connection: Connection) -> None:
    """Remove sessions that wait of devices whose partner has revoked their certificates."""
    await connection.execute(
        sa.delete(sessions).where(
            sessions.c.cohort.is_(None),
            sa.exists().where(
                revoked.c.partner == sessions.c.partner,
                revoked.c.identity == sessions.c.identity,
            ),
        )
    )


# -- devices in cohorts -------------------------------------------------------------------------


async def join(connection: Connection, session: str, cohort: str, roster_index: int) -> None:
    """Take a session that waits into a cohort; its advert is in the cohort's log from now on.

    Raises:
        Conflict: it waits no longer.
    """
    await expect_one(
        connection,
        sa.update(sessions)
        .where(sessions.c.session == session, sessions.c.cohort.is_(None))
        .values(cohort=cohort, roster_index=roster_index, advert=b""),
    )


async def members(connection: Connection, cohort: str) -> list[str]:
    """Sessions of a cohort, by roster index."""
    rows = await connection.execute(
        sa.select(sessions.c.session)
        .where(sessions.c.cohort == cohort)
        .order_by(sessions.c.roster_index)
    )
    return list(rows.scalars())


async def partner_of(connection: Connection, identity: bytes) -> str | None:
    """Hex, of the partner of some session of a device, empty if it is not known; None if the
    device has no session."""
    name = cells_of(connection).name(identity.hex())
    partner: str | None = await connection.scalar(
        sa.select(sessions.c.partner).where(sessions.c.identity == name).limit(1)
    )
    return partner


async def barred_members(database: Database) -> list[tuple[str, int]]:
    """(cohort, roster index) of barred devices in open cohorts that have not fixed S."""
    rows = await database.rows(
        sa.select(sessions.c.cohort, sessions.c.roster_index)
        .join(cohorts, cohorts.c.cohort == sessions.c.cohort)
        .where(
            cohorts.c.state == "open",
            cohorts.c.phase.in_(("sharing", "checking")),
            barred(sessions.c.identity, sessions.c.partner),
        )
    )
    return [(row.cohort, row.roster_index) for row in rows]


async def partners_in_open_cohorts(connection: Connection) -> list[str]:
    """Keys, hex, of the partners of devices in open cohorts."""
    rows = await connection.execute(
        sa.select(sessions.c.partner)
        .join(cohorts, cohorts.c.cohort == sessions.c.cohort)
        .where(cohorts.c.state == "open", sessions.c.partner != "")
        .distinct()
    )
    return list(rows.scalars())


async def forget_old(connection: Connection, before: float) -> None:
    """Remove sessions and mail of cohorts that ended before, and adverts that expired before.

    ``before``: Unix seconds.
    """
    old = sa.select(cohorts.c.cohort).where(cohorts.c.ended_at < before)
    dead = sa.select(sessions.c.session).where(sessions.c.cohort.in_(old))
    await connection.execute(sa.delete(mail).where(mail.c.session.in_(dead)))
    await connection.execute(sa.delete(sessions).where(sessions.c.cohort.in_(old)))
    await connection.execute(
        sa.delete(sessions).where(sessions.c.cohort.is_(None), sessions.c.expires_at < before)
    )
