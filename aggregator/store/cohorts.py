"""Cohorts and their event logs. Every function works in its caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from aggregator.store.database import Connection, cells_of, expect_one
from aggregator.store.schema import (
    cohort_events,
    cohorts,
    contributions,
    partial_sums,
    service_facts,
    tasks,
)
from aggregator.store.sealing import EVENT

# -- one cohort ---------------------------------------------------------------------------------


async def insert(
    connection: Connection,
    cohort: str,
    *,
    task: str,
    attempt: int,
    version: int,
    phase: str,
    size: int,
    opened_at: float,
    event: tuple[str, bytes],
) -> None:
    """Open a cohort with event 0 of its log, (kind, payload). ``opened_at``: Unix seconds."""
    await connection.execute(
        sa.insert(cohorts).values(
            cohort=cohort,
            task=task,
            attempt=attempt,
            model_version=version,
            state="open",
            phase=phase,
            seq=0,
            size=size,
            opened_at=opened_at,
        )
    )
    kind, payload = event
    sealed = cells_of(connection).seal(EVENT, (cohort, 0), payload)
    await connection.execute(
        sa.insert(cohort_events).values(cohort=cohort, seq=0, kind=kind, payload=sealed)
    )


async def advance(
    connection: Connection,
    cohort: str,
    seq: int,
    phase: str,
    events: Sequence[tuple[str, bytes]],
) -> None:
    """Append events, (kind, payload), behind number ``seq``; the cohort is then in ``phase``.

    Raises:
        Conflict: the log has gone on, or the cohort has ended.
    """
    await expect_one(
        connection,
        sa.update(cohorts)
        .where(cohorts.c.cohort == cohort, cohorts.c.seq == seq)
        .where(cohorts.c.state == "open")
        .values(seq=seq + len(events), phase=phase),
    )
    cells = cells_of(connection)
    rows = [
        {
            "cohort": cohort,
            "seq": number,
            "kind": kind,
            "payload": cells.seal(EVENT, (cohort, number), payload),
        }
        for number, (kind, payload) in enumerate(events, seq + 1)
    ]
    await connection.execute(sa.insert(cohort_events), rows)


async def abandon(connection: Connection, cohort: str, phase: str) -> None:
    """Put an open cohort into its last phase without an event.

    Raises:
        Conflict: it has ended.
    """
    await expect_one(
        connection,
        sa.update(cohorts)
        .where(cohorts.c.cohort == cohort, cohorts.c.state == "open")
        .values(phase=phase),
    )


async def close(
    connection: Connection, task: str, cohort: str, reason: str | None, now: float
) -> None:
    """A cohort is over: its task is free, and what its log and sums held is erased.

    ``reason``: why it came to nothing; None if its sum was released.
    """
    await connection.execute(
        sa.update(cohorts)
        .where(cohorts.c.cohort == cohort)
        .values(
            state="released" if reason is None else "aborted",
            reason=reason,
            ended_at=now,
            opener=None,
        )
    )
    await connection.execute(
        sa.update(tasks).where(tasks.c.task == task, tasks.c.cohort == cohort).values(cohort=None)
    )
    for table in (cohort_events, contributions, partial_sums):
        await connection.execute(sa.delete(table).where(table.c.cohort == cohort))
    failure = service_facts.c.name == _failure_of(cohort)
    await connection.execute(sa.delete(service_facts).where(failure))


async def work_failed(connection: Connection, cohort: str) -> None:
    """Work of some replica for an open cohort has failed; nothing happens once it has ended."""
    here = sa.select(cohorts.c.state).where(cohorts.c.cohort == cohort)
    # On PostgreSQL whoever ends the cohort waits, or has ended it: no row is left behind.
    state = await connection.scalar(here.with_for_update(read=True))
    if state == "open" and not await has_failed(connection, cohort):
        await connection.execute(
            sa.insert(service_facts).values(name=_failure_of(cohort), value=cohort)
        )


async def has_failed(connection: Connection, cohort: str) -> bool:
    """Whether work of any replica for an open cohort has failed."""
    here = service_facts.c.name == _failure_of(cohort)
    return await connection.scalar(sa.select(service_facts.c.value).where(here)) is not None


def _failure_of(cohort: str) -> str:
    return f"failed-{cohort[:24]}"  # a name has at most 32 characters


async def take_lease(
    connection: Connection, cohort: str, replica: str, now: float, until: float
) -> bool:
    """Whether the replica may unmask the sum until then: no other holds an unexpired lease."""
    result = await connection.execute(
        sa.update(cohorts)
        .where(cohorts.c.cohort == cohort, cohorts.c.state == "open")
        .where(
            sa.or_(
                cohorts.c.opener.is_(None),
                cohorts.c.opener == replica,
                cohorts.c.opener_until < now,
            )
        )
        .values(opener=replica, opener_until=until)
    )
    return result.rowcount == 1


@dataclass(frozen=True)
class Progress:
    """``seq``: of the last event. ``state``: open, released or aborted."""

    task: str
    seq: int
    state: str


async def progress(connection: Connection, cohort: str) -> Progress | None:
    found = await connection.execute(
        sa.select(cohorts.c.task, cohorts.c.seq, cohorts.c.state).where(cohorts.c.cohort == cohort)
    )
    row = found.first()
    return None if row is None else Progress(**row._mapping)


async def size(connection: Connection, cohort: str) -> int:
    """Devices of the roster."""
    found = await connection.scalar(sa.select(cohorts.c.size).where(cohorts.c.cohort == cohort))
    return int(found or 0)


async def opened_at(connection: Connection, cohort: str) -> float:
    """Unix seconds."""
    found = await connection.execute(
        sa.select(cohorts.c.opened_at).where(cohorts.c.cohort == cohort)
    )
    return float(found.scalar_one())


# -- its log ------------------------------------------------------------------------------------


async def events_after(
    connection: Connection, cohort: str, seq: int, most: int | None = None
) -> list[tuple[str, bytes]]:
    """(kind, payload) of the events behind number ``seq`` (-1: all), in order; at most so many.

    Their numbers have no gaps.

    Raises:
        CellRefused: one of them does not open.
    """
    rows = await connection.execute(
        sa.select(cohort_events.c.seq, cohort_events.c.kind, cohort_events.c.payload)
        .where(cohort_events.c.cohort == cohort, cohort_events.c.seq > seq)
        .order_by(cohort_events.c.seq)
        .limit(most)
    )
    cells = cells_of(connection)
    return [(row.kind, cells.open(EVENT, (cohort, row.seq), row.payload)) for row in rows]


# -- the cohorts of a task, and all -------------------------------------------------------------


async def attempts(connection: Connection, task: str, version: int) -> tuple[int, float]:
    """(number of cohorts of this version of a task; when the last one ended, Unix seconds, 0 if
    none has)."""
    found = await connection.execute(
        sa.select(sa.func.count(), sa.func.max(cohorts.c.ended_at)).where(
            cohorts.c.task == task, cohorts.c.model_version == version
        )
    )
    count, ended_at = found.one()
    return count, ended_at or 0.0


async def last_opened_at(connection: Connection, task: str) -> float:
    """When the task's last cohort was formed, Unix seconds; 0 before the first."""
    query = sa.select(sa.func.max(cohorts.c.opened_at)).where(cohorts.c.task == task)
    return await connection.scalar(query) or 0.0


async def open_now(connection: Connection) -> dict[str, int]:
    """Open cohorts -> number of their last event."""
    rows = await connection.execute(
        sa.select(cohorts.c.cohort, cohorts.c.seq).where(cohorts.c.state == "open")
    )
    return {row.cohort: row.seq for row in rows}
