"""docs/sampling.md in numbers: the inequality of its proof, exact divergences below the bound."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp.accounting.events import (
    Composed,
    DiscreteGaussianSum,
    Event,
    GaussianRelease,
    PoissonSampled,
    SkellamRelease,
)
from dp.accounting.rdp import rdp_curve
from dp.accounting.statements import epsilon_of
from dp.errors import AccountingError
from dp.planning.gaussian import pld_epsilon, rdp_epsilon
from tests.kits.divergences import discrete_gaussian_sum, log_moment, skellam

RATES = [0.001, 0.05, 0.25, 0.7, 0.999]
ORDERS = [2, 3, 5, 16, 64]


@given(st.floats(-30, 30), st.floats(0, 1), st.floats(1, 200))
@settings(max_examples=400, deadline=None)
def test_the_pairs_of_the_proof_are_never_negative(log_t: float, q: float, a: float) -> None:
    """A (h(u) + t h(v)) >= 0, in digits enough for the cancellation."""
    with mpmath.workdps(400):
        t, rate, order = mpmath.exp(mpmath.mpf(log_t)), mpmath.mpf(q), mpmath.mpf(a)
        u, v = 1 - rate + rate * t, 1 - rate + rate / t
        assert u * v >= 1 - mpmath.mpf(10) ** -380

        def h(y: mpmath.mpf) -> mpmath.mpf:
            return y**order - y ** (1 - order)

        size = u**order + u ** (1 - order) + t * (v**order + v ** (1 - order))
        assert h(u) + t * h(v) >= -size * mpmath.mpf(10) ** -380


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("variance", "shift"), [(2, 1), (30, 1), (30, 9), (400, 20), (400, 45)])
def test_one_direction_is_never_below_the_other(rate: float, variance: int, shift: int) -> None:
    """And both are below the bound that is computed from the mechanism's own curve."""
    reach = 60 + 30 * math.isqrt(variance) + shift
    base = skellam(variance, reach)
    q, p = base, np.roll(base, shift)
    inner = slice(shift, -shift)
    q, p = q[inner], p[inner]
    mixed = (1 - rate) * q + rate * p
    curve = rdp_curve(PoissonSampled(rate, SkellamRelease(shift**2, shift, variance)))
    for order in ORDERS:
        removed, added = log_moment(order, mixed, q), log_moment(order, q, mixed)
        assert added <= removed + 1e-9
        assert removed / (order - 1) <= curve[order] * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize(("share", "shares", "shift"), [(1.0, 2, 1), (4.0, 5, 6), (50.0, 3, 20)])
def test_sums_of_discrete_gaussians_too(rate: float, share: float, shares: int, shift: int) -> None:
    reach = 60 + int(30 * math.sqrt(share * shares)) + shift
    base = discrete_gaussian_sum(share, shares, reach)
    q, p = base[shift:-shift], np.roll(base, shift)[shift:-shift]
    mixed = (1 - rate) * q + rate * p
    event = DiscreteGaussianSum(shift**2, shift, int(share), shares, 1)
    curve = rdp_curve(PoissonSampled(rate, event))
    for order in ORDERS[:4]:
        removed, added = log_moment(order, mixed, q), log_moment(order, q, mixed)
        assert added <= removed + 1e-9
        assert removed / (order - 1) <= curve[order] * (1 + 1e-9) + 1e-12


def test_vectors_are_covered() -> None:
    """Two coordinates with different shifts, and one record of two that is always in the batch."""
    variance, shift, reach, rate = 40, (3, -5), 160, 0.3
    line = skellam(variance, reach)
    plane = np.outer(line, line)
    moved = np.roll(plane, shift, axis=(0, 1))
    inner = (slice(8, -8), slice(8, -8))
    q, p = plane[inner].ravel(), moved[inner].ravel()
    mixed = (1 - rate) * q + rate * p
    curve = rdp_curve(PoissonSampled(rate, SkellamRelease(3**2 + 5**2, 8, variance)))
    for order in ORDERS[:4]:
        removed, added = log_moment(order, mixed, q), log_moment(order, q, mixed)
        assert added <= removed + 1e-9
        assert removed / (order - 1) <= curve[order]


def test_other_records_with_coins_of_their_own_are_covered() -> None:
    """Batches of three records, two of them the same in both data sets: a mixture of four sums."""
    variance, rate, reach, mine, others = 40, 0.4, 200, 6, (5, -6)
    base = skellam(variance, reach)

    def released(records: tuple[int, ...]) -> np.ndarray:
        law = base
        for record in records:
            law = (1 - rate) * law + rate * np.roll(law, record)
        return law[20:-20]

    with_it, without = released((*others, mine)), released(others)
    curve = rdp_curve(PoissonSampled(rate, SkellamRelease(36, 6, variance)))
    for order in ORDERS[:4]:
        for p, q in ((with_it, without), (without, with_it)):
            assert log_moment(order, p, q) / (order - 1) <= curve[order]


def test_without_symmetry_the_other_direction_can_be_larger() -> None:
    """Why Zhu and Wang need their factor, and why other mechanisms are refused."""
    q, p = np.array([0.5, 0.5]), np.array([1e-6, 1 - 1e-6])
    mixed = 0.5 * q + 0.5 * p
    assert log_moment(8, q, mixed) > 1.5 * log_moment(8, mixed, q)


@pytest.mark.parametrize(
    "event",
    [
        Composed(((GaussianRelease(1.0), 2),)),
        PoissonSampled(0.5, GaussianRelease(1.0)),
    ],
)
def test_what_the_proof_does_not_cover_is_not_amplified(event: Event) -> None:
    with pytest.raises(AccountingError) as caught:
        rdp_curve(PoissonSampled(0.1, event))
    assert caught.value.reason == "event-unknown"


@pytest.mark.parametrize(("z", "rounds", "rate"), [(1.0, 8, 0.25), (1.3, 8, 0.25), (2.0, 100, 0.1)])
def test_fine_skellam_noise_costs_what_the_sampled_gaussian_does(
    z: float, rounds: int, rate: float
) -> None:
    """Within five percent of the Gaussian's RDP (ours has integer orders), and above its PLD."""
    units = 1 << 20
    event = SkellamRelease(units**2, units * 300, round((z * units) ** 2))
    found = epsilon_of(Composed(((PoissonSampled(rate, event), rounds),)), 1e-5)
    assert pld_epsilon(z, rounds, 1e-5, rate) < found
    assert found < 1.05 * rdp_epsilon(z, rounds, 1e-5, rate)
