"""The chance that a batch makes its device miss the public slot, or fail, as a part of delta.

Amplified statements hold for a task in which time and failures never show a batch. Couple
that task with the real one by their coins: they differ only where the device that holds the example
overruns, with a chance of at most p in each of T releases, whatever its data and the releases
before. So for both neighbours the real outputs are within the distance T p of ideal ones, and two
triangle inequalities make of an (epsilon, delta') guarantee

    P(S) <= P_0(S) + T p <= e^epsilon Q_0(S) + delta' + T p
         <= e^epsilon Q(S) + delta' + (1 + e^epsilon) T p,

P, Q being the real outputs of the neighbours and P_0, Q_0 the ideal ones. T p without the factor
would not do: an overrun beside one neighbour may hide just what is e^epsilon times likelier beside
the other.
"""

from __future__ import annotations

import math


def overrun_log2(slack_log2: float, releases: int, overrun: float) -> float:
    """log2 (at most 0) of 2^slack_log2 and the overruns of so many releases together.

    ``overrun``: chance in one release; 0 changes nothing.
    """
    if overrun == 0 or releases == 0:
        return slack_log2
    return min(0.0, math.log2(2.0**slack_log2 + releases * overrun))


def taken(epsilon: float, releases: int, overrun: float) -> float:
    """What the overruns of so many releases take from delta, (1 + e^epsilon) T p.

    ``epsilon``: not less than that of the ideal task at what is left of delta.
    """
    if overrun == 0 or releases == 0:
        return 0.0
    return math.inf if epsilon > 600 else (1 + math.exp(epsilon)) * releases * overrun


def slot_terms(overrun: float, unstated: str) -> str:
    """What an amplified statement assumes of time and failures; ``unstated``: what must not show
    the batch where no overrun is stated."""
    if overrun == 0:
        return f", if {unstated} not show the batch"
    return (
        ", if a batch makes its device miss its slot, or fail, with a chance of at most "
        f"{overrun!r} in each release"
    )
