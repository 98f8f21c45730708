"""What ``secagg join`` says of the device's events, a sentence each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client_sdk import Event

_REASONS = {  # of waiting, in words
    "model-given": "this device gave a vector for this model; it waits for the next",
    "other-task": "a cohort of another task counts on this device",
    "task-paused": "the task is paused",
    "unreachable": "the aggregator is out of reach",
}
_SAID = frozenset(("message", "reason"))  # details that say by themselves what they are


def sentence(event: Event, state: Path) -> str:
    """``state``: the device's state folder, which a remedy names."""
    if event.kind == "resumed":
        return (
            f"resumed: the unfinished session of task {event.task} is finished first (phase "
            f"{event.detail['phase']}); to end it instead: secagg session reset {state}"
        )
    if event.kind == "account":
        return f"account: {_counted(event.detail)}"
    if event.kind == "examples-left-out":
        return f"{event.detail['examples']} examples count as zero: {event.detail['first']}"
    if event.kind == "examples-cut":
        return f"{event.detail['examples']} examples count, but not whole: {event.detail['first']}"
    if event.kind == "units-unprotected":
        return (
            f"{event.detail['examples']} examples name whose they are, and the task protects each "
            "example by itself"
        )
    if event.kind == "progress":
        left = event.detail["seconds_left"]
        rest = "" if left is None else f", about {left:.0f} s left"
        return f"{event.detail['what']}: {event.detail['done']} of {event.detail['total']}{rest}"
    if event.kind == "stopped":
        return "stopped: a cohort counts on this device" if event.detail["pending"] else "stopped"
    detail = {key: value for key, value in event.detail.items() if value is not None}
    if (tasks := detail.pop("no_finite_total", None)) is not None:
        detail["all tasks together"] = (
            f"have no finite epsilon, because of {tasks}; the others cost {detail.pop('others')}"
        )
    if (micro := detail.pop("epsilon_micro", None)) is not None:
        detail["epsilon"] = f"{int(str(micro)) / 1e6:.4g}"
    if "message" in detail:  # it says the reason
        detail.pop("reason", None)
    if detail.get("reason") in _REASONS:
        detail["reason"] = _REASONS[str(detail["reason"])]
    said = [
        str(value) if key in _SAID else f"{_word(key)} {value}" for key, value in detail.items()
    ]
    return f"{event.kind}: {', '.join(said)}" if said else event.kind


def _word(key: str) -> str:
    return key.replace("_", " ")


def _counted(detail: Mapping[str, object]) -> str:
    """What the account counts, and how to have it count otherwise."""
    if detail["counts"] == "folder":
        return (
            "it counts this state folder alone. Other devices of yours over the same data have "
            "budgets of their own, unless all name the data with --data-id"
        )
    others = f"{detail['folders']} state folders, {detail['charges_of_others']} charges by others"
    if detail["counts"] == "user":
        said = f"all of your devices whose data have no --data-id count as one data set: {others}"
    else:
        said = f"all of your devices that name this data id count together: {others}"
    if detail["renewed"]:
        said += f"; begun anew {detail['renewed']} times after a loss, so there may be more"
    return said
