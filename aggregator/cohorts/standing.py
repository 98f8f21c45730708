"""Who may not take part, and who is in question: bans, strikes, revoked certificates.

All of it is state of the database, looked up at each report-in and each formation, so every
replica obeys it at once; what is under way on a replica hears of it at its next poll.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from aggregator.cohorts.strikes import FORGOTTEN_S, Standing, Strike, forgiven, score
from aggregator.core import Core
from aggregator.errors import Kind, Refusal, conflict, not_found
from aggregator.ledger.log import Ledger
from aggregator.logs import get_logger
from aggregator.partners import partner_removed
from aggregator.store.schema import (
    bans,
    cohorts,
    partners,
    revoked,
    sessions,
    strikes,
)
from aggregator.views import BanMade, BanView, StrikeView
from dp.ledger.records import membership_record
from secagg.limits import IDENTITY_KEY_BYTES

_log = get_logger("standing")
OPERATOR = "operator"  # kind of a ban that no evidence caused


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


def barred(identity: Any, partner: Any) -> sa.ColumnElement[bool]:
    """SQL: the device is banned or revoked, or its partner was removed. ``partner`` may be empty
    where it is not known."""
    return sa.or_(
        identity.in_(sa.select(bans.c.identity)),
        sa.exists().where(revoked.c.identity == identity, revoked.c.partner == partner),
        sa.and_(partner != "", partner.not_in(sa.select(partners.c.partner_key))),
    )


async def refuse_barred(core: Core, identity: bytes, partner: bytes | None = None) -> None:
    """
    Args:
        partner: who certified the device; None looks for a ban alone.

    Raises:
        Refusal: ``device-banned``, ``certificate-revoked`` or ``partner-removed``.
    """
    rows = await core.database.rows(
        sa.select(bans.c.kind, bans.c.handle).where(bans.c.identity == identity.hex())
    )
    if rows:
        raise Refusal(
            Kind.FORBIDDEN,
            "device-banned",
            f"This device is banned: {rows[0].kind}.",
            remedy="Ask your partner to appeal to the operator with the reference "
            f"{rows[0].handle[:16]}; secagg device unban lifts a ban.",
        )
    if partner is None:
        return
    query = sa.select(revoked.c.partner).where(
        revoked.c.identity == identity.hex(), revoked.c.partner == partner.hex()
    )
    if await core.database.rows(query):
        raise Refusal(
            Kind.FORBIDDEN,
            "certificate-revoked",
            "This device's partner has revoked its certificate.",
            remedy="Ask the partner to enrol the device again.",
        )
    if not await core.database.rows(
        sa.select(partners.c.name).where(partners.c.partner_key == partner.hex())
    ):
        raise partner_removed()


async def insert_ban(connection: AsyncConnection, ban: Ban, now: float) -> bytes | None:
    """Ban a device in the caller's transaction: its waiting sessions go. The ledger's record of
    it, or None for one that is banned already."""
    known = await connection.scalar(
        sa.select(bans.c.identity).where(bans.c.identity == ban.identity.hex())
    )
    if known is not None:
        return None
    await connection.execute(
        sa.insert(bans).values(
            identity=ban.identity.hex(),
            partner=ban.partner.hex(),
            kind=ban.kind,
            task=ban.task,
            cohort=ban.cohort.hex(),
            handle=ban.handle.hex(),
            note=ban.note,
            evidence=ban.evidence,
            transferable=ban.transferable,
            banned_at=now,
        )
    )
    await connection.execute(
        sa.delete(sessions).where(
            sessions.c.identity == ban.identity.hex(), sessions.c.cohort.is_(None)
        )
    )
    return membership_record(
        "banned", int(now), cause=ban.kind, task=ban.task, cohort=ban.cohort, device=ban.handle
    )


async def strike(
    connection: AsyncConnection,
    cohort: bytes,
    kind: str,
    devices: Iterable[tuple[bytes, bytes]],
    now: float,
) -> int:
    """Strike devices, given as (identity key, partner key), for one cohort; how many.

    A device is struck once for a cohort, whatever it is in question for.
    """
    known = await connection.execute(
        sa.select(strikes.c.identity).where(strikes.c.cohort == cohort.hex())
    )
    struck = set(known.scalars())
    rows = [
        {
            "identity": identity.hex(),
            "partner": partner.hex(),
            "cohort": cohort.hex(),
            "kind": kind,
            "weight": 1.0,
            "struck_at": now,
        }
        for identity, partner in devices
        if identity.hex() not in struck
    ]
    if rows:
        await connection.execute(sa.insert(strikes), rows)
    return len(rows)


def _of_task(task: str) -> sa.ColumnElement[bool]:
    return strikes.c.cohort.in_(sa.select(cohorts.c.cohort).where(cohorts.c.task == task))


async def forgive(connection: AsyncConnection, task: str, identities: Iterable[bytes]) -> None:
    """Lighten the strikes in a task of devices that were in a sum that it released."""
    counted = await connection.execute(
        sa.select(strikes.c.identity, sa.func.count())
        .where(_of_task(task))
        .group_by(strikes.c.identity)
    )
    released = {identity.hex() for identity in identities}
    by_count: dict[int, list[str]] = defaultdict(list)
    for identity, count in counted.all():
        if identity in released:
            by_count[count].append(identity)
    for count, found in by_count.items():
        await connection.execute(
            sa.update(strikes)
            .where(strikes.c.identity.in_(found), _of_task(task))
            .values(weight=strikes.c.weight * forgiven(1.0, count))
        )


async def standing_of(connection: AsyncConnection, task: str, waiting: sa.Select[Any]) -> Standing:
    """Strikes of sessions and of their partners, as a task sees them. ``waiting``: selects session,
    identity, partner of the sessions in question."""
    by_identity: dict[str, list[Strike]] = defaultdict(list)
    by_partner: dict[str, dict[str, Strike]] = defaultdict(dict)
    rows = await connection.execute(sa.select(strikes, _of_task(task).label("here")))
    for row in rows:
        found = Strike(row.cohort, row.struck_at, row.weight, bool(row.here))
        by_identity[row.identity].append(found)
        by_partner[row.partner][row.cohort] = Strike(row.cohort, row.struck_at)
    if not by_identity:
        return Standing()
    of_session: dict[str, Sequence[Strike]] = {}
    of_partner: dict[str, Sequence[Strike]] = {}
    for row in await connection.execute(waiting):
        if row.identity in by_identity:
            of_session[row.session] = by_identity[row.identity]
        if row.partner in by_partner:
            of_partner[row.session] = tuple(by_partner[row.partner].values())
    return Standing(of_session, of_partner)


class Membership:
    """What the operator does about devices, each act in the ledger."""

    def __init__(self, core: Core, ledger: Ledger) -> None:
        self._core = core
        self._ledger = ledger

    async def ban(self, identity: bytes, note: str) -> BanMade:
        """Ban a device by the operator's word.

        Raises:
            Refusal: ``device-key``; ``device-banned`` if it is banned already.
        """
        _check_key(identity)
        core = self._core
        now = core.clock()
        async with core.database.write() as connection:
            partner = await connection.scalar(
                sa.select(sessions.c.partner).where(sessions.c.identity == identity.hex()).limit(1)
            )
            struck = await connection.scalar(
                sa.select(strikes.c.identity).where(strikes.c.identity == identity.hex()).limit(1)
            )
            ban = Ban(
                identity,
                bytes.fromhex(partner or ""),
                OPERATOR,
                secrets.token_bytes(32),
                note=note[:1_000],
            )
            record = await insert_ban(connection, ban, now)
            if record is None:
                raise conflict("device-banned", "The device is banned already.")
            await self._ledger.append(connection, [record])
        await self._ledger.publish()
        core.metrics.bans.labels(OPERATOR).inc()
        _log.info("device-banned", kind=OPERATOR, handle=ban.handle.hex()[:16])
        made = msgspec.structs.asdict(await self.show(identity))
        return BanMade(**made, seen=partner is not None or struck is not None)

    async def unban(self, identity: bytes) -> None:
        """Lift a ban, and forget the device's strikes.

        Raises:
            Refusal: ``device-key``; ``not-found``.
        """
        _check_key(identity)
        async with self._core.database.write() as connection:
            row = (
                await connection.execute(sa.select(bans).where(bans.c.identity == identity.hex()))
            ).first()
            if row is None:
                raise not_found("ban", identity.hex())
            await connection.execute(sa.delete(bans).where(bans.c.identity == identity.hex()))
            await connection.execute(sa.delete(strikes).where(strikes.c.identity == identity.hex()))
            record = membership_record(
                "unbanned",
                int(self._core.clock()),
                cause=OPERATOR,
                task=row.task,
                cohort=bytes.fromhex(row.cohort),
                device=bytes.fromhex(row.handle),
            )
            await self._ledger.append(connection, [record])
        await self._ledger.publish()

    async def show(self, identity: bytes) -> BanView:
        """
        Raises:
            Refusal: ``not-found``.
        """
        for row in await self.bans():
            if row.device == identity.hex():
                return row
        raise not_found("ban", identity.hex())

    async def evidence(self, identity: bytes) -> bytes:
        """
        Raises:
            Refusal: ``not-found``, also for a ban without evidence.
        """
        rows = await self._core.database.rows(
            sa.select(bans.c.evidence).where(bans.c.identity == identity.hex())
        )
        if not rows or not rows[0].evidence:
            raise not_found("evidence", identity.hex())
        return bytes(rows[0].evidence)

    async def bans(self) -> tuple[BanView, ...]:
        rows = await self._core.database.rows(sa.select(bans).order_by(bans.c.banned_at))
        return tuple(
            BanView(
                device=row.identity,
                partner=row.partner,
                kind=row.kind,
                task=row.task,
                cohort=row.cohort,
                handle=row.handle,
                note=row.note,
                evidence_bytes=len(row.evidence),
                transferable=row.transferable,
                banned_at=row.banned_at,
            )
            for row in rows
        )

    async def strikes(self) -> tuple[StrikeView, ...]:
        """Devices with strikes that still count, the most struck first."""
        now = self._core.clock()
        rows = await self._core.database.rows(sa.select(strikes))
        of: dict[tuple[str, str], list[Strike]] = defaultdict(list)
        for row in rows:
            of[row.identity, row.partner].append(Strike(row.cohort, row.struck_at, row.weight))
        listed = [
            StrikeView(
                device=identity,
                partner=partner,
                strikes=len(found),
                score=round(score(found, now), 3),
                last_at=max(s.at for s in found),
            )
            for (identity, partner), found in of.items()
        ]
        return tuple(sorted(listed, key=lambda row: -row.score))


async def forget_old(connection: AsyncConnection, now: float) -> None:
    """Remove strikes that count no longer."""
    await connection.execute(sa.delete(strikes).where(strikes.c.struck_at < now - FORGOTTEN_S))


async def barred_members(core: Core) -> dict[str, list[int]]:
    """Open cohorts that have not fixed S -> roster indices of barred devices in them."""
    rows = await core.database.rows(
        sa.select(sessions.c.cohort, sessions.c.roster_index)
        .join(cohorts, cohorts.c.cohort == sessions.c.cohort)
        .where(
            cohorts.c.state == "open",
            cohorts.c.phase.in_(("sharing", "checking")),
            barred(sessions.c.identity, sessions.c.partner),
        )
    )
    found: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        found[row.cohort].append(row.roster_index)
    return found


def _check_key(identity: bytes) -> None:
    if len(identity) != IDENTITY_KEY_BYTES:
        raise Refusal(
            Kind.INVALID,
            "device-key",
            "A device is named by its Ed25519 key.",
            expected=IDENTITY_KEY_BYTES,
            found=len(identity),
        )
