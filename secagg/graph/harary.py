"""Who shares masks with whom, and which end of an edge seals the pair seed.

Everybody computes the graph alone, from public values. Up to ``limits.COMPLETE_GRAPH_MAX`` devices
it is complete. Beyond that it is the Harary graph of even degree k on a random circle (Bell et al.,
CCS 2020, section 3): every device stands on a circle in an order drawn from the roster digest, and
its neighbours are the k/2 devices before it and the k/2 behind it.

The order, exactly. ``key = HKDF-SHA256(roster digest, info = parts("graph order", n))`` where
``parts`` is :func:`secagg.hashing.encode_parts` and n stands as 8 bytes, little-endian. The key
stream of AES-256 in counter mode under ``key``, the counter block starting at zero, is read as
32-bit words, little-endian. ``order`` starts as 0, 1, .. n - 1; for place = n - 1 down to 1 take
the next word below ``floor(2^32 / (place + 1)) * (place + 1)``, skipping all others, and swap
``order[place]`` with ``order[word mod (place + 1)]`` (Fisher-Yates; the skipping makes it
unbiased). ``order[p]`` is the roster index that stands at position p of the circle.

Whoever picks the roster can try many of them, so a degree must leave slack for that. Nothing
chooses one yet: the machines form complete graphs only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg.errors import ConfigurationError, LocalProtocolError
from secagg.hashing import derive
from secagg.limits import COMPLETE_GRAPH_MAX, DIGEST_BYTES

_WORD = 1 << 32


@dataclass(frozen=True)
class Graph:
    """The graph of one cohort.

    Attributes:
        cohort_size: devices in the roster.
        degree: neighbours of each device, even; 0: complete at any size.
        order_seed: the roster digest, 32 bytes; a complete graph does not read it.

    Raises:
        ConfigurationError: ``graph-degree`` if the degree is negative or odd.
    """

    cohort_size: int
    degree: int = 0
    order_seed: bytes = b""

    def __post_init__(self) -> None:
        if self.degree < 0 or self.degree % 2:
            raise ConfigurationError(
                "graph-degree",
                "A device has as many neighbours before it as behind it.",
                expected="an even degree, or 0 for the complete graph",
                found=self.degree,
            )

    @property
    def is_complete(self) -> bool:
        return is_complete(self.cohort_size, self.degree)

    @property
    def neighbour_count(self) -> int:
        """Neighbours of every device."""
        return neighbour_count(self.cohort_size, self.degree)

    def neighbours(self, index: int) -> tuple[int, ...]:
        """Sorted roster indices of a device's neighbours.

        Raises:
            LocalProtocolError: ``roster-index``.
        """
        self._check_index(index)
        if self.is_complete:
            return tuple(other for other in range(self.cohort_size) if other != index)
        order, positions = _circle(self.order_seed, self.cohort_size)
        here, half = positions[index], self.degree // 2
        steps = (*range(-half, 0), *range(1, half + 1))
        return tuple(sorted(order[(here + step) % self.cohort_size] for step in steps))

    def adjacent(self, first: int, second: int) -> bool:
        """Whether two devices are neighbours; nobody is its own."""
        self._check_index(first)
        self._check_index(second)
        if first == second or self.is_complete:
            return first != second
        gap = self._gap(first, second)
        return min(gap, self.cohort_size - gap) <= self.degree // 2

    def sealer(self, first: int, second: int) -> int:
        """The end of an edge that draws and seals the pair seed.

        On a circle it is the end that has the other one before it within k/2 places, so that
        every device seals exactly half of its edges. In the complete graph see :func:`sealer`.

        Raises:
            LocalProtocolError: ``roster-index``, or ``graph-edge`` if the two are not neighbours.
        """
        if not self.adjacent(first, second):
            raise LocalProtocolError(
                "graph-edge", "The two devices are not neighbours.", found=(first, second)
            )
        if self.is_complete:
            return sealer(first, second)
        return first if self._gap(first, second) <= self.degree // 2 else second

    def _gap(self, first: int, second: int) -> int:
        """Places from the first to the second, going up the circle."""
        _, positions = _circle(self.order_seed, self.cohort_size)
        return (positions[second] - positions[first]) % self.cohort_size

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.cohort_size:
            raise LocalProtocolError(
                "roster-index",
                "No such place in the roster.",
                expected=f"below {self.cohort_size}",
                found=index,
            )


def is_complete(cohort_size: int, degree: int) -> bool:
    """Whether a cohort of this size has the complete graph under a manifest of this degree."""
    return degree == 0 or cohort_size <= max(COMPLETE_GRAPH_MAX, degree + 1)


def neighbour_count(cohort_size: int, degree: int) -> int:
    """Neighbours of every device of a cohort of this size."""
    return cohort_size - 1 if is_complete(cohort_size, degree) else degree


def neighbours(
    index: int, cohort_size: int, degree: int = 0, order_seed: bytes = b""
) -> tuple[int, ...]:
    """Sorted roster indices of a device's neighbours; see :class:`Graph`."""
    return Graph(cohort_size, degree, order_seed).neighbours(index)


def sealer(first: int, second: int) -> int:
    """The end of an edge of the *complete* graph that seals the pair seed; public and balanced.

    The lower index seals when the sum of both is odd, the higher when it is even.
    """
    if first == second:
        raise LocalProtocolError("roster-index", "A device has no edge to itself.", found=first)
    return min(first, second) if (first + second) % 2 else max(first, second)


@lru_cache(maxsize=8)
def _circle(order_seed: bytes, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(roster index at each position, position of each roster index)."""
    if len(order_seed) != DIGEST_BYTES:
        raise LocalProtocolError(
            "graph-seed",
            "A sparse graph is drawn from the roster digest.",
            expected=f"{DIGEST_BYTES} bytes",
            found=len(order_seed),
        )
    order = list(range(size))
    words = _words(order_seed, size)
    for place in range(size - 1, 0, -1):
        bound = place + 1
        limit = _WORD - _WORD % bound
        word = next(words)
        while word >= limit:
            word = next(words)
        other = word % bound
        order[place], order[other] = order[other], order[place]
    positions = [0] * size
    for position, index in enumerate(order):
        positions[index] = position
    return tuple(order), tuple(positions)


def _words(order_seed: bytes, size: int) -> Iterator[int]:
    key = derive(order_seed, "graph order", size.to_bytes(8, "little"))
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    while True:
        yield from np.frombuffer(stream.update(bytes(4 * size)), "<u4").tolist()
