"""Direction of every approximation: never below the formula in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp.accounting.events import (
    Composed,
    DiscreteGaussianRelease,
    DiscreteGaussianSum,
    Event,
    PoissonSampled,
    SkellamRelease,
)
from dp.accounting.rdp import ORDERS, epsilon_from_rdp, rdp_curve
from dp.accounting.statements import epsilon_of

CHECKED = (2, 3, 7, 40, 129, 256, 320, 1 << 20)
DENSE = tuple(order for order in CHECKED if order <= 256)
units = st.integers(0, 1 << 31)
variances = st.integers(1, 1 << 64)


@given(units, units, variances)
@settings(max_examples=200, deadline=None)
def test_skellam_curves_are_rounded_up(l2: int, l1: int, variance: int) -> None:
    curve = rdp_curve(SkellamRelease(l2 * l2, l1, variance))
    for a in CHECKED:
        exact = Fraction(a * l2 * l2, 2 * variance) + min(
            Fraction((2 * a - 1) * l2 * l2 + 6 * l1, 4 * variance**2),
            Fraction(3 * l1, 2 * variance),
        )
        assert exact <= Fraction(curve[a]) <= exact * (1 + Fraction(1, 10**11))


@given(st.floats(1e-3, 1e6))
@settings(max_examples=100, deadline=None)
def test_gaussian_curves_are_rounded_up(z: float) -> None:
    curve = rdp_curve(DiscreteGaussianRelease(z))
    assert all(Fraction(curve[a]) >= a / (2 * Fraction(z) ** 2) for a in CHECKED)


@given(st.integers(1, 1 << 20), st.integers(1, 400), st.integers(1, 1 << 12), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_curves_of_discrete_gaussian_sums_are_rounded_up(
    l2: int, share: int, length: int, shares: int
) -> None:
    l1 = l2 * 3
    curve = rdp_curve(DiscreteGaussianSum(l2 * l2, l1, share, shares, length))
    with mpmath.workdps(60):
        unlike = mpmath.mpf(0)
        for k in range(1, shares):
            variance = mpmath.mpf(share * k) / (k + 1)
            first = mpmath.exp(-2 * mpmath.pi**2 * variance)
            series = mpmath.nsum(lambda j, f=first: f ** (j * j), [1, 6])
            unlike += mpmath.log((1 + 2 * series) / (1 - 2 * series))
        for a in CHECKED:
            exact = mpmath.mpf(a * l2 * l2) / (2 * share * shares) + unlike * min(length, l1)
            assert mpmath.mpf(curve[a]) >= exact


def sampled_exactly(rate: float, order: int, base: dict[int, float]) -> mpmath.mpf:
    """The formula of docs/sampling.md, term by term."""
    q = mpmath.mpf(rate)
    total = (1 - q) ** (order - 1) * (order * q - q + 1)
    for k in range(2, order + 1):
        total += (
            mpmath.binomial(order, k)
            * (1 - q) ** (order - k)
            * q**k
            * mpmath.exp((k - 1) * mpmath.mpf(base[k]))
        )
    return mpmath.log(total) / (order - 1)


@pytest.mark.parametrize("rate", [1e-6, 0.004, 0.25, 0.9, 1 - 2**-50])
@pytest.mark.parametrize("z", [0.3, 1.4, 30.0, 1e4])
def test_sampled_curves_are_rounded_up(rate: float, z: float) -> None:
    base = rdp_curve(DiscreteGaussianRelease(z))
    sampled = rdp_curve(PoissonSampled(rate, DiscreteGaussianRelease(z)))
    with mpmath.workdps(60):
        for order in DENSE:
            exact = sampled_exactly(rate, order, dict(base))
            assert mpmath.mpf(sampled[order]) >= min(exact, mpmath.mpf(base[order]))
            assert mpmath.mpf(sampled[order]) <= exact * (1 + mpmath.mpf("1e-9")) + 2e-12


@given(st.integers(1, 1 << 20), st.floats(0.05, 1e4), st.integers(1, 10**6), st.floats(1e-15, 0.5))
@settings(max_examples=150, deadline=None)
def test_the_conversion_is_rounded_up(l2: int, ratio: float, count: int, delta: float) -> None:
    event = Composed(((SkellamRelease(l2 * l2, l2, max(1, int(l2 * l2 * ratio))), count),))
    curve = rdp_curve(event)
    with mpmath.workdps(50):
        exact = min(
            mpmath.mpf(value)
            + mpmath.log1p(mpmath.mpf(-1) / order)
            - mpmath.log(mpmath.mpf(delta) * order) / (order - 1)
            for order, value in curve.items()
        )
        assert mpmath.mpf(epsilon_of(event, delta, renyi=True)) >= max(exact, 0)


def test_leaving_orders_out_only_raises_epsilon() -> None:
    curve = rdp_curve(SkellamRelease(1 << 20, 1 << 20, 1 << 22))
    whole = epsilon_from_rdp(curve, 1e-6)
    some = {order: curve[order] for order in ORDERS[::5]}
    assert epsilon_from_rdp(some, 1e-6) >= whole


@pytest.mark.parametrize(
    "event",
    [SkellamRelease(1 << 20, 1 << 20, 1 << 22), DiscreteGaussianSum(1 << 20, 1 << 20, 400, 9, 64)],
)
def test_a_part_of_delta_for_the_coins_only_raises_epsilon(event: Event) -> None:
    costs = [epsilon_of(event, 1e-6, slack) for slack in (-300.0, -60.0, -40.0, -30.0)]
    assert epsilon_of(event, 1e-6) <= costs[0]
    assert costs == sorted(costs)
