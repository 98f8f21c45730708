"""What routes and the operator's overview ask the database, one function a question."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from aggregator.store.database import Connection, Database
from aggregator.store.schema import (
    bans,
    cohorts,
    mail,
    releases,
    sessions,
    strikes,
    tasks,
    versions,
)
from aggregator.store.sealing import MESSAGE
from aggregator.views import CohortView, EndedCohort, ReleaseView, TaskRow, TaskState

_OF_TASK = (versions.c.task == tasks.c.task) & (versions.c.version == tasks.c.version)


@dataclass(frozen=True)
class Current:
    """A task and its present version. ``digest``: hex, of the model file. ``cohort``: the open one.
    ``opened_at``: Unix seconds, of the version; ``leaf_index``: -1 if it is not known."""

    state: TaskState
    charges: int
    cohort: str | None
    created_at: float
    version: int
    digest: str
    size_bytes: int
    opened_at: float
    leaf_index: int
    closed_at: float | None


_CURRENT = sa.select(
    tasks.c.state,
    tasks.c.charges,
    tasks.c.cohort,
    tasks.c.created_at,
    versions.c.version,
    versions.c.digest,
    versions.c.size_bytes,
    versions.c.opened_at,
    versions.c.leaf_index,
    tasks.c.closed_at,
).join(versions, _OF_TASK)


async def current(database: Database, task: str) -> Current:
    """The present version of a task that there is."""
    (row,) = await database.few(_CURRENT.where(tasks.c.task == task))
    return Current(**row._mapping)


async def current_in(connection: Connection, task: str) -> Current:
    """As :func:`current`, within a transaction."""
    found = await connection.execute(_CURRENT.where(tasks.c.task == task))
    return Current(**found.one()._mapping)


async def has_model(database: Database, digest: str) -> bool:
    """Whether some version has the model file with this digest, hex."""
    query = sa.select(versions.c.digest).where(versions.c.digest == digest).limit(1)
    return bool(await database.few(query))


async def present_models(database: Database) -> set[str]:
    """Digests of all tasks' present versions, hex."""
    query = sa.select(versions.c.digest).join(tasks, _OF_TASK)
    return {row.digest for row in await database.rows(query)}


async def is_older(database: Database, digest: str, model: str, most: int) -> bool:
    """Whether ``digest`` is at most ``most`` versions before ``model``, of the same task; hex."""
    older, newer = versions.alias(), versions.alias()
    behind = newer.c.version - older.c.version
    query = (
        sa.select(older.c.version)
        .join(newer, newer.c.task == older.c.task)
        .where(older.c.digest == digest, newer.c.digest == model, behind > 0, behind <= most)
        .limit(1)
    )
    return bool(await database.rows(query))


@dataclass(frozen=True)
class StoredSession:
    """``identity``: hashed (:meth:`Cells.name`). ``newest_version``: of its task. ``cohort``,
    ``roster_index``: None while it waits."""

    identity: str
    task: str
    cohort: str | None
    roster_index: int | None
    model_version: int
    newest_version: int
    expires_at: float


async def session(database: Database, name: str) -> StoredSession | None:
    rows = await database.few(
        sa.select(
            sessions.c.identity,
            sessions.c.task,
            sessions.c.cohort,
            sessions.c.roster_index,
            sessions.c.model_version,
            tasks.c.version.label("newest_version"),
            sessions.c.expires_at,
        )
        .join(tasks, tasks.c.task == sessions.c.task)
        .where(sessions.c.session == name)
    )
    return StoredSession(**rows[0]._mapping) if rows else None


async def mail_after(
    database: Database, session_id: str, after: int, most: int
) -> list[tuple[int, bytes]]:
    """(number, message) of a session's mail, in order, from the one behind ``after``."""
    rows = await database.rows(
        sa.select(mail.c.number, mail.c.message)
        .where(mail.c.session == session_id, mail.c.number > after)
        .order_by(mail.c.number)
        .limit(most)
    )
    cells = database.cells
    return [
        (row.number, cells.open(MESSAGE, (session_id, row.number), row.message)) for row in rows
    ]


async def task_rows(database: Database) -> tuple[TaskRow, ...]:
    """All tasks but those that were deleted, oldest first."""
    table = tasks.c
    rows = await database.rows(
        sa.select(table.task, table.state, table.version, table.charges, table.closed_at)
        .where(table.deleted_at.is_(None))
        .order_by(table.created_at)
    )
    return tuple(msgspec.convert(row, TaskRow, from_attributes=True) for row in rows)


async def release_of(database: Database, task: str, cohort: str) -> ReleaseView | None:
    """What a cohort was charged; None: nothing."""
    rows = await database.rows(
        sa.select(releases.c.view).where(releases.c.task == task, releases.c.cohort == cohort)
    )
    return msgspec.json.decode(rows[0].view, type=ReleaseView) if rows else None


async def releases_of(
    connection: Connection, task: str, *, newest: int | None = None, before: int | None = None
) -> list[ReleaseView]:
    """A task's charges, in order, without what they cost in strikes and bans.

    Args:
        newest: at most so many, the newest.
        before: only those with a smaller number.
    """
    query = sa.select(releases.c.view).where(releases.c.task == task)
    if before is not None:
        query = query.where(releases.c.release < before)
    rows = await connection.execute(query.order_by(releases.c.release.desc()).limit(newest))
    views = [msgspec.json.decode(view, type=ReleaseView) for view in rows.scalars()]
    return views[::-1]


async def started_from(connection: Connection, task: str, most: int) -> list[str]:
    """The newest tasks whose first model is one of this task's, but those that were deleted."""
    member = f'"start_from":{msgspec.json.encode(task).decode()}'
    rows = await connection.execute(
        sa.select(tasks.c.task)
        .where(tasks.c.spec.contains(member, autoescape=True), tasks.c.deleted_at.is_(None))
        .order_by(tasks.c.created_at.desc())
        .limit(most)
    )
    return list(rows.scalars())


async def ended_free(
    connection: Connection, task: str, most: int
) -> tuple[int, tuple[EndedCohort, ...]]:
    """How many cohorts ended without a charge, and the newest of them."""
    free = (cohorts.c.task == task, cohorts.c.state == "aborted", cohorts.c.charge.is_(None))
    count = await connection.scalar(sa.select(sa.func.count()).where(*free)) or 0
    rows = await connection.execute(
        sa.select(cohorts.c.cohort, cohorts.c.reason, cohorts.c.size, cohorts.c.ended_at)
        .where(*free)
        .order_by(cohorts.c.ended_at.desc())
        .limit(most)
    )
    return count, tuple(msgspec.convert(row, EndedCohort, from_attributes=True) for row in rows)


async def struck_by_cohort(connection: Connection, task: str) -> dict[str, int]:
    """Cohort -> strikes that it caused."""
    return await _count_by_cohort(connection, strikes, task)


async def banned_by_cohort(connection: Connection, task: str) -> dict[str, int]:
    """Cohort -> bans that it caused and that stand."""
    return await _count_by_cohort(connection, bans, task)


async def _count_by_cohort(connection: Connection, table: sa.Table, task: str) -> dict[str, int]:
    rows = await connection.execute(
        sa.select(table.c.cohort, sa.func.count())
        .where(table.c.cohort.in_(sa.select(cohorts.c.cohort).where(cohorts.c.task == task)))
        .group_by(table.c.cohort)
    )
    return {row[0]: row[1] for row in rows}


async def bans_of(connection: Connection, task: str) -> int:
    """How many devices are banned for what they did in a task."""
    count = sa.select(sa.func.count()).select_from(bans).where(bans.c.task == task)
    return await connection.scalar(count) or 0


async def cohort_view(connection: Connection, cohort: str | None) -> CohortView | None:
    found = await connection.execute(
        sa.select(cohorts.c.cohort, cohorts.c.phase, cohorts.c.size, cohorts.c.opened_at).where(
            cohorts.c.cohort == cohort
        )
    )
    row = found.first()
    return None if row is None else msgspec.convert(row, CohortView, from_attributes=True)
