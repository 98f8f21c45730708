"""Sealing of seeds and shares to the hybrid key of one device.

The hybrid pair is ML-KEM-768 with X25519 in HPKE base mode (RFC 9180; suite MLKEM768_X25519,
HKDF-SHA256, AES-256-GCM), so that traffic recorded today stays sealed when elliptic curves fall.
A pair is derived from one 32-byte secret: whoever reconstructs the secret from shares has the key.
Base mode authenticates no sender; the signature over each deal does.
"""

from __future__ import annotations

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
from secagg.hashing import derive
from secagg.limits import KEM_PUBLIC_KEY_BYTES, SEED_BYTES
from secagg.secret import Secret

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_MLKEM_PUBLIC_BYTES = 1_184

KemPrivateKey = MLKEM768X25519PrivateKey


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
