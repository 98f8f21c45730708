"""What a plan says of the integer grid, against continuous noise computed here."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from dp.errors import AccountingError
from dp.planning import epsilon as plans
from dp.planning.gaussian import exact_epsilon
from dp.planning.task import plan_task
from tests.kits.said import Case, refused

ROUNDS, DELTA = 20, 1e-6


def continuous(multiplier: float) -> float:
    """Least epsilon of composed Gaussian releases over integer orders (Canonne, Kamath, Steinke
    2020, proposition 12), without any slack for a sampler."""
    found = math.inf
    for order in range(2, 2000):
        divergence = ROUNDS * order / (2 * multiplier**2)
        tail = math.log(1 / (DELTA * order)) / (order - 1) + math.log1p(-1 / order)
        found = min(found, divergence + tail)
    return found


@pytest.mark.parametrize("mechanism", ["skellam", "discrete-gaussian"])
@pytest.mark.parametrize("unit", ["device", "example"])
@pytest.mark.parametrize("length", [16, 4096, 1_000_000])
@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_grid_costs_next_to_nothing(
    mechanism: Literal["skellam", "discrete-gaussian"],
    unit: Literal["device", "example"],
    length: int,
    epsilon: float,
) -> None:
    plan = plan_task(
        population=100,
        cohort=100,
        rounds=ROUNDS,
        epsilon=epsilon,
        delta=DELTA,
        length=length,
        unit=unit,
        mechanism=mechanism,
    )
    honest = plan.survivors_min - 10  # a tenth may be corrupt, and adds nothing
    reached = math.sqrt(plan.share_variance * honest) / plan.clip_units
    assert reached == pytest.approx(plan.noise_multiplier, rel=1e-3)
    if mechanism == "discrete-gaussian":
        ideal, grid = continuous(reached), 2e-6
    else:  # of which 1.5 sqrt(variance) is lost
        ideal, grid = exact_epsilon(reached, ROUNDS, DELTA), 2 / math.sqrt(plan.share_variance)
    assert ideal <= plan.epsilon <= ideal * (1 + grid)
    assert 0 <= plan.grid_epsilon <= grid * plan.epsilon


def test_a_coarse_statement_costs_more_on_the_grid() -> None:
    """With little noise per unit the terms of Skellam show, and the plan says so."""
    plan = plan_task(
        population=100,
        cohort=100,
        rounds=ROUNDS,
        epsilon=50.0,
        delta=DELTA,
        length=16,
        unit="example",
    )
    assert plan.grid_epsilon > 1e-3 * plan.epsilon


REFUSED = {
    "a plan without rounds": Case(
        lambda: plans.plan_epsilon(1.0, 0, 1e-5), "parameter-out-of-range", "1..10^7", 0
    ),
    "a plan of ten million and one": Case(
        lambda: plans.plan_epsilon(1.0, 10**7 + 1, 1e-5),
        "parameter-out-of-range",
        "1..10^7",
        10**7 + 1,
    ),
    "a plan at no rate": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, 0.0),
        "parameter-out-of-range",
        "0 < rate <= 1",
        0.0,
    ),
    "a plan at twice the rate": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, 2.0),
        "parameter-out-of-range",
        "0 < rate <= 1",
        2.0,
    ),
    "a plan at delta one": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1.0), "parameter-out-of-range", "0..1", 1.0
    ),
    "a plan without coordinates": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, length=0),
        "parameter-out-of-range",
        f"1 to {1 << 40}",
        0,
    ),
    "a plan too long": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, length=(1 << 40) + 1),
        "parameter-out-of-range",
        f"1 to {1 << 40}",
        math.inf,
    ),
    "a plan of no mechanism": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, 1.0, "laplace"),
        "mechanism-unknown",
        ["gaussian", "discrete-gaussian", "skellam"],
        "laplace",
    ),
    "a plan of no adjacency": Case(
        lambda: plans.plan_epsilon(1.0, 1, 1e-5, adjacency="edit"),
        "adjacency-unknown",
        ["add-or-remove", "zero-out", "replace-one"],
        "edit",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], AccountingError)
