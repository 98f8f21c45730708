"""A stream of uniform bits: AES-256-CTR under a fresh key from the caller's randomness."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg.errors import LocalProtocolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RandomBytes = Callable[[int], bytes]


class BitStream:
    """Uniform integers, expanded from 32 bytes of ``random_bytes``; one use, never copied.

    Computationally indistinguishable from uniform as far as AES-256 is a good cipher: the one
    assumption that stands between the sampler's statistical distance and the real one.

    ``place``: streams under one key at different places, 2^64 cipher blocks apart, never meet.
    """

    def __init__(self, random_bytes: RandomBytes, place: int = 0) -> None:
        key = random_bytes(32)
        if len(key) != 32:
            raise LocalProtocolError(
                "random-bytes",
                "`random_bytes(n)` must return n bytes.",
                expected=32,
                found=len(key),
            )
        self._cipher = Cipher(
            algorithms.AES256(key), modes.CTR((place << 64).to_bytes(16, "big"))
        ).encryptor()

    def take(self, size_bytes: int) -> bytearray:
        """The next ``size_bytes`` of the stream."""
        out = bytearray(size_bytes)
        self._cipher.update_into(out, out)
        return out

    def uint64(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self.take(8 * count), dtype="<u8")

    def uint32(self, count: int) -> NDArray[np.uint32]:
        return np.frombuffer(self.take(4 * count), dtype="<u4")

    def bits(self, count: int) -> NDArray[np.uint8]:
        """``count`` zeros and ones."""
        packed = np.frombuffer(self.take((count + 7) // 8), dtype=np.uint8)
        return np.unpackbits(packed, count=count)
