"""Identity keys (Ed25519), their certificates, and the hybrid keys that seeds are sealed to.

The hybrid pair is ML-KEM-768 with X25519 in HPKE base mode (RFC 9180; suite MLKEM768_X25519,
HKDF-SHA256, AES-256-GCM), so that traffic recorded today stays sealed when elliptic curves fall.
A pair is derived from one 32-byte secret: whoever reconstructs the secret from shares has the key.
Base mode authenticates no sender; the signature over each deal does.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

import nacl.exceptions
import nacl.signing
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.hashing import derive, encode_parts
from secagg.limits import (
    CLOCK_SKEW_S,
    COHORT_MAX,
    IDENTITY_KEY_BYTES,
    KEM_PUBLIC_KEY_BYTES,
    SEED_BYTES,
)
from secagg.messages import Certificate
from secagg.secret import Secret

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_MLKEM_PUBLIC_BYTES = 1_184

KemPrivateKey = MLKEM768X25519PrivateKey


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


def kem_private_key(secret: Secret, label: str) -> KemPrivateKey:
    """The hybrid private key derived by HKDF from a 32-byte secret.

    ``label`` separates uses (``mask-key``, ``channel-key``). ML-KEM-768 takes its 64-byte seed
    (FIPS 203, d and z), X25519 its 32-byte scalar (RFC 7748).
    """
    return MLKEM768X25519PrivateKey(*_kem_parts(secret, label))


def kem_public_key(secret: Secret, label: str) -> bytes:
    """The public half of :func:`kem_private_key`: ML-KEM (1,184 bytes) then X25519 (32)."""
    mlkem, x25519 = _kem_parts(secret, label)
    return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def _kem_parts(secret: Secret, label: str) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    if len(secret) != SEED_BYTES:
        raise LocalProtocolError(
            "seed-size", "A hybrid key has a secret of 32 bytes.", expected=32, found=len(secret)
        )
    seed = derive(secret.reveal(), label, length=96)
    return (
        MLKEM768PrivateKey.from_seed_bytes(seed[:64]),
        X25519PrivateKey.from_private_bytes(seed[64:]),
    )


def check_kem_public_key(public_key: bytes) -> None:
    """Raise RemoteProtocolError ``kem-key-malformed`` unless a seal to this key can be made."""
    hpke_seal(public_key, b"check", b"")


def hpke_seal(public_key: bytes, info: bytes, plaintext: bytes) -> bytes:
    """Seal to a hybrid public key; ``limits.SEAL_OVERHEAD_BYTES`` longer than the plaintext.

    Draws its own randomness inside the library: seals are injected into the machines.

    Raises:
        RemoteProtocolError: ``kem-key-malformed`` (wrong size, not canonical, low order).
    """
    if len(public_key) != KEM_PUBLIC_KEY_BYTES:
        raise RemoteProtocolError(
            "kem-key-malformed",
            "A hybrid public key has the wrong size.",
            expected=KEM_PUBLIC_KEY_BYTES,
            found=len(public_key),
        )
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC_BYTES]),
            X25519PublicKey.from_public_bytes(public_key[_MLKEM_PUBLIC_BYTES:]),
        )
        sealed: bytes = _SUITE.encrypt(plaintext, key, info)
    except (ValueError, TypeError) as error:
        raise RemoteProtocolError(
            "kem-key-malformed", "A hybrid public key is malformed."
        ) from error
    return sealed


def hpke_open(private_key: KemPrivateKey, info: bytes, sealed: bytes) -> bytes:
    """Open a seal.

    Raises:
        RemoteProtocolError: ``seal-invalid``: other key, other info, or changed bytes.
    """
    try:
        plaintext: bytes = _SUITE.decrypt(sealed, private_key, info)
    except (InvalidTag, ValueError, TypeError) as error:
        raise RemoteProtocolError("seal-invalid", "A sealed message does not open.") from error
    return plaintext
