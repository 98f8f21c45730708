"""A partner's revocation list: its signature, its number, and what a device makes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client_sdk.enrolment import new_partner_key
from client_sdk.rounds import revocations
from client_sdk.rounds.revocations import revoked_by
from secagg.errors import ConfigurationError, RemoteProtocolError
from secagg.http_api import ModelVersion, Offer, Revocations
from secagg.limits import REVOKED_MAX
from secagg.revocation import (
    RevocationList,
    revocations_digest,
    sign_revocations,
    verify_revocations,
)
from tests.kits.device import PARTNER, journal_in

DEVICES = (b"a" * 32, b"b" * 32)


def test_a_list_says_who_signed_it_and_whom_it_names() -> None:
    found = verify_revocations(sign_revocations(PARTNER.seed, 3, 1_700_000_000, reversed(DEVICES)))
    assert found.partner_key == PARTNER.key
    assert (found.number, found.issued_at, found.devices) == (3, 1_700_000_000, DEVICES)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 4},
        {"issued_at": 1},
        {"devices": DEVICES[:1]},
        {"devices": ()},
        {"partner_key": new_partner_key().key},
        {"signature": bytes(64)},
        {"signature": b""},
    ],
)
def test_a_changed_list_is_refused(change: dict[str, Any]) -> None:
    signed = sign_revocations(PARTNER.seed, 3, 2, DEVICES)
    found = msgspec.msgpack.decode(signed[1:], type=RevocationList)
    forged = signed[:1] + msgspec.msgpack.encode(msgspec.structs.replace(found, **change))
    refused(forged, "revocations-signature")


@pytest.mark.parametrize(
    "change",
    [
        {"number": 0},
        {"number": 1 << 60},
        {"number": -1},
        {"issued_at": -1},
        {"devices": (b"a",)},
        {"devices": tuple(reversed(DEVICES))},
        {"devices": DEVICES[:1] * 2},
        {"devices": tuple(n.to_bytes(32, "big") for n in range(REVOKED_MAX + 1))},
    ],
)
def test_a_list_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    signed = sign_revocations(PARTNER.seed, 3, 2, DEVICES)
    found = msgspec.msgpack.decode(signed[1:], type=RevocationList)
    refused(
        signed[:1] + msgspec.msgpack.encode(msgspec.structs.replace(found, **change)),
        "revocations-malformed",
    )


@pytest.mark.parametrize("cut", [0, 1, 2, 40])
def test_bytes_that_are_no_list_are_refused(cut: int) -> None:
    refused(sign_revocations(PARTNER.seed, 3, 2, DEVICES)[:cut], "revocations-malformed")
    refused(b"\x02" + sign_revocations(PARTNER.seed, 3, 2, DEVICES)[1:], "revocations-malformed")


def test_a_list_without_a_number_is_not_signed() -> None:
    with pytest.raises(ConfigurationError, match="revocation-list"):
        sign_revocations(PARTNER.seed, 0, 2, DEVICES)


def refused(data: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        verify_revocations(data)
    assert caught.value.reason == reason


# -- a device ----------------------------------------------------------------------------------


class Offered:
    """A device's parts that :func:`client_sdk.rounds.revocations.refresh` uses; a server with one
    list."""

    def __init__(self, folder: Path) -> None:
        self.journal = journal_in(folder)
        self.partner_keys = frozenset((PARTNER.key,))
        self.transport = self
        self.served: dict[bytes, bytes] = {}
        self.fetched = 0

    async def revocations(self, digest: bytes) -> bytes:
        self.fetched += 1
        return self.served[digest]

    def refresh(self, *lists: bytes, **changes: Any) -> None:
        references = []
        for data in lists:
            found = verify_revocations(data)
            reference = Revocations(
                partner=found.partner_key,
                number=found.number,
                digest=revocations_digest(data),
                size_bytes=len(data),
            )
            reference = msgspec.structs.replace(reference, **changes)
            self.served.setdefault(reference.digest, data)
            references.append(reference)
        model = ModelVersion(version=0, digest=bytes(32), size_bytes=1, opened_at=0.0)
        offer = Offer(
            manifest=b"",
            manifest_signature=b"",
            state="open",
            releases=0,
            model=model,
            now=0.0,
            revocations=tuple(references),
        )
        manifest: Any = type("Listing", (), {"partner_keys": (PARTNER.key,), "task": "stats"})
        asyncio.run(revocations.refresh(self, manifest, offer))  # type: ignore[arg-type]

    @property
    def known(self) -> frozenset[tuple[bytes, bytes]]:
        return revoked_by(self.journal, (PARTNER.key,))


def test_a_list_is_fetched_once_and_remembered(tmp_path: Path) -> None:
    device = Offered(tmp_path)
    assert device.known == frozenset()
    first = sign_revocations(PARTNER.seed, 1, 2, DEVICES[:1])
    device.refresh(first)
    device.refresh(first)
    assert device.fetched == 1
    assert device.known == {(PARTNER.key, DEVICES[0])}
    device.refresh(sign_revocations(PARTNER.seed, 2, 3, DEVICES))
    assert device.known == {(PARTNER.key, key) for key in DEVICES}


@pytest.mark.parametrize("offered", ["older", "none"])
def test_a_list_is_never_rolled_back(tmp_path: Path, offered: str) -> None:
    device = Offered(tmp_path)
    old = sign_revocations(PARTNER.seed, 1, 2, ())
    device.refresh(sign_revocations(PARTNER.seed, 2, 3, DEVICES))
    with pytest.raises(RemoteProtocolError) as caught:
        device.refresh(*([old] if offered == "older" else []))
    assert caught.value.reason == "revocations-rolled-back"
    assert device.known == {(PARTNER.key, key) for key in DEVICES}


def test_a_list_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    device = Offered(tmp_path)
    other = sign_revocations(new_partner_key().seed, 1, 2, DEVICES)
    device.refresh(other)  # of a partner that this device does not trust: not looked at
    assert device.fetched == 0
    with pytest.raises(RemoteProtocolError) as caught:
        device.refresh(other, partner=PARTNER.key)
    assert caught.value.reason == "revocations-mismatch"
    mine = sign_revocations(PARTNER.seed, 1, 2, DEVICES)
    with pytest.raises(RemoteProtocolError) as caught:
        device.refresh(mine, number=7)
    assert caught.value.reason == "revocations-mismatch"
    assert device.known == frozenset()


def test_a_list_too_large_is_not_fetched(tmp_path: Path) -> None:
    device = Offered(tmp_path)
    with pytest.raises(Exception, match="revocations-size"):
        device.refresh(sign_revocations(PARTNER.seed, 1, 2, DEVICES), size_bytes=1 << 40)
    assert device.fetched == 0
