"""Public seeded directions for zeroth-order training: the same bits on every platform.

Entries are ±1 (Spall, IEEE TAC 1992), not normal: signs come straight from bits of SHAKE-256, so
that no float library's logarithm or cosine decides what a device and the server add. A late joiner
makes any of them on the spot.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from secagg.hashing import encode_parts


def direction(seed: bytes, version: int, number: int, length: int) -> NDArray[np.float32]:
    """Direction ``number`` on top of model ``version``; float32[length] of ±1.

    Bit i of the stream (little-endian in its bytes) is the sign of entry i: 1 is plus.
    """
    stream = hashlib.shake_256(encode_parts("zeroth-order", seed, b"%d" % version, b"%d" % number))
    raw = np.frombuffer(stream.digest(-(-length // 8)), dtype=np.uint8)
    bits = np.unpackbits(raw, count=length, bitorder="little")
    return 2 * bits.astype(np.float32) - 1
