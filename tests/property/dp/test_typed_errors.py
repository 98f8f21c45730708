"""Whatever numbers come: a cost that is a number, or a typed error; never NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp.accounting.budget import Account, charges_of
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
from dp.accounting.rdp import epsilon_from_rdp, rdp_curve
from dp.accounting.statements import (
    ReleaseFacts,
    epsilon_of,
    guaranteed_variance,
    lines,
    local_step,
    slack_log2,
)
from dp.contracts import BudgetSpec
from dp.empirical_audit import epsilon_lower_bound, guess_probability
from dp.noise.grid import clip_units, equalised_scales, scale_for
from dp.planning.epsilon import plan_epsilon
from dp.planning.gaussian import exact_epsilon, gaussian_epsilon, pld_epsilon, rdp_epsilon
from secagg.errors import SecaggError
from tests.kits.tasks import built

reals = st.one_of(
    st.sampled_from(
        [0.0, -0.0, -1.0, 5e-324, 1e-300, 1e-9, 0.5, 1.0, 1.0 - 2**-53, 1e9, 1e300, math.inf]
    ),
    st.just(math.nan),
    st.floats(),
)
integers = st.one_of(
    st.integers(-3, 3), st.integers(-(10**3), 10**9), st.sampled_from([2**63, 10**40, 10**400])
)
adjacencies = st.sampled_from(["add-or-remove", "zero-out", "replace-one"])
releases = st.one_of(
    st.builds(SkellamRelease, integers, integers, integers, adjacencies),
    st.builds(DiscreteGaussianSum, integers, integers, integers, integers, integers, adjacencies),
    st.builds(DiscreteGaussianRelease, reals, adjacencies),
    st.builds(GaussianRelease, reals, adjacencies),
)
events = st.recursive(
    releases,
    lambda inner: st.one_of(
        st.builds(PoissonSampled, reals, inner),
        st.builds(Composed, st.lists(st.tuples(inner, integers), max_size=3).map(tuple)),
    ),
    max_leaves=3,
)


def cost(call: Callable[..., Any], *arguments: Any, **named: Any) -> float | None:
    """The number, or None for a typed error."""
    try:
        found = call(*arguments, **named)
    except SecaggError:
        return None
    value = found[0] if isinstance(found, tuple) else found
    assert not math.isnan(value)
    assert value >= 0
    return float(value)


@given(events, reals, st.one_of(st.just(-math.inf), reals))
@settings(max_examples=300, deadline=None)
def test_any_event(event: Event, delta: float, slack: float) -> None:
    cost(epsilon_of, event, delta, slack)
    try:
        curve = rdp_curve(replace_one(event))
    except SecaggError:
        return
    assert all(value >= 0 for value in curve.values())
    cost(epsilon_from_rdp, curve, delta)


@given(
    reals,
    integers,
    reals,
    reals,
    st.sampled_from(["gaussian", "discrete-gaussian", "skellam", "laplace"]),
    integers,
    adjacencies,
)
@settings(max_examples=200, deadline=None)
def test_any_plan(
    z: float, rounds: int, delta: float, rate: float, mechanism: Any, length: int, adjacency: Any
) -> None:
    found = cost(
        plan_epsilon, z, rounds, delta, rate, mechanism, length=length, adjacency=adjacency
    )
    if not (0 < z < math.inf and 0 < delta < 1 and 0 < rate <= 1 and rounds >= 1):
        assert found is None


@given(reals, integers, reals, reals, adjacencies)
@settings(max_examples=200, deadline=None)
def test_any_gaussian(z: float, rounds: int, delta: float, rate: float, adjacency: Any) -> None:
    cost(exact_epsilon, z, rounds, delta, adjacency)
    cost(gaussian_epsilon, z, rounds, delta, rate, adjacency)
    cost(rdp_epsilon, z, rounds, delta, rate, adjacency)


@pytest.mark.parametrize("z", [math.nan, 0.0, -1.0, math.inf])
@pytest.mark.parametrize("call", [exact_epsilon, gaussian_epsilon, pld_epsilon, rdp_epsilon])
def test_impossible_gaussians_are_refused(call: Callable[..., Any], z: float) -> None:
    assert cost(call, z, 1, 1e-5) is None
    for rounds, delta in ((0, 1e-5), (-1, 1e-5), (1, 0.0), (1, 1.0), (1, math.nan)):
        assert cost(call, 1.0, rounds, delta) is None


@given(integers, integers, integers, st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_count_of_releases_and_survivors(
    releases_: int, survivors: int, members: int, removable: bool
) -> None:
    manifest = built()
    if removable:
        noise = msgspec.structs.replace(manifest.noise, removable_drops=(1, 2))
        manifest = msgspec.structs.replace(manifest, noise=noise)
    facts = ReleaseFacts(survivors=survivors, masking_set_size=members)
    for attempt in (
        lambda: [line.epsilon for line in lines(manifest, releases_)],
        lambda: [line.epsilon for line in lines(manifest, {facts: releases_})],
        lambda: [float(guaranteed_variance(manifest, facts))],
    ):
        try:
            found = attempt()
        except SecaggError:
            continue
        assert all(value >= 0 for value in found)
    assert not math.isnan(slack_log2(releases_))


@given(reals)
@settings(max_examples=100, deadline=None)
def test_any_noise_multiplier_of_a_local_step(z: float) -> None:
    manifest = built(algorithm="fedavg", budget=BudgetSpec(max_epsilon=None))
    assert manifest.example_privacy is not None
    changed = msgspec.structs.replace(manifest.example_privacy, noise_multiplier=z)
    cost(
        lambda: float(
            local_step(msgspec.structs.replace(manifest, example_privacy=changed)).variance
        )
    )


@given(reals, st.integers(1, 1 << 30), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_clip(clip: float, length: int, noisy: bool) -> None:
    cost(lambda: clip_units(clip, scale_for(clip, length, noisy=noisy)))
    cost(lambda: clip_units(clip, length))
    cost(lambda: max(equalised_scales([clip, 1.0], [length, 4])))


@given(integers, integers, integers)
@settings(max_examples=100, deadline=None)
def test_any_charge(survivors: int, masking_set: int, times: int) -> None:
    """An account charges a possible release and refuses any other with a type."""
    manifest = built()
    account = Account(delta=1e-5, max_epsilon=8.0)
    facts = ReleaseFacts(survivors=survivors, masking_set_size=masking_set)
    cost(lambda: account.spend("01", manifest, facts).epsilon("example"))
    cost(lambda: sum(charge.count for charge in charges_of(manifest, facts)))


@given(st.integers(-2, 40), st.integers(-2, 40), st.integers(-2, 40), reals, reals)
@settings(max_examples=200, deadline=None)
def test_any_audit(canaries: int, guesses: int, correct: int, delta: float, doubt: float) -> None:
    cost(epsilon_lower_bound, canaries, guesses, correct, delta, doubt)
    cost(guess_probability, canaries, guesses, correct, doubt, delta)
