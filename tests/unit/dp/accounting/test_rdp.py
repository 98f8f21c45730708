"""Bounds are sound: each is compared with a numerically exact value, or with a known figure."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from scipy import optimize, special, stats

from dp.accounting import events, rdp
from dp.accounting.events import (
    Composed,
    DiscreteGaussianRelease,
    DiscreteGaussianSum,
    Event,
    GaussianRelease,
    PoissonSampled,
    SkellamRelease,
    replace_one,
)
from dp.accounting.rdp import ORDERS, epsilon_from_rdp, rdp_curve
from dp.accounting.statements import epsilon_of
from dp.errors import AccountingError
from dp.planning.epsilon import plan_epsilon
from dp.planning.gaussian import pld_epsilon, rdp_epsilon
from tests.kits.said import Case, refused


def exact_gaussian_epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Analytic Gaussian mechanism (Balle and Wang 2018, Theorem 8), composed exactly."""
    mu = rounds**0.5 / noise_multiplier

    def delta_at(epsilon: float) -> float:
        a = stats.norm.cdf(mu / 2 - epsilon / mu)
        b = stats.norm.logcdf(-mu / 2 - epsilon / mu)
        return float(a - math.exp(epsilon + b))

    return float(optimize.brentq(lambda e: delta_at(e) - delta, 0.0, 200.0, xtol=1e-10))


def skellam_pmf(variance: int, reach: int) -> np.ndarray:
    return np.asarray(special.ive(np.abs(np.arange(-reach, reach + 1)), variance))


def renyi(order: int, p: np.ndarray, q: np.ndarray) -> float:
    keep = (p > 0) & (q > 0)
    return float(special.logsumexp(order * np.log(p[keep]) - (order - 1) * np.log(q[keep]))) / (
        order - 1
    )


@pytest.mark.parametrize(
    ("variance", "shift"), [(4, 1), (4, 2), (30, 1), (30, 2), (30, 7), (500, 1), (500, 2), (500, 7)]
)
@pytest.mark.parametrize("order", [2, 3, 8, 20])
def test_skellam_bound_covers_the_exact_divergence(variance: int, shift: int, order: int) -> None:
    p = skellam_pmf(variance, 700)
    moved = np.roll(p, shift)
    exact = renyi(order, p[50:-50], moved[50:-50])
    bound = rdp_curve(SkellamRelease(shift**2, shift, variance))[order]
    assert exact <= bound
    if variance >= 30 * shift**2:
        assert bound < 1.3 * exact


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.7])
@pytest.mark.parametrize("order", [2, 3, 6])
def test_sampled_bound_covers_the_exact_divergence_both_ways(rate: float, order: int) -> None:
    variance, shift = 60, 6
    q = skellam_pmf(variance, 300)[20:-20]
    p = (1 - rate) * q + rate * np.roll(skellam_pmf(variance, 300), shift)[20:-20]
    bound = rdp_curve(PoissonSampled(rate, SkellamRelease(shift**2, shift, variance)))[order]
    assert renyi(order, p, q) <= bound
    assert renyi(order, q, p) <= bound


def test_sampling_never_costs_more_than_everything() -> None:
    base = SkellamRelease(100, 100, 50)
    whole, sampled = rdp_curve(base), rdp_curve(PoissonSampled(0.9, base))
    assert all(sampled[order] <= whole[order] for order in sampled)
    assert rdp_curve(PoissonSampled(1.0, base)) == whole


def test_a_fine_grid_costs_what_the_gaussian_does() -> None:
    z, units = 1.3, 1 << 20
    skellam = rdp_curve(SkellamRelease(units**2, units * 1000, int((z * units) ** 2)))
    gaussian = rdp_curve(GaussianRelease(z))
    assert rdp_curve(DiscreteGaussianRelease(z)) == gaussian
    for order in ORDERS[:200]:
        assert gaussian[order] <= skellam[order] * (1 + 1e-9)
        assert skellam[order] < gaussian[order] * 1.001


def test_composition_adds() -> None:
    a, b = SkellamRelease(100, 100, 500), SkellamRelease(100, 100, 900)
    both = rdp_curve(Composed(((a, 3), (b, 2))))
    for order in (2, 17, 256):
        expected = 3 * rdp_curve(a)[order] + 2 * rdp_curve(b)[order]
        assert both[order] == pytest.approx(expected, rel=1e-9)
        assert both[order] >= expected


# Figures of the design: what the default settings cost.
@pytest.mark.parametrize(
    ("noise_multiplier", "rounds", "rate", "expected"),
    [(1.4, 4, 1.0, 6.65), (1.0, 8, 0.25, 6.53), (1.3, 8, 0.25, 4.09)],
)
def test_known_costs_of_skellam(
    noise_multiplier: float, rounds: int, rate: float, expected: float
) -> None:
    epsilon, _ = plan_epsilon(noise_multiplier, rounds, 1e-5, rate, "skellam", length=92_160)
    assert epsilon == pytest.approx(expected, abs=0.005)


def test_gaussian_order_of_accountants_without_sampling() -> None:
    exact = exact_gaussian_epsilon(1.0, 1, 1e-5)
    pld, rdp = pld_epsilon(1.0, 1, 1e-5), rdp_epsilon(1.0, 1, 1e-5)
    ours = epsilon_from_rdp(rdp_curve(GaussianRelease(1.0)), 1e-5)
    assert exact == pytest.approx(4.3772, abs=1e-4)
    assert exact <= pld <= rdp <= ours * (1 + 1e-9)
    assert pld < exact + 0.01
    assert ours < rdp * 1.02  # integer orders only


@pytest.mark.parametrize(
    ("noise_multiplier", "rate", "rounds", "delta", "pld", "rdp"),
    [
        (1.1, 256 / 60_000, 14_062, 1e-5, 2.3817, 2.5966),
        (2.0, 0.1, 100, 1e-6, 2.6750, 2.9142),
    ],
)
def test_gaussian_order_of_accountants_with_sampling(
    noise_multiplier: float, rate: float, rounds: int, delta: float, pld: float, rdp: float
) -> None:
    found_pld = pld_epsilon(noise_multiplier, rounds, delta, rate)
    found_rdp = rdp_epsilon(noise_multiplier, rounds, delta, rate)
    assert found_pld == pytest.approx(pld, abs=2e-3)
    assert found_rdp == pytest.approx(rdp, abs=2e-3)
    event = Composed(((PoissonSampled(rate, GaussianRelease(noise_multiplier)), rounds),))
    general = epsilon_of(event, delta)
    # The same theorem, at integer orders alone.
    assert found_pld <= found_rdp <= general < found_rdp * 1.02


def test_replace_one_of_dp_accounting_is_still_wrong_and_therefore_not_offered() -> None:
    """google/differential-privacy issue 378: replacing moves a sum by 2 C, not by C."""
    event = dp_accounting.GaussianDpEvent(1.0)
    found = []
    for relation in ("ADD_OR_REMOVE_ONE", "REPLACE_ONE"):
        accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation[relation])
        found.append(accountant.compose(event).get_epsilon(1e-5))
    assert found[0] == found[1]
    assert exact_gaussian_epsilon(0.5, 1, 1e-5) > 1.5 * found[1]


class Unheard(Event):
    pass


@pytest.mark.parametrize(
    "event", [Unheard(), Composed(((Unheard(), 1),)), PoissonSampled(0.5, Unheard())]
)
def test_an_event_that_nobody_can_account_fails_closed(event: Event) -> None:
    with pytest.raises(AccountingError) as caught:
        epsilon_of(event, 1e-5)
    assert caught.value.reason == "event-unknown"


@pytest.mark.parametrize(
    "event",
    [
        SkellamRelease(1, 1, 0),
        SkellamRelease(1, 1, -5),
        SkellamRelease(-1, 1, 5),
        GaussianRelease(float("nan")),
        GaussianRelease(0.0),
        GaussianRelease(float("inf")),
        PoissonSampled(0.0, GaussianRelease(1.0)),
        PoissonSampled(1.5, GaussianRelease(1.0)),
        PoissonSampled(float("nan"), GaussianRelease(1.0)),
        Composed(((GaussianRelease(1.0), -1),)),
    ],
)
def test_impossible_parameters_are_typed_errors(event: Event) -> None:
    with pytest.raises(AccountingError) as caught:
        rdp_curve(event)
    assert caught.value.reason == "parameter-out-of-range"


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan"), float("inf")])
def test_impossible_delta_is_a_typed_error(delta: float) -> None:
    with pytest.raises(AccountingError) as caught:
        epsilon_of(GaussianRelease(1.0), delta)
    assert caught.value.reason == "parameter-out-of-range"


def test_extremes_stay_sound_and_finite_or_infinite() -> None:
    loud = epsilon_of(SkellamRelease(1, 1, 10**24), 1e-6)
    silent = epsilon_of(SkellamRelease(10**18, 10**18, 1), 1e-6)
    assert 0 <= loud < 1e-3
    assert silent > 1e17
    assert epsilon_of(Composed(()), 1e-5) == 0.0


def test_imperfect_randomness_is_charged() -> None:
    event = Composed(((SkellamRelease(1 << 26, 1 << 26, 1 << 27), 4),))
    ideal = epsilon_of(event, 1e-5)
    assert epsilon_of(event, 1e-5, -80.0) == pytest.approx(ideal, rel=1e-6)
    assert epsilon_of(event, 1e-5, -80.0) >= ideal
    assert epsilon_of(event, 1e-5, -28.0) > ideal * 1.001
    assert epsilon_of(event, 1e-5, -10.0) == math.inf


@pytest.mark.parametrize(
    "arguments",
    [
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": 0.0},
        {"rounds": 0},
        {"rounds": 10**9},
        {"delta": 0.0},
        {"delta": 2.0},
        {"sampling_rate": 0.0},
        {"sampling_rate": float("nan")},
        {"mechanism": "laplace"},
        {"length": 0},
    ],
)
def test_plans_with_impossible_parameters_are_typed_errors(arguments: dict) -> None:
    defaults = {"noise_multiplier": 1.0, "rounds": 1, "delta": 1e-5}
    with pytest.raises(AccountingError):
        plan_epsilon(**{**defaults, **arguments})


def test_plans_name_their_accountant() -> None:
    for mechanism, word in (
        ("gaussian", "pld"),
        ("skellam", "agarwal"),
        ("discrete-gaussian", "kairouz"),
    ):
        epsilon, accountant = plan_epsilon(1.0, 4, 1e-5, 0.25, mechanism)
        assert 0 < epsilon < 20
        assert word in accountant
        assert ("symmetric-noise" in accountant) == (mechanism != "gaussian")


RELEASE = SkellamRelease(100, 10, 900)
REFUSED = {
    "two adjacencies": Case(
        lambda: rdp.rdp_curve(Composed(((RELEASE, 1), (replace_one(RELEASE), 1)))),
        "adjacency-mixed",
        None,
        ["add-or-remove", "replace-one"],
    ),
    "an event of nobody": Case(
        lambda: events.adjacency_of(Event()), "event-unknown", None, "Event"
    ),
    "an exchange in an event of nobody": Case(
        lambda: replace_one(PoissonSampled(0.5, Event())), "event-unknown", None, "Event"
    ),
    "an exchange that is sampled": Case(
        lambda: rdp.rdp_curve(PoissonSampled(0.5, replace_one(RELEASE))),
        "adjacency-unaccounted",
        "add-or-remove or zero-out",
        "replace-one",
    ),
    "a sampled composition": Case(
        lambda: rdp.rdp_curve(PoissonSampled(0.5, Composed(((RELEASE, 1),)))),
        "event-unknown",
        "one sum with additive noise",
        "Composed",
    ),
    "a rate of zero": Case(
        lambda: rdp.rdp_curve(PoissonSampled(0.0, RELEASE)),
        "parameter-out-of-range",
        "0 < rate <= 1",
        0.0,
    ),
    "a rate beyond 1": Case(
        lambda: rdp.rdp_curve(PoissonSampled(1.5, RELEASE)),
        "parameter-out-of-range",
        "0 < rate <= 1",
        1.5,
    ),
    "a variance of zero": Case(
        lambda: rdp.rdp_curve(SkellamRelease(1, 1, 0)), "parameter-out-of-range", "> 0", 0.0
    ),
    "a negative sensitivity": Case(
        lambda: rdp.rdp_curve(SkellamRelease(-1, 1, 1)), "parameter-out-of-range", ">= 0", -1.0
    ),
    "a sensitivity beyond floats": Case(
        lambda: rdp.rdp_curve(SkellamRelease(1, 10**400, 1)),
        "parameter-out-of-range",
        ">= 0",
        math.inf,
    ),
    "no shares": Case(
        lambda: rdp.rdp_curve(DiscreteGaussianSum(1, 1, 9, 0, 5)),
        "parameter-out-of-range",
        None,
        (1, 1, 9, 0, 5),
    ),
    "shares without end": Case(
        lambda: rdp.rdp_curve(DiscreteGaussianSum(1, 1, 9, 10**6 + 1, 5)),
        "parameter-out-of-range",
        None,
        (1, 1, 9, 10**6 + 1, 5),
    ),
    "a count below zero": Case(
        lambda: rdp.rdp_curve(Composed(((RELEASE, -1),))), "parameter-out-of-range", ">= 0", -1.0
    ),
    "a delta of zero": Case(
        lambda: rdp.epsilon_from_rdp({2: 1.0}, 0.0), "parameter-out-of-range", "0 < delta < 1", 0.0
    ),
    "a delta of one": Case(
        lambda: rdp.epsilon_from_rdp({2: 1.0}, 1.0), "parameter-out-of-range", "0 < delta < 1", 1.0
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], AccountingError)


@pytest.mark.parametrize(
    ("event", "named"),
    [
        (SkellamRelease(1, 1, -1), "noise variance must be positive"),
        (SkellamRelease(-1, 1, 1), "squared L2 sensitivity must be at least 0"),
        (SkellamRelease(1, -1, 1), "L1 sensitivity must be at least 0"),
        (DiscreteGaussianSum(1, 1, 0, 2, 5), "noise variance must be positive"),
        (DiscreteGaussianSum(-1, 1, 1, 2, 5), "squared L2 sensitivity must be at least 0"),
        (DiscreteGaussianSum(1, -1, 1, 2, 5), "L1 sensitivity must be at least 0"),
        (DiscreteGaussianSum(1, 1, 1, 2, 0), "length must be positive"),
        (GaussianRelease(0.0), "noise multiplier must be positive"),
        (Composed(((RELEASE, -1),)), "count must be at least 0"),
    ],
)
def test_the_parameter_that_is_out_of_range_is_named(event: Event, named: str) -> None:
    with pytest.raises(AccountingError) as caught:
        rdp.rdp_curve(event)
    assert caught.value.message == f"The {named} and finite."
    assert caught.value.found in (0.0, -1.0)
