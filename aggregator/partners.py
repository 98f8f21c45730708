"""Partners whose keys may certify devices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nacl.bindings import crypto_core_ed25519_is_valid_point

from aggregator.core import Core
from aggregator.errors import Kind, Refusal, conflict, not_found
from aggregator.ledger.log import Ledger
from aggregator.store import partners, sessions, tasks
from aggregator.store.database import Conflict
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
        self._looking = asyncio.Lock()

    async def added_elsewhere(self, key: bytes) -> bool:
        """Whether a partner that is not known here is one: another replica may just have added it.

        One look at a time: callers without a partner wait for each other.
        """
        async with self._looking:
            if key not in self.admitted and await partners.takes_part(
                self._core.database, key.hex()
            ):
                await self.load()
        return key in self.admitted

    async def load(self) -> None:
        async with self._core.database.read() as connection:
            keys = frozenset(map(bytes.fromhex, await partners.keys(connection)))
            inside = await sessions.partners_in_open_cohorts(connection)
            admitted = keys.union(map(bytes.fromhex, inside))
            removed = frozenset(map(bytes.fromhex, await partners.removed_keys(connection)))
        self.keys, self.admitted, self.removed = keys, admitted, removed

    async def all(self) -> tuple[PartnerView, ...]:
        return await partners.views(self._core.database)

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
        if not crypto_core_ed25519_is_valid_point(key):
            raise Refusal(
                Kind.INVALID,
                "partner-key",
                "These bytes are no public key: nobody can sign for them, or everybody could.",
                found=key.hex(),
                remedy="Give the key that `secagg partner key FILE` shows.",
            )
        try:
            async with self._core.database.write() as connection:
                now = self._core.clock()
                back = await partners.add(connection, key.hex(), name, now)
                if back:
                    record = membership_record(
                        "partner-added", int(now), cause="operator", partner=key
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
            left = set(await partners.keys(connection))
            if key.hex() not in left:
                raise not_found("partner", key.hex())
            left.discard(key.hex())
            concerned = []
            for task, manifest in await tasks.unfinished(connection):
                listed = {k.hex() for k in decode_manifest(manifest).partner_keys}
                if key.hex() not in listed:
                    continue
                concerned.append(task)
                if not listed & left:
                    raise conflict(
                        "partner-last",
                        f"Task {task!r} has no other partner.",
                        remedy="Let the task finish, or create one with other partners first.",
                    )
            now = core.clock()
            await partners.remove(connection, key.hex(), now)
            await sessions.drop_waiting_of_partner(connection, key)
            record = membership_record("partner-removed", int(now), cause="operator", partner=key)
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
        cells = core.database.cells
        rows = await asyncio.to_thread(partners.sealed_devices, cells, partner, found.devices)
        async with core.database.write() as connection:
            if not await partners.takes_part_in(connection, partner):
                raise Refusal(Kind.FORBIDDEN, "partner-unknown", "No such partner takes part.")
            last = await partners.last_list(connection, partner)
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
            now = core.clock()
            await partners.replace_list(
                connection,
                partner,
                number=found.number,
                digest=name.hex(),
                signed=signed,
                devices=rows,
                now=now,
            )
            await sessions.drop_waiting_revoked(connection)
            record = membership_record(
                "revoked",
                int(now),
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
        return await partners.lists_of(self._core.database, keys)

    async def revocation_list(self, name: str) -> bytes:
        """
        Raises:
            Refusal: ``not-found``.
        """
        signed = await partners.signed_list(self._core.database, name)
        if signed is None:
            raise not_found("revocation list")
        return signed
