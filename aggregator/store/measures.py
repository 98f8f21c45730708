"""What the metrics ask the database. Every function works in its caller's read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from aggregator.store.database import Connection
from aggregator.store.drop_outs import holds_up
from aggregator.store.schema import (
    cohorts,
    drop_outs,
    ledger_head,
    not_dealing,
    releases,
    sessions,
    tasks,
    versions,
)
from aggregator.views import ReleaseView, TaskState


@dataclass(frozen=True)
class TaskNow:
    """``opened_at``: Unix seconds, of the version, which is that of its release. ``charge``: the
    last one, None before the first."""

    task: str
    state: TaskState
    version: int
    charges: int
    opened_at: float
    charge: ReleaseView | None

    @property
    def changed_at(self) -> float:
        """Unix seconds, of the last release or charge."""
        return max(self.opened_at, self.charge.released_at if self.charge else 0.0)


async def tasks_now(connection: Connection) -> list[TaskNow]:
    """All tasks but those that were deleted, oldest first."""
    newest = (
        sa.select(releases.c.task, sa.func.max(releases.c.release).label("release"))
        .group_by(releases.c.task)
        .subquery()
    )
    rows = await connection.execute(
        sa.select(
            tasks.c.task,
            tasks.c.state,
            tasks.c.version,
            tasks.c.charges,
            versions.c.opened_at,
            releases.c.view,
        )
        .join(versions, (versions.c.task == tasks.c.task) & (versions.c.version == tasks.c.version))
        .outerjoin(newest, newest.c.task == tasks.c.task)
        .outerjoin(
            releases,
            (releases.c.task == newest.c.task) & (releases.c.release == newest.c.release),
        )
        .where(tasks.c.deleted_at.is_(None))
        .order_by(tasks.c.created_at)
    )
    found = []
    for row in rows:
        charge = None if row.view is None else msgspec.json.decode(row.view, type=ReleaseView)
        found.append(TaskNow(row.task, row.state, row.version, row.charges, row.opened_at, charge))
    return found


class OpenCohort(NamedTuple):
    cohort: str
    task: str
    phase: str
    size: int
    opened_at: float


async def open_cohorts(connection: Connection) -> list[OpenCohort]:
    rows = await connection.execute(
        sa.select(
            cohorts.c.cohort,
            cohorts.c.task,
            cohorts.c.phase,
            cohorts.c.size,
            cohorts.c.opened_at,
        ).where(cohorts.c.state == "open")
    )
    return [OpenCohort(*row) for row in rows]


class Ended(NamedTuple):
    """``devices``: of the rosters of all these cohorts. ``survived``: of them, in released sums."""

    task: str
    outcome: str
    reason: str | None
    cohorts: int
    devices: int
    survived: int


async def ended(connection: Connection) -> list[Ended]:
    """Counted in one statement, so that no release falls between two."""
    ends = (
        sa.select(
            cohorts.c.task,
            cohorts.c.state,
            cohorts.c.reason,
            sa.func.count().label("cohorts"),
            sa.func.sum(cohorts.c.size).label("devices"),
        )
        .where(cohorts.c.state != "open")
        .group_by(cohorts.c.task, cohorts.c.state, cohorts.c.reason)
        .subquery()
    )
    sums = (
        sa.select(releases.c.task, sa.func.sum(releases.c.survivors).label("survived"))
        .where(releases.c.outcome == "released")
        .group_by(releases.c.task)
        .subquery()
    )
    rows = await connection.execute(
        sa.select(ends, sa.func.coalesce(sums.c.survived, 0)).outerjoin(
            sums, (sums.c.task == ends.c.task) & (ends.c.state == "released")
        )
    )
    return [Ended(*row) for row in rows]


async def lost(connection: Connection) -> list[tuple[str, str, int]]:
    """(task, step, devices that its ended cohorts lost there)."""
    rows = await connection.execute(
        sa.select(drop_outs.c.task, drop_outs.c.step, drop_outs.c.devices)
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def waiting(connection: Connection, now: float) -> dict[str, int]:
    """Task -> devices that wait with an advert which has not expired."""
    query = (
        sa.select(sessions.c.task, sa.func.count())
        .where(sessions.c.cohort.is_(None), sessions.c.expires_at > now)
        .group_by(sessions.c.task)
    )
    return dict(await _pairs(connection, query))


async def counts_not_dealing(connection: Connection, least: int) -> dict[str, int]:
    """Task -> devices that hold its cohorts up (:func:`holds_up`)."""
    query = (
        sa.select(not_dealing.c.task, sa.func.count())
        .where(holds_up(least))
        .group_by(not_dealing.c.task)
    )
    return dict(await _pairs(connection, query))


async def ledger_size(connection: Connection) -> int:
    return await connection.scalar(sa.select(ledger_head.c.size)) or 0


async def database_bytes(connection: Connection) -> int:
    """Of a SQLite file without its write-ahead log, or of a PostgreSQL database."""
    if connection.dialect.name == "sqlite":
        pages = await connection.exec_driver_sql("PRAGMA page_count")
        size = await connection.exec_driver_sql("PRAGMA page_size")
        return int(pages.scalar_one()) * int(size.scalar_one())
    query = sa.select(sa.func.pg_database_size(sa.func.current_database()))
    return int(await connection.scalar(query) or 0)


async def _pairs(connection: Connection, query: sa.Select[Any]) -> list[tuple[str, int]]:
    return [(row[0], row[1]) for row in await connection.execute(query)]
