"""The first page: the service's health, all tasks, and what needs attention.

The number of its queries does not grow with the tasks.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aggregator.cohorts.drop_outs import NOT_DEALING_MIN
from aggregator.http.dashboard import attention
from aggregator.http.dashboard.render import Page
from aggregator.measures import epsilon_spent
from aggregator.overview import with_progress
from aggregator.service import Service
from aggregator.store import measures, seen
from aggregator.store.measures import TaskNow
from aggregator.tasks import Task
from aggregator.views import CohortView, NotDealingView, TaskState
from secagg import __version__

PAGE = Page("overview", ("attention", "health", "tasks"))
_DEVICES_SHOWN = 8
_FINISHED_SHOWN = 50  # the newest; all that are open or paused are shown


@dataclass(frozen=True)
class TaskLine:
    """``epsilon``: of the unit that has lost most; None without noise. ``charge_at``: of the last
    charge; None before the first."""

    task: str
    state: TaskState
    algorithm: str
    version: int
    charges: int
    releases_max: int
    max_epsilon: float | None
    epsilon: float | None
    cohort: CohortView | None
    waiting: int
    charge_at: float | None


async def values(service: Service) -> dict[str, Any]:
    core = service.core
    now = core.clock()
    async with core.database.read() as connection:
        tasks = await measures.tasks_now(connection)
        cohorts = {row.task: row for row in await measures.open_cohorts(connection)}
        waiting = await measures.waiting(connection, now)
        failed = await seen.failed_in_a_row(connection)
        idle = await seen.never_dealing(connection, NOT_DEALING_MIN, _DEVICES_SHOWN)
        size = await measures.ledger_size(connection)
        database_bytes = await measures.database_bytes(connection)
    shown, left_out = _shown(tasks)
    lines = []
    for task in shown:
        row = cohorts.get(task.task)
        cohort = row and with_progress(
            core,
            CohortView(cohort=row.cohort, phase=row.phase, size=row.size, opened_at=row.opened_at),
            service.driver.live,
        )
        made = await service.tasks.get(task.task)
        lines.append(_line(task, made, cohort, waiting.get(task.task, 0)))
    witnesses = service.ledger.witnesses(size)
    not_ready = await service.not_ready()
    free = await _free(service)
    return {
        "now": now,
        "attention": [
            *attention.of_service(not_ready),
            *attention.of_witnesses(witnesses),
            *(said for line in lines for said in _of_line(line, failed)),
            *attention.of_devices(
                (
                    device.task,
                    NotDealingView(
                        device=core.pseudonyms.device(device.identity),
                        cohorts=device.cohorts,
                        first_at=device.last_at,
                        last_at=device.last_at,
                    ),
                )
                for device in idle
            ),
        ],
        "tasks": lines,
        "left_out": left_out,
        "not_ready": not_ready,
        "open_cohorts": len(cohorts),
        "waiting": sum(waiting.values()),
        "partners": len(service.partners.keys),
        "ledger_size": size,
        "witnesses": witnesses,
        "database": core.database.address,
        "database_bytes": database_bytes,
        "free": free,
        "free_min": core.settings.disk_free_min,
        "version": __version__,
        "replica": core.replica,
        "started_at": core.started_at,
    }


def _shown(tasks: list[TaskNow]) -> tuple[list[TaskNow], int]:
    """Tasks in the order in which they matter, and how many finished ones are left out."""
    finished = [task for task in tasks if task.state == "finished"]
    finished.sort(key=lambda task: -task.changed_at)
    others = [task for task in tasks if task.state != "finished"]
    return [*others, *finished[:_FINISHED_SHOWN]], max(0, len(finished) - _FINISHED_SHOWN)


def _line(now: TaskNow, task: Task, cohort: CohortView | None, waiting: int) -> TaskLine:
    budget = task.manifest.budget
    return TaskLine(
        task=now.task,
        state=now.state,
        algorithm=task.manifest.algorithm,
        version=now.version,
        charges=now.charges,
        releases_max=budget.releases_max,
        max_epsilon=budget.max_epsilon,
        epsilon=max(epsilon_spent(task.manifest, now).values(), default=None),
        cohort=cohort,
        waiting=waiting,
        charge_at=now.charge.released_at if now.charge else None,
    )


def _of_line(line: TaskLine, failed: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [
        *attention.of_cohort(line.task, line.cohort),
        *attention.of_failures(line.task, failed.get(line.task, {})),
        *attention.of_budget(line.task, line.state, line.charges, line.releases_max),
    ]


async def _free(service: Service) -> int | None:
    """Bytes free where the data folder lies."""
    try:
        usage = await asyncio.to_thread(shutil.disk_usage, service.core.settings.data_dir)
    except OSError:
        return None
    return usage.free
