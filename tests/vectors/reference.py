"""A second implementation of what protocol 1 computes, from ``docs/protocol.md`` alone.

It imports nothing of this project: hashes from ``hashlib``, AES, HKDF, ML-KEM, X25519 and Ed25519
from ``cryptography`` (the project signs with PyNaCl), vectors and shares as plain Python integers,
HPKE spelled out from RFC 9180. It is slow and checks nothing that it is not asked to check.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PRIME = 2**256 + 297
SUITE = b"MLKEM768X25519-HKDFSHA256-AES256GCM/Ed25519/AES256CTR"


# -- bytes -----------------------------------------------------------------------------------------


def parts(name: str, *values: bytes) -> bytes:
    items = [b"secagg/1 " + name.encode("ascii"), *values]
    return b"".join(len(item).to_bytes(8, "little") + item for item in items)


def integers(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


def labelled(name: str, *values: bytes) -> bytes:
    return hashlib.sha256(parts(name, *values)).digest()


def hkdf(secret: bytes, info: bytes, salt: bytes = b"", length: int = 32) -> bytes:
    key = hmac.digest(salt or bytes(32), secret, "sha256")
    return _expand(key, info, length)


def _expand(key: bytes, info: bytes, length: int) -> bytes:
    output, block, number = b"", b"", 1
    while len(output) < length:
        block = hmac.digest(key, block + info + bytes((number,)), "sha256")
        output, number = output + block, number + 1
    return output[:length]


def kdf(secret: bytes, name: str, *values: bytes, salt: bytes = b"", length: int = 32) -> bytes:
    return hkdf(secret, parts(name, *values), salt, length)


def verifies(public: bytes, signed: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


# -- vectors ---------------------------------------------------------------------------------------


def payload(data: Sequence[int], bits: int, slice_length: int) -> list[int]:
    out = []
    for at, value in enumerate(data):
        if at % slice_length == 0:
            out.append(1)
        out.append(value % 2**bits)
    return out


def packed(values: Sequence[int], bits: int) -> bytes:
    stream = sum(value << at * bits for at, value in enumerate(values))
    return stream.to_bytes(-(-len(values) * bits // 8), "little")


def unpacked(data: bytes, length: int, bits: int) -> list[int]:
    stream = int.from_bytes(data, "little")
    return [stream >> at * bits & (2**bits - 1) for at in range(length)]


def mask(seed: bytes, salt: bytes, length: int, bits: int) -> list[int]:
    """The first ``length`` coordinates of a seed's key stream."""
    width = 2 if bits <= 16 else 4 if bits <= 32 else 8
    cipher = Cipher(algorithms.AES256(kdf(seed, "mask", salt=salt)), modes.CTR(bytes(16)))
    stream = cipher.encryptor().update(bytes(length * width))
    return [
        int.from_bytes(stream[at * width : (at + 1) * width], "little") % 2**bits
        for at in range(length)
    ]


def centred(values: Sequence[int], bits: int) -> list[int]:
    return [value - 2**bits if value >= 2 ** (bits - 1) else value for value in values]


# -- shares ----------------------------------------------------------------------------------------


def joined(shares: Mapping[int, bytes]) -> int:
    """Lagrange at zero; the point of roster index i is i + 1."""
    total = 0
    for holder, share in shares.items():
        numerator = denominator = 1
        for other in shares:
            if other != holder:
                numerator = numerator * (other + 1) % PRIME
                denominator = denominator * (other - holder) % PRIME
        weight = numerator * pow(denominator, -1, PRIME)
        total += int.from_bytes(share, "little") * weight
    return total % PRIME


def shared(secret: bytes, coefficients: Sequence[int], holder: int) -> bytes:
    """The share of one holder: the polynomial at holder + 1."""
    terms = [int.from_bytes(secret, "little"), *coefficients]
    value = sum(term * pow(holder + 1, power, PRIME) for power, term in enumerate(terms))
    return (value % PRIME).to_bytes(33, "little")


# -- hybrid keys and seals -------------------------------------------------------------------------


def hybrid_parts(secret: bytes, label: str) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    seed = kdf(secret, label, length=96)
    return (
        MLKEM768PrivateKey.from_seed_bytes(seed[:64]),
        X25519PrivateKey.from_private_bytes(seed[64:]),
    )


def hybrid_public(secret: bytes, label: str) -> bytes:
    mlkem, x25519 = hybrid_parts(secret, label)
    return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def opened(secret: bytes, label: str, info: bytes, seal: bytes) -> bytes:
    """HPKE base mode (RFC 9180, sections 4 and 5.1) over X-Wing, empty associated data."""
    mlkem, x25519 = hybrid_parts(secret, label)
    cipher_mlkem, cipher_x25519, sealed = seal[:1088], seal[1088:1120], seal[1120:]
    shared_secret = hashlib.sha3_256(
        mlkem.decapsulate(cipher_mlkem)
        + x25519.exchange(X25519PublicKey.from_public_bytes(cipher_x25519))
        + cipher_x25519
        + x25519.public_key().public_bytes_raw()
        + rb"\.//^\ "[:6]
    ).digest()
    suite = b"HPKE" + bytes.fromhex("647a00010002")

    def extract(salt: bytes, label: bytes, material: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")

    def expand(key: bytes, label: bytes, context: bytes, length: int) -> bytes:
        info = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return _expand(key, info, length)

    context = b"\x00" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret_key = extract(shared_secret, b"secret", b"")
    key = expand(secret_key, b"key", context, 32)
    nonce = expand(secret_key, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, sealed, b"")


# -- what a cohort agrees on -----------------------------------------------------------------------


def roster_digest(entries: Sequence[Sequence[Any]]) -> bytes:
    parts = [(identity, advert, integers(model)) for identity, advert, model, *_ in entries]
    return labelled("roster", *(part for entry in parts for part in entry))


def context(
    task: str,
    cohort: bytes,
    attempt: int,
    manifest_digest: bytes,
    models: Sequence[Sequence[Any]],
    entries: Sequence[Sequence[Any]],
) -> bytes:
    return labelled(
        "context",
        integers(1),
        SUITE,
        task.encode(),
        cohort,
        integers(attempt),
        manifest_digest,
        labelled("models", *(part for v, digest in models for part in (integers(v), digest))),
        roster_digest(entries),
    )


def certified(
    entries: Sequence[Sequence[Any]], partners: Sequence[bytes], trusted: set[bytes]
) -> bool:
    """Every entry has the certificate of a trusted partner."""
    return all(
        partners[partner] in trusted
        and verifies(
            partners[partner],
            parts("certificate", identity, partners[partner], integers(not_after)),
            signature,
        )
        for identity, _, _, partner, not_after, signature in entries
    )


def pseudonym(identity_seed: bytes, ctx: bytes) -> bytes:
    return hmac.digest(kdf(identity_seed, "pseudonym"), ctx, "sha256")


def sealer(first: int, second: int) -> int:
    return min(first, second) if (first + second) % 2 else max(first, second)


def circle(seed: bytes, size: int) -> list[int]:
    """Roster indices in the order in which they stand on the circle: Fisher-Yates over unbiased
    32-bit words of an AES-256-CTR key stream."""
    cipher = Cipher(
        algorithms.AES256(kdf(seed, "graph order", integers(size))), modes.CTR(bytes(16))
    )
    stream = cipher.encryptor()
    order = list(range(size))
    for place in range(size - 1, 0, -1):
        while True:
            word = int.from_bytes(stream.update(bytes(4)), "little")
            if word < 2**32 // (place + 1) * (place + 1):
                break
        other = word % (place + 1)
        order[place], order[other] = order[other], order[place]
    return order


def on_circle(order: Sequence[int], degree: int, index: int) -> tuple[list[int], list[int]]:
    """(neighbours, those behind it, whose pair seeds it seals)."""
    here, size, half = order.index(index), len(order), degree // 2
    behind = [order[(here + step) % size] for step in range(1, half + 1)]
    before = [order[(here - step) % size] for step in range(1, half + 1)]
    return sorted(behind + before), sorted(behind)


# -- the ledger ------------------------------------------------------------------------------------


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    halves = merkle_root(leaves[:split]) + merkle_root(leaves[split:])
    return hashlib.sha256(b"\x01" + halves).digest()


def merkle_path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 6962, section 2.1.1."""
    if len(leaves) <= 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*merkle_path(index, leaves[:split]), merkle_root(leaves[split:])]
    return [*merkle_path(index - split, leaves[split:]), merkle_root(leaves[:split])]


def merkle_proof(old: int, leaves: Sequence[bytes], complete: bool = True) -> list[bytes]:
    """RFC 6962, section 2.1.2."""
    if old == len(leaves):
        return [] if complete else [merkle_root(leaves)]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if old <= split:
        return [*merkle_proof(old, leaves[:split], complete), merkle_root(leaves[split:])]
    return [*merkle_proof(old - split, leaves[split:], False), merkle_root(leaves[:split])]


def note_key_id(name: str, public: bytes) -> bytes:
    """C2SP signed-note: the first four bytes of SHA-256 of name, newline, 0x01, key."""
    return hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4]
