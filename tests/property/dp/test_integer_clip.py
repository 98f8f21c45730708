"""The integer clip holds exactly, whatever comes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dp.noise.quantisation import round_stochastically, squared_norm, to_units
from dp.noise.stream import BitStream
from secagg.errors import LocalProtocolError
from tests.kits.tasks import seeded

vectors = hnp.arrays(
    np.float64,
    st.integers(1, 60),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=64),
)


@given(vectors, st.integers(1, 1 << 40), st.integers(1, 1 << 30), st.integers(0, 100))
@settings(max_examples=300, deadline=None)
def test_integer_norm_never_exceeds_the_clip(
    values: np.ndarray, scale: int, bound: int, seed: int
) -> None:
    units = to_units(values, scale, bound, seeded(seed))
    assert units.dtype == np.int64
    assert sum(int(u) ** 2 for u in units) <= bound**2


@given(
    hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(-3, 3)),
    st.integers(0, 100),
)
@settings(max_examples=200, deadline=None)
def test_rounding_moves_each_coordinate_by_less_than_one(values: np.ndarray, seed: int) -> None:
    rounded = round_stochastically(values * 100, BitStream(seeded(seed)))
    assert (np.abs(rounded - values * 100) < 1).all()


@given(hnp.arrays(np.int64, st.integers(0, 40), elements=st.integers(-(1 << 62), 1 << 62)))
@settings(max_examples=300)
def test_squared_norm_is_exact_or_refused(values: np.ndarray) -> None:
    exact = sum(int(v) ** 2 for v in values)
    found = squared_norm(values)
    if found is None:
        assert exact >= 1 << 60
    else:
        assert found == exact


def test_rounding_is_unbiased() -> None:
    values = np.full(200_000, 0.3)
    rounded = round_stochastically(values, BitStream(seeded(5)))
    assert set(np.unique(rounded)) == {0, 1}
    assert rounded.mean() == pytest.approx(0.3, abs=0.005)
    negative = round_stochastically(-values, BitStream(seeded(6)))
    assert negative.mean() == pytest.approx(-0.3, abs=0.005)


def test_short_vectors_pass_without_distortion() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    values *= 0.5 / np.linalg.norm(values)
    total = np.zeros(10_000)
    for seed in range(40):
        total += to_units(values, 2048, 2048, seeded(seed))
    assert np.linalg.norm(total / 40 / 2048 - values) < 3 * (10_000 / 4 / 40) ** 0.5 / 2048


def test_long_vectors_keep_their_direction_and_nearly_the_clip() -> None:
    values = np.random.default_rng(0).normal(size=92_160)
    units = to_units(values, 8192, 8192, seeded())
    cosine = units @ values / np.linalg.norm(units) / np.linalg.norm(values)
    assert cosine > 0.999
    assert 0.998 * 8192 < np.linalg.norm(units) <= 8192


@pytest.mark.parametrize("values", [[np.nan], [np.inf, 1.0]])
def test_values_that_are_not_finite_are_refused(values: list[float]) -> None:
    with pytest.raises(LocalProtocolError, match="values-not-finite"):
        to_units(np.array(values), 1, 1, seeded())


def test_a_grid_too_coarse_for_any_signal_still_ends() -> None:
    assert sum(to_units(np.ones(5000), 1, 1, seeded()) ** 2) <= 1
