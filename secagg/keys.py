"""Identity keys (Ed25519), their signatures, and the certificates that partners issue for them."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

import nacl.exceptions
import nacl.signing

from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.hashing import encode_parts
from secagg.limits import CLOCK_SKEW_S, COHORT_MAX, IDENTITY_KEY_BYTES, SEED_BYTES
from secagg.messages import Certificate
from secagg.secret import Secret


def identity_public_key(seed: Secret) -> bytes:
    """The Ed25519 public key (32 bytes) of an identity, partner or task seed (32 bytes)."""
    return bytes(signing_key(seed).verify_key)


def signing_key(seed: Secret) -> nacl.signing.SigningKey:
    """The Ed25519 signing key (RFC 8032) of a 32-byte seed."""
    if len(seed) != SEED_BYTES:
        raise LocalProtocolError(
            "seed-size", "A signing key has a seed of 32 bytes.", expected=32, found=len(seed)
        )
    return nacl.signing.SigningKey(seed.reveal())


def verify_signature(public_key: bytes, signed: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature verifies; malformed keys and signatures do not."""
    try:
        nacl.signing.VerifyKey(public_key).verify(signed, signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError, RuntimeError):
        return False
    return True


def _certificate_input(identity_key: bytes, partner_key: bytes, not_after: int) -> bytes:
    return encode_parts("certificate", identity_key, partner_key, not_after.to_bytes(8, "little"))


def issue_certificate(partner_key: Secret, identity_key: bytes, not_after: int) -> Certificate:
    """A partner certifies a device's identity key until ``not_after`` (Unix seconds)."""
    if len(identity_key) != IDENTITY_KEY_BYTES:
        raise LocalProtocolError(
            "identity-key-size",
            "An identity key has 32 bytes.",
            expected=IDENTITY_KEY_BYTES,
            found=len(identity_key),
        )
    key = signing_key(partner_key)
    public = bytes(key.verify_key)
    signature = key.sign(_certificate_input(identity_key, public, not_after)).signature
    return Certificate(identity_key, public, not_after, signature)


def verify_certificate(
    certificate: Certificate, partner_keys: Collection[bytes], now_s: float
) -> None:
    """Check that an accepted partner certified this identity key and that the certificate did not
    expire more than ``CLOCK_SKEW_S`` before ``now_s`` (Unix seconds).

    Raises:
        RemoteProtocolError: ``partner-unknown``, ``certificate-expired`` or
            ``certificate-invalid``.
    """
    culprit = certificate.identity_key
    if certificate.partner_key not in partner_keys:
        raise RemoteProtocolError(
            "partner-unknown",
            "The device was certified by a partner that this task does not list.",
            culprit=culprit,
            expected=sorted(key.hex() for key in partner_keys),
            found=certificate.partner_key.hex(),
        )
    if not 0 <= certificate.not_after < 1 << 63 or certificate.not_after + CLOCK_SKEW_S < now_s:
        raise RemoteProtocolError(
            "certificate-expired",
            "The device's certificate has expired.",
            culprit=culprit,
            expected=f"valid at {int(now_s)}",
            found=certificate.not_after,
            remedy="Check the clocks; if they are right, the partner must enrol the device again.",
        )
    _verify_certificate_signature(certificate)


@lru_cache(maxsize=COHORT_MAX)
def _verify_certificate_signature(certificate: Certificate) -> None:
    """The part of a certificate that no time changes. A process with many devices of a cohort
    verifies each certificate once; a failure is not remembered."""
    signed = _certificate_input(
        certificate.identity_key, certificate.partner_key, certificate.not_after
    )
    if len(certificate.identity_key) != IDENTITY_KEY_BYTES or not verify_signature(
        certificate.partner_key, signed, certificate.signature
    ):
        raise RemoteProtocolError(
            "certificate-invalid",
            "The device's certificate does not verify.",
            culprit=certificate.identity_key,
        )
