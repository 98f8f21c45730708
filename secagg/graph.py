"""Who shares masks with whom, and which end of an edge seals the pair seed.

The graph is complete up to ``limits.COMPLETE_GRAPH_MAX`` devices, which is the largest cohort that
this version admits.
"""

from __future__ import annotations

from secagg.errors import LocalProtocolError


def neighbours(index: int, cohort_size: int) -> tuple[int, ...]:
    """Sorted roster indices of a device's neighbours."""
    if not 0 <= index < cohort_size:
        raise LocalProtocolError(
            "roster-index", "No such place in the roster.", expected=cohort_size, found=index
        )
    return tuple(other for other in range(cohort_size) if other != index)


def sealer(first: int, second: int) -> int:
    """The end of an edge that draws and seals the pair seed; public and balanced.

    The lower index seals when the sum of both is odd, the higher when it is even.
    """
    if first == second:
        raise LocalProtocolError("roster-index", "A device has no edge to itself.", found=first)
    return min(first, second) if (first + second) % 2 else max(first, second)
