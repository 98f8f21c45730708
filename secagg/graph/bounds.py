"""How likely a sparse graph is to fail, by exact hypergeometric tails; see docs/parameters.md.

Everything here holds for every cohort size n in ``smallest .. largest`` with one degree k, one
threshold t and one number c of corrupt devices: for fixed c and k the tails fall with n, so they
are taken at the smallest size, and what is united over at the largest. All results are log2 of a
probability for one random circle, rounded up, at most 0; -inf where it cannot happen.

The steps named here are those of the proof in docs/parameters.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from secagg.graph.tails import tail_log2
from secagg.limits import COMPLETE_GRAPH_MAX

_BLOCKS = 64  # parts of a range of sizes; more make the bound on random drop-outs tighter


def smallest_sparse(size_min: int, degree: int) -> int:
    """The smallest cohort, from ``size_min`` on, whose graph is not complete under a degree."""
    return max(size_min, COMPLETE_GRAPH_MAX + 1, degree + 2)


def opened_twice_log2(
    smallest: int, largest: int, corrupt: int, degree: int, needed: int, *, active: bool = True
) -> float:
    """Both secrets of some honest device open (step 2).

    It takes 2t - k corrupt neighbours where an ``active`` aggregator can ask each for either kind
    of share, and t where it asks for one kind.
    """
    bad = 2 * needed - degree if active else needed
    one = tail_log2(smallest - 1, min(corrupt, smallest - 1), degree, bad)
    return min(0.0, math.log2(largest) + one)


def cut_log2(smallest: int, largest: int, corrupt: int, degree: int, needed: int) -> float:
    """Some of the survivors' sum is unmasked without the rest, whoever drops out (steps 3 to 7)."""
    one = tail_log2(smallest, min(corrupt, smallest), degree, 2 * needed - degree)
    return min(0.0, math.log2(math.comb(largest, 2)) + one)


def cut_at_random_log2(clients: int, corrupt: int, dropouts: int, degree: int) -> float:
    """The honest survivors fall apart when drop-outs are random (step 10, semi-honest)."""
    one = tail_log2(clients, min(corrupt + dropouts, clients), degree, degree)
    return min(0.0, math.log2(math.comb(clients, 2)) + one)


def unopened_log2(clients: int, dropouts: int, degree: int, needed: int) -> float:
    """Random drop-outs leave some device with fewer than t neighbours (step 9)."""
    return _unopened(clients, clients, dropouts, degree, needed)


def unopened_range_log2(
    smallest: int, largest: int, lost: int, of: int, degree: int, needed: int
) -> float:
    """The same for every size n in the range when floor(n * lost / of) devices drop out."""
    return max(
        _unopened(low, high, high * lost // of, degree, needed)
        for low, high in _blocks(smallest, largest)
    )


def _unopened(smallest: int, largest: int, dropouts: int, degree: int, needed: int) -> float:
    one = tail_log2(smallest - 1, min(dropouts, smallest - 1), degree, degree - needed + 1)
    return min(0.0, math.log2(largest) + one)


def _blocks(smallest: int, largest: int) -> Iterator[tuple[int, int]]:
    """At most about ``_BLOCKS`` ranges, each of sizes in nearly the same ratio."""
    ratio = (largest / smallest) ** (1 / _BLOCKS)
    low = smallest
    while low <= largest:
        high = min(largest, max(low, int(low * ratio)))
        yield low, high
        low = high + 1
