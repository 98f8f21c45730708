"""Exact discrete samplers: Skellam noise by inversion of a 128-bit table, Poisson batches by coins.

**Skellam.** With variance V and mean 0, P(k) = exp(-V) I_k(V). The ratios of the Bessel functions
come from Miller's backward recurrence I_{k-1} = I_{k+1} + (2k / V) I_k in big integers, the norm
from I_0 + 2 sum I_k = exp(V) (Abramowitz and Stegun 9.6.26, 9.6.38), so no float enters. A draw
compares a 128-bit uniform with the cumulative table of |k|; a sign bit follows. One draw's
statistical distance from Skellam is below 2^-102: the tail is cut at 2^-104, and each threshold is
rounded to 2^-128.

A table has about 12 sqrt(V) rows, so a large variance is split into equal parts: sums of
independent Skellam variables are exactly Skellam.

Table look-ups read memory at places that depend on the noise: a process on the same core that
can watch the cache may learn something. The threat model lists this hazard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dp.noise.stream import BitStream, RandomBytes
from secagg.errors import LocalProtocolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TABLE_VARIANCE_MAX = 1 << 30  # 396,000 rows, 6.3 MB
TABLE_VARIANCE_LARGE = 1 << 34  # 1,600,000 rows, 25 MB: where otherwise > 16 parts
VARIANCE_MAX = TABLE_VARIANCE_LARGE << 12  # 2^12 parts are what accounting charges to delta
_CUT_LOG2 = -104.0
_START_LOG2 = -136.0  # the recurrence starts where its own error is below the thresholds' grain
_LEADING_BITS = 16
_LEADING_SHIFT = np.uint64(64 - _LEADING_BITS)
_STEPS = 2  # along the table before a search: enough for 95 of 100 draws at 2^30
_BLOCK = 1 << 16  # draws at once: temporaries stay in cache


@dataclass(frozen=True, eq=False)
class NoiseTable:
    """Cumulative distribution of |X|: row k is P(|X| <= k) 2^128, high and low 64 bits.

    The last row (2^128) is left out. ``first``: for each value of a uniform's 16 leading bits the
    first row that a uniform with these bits can reach, so that most searches end after two steps.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]

    @cached_property
    def bounded(self) -> NDArray[np.uint64]:
        """``high`` and one row more that no uniform exceeds."""
        return np.append(self.high, np.uint64(0xFFFF_FFFF_FFFF_FFFF))

    @cached_property
    def first(self) -> NDArray[np.intp]:
        leading = np.arange(1 << _LEADING_BITS, dtype=np.uint64) << _LEADING_SHIFT
        return np.searchsorted(self.high, leading, side="left")


def tail_log2(variance: float, bound: float) -> float:
    """log2 of Chernoff's bound on P(|X| >= bound) for Skellam with mean 0.

    log E exp(tX) = V (cosh t - 1), so with r = b / V, P(X >= b) <= exp(V (sqrt(1 + r^2) - 1) -
    b asinh(r)).
    """
    if bound <= 0:
        return 0.0
    ratio = bound / variance
    # sqrt(1 + r^2) - 1 without cancellation
    exponent = bound * math.asinh(ratio) - variance * ratio * ratio / (
        math.sqrt(1 + ratio * ratio) + 1
    )
    return 1.0 - exponent / math.log(2)


def tail_bound(variance: float, log2_probability: float) -> int:
    """The smallest b with ``tail_log2(variance, b) <= log2_probability``."""
    low, high = 0, 8
    while tail_log2(variance, high) > log2_probability:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if tail_log2(variance, middle) > log2_probability:
            low = middle
        else:
            high = middle
    return high


def skellam_weights(variance: int) -> list[int]:
    """Integers proportional to P(0), P(1), ..., P(K), K where the tail falls below 2^-104."""
    cut = tail_bound(variance, _CUT_LOG2)
    start = tail_bound(variance, _START_LOG2) + 16
    weights = [0] * (cut + 1)
    above, here = 0, 1 << 192
    for k in range(start, 0, -1):
        above, here = here, above + 2 * k * here // variance
        if k <= cut + 1:
            weights[k - 1] = here
    return weights


@lru_cache(maxsize=12)  # the parts of a task's shares
def skellam_table(variance: int) -> NoiseTable:
    """The table for one variance (integer, at most 2^34); cached in the process."""
    return cumulative_table(skellam_weights(variance))


def cumulative_table(weights: Sequence[int]) -> NoiseTable:
    """Thresholds of |X| for a symmetric distribution with these weights of 0, 1, 2, ..."""
    total = 2 * sum(weights) - weights[0]
    high = np.empty(len(weights) - 1, dtype=np.uint64)
    low = np.empty(len(weights) - 1, dtype=np.uint64)
    running = -weights[0]
    for k, weight in enumerate(weights[:-1]):
        running += 2 * weight
        threshold = (running << 128) // total
        high[k] = threshold >> 64
        low[k] = threshold & 0xFFFF_FFFF_FFFF_FFFF
    return NoiseTable(high, low)


def look_up(
    table: NoiseTable, high: NDArray[np.uint64], draw_low: Callable[[int], NDArray[np.uint64]]
) -> NDArray[np.int64]:
    """|X| for uniforms given by their high 64 bits; low bits are drawn only where they decide."""
    bounded = table.bounded
    index: NDArray[np.int64] = table.first[high >> _LEADING_SHIFT].astype(np.int64, copy=False)
    for _ in range(_STEPS):
        index += bounded[index] < high
    at = bounded[index]
    (further,) = np.nonzero(at < high)
    if further.size:
        index[further] = np.searchsorted(table.high, high[further], side="left")
        at[further] = bounded[index[further]]
    (ties,) = np.nonzero((at == high) & (index < len(table.high)))
    if ties.size:
        for place, low in zip(ties.tolist(), draw_low(ties.size).tolist(), strict=True):
            k = int(index[place])
            while (
                k < len(table.high)
                and int(table.high[k]) == int(high[place])
                and int(table.low[k]) <= low
            ):
                k += 1
            index[place] = k
    return index


def _parts(variance: int) -> list[tuple[int, int]]:
    """(variance, count) with sum of variance * count = ``variance``, each within one table."""
    limit = TABLE_VARIANCE_MAX
    if variance > 16 * limit:
        limit = TABLE_VARIANCE_LARGE
    count = -(-variance // limit)
    small, larger = divmod(variance, count)
    return [(v, c) for v, c in ((small + 1, larger), (small, count - larger)) if c]


def add_skellam(values: NDArray[np.int64], variance: int, random_bytes: RandomBytes) -> None:
    """Add independent Skellam noise of mean 0 to every coordinate, in place.

    Args:
        values: int64[d].
        variance: integer units squared, 1 to 2^46.
        random_bytes: cryptographically secure; asked once, for 32 bytes.
    """
    draw_skellam(values, variance, BitStream(random_bytes))


def draw_skellam(values: NDArray[np.int64], variance: int, stream: BitStream) -> None:
    """As :func:`add_skellam`, from a given place of a stream: the same place, the same noise.

    Floats only choose where a table ends; two machines that round them differently would still
    agree but for about one draw in 2^84.
    """
    if not 1 <= variance <= VARIANCE_MAX:
        raise LocalProtocolError(
            "variance-out-of-range",
            "The noise variance is out of range.",
            expected=f"1 to {VARIANCE_MAX}",
            found=variance,
        )
    for part, count in _parts(variance):
        table = skellam_table(part)
        for _ in range(count):
            add_from_table(values, table, stream)


def add_from_table(values: NDArray[np.int64], table: NoiseTable, stream: BitStream) -> None:
    """Add one independent draw with a random sign to every coordinate, in place."""
    for lo in range(0, len(values), _BLOCK):
        block = values[lo : lo + _BLOCK]
        noise = look_up(table, stream.uint64(len(block)), stream.uint64)
        sign = stream.bits(len(block)).astype(np.int64)
        # (x ^ -s) + s is x for s = 0 and -x for s = 1
        block += (noise ^ -sign) + sign


def skellam(length: int, variance: int, random_bytes: RandomBytes) -> NDArray[np.int64]:
    """int64[length] of independent Skellam noise; see :func:`add_skellam`."""
    values = np.zeros(length, dtype=np.int64)
    add_skellam(values, variance, random_bytes)
    return values


def poisson_batch(count: int, rate: float, random_bytes: RandomBytes) -> NDArray[np.int64]:
    """Indices of the records that join a batch: one secret coin of probability ``rate`` each.

    A coin is a 64-bit uniform below floor(rate 2^64): exact for every float rate >= 2^-11, and
    never above ``rate``, so accounting at ``rate`` is sound. The batch may be empty.

    Returns:
        int64, ascending.
    """
    if count < 0 or not (0 < rate <= 1):
        raise LocalProtocolError(
            "batch-parameters",
            "A batch needs a count and a rate in (0, 1].",
            found=(count, rate),
        )
    if rate == 1:
        return np.arange(count, dtype=np.int64)
    numerator, denominator = rate.as_integer_ratio()
    threshold = np.uint64((numerator << 64) // denominator)
    return np.flatnonzero(BitStream(random_bytes).uint64(count) < threshold).astype(np.int64)


def binomial_tail_log2(count: int, rate: float, above: int) -> float:
    """log2 of Chernoff's bound on P(Binomial(count, rate) > above)."""
    if count <= above:
        return -math.inf
    fraction = (above + 1) / count
    if fraction <= rate:
        return 0.0
    if rate == 0:
        return -math.inf
    divergence = fraction * math.log(fraction / rate)
    if fraction < 1:
        divergence += (1 - fraction) * math.log((1 - fraction) / (1 - rate))
    return -count * divergence / math.log(2)


def examples_held_max(examples_max: int, rate: float, log2_probability: float = -80.0) -> int:
    """Most examples a device may hold so that a Poisson batch rarely exceeds ``examples_max``.

    The device leaves out what it holds beyond this, by a rule that does not look at the content.
    The default probability, 2^-80, is charged to delta
    (``dp.accounting.statements.OVERRUN_DRAWS``).
    """
    if rate >= 1:
        return examples_max
    low, high = examples_max, examples_max + 1
    while binomial_tail_log2(high, rate, examples_max) <= log2_probability:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_tail_log2(middle, rate, examples_max) <= log2_probability:
            low = middle
        else:
            high = middle
    return low
