"""Every refusal of accounts and plans speaks: a stable reason, a sentence, both values."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from benchmarks import correlated
from dp.accounting import events, rdp, statements
from dp.accounting.budget import Account
from dp.accounting.events import (
    Composed,
    DiscreteGaussianSum,
    Event,
    GaussianRelease,
    PoissonSampled,
    SkellamRelease,
    replace_one,
)
from dp.accounting.statements import ReleaseFacts
from dp.contracts import BudgetSpec
from dp.errors import AccountingError, BudgetError
from dp.noise import removable
from dp.planning import epsilon as plans
from dp.planning import gaussian
from secagg.errors import ConfigurationError, LocalProtocolError, SecaggError
from tests.kits.refusals import NO_LIMIT, Case, device_level, in_parts
from tests.kits.tasks import built

RELEASE = SkellamRelease(100, 10, 900)
RANGE, UNKNOWN = "parameter-out-of-range", "event-unknown"
CONFIG, LOCAL = ConfigurationError, LocalProtocolError


def guaranteed(survivors: int, masking_set: int = 0) -> Callable[[], int]:
    facts = ReleaseFacts(survivors=survivors, masking_set_size=masking_set)
    return lambda: statements.guaranteed_variance(in_parts(), facts)


def spent(epsilon: float | None, releases_max: int = 4) -> Callable[[], object]:
    """A second release of a task, with a budget for one."""
    manifest = built(budget=BudgetSpec(max_epsilon=None, releases_max=releases_max))

    def call() -> object:
        return Account(delta=1e-5, max_epsilon=epsilon).spend("a", manifest).reserve("b", manifest)

    return call


def another_task() -> object:
    account = Account(delta=1e-5).reserve("a", built())
    return account.spend("a", built(task="other"))


CASES = {
    "no noise in the ring": Case(
        lambda: statements.guaranteed_variance(
            built(algorithm="fedavg", budget=NO_LIMIT), ReleaseFacts(survivors=4)
        ),
        "noise-missing",
    ),
    "too few survivors": Case(guaranteed(4), "survivors-too-few", (5, 10), 4),
    "too many survivors": Case(guaranteed(11), "survivors-too-many", (5, 10), 11),
    "more survivors than vectors": Case(guaranteed(7, 6), "masking-set-size", "at least 7", 6),
    "a masking set too large": Case(guaranteed(7, 11), "masking-set-size", (5, 10), 11),
    "a masking set too small": Case(
        lambda: removable.share_levels(in_parts().noise, in_parts().cohort, 4),
        "masking-set-size",
        (5, 10),
        4,
    ),
    "no local noise": Case(lambda: statements.local_step(device_level()), "privacy-missing"),
    "no noise": Case(lambda: statements.checked_multiplier(0.0), RANGE, "> 0, at most 1e+06", 0.0),
    "a negative count of releases": Case(lambda: statements.lines(built(), -1), RANGE),
    "a distance beyond 1": Case(
        lambda: statements.epsilon_of(RELEASE, 1e-5, 0.1), RANGE, "log2 at most 0", 0.1
    ),
    "two adjacencies": Case(
        lambda: rdp.rdp_curve(Composed(((RELEASE, 1), (replace_one(RELEASE), 1)))),
        "adjacency-mixed",
        None,
        ["add-or-remove", "replace-one"],
    ),
    "an event of nobody": Case(lambda: events.adjacency_of(Event()), UNKNOWN, None, "Event"),
    "an exchange in an event of nobody": Case(
        lambda: replace_one(PoissonSampled(0.5, Event())), UNKNOWN, None, "Event"
    ),
    "an exchange that is sampled": Case(
        lambda: rdp.rdp_curve(PoissonSampled(0.5, replace_one(RELEASE))),
        "adjacency-unaccounted",
        "add-or-remove or zero-out",
        "replace-one",
    ),
    "a sampled composition": Case(
        lambda: rdp.rdp_curve(PoissonSampled(0.5, Composed(((RELEASE, 1),)))),
        UNKNOWN,
        "one sum with additive noise",
        "Composed",
    ),
    "rows that are sampled": Case(
        lambda: correlated.whole_release((1,), 4, 1, 1, PoissonSampled(0.5, RELEASE)),
        UNKNOWN,
        None,
        "PoissonSampled",
    ),
    "a rate of zero": Case(
        lambda: rdp.rdp_curve(PoissonSampled(0.0, RELEASE)), RANGE, "0 < rate <= 1", 0.0
    ),
    "a rate beyond 1": Case(
        lambda: rdp.rdp_curve(PoissonSampled(1.5, RELEASE)), RANGE, "0 < rate <= 1", 1.5
    ),
    "a variance of zero": Case(lambda: rdp.rdp_curve(SkellamRelease(1, 1, 0)), RANGE, "> 0", 0.0),
    "a negative sensitivity": Case(
        lambda: rdp.rdp_curve(SkellamRelease(-1, 1, 1)), RANGE, ">= 0", -1.0
    ),
    "a sensitivity beyond floats": Case(
        lambda: rdp.rdp_curve(SkellamRelease(1, 10**400, 1)), RANGE, ">= 0", math.inf
    ),
    "no shares": Case(
        lambda: rdp.rdp_curve(DiscreteGaussianSum(1, 1, 9, 0, 5)), RANGE, None, (1, 1, 9, 0, 5)
    ),
    "shares without end": Case(
        lambda: rdp.rdp_curve(DiscreteGaussianSum(1, 1, 9, 10**6 + 1, 5)),
        RANGE,
        None,
        (1, 1, 9, 10**6 + 1, 5),
    ),
    "a count below zero": Case(
        lambda: rdp.rdp_curve(Composed(((RELEASE, -1),))), RANGE, ">= 0", -1.0
    ),
    "a delta of zero": Case(
        lambda: rdp.epsilon_from_rdp({2: 1.0}, 0.0), RANGE, "0 < delta < 1", 0.0
    ),
    "a delta of one": Case(
        lambda: rdp.epsilon_from_rdp({2: 1.0}, 1.0), RANGE, "0 < delta < 1", 1.0
    ),
    "a Gaussian without noise": Case(
        lambda: gaussian.exact_epsilon(0.0, 1, 1e-5), RANGE, "0 < value < inf", 0.0
    ),
    "a Gaussian without rounds": Case(
        lambda: gaussian.exact_epsilon(1.0, 0, 1e-5), RANGE, "0 < value <= 1000000000", 0.0
    ),
    "a Gaussian at delta one": Case(
        lambda: gaussian.exact_epsilon(1.0, 1, 1.0), RANGE, "0 < value < 1", 1.0
    ),
    "a Gaussian at twice the rate": Case(
        lambda: gaussian.pld_epsilon(1.0, 1, 1e-5, 2.0), RANGE, "0 < value <= 1", 2.0
    ),
    "Renyi of a sampled exchange": Case(
        lambda: gaussian.rdp_epsilon(1.0, 1, 1e-5, 0.5, "replace-one"),
        "adjacency-unaccounted",
        "add-or-remove or zero-out",
        "replace-one",
    ),
    "a plan without rounds": Case(lambda: plans.plan_epsilon(1.0, 0, 1e-5), RANGE, "1..10^7", 0),
    "a plan of ten million and one": Case(
        lambda: plans.plan_epsilon(1.0, 10**7 + 1, 1e-5), RANGE, "1..10^7", 10**7 + 1
    ),
    "a plan at no rate": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, 0.0), RANGE, "0 < rate <= 1", 0.0
    ),
    "a plan at twice the rate": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, 2.0), RANGE, "0 < rate <= 1", 2.0
    ),
    "a plan at delta one": Case(lambda: plans.plan_epsilon(1.0, 1, 1.0), RANGE, "0..1", 1.0),
    "a plan without coordinates": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, length=0), RANGE, f"1 to {1 << 40}", 0
    ),
    "a plan too long": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, length=(1 << 40) + 1),
        RANGE,
        f"1 to {1 << 40}",
        math.inf,
    ),
    "a plan of no mechanism": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, 1.0, "laplace"),  # type: ignore[arg-type]
        "mechanism-unknown",
        ["gaussian", "discrete-gaussian", "skellam"],
        "laplace",
    ),
    "a plan of no adjacency": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, adjacency="edit"),  # type: ignore[arg-type]
        "adjacency-unknown",
        ["add-or-remove", "zero-out", "replace-one"],
        "edit",
    ),
    "a band of none": Case(lambda: correlated.prefix_coefficients(0), RANGE, "1 to 16", 0),
    "a band of 17": Case(lambda: correlated.prefix_coefficients(17), RANGE, "1 to 16", 17),
    "more coefficients than rounds": Case(
        lambda: correlated.squared_sensitivity((1,) * 9, 8, 1, 1), RANGE, None, ([1] * 8, 8, True)
    ),
    "rounds without end": Case(
        lambda: correlated.l1_sensitivity((1,), 1 << 30, 0, 1), RANGE, None, ([1], 2**20 + 1, False)
    ),
    "coefficients that rise": Case(
        lambda: correlated.squared_sensitivity((*range(1, 10),), 100, 50, 1),
        "sensitivity-unknown",
        "at most 200000 sets of rounds, coefficients that fall, or at most 1 coefficients",
        [1, 2, 3, 4, 5, 6, 7, 8],
    ),
    "releases that are used up": Case(
        spent(None, 1), "releases-exhausted", "at most 1", 2, BudgetError
    ),
    "a cohort of another task": Case(another_task, "cohort-mismatch", "demo", "other", BudgetError),
    "a refund": Case(
        lambda: Account(delta=1e-5).spend("a", built()).cancel("a"),
        "charge-final",
        None,
        "a",
        BudgetError,
    ),
    "an account of no JSON": Case(
        lambda: Account.from_json(b"{"), "account-malformed", None, None, BudgetError
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_refusal_says_what_was_expected_and_what_was_found(case: Case) -> None:
    with pytest.raises(SecaggError) as caught:
        case.call()
    error = caught.value
    assert type(error) is case.error
    assert error.message.endswith(".")
    assert (error.reason, error.expected, error.found) == (case.reason, case.expected, case.found)


def test_a_budget_that_is_used_up_says_what_the_next_release_would_cost() -> None:
    manifest = built(budget=NO_LIMIT)
    twice = Account(delta=1e-5).spend("a", manifest).spend("b", manifest).epsilon("example")
    with pytest.raises(BudgetError) as caught:
        spent(math.nextafter(twice, 0))()
    error = caught.value
    assert (error.reason, error.found) == ("budget-exhausted", 4.8038)
    assert error.expected == f"epsilon <= {math.nextafter(twice, 0)!r}"
    assert 4.80375 - 5e-5 < twice < 4.80375  # what is nearer would be lower
    assert spent(twice)() is not None  # to the last


def test_an_accountant_that_finds_no_number_says_so() -> None:
    """No distribution holds so much loss: the library's overflow becomes a typed error."""
    assert rdp.rdp_curve(GaussianRelease(1e-160))[2] == math.inf
    with pytest.raises(AccountingError) as caught:
        gaussian.pld_epsilon(1e-160, 1, 1e-5)
    error = caught.value
    assert (error.reason, error.expected, error.found) == ("accountant-failed", None, None)


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
    assert caught.value.message == f"{named} and finite."
    assert caught.value.found in (0.0, -1.0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0.0, 1, 1e-5, 1.0), "The noise multiplier is out of range."),
        ((1.0, 10**9 + 1, 1e-5, 1.0), "The number of rounds is out of range."),
        ((1.0, 1, 0.0, 1.0), "The delta is out of range."),
        ((1.0, 1, 1e-5, 0.0), "The sampling rate is out of range."),
    ],
)
def test_the_parameter_of_a_gaussian_is_named(arguments: tuple, named: str) -> None:
    for accountant in (gaussian.pld_epsilon, gaussian.rdp_epsilon):
        with pytest.raises(AccountingError) as caught:
            accountant(*arguments)
        assert caught.value.message == named
    assert gaussian.exact_epsilon(1e6, 10**9, 0.5) == 0.0  # a billion rounds are admitted


def test_a_sampled_exchange_is_accounted_by_the_distributions() -> None:
    whole = gaussian.exact_epsilon(1.0, 1, 1e-5, "replace-one")
    pld = gaussian.pld_epsilon(1.0, 1, 1e-5, 0.5, "replace-one")
    found = gaussian.gaussian_epsilon(1.0, 1, 1e-5, 0.5, "replace-one")
    assert found == min((whole, gaussian.ACCOUNTANT_EXACT), (pld, gaussian.ACCOUNTANT_PLD))
    assert gaussian.exact_epsilon(1.0, 4, 1e-5) == gaussian.exact_epsilon(0.5, 1, 1e-5)
    assert gaussian.exact_epsilon(2.0, 1, 1e-5, "replace-one") == (
        gaussian.exact_epsilon(1.0, 1, 1e-5, "zero-out")
    )
    assert gaussian.rdp_epsilon(2.0, 3, 1e-5, 1.0, "replace-one") == (
        gaussian.rdp_epsilon(1.0, 3, 1e-5)
    )
    exchanged = gaussian.pld_epsilon(2.0, 1, 1e-5, 1.0, "replace-one")
    assert exchanged == pytest.approx(gaussian.exact_epsilon(1.0, 1, 1e-5), rel=1e-3)
