"""How far the devices of an open cohort are, and whether it is stuck."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aggregator.cohorts.actor import Cohort
from secagg.server import Checking, Confirming, Masking, Sharing, State, Unmasking

OVERDUE_S = 60.0  # after a deadline: a phase ends within seconds of it
UNMASKING_MAX_S = 1_800.0  # in a phase without a deadline, in which the service alone works


@dataclass(frozen=True)
class Progress:
    """``done`` of the ``due`` devices have come through the phase; both 0 where none is due.
    ``deadline_s``: Unix seconds, infinite where the phase has none. ``since_s``: Unix seconds,
    from which this replica has seen the phase."""

    phase: str
    done: int
    due: int
    deadline_s: float
    since_s: float

    def is_stuck(self, now_s: float) -> bool:
        """Whether the phase should have ended long ago."""
        if self.deadline_s < math.inf:
            return now_s > self.deadline_s + OVERDUE_S
        return now_s > self.since_s + UNMASKING_MAX_S


def progress_of(cohort: Cohort) -> Progress:
    state = cohort.state
    done, due = _devices(state)
    return Progress(state.phase, done, due, state.deadline_s, cohort.phase_since_s)


def _devices(state: State) -> tuple[int, int]:
    match state:
        case Sharing():
            return len(state.dealt), state.facts.size - len(state.gone - state.dealt.keys())
        case Checking():
            return len(state.answered), len(state.dealers)
        case Masking():
            return len(state.added), len(state.masking_set)
        case Confirming():
            return len(state.confirmations), len(state.survivors)
        case Unmasking():
            return len(state.shares), len(state.survivors)
    return 0, 0
