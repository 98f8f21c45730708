"""Derived integers of a manifest: noise share and ring bits (the grid is :mod:`dp.noise.grid`).

The same functions serve task creation and the device's veto, in exact arithmetic where privacy
depends on it (``fractions.Fraction`` of the configured floats).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from dp.noise.sampling import tail_log2
from secagg.errors import ConfigurationError
from secagg.limits import RING_BITS_MAX, RING_BITS_MIN
from secagg.manifest import CohortRules, Segment

SHARE_VARIANCE_MAX = 1 << 42  # beyond that, drawing the noise takes longer than training
WRAP_LOG2_TARGET = -40.0
WRAP_LOG2_FLOOR = -4096.0  # written for anything smaller, and where a sum cannot wrap at all


def share_variance(l2_squared: int, noise_multiplier: float, honest_min: int) -> int:
    """Variance of one device's share so that ``honest_min`` shares give (z * L2)^2, rounded up.

    Raises:
        ConfigurationError: ``noise-too-large``.
    """
    total = Fraction(noise_multiplier) ** 2 * l2_squared
    variance = max(1, math.ceil(total / honest_min))
    if variance > SHARE_VARIANCE_MAX:
        raise ConfigurationError(
            "noise-too-large",
            "The noise is too large to be drawn in reasonable time.",
            expected=f"share variance <= {SHARE_VARIANCE_MAX}",
            found=variance,
            remedy="Lower examples_max or the noise multiplier.",
        )
    return variance


def signal_bound(segments: Sequence[Segment], devices: int, factor: int) -> int:
    """Largest absolute value of a summed coordinate without noise, integer units."""
    return devices * factor * max(segment.clip_units for segment in segments)


def wrap_log2(
    ring_bits: int,
    segments: Sequence[Segment],
    cohort: CohortRules,
    variance: int,
    factor: int = 1,
) -> float:
    """log2 of a bound on the probability that any coordinate of a sum wraps around.

    The signal counts fully (size_max devices, ``factor`` examples each), the noise by its Chernoff
    tail, a union bound over the coordinates. 0 where the signal itself may wrap. What is removed
    before anyone looks, masks or parts of noise, may wrap as it likes.

    Args:
        variance: the largest of an unmasked sum (:func:`dp.noise.removable.most_variance`).
    """
    signal = max(signal_bound(segments, cohort.size_max, factor), cohort.size_max)
    room = (1 << (ring_bits - 1)) - 1 - signal
    if room < 0:
        return 0.0
    if variance == 0:
        return WRAP_LOG2_FLOOR
    length = sum(segment.length for segment in segments)
    tail = tail_log2(float(variance), float(room + 1))
    return max(WRAP_LOG2_FLOOR, min(0.0, math.log2(length) + tail))


def derive_ring(
    segments: Sequence[Segment], cohort: CohortRules, variance: int, factor: int = 1
) -> tuple[int, float]:
    """Fewest ring bits with a wrap-around probability of at most 2^-40, and its log2.

    Raises:
        ConfigurationError: ``ring-too-large`` beyond 62 bits.
    """
    for bits in range(RING_BITS_MIN, RING_BITS_MAX + 1):
        log2 = wrap_log2(bits, segments, cohort, variance, factor)
        if log2 <= WRAP_LOG2_TARGET:
            return bits, log2
    raise ConfigurationError(
        "ring-too-large",
        "The sum does not fit the ring.",
        expected=f"<= {RING_BITS_MAX} bits",
        found=f"signal up to {signal_bound(segments, cohort.size_max, factor)} units",
        remedy="Use fewer devices, a smaller examples_max or a smaller clip.",
    )
