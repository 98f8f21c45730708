"""What the operator sees: tasks, their releases, the cohort under way."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from aggregator.cohorts import refusals
from aggregator.cohorts.choosing import Clash, Ready, choose
from aggregator.cohorts.formation import ready_of
from aggregator.cohorts.strikes import Standing, eligible
from aggregator.core import Core
from aggregator.standing import standing_of
from aggregator.store.schema import bans, cohorts, releases, sessions, strikes, tasks, versions
from aggregator.tasks import Task
from secagg.manifest import CohortRules

_ENDED_SHOWN = 16


async def task_list(core: Core) -> list[dict[str, Any]]:
    """One row per task: name, state, version, charges."""
    async with core.database.read() as connection:
        rows = await connection.execute(
            sa.select(tasks.c.task, tasks.c.state, tasks.c.version, tasks.c.charges).order_by(
                tasks.c.created_at
            )
        )
        return [
            {
                "task": row.task,
                "state": row.state,
                "version": row.version,
                "charges": row.charges,
            }
            for row in rows
        ]


async def task_view(core: Core, task: Task) -> dict[str, Any]:
    """Everything about one task.

    ``releases``: one entry per charge, in order, with ``outcome`` ``released`` or ``charged``.
    ``why_waiting``: what the next cohort lacks, in words; None while one is under way.
    ``refusals``: devices that refused a roster, newest first.
    ``cohort``: the open one, or None. ``aborted``: how many cohorts ended without a charge;
    ``ended_free``: the newest of them, with their reasons.

    In a charge, ``vectors`` counts the devices that sent one where nothing was released,
    ``lacking`` says what came too short, ``struck`` and ``banned`` how many devices that cohort
    cost a strike or a ban that stands.
    """
    manifest = task.manifest
    async with core.database.read() as connection:
        row = (
            await connection.execute(
                sa.select(tasks, versions.c.digest, versions.c.opened_at)
                .join(
                    versions,
                    (versions.c.task == tasks.c.task) & (versions.c.version == tasks.c.version),
                )
                .where(tasks.c.task == task.name)
            )
        ).one()
        views = (
            await connection.execute(
                sa.select(releases.c.view)
                .where(releases.c.task == task.name)
                .order_by(releases.c.release)
            )
        ).scalars()
        done = [json.loads(view) for view in views]
        free = (
            cohorts.c.task == task.name,
            cohorts.c.state == "aborted",
            cohorts.c.charge.is_(None),
        )
        aborted = await connection.scalar(sa.select(sa.func.count()).where(*free))
        ended_free = await connection.execute(
            sa.select(cohorts.c.cohort, cohorts.c.reason, cohorts.c.size, cohorts.c.ended_at)
            .where(*free)
            .order_by(cohorts.c.ended_at.desc())
            .limit(_ENDED_SHOWN)
        )
        ended = [dict(row) for row in ended_free.mappings()]
        struck_in = await _count_by_cohort(connection, strikes, task.name)
        banned_in = await _count_by_cohort(connection, bans, task.name)
        for release in done:
            release.setdefault("fault", "")
            release.setdefault("vectors", None)
            release.setdefault("lacking", None)
            release["struck"] = struck_in.get(release["cohort"], 0)
            release["banned"] = banned_in.get(release["cohort"], 0)
        wait = (
            sessions.c.task == task.name,
            sessions.c.cohort.is_(None),
            sessions.c.model_version >= row.version - manifest.cohort.versions_back,
            sessions.c.expires_at > core.clock(),
        )
        waiting = await connection.scalar(sa.select(sa.func.count()).where(*wait)) or 0
        found = await connection.execute(
            sa.select(
                sessions.c.session,
                sessions.c.model_version,
                sessions.c.waiting_since,
                sessions.c.identity,
                sessions.c.partner,
                sessions.c.trusted,
            ).where(*wait)
        )
        present = [ready_of(row) for row in found]
        clashes = await refusals.clashes_of(connection, task.name, core.clock())
        standing = await standing_of(
            connection,
            task.name,
            sa.select(sessions.c.session, sessions.c.identity, sessions.c.partner).where(*wait),
        )
        banned = await connection.scalar(
            sa.select(sa.func.count()).select_from(bans).where(bans.c.task == task.name)
        )
        refused = await refusals.newest(connection, task.name)
        cohort = (
            await connection.execute(
                sa.select(
                    cohorts.c.cohort, cohorts.c.phase, cohorts.c.size, cohorts.c.opened_at
                ).where(cohorts.c.cohort == row.cohort)
            )
        ).first()
    last = done[-1] if done else {}
    return {
        "task": task.name,
        "state": row.state,
        "algorithm": manifest.algorithm,
        "manifest_digest": task.digest.hex(),
        "version": row.version,
        "model_digest": row.digest,
        "opened_at": row.opened_at,
        "created_at": row.created_at,
        "charges": row.charges,
        "releases_max": manifest.budget.releases_max,
        "max_epsilon": manifest.budget.max_epsilon,
        "delta": manifest.budget.delta,
        "epsilon": last.get("epsilon"),
        "privacy": last.get("privacy", []),
        "releases": done,
        "aborted": aborted,
        "ended_free": ended,
        "waiting": waiting,
        "banned": banned,
        "why_waiting": None
        if cohort is not None or row.state != "open"
        else _why_waiting(core, manifest.cohort, present, clashes, standing, banned or 0),
        "refusals": refused,
        "cohort": None
        if cohort is None
        else {
            "cohort": cohort.cohort,
            "phase": cohort.phase,
            "size": cohort.size,
            "opened_at": cohort.opened_at,
        },
    }


async def _count_by_cohort(
    connection: AsyncConnection, table: sa.Table, task: str
) -> dict[str, int]:
    """Cohort -> rows of bans or strikes that it caused."""
    rows = await connection.execute(
        sa.select(table.c.cohort, sa.func.count())
        .where(table.c.cohort.in_(sa.select(cohorts.c.cohort).where(cohorts.c.task == task)))
        .group_by(table.c.cohort)
    )
    return {row[0]: row[1] for row in rows}


def _why_waiting(
    core: Core,
    rules: CohortRules,
    present: list[Ready],
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
