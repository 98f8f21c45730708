"""Thresholds of the complete graph, what they tolerate, and which cohort rules are refused.

On the complete graph t = floor((k + c) / 2) + 1 for k neighbours of which at most c collude with
the aggregator: then 2t > k + c, so honest neighbours never reveal both secrets of one device
(Bonawitz et al., CCS 2017, section 6; corrupt ones may answer twice and count twice).
Sparse graphs have degree and threshold in the manifest; ``secagg.graph.degrees`` chooses them, and
here they are checked by the bounds of docs/parameters.md against constants of our own.
"""

from __future__ import annotations

from secagg.errors import ConfigurationError
from secagg.graph import bounds
from secagg.graph.harary import Graph
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
from secagg.manifest import CohortRules


def threshold(neighbour_count: int, corrupt: int) -> int:
    """Shares needed to open one secret of a device.

    Raises:
        ConfigurationError: ``threshold-unreachable`` when even all neighbours would not suffice.
    """
    _check_corrupt(corrupt)
    needed = (neighbour_count + corrupt) // 2 + 1
    if needed > neighbour_count:
        raise ConfigurationError(
            "threshold-unreachable",
            f"{neighbour_count} neighbours of which {corrupt} may be corrupt have no threshold.",
            expected=f"at most {neighbour_count} shares",
            found=needed,
            remedy="Form larger cohorts or declare fewer corrupt devices.",
        )
    return needed


def threshold_on(graph: Graph, rules: CohortRules) -> int:
    """Shares needed to open one secret in a cohort with this graph, under these rules.

    Raises:
        ConfigurationError: ``threshold-unreachable``.
    """
    if graph.is_complete:
        return threshold(graph.neighbour_count, rules.corrupt_max)
    if not graph.degree < 2 * rules.threshold <= 2 * graph.degree:
        raise ConfigurationError(
            "threshold-unreachable",
            "The threshold of a sparse graph is more than half of its degree.",
            expected=f"{graph.degree // 2 + 1} to {graph.degree}",
            found=rules.threshold,
        )
    return rules.threshold


def confirmations_needed(cohort_size: int, corrupt: int) -> int:
    """Confirmations of one survivor set that no other set can have too: more than (n + c)/2."""
    return (cohort_size + corrupt) // 2 + 1


def corrupt_floor(size_max: int) -> int:
    """Corrupt devices that a task should assume: a tenth of its largest cohort, at least one.

    With none assumed, two devices that work with the aggregator open both secrets of a third. A
    constant would mean ever less in larger cohorts.
    """
    return max(1, size_max // 10)


def corrupt_room(size_min: int, size_max: int, survivors_min: int) -> int:
    """Most corrupt devices that leave the fewest survivors enough shares and confirmations.

    In the largest cohort, if its fewest survivors suffice there at all, else in the least, which
    is what :func:`check_cohort` demands. The degree of a sparse graph may permit fewer.
    """
    if size_max > COMPLETE_GRAPH_MAX:
        return max(0, 2 * survivors_min - size_max - 2)
    largest, least = (2 * survivors_min - size - 2 for size in (size_max, size_min))
    return max(0, largest if largest >= 0 else least)


def dropouts_tolerated(cohort_size: int, corrupt: int) -> int:
    """Devices of a cohort that may vanish while every secret can still be opened.

    A device that vanished is itself not among its own neighbours, but a survivor has itself to
    subtract: survivors - 1 >= threshold for the survivors, survivors >= threshold for the dropped.
    """
    needed = threshold(cohort_size - 1, corrupt)
    return cohort_size - 1 - needed


def check_sizes(size_min: int, size_max: int, survivors_min: int, corrupt: int) -> None:
    """Refuse counts of devices that no cohort can have.

    Raises:
        ConfigurationError: ``cohort-size``, ``cohort-too-large``, ``survivors-min`` or
            ``corrupt-negative``.
    """
    if not COHORT_MIN <= size_min <= size_max:
        raise ConfigurationError(
            "cohort-size",
            "A cohort has at least two devices, and a least size not above its largest.",
            expected=f"{COHORT_MIN} <= size_min <= size_max",
            found=(size_min, size_max),
        )
    if size_max > COHORT_MAX:
        raise ConfigurationError(
            "cohort-too-large",
            "The cohort is larger than a roster can be.",
            expected=f"at most {COHORT_MAX}",
            found=size_max,
            remedy="Form several smaller cohorts.",
        )
    if not COHORT_MIN <= survivors_min <= size_min:
        raise ConfigurationError(
            "survivors-min",
            "The fewest survivors lie between two and the least cohort.",
            expected=f"{COHORT_MIN}..{size_min}",
            found=survivors_min,
        )
    _check_corrupt(corrupt)


def check_cohort(
    size_min: int,
    size_max: int,
    survivors_min: int,
    corrupt: int,
    degree: int = 0,
    needed: int = 0,
) -> None:
    """Refuse cohort rules under which some cohort could not be unmasked, or not safely.

    Args:
        degree: neighbours of each device where the graph is sparse; 0: no sparse graph.
        needed: the threshold there; 0: no sparse graph.

    Raises:
        ConfigurationError: as :func:`check_sizes`, or ``threshold-unreachable``,
            ``survivors-below-threshold``, ``degree-unused``, ``degree-missing``, ``degree-range``,
            ``threshold-range``, ``confirmations-unreachable``, ``security-missed`` or
            ``correctness-missed``.
    """
    check_sizes(size_min, size_max, survivors_min, corrupt)
    _check_degree(size_max, degree, needed)
    smallest = bounds.smallest_sparse(size_min, degree)
    if size_min < smallest:  # the threshold grows half as fast as the cohort: the least decides
        least = threshold(size_min - 1, corrupt)
        if survivors_min - 1 < least:
            raise ConfigurationError(
                "survivors-below-threshold",
                f"In a cohort of {size_min}, each survivor needs shares from {least} other "
                "survivors.",
                expected=f"survivors_min >= {least + 1}",
                found=survivors_min,
                remedy="Raise survivors_min, form larger cohorts or declare fewer corrupt devices.",
            )
    if smallest <= size_max:
        _check_sparse(smallest, size_max, corrupt, degree, needed)
        check_confirmations(size_max, survivors_min, corrupt)
        failure = bounds.unopened_range_log2(
            smallest, size_max, size_min - survivors_min, size_min, degree, needed
        )
        if failure > -CORRECTNESS_BITS:
            raise ConfigurationError(
                "correctness-missed",
                f"Random drop-outs of {size_min - survivors_min} in {size_min} would leave a "
                "device without enough neighbours too often.",
                expected=f"2^-{CORRECTNESS_BITS} at most",
                found=f"2^{failure:.1f}",
                remedy="Use a larger degree, or raise survivors_min.",
            )


def check_confirmations(clients: int, survivors: int, corrupt: int) -> None:
    """Refuse a sparse cohort whose survivors cannot confirm one survivor set.

    Raises:
        ConfigurationError: ``confirmations-unreachable``.
    """
    if survivors < confirmations_needed(clients, corrupt):
        raise ConfigurationError(
            "confirmations-unreachable",
            f"In a cohort of {clients}, more than (n + c)/2 of the roster must confirm one "
            "survivor set.",
            expected=f"at least {confirmations_needed(clients, corrupt)} survivors",
            found=survivors,
            remedy="Declare fewer drop-outs or fewer corrupt devices, or bring the largest cohort "
            "nearer to the least.",
        )


def _check_degree(size_max: int, degree: int, needed: int) -> None:
    """Whether there is a degree where one is needed, and it is one."""
    if size_max <= COMPLETE_GRAPH_MAX:
        if degree or needed:
            raise ConfigurationError(
                "degree-unused",
                f"Cohorts of at most {COMPLETE_GRAPH_MAX} devices have the complete graph.",
                expected="degree = threshold = 0",
                found=(degree, needed),
            )
        return
    if degree == 0:
        raise ConfigurationError(
            "degree-missing",
            f"The complete graph serves cohorts of at most {COMPLETE_GRAPH_MAX} devices.",
            expected="a degree and a threshold",
            found=(degree, needed),
            remedy="Plan them with secagg plan cohort, or form several smaller cohorts.",
        )
    if not 2 <= degree <= DEGREE_MAX or degree % 2:
        raise ConfigurationError(
            "degree-range",
            "The degree is odd, or out of range.",
            expected=f"an even degree from 2 to {DEGREE_MAX}",
            found=degree,
        )
    if not degree // 2 < needed <= degree:
        raise ConfigurationError(
            "threshold-range",
            "The threshold is not between half of the neighbours and all of them.",
            expected=f"{degree // 2 + 1}..{degree}",
            found=needed,
        )


def _check_sparse(smallest: int, largest: int, corrupt: int, degree: int, needed: int) -> None:
    """Whether the sparse graphs of all these sizes protect with enough probability."""
    if corrupt >= smallest:
        raise ConfigurationError(
            "threshold-unreachable",
            "All devices of the cohort would be corrupt.",
            expected=f"at most {smallest - 1}",
            found=corrupt,
            remedy="Form larger cohorts or declare fewer corrupt devices.",
        )
    found = either_log2(
        bounds.opened_twice_log2(smallest, largest, corrupt, degree, needed),
        bounds.cut_log2(smallest, largest, corrupt, degree, needed),
    )
    if found > -(SECURITY_BITS + GRINDING_BITS):
        raise ConfigurationError(
            "security-missed",
            f"With {corrupt} corrupt of {smallest} devices, degree {degree} and threshold {needed} "
            "protect too little.",
            expected=f"2^-{SECURITY_BITS + GRINDING_BITS} at most, "
            f"{GRINDING_BITS} bits of it against chosen rosters",
            found=f"2^{found:.1f}",
            remedy="Use a larger threshold or degree, or declare fewer corrupt devices.",
        )


def _check_corrupt(corrupt: int) -> None:
    if corrupt < 0:
        raise ConfigurationError(
            "corrupt-negative", "The number of corrupt devices is negative.", found=corrupt
        )
