"""When a task's budget ends if it goes on as it did, and what it will have cost then."""

from __future__ import annotations

import asyncio

from aggregator.logs import get_logger
from aggregator.tasks import Task
from aggregator.views import TaskView
from dp.planning.task import UnitCost, planned_costs
from secagg.errors import SecaggError

_log = get_logger("dashboard")
_CHARGES = 8  # the pace is theirs


def ends_at(task: TaskView) -> float | None:
    """Unix seconds at which the last charge is due, at the pace of the newest charges.

    None before the second charge, for a task that is not open, and with nothing left.
    """
    times = [charge.released_at for charge in task.releases[-_CHARGES:]]
    if task.state != "open" or len(times) < 2:
        return None
    left = task.releases_max - task.releases[-1].release
    if left <= 0:
        return None
    return times[-1] + left * (times[-1] - times[0]) / (len(times) - 1)


class Plans:
    """What each task costs when all of its charges are spent with the fewest survivors, which is
    the most that it can cost. Computed once a task, beside all else: it may take seconds."""

    def __init__(self) -> None:
        self._costs: dict[bytes, asyncio.Task[tuple[UnitCost, ...]]] = {}  # by manifest

    def of(self, task: Task) -> tuple[UnitCost, ...] | None:
        """None: not known yet, or it cannot be computed."""
        found = self._costs.get(task.digest)
        if found is None:
            found = self._costs[task.digest] = asyncio.create_task(_planned(task), name="planned")
        return found.result() if found.done() and not found.cancelled() else None


async def _planned(task: Task) -> tuple[UnitCost, ...]:
    try:
        return await asyncio.to_thread(planned_costs, task.manifest)
    except SecaggError:
        _log.exception("plan-failed", task=task.name)
        return ()


def most(costs: tuple[UnitCost, ...] | None) -> float | None:
    """Of the units that the task makes a statement about, the dearest; None: not known, none, or
    infinite."""
    stated = [cost.last for cost in costs or () if cost.protected]
    if not stated or None in stated:
        return None
    return max(cost for cost in stated if cost is not None)
