"""A server that picks the roster tries to place its devices around a victim on the circle."""

from __future__ import annotations

import hashlib
from math import comb, log2

import pytest

from secagg.graph import harary
from secagg.graph.harary import Graph

SIZE, DEGREE = 200, 8  # far below what the parameters allow: small enough to be ground here
CORRUPT = 20
TRIES = 2_000  # rosters that the server tries


def digest(*parts: object) -> bytes:
    """Stands for the roster digest: anything that the server changes, changes all of it."""
    return hashlib.sha256(repr(parts).encode()).digest()


def surround(order_seed, victim: int = 0) -> int:
    """The victim's corrupt neighbours, after the server put its devices where they would be.

    ``order_seed(corrupt)`` is what the order is drawn from once the corrupt identities are in.
    """
    planned = Graph(SIZE, DEGREE, order_seed(())).neighbours(victim)
    real = Graph(SIZE, DEGREE, order_seed(planned)).neighbours(victim)
    return len(set(real) & set(planned))


def test_with_an_order_that_is_known_beforehand_every_neighbour_is_corrupt() -> None:
    """The weakened build draws the order from the size alone, not from the roster."""
    assert surround(lambda corrupt: bytes(32)) == DEGREE


def test_with_an_order_from_the_roster_the_plan_is_void() -> None:
    """The corrupt identities are in the roster, so choosing them draws another order."""
    assert surround(lambda corrupt: digest("roster", corrupt)) <= 2


def worst_of(tries: int, size: int, degree: int, corrupt: int) -> int:
    """The most corrupt neighbours that any honest device has in any of the rosters tried."""
    worst = 0
    for nonce in range(tries):
        order, _ = harary._circle(digest("ground", nonce), size)
        bad = [index < corrupt for index in order]
        half = degree // 2
        ring = bad[-half:] + bad + bad[:half]
        window = sum(ring[: degree + 1])
        for place in range(size):
            if not bad[place]:
                worst = max(worst, window)
            if place + 1 < size:
                window += ring[place + degree + 1] - ring[place]
    return worst


def log2_tail(size: int, degree: int, corrupt: int, more_than: int) -> float:
    """log2 of P[a device has more corrupt neighbours than that]: hypergeometric, exact."""
    draws = range(more_than + 1, min(degree, corrupt) + 1)
    ways = sum(comb(corrupt, j) * comb(size - 1 - corrupt, degree - j) for j in draws)
    return log2(ways / comb(size - 1, degree)) if ways else float("-inf")


def test_a_degree_without_slack_is_ground_through() -> None:
    """Degree 8 keeps a neighbourhood below five corrupt ones for one device and one roster with
    probability 1 - 2^-10; over 180 honest devices and 2,000 rosters it does not."""
    allowed = 4
    assert log2_tail(SIZE, DEGREE, CORRUPT, allowed) < -8
    assert worst_of(TRIES, SIZE, DEGREE, CORRUPT) > allowed


def test_a_degree_with_64_bits_of_slack_is_not() -> None:
    """For 10 % of 1,000 a degree whose tail, over all devices, is below 2^-64: 2^64 tries are
    what it takes."""
    size, corrupt, degree, allowed = 1_000, 100, 150, 55
    assert log2_tail(size, degree, corrupt, allowed) + 10 < -64
    assert worst_of(100, size, degree, corrupt) <= allowed
    # What the server gains by trying is what the union bound says, no more.
    gained = worst_of(100, size, degree, corrupt)
    assert log2_tail(size, degree, corrupt, gained) + 10 + 7 < 10


@pytest.mark.parametrize("size", [129, 200, 1_000])
def test_windows_of_the_circle_are_the_neighbourhoods(size: int) -> None:
    """The count above is over the same neighbours that devices use."""
    seed = digest("windows", size)
    order, positions = harary._circle(seed, size)
    shown = Graph(size, DEGREE, seed)
    for index in range(0, size, 17):
        around = {order[(positions[index] + s) % size] for s in range(-4, 5)} - {index}
        assert set(shown.neighbours(index)) == around
