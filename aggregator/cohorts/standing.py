"""Who may not take part, and who is in question: bans, strikes, revoked certificates.

All of it is state of the database, looked up at each report-in and each formation, so every
replica obeys it at once; what is under way on a replica hears of it at its next poll.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from aggregator.cohorts.choosing import WaitingDevice
from aggregator.cohorts.strikes import FORGOTTEN_S, Standing, Strike, forgiven, score
from aggregator.core import Core
from aggregator.errors import Kind, Refusal, conflict, not_found
from aggregator.ledger.log import Ledger
from aggregator.logs import get_logger
from aggregator.partners import partner_removed
from aggregator.store import partners, sessions
from aggregator.store import standing as stored
from aggregator.store.database import Connection
from aggregator.store.standing import Ban
from aggregator.views import BanMade, BanView, StrikeView
from dp.ledger.records import membership_record
from secagg.limits import IDENTITY_KEY_BYTES

_log = get_logger("standing")
OPERATOR = "operator"  # kind of a ban that no evidence caused


async def refuse_barred(core: Core, identity: bytes, partner: bytes | None = None) -> None:
    """
    Args:
        partner: who certified the device; None looks for a ban alone.

    Raises:
        Refusal: ``device-banned``, ``certificate-revoked`` or ``partner-removed``.
    """
    if partner and not await stored.is_barred(core.database, identity.hex(), partner.hex()):
        return
    found = await stored.banned(core.database, identity.hex())
    if found is not None:
        raise Refusal(
            Kind.FORBIDDEN,
            "device-banned",
            f"This device is banned: {found.kind}.",
            remedy="Ask your partner to appeal to the operator with the reference "
            f"{found.handle[:16]}; secagg device unban lifts a ban.",
        )
    if partner is None:
        return
    if await stored.is_revoked(core.database, identity.hex(), partner.hex()):
        raise Refusal(
            Kind.FORBIDDEN,
            "certificate-revoked",
            "This device's partner has revoked its certificate.",
            remedy="Ask the partner to enrol the device again.",
        )
    if not await partners.takes_part(core.database, partner.hex()):
        raise partner_removed()


async def insert_ban(connection: Connection, ban: Ban, now: float) -> bytes | None:
    """Ban a device in the caller's transaction: its waiting sessions go. The ledger's record of
    it, or None for one that is banned already."""
    if await stored.banned_in(connection, ban.identity.hex()) is not None:
        return None
    await stored.ban(connection, ban, now)
    await sessions.drop_waiting_of_device(connection, ban.identity)
    return membership_record(
        "banned", int(now), cause=ban.kind, task=ban.task, cohort=ban.cohort, device=ban.handle
    )


async def strike(
    connection: Connection,
    cohort: bytes,
    kind: str,
    devices: Iterable[tuple[bytes, bytes]],
    now: float,
) -> int:
    """Strike devices, given as (identity key, partner key), for one cohort; how many.

    A device is struck once for a cohort, whatever it is in question for.
    """
    found = [(identity.hex(), partner.hex()) for identity, partner in devices]
    return await stored.strike(connection, cohort.hex(), kind, found, now)


async def forgive(connection: Connection, task: str, identities: Iterable[bytes]) -> None:
    """Lighten the strikes in a task of devices that were in a sum that it released."""
    released = [identity.hex() for identity in identities]
    by_count: dict[int, list[str]] = defaultdict(list)
    for name, count in (await stored.strikes_by_device(connection, task, released)).items():
        by_count[count].append(name)
    for count, found in by_count.items():
        await stored.lighten(connection, task, found, forgiven(1.0, count))


async def standing_of(
    connection: Connection, task: str, waiting: Sequence[WaitingDevice]
) -> Standing:
    """Strikes of devices that wait and of their partners, as a task sees them."""
    by_name: dict[str, list[Strike]] = defaultdict(list)
    by_partner: dict[str, dict[str, Strike]] = defaultdict(dict)
    for row in await stored.strikes_seen_from(connection, task):
        found = Strike(row.cohort, row.struck_at, row.weight, row.here)
        by_name[row.name].append(found)
        by_partner[row.partner][row.cohort] = Strike(row.cohort, row.struck_at)
    return Standing(
        {ready.session: by_name[ready.identity] for ready in waiting if ready.identity in by_name},
        {
            ready.session: tuple(by_partner[ready.partner].values())
            for ready in waiting
            if ready.partner in by_partner
        },
    )


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
            partner = await sessions.partner_of(connection, identity)
            struck = await stored.is_struck(connection, identity.hex())
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
        return BanMade(**made, seen=partner is not None or struck)

    async def unban(self, identity: bytes) -> bytes:
        """Lift a ban, and forget the device's strikes. Returns the handle of the ban.

        Raises:
            Refusal: ``device-key``; ``not-found``.
        """
        _check_key(identity)
        async with self._core.database.write() as connection:
            row = await stored.banned_in(connection, identity.hex())
            if row is None:
                raise not_found("ban", identity.hex())
            await stored.unban(connection, identity.hex())
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
        return bytes.fromhex(row.handle)

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
        evidence = await stored.evidence_of(self._core.database, identity.hex())
        if not evidence:
            raise not_found("evidence", identity.hex())
        return evidence

    async def bans(self) -> tuple[BanView, ...]:
        return await stored.ban_views(self._core.database)

    async def strikes(self) -> tuple[StrikeView, ...]:
        """Devices with strikes that still count, the most struck first."""
        now = self._core.clock()
        of: dict[tuple[str, str], list[Strike]] = defaultdict(list)
        for identity, row in await stored.all_strikes(self._core.database):
            of[identity, row.partner].append(Strike(row.cohort, row.struck_at, row.weight))
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


async def forget_old(connection: Connection, now: float) -> None:
    """Remove strikes that count no longer."""
    await stored.forget_strikes(connection, now - FORGOTTEN_S)


async def barred_members(core: Core) -> dict[str, list[int]]:
    """Open cohorts that have not fixed S -> roster indices of barred devices in them."""
    found: dict[str, list[int]] = defaultdict(list)
    for cohort, index in await sessions.barred_members(core.database):
        found[cohort].append(index)
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
