"""How far the devices of an open cohort are, for whom it waits, and whether it is stuck."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from aggregator.cohorts.actor import Cohort
from secagg.messages import KINDS, Confirmation, Deals, MaskedInput, Message, Unmask
from secagg.server import (
    Checking,
    Confirming,
    Masking,
    Sharing,
    State,
    Unmasking,
    masking_set_of,
    survivors_of,
)

OVERDUE_S = 60.0  # after a deadline: a phase ends within seconds of it
STEPS = ("sharing", "checking", "masking", "confirming", "unmasking")
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
    done, due = len(_done(state)), len(_due(state))
    return Progress(state.phase, done, due, state.deadline_s, cohort.phase_since_s)


def waits_for(state: State) -> tuple[int, ...]:
    """Roster indices of the devices that the phase still waits for."""
    return tuple(index for index in _due(state) if index not in _done(state))


@dataclass(frozen=True)
class Step:
    """``came`` of the ``due`` devices have come through; both None before it has begun."""

    step: str
    came: int | None
    due: int | None


def steps_of(state: State) -> tuple[Step, ...]:
    """The steps of a cohort in their order, with the devices of each."""
    size, dealt = state.facts.size, _accepted(state, Deals)
    fixed, survivors = len(masking_set_of(state)), len(survivors_of(state))
    begun: list[tuple[int, int]] = [(dealt, size)]
    if isinstance(state, Checking):
        begun.append((len(state.answered), len(state.dealers)))
    elif fixed:
        begun += [(fixed, dealt), (survivors, fixed)]
    if isinstance(state, Masking):
        begun[-1] = (len(state.added), fixed)
    elif survivors:
        begun.append((_accepted(state, Confirmation), survivors))
        if not isinstance(state, Confirming):
            begun.append((_accepted(state, Unmask), survivors))
    missing = len(STEPS) - len(begun)
    found: list[tuple[int | None, int | None]] = [*begun, *[(None, None)] * missing]
    return tuple(Step(name, came, due) for name, (came, due) in zip(STEPS, found, strict=True))


def under_way(state: State) -> int | None:
    """How many devices have announced a vector that is not in the sum yet; None but while vectors
    come."""
    if not isinstance(state, Masking):
        return None
    return len(state.accepted.get(KINDS[MaskedInput][0], {}).keys() - state.added)


def _accepted(state: State, kind: type[Message]) -> int:
    """Devices of which a message of this kind was obeyed."""
    return len(state.accepted.get(KINDS[kind][0], ()))


def _done(state: State) -> Collection[int]:
    match state:
        case Sharing():
            return state.dealt.keys()
        case Checking():
            return state.answered
        case Masking():
            return state.added
        case Confirming():
            return state.confirmations.keys()
        case Unmasking():
            return state.shares.keys()
    return ()


def _due(state: State) -> Sequence[int]:
    match state:
        case Sharing():
            left = state.gone - state.dealt.keys()
            return [index for index in range(state.facts.size) if index not in left]
        case Checking():
            return state.dealers
        case Masking():
            return state.masking_set
        case Confirming() | Unmasking():
            return state.survivors
    return ()
