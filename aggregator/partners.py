"""Partners whose keys may certify devices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from aggregator.core import Core
from aggregator.errors import Kind, Refusal, conflict, not_found
from aggregator.ledger.log import Ledger
from aggregator.store.database import Conflict
from aggregator.store.schema import (
    cohorts,
    partners,
    removed_partners,
    revocation_lists,
    revoked,
    sessions,
    tasks,
)
from aggregator.views import PartnerView, RevocationsTaken
from dp.ledger.records import membership_record
from secagg.http_api import Revocations
from secagg.limits import IDENTITY_KEY_BYTES
from secagg.manifest import decode_manifest
from secagg.revocation import revocations_digest, verify_revocations

_NAME_LENGTH_MAX = 200


def keys_of(known: Sequence[tuple[str, str]], named: Sequence[str]) -> tuple[bytes, ...]:
    """Keys of the partners that a task names, in order; of all if it names none.

    Args:
        known: (key in hex, name) of every registered partner.
        named: names, or keys in hex.

    Raises:
        Refusal: ``partner-unknown``.
    """
    for name in named:
        if not any(name in (key, called) for key, called in known):
            raise Refusal(
                Kind.INVALID,
                "partner-unknown",
                f"The task names {name!r}, which is not a partner here.",
                expected=sorted(called for _, called in known)[:16],
                found=name,
                remedy="Add the partner first (secagg partner add), or name one of these.",
            )
    chosen = {key for key, called in known if not named or {key, called}.intersection(named)}
    return tuple(sorted(map(bytes.fromhex, chosen)))


def _check_name(name: str) -> None:
    """Raises: Refusal: ``partner-name``."""
    strange = next((each for each in name if not each.isprintable()), None)
    if strange is not None:
        found = f"the character {strange!r}"
    elif not name.strip():
        found = "an empty name"
    elif name != name.strip():
        found = "white space around it"
    elif len(name) > _NAME_LENGTH_MAX:
        found = f"{len(name)} characters"
    else:
        return
    raise Refusal(
        Kind.INVALID,
        "partner-name",
        "A partner's name is one line of visible text.",
        expected=f"1 to {_NAME_LENGTH_MAX} characters, none of control",
        found=found,
        remedy="Give another name; its key is what counts.",
    )


def partner_removed() -> Refusal:
    """For a device whose partner takes part no longer."""
    return Refusal(
        Kind.FORBIDDEN,
        "partner-removed",
        "The operator removed this device's partner; its devices do not take part any more.",
        remedy="Ask the partner, or the operator: secagg partner add lets it take part again.",
    )


class Partners:
    """The partners, with their keys at hand for every request.

    ``admitted``: keys that may certify a caller: those of ``keys``, and of removed partners whose
    devices are in a cohort that is open. These go on to its end, for the others count on them.
    ``removed``: keys of partners that took part before.
    """

    def __init__(self, core: Core, ledger: Ledger) -> None:
        self._core = core
        self._ledger = ledger
        self.keys: frozenset[bytes] = frozenset()
        self.admitted: frozenset[bytes] = frozenset()
        self.removed: frozenset[bytes] = frozenset()

    async def load(self) -> None:
        async with self._core.database.read() as connection:
            found = (await connection.execute(sa.select(partners.c.partner_key))).scalars()
            keys = frozenset(bytes.fromhex(key) for key in found)
            inside = await connection.execute(
                sa.select(sessions.c.partner)
                .join(cohorts, cohorts.c.cohort == sessions.c.cohort)
                .where(cohorts.c.state == "open", sessions.c.partner != "")
                .distinct()
            )
            admitted = keys.union(map(bytes.fromhex, inside.scalars()))
            gone = await connection.execute(sa.select(removed_partners.c.partner_key))
            removed = frozenset(map(bytes.fromhex, gone.scalars()))
        self.keys, self.admitted, self.removed = keys, admitted, removed

    async def all(self) -> tuple[PartnerView, ...]:
        rows = await self._core.database.rows(sa.select(partners).order_by(partners.c.added_at))
        return tuple(msgspec.convert(row, PartnerView, from_attributes=True) for row in rows)

    async def add(self, name: str, key: bytes) -> None:
        """Add a partner; the same name and key again change nothing. That a removed one is back
        goes into the ledger.

        Raises:
            Refusal: ``partner-name``, ``partner-key``, ``partner-exists``.
        """
        _check_name(name)
        if len(key) != IDENTITY_KEY_BYTES:
            raise Refusal(
                Kind.INVALID,
                "partner-key",
                "A partner's key is an Ed25519 key.",
                expected=f"{IDENTITY_KEY_BYTES} bytes",
                found=f"{len(key)} bytes",
            )
        try:
            async with self._core.database.write() as connection:
                await connection.execute(
                    sa.insert(partners).values(
                        partner_key=key.hex(), name=name, added_at=self._core.clock()
                    )
                )
                back = await connection.execute(
                    sa.delete(removed_partners).where(removed_partners.c.partner_key == key.hex())
                )
                if back.rowcount:
                    record = membership_record(
                        "partner-added", int(self._core.clock()), cause="operator", partner=key
                    )
                    await self._ledger.append(connection, [record])
        except Conflict as error:
            known = {row.partner_key: row.name for row in await self.all()}
            if known.get(key.hex()) != name:
                raise conflict("partner-exists", "The key belongs to another partner.") from error
        await self._ledger.publish()
        await self.load()

    async def remove(self, key: bytes) -> list[str]:
        """Refuse a partner's devices from now on; returns the open tasks that list it and go on
        without it.

        Their manifests stay as they are signed. Waiting sessions of the partner's devices go.

        Raises:
            Refusal: ``not-found``; ``partner-last`` if an open task has no other.
        """
        core = self._core
        async with core.database.write() as connection:
            left = set((await connection.execute(sa.select(partners.c.partner_key))).scalars())
            if key.hex() not in left:
                raise not_found("partner", key.hex())
            left.discard(key.hex())
            concerned = []
            rows = await connection.execute(
                sa.select(tasks.c.task, tasks.c.manifest).where(tasks.c.state != "finished")
            )
            for row in rows:
                listed = {k.hex() for k in decode_manifest(row.manifest).partner_keys}
                if key.hex() not in listed:
                    continue
                concerned.append(str(row.task))
                if not listed & left:
                    raise conflict(
                        "partner-last",
                        f"Task {row.task!r} has no other partner.",
                        remedy="Let the task finish, or create one with other partners first.",
                    )
            await connection.execute(sa.delete(partners).where(partners.c.partner_key == key.hex()))
            await connection.execute(
                sa.insert(removed_partners).values(partner_key=key.hex(), removed_at=core.clock())
            )
            await connection.execute(
                sa.delete(sessions).where(
                    sessions.c.partner == key.hex(), sessions.c.cohort.is_(None)
                )
            )
            record = membership_record(
                "partner-removed", int(core.clock()), cause="operator", partner=key
            )
            await self._ledger.append(connection, [record])
        await self._ledger.publish()
        await self.load()
        return concerned

    async def revoke(self, caller: bytes, signed: bytes) -> RevocationsTaken:
        """Take a partner's signed revocation list, which replaces its last one; the same bytes
        again change nothing. Waiting sessions of the listed devices go.

        Raises:
            RemoteProtocolError: as ``verify_revocations``.
            Refusal: ``revocations-not-yours`` or ``partner-unknown``; or
                ``revocations-old``.
        """
        core = self._core
        found = await asyncio.to_thread(verify_revocations, signed)
        if found.partner_key != caller:
            raise Refusal(Kind.FORBIDDEN, "revocations-not-yours", "The list is another partner's.")
        partner, name = found.partner_key.hex(), revocations_digest(signed)
        view = RevocationsTaken(
            partner=partner,
            number=found.number,
            devices=len(found.devices),
            digest=name.hex(),
        )
        async with core.database.write() as connection:
            known = await connection.scalar(
                sa.select(partners.c.name).where(partners.c.partner_key == partner)
            )
            if known is None:
                raise Refusal(Kind.FORBIDDEN, "partner-unknown", "No such partner takes part.")
            last = (
                await connection.execute(
                    sa.select(revocation_lists.c.number, revocation_lists.c.digest).where(
                        revocation_lists.c.partner == partner
                    )
                )
            ).first()
            if last is not None and last.digest == name.hex():
                return view
            if last is not None and found.number <= last.number:
                raise conflict(
                    "revocations-old",
                    "A list with this number or a higher one was taken before.",
                    expected=f"more than {last.number}",
                    found=found.number,
                    remedy="Sign the list again with a higher number.",
                )
            for table in (revocation_lists, revoked):
                await connection.execute(sa.delete(table).where(table.c.partner == partner))
            await connection.execute(
                sa.insert(revocation_lists).values(
                    partner=partner,
                    number=found.number,
                    digest=name.hex(),
                    signed=signed,
                    received_at=core.clock(),
                )
            )
            listed = [{"partner": partner, "identity": key.hex()} for key in found.devices]
            if listed:
                await connection.execute(sa.insert(revoked), listed)
            await connection.execute(
                sa.delete(sessions).where(
                    sessions.c.cohort.is_(None),
                    sa.exists().where(
                        revoked.c.partner == sessions.c.partner,
                        revoked.c.identity == sessions.c.identity,
                    ),
                )
            )
            record = membership_record(
                "revoked",
                int(core.clock()),
                cause="partner",
                partner=found.partner_key,
                number=found.number,
                digest=name,
            )
            await self._ledger.append(connection, [record])
        await self._ledger.publish()
        return view

    async def revocations(self, keys: Sequence[bytes]) -> tuple[Revocations, ...]:
        """The newest lists of these partners."""
        rows = await self._core.database.rows(
            sa.select(
                revocation_lists.c.partner,
                revocation_lists.c.number,
                revocation_lists.c.digest,
                sa.func.length(revocation_lists.c.signed).label("size"),
            ).where(revocation_lists.c.partner.in_([key.hex() for key in keys]))
        )
        return tuple(
            Revocations(
                partner=bytes.fromhex(row.partner),
                number=row.number,
                digest=bytes.fromhex(row.digest),
                size_bytes=row.size,
            )
            for row in rows
        )

    async def revocation_list(self, name: str) -> bytes:
        """
        Raises:
            Refusal: ``not-found``.
        """
        rows = await self._core.database.rows(
            sa.select(revocation_lists.c.signed).where(revocation_lists.c.digest == name)
        )
        if not rows:
            raise not_found("revocation list")
        return bytes(rows[0].signed)
