"""Masks: AES-256-CTR key streams read as lanes and added in the ring.

Each seed is stretched once, by HKDF with a salt bound to (ctx, S), into a one-use AES-256 key; the
counter runs from zero through the whole payload (a counter per segment would let the known check
coordinates reveal values). Zero IVs are right here only because no key is ever used twice. The
stream is seekable: coordinates lo..hi need only that part of it.

The vector is walked in chunks that stay in cache; all seeds (1,024 at most) are applied to a chunk
before the next one, so the memory beside the vector is two chunks and that many ciphers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from secagg.errors import LocalProtocolError
from secagg.hashing import derive
from secagg.limits import SEED_BYTES
from secagg.ring import Lanes, lane_dtype, ring_mask
from secagg.secret import Secret

_CHUNK_BYTES = 1 << 17
_BLOCK_BYTES = 16  # of AES
_TERMS_AT_ONCE = 1024  # ciphers under way take about 1 KiB each, whatever the cohort's size


@dataclass(frozen=True)
class MaskTerm:
    """A one-use mask key and the sign with which its stream enters the sum."""

    key: Secret
    sign: Literal[1, -1]

    def negated(self) -> MaskTerm:
        return MaskTerm(self.key, -1 if self.sign == 1 else 1)


def mask_key(seed: Secret, salt: bytes) -> Secret:
    """The one-use AES-256 key of a 32-byte seed in the cohort and masking set of ``salt``."""
    if len(seed) != SEED_BYTES:
        raise LocalProtocolError(
            "seed-size", "A seed has 256 bits.", expected=SEED_BYTES, found=len(seed)
        )
    return Secret(derive(seed.reveal(), "mask", salt=salt))


def apply_masks(vector: Lanes, terms: Sequence[MaskTerm], ring_bits: int, lo: int = 0) -> None:
    """Add all masks to ``vector``, in place.

    Args:
        vector: lanes of the payload's coordinates lo, lo + 1, ...; contiguous.
        terms: the masks; each stream starts at coordinate 0 of the payload.

    Raises:
        LocalProtocolError: ``vector-type``, or ``mask-offset`` if ``lo`` is negative.
    """
    if lo < 0:
        raise LocalProtocolError("mask-offset", "A payload starts at coordinate 0.", found=lo)
    dtype = lane_dtype(ring_bits)
    if vector.dtype != dtype or not vector.flags.c_contiguous:
        raise LocalProtocolError(
            "vector-type",
            "Masks need contiguous lanes of this ring.",
            expected=dtype.str,
            found=vector.dtype.str,
        )
    skip = lo * dtype.itemsize % _BLOCK_BYTES
    first_block = lo * dtype.itemsize // _BLOCK_BYTES
    zeros = bytes(_CHUNK_BYTES)
    stream = bytearray(_CHUNK_BYTES + _BLOCK_BYTES - 1)
    per_chunk = _CHUNK_BYTES // dtype.itemsize
    for first in range(0, max(1, len(terms)), _TERMS_AT_ONCE):
        signed_streams = [
            (_key_stream(term.key, first_block, skip), np.add if term.sign == 1 else np.subtract)
            for term in terms[first : first + _TERMS_AT_ONCE]
        ]
        for start in range(0, len(vector), per_chunk):
            chunk = vector[start : start + per_chunk]
            lanes = np.frombuffer(stream, dtype, count=len(chunk))
            plain = memoryview(zeros)[: chunk.nbytes]
            for encryptor, combine in signed_streams:
                encryptor.update_into(plain, stream)
                combine(chunk, lanes, out=chunk)
            # Reducing once is enough: 2^b divides the lane's own modulus.
            if ring_bits != dtype.itemsize * 8:
                np.bitwise_and(chunk, ring_mask(ring_bits), out=chunk)


def _key_stream(key: Secret, first_block: int, skip: int) -> CipherContext:
    """The key stream from byte ``skip`` of block ``first_block`` on."""
    counter = first_block.to_bytes(_BLOCK_BYTES, "big")
    encryptor = Cipher(algorithms.AES256(key.reveal()), modes.CTR(counter)).encryptor()
    if skip:
        encryptor.update(bytes(skip))
    return encryptor
