"""Degree and threshold of a cohort, from what is assumed about it; docs/parameters.md proves them.

Of n devices c collude with the aggregator. An *active* aggregator picks them, the drop-outs and the
roster, but not the circle that ``secagg.graph.harary`` draws from the roster's digest: 64 bits
stand against one that tries rosters until it likes the circle. A *semi-honest* one follows the
protocol, and drop-outs are random; this weaker class is the one of Bell et al. (CCS 2020), for
comparison. Tasks are made for the active class only.

A complete graph needs no luck: its bounds are certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from secagg.errors import ConfigurationError
from secagg.graph import bounds
from secagg.graph.harary import is_complete
from secagg.graph.parameters import check_confirmations, check_sizes, dropouts_tolerated, threshold
from secagg.graph.tails import either_log2
from secagg.limits import (
    COHORT_MAX,
    COHORT_MIN,
    COMPLETE_GRAPH_MAX,
    CORRECTNESS_BITS,
    DEGREE_MAX,
    GRINDING_BITS,
    SECURITY_BITS,
)

Adversary = Literal["active", "semi-honest"]


@dataclass(frozen=True)
class ThreatModel:
    """What is assumed of one cohort.

    Attributes:
        clients: devices in the cohort.
        corrupt: devices that collude with the aggregator, at most.
        dropouts: devices that vanish at random. What an active aggregator chooses to drop beyond
            them may end the cohort, but unmasks nothing.
        security_bits: the adversary wins with probability 2^-security_bits at most.
        correctness_bits: random drop-outs end the cohort with probability 2^-correctness_bits at
            most.
    """

    clients: int
    corrupt: int
    dropouts: int
    security_bits: int = SECURITY_BITS
    correctness_bits: int = CORRECTNESS_BITS
    adversary: Adversary = "active"


@dataclass(frozen=True)
class CohortPlan:
    """What a threat model needs. Probabilities are bounds, as log2; -inf: it cannot happen.

    Attributes:
        degree: neighbours of each device; clients - 1 in the complete graph.
        threshold: shares that open one secret.
        opened_twice_log2, cut_log2: both secrets of a device open, or a part of the sum by itself,
            on one random circle.
        security_log2: either of them, on the best of all circles that the adversary may try.
        failure_log2: of random drop-outs ending the cohort.
    """

    degree: int
    threshold: int
    opened_twice_log2: float
    cut_log2: float
    security_log2: float
    failure_log2: float


def plan_cohort(model: ThreatModel) -> CohortPlan:
    """The least degree that serves a threat model, with the least threshold on it.

    Raises:
        ConfigurationError: ``cohort-size``, ``corrupt-range``, ``security-bits``,
            ``threshold-unreachable``, ``dropouts-not-tolerated``, ``confirmations-unreachable`` or
            ``degree-unreachable``.
    """
    _check(model)
    n = model.clients
    if n > COMPLETE_GRAPH_MAX:
        if model.adversary == "active":
            check_confirmations(n, n - model.dropouts, model.corrupt)
        for degree in range(2, min(DEGREE_MAX, n - 2) + 1, 2):
            found = evaluate(model, degree)
            if found is not None:
                return found
        if n - 1 > DEGREE_MAX:
            raise _unreachable(
                f"{n} devices, {model.corrupt} corrupt, {model.dropouts} drop-outs, "
                f"{model.security_bits} and {model.correctness_bits} bits"
            )
    return _complete(model)


def plan_rules(size_min: int, size_max: int, survivors_min: int, corrupt: int) -> tuple[int, int]:
    """Degree and threshold of a manifest whose cohorts have any size from size_min to size_max.

    Drop-outs are the fraction 1 - survivors_min / size_min; the adversary is active; the bits are
    ``limits.SECURITY_BITS`` and ``limits.CORRECTNESS_BITS``. Sizes up to
    ``limits.COMPLETE_GRAPH_MAX`` have the complete graph whatever is returned, and if there are no
    others it is (0, 0).

    Raises:
        ConfigurationError: as ``parameters.check_sizes``, or ``confirmations-unreachable`` or
            ``degree-unreachable``.
    """
    check_sizes(size_min, size_max, survivors_min, corrupt)
    if size_max <= COMPLETE_GRAPH_MAX:
        return 0, 0
    check_confirmations(size_max, survivors_min, corrupt)
    wanted = -(SECURITY_BITS + GRINDING_BITS)
    lost = size_min - survivors_min
    for degree in range(2, min(DEGREE_MAX, size_max - 2) + 1, 2):
        smallest = bounds.smallest_sparse(size_min, degree)
        needed = _least_threshold(smallest, size_max, corrupt, degree, wanted)
        if needed is None:
            continue
        one = bounds.unopened_log2(size_max, size_max * lost // size_min, degree, needed)
        if one > -CORRECTNESS_BITS:  # no more than the bound for all sizes, and cheaper
            continue
        every = bounds.unopened_range_log2(smallest, size_max, lost, size_min, degree, needed)
        if every <= -CORRECTNESS_BITS:
            return degree, needed
    raise _unreachable(
        f"{size_min} to {size_max} devices, {corrupt} corrupt, {survivors_min} survivors"
    )


def assess(model: ThreatModel, degree: int, needed: int) -> CohortPlan:
    """What any degree and threshold give against an active aggregator; the bits are not read.

    ``degree`` 0, or one that makes the graph complete, stands for the complete graph; ``needed``
    then follows.

    Raises:
        ConfigurationError: as :func:`plan_cohort` for counts out of range, or
            ``threshold-unreachable``.
    """
    _check(model)
    n, corrupt = model.clients, model.corrupt
    if is_complete(n, degree):
        needed, never = threshold(n - 1, corrupt), -math.inf
        failure = never if model.dropouts <= dropouts_tolerated(n, corrupt) else 0.0
        return CohortPlan(n - 1, needed, never, never, never, failure)
    twice = bounds.opened_twice_log2(n, n, corrupt, degree, needed)
    cut = bounds.cut_log2(n, n, corrupt, degree, needed)
    security = min(0.0, either_log2(twice, cut) + GRINDING_BITS)
    failure = bounds.unopened_log2(n, model.dropouts, degree, needed)
    if 2 * (n - model.dropouts) <= n + corrupt:
        failure = 0.0
    return CohortPlan(degree, needed, twice, cut, security, failure)


def safest_threshold(model: ThreatModel, degree: int) -> int:
    """The largest threshold of a sparse graph that random drop-outs leave its correctness bits.

    For experiments with a degree of one's own; it promises nothing about security.

    Raises:
        ConfigurationError: ``correctness-missed`` if that is not more than half of the degree.
    """
    failure = 0.0
    for needed in range(degree, degree // 2, -1):
        failure = bounds.unopened_log2(model.clients, model.dropouts, degree, needed)
        if failure <= -model.correctness_bits:
            return needed
    raise ConfigurationError(
        "correctness-missed",
        f"At degree {degree}, {model.dropouts} random drop-outs of {model.clients} leave some "
        "device without enough neighbours too often, whatever the threshold.",
        expected=f"2^-{model.correctness_bits} at most",
        found=f"2^{failure:.1f}",
        remedy="Use a larger degree, fewer drop-outs, or a threshold of your own.",
    )


def evaluate(model: ThreatModel, degree: int) -> CohortPlan | None:
    """The least threshold that is secure at an even degree < clients - 1; None if that, or
    liveness under it, is out of reach."""
    n, corrupt = model.clients, model.corrupt
    if model.adversary == "active":
        ground = GRINDING_BITS
        needed = _least_threshold(n, n, corrupt, degree, -(model.security_bits + ground))
        if needed is None:
            return None
        twice = bounds.opened_twice_log2(n, n, corrupt, degree, needed)
        cut = bounds.cut_log2(n, n, corrupt, degree, needed)
    else:
        ground = 0
        cut = bounds.cut_at_random_log2(n, corrupt, model.dropouts, degree)
        needed = _least_semi_honest_threshold(model, degree)
        if needed is None or cut > -(model.security_bits + 1):
            return None
        twice = bounds.opened_twice_log2(n, n, corrupt, degree, needed, active=False)
    failure = bounds.unopened_log2(n, model.dropouts, degree, needed)
    if failure > -model.correctness_bits:
        return None
    security = min(0.0, either_log2(twice, cut) + ground)
    return CohortPlan(degree, needed, twice, cut, security, failure)


def _least_threshold(
    smallest: int, largest: int, corrupt: int, degree: int, wanted: float
) -> int | None:
    """The least threshold with which an active aggregator succeeds with 2^wanted at most."""
    for needed in range(degree // 2 + 1, degree + 1):
        twice = bounds.opened_twice_log2(smallest, largest, corrupt, degree, needed)
        cut = bounds.cut_log2(smallest, largest, corrupt, degree, needed)
        if either_log2(twice, cut) <= wanted:
            return needed
    return None


def _least_semi_honest_threshold(model: ThreatModel, degree: int) -> int | None:
    """The same for step 10. As published, each of its two events has half of what is allowed."""
    n = model.clients
    for needed in range(1, degree + 1):
        twice = bounds.opened_twice_log2(n, n, model.corrupt, degree, needed, active=False)
        if twice <= -(model.security_bits + 1):
            return needed
    return None


def _complete(model: ThreatModel) -> CohortPlan:
    tolerated = dropouts_tolerated(model.clients, model.corrupt)
    if model.dropouts > tolerated:
        raise ConfigurationError(
            "dropouts-not-tolerated",
            "So many drop-outs would leave a device without enough neighbours.",
            expected=f"at most {tolerated}",
            found=model.dropouts,
            remedy="Form larger cohorts, or declare fewer corrupt devices.",
        )
    degree, never = model.clients - 1, -math.inf
    return CohortPlan(degree, threshold(degree, model.corrupt), never, never, never, never)


def _unreachable(found: str) -> ConfigurationError:
    return ConfigurationError(
        "degree-unreachable",
        "No sparse graph serves so many corrupt devices and drop-outs.",
        expected=f"a degree of at most {DEGREE_MAX}",
        found=found,
        remedy="Declare fewer of either, or form cohorts of at most "
        f"{COMPLETE_GRAPH_MAX} devices on the complete graph.",
    )


def _check(model: ThreatModel) -> None:
    if not COHORT_MIN <= model.clients <= COHORT_MAX:
        raise ConfigurationError(
            "cohort-size",
            "The cohort's size is out of range.",
            expected=f"{COHORT_MIN} to {COHORT_MAX}",
            found=model.clients,
        )
    if not (0 <= model.corrupt < model.clients and 0 <= model.dropouts < model.clients):
        raise ConfigurationError(
            "corrupt-range",
            "The numbers of corrupt devices and drop-outs are out of range.",
            expected=f"0 to {model.clients - 1}",
            found=(model.corrupt, model.dropouts),
        )
    if not (1 <= model.security_bits <= 256 and 1 <= model.correctness_bits <= 64):
        raise ConfigurationError(
            "security-bits",
            "The bits asked for are out of range.",
            expected="1 to 256 bits of security, 1 to 64 of correctness",
            found=(model.security_bits, model.correctness_bits),
        )
