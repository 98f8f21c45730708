"""Exact tails of the hypergeometric distribution, in integers; only the logarithm is rounded."""

from __future__ import annotations

import math
from functools import lru_cache

_ROUND_UP = 1e-9  # more than the error of math.log2 on integers, so that bounds stay bounds


@lru_cache(maxsize=256)
def _tail_counts(population: int, marked: int, drawn: int) -> tuple[int, ...]:
    """Of all draws, how many hold at least x marked ones, for x = 0 .. drawn + 1."""
    low = max(0, drawn - (population - marked))
    high = min(marked, drawn)
    ways = [0] * (drawn + 2)
    term = math.comb(marked, low) * math.comb(population - marked, drawn - low)
    for found in range(low, high + 1):
        ways[found] = term
        rest = population - marked - drawn + found + 1
        if found < high:
            term = term * (marked - found) * (drawn - found) // ((found + 1) * rest)
    for found in range(drawn, -1, -1):
        ways[found] += ways[found + 1]
    return tuple(ways)


def tail_log2(population: int, marked: int, drawn: int, at_least: int) -> float:
    """log2 of P[X >= at_least], rounded up, for X marked among ``drawn`` of ``population``.

    The draw is uniform and without replacement. -inf where it cannot happen.
    """
    if at_least > drawn:
        return -math.inf
    counts = _tail_counts(population, marked, drawn)
    ways = counts[max(0, at_least)]
    if ways == 0:
        return -math.inf
    if ways == counts[0]:
        return 0.0
    return min(0.0, math.log2(ways) - math.log2(counts[0]) + _ROUND_UP)


def either_log2(*logarithms: float) -> float:
    """log2 of a union bound over events given by log2 of theirs, rounded up; at most 0."""
    largest = max(logarithms)
    if largest == -math.inf:
        return largest
    total = sum(2.0 ** (value - largest) for value in logarithms)
    return min(0.0, largest + math.log2(total) + _ROUND_UP)
