"""Writes ``docs/states.md`` from the tables that both machines obey (``secagg.transitions``).

python -m docs.states > docs/states.md
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from secagg.client import transitions as of_device
from secagg.server import transitions as of_cohort
from secagg.transitions import EventT, LiveT, Phase, StateT, Table

_START = "[*]"
Cells = Mapping[tuple[str, str], frozenset[str]]


def cells(table: Table[LiveT, EventT, StateT]) -> Cells:
    """A machine's table in words: (phase, event) -> next phases, in the table's order."""
    return {
        (before.phase, event.__name__): frozenset(after.phase for after in targets)
        for before, row in table.items()
        for event, targets in row.items()
    }


def _identifier(phase: str) -> str:
    """Mermaid takes a hyphen in an identifier for part of an arrow."""
    return phase.replace("-", "_")


def _edges(table: Cells) -> Mapping[tuple[str, str], list[str]]:
    """(phase, next phase) -> the events that lead there, in the table's order."""
    edges: dict[tuple[str, str], list[str]] = {}
    for (phase, event), targets in table.items():
        for target in sorted(targets):
            edges.setdefault((phase, target), []).append(event)
    return edges


def diagram(table: Cells, terminal: Collection[type[Phase]], opening: str) -> str:
    """A Mermaid state diagram; ``opening`` is the call that makes the first phase."""
    phases = list(dict.fromkeys(phase for phase, _ in table))
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{name}" as {_identifier(name)}' for name in phases if "-" in name]
    lines.append(f"    {_START} --> {_identifier(phases[0])}: {opening}")
    for (phase, target), events in _edges(table).items():
        lines.append(f"    {_identifier(phase)} --> {_identifier(target)}: {', '.join(events)}")
    lines += [
        f"    {_identifier(name)} --> {_START}" for name in sorted(last.phase for last in terminal)
    ]
    return "\n".join([*lines, "```"])


def rows(table: Cells) -> str:
    """The same as a table, for readers without Mermaid."""
    lines = ["| phase | event | next phase |", "|---|---|---|"]
    for (phase, event), targets in table.items():
        lines.append(f"| {phase} | {event} | {', '.join(sorted(targets))} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    devices, cohorts = cells(of_device.TABLE), cells(of_cohort.TABLE)
    device = diagram(devices, of_device.TERMINAL, "advertise")
    aggregator = diagram(cohorts, of_cohort.TERMINAL, "open_cohort")
    return f"""# Phases of the two machines

Generated from the tables in `secagg/client/transitions.py` and `secagg/server/transitions.py` by
`docs/states.py`; a test compares. What is not on this page cannot happen: an event without a row is
refused, or passed over as described in [protocol.md](protocol.md#order-repetition-and-lateness).
Several next phases: which one is decided by the checks of that step.

## Device

Received messages are named by their kind; `VectorReady` and `Cancel` come from the device's own
driver.

{device}

{rows(devices)}

## Aggregator

Messages of devices are named by their kind; `VectorAdded`, `Tick`, `SumUnmasked`, `SumRefused`,
`ReleaseCommitted` and `Cancel` come from the aggregator's own driver.

{aggregator}

{rows(cohorts)}"""


if __name__ == "__main__":
    print(page())
