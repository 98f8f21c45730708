"""Correlated noise of devices' own shares: what ADR 26 says of its cost, gain and lattice."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import correlated_silos
from benchmarks.correlated import noise_ratio, prefix_coefficients
from benchmarks.correlated_silos import (
    everyone_in_each,
    gain,
    numbered_by_device,
    numbered_by_releases,
    shares_by_size,
    worst_over_bound,
)

COHORTS = 9


def test_cohorts_that_change_stay_below_the_bound_and_a_full_one_attains_it() -> None:
    assert 0.9 < worst_over_bound(200) <= 1 + 1e-9
    assert everyone_in_each() == pytest.approx(1)


def test_without_a_condition_the_bound_is_exceeded() -> None:
    assert numbered_by_releases() > 1.2
    assert numbered_by_device() > 1.2
    assert shares_by_size() > 1.05


@pytest.mark.parametrize(("band", "rounds", "k"), [(2, 8, 4), (4, 16, 4), (16, 64, 4)])
def test_with_everyone_it_gains_what_the_matrices_do(band: int, rounds: int, k: int) -> None:
    expected = 1 / noise_ratio(prefix_coefficients(band), rounds, k, rounds // k)
    assert gain(band, rounds) == pytest.approx(expected)


def rounded(draws: list[Fraction], kept: list[list[bool]], band: list[Fraction]) -> list[int]:
    """m_t = round(z_t - sum of c_j m_(t - j)), over what is kept."""
    made: list[int] = []
    for t, draw in enumerate(draws):
        past = sum((band[t - s] * made[s] for s in range(t) if kept[t][s]), Fraction(0))
        made.append(round(draw - past + Fraction(1, 10**6)))  # a rule for halves
    return made


@given(
    st.lists(st.integers(-999, 999), min_size=COHORTS, max_size=COHORTS),
    st.lists(st.integers(-9, 9), min_size=COHORTS, max_size=COHORTS),
    st.integers(2, 4),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_integers_added_to_the_sum_are_a_shift_of_the_fresh_noise(
    draws: list[int], added: list[int], length: int, seed: int
) -> None:
    """Rounding does not stand between them, and the shift is at most c_j times what was added."""
    whole = prefix_coefficients(length)
    band = [Fraction(c, whole[0]) for c in whole] + [Fraction(0)] * COHORTS
    noise = [Fraction(draw, whole[0]) for draw in draws]
    kept = (np.random.default_rng(seed).random((COHORTS, COHORTS)) < 0.8).tolist()
    shift = [
        added[t] + sum((band[t - s] * added[s] for s in range(t) if kept[t][s]), Fraction(0))
        for t in range(COHORTS)
    ]
    moved = rounded([z + u for z, u in zip(noise, shift, strict=True)], kept, band)
    assert moved == [m + x for m, x in zip(rounded(noise, kept, band), added, strict=True)]
    assert all((u * whole[0]).denominator == 1 for u in shift)


def test_the_tables_of_the_decision_are_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    correlated_silos.main()
    adr = Path(__file__).parents[3] / "docs" / "adr" / "0026-correlated-noise-of-silos.md"
    table = [line for line in adr.read_text().splitlines() if line.startswith("|")]
    assert capsys.readouterr().out.splitlines() == table
