"""Epsilon of Skellam noise by the Gaussian mechanism of which it is a post-processing.

On every coordinate that a record moves, Skellam noise of variance V >= 1000 is within statistical
distance sqrt(log V) / V^3 of a random function of Gaussian noise of variance V - 1.5 sqrt(V), for
all shifts at once; on the others it costs nothing. Proof in docs/skellam.md. So whatever adaptive
game is played, releases cost what Gaussian ones do, and the distances are paid from delta.

Adaptive Gaussian releases, of which the squared shifts over the variances add up to at most m^2
whatever happens, are (epsilon, delta) exactly as one release at m: Balle, Wang, "Improving the
Gaussian Mechanism for Differential Privacy" (ICML 2018), Theorem 8. That the shifts may be chosen
as one goes is the last step of the same page.

Rounding is outwards: :mod:`dp.accounting.rdp` says by how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dp.accounting.events import (
    Composed,
    Event,
    GaussianRelease,
    PoissonReplaced,
    PoissonSampled,
    Scheduled,
    SkellamRelease,
    replace_one,
)

VARIANCE_MIN = 1000  # of Skellam noise, integer units squared, from which the proof holds
_OUTWARD = 1.0 + 1e-12
_LOG_ERROR = 1e-13  # of a logarithm of a tail, relative to 1 + |value|; its own is below 1e-14
_BISECTIONS = 80
_SERIES_FROM = 36.0  # where the eleventh power of 1 / x^2 no longer counts


@dataclass(frozen=True)
class Shifts:
    """An event as Gaussian releases: ``squared``, the most that squared shifts over variances add
    up to, and ``distance``, the statistical distance from them."""

    squared: float
    distance: float


def gaussian_shifts(event: Event) -> Shifts | None:
    """``event`` as Gaussian releases, rounded up; None where nothing here says so.

    A batch that is sampled costs at most what the mechanism costs on everything.
    """
    match event:
        case SkellamRelease(l2, l1, variance):
            return _skellam(l2, l1, variance)
        case GaussianRelease(z):
            return Shifts(1 / z / z * _OUTWARD, 0.0) if 0 < z < math.inf else None
        case PoissonSampled(_, inner):
            return gaussian_shifts(inner)
        case PoissonReplaced(_, inner):
            return gaussian_shifts(replace_one(inner))
        case Composed(parts):
            return _sum(parts, None)
        case Scheduled(parts, most):
            return _sum(parts, most)
        case _:
            return None


def _skellam(l2: int, l1: int, variance: int) -> Shifts | None:
    if l2 < 0 or l1 < 0 or not VARIANCE_MIN <= variance < 2**500:
        return None
    gaussian = variance - 1.5 * math.sqrt(variance) * _OUTWARD
    moved = min(l2, l1)  # coordinates: each by 1 or more
    apart = math.sqrt(math.log(variance)) / variance / variance / variance
    return Shifts(l2 / gaussian * _OUTWARD, moved * apart * _OUTWARD)


def _sum(parts: Iterable[tuple[Event, int]], most: int | None) -> Shifts | None:
    """Of all the events, or of the ``most`` that count the most."""
    counted = [(gaussian_shifts(part), count) for part, count in parts if count]
    found = [(shifts, count) for shifts, count in counted if shifts is not None]
    if len(found) < len(counted):
        return None
    return Shifts(
        _largest([(shifts.squared, count) for shifts, count in found], most),
        _largest([(shifts.distance, count) for shifts, count in found], most),
    )


def _largest(values: Sequence[tuple[float, int]], most: int | None) -> float:
    left = sum(count for _, count in values) if most is None else most
    taken = []
    for value, count in sorted(values, reverse=True):
        now = min(left, count)
        taken.append(now * value)
        left -= now
    return math.fsum(taken) * _OUTWARD


def epsilon_of_shift(m: float, delta: float) -> float:
    """Epsilon at ``delta`` of Gaussian noise of variance 1 on a shift of ``m``, to about 1e-9,
    rounded up.

    (epsilon, delta) holds exactly if Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m) <= delta (Balle and
    Wang 2018, Theorem 8). The left side is computed with its error added.
    """
    if m == 0:
        return 0.0
    if not m < 1e8:  # epsilon is about m^2 / 2: nothing to tell apart
        return math.inf

    def holds(epsilon: float) -> bool:
        log_in = _log_tail(epsilon / m - m / 2)
        log_out = epsilon + _log_tail(epsilon / m + m / 2)
        error = _LOG_ERROR * (2 + abs(log_in) + abs(log_out - epsilon) + epsilon)
        return math.exp(log_in) * (error - math.expm1(min(0.0, log_out - log_in))) <= delta

    low, high = 0.0, 1.0
    if holds(low):
        return 0.0
    while not holds(high):
        low, high = high, 2 * high
        if high > 1e18:
            return math.inf
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high * (1 + 1e-12)


def _log_tail(x: float) -> float:
    """log of the probability that a standard normal is above ``x``."""
    if x < _SERIES_FROM:
        return math.log(math.erfc(x / math.sqrt(2)) / 2)
    y, series = 1 / x / x, 1.0
    for odd in range(9, 0, -2):  # 1 - y + 3 y^2 - 15 y^3 + 105 y^4 - 945 y^5
        series = 1 - odd * y * series
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log(series)
