"""What the operator sees: tasks, their releases, the cohort under way."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import msgspec

from aggregator.cohorts import refusals
from aggregator.cohorts.choosing import Clash, WaitingDevice, choose
from aggregator.cohorts.driver import Live
from aggregator.cohorts.drop_outs import NOT_DEALING_MIN
from aggregator.cohorts.formation import ready_of
from aggregator.cohorts.progress import progress_of, steps_of, under_way, waits_for
from aggregator.cohorts.standing import standing_of
from aggregator.cohorts.strikes import Standing, eligible
from aggregator.core import Core
from aggregator.store import drop_outs, reads, sessions
from aggregator.tasks import Task
from aggregator.views import CohortView, NotDealingView, StepView, TaskView
from dp.schedule import participations, period_of
from secagg.manifest import CohortRules

_ENDED_SHOWN = 16
_NOT_DEALING_SHOWN = 16
_WAITS_FOR_SHOWN = 32


async def task_view(
    core: Core, task: Task, live: Mapping[str, Live], newest: int | None = None
) -> TaskView:
    """Everything about one task, as one moment has it.

    Args:
        live: the cohorts served here.
        newest: so many of its charges at most; None: all.
    """
    manifest = task.manifest
    async with core.database.read() as connection:
        now = await reads.current_in(connection, task.name)
        done = await reads.releases_of(connection, task.name, newest=newest)
        aborted, ended = await reads.ended_free(connection, task.name, _ENDED_SHOWN)
        struck_in = await reads.struck_by_cohort(connection, task.name)
        banned_in = await reads.banned_by_cohort(connection, task.name)
        oldest = now.version - manifest.cohort.versions_back
        waiting = await sessions.waiting(
            connection, task.name, oldest=oldest, until=core.clock(), with_barred=True
        )
        present = [ready_of(row) for row in waiting]
        clashes = await refusals.clashes_of(connection, task.name, core.clock())
        standing = await standing_of(connection, task.name, present)
        banned = await reads.bans_of(connection, task.name)
        refused = await refusals.newest(connection, task.name)
        idle = await drop_outs.devices_not_dealing(
            connection, task.name, NOT_DEALING_MIN, _NOT_DEALING_SHOWN
        )
        cohort = await reads.cohort_view(connection, now.cohort)
    return TaskView(
        task=task.name,
        state=now.state,
        algorithm=manifest.algorithm,
        manifest_digest=task.digest.hex(),
        version=now.version,
        model_digest=now.digest,
        opened_at=now.opened_at,
        created_at=now.created_at,
        charges=now.charges,
        releases_max=manifest.budget.releases_max,
        sums_max=participations(manifest.budget.releases_max, period_of(manifest)),
        max_epsilon=manifest.budget.max_epsilon,
        delta=manifest.budget.delta,
        epsilon=done[-1].epsilon if done else None,
        privacy=done[-1].privacy if done else (),
        releases=tuple(
            msgspec.structs.replace(
                release,
                struck=struck_in.get(release.cohort, 0),
                banned=banned_in.get(release.cohort, 0),
            )
            for release in done
        ),
        aborted=aborted,
        ended_free=ended,
        waiting=len(present),
        banned=banned,
        why_waiting=None
        if cohort is not None or now.state != "open"
        else _why_waiting(core, manifest.cohort, present, clashes, standing, banned),
        refusals=refused,
        not_dealing=tuple(
            NotDealingView(
                device=core.pseudonyms.device(bytes.fromhex(device.identity)),
                cohorts=device.cohorts,
                first_at=device.first_at,
                last_at=device.last_at,
            )
            for device in idle
        ),
        cohort=None if cohort is None else with_progress(core, cohort, live),
        closed_at=now.closed_at,
    )


def with_progress(core: Core, view: CohortView, live: Mapping[str, Live]) -> CohortView:
    """The view with what this replica knows of the cohort, if it serves it."""
    served = live.get(view.cohort)
    if served is None:
        return view
    at, state = progress_of(served.cohort), served.cohort.state
    return msgspec.structs.replace(
        view,
        phase=at.phase,
        done=at.done,
        due=at.due,
        deadline_at=at.deadline_s if math.isfinite(at.deadline_s) else None,
        stuck=at.is_stuck(core.clock()),
        steps=tuple(StepView(**vars(step)) for step in steps_of(state)),
        waits_for=tuple(
            core.pseudonyms.device(state.facts.identity(index))
            for index in waits_for(state)[:_WAITS_FOR_SHOWN]
        ),
        under_way=under_way(state),
    )


def _why_waiting(
    core: Core,
    rules: CohortRules,
    present: list[WaitingDevice],
    clashes: Collection[Clash],
    standing: Standing,
    banned: int,
) -> str | None:
    """What the next cohort lacks, in words; None if it forms by itself as soon as it is due."""
    free, until_s = eligible(present, standing, core.clock())
    if choose(free, rules, clashes=clashes):
        return None
    text = f"A cohort needs {rules.size_min} devices; {len(free)} wait."
    if len(free) >= rules.size_min:
        text += (
            " Too few of them trust each other's partners, have a model in common, and have not "
            "refused each other."
        )
    if banned:
        text += f" Banned in this task: {banned} (secagg device list)."
    if until_s is not None:
        text += (
            f" Held back after cohorts that failed: {len(present) - len(free)}, the first of them "
            f"for {max(0.0, until_s - core.clock()):.0f} s (secagg device list)."
        )
    return text
