"""What all tasks together cost one unit, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from dp.accounting.budget import Total
from dp.accounting.figures import delta_shown, shown_up

_NAMED_MAX = 8  # tasks that a sentence names
_DERIVED = {
    "example": "no statement about examples: one may move what is clipped, a device's vector or "
    "a person's, by twice its bound, and that is what it is charged",
    "device": "no statement about whole devices: one is charged for all examples that it may have "
    "in a sum",
    "person": "no statement about persons: one is charged for all that a device may have in a sum",
    "document": "no statement about documents: one is charged for all that a device may have in a "
    "sum",
}


def together(found: Total) -> str:
    """The total of a unit, which tasks leave it without bound, and what the figure rests on."""
    text = f"One {found.unit} whose data served in every task: {_epsilon(found.epsilon, found)}."
    bare = [task for task in found.unbounded if task not in found.stored_before]
    if bare:
        text += f" {_tasks(bare, 'add')} no noise that protects it."
    if found.stored_before:
        text += (
            f" {_tasks(found.stored_before, 'come')} from an earlier version, which stored no "
            "charge of its own for this unit: what cannot be derived counts as infinite."
        )
    if found.unbounded and found.bounded:
        text += f" All other tasks together: {_epsilon(found.bounded, found)}."
    if found.derived:
        text += f" {_tasks(found.derived, 'make')} {_DERIVED[found.unit]}."
        if found.stated is not None:
            text += f" The tasks that make one: {_epsilon(found.stated, found)}."
    return text


def _epsilon(value: float, found: Total) -> str:
    return f"epsilon {shown_up(value)} at delta {delta_shown(found.delta)}"


def _tasks(names: Sequence[str], verb: str) -> str:
    if len(names) == 1:
        return f"Task {names[0]!r} {verb}s"
    more = len(names) - _NAMED_MAX
    shown = ", ".join(map(repr, names[:_NAMED_MAX])) + (f" and {more} more" if more > 0 else "")
    return f"Tasks {shown} {verb}"
