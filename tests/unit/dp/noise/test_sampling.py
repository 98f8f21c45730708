"""Exact discrete noise and coins."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from dp.accounting.statements import SAMPLER_LOG2
from dp.noise import sampling
from dp.noise.sampling import (
    NoiseTable,
    add_skellam,
    binomial_tail_log2,
    examples_held_max,
    look_up,
    poisson_batch,
    skellam,
    skellam_table,
    skellam_weights,
    tail_bound,
    tail_log2,
)
from dp.noise.stream import BitStream
from secagg.errors import LocalProtocolError
from tests.kits.said import Case, refused
from tests.kits.tasks import seeded


def bessel(k: int, variance: int) -> Fraction:
    """I_k(V) to far beyond 128 bits: the power series, Abramowitz and Stegun 9.6.10."""
    half = Fraction(variance, 2)
    term = half**k
    for m in range(1, k + 1):
        term /= m
    total, m = Fraction(0), 0
    while term > total * Fraction(1, 2**200) or m < variance:
        total += term
        m += 1
        term *= half * half / (m * (m + k))
    return total


@pytest.mark.parametrize("variance", [1, 2, 7, 60])
def test_table_has_the_probabilities_of_skellam_to_128_bits(variance: int) -> None:
    weights = skellam_weights(variance)
    total = 2 * sum(weights) - weights[0]
    getcontext().prec = 80
    power = Fraction(Decimal(variance).exp())
    for k in (0, 1, 2, 5, len(weights) - 1):
        assert abs(Fraction(weights[k], total) - bessel(k, variance) / power) < Fraction(1, 2**103)


@pytest.mark.parametrize("variance", [1, 1000, 44_000_000])
def test_table_is_cut_where_the_tail_is_below_2_to_the_minus_104(variance: int) -> None:
    cut = len(skellam_weights(variance))
    assert tail_log2(variance, cut - 1) <= -104
    assert tail_log2(variance, cut - 2) > -104


def test_large_table_agrees_with_an_independent_bessel_function() -> None:
    variance = 44_000_000
    weights = skellam_weights(variance)
    total = 2 * sum(weights) - weights[0]
    for k in (0, 6_000, 20_000, 40_000):
        # scipy's ive overflows in k * log at this size; the difference of Poissons does not
        exact = stats.norm.logpdf(k, scale=variance**0.5)
        found = float(np.log(np.longdouble(weights[k]) / np.longdouble(total)))
        # Edgeworth: excess kurtosis 1/V; the fourth Hermite term over 24 V
        x = k / variance**0.5
        exact += np.log1p((x**4 - 6 * x**2 + 3) / (24 * variance))
        assert found == pytest.approx(exact, abs=2e-9)


@pytest.mark.parametrize("variance", [1, 5, 400, 90_000])
def test_draws_follow_skellam(variance: int) -> None:
    draws = skellam(300_000, variance, seeded(variance))
    edges = np.arange(-40, 41) if variance < 400 else np.linspace(-4, 4, 60) * variance**0.5
    rate = variance / 2
    upper = stats.skellam.cdf(np.floor(edges), rate, rate)
    expected = np.diff(np.concatenate([[0.0], upper, [1.0]])) * len(draws)
    observed = np.bincount(np.searchsorted(np.floor(edges), draws), minlength=len(expected))
    keep = expected > 10
    statistic = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
    assert stats.chi2.sf(statistic, keep.sum() - 1) > 1e-4


@pytest.mark.parametrize("variance", [3, 44_000_000, (1 << 30) + 12_345, 1 << 35])
def test_moments_hold_for_small_large_and_composed_variances(variance: int) -> None:
    draws = skellam(20_000, variance, seeded(7)).astype(float) / variance**0.5
    assert abs(draws.mean()) < 5 / 20_000**0.5
    assert abs(draws.var() - 1) < 5 * (2 / 20_000) ** 0.5
    assert abs(stats.kurtosis(draws)) < 0.2 + 2 / variance


@pytest.mark.parametrize("variance", [1, 1 << 30, (1 << 30) + 1, (1 << 34) * 7 + 3])
def test_parts_of_a_large_variance_sum_up_exactly(variance: int) -> None:
    parts = sampling._parts(variance)
    assert sum(v * c for v, c in parts) == variance
    assert all(v <= sampling.TABLE_VARIANCE_LARGE for v, _ in parts)


def test_no_draw_has_more_parts_than_delta_pays_for() -> None:
    parts = sum(count for _, count in sampling._parts(sampling.VARIANCE_MAX))
    assert math.log2(parts) - 102 <= SAMPLER_LOG2


def test_low_bits_decide_only_ties() -> None:
    high = np.array([10, 20, 20, 20, 30], dtype=np.uint64)
    low = np.array([5, 1, 7, 9, 0], dtype=np.uint64)
    asked = []

    def draw_low(count: int) -> np.ndarray:
        asked.append(count)
        return np.array([4, 7, 8], dtype=np.uint64)[:count]

    found = look_up(
        NoiseTable(high, low), np.array([9, 10, 11, 20, 20, 40], dtype=np.uint64), draw_low
    )
    # 10 with low 4 < 5 stays; 20 with low 7 passes thresholds 1 and 7; with low 8 likewise, not 9
    assert found.tolist() == [0, 0, 1, 3, 3, 5]
    assert asked == [3]


@pytest.mark.parametrize("variance", [1, 30, 10**4, 10**7, 1 << 28])
def test_the_guided_search_finds_what_a_plain_one_does(variance: int) -> None:
    table = skellam_table(variance)
    uniform = np.frombuffer(seeded(9)(8 * 50_000), "<u8")
    some = table.high[:: max(1, len(table.high) // 2000)]
    edges = np.array([0, 1, 2**63, 2**64 - 2, 2**64 - 1], dtype=np.uint64)
    asked = np.concatenate([uniform, some, some + np.uint64(1), some - np.uint64(1), edges])
    # Low bits of 0 leave a tie at the first row that is not below.
    found = look_up(table, asked, lambda count: np.zeros(count, dtype=np.uint64))
    expected = np.searchsorted(table.high, asked, side="left")
    tied = table.high[np.minimum(expected, len(table.high) - 1)] == asked
    assert np.array_equal(found[~tied], expected[~tied])
    lows = table.low[np.minimum(expected, len(table.high) - 1)]
    assert np.array_equal(found[tied & (lows > 0)], expected[tied & (lows > 0)])


def test_cumulative_table_rises_to_just_below_one() -> None:
    table = skellam_table(1000)
    whole = [int(h) << 64 | int(low) for h, low in zip(table.high, table.low, strict=True)]
    assert whole == sorted(whole)
    assert 1 - Fraction(whole[-1], 2**128) < Fraction(1, 2**100)


def test_noise_is_added_in_place_and_fresh_each_time() -> None:
    values = np.full(1000, 1 << 40, dtype=np.int64)
    add_skellam(values, 100, seeded(1))
    first = values - (1 << 40)
    assert first.any()
    assert abs(first).max() < 200
    randomness = seeded(1)
    assert np.array_equal(first, skellam(1000, 100, randomness))
    assert not np.array_equal(first, skellam(1000, 100, randomness))


def test_generator_is_asked_for_a_key_only() -> None:
    asked = []

    def random_bytes(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    skellam(100_000, 44, random_bytes)
    assert asked == [32]


def test_short_randomness_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="random-bytes"):
        BitStream(lambda count: b"short")


@pytest.mark.parametrize("variance", [0, -1, (1 << 46) + 1])
def test_impossible_variance_is_refused(variance: int) -> None:
    with pytest.raises(LocalProtocolError, match="variance-out-of-range"):
        skellam(10, variance, seeded())


def test_tail_bound_is_a_bound_and_tight_to_a_factor() -> None:
    for variance in (1, 50, 2_000):
        for log2 in (-10.0, -30.0):
            bound = tail_bound(variance, log2)
            exact = 2 * stats.skellam.sf(bound - 1, variance / 2, variance / 2)
            assert exact <= 2**log2
            assert exact > 2 ** (log2 - 10)


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.9])
def test_batches_are_independent_coins_of_the_given_rate(rate: float) -> None:
    sizes = []
    randomness = seeded(3)
    joined = np.zeros(500)
    for _ in range(400):
        batch = poisson_batch(500, rate, randomness)
        assert (np.diff(batch) > 0).all()
        sizes.append(len(batch))
        joined[batch] += 1
    spread = (500 * rate * (1 - rate)) ** 0.5
    assert abs(np.mean(sizes) - 500 * rate) < 5 * spread / 400**0.5
    # The size varies as a binomial does: neither fixed nor clumped.
    assert 0.8 < np.std(sizes) / spread < 1.25
    assert stats.chi2.sf(((joined - 400 * rate) ** 2 / (400 * rate * (1 - rate))).sum(), 500) > 1e-4


def test_batch_of_rate_one_is_everything_and_may_be_empty_otherwise() -> None:
    assert poisson_batch(5, 1.0, seeded()).tolist() == [0, 1, 2, 3, 4]
    assert poisson_batch(0, 0.5, seeded()).tolist() == []
    assert poisson_batch(5, 1e-300, seeded()).tolist() == []


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(LocalProtocolError, match="batch-parameters"):
        poisson_batch(5, rate, seeded())


@pytest.mark.parametrize(("examples_max", "rate"), [(256, 0.25), (64, 0.25), (10, 0.01), (30, 0.9)])
def test_a_device_that_holds_the_maximum_rarely_overruns(examples_max: int, rate: float) -> None:
    held = examples_held_max(examples_max, rate)
    assert held >= examples_max
    assert stats.binom.sf(examples_max, held, rate) <= 2**-80
    assert binomial_tail_log2(held + 1, rate, examples_max) > -80


def test_without_sampling_a_device_holds_no_more_than_a_batch() -> None:
    assert examples_held_max(256, 1.0) == 256


REFUSED = {
    "a variance that nobody draws": Case(
        lambda: sampling.add_skellam(np.zeros(1, np.int64), 0, seeded()),
        "variance-out-of-range",
        f"1 to {1 << 46}",
        0,
    ),
    "a batch of fewer than none": Case(
        lambda: sampling.poisson_batch(-1, 0.5, seeded()), "batch-parameters", None, (-1, 0.5)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], LocalProtocolError)
