"""Block-wise randomised Hadamard rotation: public random signs, then Walsh-Hadamard, orthonormal.

It spreads a vector's energy over its coordinates, so that rounding is alike everywhere. Privacy
never depends on it and the seed is public. A length is cut into powers of two (its binary digits,
largest first), so nothing is padded: 92,160 = 65,536 + 16,384 + 8,192 + 2,048.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dp.noise.stream import BitStream
from secagg.hashing import digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FACTOR_LOG2 = 7  # Hadamard factors of at most 128: matrix products that BLAS does fast


def blocks(length: int) -> list[int]:
    """Powers of two, falling, with sum ``length``."""
    return [1 << k for k in range(length.bit_length() - 1, -1, -1) if length >> k & 1]


@lru_cache(maxsize=_FACTOR_LOG2 + 1)
def _hadamard(log2: int) -> NDArray[np.float64]:
    signs = np.ones((1, 1))
    for _ in range(log2):
        signs = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), signs)
    return np.asarray(signs * 2.0 ** (-log2 / 2), dtype=np.float64)


def _walsh_hadamard(block: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal transform of 2^k numbers as a Kronecker product of small factors."""
    log2 = len(block).bit_length() - 1
    before = 1
    while log2 > 0:
        factor = min(log2, _FACTOR_LOG2)
        log2 -= factor
        matrix = _hadamard(factor)
        if before == 1:
            block = (matrix @ block.reshape(1 << factor, -1)).reshape(-1)
        elif log2 == 0:
            block = (block.reshape(before, 1 << factor) @ matrix).reshape(-1)
        else:
            block = (matrix @ block.reshape(before, 1 << factor, -1)).reshape(-1)
        before <<= factor
    return block


def _signs(length: int, seed: bytes, name: str) -> NDArray[np.float64]:
    key = digest("rotation", seed, name.encode())
    bits = BitStream(lambda _: key).bits(length).astype(np.float64)
    return np.subtract(1.0, 2.0 * bits)


def rotate(values: NDArray[np.float64], seed: bytes, name: str) -> NDArray[np.float64]:
    """The rotation of a segment; float64[d], a new array. ``seed``: public, per cohort."""
    signed = values * _signs(len(values), seed, name)
    return _per_block(signed)


def rotate_back(values: NDArray[np.float64], seed: bytes, name: str) -> NDArray[np.float64]:
    """The inverse of :func:`rotate`."""
    return _per_block(values) * _signs(len(values), seed, name)


def _per_block(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result = np.empty(len(values))
    at = 0
    for size in blocks(len(values)):
        result[at : at + size] = _walsh_hadamard(values[at : at + size])
        at += size
    return result
