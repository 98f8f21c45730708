"""Sampled batches between neighbours that exchange a record: docs/sampling.md in numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from dp.accounting.events import (
    Composed,
    DiscreteGaussianSum,
    Event,
    GaussianRelease,
    PoissonReplaced,
    PoissonSampled,
    SkellamRelease,
    adjacency_of,
    replace_one,
)
from dp.accounting.rdp import rdp_curve
from dp.accounting.statements import epsilon_of
from dp.planning.epsilon import plan_epsilon
from dp.planning.gaussian import gaussian_epsilon, pld_epsilon
from tests.kits.divergences import discrete_gaussian_sum, log_moment, skellam

RATES = [1e-6, 0.01, 0.25, 0.7, 0.999]
ORDERS = [2, 3, 4, 8, 24, 64, 128]


def sampled(base: np.ndarray, rate: float, shift: int, reach: int) -> np.ndarray:
    """The law of a sum that a record joins by its coin, at the places that all shifts reach."""
    mixed = (1 - rate) * base + rate * np.roll(base, shift)
    return mixed[reach:-reach]


def delta_at(epsilon: float, p: np.ndarray, q: np.ndarray) -> float:
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


def least_epsilon(delta: float, p: np.ndarray, q: np.ndarray) -> float:
    low, high = 0.0, 100.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if delta_at(middle, p, q) <= delta else (middle, high)
    return low


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("variance", "clip"), [(2, 1), (30, 3), (400, 20), (400, 45)])
def test_no_exchange_is_dearer_than_the_bound(rate: float, variance: int, clip: int) -> None:
    """Against records that oppose each other, that agree in part, and that are empty."""
    base = skellam(variance, 60 + 30 * math.isqrt(variance) + 2 * clip)
    curve = rdp_curve(PoissonReplaced(rate, SkellamRelease(clip**2, clip, variance)))
    for one, other in ((clip, -clip), (clip, 0), (0, clip), (clip, -(clip // 2)), (clip, clip - 1)):
        p, q = sampled(base, rate, one, 2 * clip), sampled(base, rate, other, 2 * clip)
        for order in ORDERS:
            assert log_moment(order, p, q) <= (order - 1) * curve[order] * (1 + 1e-9) + 1e-11


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize(("share", "shares", "clip"), [(1, 2, 1), (4, 5, 6), (50, 3, 20)])
def test_nor_with_sums_of_discrete_gaussians(
    rate: float, share: int, shares: int, clip: int
) -> None:
    base = discrete_gaussian_sum(share, shares, 60 + int(30 * math.sqrt(share * shares)) + clip)
    curve = rdp_curve(PoissonReplaced(rate, DiscreteGaussianSum(clip**2, clip, share, shares, 1)))
    p, q = sampled(base, rate, clip, 2 * clip), sampled(base, rate, -clip, 2 * clip)
    for order in ORDERS[:4]:
        assert log_moment(order, p, q) <= (order - 1) * curve[order] * (1 + 1e-9) + 1e-11


@pytest.mark.parametrize("other", [(-3, 5), (5, 3), (-3, -5), (0, 0)])
def test_nor_vectors_beside_another_record_with_its_own_coin(other: tuple[int, int]) -> None:
    variance, rate, third = 40, 0.3, (4, 4)
    line = skellam(variance, 160)
    plane = np.outer(line, line)
    plane = 0.6 * plane + 0.4 * np.roll(plane, third, axis=(0, 1))
    inner = (slice(12, -12), slice(12, -12))

    def law(shift: tuple[int, int]) -> np.ndarray:
        moved = np.roll(plane, shift, axis=(0, 1))
        return np.asarray(((1 - rate) * plane + rate * moved)[inner].ravel())

    curve = rdp_curve(PoissonReplaced(rate, SkellamRelease(3**2 + 5**2, 8, variance)))
    for order in ORDERS[:4]:
        for p, q in ((law((3, -5)), law(other)), (law(other), law((3, -5)))):
            assert log_moment(order, p, q) <= (order - 1) * curve[order] * (1 + 1e-9)


@pytest.mark.parametrize("rate", [1e-4, 0.03, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_printed_epsilon_is_not_below_the_exact_one(rate: float, rounds: int) -> None:
    """All outcomes of up to three releases, counted."""
    variance, clip = 6, 3
    base = skellam(variance, 34 + 2 * clip)
    p, q = (sampled(base, rate, shift, 2 * clip) for shift in (clip, -clip))
    every_p, every_q = p, q
    for _ in range(rounds - 1):
        every_p = np.multiply.outer(every_p, p).ravel()
        every_q = np.multiply.outer(every_q, q).ravel()
    event = PoissonReplaced(rate, SkellamRelease(clip**2, clip, variance))
    for delta in (1e-2, 1e-4, 1e-6):
        found = epsilon_of(Composed(((event, rounds),)), delta)
        assert found >= least_epsilon(delta, every_p, every_q)


@pytest.mark.parametrize(
    ("z", "rate", "rounds", "delta", "low", "high"),
    [
        (1.0, 0.01, 200, 1e-5, 1.2229, 1.2332),
        (1.5, 0.01, 1000, 1e-6, 1.90, 1.91),
        (2.0, 0.1, 100, 1e-4, 3.77, 3.80),
    ],
)
def test_the_gaussian_is_accounted_by_its_distributions_whatever_all_would_cost(
    z: float, rate: float, rounds: int, delta: float, low: float, high: float
) -> None:
    """Two of these cost more than 500 without sampling."""
    found, name = gaussian_epsilon(z, rounds, delta, rate, "replace-one")
    assert (low < found < high, name) == (True, "pld/dp-accounting")


@pytest.mark.parametrize("mechanism", ["skellam", "discrete-gaussian", "gaussian"])
@pytest.mark.parametrize(
    ("z", "rate", "rounds", "delta"),
    [
        (1.0, 0.01, 200, 1e-5),
        (1.4, 0.25, 4, 1e-5),
        (10.0, 0.1, 2000, 1e-8),
        (1.0, 1e-9, 10**7, 1e-5),
        (1.0, 1e-300, 1, 1e-5),
        (1.0, math.nextafter(1.0, 0.0), 4, 1e-5),
        (1.0, 0.01, 200, 1e-300),
        (0.01, 0.5, 10**7, 1e-5),
        (1000.0, 0.5, 1, 1e-5),
        (1.0, 0.5, 1, 0.999),
    ],
)
def test_at_every_edge_there_is_a_figure_and_no_larger_one_than_without_sampling(
    mechanism: str, z: float, rate: float, rounds: int, delta: float
) -> None:
    found, _ = plan_epsilon(z, rounds, delta, rate, mechanism, adjacency="replace-one")
    whole, _ = plan_epsilon(z, rounds, delta, 1.0, mechanism, adjacency="replace-one")
    assert found <= whole * (1 + 1e-9) + 1e-9
    assert math.isfinite(found)
    if mechanism != "gaussian":  # of the same accountant
        assert found >= plan_epsilon(z, rounds, delta, rate, mechanism)[0] * (1 - 1e-6)


@pytest.mark.parametrize(
    ("z", "rate", "rounds", "delta", "most"),
    [
        (1.0, 0.01, 200, 1e-5, 1.6829),  # by the series; 3.19 by Hoelder, 810 without sampling
        (1.4, 0.25, 4, 1e-5, 3.9288),  # by the series
        (10.0, 0.1, 2000, 1e-8, 5.4354),  # by Hoelder; 10.6 by the series, 97 without sampling
        (1000.0, 0.01, 1, 1e-5, 0.00256),  # by convexity; 0.0051 without sampling
        (1.0, math.nextafter(1.0, 0.0), 4, 1e-5, 26.1267),  # without sampling
    ],
)
def test_each_bound_is_the_least_somewhere(
    z: float, rate: float, rounds: int, delta: float, most: float
) -> None:
    found, name = plan_epsilon(z, rounds, delta, rate, "skellam", adjacency="replace-one")
    assert name == "skellam-rdp/agarwal-kairouz-liu-2021+poisson/replace-one"
    assert found <= most
    assert found > pld_epsilon(z, rounds, delta, rate, "replace-one")


def test_the_record_keeps_its_coin_and_the_event_says_so() -> None:
    release = SkellamRelease(9, 3, 50)
    for inner in (release, GaussianRelease(1.0, "zero-out")):
        event: Event = PoissonSampled(0.5, inner)
        replaced = replace_one(event)
        assert replaced == PoissonReplaced(0.5, inner)
        assert adjacency_of(replaced) == "replace-one"
        assert replace_one(replaced) is replaced
    composed = replace_one(Composed(((PoissonSampled(0.5, release), 2),)))
    assert composed == Composed(((PoissonReplaced(0.5, release), 2),))
    both = Composed(((PoissonReplaced(0.5, release), 1), (replace_one(release), 1)))
    assert epsilon_of(both, 1e-5) > epsilon_of(replace_one(release), 1e-5)


def test_who_is_always_or_never_felt_costs_what_that_costs() -> None:
    release = SkellamRelease(9, 3, 50)
    assert rdp_curve(PoissonReplaced(1.0, release)) == rdp_curve(replace_one(release))
    assert set(rdp_curve(PoissonReplaced(0.5, SkellamRelease(0, 0, 50))).values()) == {0.0}


def test_the_bound_is_near_the_divergence_of_opposed_records() -> None:
    """Within a quarter where sampling counts; that of twice the clip is 100 times as large."""
    z, rate = 1.0, 0.01
    x = np.linspace(-30, 60, 100_001)
    step, law = math.log(x[1] - x[0]), -(x**2) / 2 - 0.5 * math.log(2 * math.pi)
    up = np.logaddexp(math.log1p(-rate), math.log(rate) + x / z - 0.5 / z**2)
    down = np.logaddexp(math.log1p(-rate), math.log(rate) - x / z - 0.5 / z**2)
    curve = rdp_curve(PoissonReplaced(rate, GaussianRelease(z)))
    for order in (2, 3, 4, 6):
        exact = float(special.logsumexp(law + order * up - (order - 1) * down)) + step
        assert exact <= (order - 1) * curve[order] <= 1.25 * exact
        assert rdp_curve(GaussianRelease(z / 2))[order] > 100 * curve[order]
