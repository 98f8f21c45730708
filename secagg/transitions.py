"""How a machine's transitions are written down: state -> event -> the states it may lead to.

The tables are :data:`secagg.client.transitions.TABLE` and :data:`secagg.server.transitions.TABLE`.
Their keys are classes, so a name that does not exist is an error at import. An event is named by
the class of a driver's event, or by the class of a received message. Both machines look every event
up before they handle it; an illegal move is a missing key. Terminal states have no row: whatever
arrives there is ignored. A message that was obeyed before does nothing when it arrives again, in
any state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeVar


class Phase(Protocol):
    """A state of a machine; ``phase`` is its name in errors and in what is stored."""

    phase: ClassVar[str]


LiveT = TypeVar("LiveT", bound=Phase)
EventT = TypeVar("EventT")
StateT = TypeVar("StateT", bound=Phase)

Table = Mapping[type[LiveT], Mapping[type[EventT], tuple[type[StateT], ...]]]


def due(table: Table[LiveT, EventT, StateT], state: LiveT) -> list[str]:
    """The names of the events that are due in this state, sorted."""
    return sorted(event.__name__ for event in table[type(state)])


def check_move(
    table: Table[LiveT, EventT, StateT], before: LiveT, event: type[EventT], after: StateT
) -> None:
    """Check where the machine went.

    Raises:
        AssertionError: the table has no such move: a bug in the machine.
    """
    if type(after) not in table[type(before)][event]:
        raise AssertionError(f"{before.phase} may not become {after.phase} on {event.__name__}")
