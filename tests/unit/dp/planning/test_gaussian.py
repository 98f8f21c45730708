"""Accountants of the continuous Gaussian: which one counts, and what they refuse."""

from __future__ import annotations

import math

import pytest

from dp.accounting import rdp
from dp.accounting.events import (
    GaussianRelease,
)
from dp.errors import AccountingError
from dp.planning import gaussian
from tests.kits.said import Case, refused

REFUSED = {
    "a Gaussian without noise": Case(
        lambda: gaussian.exact_epsilon(0.0, 1, 1e-5),
        "parameter-out-of-range",
        "0 < value < inf",
        0.0,
    ),
    "a Gaussian without rounds": Case(
        lambda: gaussian.exact_epsilon(1.0, 0, 1e-5),
        "parameter-out-of-range",
        "0 < value <= 1000000000",
        0.0,
    ),
    "a Gaussian at delta one": Case(
        lambda: gaussian.exact_epsilon(1.0, 1, 1.0), "parameter-out-of-range", "0 < value < 1", 1.0
    ),
    "a Gaussian at twice the rate": Case(
        lambda: gaussian.pld_epsilon(1.0, 1, 1e-5, 2.0),
        "parameter-out-of-range",
        "0 < value <= 1",
        2.0,
    ),
    "Renyi of a sampled exchange": Case(
        lambda: gaussian.rdp_epsilon(1.0, 1, 1e-5, 0.5, "replace-one"),
        "adjacency-unaccounted",
        "add-or-remove or zero-out",
        "replace-one",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], AccountingError)


def test_an_accountant_that_finds_no_number_says_so() -> None:
    """No distribution holds so much loss: the library's overflow becomes a typed error."""
    assert rdp.rdp_curve(GaussianRelease(1e-160))[2] == math.inf
    with pytest.raises(AccountingError) as caught:
        gaussian.pld_epsilon(1e-160, 1, 1e-5)
    error = caught.value
    assert (error.reason, error.expected, error.found) == ("accountant-failed", None, None)


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
