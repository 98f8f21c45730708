"""Costs move the way they must."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dp.accounting.events import Composed, PoissonSampled, SkellamRelease
from dp.accounting.statements import epsilon_of

events = st.builds(
    lambda units, ratio: SkellamRelease(units**2, units**2, max(1, int(units * units * ratio))),
    st.integers(1, 1 << 20),
    st.floats(0.05, 100),
)
deltas = st.floats(1e-12, 1e-2)


@given(events, st.integers(1, 50), deltas)
@settings(max_examples=100, deadline=None)
def test_more_releases_cost_more(event: SkellamRelease, count: int, delta: float) -> None:
    one = epsilon_of(Composed(((event, count),)), delta)
    assert epsilon_of(Composed(((event, count + 1),)), delta) >= one


@given(events, st.integers(1, 1 << 30), deltas)
@settings(max_examples=100, deadline=None)
def test_more_noise_costs_less(event: SkellamRelease, extra: int, delta: float) -> None:
    quieter = SkellamRelease(event.l2_squared, event.l1, event.variance + extra)
    assert epsilon_of(quieter, delta) <= epsilon_of(event, delta)


@given(events, deltas)
@settings(max_examples=100, deadline=None)
def test_a_smaller_delta_costs_more(event: SkellamRelease, delta: float) -> None:
    assert epsilon_of(event, delta / 2) >= epsilon_of(event, delta)


@given(events, st.floats(1e-4, 1), st.integers(1, 20), deltas)
@settings(max_examples=40, deadline=None)
def test_sampling_never_costs(event: SkellamRelease, rate: float, count: int, delta: float) -> None:
    sampled = epsilon_of(Composed(((PoissonSampled(rate, event), count),)), delta)
    whole = epsilon_of(Composed(((event, count),)), delta)
    assert sampled <= whole
