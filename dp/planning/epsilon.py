"""What releases will cost, before there is a task: one mechanism at a noise multiplier.

A whole task, from its target, is :mod:`dp.planning.task`.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, get_args

from dp.accounting.events import (
    Adjacency,
    Composed,
    DiscreteGaussianSum,
    Event,
    PoissonSampled,
    SkellamRelease,
    replace_one,
)
from dp.accounting.figures import delta_shown, limit_shown, shown_up
from dp.accounting.slot_overrun import taken
from dp.accounting.statements import (
    ACCOUNTANT_DISCRETE_GAUSSIAN,
    ACCOUNTANT_SKELLAM,
    ACCOUNTANT_SKELLAM_RENYI,
    POISSON,
    POISSON_REPLACED,
    checked_multiplier,
    epsilon_of,
)
from dp.errors import AccountingError
from dp.noise.grid import clip_units, l1_of, scale_for

LENGTH_MAX = 1 << 40
PLAN_SHARES = 100  # devices whose discrete Gaussian shares a plan adds up


def _plan_units(length: int) -> int:
    if not 1 <= length <= LENGTH_MAX:
        raise AccountingError(
            "parameter-out-of-range",
            "The number of coordinates is out of range.",
            expected=f"1 to {LENGTH_MAX}",
            found=length if length < 1 else math.inf,
        )
    return clip_units(1.0, scale_for(1.0, length, noisy=True))


Mechanism = Literal["gaussian", "discrete-gaussian", "skellam"]


def plan_epsilon(
    noise_multiplier: float,
    rounds: int,
    delta: float,
    sampling_rate: float = 1.0,
    mechanism: Mechanism = "skellam",
    *,
    length: int = 92_160,
    adjacency: Adjacency = "add-or-remove",
    slot_overrun: float = 0.0,
) -> tuple[float, str]:
    """Epsilon of ``rounds`` releases, rounded up, and the accountant's name.

    ``gaussian`` is accounted by :func:`dp.planning.gaussian.gaussian_epsilon`,
    ``discrete-gaussian`` as the sum of ``PLAN_SHARES`` equal shares. ``length``: coordinates, for
    the bounds of the discrete two. ``adjacency``: ``noise_multiplier`` is always noise over *clip*;
    under ``replace-one`` a record moves the sum by two clips. ``slot_overrun``: chance, in one
    release, that a batch makes its device miss its slot, or fail, for which delta pays
    (:mod:`dp.accounting.slot_overrun`).

    Raises:
        AccountingError: ``parameter-out-of-range``, ``mechanism-unknown``,
            ``adjacency-unknown``, ``overrun-without-sampling``, ``overrun-takes-delta``.
    """
    if not 1 <= rounds <= 10**7:
        raise AccountingError(
            "parameter-out-of-range", "Rounds are out of range.", expected="1..10^7", found=rounds
        )
    checked_multiplier(noise_multiplier)
    if not (math.isfinite(sampling_rate) and 0 < sampling_rate <= 1):
        raise AccountingError(
            "parameter-out-of-range",
            "The sampling rate is out of range.",
            expected="0 < rate <= 1",
            found=sampling_rate,
        )
    if not (math.isfinite(delta) and 0 < delta < 1):
        raise AccountingError(
            "parameter-out-of-range", "Delta is out of range.", expected="0..1", found=delta
        )
    if adjacency not in get_args(Adjacency):
        raise AccountingError(
            "adjacency-unknown",
            "No such adjacency.",
            expected=list(get_args(Adjacency)),
            found=adjacency,
        )
    if not (math.isfinite(slot_overrun) and 0 <= slot_overrun < 1):
        raise AccountingError(
            "parameter-out-of-range",
            "The chance of an overrun is out of range.",
            expected="0 <= slot_overrun < 1",
            found=slot_overrun,
        )
    terms = (sampling_rate, mechanism, length, adjacency)
    if slot_overrun == 0:
        return _cost(noise_multiplier, rounds, delta, *terms)
    if sampling_rate == 1:
        raise AccountingError(
            "overrun-without-sampling",
            "Without sampling no cost rests on secret batches, or on the time that they take.",
            expected="sampling_rate < 1",
            found=sampling_rate,
        )
    first, _ = _cost(noise_multiplier, rounds, delta / 2, *terms)
    cost = taken(first, rounds, slot_overrun)
    if cost > delta / 2:
        raise AccountingError(
            "overrun-takes-delta",
            "Missed slots take more than half of delta: (1 + e^epsilon) * rounds * slot_overrun.",
            expected=f"at most {limit_shown(delta / 2)}, half of delta",
            found=f"(1 + e^{shown_up(first)}) * {rounds} * {limit_shown(slot_overrun)} = "
            f"{delta_shown(cost)}",
            remedy="Use a smaller chance, fewer rounds, or more noise.",
        )
    return _cost(noise_multiplier, rounds, delta - cost, *terms)


def _cost(
    noise_multiplier: float,
    rounds: int,
    delta: float,
    sampling_rate: float,
    mechanism: Mechanism,
    length: int,
    adjacency: Adjacency,
) -> tuple[float, str]:
    event: Event
    match mechanism:
        case "gaussian":
            from dp.planning.gaussian import gaussian_epsilon

            return gaussian_epsilon(noise_multiplier, rounds, delta, sampling_rate, adjacency)
        case "discrete-gaussian":
            units = _plan_units(length)
            share = math.ceil(Fraction(noise_multiplier) ** 2 * units**2 / PLAN_SHARES)
            event = DiscreteGaussianSum(units**2, l1_of(units, length), share, PLAN_SHARES, length)
            name = ACCOUNTANT_DISCRETE_GAUSSIAN
        case "skellam":
            units = _plan_units(length)
            variance = math.ceil(Fraction(noise_multiplier) ** 2 * units**2)
            event = SkellamRelease(units**2, l1_of(units, length), variance)
            name = ACCOUNTANT_SKELLAM if sampling_rate == 1 else ACCOUNTANT_SKELLAM_RENYI
        case _:
            raise AccountingError(
                "mechanism-unknown",
                "No such mechanism.",
                expected=["gaussian", "discrete-gaussian", "skellam"],
                found=mechanism,
            )
    if sampling_rate < 1:
        event = PoissonSampled(sampling_rate, event)
        name += POISSON_REPLACED if adjacency == "replace-one" else POISSON
    if adjacency == "replace-one":
        event = replace_one(event)
    return epsilon_of(Composed(((event, rounds),)), delta), name
