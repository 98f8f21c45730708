"""Hashing and key derivation: labels first, every part length-prefixed."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_DOMAIN = b"secagg/1 "


def encode_parts(label: str, *parts: bytes) -> bytes:
    """The label and each part behind its length as 8 bytes, little-endian."""
    encoded = bytearray()
    for part in (_DOMAIN + label.encode("ascii"), *parts):
        encoded += len(part).to_bytes(8, "little")
        encoded += part
    return bytes(encoded)


def digest(label: str, *parts: bytes) -> bytes:
    """SHA-256 over :func:`encode_parts`; 32 bytes."""
    return hashlib.sha256(encode_parts(label, *parts)).digest()


def derive(secret: bytes, label: str, *parts: bytes, salt: bytes = b"", length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869) with ``info`` = :func:`encode_parts`; ``length`` bytes."""
    return HKDF(
        algorithm=SHA256(), length=length, salt=salt or None, info=encode_parts(label, *parts)
    ).derive(secret)
