"""Partners' revocation lists at the device: fetched with the offer, verified, never rolled back."""

from __future__ import annotations

from collections.abc import Iterable

from client_sdk.errors import TransportError
from client_sdk.rounds.device import RunningDevice
from client_sdk.state.journal import Journal
from secagg.errors import RemoteProtocolError
from secagg.http_api import Offer
from secagg.limits import REVOCATION_BYTES_MAX
from secagg.manifest import Manifest
from secagg.revocation import revocations_digest, verify_revocations


def _name(partner: bytes) -> str:
    return f"revocations-{partner.hex()}"


def revoked_by(journal: Journal, partners: Iterable[bytes]) -> frozenset[tuple[bytes, bytes]]:
    """(partner key, identity key) of every device in the lists that this device has seen."""
    found: set[tuple[bytes, bytes]] = set()
    for partner in partners:
        kept = journal.load_blob(_name(partner))
        if kept is not None:
            found.update((partner, key) for key in verify_revocations(kept).devices)
    return frozenset(found)


async def refresh(device: RunningDevice, manifest: Manifest, offer: Offer) -> None:
    """Bring the lists of the partners that this device trusts, as the offer names them.

    Raises:
        RemoteProtocolError: ``revocations-rolled-back`` (an older list than was seen, or none),
            ``revocations-mismatch``, or as ``verify_revocations``.
        TransportError: the list cannot be had.
    """
    offered = {reference.partner: reference for reference in offer.revocations}
    for partner in sorted(device.partner_keys & frozenset(manifest.partner_keys)):
        stored = device.journal.load_blob(_name(partner))
        seen = 0 if stored is None else verify_revocations(stored).number
        reference = offered.get(partner)
        number = 0 if reference is None else reference.number
        if number < seen:
            raise RemoteProtocolError(
                "revocations-rolled-back",
                "The aggregator offers an older revocation list than this device has seen.",
                expected=f"at least number {seen}",
                found=number,
                remedy="Ask the operator; a database may have been restored from a backup.",
            )
        if reference is None or (stored is not None and number == seen):
            continue
        if not 0 < reference.size_bytes <= REVOCATION_BYTES_MAX:
            raise TransportError(
                "revocations-size",
                "The offered revocation list is too large.",
                expected=REVOCATION_BYTES_MAX,
                found=reference.size_bytes,
            )
        data = await device.transport.revocations(reference.digest)
        _check(data, partner, number, reference.digest)
        device.journal.save_blob(_name(partner), data)


def _check(data: bytes, partner: bytes, number: int, digest: bytes) -> None:
    found = verify_revocations(data)
    if (found.partner_key, found.number, revocations_digest(data)) != (partner, number, digest):
        raise RemoteProtocolError(
            "revocations-mismatch",
            "The revocation list is not the one that the offer names.",
            expected=(partner.hex(), number),
            found=(found.partner_key.hex(), found.number),
        )
