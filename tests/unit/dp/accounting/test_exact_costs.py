"""Costs are their formulas, to the last digits that rounding outwards leaves.

Each value is computed again here from the formula as the paper prints it, in fractions or in
decimals of 60 digits; what :mod:`dp.accounting.rdp` returns is never below it and at most 1e-9
above.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

from dp.accounting import rdp
from dp.accounting.events import (
    Adjacency,
    Composed,
    DiscreteGaussianRelease,
    DiscreteGaussianSum,
    Event,
    GaussianRelease,
    PoissonSampled,
    SkellamRelease,
    adjacency_of,
    replace_one,
)
from dp.accounting.rdp import ORDERS, epsilon_from_rdp, rdp_curve
from dp.accounting.statements import epsilon_of, slack_log2
from dp.errors import AccountingError

OUTWARD = 4e-12
SOME_ORDERS = (2, 3, 17, 256, 320, 1 << 20)


def assert_outward(found: float, exact: Fraction | Decimal | float, room: float = OUTWARD) -> None:
    assert float(exact) <= found <= float(exact) * (1 + room), (found, float(exact))


def test_orders_are_dense_to_256_and_then_four_to_a_doubling() -> None:
    assert ORDERS[:255] == tuple(range(2, 257))
    assert ORDERS[255:263] == (320, 384, 448, 512, 640, 768, 896, 1024)
    assert ORDERS[-1] == 1 << 20
    assert len(ORDERS) == 255 + 4 * 12


@pytest.mark.parametrize(
    ("l2", "l1", "variance"),
    [(100, 10, 9), (100, 10, 90_000), (1, 1, 1), (10**8, 10**6, 10**9), (0, 5, 7), (3, 1 << 40, 5)],
)
def test_skellam_costs_what_theorem_3_5_says(l2: int, l1: int, variance: int) -> None:
    curve = rdp_curve(SkellamRelease(l2, l1, variance))
    assert tuple(curve) == ORDERS
    for order in SOME_ORDERS:
        first = Fraction((2 * order - 1) * l2 + 6 * l1, 4 * variance**2)
        second = Fraction(3 * l1, 2 * variance)
        exact = Fraction(order * l2, 2 * variance) + min(first, second)
        assert_outward(curve[order], exact)


@pytest.mark.parametrize("z", [0.25, 1.0, 1.5, 64.0])
@pytest.mark.parametrize("kind", [GaussianRelease, DiscreteGaussianRelease])
def test_a_gaussian_costs_half_the_order_over_its_variance(kind: type, z: float) -> None:
    curve = rdp_curve(kind(z))
    for order in SOME_ORDERS:
        assert_outward(curve[order], Fraction(order) / (2 * Fraction(z) ** 2))


def unlike(share: int, shares: int) -> Decimal:
    """t of docs/privacy.md: the sum over k < n of log((1 + 2 r) / (1 - 2 r))."""
    pi, total = Decimal("3.14159265358979323846264338327950288419716939937510582097494"), Decimal(0)
    for k in range(1, shares):
        x = (-2 * pi**2 * share * k / (k + 1)).exp()
        r = x / (1 - x)
        total += ((1 + 2 * r) / (1 - 2 * r)).ln()
    return total


@pytest.mark.parametrize(
    ("l2", "l1", "share", "shares", "length"),
    [(9, 3, 1, 4, 2), (9, 3, 1, 4, 5), (9, 3, 2, 2, 7), (50, 20, 40, 100, 1000), (9, 3, 3, 1, 4)],
)
def test_shares_of_a_discrete_gaussian_cost_what_the_proof_says(
    l2: int, l1: int, share: int, shares: int, length: int
) -> None:
    curve = rdp_curve(DiscreteGaussianSum(l2, l1, share, shares, length))
    with localcontext(prec=60):
        excess = unlike(share, shares) * min(length, l1)
        for order in SOME_ORDERS:
            exact = Decimal(order * l2) / (2 * share * shares) + excess
            assert_outward(curve[order], exact)


def test_a_sum_that_moves_nothing_costs_nothing() -> None:
    assert set(rdp_curve(DiscreteGaussianSum(0, 0, 1, 4, 2)).values()) == {0.0}
    assert epsilon_of(DiscreteGaussianSum(0, 0, 1, 4, 2), 1e-5) == 0.0


def test_shares_have_a_largest_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdp, "_SHARES_MAX", 4)
    assert rdp._discrete_gaussian_sum(DiscreteGaussianSum(1, 1, 9, 4, 1))[2] > 0
    with pytest.raises(AccountingError, match="parameter-out-of-range"):
        rdp._discrete_gaussian_sum(DiscreteGaussianSum(1, 1, 9, 5, 1))


def test_a_share_must_be_half_a_unit_wide() -> None:
    assert rdp_curve(DiscreteGaussianSum(1, 1, Fraction(1, 2), 2, 1))[2] > 0  # type: ignore[arg-type]
    with pytest.raises(AccountingError, match="parameter-out-of-range"):
        rdp_curve(DiscreteGaussianSum(1, 1, Fraction(49, 100), 2, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.9])
@pytest.mark.parametrize("base", [SkellamRelease(100, 10, 200), GaussianRelease(0.8)])
def test_sampling_costs_what_docs_sampling_proves(rate: float, base: Event) -> None:
    whole, curve = rdp_curve(base), rdp_curve(PoissonSampled(rate, base))
    assert tuple(curve) == ORDERS
    for order in (2, 3, 17, 100, 255, 256):
        with localcontext(prec=60):
            q = Decimal(rate)
            total = (1 - q) ** (order - 1) * (order * q - q + 1)
            for k in range(2, order + 1):
                grown = (Decimal(whole[k]) * (k - 1)).exp()
                total += math.comb(order, k) * (1 - q) ** (order - k) * q**k * grown
            exact = min(total.ln() / (order - 1), Decimal(whole[order]))
        assert float(exact) <= curve[order] <= float(exact) * (1 + 1e-9) + 1e-11
    assert all(curve[order] == whole[order] for order in ORDERS if order > 256)


def test_sampling_everything_or_without_a_bound_leaves_the_curve() -> None:
    base = SkellamRelease(100, 10, 200)
    assert rdp_curve(PoissonSampled(1.0, base)) == rdp_curve(base)
    endless = GaussianRelease(1e-160)
    assert rdp_curve(PoissonSampled(0.5, endless)) == rdp_curve(endless)


def test_a_composition_is_the_sum_with_counts() -> None:
    one, other = SkellamRelease(100, 10, 900), GaussianRelease(2.0)
    curve = rdp_curve(Composed(((one, 3), (replace_one(one), 0), (other, 2))))
    assert tuple(curve) == ORDERS
    for order in SOME_ORDERS:
        exact = 3 * Fraction(rdp_curve(one)[order]) + 2 * Fraction(rdp_curve(other)[order])
        assert_outward(curve[order], exact)
    assert set(rdp_curve(Composed(())).values()) == {0.0}


@pytest.mark.parametrize(
    ("event", "exchanged"),
    [
        (SkellamRelease(9, 3, 50), SkellamRelease(36, 6, 50, "replace-one")),
        (
            DiscreteGaussianSum(9, 3, 2, 4, 7, "zero-out"),
            DiscreteGaussianSum(36, 6, 2, 4, 7, "replace-one"),
        ),
        (DiscreteGaussianRelease(3.0), DiscreteGaussianRelease(1.5, "replace-one")),
        (GaussianRelease(3.0, "zero-out"), GaussianRelease(1.5, "replace-one")),
        (
            Composed(((GaussianRelease(3.0), 5),)),
            Composed(((GaussianRelease(1.5, "replace-one"), 5),)),
        ),
    ],
)
def test_an_exchange_is_twice_the_sensitivity_and_only_once(event: Event, exchanged: Event) -> None:
    assert replace_one(event) == exchanged
    assert replace_one(exchanged) is exchanged


@pytest.mark.parametrize("adjacency", ["add-or-remove", "zero-out", "replace-one"])
def test_the_adjacency_of_an_event_is_that_of_its_parts(adjacency: Adjacency) -> None:
    release = SkellamRelease(9, 3, 50, adjacency)
    other: Adjacency = "zero-out" if adjacency == "add-or-remove" else "add-or-remove"
    for event in (
        release,
        DiscreteGaussianSum(9, 3, 2, 4, 7, adjacency),
        DiscreteGaussianRelease(3.0, adjacency),
        GaussianRelease(3.0, adjacency),
        PoissonSampled(0.5, release),
        Composed(((release, 2), (SkellamRelease(9, 3, 50, other), 0), (Composed(()), 1))),
    ):
        assert adjacency_of(event) == adjacency
    assert adjacency_of(Composed(())) is None


@pytest.mark.parametrize("order", [2, 5, 64])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-11])
def test_the_conversion_is_proposition_12(order: int, delta: float) -> None:
    with localcontext(prec=60):
        exact = Decimal("0.7") + (1 - 1 / Decimal(order)).ln()
        exact -= (Decimal(delta) * order).ln() / (order - 1)
    found = epsilon_from_rdp({order: 0.7, 3 * order: math.inf, 4 * order: 1e9}, delta)
    assert float(exact) * (1 + 1e-9) <= found <= float(exact) * (1 + 1.1e-9) + 2e-12


def test_the_conversion_takes_the_best_order_and_knows_its_ends() -> None:
    assert epsilon_from_rdp({2: 1.0, 9: 1.0}, 1e-5) == epsilon_from_rdp({9: 1.0}, 1e-5)
    assert epsilon_from_rdp({2: math.inf}, 1e-5) == math.inf
    assert epsilon_from_rdp({2: 0.0, 3: 0.0}, 1e-5) == 0.0
    assert epsilon_from_rdp({2: 0.0, 3: 1.0}, 1e-5) > 0.0  # one bound that says nothing
    assert epsilon_from_rdp({2: 1e-3}, 0.9) == 0.0  # never below zero


def test_what_imperfect_randomness_takes_from_delta() -> None:
    event, delta = SkellamRelease(100, 10, 900), 1e-5
    curve = rdp_curve(event)
    first = epsilon_from_rdp(curve, delta / 2)
    for slack in (-20.0, -30.0, -90.0):
        lost = (1 + math.exp(first)) * 2.0**slack
        assert lost < delta / 2
        assert epsilon_of(event, delta, slack) == epsilon_from_rdp(curve, delta - lost)
    assert epsilon_of(event, delta, -17.0) == math.inf  # more than half of delta
    assert epsilon_of(event, delta) == epsilon_from_rdp(curve, delta)
    assert epsilon_of(event, delta, 0.0) == math.inf
    loud = Composed(((SkellamRelease(10**6, 10**3, 10**4), 20),))
    assert 600 < epsilon_of(loud, delta) < math.inf
    assert epsilon_of(loud, delta, -2000.0) == math.inf  # exp of it is not a float to trust
    assert slack_log2(0) == slack_log2(1) == -90.0
    assert slack_log2(1 << 20) == -70.0
