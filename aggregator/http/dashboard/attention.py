"""What an operator should look at: sentences, each with what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from aggregator.ledger.witnesses import WitnessNow
from aggregator.readiness import NotReady
from aggregator.views import CohortView, NotDealingView, TaskView

_FAILED_MIN = 2  # cohorts in a row without a release: one may have been a network
_LEFT_SHARE = 0.1


def of_task(task: TaskView, failed: Mapping[str, int]) -> list[str]:
    """``failed``: reason -> cohorts that ended so since the last release."""
    return [
        *of_cohort(task.task, task.cohort),
        *of_failures(task.task, failed),
        *of_budget(task.task, task.state, task.charges, task.releases_max),
        *of_devices((task.task, device) for device in task.not_dealing),
    ]


def of_service(not_ready: NotReady | None) -> list[str]:
    if not_ready is None:
        return []
    return [f"This replica is not ready ({not_ready.reason}): {not_ready.detail}"]


def of_cohort(task: str, cohort: CohortView | None) -> list[str]:
    if cohort is None or not cohort.stuck:
        return []
    return [
        f"Cohort {cohort.cohort[:12]} of {task} is stuck in {cohort.phase}: "
        "the phase should have ended. The log (cohort-stuck) says what failed."
    ]


def of_failures(task: str, failed: Mapping[str, int]) -> list[str]:
    count = sum(failed.values())
    if count < _FAILED_MIN:
        return []
    reasons = ", ".join(f"{reason} {times}" for reason, times in sorted(failed.items()))
    return [f"{count} cohorts of {task} have ended since its last release: {reasons}."]


def of_budget(task: str, state: str, charges: int, releases_max: int) -> list[str]:
    left = max(0, releases_max - charges)
    if state == "finished" or left > _LEFT_SHARE * releases_max:
        return []
    count = left or "No"
    return [f"{count} of {releases_max} charges left to {task}. After the last one it ends."]


def of_devices(found: Iterable[tuple[str, NotDealingView]]) -> list[str]:
    """``found``: of each device the task."""
    return [
        f"Device {device.device} has dealt in none of the last {device.cohorts} cohorts of "
        f"{task} that took it; each waited for it as long as its deadline. "
        "secagg device list shows its key."
        for task, device in found
    ]


def of_witnesses(witnesses: Sequence[WitnessNow]) -> list[str]:
    """Witnesses that have not signed all there is to sign."""
    return [
        f"Witness {witness.name} lacks {witness.lag} record{'' if witness.lag == 1 else 's'}. "
        "Devices that demand its cosignature wait. The log (witness-silent) says why."
        for witness in witnesses
        if witness.lag
    ]
