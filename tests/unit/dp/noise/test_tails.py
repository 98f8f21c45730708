"""Tail bounds against exact sums, so that no cut of a table hangs on a remembered constant."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest

from dp.noise.discrete_gaussian import gaussian_weights, tail_log2
from dp.noise.sampling import skellam_weights
from dp.noise.sampling import tail_log2 as skellam_tail_log2

SIGMAS_SQUARED = (1, 2, 3, 7, 17, 100, 999, 40_000)
DIGITS = 60


def exact_tail(sigma_squared: int, bound: int, tilt: Decimal = Decimal(0)) -> Decimal:
    """Sum over k >= bound of exp(-k^2 / (2 s) + tilt k), until terms are below 10^-55 of it."""
    with localcontext() as context:
        context.prec = DIGITS
        total, k = Decimal(0), bound
        while True:
            term = (Decimal(-k * k) / (2 * sigma_squared) + tilt * k).exp()
            total += term
            k += 1
            falls = k > tilt * sigma_squared
            if falls and term < total.scaleb(-55):
                return total


def norm(sigma_squared: int) -> Decimal:
    return 2 * exact_tail(sigma_squared, 0) - 1


@pytest.mark.parametrize("sigma_squared", SIGMAS_SQUARED)
def test_the_bound_of_the_discrete_gaussian_s_tail_covers_the_exact_tail(
    sigma_squared: int,
) -> None:
    """P(|X| >= b) by summation, from the middle to where tables are cut and beyond."""
    sigma, total = math.sqrt(sigma_squared), norm(sigma_squared)
    for multiple in (0.5, 1, 2, 3, 5, 8, 12, 12.1, 15):
        bound = max(1, math.ceil(multiple * sigma))
        exact = 2 * exact_tail(sigma_squared, bound) / total
        log2 = float(exact.ln() / Decimal(2).ln())
        assert log2 <= tail_log2(sigma_squared, bound)
        assert tail_log2(sigma_squared, bound) <= log2 + 8 + math.log2(multiple + 1)


@pytest.mark.parametrize("sigma_squared", SIGMAS_SQUARED)
def test_what_the_table_of_the_discrete_gaussian_leaves_out_is_below_2_to_the_minus_104(
    sigma_squared: int,
) -> None:
    beyond = len(gaussian_weights(sigma_squared))
    left_out = 2 * exact_tail(sigma_squared, beyond) / norm(sigma_squared)
    assert left_out < Decimal(2) ** -104
    assert tail_log2(sigma_squared, beyond) <= -104


@pytest.mark.parametrize("sigma_squared", SIGMAS_SQUARED)
def test_the_discrete_gaussian_is_sub_gaussian_with_its_own_parameter(sigma_squared: int) -> None:
    """E exp(u X) <= exp(u^2 s / 2): what the tail bound and the sum's accounting stand on."""
    with localcontext() as context:
        context.prec = DIGITS
        total = norm(sigma_squared)
        for u_sigma in ("0.01", "0.3", "0.5", "1", "2.5", "6"):
            u = Decimal(u_sigma) / Decimal(sigma_squared).sqrt()
            above = exact_tail(sigma_squared, 0, u)
            below = exact_tail(sigma_squared, 1, -u)
            moment = (above + below) / total
            assert moment <= (u * u * sigma_squared / 2).exp() * (1 + Decimal("1e-50"))


@pytest.mark.parametrize("variance", [1, 2, 9, 100, 2_500])
def test_what_the_table_of_skellam_leaves_out_is_below_2_to_the_minus_104(variance: int) -> None:
    """Weights far beyond the cut, from the recurrence that makes the table, norm included."""
    weights = skellam_weights(variance)
    beyond = len(weights)
    reach = beyond + 4 * math.isqrt(variance) + 40
    above, here, far = 0, 1 << 512, {}
    for k in range(3 * reach, 0, -1):
        above, here = here, above + 2 * k * here // variance
        far[k - 1] = here
    total = 2 * sum(far.values()) - far[0]
    left_out = 2 * sum(weight for k, weight in far.items() if k >= beyond)
    assert left_out << 104 < total
    assert math.log2(left_out) - math.log2(total) <= skellam_tail_log2(variance, beyond)
    for k in (0, 1, beyond // 2):
        assert abs(weights[k] * far[0] - far[k] * weights[0]) << 120 < far[0] * weights[0]
