"""Writes ``docs/states.md`` from the table that both machines obey (``secagg.transitions``).

python -m docs.states > docs/states.md
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from secagg import transitions

_START = "[*]"


def _identifier(phase: str) -> str:
    """Mermaid takes a hyphen in an identifier for part of an arrow."""
    return phase.replace("-", "_")


def _edges(table: transitions.Table) -> Mapping[tuple[str, str], list[str]]:
    """(phase, next phase) -> the events that lead there, in the table's order."""
    edges: dict[tuple[str, str], list[str]] = {}
    for (phase, event), targets in table.items():
        for target in sorted(targets):
            edges.setdefault((phase, target), []).append(event)
    return edges


def diagram(table: transitions.Table, terminal: Collection[str], opening: str) -> str:
    """A Mermaid state diagram; ``opening`` is the call that makes the first phase."""
    phases = list(dict.fromkeys(phase for phase, _ in table))
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{name}" as {_identifier(name)}' for name in phases if "-" in name]
    lines.append(f"    {_START} --> {_identifier(phases[0])}: {opening}")
    for (phase, target), events in _edges(table).items():
        lines.append(f"    {_identifier(phase)} --> {_identifier(target)}: {', '.join(events)}")
    lines += [f"    {_identifier(name)} --> {_START}" for name in sorted(terminal)]
    return "\n".join([*lines, "```"])


def rows(table: transitions.Table) -> str:
    """The same as a table, for readers without Mermaid."""
    lines = ["| phase | event | next phase |", "|---|---|---|"]
    for (phase, event), targets in table.items():
        lines.append(f"| {phase} | {event} | {', '.join(sorted(targets))} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    device = diagram(transitions.CLIENT, transitions.CLIENT_TERMINAL, "advertise")
    aggregator = diagram(transitions.SERVER, transitions.SERVER_TERMINAL, "open_cohort")
    return f"""# Phases of the two machines

Generated from `secagg/transitions.py` by `docs/states.py`; a test compares. What is not on this
page cannot happen: an event without a row is refused, or passed over as described in
[protocol.md](protocol.md#order-repetition-and-lateness). Several next phases: which one is decided
by the checks of that step.

## Device

Received messages are named by their kind; `VectorReady` and `Cancel` come from the device's own
driver.

{device}

{rows(transitions.CLIENT)}

## Aggregator

Messages of devices are named by their kind; `VectorAdded`, `Tick`, `SumOpened`, `SumRefused`,
`ReleaseCommitted` and `Cancel` come from the aggregator's own driver.

{aggregator}

{rows(transitions.SERVER)}"""


if __name__ == "__main__":
    print(page())
