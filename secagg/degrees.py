"""Degree and threshold of a large cohort, from what is assumed about it.

Of n devices c collude with an active aggregator, which picks them, the drop-outs, and the roster,
but not the circle that ``secagg.graph`` draws from the roster's digest. With k neighbours each:

*Local security.* An honest neighbour reveals one kind of share, a corrupt one both. Both secrets of
a device open only if its neighbourhood holds C >= 2t - k corrupt devices (Bonawitz et al., CCS
2017, section 6, on one neighbourhood). C is hypergeometric; a union bound over the devices.

*Connection.* A part of the sum opens by itself only if the honest survivors fall apart. On the
circle this takes two gaps of k/2 places in a row without an honest survivor (the Harary graph is
k-connected; compare Bell et al., CCS 2020, definition 3.1). Beside a gap stands a survivor that is
left with k/2 neighbours on its other side, and t > k/2: the aggregator needs at least t - k/2
corrupt devices inside each gap, so at least 2t - k in both, *whatever* drop-outs it chooses. A
union bound over all pairs of gaps. It takes one survivor set that more than (n + c)/2 of the roster
has confirmed: otherwise different arcs could be shown different sets.

Both together are at most 2^-(security_bits + 64): 64 bits stand against an aggregator that tries
rosters until it likes the circle.

*Liveness.* With floor(dropout * n) drop-outs at random, some device has fewer than t neighbours
left with probability at most 2^-correctness_bits, again a union bound over the devices.

A complete graph needs none of this: its bounds are certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from secagg.errors import ConfigurationError
from secagg.limits import COHORT_MAX, COHORT_MIN, COMPLETE_GRAPH_MAX
from secagg.parameters import dropouts_tolerated, threshold
from secagg.tails import tail_log2

DEGREE_MAX = 4 * COMPLETE_GRAPH_MAX  # neighbours; more do not fit a roster message
GRINDING_BITS = 64  # rosters that the aggregator may try, log2


@dataclass(frozen=True)
class ThreatModel:
    """What is assumed of one cohort.

    Attributes:
        clients: devices in the cohort.
        corrupt: devices that collude with the aggregator, at most.
        dropouts: devices that vanish: chosen by the adversary for security, random for liveness.
        security_bits: the adversary wins with probability 2^-security_bits at most.
        correctness_bits: random drop-outs end the cohort with probability 2^-correctness_bits at
            most.
    """

    clients: int
    corrupt: int
    dropouts: int
    security_bits: int = 40
    correctness_bits: int = 20


@dataclass(frozen=True)
class CohortPlan:
    """What a threat model needs. Probabilities are bounds, as log2; -inf: it cannot happen.

    Attributes:
        degree: neighbours of each device; clients - 1 in the complete graph.
        threshold: shares that open one secret.
        security_log2: for one roster. ``ground_log2``: for the best of 2^64 rosters.
        failure_log2: of random drop-outs ending the cohort.
    """

    degree: int
    threshold: int
    security_log2: float
    ground_log2: float
    failure_log2: float


def plan_cohort(model: ThreatModel) -> CohortPlan:
    """The sparsest graph found that serves a threat model, with the least threshold on it.

    Raises:
        ConfigurationError: ``cohort-size``, ``corrupt-range``, ``security-bits``,
            ``threshold-unreachable``, ``dropouts-not-tolerated``, ``confirmations-unreachable`` or
            ``degree-unreachable``.
    """
    _check(model)
    n = model.clients
    if n > COMPLETE_GRAPH_MAX:
        _check_confirmations(model)
        largest = min(DEGREE_MAX, n - 2) // 2
        low, high = 1, largest
        found: CohortPlan | None = None
        while low <= high:
            middle = (low + high) // 2
            plan = evaluate(model, 2 * middle)
            if plan is None:
                low = middle + 1
            else:
                found, high = plan, middle - 1
        if found is not None:
            return found
        if n - 1 > DEGREE_MAX:
            raise ConfigurationError(
                "degree-unreachable",
                f"No sparse graph of {n} devices serves so many corrupt devices and drop-outs.",
                expected=f"a degree of at most {DEGREE_MAX}",
                found=f"{model.corrupt} corrupt, {model.dropouts} drop-outs, "
                f"{model.security_bits} and {model.correctness_bits} bits",
                remedy="Declare fewer of either, or form cohorts of at most "
                f"{DEGREE_MAX + 1} devices on the complete graph.",
            )
    return _complete(model)


def evaluate(model: ThreatModel, degree: int) -> CohortPlan | None:
    """The least threshold that is secure at an even degree < clients - 1; None if that, or
    liveness under it, is out of reach."""
    n = model.clients
    wanted = -(model.security_bits + GRINDING_BITS)
    for needed in range(degree // 2 + 1, degree + 1):
        security = security_log2(n, model.corrupt, degree, needed)
        if security <= wanted:
            failure = failure_log2(n, model.dropouts, degree, needed)
            if failure > -model.correctness_bits:
                return None
            return CohortPlan(degree, needed, security, security + GRINDING_BITS, failure)
    return None


def security_log2(clients: int, corrupt: int, degree: int, needed: int) -> float:
    """log2 of the bound on local security and connection failing, for one random circle."""
    excess = 2 * needed - degree
    local = math.log2(clients) + tail_log2(clients - 1, corrupt, degree, excess)
    pairs = math.log2(math.comb(clients, 2))
    apart = pairs + tail_log2(clients, corrupt, degree, excess)
    return min(0.0, max(local, apart) + 1)


def failure_log2(clients: int, dropouts: int, degree: int, needed: int) -> float:
    """log2 of the bound on some device keeping fewer than ``needed`` of its neighbours."""
    lost = tail_log2(clients - 1, dropouts, degree, degree - needed + 1)
    return min(0.0, math.log2(clients) + lost)


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
    degree = model.clients - 1
    needed = threshold(degree, model.corrupt)
    return CohortPlan(degree, needed, -math.inf, -math.inf, -math.inf)


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
            "Corrupt devices and drop-outs are some of the cohort, not all.",
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


def _check_confirmations(model: ThreatModel) -> None:
    survivors = model.clients - model.dropouts
    if 2 * survivors <= model.clients + model.corrupt:
        raise ConfigurationError(
            "confirmations-unreachable",
            "More than (n + c)/2 of the roster must confirm one survivor set.",
            expected=f"at least {(model.clients + model.corrupt) // 2 + 1} survivors",
            found=survivors,
            remedy="Declare fewer drop-outs or fewer corrupt devices.",
        )
