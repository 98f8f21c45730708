"""When a task's budget ends if it goes on as it did."""

from __future__ import annotations

from aggregator.views import TaskView

_CHARGES = 8  # the pace is theirs


def ends_at(task: TaskView) -> float | None:
    """Unix seconds at which the last charge is due, at the pace of the newest charges.

    None before the second charge, for a task that is not open, and with nothing left.
    """
    left = task.releases_max - len(task.releases)
    times = [charge.released_at for charge in task.releases[-_CHARGES:]]
    if task.state != "open" or left <= 0 or len(times) < 2:
        return None
    return times[-1] + left * (times[-1] - times[0]) / (len(times) - 1)
