"""What an operator should look at: stuck cohorts, devices that never deal, silent witnesses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aggregator.ledger.witnesses import WitnessNow
from aggregator.views import TaskView


def of_task(task: TaskView) -> list[str]:
    """Sentences; empty where nothing is wrong."""
    found = []
    if task.cohort is not None and task.cohort.stuck:
        found.append(
            f"Cohort {task.cohort.cohort[:12]} of {task.task} is stuck in {task.cohort.phase}: "
            "the phase should have ended. The log (cohort-stuck) says what failed."
        )
    for device in task.not_dealing:
        found.append(
            f"Device {device.device} has dealt in none of the last {device.cohorts} cohorts of "
            f"{task.task} that took it; each waited for it as long as its deadline. "
            "secagg device list shows its key."
        )
    return found


def of_witnesses(witnesses: Sequence[WitnessNow]) -> list[str]:
    """Witnesses that have not signed all there is to sign."""
    return [
        f"Witness {witness.name} lacks {witness.lag} record{'' if witness.lag == 1 else 's'}. "
        "Devices that demand its cosignature wait. The log (witness-silent) says why."
        for witness in witnesses
        if witness.lag
    ]


def of_all(tasks: Iterable[TaskView], witnesses: Sequence[WitnessNow]) -> list[str]:
    return [*of_witnesses(witnesses), *(said for task in tasks for said in of_task(task))]
