"""Certificates that end early: a partner's signed list of devices that it no longer vouches for.

A list is whole: a newer one, with a higher number, replaces it. Aggregator and devices verify the
partner's signature and never go back to a lower number. An aggregator that withholds a list from
a device that has not seen it is not found out by that device (``threat_model.md``).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import msgspec

from secagg.errors import ConfigurationError, RemoteProtocolError
from secagg.hashing import digest, encode_parts
from secagg.keys import signing_key, verify_signature
from secagg.limits import IDENTITY_KEY_BYTES, REVOCATION_BYTES_MAX, REVOKED_MAX
from secagg.messages import Message
from secagg.ranges import Seconds, Size
from secagg.secret import Secret

REVOCATION_VERSION = 1


class RevocationList(Message, frozen=True):
    """``number`` rises from 1. ``issued_at``: Unix seconds. ``devices``: identity keys, sorted.

    ``signature``: Ed25519 by ``partner_key`` over all the rest.
    """

    partner_key: bytes
    number: Size
    issued_at: Seconds
    devices: tuple[bytes, ...]
    signature: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RevocationList, strict=True)


def _signed(partner_key: bytes, number: int, issued_at: int, devices: tuple[bytes, ...]) -> bytes:
    return encode_parts(
        "revocations",
        partner_key,
        number.to_bytes(8, "little"),
        issued_at.to_bytes(8, "little"),
        digest("revoked devices", *devices),
    )


def sign_revocations(
    partner_seed: Secret, number: int, issued_at: int, devices: Iterable[bytes]
) -> bytes:
    """A partner's list as sent. ``partner_seed``: Ed25519 seed, 32 bytes.

    Raises:
        ConfigurationError: ``revocation-list``.
    """
    key = signing_key(partner_seed)
    public, listed = bytes(key.verify_key), tuple(sorted(set(devices)))
    if not _plausible(number, issued_at, listed):
        raise ConfigurationError(
            "revocation-list",
            "A revocation list has a number, a time and keys of 32 bytes.",
            expected=f"at most {REVOKED_MAX} devices",
            found=(number, issued_at, len(listed)),
        )
    signature = key.sign(_signed(public, number, issued_at, listed)).signature
    body = RevocationList(public, number, issued_at, listed, bytes(signature))
    return bytes((REVOCATION_VERSION,)) + _encoder.encode(body)


def verify_revocations(data: bytes) -> RevocationList:
    """Parse a list and verify its signature; whether its partner counts is for the caller.

    Raises:
        RemoteProtocolError: ``revocations-malformed`` or ``revocations-signature``.
    """
    if len(data) > REVOCATION_BYTES_MAX or data[:1] != bytes((REVOCATION_VERSION,)):
        raise _malformed("It is too large or of another version.")
    try:
        found = _decoder.decode(data[1:])
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise _malformed(f"It does not parse: {type(error).__name__}.") from error
    if not _plausible(found.number, found.issued_at, found.devices):
        raise _malformed("Its number, time or devices are impossible.")
    signed = _signed(found.partner_key, found.number, found.issued_at, found.devices)
    if not verify_signature(found.partner_key, signed, found.signature):
        raise RemoteProtocolError(
            "revocations-signature",
            "A revocation list is not signed by its partner.",
            found=found.partner_key.hex(),
        )
    return found


def revocations_digest(data: bytes) -> bytes:
    """Digest of a list as sent; 32 bytes."""
    return digest("revocation list", data)


def _plausible(number: int, issued_at: int, devices: tuple[bytes, ...]) -> bool:
    return (
        1 <= number < 1 << 53
        and 0 <= issued_at < 1 << 53
        and len(devices) <= REVOKED_MAX
        and all(len(device) == IDENTITY_KEY_BYTES for device in devices)
        and all(later > earlier for earlier, later in pairwise(devices))
    )


def _malformed(why: str) -> RemoteProtocolError:
    return RemoteProtocolError("revocations-malformed", f"This is not a revocation list. {why}")
