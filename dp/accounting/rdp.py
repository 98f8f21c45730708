"""Renyi differential privacy curves at integer orders, rounded outwards.

No value is below what its formula gives in exact arithmetic, and no formula is below the
mechanism's divergence; so an epsilon from here may be too large and is never too small. Directions:
each curve is multiplied by 1 + 1e-12, more than its floating point error (sampled ones add 1e-12
besides); a missing order only leaves out a candidate of the minimum; epsilon is enlarged by 1e-12
and by 1e-9 of itself.

Formulas, checked against the papers:

* Skellam, Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated
  Learning" (NeurIPS 2021), Theorem 3.5 with Corollary 3.6's vector form:
  eps(a) <= a L2^2 / (2 V) + min(((2a - 1) L2^2 + 6 L1) / (4 V^2), 3 L1 / (2 V)), integer a >= 2,
  V the variance of the noise per coordinate.
* Discrete Gaussian, Canonne, Kamath, Steinke (NeurIPS 2020), Theorem 4, and Gaussian, Mironov
  (CSF 2017), Proposition 7: eps(a) = a / (2 z^2).
* Sum of n discrete Gaussian shares of parameter s: eps(a) = a L2^2 / (2 n s) + t min(d, L1), with
  t = sum over k < n of log((1 + 2 r) / (1 - 2 r)), r = x / (1 - x), x = exp(-2 pi^2 s k / (k + 1)):
  the first bound of Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism" (ICML
  2021), Proposition 14, which has 10 times the sum of x for t. Proof in docs/privacy.md.
* Poisson sampling of one sum with symmetric noise on the integers (or the reals): the formula of
  Mironov, Talwar, Zhang (arXiv 1908.10530) for any such noise, proved in docs/sampling.md. Zhu and
  Wang (ICML 2019, Theorem 5) have a factor 3 more, for noise without symmetry.
* The same between neighbours that exchange a record: the least of four bounds, all proved there.
* Events of which a record is in at most k, whichever: at each order the k largest (docs/privacy.md,
  "Scheduled batches"; Feldman, Zrnic, NeurIPS 2021, Theorem 3.1).
* Conversion, Canonne, Kamath, Steinke (NeurIPS 2020), Proposition 12:
  eps = eps(a) + log(1 - 1/a) - log(delta a) / (a - 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dp.accounting.events import (
    Composed,
    DiscreteGaussianRelease,
    DiscreteGaussianSum,
    Event,
    GaussianRelease,
    NonPrivateRelease,
    PoissonReplaced,
    PoissonSampled,
    Scheduled,
    SkellamRelease,
    adjacency_of,
    replace_one,
)
from dp.errors import AccountingError

# Dense as far as sampling needs every smaller order, then wider for cheap events.
_DENSE_MAX = 256
ORDERS: tuple[int, ...] = (
    *range(2, _DENSE_MAX + 1),
    *(2**k * m // 4 for k in range(8, 20) for m in (5, 6, 7, 8)),
)
_SHARES_MAX = 10**6
_SYMMETRIC = (SkellamRelease, DiscreteGaussianSum, DiscreteGaussianRelease, GaussianRelease)
_OUTWARD = 1.0 + 1e-12  # more than the rounding of the few hundred operations behind a value
_LOG_FACTORIAL = np.array([math.lgamma(n + 1) for n in range(_DENSE_MAX + 1)])


def _real(name: str, value: float, *, zero: bool = False) -> float:
    """A positive float; also an integer too large for one is out of range."""
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not (math.isfinite(real) and (real > 0 or (zero and real == 0))):
        raise AccountingError(
            "parameter-out-of-range",
            f"The {name} must be {'at least 0' if zero else 'positive'} and finite.",
            expected=">= 0" if zero else "> 0",
            found=real,
        )
    return real


def _skellam(event: SkellamRelease) -> Mapping[int, float]:
    variance = _real("noise variance", event.variance)
    l2 = _real("squared L2 sensitivity", event.l2_squared, zero=True)
    l1 = _real("L1 sensitivity", event.l1, zero=True)
    return {
        order: (
            order * l2 / (2 * variance)
            + min(
                ((2 * order - 1) * l2 + 6 * l1) / (4 * variance) / variance,
                3 * l1 / (2 * variance),
            )
        )
        * _OUTWARD
        for order in ORDERS
    }


def _gaussian(noise_multiplier: float) -> Mapping[int, float]:
    z = _real("noise multiplier", noise_multiplier)
    return {order: order / 2 / z / z * _OUTWARD for order in ORDERS}


def _discrete_gaussian_sum(event: DiscreteGaussianSum) -> Mapping[int, float]:
    share = _real("noise variance", event.share)
    l2 = _real("squared L2 sensitivity", event.l2_squared, zero=True)
    l1 = _real("L1 sensitivity", event.l1, zero=True)
    length = _real("length", event.length)
    if not (1 <= event.shares <= _SHARES_MAX and share >= 0.5):
        raise AccountingError(
            "parameter-out-of-range",
            "A sum of discrete Gaussian shares has impossible parameters.",
            found=(event.l2_squared, event.l1, event.share, event.shares, event.length),
        )
    if l2 == 0:
        return dict.fromkeys(ORDERS, 0.0)
    unlike = math.fsum(_unlike(share * k / (k + 1)) for k in range(1, event.shares))
    excess = unlike * min(length, l1)
    ratio = l2 / (share * event.shares)
    return {order: (order * ratio / 2 + excess) * _OUTWARD for order in ORDERS}


def _unlike(variance: float) -> float:
    """log of the largest ratio of two sums over integers y of exp(-(y - m)^2 / (2 variance))."""
    first = math.exp(-2 * math.pi**2 * variance)
    series = first / (1 - first)  # of exp(-2 pi^2 variance j^2), for j^2 >= j
    return math.log1p(4 * series / (1 - 2 * series))


def _check_rate(rate: float) -> None:
    if not (math.isfinite(rate) and 0 < rate <= 1):
        raise AccountingError(
            "parameter-out-of-range",
            "The sampling rate is out of range.",
            expected="0 < rate <= 1",
            found=rate,
        )


def _log_choose(order: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(_LOG_FACTORIAL[order] - _LOG_FACTORIAL[k] - _LOG_FACTORIAL[order - k])


def _log_sum(terms: NDArray[np.float64], *more: float) -> float:
    """log of the sum of exp(term)."""
    every = np.append(terms, more)
    peak = float(every.max())
    return peak + math.log(float(np.exp(every - peak).sum()))


def _poisson(rate: float, base: Mapping[int, float]) -> Mapping[int, float]:
    if rate == 1:
        return base
    if not all(map(math.isfinite, base.values())):  # infinite at some order: nothing to amplify
        return base
    log_q, log_p = math.log(rate), math.log1p(-rate)
    dense = np.array([0.0, 0.0] + [base[order] for order in range(2, _DENSE_MAX + 1)])
    # Sampling never costs more than the mechanism on everything (quasi-convexity), which also
    # serves where the bound is not computed.
    curve = dict(base)
    for order in range(2, _DENSE_MAX + 1):
        k = np.arange(2, order + 1)
        terms = _log_choose(order, k) + (order - k) * log_p + k * log_q + (k - 1) * dense[k]
        first = (order - 1) * log_p + math.log(order * rate - rate + 1)
        total = _log_sum(terms, first)
        curve[order] = min(max(total, 0.0) / (order - 1) * _OUTWARD + 1e-12, base[order])
    return curve


def _poisson_replaced(
    rate: float, one: Mapping[int, float], two: Mapping[int, float]
) -> Mapping[int, float]:
    """Sampling between neighbours that exchange a record: docs/sampling.md, bounds 1 to 4.

    ``one``: what the event costs at the clip of one record, without sampling; ``two``: at twice.
    """
    finite = all(map(math.isfinite, (*one.values(), *two.values())))
    if rate == 1 or not finite or one[2] == 0:
        return two
    log_q, log_p = math.log(rate), math.log1p(-rate)
    sampled = _poisson(rate, one)
    single = np.array([0.0, 0.0] + [(k - 1) * one[k] for k in range(2, _DENSE_MAX + 1)])
    removed = np.array([0.0, 0.0] + [(k - 1) * sampled[k] for k in range(2, _DENSE_MAX + 1)])
    added = np.minimum(removed, -log_p * np.arange(-1, _DENSE_MAX))
    apart = min(
        math.log(4) + single[2] + math.log(-math.expm1(-single[2])),
        math.log(2) + single[2] + math.log(-math.expm1(-3 * single[2])),
    )
    curve = {}
    for order, whole in two.items():
        logs = [
            (order - 1) * whole,
            float(np.logaddexp(log_p, log_q + (order - 1) * whole)),
        ]
        if order <= _DENSE_MAX:
            k = np.arange(3, order + 1)
            pairs = math.log(order * (order - 1) / 2) + 2 * log_q - log_p
            start = min(
                float(np.logaddexp(0.0, pairs + apart)),
                float(np.logaddexp(math.log1p((order - 1) * rate), pairs + single[2])),
            )
            terms = _log_choose(order, k) + k * log_q - (k - 1) * log_p + single[k]
            logs.append(_log_sum(terms, start))
        if 2 * order <= _DENSE_MAX:
            both = order * removed[2 * order - 1] + (order - 1) * added[2 * order]
            logs.append(float(both) / (2 * order - 1))
        curve[order] = min(max(min(logs), 0.0) / (order - 1) * _OUTWARD + 1e-12, whole)
    return curve


def _dearest(parts: Sequence[tuple[Event, int]], most: int) -> Mapping[int, float]:
    """At each order the ``most`` largest of the events' curves, so those of any such choice."""
    curves = [(rdp_curve(part), int(_real("count", count, zero=True))) for part, count in parts]
    total = {}
    for order in ORDERS:
        left, taken = int(_real("participations", most, zero=True)), []
        for cost, count in sorted(((c[order], n) for c, n in curves), reverse=True):
            if now := min(left, count):
                taken.append(now * cost)
            left -= now
        total[order] = math.fsum(taken) * _OUTWARD
    return total


def _check_sampled(rate: float, event: Event) -> None:
    """One sum with symmetric noise, and what one record in the batch, more or less, moves."""
    _check_rate(rate)
    if not isinstance(event, _SYMMETRIC):
        raise AccountingError(
            "event-unknown",
            "No accountant here vouches for sampling of such an event.",
            expected="one sum with additive noise",
            found=type(event).__name__,
            remedy="Leave the sampling out: what the event costs without it holds too.",
        )
    if event.adjacency == "replace-one":
        raise AccountingError(
            "adjacency-unaccounted",
            "The theorems that account for sampling start from a record more or less.",
            expected="add-or-remove or zero-out",
            found=event.adjacency,
            remedy="Sample first: replace_one(PoissonSampled(rate, event)).",
        )


@lru_cache(maxsize=1024)
def rdp_curve(event: Event) -> Mapping[int, float]:
    """RDP of ``event``: order -> bound, for the orders at which a bound is known.

    Raises:
        AccountingError: ``event-unknown``, ``parameter-out-of-range``, ``adjacency-mixed``,
            ``adjacency-unaccounted``.
    """
    adjacency_of(event)
    match event:
        case SkellamRelease():
            return _skellam(event)
        case DiscreteGaussianRelease(z) | GaussianRelease(z):
            return _gaussian(z)
        case DiscreteGaussianSum():
            return _discrete_gaussian_sum(event)
        case NonPrivateRelease():
            return dict.fromkeys(ORDERS, math.inf)
        case PoissonSampled(rate, inner):
            _check_sampled(rate, inner)
            return _poisson(rate, rdp_curve(inner))
        case PoissonReplaced(rate, inner):
            _check_sampled(rate, inner)
            return _poisson_replaced(rate, rdp_curve(inner), rdp_curve(replace_one(inner)))
        case Composed(parts):
            total = dict.fromkeys(ORDERS, 0.0)
            for part, count in parts:
                times = _real("count", count, zero=True)
                if times == 0:
                    continue
                curve = rdp_curve(part)
                total = {o: (total[o] + times * curve[o]) * _OUTWARD for o in total if o in curve}
            return total
        case Scheduled(parts, most):
            return _dearest(parts, most)
        case _:
            raise AccountingError(
                "event-unknown",
                "No accountant can vouch for this event.",
                found=type(event).__name__,
            )


def epsilon_from_rdp(curve: Mapping[int, float], delta: float) -> float:
    """The smallest epsilon over the curve's orders, rounded up; infinity where none is finite.

    Raises:
        AccountingError: ``parameter-out-of-range`` unless 0 < delta < 1.
    """
    if not (math.isfinite(delta) and 0 < delta < 1):
        raise AccountingError(
            "parameter-out-of-range",
            "Delta is out of range.",
            expected="0 < delta < 1",
            found=delta,
        )
    if all(value == 0 for value in curve.values()):
        return 0.0
    best = min(
        (
            value + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
            for order, value in curve.items()
            if math.isfinite(value)
        ),
        default=math.inf,
    )
    # The absolute part covers the cancellation of terms of up to a few hundred.
    return max(best + 1e-12, 0.0) * (1 + 1e-9)
