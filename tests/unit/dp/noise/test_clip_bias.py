"""How much shorter the exact integer clip makes a vector, measured on the grids that tasks have."""

from __future__ import annotations

import pytest

from dp.noise.grid import clip_units, scale_for
from dp.noise.quantisation import clip_bias
from tests.kits.tasks import seeded

LENGTHS = (1_000, 4_096, 10_000, 100_000, 1_000_000)
STANDARD_ERROR = 4e-5


def bound_of(length: int) -> int:
    return clip_units(1.0, scale_for(1.0, length, noisy=True))


@pytest.mark.parametrize("relative_norm", [1.0, 10.0])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_vector_at_the_clip_or_beyond_loses_less_than_a_thousandth(
    length: int, relative_norm: float
) -> None:
    bound = bound_of(length)
    bias = clip_bias(length, bound, seeded(length), relative_norm=relative_norm)
    # It is never lengthened, and what is left out before rounding is d / (8 D^2) at least.
    assert -1e-3 < bias < -length / (8 * bound**2) + 4 * STANDARD_ERROR


@pytest.mark.parametrize("length", LENGTHS)
def test_a_shorter_vector_keeps_its_length_on_average(length: int) -> None:
    bias = clip_bias(length, bound_of(length), seeded(length), relative_norm=0.99)
    assert bias == pytest.approx(0.0, abs=4 * STANDARD_ERROR)


def test_a_finer_grid_has_less_of_it() -> None:
    """At 16 times as many units the shortening vanishes; the shrinking by 0.1 % is left."""
    coarse = clip_bias(4_096, 1_024, seeded(1))
    fine = clip_bias(4_096, 1_024 * 16, seeded(1))
    assert coarse < 3 * fine < 0


def test_beyond_what_is_measured_it_is_the_shortening_alone() -> None:
    length = (1 << 20) + 1
    bound = bound_of(length)
    assert clip_bias(length, bound, seeded()) == pytest.approx(-length / (8 * bound**2), rel=1e-3)
