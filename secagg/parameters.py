"""Thresholds of the complete graph, and what they tolerate.

t = floor((k + c) / 2) + 1 for k neighbours of which at most c collude with the aggregator:
then 2t > k + c, so honest neighbours never reveal both secrets of one device (Bonawitz et al.,
CCS 2017, section 6; corrupt ones may answer twice and count twice).
"""

from __future__ import annotations

from secagg.errors import ConfigurationError
from secagg.limits import COHORT_MIN, COMPLETE_GRAPH_MAX


def threshold(neighbour_count: int, corrupt: int) -> int:
    """Shares needed to open one secret of a device.

    Raises:
        ConfigurationError: ``threshold-unreachable`` when even all neighbours would not suffice.
    """
    if corrupt < 0:
        raise ConfigurationError(
            "corrupt-negative", "Corrupt devices are counted from zero.", found=corrupt
        )
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


def dropouts_tolerated(cohort_size: int, corrupt: int) -> int:
    """Devices of a cohort that may vanish while every secret can still be opened.

    A device that vanished is itself not among its own neighbours, but a survivor has itself to
    subtract: survivors - 1 >= threshold for the survivors, survivors >= threshold for the dropped.
    """
    needed = threshold(cohort_size - 1, corrupt)
    return cohort_size - 1 - needed


def check_cohort(size_min: int, size_max: int, survivors_min: int, corrupt: int) -> None:
    """Refuse cohort rules under which no cohort could be opened safely.

    Raises:
        ConfigurationError: ``cohort-size``, ``cohort-too-large``, ``survivors-min``,
            ``threshold-unreachable`` or ``survivors-below-threshold``.
    """
    if not COHORT_MIN <= size_min <= size_max:
        raise ConfigurationError(
            "cohort-size",
            "A cohort has at least two devices, and a least size not above its largest.",
            expected=f"{COHORT_MIN} <= size_min <= size_max",
            found=(size_min, size_max),
        )
    if size_max > COMPLETE_GRAPH_MAX:
        raise ConfigurationError(
            "cohort-too-large",
            "The complete graph serves no larger cohort.",
            expected=COMPLETE_GRAPH_MAX,
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
    for size in range(size_min, size_max + 1):
        needed = threshold(size - 1, corrupt)
        if size == size_min and survivors_min - 1 < needed:
            raise ConfigurationError(
                "survivors-below-threshold",
                f"In a cohort of {size}, each survivor needs shares from {needed} other survivors.",
                expected=f"survivors_min >= {needed + 1}",
                found=survivors_min,
                remedy="Raise survivors_min, form larger cohorts or declare fewer corrupt devices.",
            )
