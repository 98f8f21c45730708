"""Exact sampler of the discrete Gaussian: a 128-bit table, as for Skellam in
:mod:`dp.noise.sampling`.

P(k) is proportional to exp(-k^2 / (2 s)), s the parameter sigma^2 (Canonne, Kamath, Steinke,
"The Discrete Gaussian for Differential Privacy", NeurIPS 2020). Weights come from the recurrence
w(k+1) = w(k) r(k), r(k+1) = r(k) exp(-1 / s), in integers of 288 fractional bits; each step errs by
less than 2^-287, so a table of 2^21 rows by less than 2^-244 in all. The tail is cut at 2^-104:
P(|X| >= b) <= 2 exp(-b^2 / (2 s)), for X is sub-Gaussian: E exp(u X) = exp(u^2 s / 2) times the
sum of exp(-(k - u s)^2 / (2 s)) over the integers over that of exp(-k^2 / (2 s)), which is at most
1, since by Poisson's summation formula both are sums of the same positive terms, in the first each
times a cosine. Exact sums agree (``tests/unit/dp/noise/test_tails.py``). One draw is within 2^-102
of the distribution.

Sums of discrete Gaussians are not discrete Gaussian, so a share is never drawn in parts, and the
sum's cost is that of Kairouz, Liu and Steinke (:class:`dp.accounting.events.DiscreteGaussianSum`).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from dp.noise.sampling import TABLE_VARIANCE_LARGE, NoiseTable, add_from_table, cumulative_table
from dp.noise.stream import BitStream, RandomBytes
from secagg.errors import LocalProtocolError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIGMA_SQUARED_MAX = TABLE_VARIANCE_LARGE
_FRACTION_BITS = 288
_CUT_LOG2 = -104.0


def exp_minus(numerator: int, denominator: int, bits: int = _FRACTION_BITS) -> int:
    """floor(exp(-numerator / denominator) 2^bits) up to a few units, for 0 <= ratio <= 1."""
    guard = bits + 32
    term = total = 1 << guard
    n = 0
    while term:
        n += 1
        term = term * numerator // (denominator * n)
        total += -term if n % 2 else term
    return total >> 32


def tail_log2(sigma_squared: int, bound: int) -> float:
    """log2 of a bound on P(|X| >= bound): 2 exp(-bound^2 / (2 sigma_squared))."""
    return 1 - bound * bound / (2 * sigma_squared * math.log(2))


def gaussian_weights(sigma_squared: int) -> list[int]:
    """Integers proportional to P(0), P(1), ..., P(K), K where the tail falls below 2^-104.

    ``tail_log2(sigma_squared, K + 1) <= -104``.
    """
    cut = math.isqrt(math.ceil(2 * sigma_squared * math.log(2) * (1 - _CUT_LOG2))) + 1
    weights = [0] * (cut + 1)
    weight = 1 << _FRACTION_BITS
    ratio = exp_minus(1, 2 * sigma_squared)
    step = exp_minus(1, sigma_squared)
    for k in range(cut + 1):
        weights[k] = weight
        weight = weight * ratio >> _FRACTION_BITS
        ratio = ratio * step >> _FRACTION_BITS
    return weights


@lru_cache(maxsize=4)
def gaussian_table(sigma_squared: int) -> NoiseTable:
    """The cumulative table of |X| for one parameter; cached in the process."""
    return cumulative_table(gaussian_weights(sigma_squared))


def add_discrete_gaussian(
    values: NDArray[np.int64], sigma_squared: int, random_bytes: RandomBytes
) -> None:
    """Add independent discrete Gaussian noise of mean 0 to every coordinate, in place.

    Args:
        values: int64[d].
        sigma_squared: integer units squared, 1 to 2^34.
        random_bytes: cryptographically secure; asked once, for 32 bytes.

    Raises:
        LocalProtocolError: ``variance-out-of-range``.
    """
    if not 1 <= sigma_squared <= SIGMA_SQUARED_MAX:
        raise LocalProtocolError(
            "variance-out-of-range",
            "The noise variance is out of range.",
            expected=f"1 to {SIGMA_SQUARED_MAX}",
            found=sigma_squared,
        )
    add_from_table(values, gaussian_table(sigma_squared), BitStream(random_bytes))
