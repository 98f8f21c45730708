"""Tables, bounds and shares of the noise against their definitions, value by value."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import msgspec
import numpy as np
import pytest

from dp.contracts import BudgetSpec, CohortSpec
from dp.noise import sampling
from dp.noise.discrete_gaussian import exp_minus, gaussian_weights
from dp.noise.removable import (
    RemovablePart,
    Removed,
    drop_levels,
    kept_share,
    most_variance,
    remove_parts,
    share_levels,
)
from dp.noise.sampling import (
    binomial_tail_log2,
    examples_held_max,
    poisson_batch,
    skellam_weights,
    tail_bound,
    tail_log2,
)
from dp.noise.stream import BitStream
from dp.noise_meter import _ends
from secagg.limits import SLICE_LENGTH
from secagg.manifest import CohortRules, Noise
from secagg.secret import Secret
from tests.kits.tasks import built, seeded, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)
KEY = bytes(range(32))


def test_tails_are_chernoff_s_and_bounds_the_least() -> None:
    with mpmath.workdps(40):
        for variance, bound in ((1.0, 3.0), (900.0, 200.0), (2.0**30, 2.0**19), (5.0, 1e-3)):
            v, b = mpmath.mpf(variance), mpmath.mpf(bound)
            r = b / v
            exponent = v * (mpmath.sqrt(1 + r * r) - 1) - b * mpmath.asinh(r)
            exact = float(1 + exponent / mpmath.log(2))
            assert tail_log2(variance, bound) == pytest.approx(exact, rel=1e-9, abs=1e-12)
    assert tail_log2(5.0, 0.0) == tail_log2(5.0, -1.0) == 0.0
    assert tail_bound(1e-3, -1.0) == 1
    for variance in (1.0, 77.0, 1e6):
        for log2 in (-1.0, -40.0, -104.0):
            least = tail_bound(variance, log2)
            assert tail_log2(variance, least) <= log2 < tail_log2(variance, least - 1)


@pytest.mark.parametrize("variance", [1, 3, 50])
def test_weights_are_bessel_functions_up_to_the_cut(variance: int) -> None:
    weights = skellam_weights(variance)
    assert len(weights) == tail_bound(variance, -104.0) + 1
    with mpmath.workdps(60):
        for k in (0, 1, 2, len(weights) // 2, len(weights) - 1):
            exact = mpmath.besseli(k, variance) / mpmath.besseli(0, variance)
            found = mpmath.mpf(weights[k]) / weights[0]
            assert abs(found / exact - 1) < mpmath.mpf(2) ** -100


@pytest.mark.parametrize("sigma_squared", [1, 2, 300])
def test_gaussian_weights_are_exponentials_up_to_the_cut(sigma_squared: int) -> None:
    weights = gaussian_weights(sigma_squared)
    reach = len(weights) - 1
    with mpmath.workdps(100):
        # 2 exp(-b^2 / (2 s)) is first below 2^-104 where b^2 exceeds 210 s log 2.
        assert (reach - 1) ** 2 <= math.ceil(210 * sigma_squared * math.log(2)) < reach**2
        for k in (0, 1, 2, reach // 2):
            exact = mpmath.exp(-mpmath.mpf(k * k) / (2 * sigma_squared))
            assert abs(mpmath.mpf(weights[k]) / 2**288 / exact - 1) < mpmath.mpf(2) ** -150
        for numerator, denominator in ((0, 1), (1, 3), (1, 1)):
            exact = mpmath.exp(-mpmath.mpf(numerator) / denominator) * 2**288
            assert abs(exp_minus(numerator, denominator) - exact) < 4


@pytest.mark.parametrize(
    ("variance", "parts"),
    [
        (1, [(1, 1)]),
        (1 << 30, [(1 << 30, 1)]),
        ((1 << 30) + 1, [((1 << 29) + 1, 1), (1 << 29, 1)]),
        (16 << 30, [(1 << 30, 16)]),
        ((16 << 30) + 1, [((1 << 33) + 1, 1), (1 << 33, 1)]),
        (3 << 34, [(1 << 34, 3)]),
        (1 << 46, [(1 << 34, 1 << 12)]),
    ],
)
def test_a_large_variance_is_split_into_the_fewest_parts(
    variance: int, parts: list[tuple[int, int]]
) -> None:
    assert sampling._parts(variance) == parts


@pytest.mark.parametrize("rate", [2**-11, 0.25, 0.3, 0.999])
def test_a_coin_is_a_uniform_below_the_rate(rate: float) -> None:
    uniforms = BitStream(lambda _: KEY).uint64(5000).tolist()
    threshold = int(Fraction(rate) * 2**64)
    expected = [n for n, value in enumerate(uniforms) if value < threshold]
    batch = poisson_batch(5000, rate, lambda _: KEY)
    assert batch.tolist() == expected
    assert batch.dtype == np.int64
    assert poisson_batch(0, rate, seeded()).tolist() == []
    assert poisson_batch(3, 1.0, seeded()).tolist() == [0, 1, 2]


def test_overruns_have_chernoff_s_probability_and_the_most_is_held() -> None:
    def divergence(a: float, p: float) -> float:
        return a * math.log2(a / p) + (0.0 if a == 1 else (1 - a) * math.log2((1 - a) / (1 - p)))

    for count, rate, above in ((100, 0.1, 30), (50, 0.25, 20), (10, 0.5, 9)):
        exact = -count * divergence((above + 1) / count, rate)
        assert binomial_tail_log2(count, rate, above) == pytest.approx(exact, rel=1e-12)
    assert binomial_tail_log2(10, 0.5, 10) == -math.inf
    assert binomial_tail_log2(10, 0.0, 5) == -math.inf
    assert binomial_tail_log2(10, 0.5, 4) == 0.0  # the mean is not an overrun
    assert binomial_tail_log2(10, 0.51, 5) < 0.0
    for most, rate, log2 in ((256, 0.25, -80.0), (30, 0.9, -80.0), (10, 0.01, -20.0)):
        held = examples_held_max(most, rate, log2)
        assert binomial_tail_log2(held, rate, most) <= log2
        assert binomial_tail_log2(held + 1, rate, most) > log2
    assert examples_held_max(256, 0.25) == examples_held_max(256, 0.25, -80.0)
    assert examples_held_max(7, 1.0) == 7
    assert examples_held_max(1, 0.25) == 1


def rules(size_max: int, survivors_min: int, silent: int) -> tuple[Noise, CohortRules]:
    cohort = CohortSpec(
        size_min=survivors_min + 1,
        size_max=size_max,
        survivors_min=survivors_min,
        silent_max=silent,
    )
    manifest = built(
        statistics(("x", 50, 1.0), device_noise_multiplier=1.0, cohort=cohort, budget=NO_LIMIT)
    )
    return manifest.noise, manifest.cohort


@pytest.mark.parametrize("drops", [(), (5,), (2, 5), (1, 2, 3, 5)])
@pytest.mark.parametrize("silent", [1, 2])
def test_shares_and_the_most_that_is_opened_by_counting(
    drops: tuple[int, ...], silent: int
) -> None:
    noise, cohort = rules(10, 5, silent)
    noise = msgspec.structs.replace(noise, removable_drops=drops)
    target, most = noise.share_variance * noise.honest_min, 0
    for members in range(5, 11):
        for survivors in range(5, members + 1):
            lost = members - survivors
            kept = noise.share_variance
            if drops:
                level = next(t for t in (0, *drops) if lost <= t)
                allowed = min(level, members - 5)
                kept = math.ceil(Fraction(target, members - silent - allowed))
            assert kept_share(noise, cohort, members, survivors) == kept
            assert kept * (survivors - silent) >= target
            most = max(most, kept * survivors)
        levels = share_levels(noise, cohort, members)
        assert len(levels) == 1 + len(drops)
        assert list(levels) == sorted(levels)
    if not drops:
        most = noise.share_variance * 10
    assert most_variance(noise, cohort) == most


def test_levels_of_drop_outs() -> None:
    assert drop_levels(9) == (3, 6, 9)
    assert drop_levels(5) == (2, 4, 5)
    assert drop_levels(2) == (1, 2)
    assert drop_levels(0) == ()
    assert drop_levels(10, 4) == (3, 5, 8, 10)


@pytest.mark.parametrize("bound", [0.0, 1000.0, 3000.0, 1e9])
@pytest.mark.parametrize(
    "taken", [None, Removed(0, 0.0), Removed(400, -1e6), Removed(400, -1e9), Removed(400, 1e9)]
)
def test_the_meter_s_ends_solve_their_inequalities(bound: float, taken: Removed | None) -> None:
    length, sigmas = 10_000, 8.0
    data = np.full(length, 30, np.int64)
    energy = 900.0 * length
    if taken is not None:
        energy += min(0.0, taken.product + sigmas * math.sqrt(taken.variance * energy))
        energy = max(energy, 0.0)
    spread = sigmas * math.sqrt(2 / length) + 3 * sigmas**2 / length
    low, high = _ends(data, bound, taken)
    assert high * (length * (1 - spread) - sigmas**2) == pytest.approx(energy, rel=1e-12)
    if low:
        explained = bound**2 + 2 * sigmas * bound * math.sqrt(low) + (1 + spread) * length * low
        assert explained == pytest.approx(energy, rel=1e-9)
    else:
        assert bound**2 >= energy
    assert (low == 0.0) == (bound**2 >= energy)


def test_a_vector_too_short_is_not_measured() -> None:
    """The spread of eight deviations is a half at about 1,300 coordinates."""

    def spread(length: int) -> float:
        return 8 * math.sqrt(2 / length) + 192 / length

    least = next(n for n in range(1, 2000) if spread(n) < 0.5)
    assert _ends(np.ones(least - 1, np.int64), 1.0, None) is None
    assert _ends(np.ones(least, np.int64), 1.0, None) is not None


def test_ties_of_the_high_bits_are_walked_row_by_row() -> None:
    """Rows 1 to 4 differ in their low bits alone; a uniform lies below the first row above it."""
    high = np.array([1 << 60, 5 << 60, 5 << 60, 5 << 60, 5 << 60, 9 << 60], np.uint64)
    low = np.array([0, 10, 20, 30, 40, 7], np.uint64)
    table = sampling.NoiseTable(high, low)
    lows = [0, 9, 10, 19, 20, 25, 30, 39, 40, 41]
    found = sampling.look_up(
        table, np.full(10, 5 << 60, np.uint64), lambda count: np.array(lows[:count], np.uint64)
    )
    assert found.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    last = sampling.look_up(
        table, np.full(2, 9 << 60, np.uint64), lambda count: np.array([6, 7], np.uint64)
    )
    assert last.tolist() == [5, 6]
    between = np.array([0, (1 << 60) + 1, (9 << 60) + 1, (1 << 64) - 1], np.uint64)
    found = sampling.look_up(table, between, lambda count: np.zeros(count, np.uint64))
    assert found.tolist() == [0, 1, 6, 6]


def test_a_table_has_thresholds_of_128_bits() -> None:
    weights = [5, 3, 2, 1]
    table = sampling.cumulative_table(weights)
    assert table.high.dtype == table.low.dtype == np.uint64
    for k in range(3):
        exact = (2 * sum(weights[: k + 1]) - 5) * 2**128 // (2 * 11 - 5)
        assert (int(table.high[k]) << 64) + int(table.low[k]) == exact
    assert len(table.high) == 3
    assert table.bounded.tolist() == [*table.high.tolist(), 2**64 - 1]


def test_a_tie_of_a_drawn_coordinate_is_decided_by_its_low_bits() -> None:
    """A table made around the stream's own first number: its low bits are the second one."""
    first, second = (int(x) for x in BitStream(lambda _: KEY).uint64(2))
    for low, magnitude in ((second + 1, 0), (second, 1)):
        table = sampling.NoiseTable(np.array([first], np.uint64), np.array([low], np.uint64))
        values = np.zeros(1, np.int64)
        sampling.add_from_table(values, table, BitStream(lambda _: KEY))
        assert abs(int(values[0])) == magnitude


def test_an_empty_range_takes_nothing_off() -> None:
    lanes = np.zeros(9, "<u4")
    assert remove_parts(lanes, (), 24, 0, 0) == 0.0
    assert remove_parts(lanes, (), 24, 0, 9) == 0.0
    assert not lanes.any()


def test_what_was_taken_off_is_measured_over_all_slices() -> None:
    rng = np.random.default_rng(5)
    payload = rng.integers(0, 1 << 20, 2 * (SLICE_LENGTH + 1) + 9).astype("<u4")
    part, stride = [RemovablePart(Secret(bytes(32)), 50)], SLICE_LENGTH + 1
    apart, whole = payload.copy(), payload.copy()
    ends = [0, stride, 2 * stride, len(payload)]
    products = [remove_parts(apart, part, 24, lo, hi) for lo, hi in itertools.pairwise(ends)]
    assert remove_parts(whole, part, 24, 0, len(whole)) == pytest.approx(sum(products), rel=1e-12)
    assert np.array_equal(whole, apart)
    assert all(products)
