"""Scheduled batches: a rule that sees the place of one example alone, and what it costs.

A device's examples lie in a list that only grows. Every block of ``period`` places holds one place
of each part, in an order that everyone can compute (no amplification is claimed for it). The
contribution of a device after ``count`` charges of its own sums part ``count % period`` and nothing
else, so an example is in at most :func:`participations` of the task's sums (docs/privacy.md,
"Scheduled batches").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dp.errors import AccountingError
from secagg.hashing import digest
from secagg.manifest import Manifest, encode_manifest, manifest_digest


def period_of(manifest: Manifest) -> int:
    """Parts that a task's devices divide their examples into; 1: it has no schedule."""
    return 1 if manifest.example_privacy is None else manifest.example_privacy.scheduled


def schedule_of(manifest: Manifest) -> str:
    """The name by which charges of one schedule are counted together: hex, of the whole manifest.

    Not the task's name: two services may give it to two tasks, and the parts of each begin anew.
    Its bytes are the seed of the parts, so charges that are counted together divided the list in
    one way.
    """
    return manifest_digest(encode_manifest(manifest)).hex()


def places_served(manifest: Manifest) -> int | None:
    """First places of a device's list that serve in turn; None: every place serves."""
    privacy = manifest.example_privacy
    if privacy is None or privacy.mode != "distributed" or period_of(manifest) == 1:
        return None
    return privacy.scheduled * privacy.examples_max


def participations(charges: int, period: int) -> int:
    """Sums of ``charges`` that one example can be in: charges / period, rounded up.

    Raises:
        AccountingError: ``parameter-out-of-range``.
    """
    _check_period(period)
    if charges < 0:
        raise AccountingError(
            "parameter-out-of-range",
            "A number of charges is not negative.",
            expected="at least 0",
            found=charges,
        )
    return -(-charges // period)


def most_sums(parts: Iterable[int], others: int, period: int) -> int:
    """Sums that one example can be in.

    Args:
        parts: of the charges whose part is known. Wherever they came from, an example is in those
            of its own part alone.
        others: charges to one device in a row whose parts are not known.

    Raises:
        AccountingError: ``parameter-out-of-range``.
    """
    return max(Counter(parts).values(), default=0) + participations(others, period)


def part_of(place: int, period: int, seed: bytes) -> int:
    """The part, from 0, of the example at ``place``.

    Args:
        place: from 0, in the device's whole list; a place stays when its example is taken out.
        seed: of 32 bytes, those of :func:`schedule_of` the task's manifest.

    Raises:
        AccountingError: ``parameter-out-of-range``.
    """
    _check_period(period)
    if place < 0:
        raise AccountingError(
            "parameter-out-of-range",
            "A place in a list is not negative.",
            expected="at least 0",
            found=place,
        )
    return _order(place // period, period, seed)[place % period]


def places_of(
    part: int, places: int, period: int, examples_max: int | None, seed: bytes
) -> NDArray[np.int64]:
    """The places of ``part`` in a list of ``places``, rising; at most ``examples_max`` of them.

    Only the first ``period * examples_max`` places serve, which are ``examples_max`` whole blocks.
    So no part is cut by what is in it, and which places serve depends on their number alone.

    Args:
        part: from 0 to ``period`` - 1.
        places: length of the device's whole list, with places whose example is taken out.
        examples_max: of a sum in the ring; None: every place serves.
        seed: as in :func:`part_of`.

    Raises:
        AccountingError: ``parameter-out-of-range``.
    """
    _check_period(period)
    if not 0 <= part < period:
        raise AccountingError(
            "parameter-out-of-range",
            "The schedule has no such part.",
            expected=f"0 to {period - 1}",
            found=part,
        )
    blocks = range(min(-(-places // period), places if examples_max is None else examples_max))
    found = (block * period + _order(block, period, seed).index(part) for block in blocks)
    return np.array([place for place in found if place < places], dtype=np.int64)


@lru_cache(maxsize=4096)
def _order(block: int, period: int, seed: bytes) -> tuple[int, ...]:
    """The parts of a block's places: the rank of each place's hash among those of its block."""
    first = block * period
    hashes = [_hash(place, seed) for place in range(first, first + period)]
    parts = [0] * period
    for part, place in enumerate(sorted(range(period), key=hashes.__getitem__)):
        parts[place] = part
    return tuple(parts)


def _hash(place: int, seed: bytes) -> bytes:
    return digest("schedule", seed, place.to_bytes(8, "little"))


def _check_period(period: int) -> None:
    if period < 1:
        raise AccountingError(
            "parameter-out-of-range",
            "A schedule has at least one part.",
            expected="at least 1",
            found=period,
        )
