"""Tasks and the versions of their models.

A function that takes a connection works in its caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from aggregator.store.database import Connection, Database, expect_one
from aggregator.store.models import Stored
from aggregator.store.schema import tasks, versions
from aggregator.views import TaskState
from dp.accounting.budget import Account
from secagg.limits import VERSIONS_BACK_MAX


async def signed_manifest(database: Database, task: str) -> tuple[bytes, bytes] | None:
    """(manifest, signature) of a task, if there is one."""
    rows = await database.rows(
        sa.select(tasks.c.manifest, tasks.c.manifest_signature).where(tasks.c.task == task)
    )
    return (rows[0].manifest, rows[0].manifest_signature) if rows else None


async def insert(
    connection: Connection,
    task: str,
    *,
    spec: str,
    manifest: bytes,
    signature: bytes,
    digest: bytes,
    account: Account,
    created_at: float,
) -> None:
    """Open a task at version 0.

    Args:
        spec: JSON as the operator sent it.
        digest: of the manifest.
        created_at: Unix seconds.
    """
    await connection.execute(
        sa.insert(tasks).values(
            task=task,
            spec=spec,
            manifest=manifest,
            manifest_signature=signature,
            manifest_digest=digest.hex(),
            state="open",
            version=0,
            charges=0,
            account=account.to_json().decode(),
            created_at=created_at,
        )
    )


@dataclass(frozen=True)
class Standing:
    """``cohort``: the open one. ``charges``: released, charged and reserved. Times: Unix seconds;
    None: not yet."""

    state: TaskState
    cohort: str | None
    charges: int
    closed_at: float | None
    deleted_at: float | None


async def locked(connection: Connection, task: str) -> Standing:
    """How a task stands; on PostgreSQL locked to the transaction's end."""
    table = tasks.c
    found = await connection.execute(
        sa.select(table.state, table.cohort, table.charges, table.closed_at, table.deleted_at)
        .where(table.task == task)
        .with_for_update()
    )
    return Standing(**found.one()._mapping)


async def is_deleted(database: Database, task: str) -> bool:
    rows = await database.few(sa.select(tasks.c.deleted_at).where(tasks.c.task == task))
    return bool(rows) and rows[0].deleted_at is not None


async def closed_at(connection: Connection, task: str) -> float | None:
    """Since when no cohort forms any more, by its operator; None: not closed."""
    found: float | None = await connection.scalar(
        sa.select(tasks.c.closed_at).where(tasks.c.task == task)
    )
    return found


async def close(connection: Connection, task: str, now: float) -> None:
    """No cohort forms any more; one that is open goes on."""
    await connection.execute(
        sa.update(tasks).where(tasks.c.task == task).values(state="paused", closed_at=now)
    )


async def hide(connection: Connection, task: str, now: float) -> None:
    await connection.execute(sa.update(tasks).where(tasks.c.task == task).values(deleted_at=now))


async def set_state(connection: Connection, task: str, state: TaskState) -> None:
    await connection.execute(sa.update(tasks).where(tasks.c.task == task).values(state=state))


async def unfinished(connection: Connection) -> list[tuple[str, bytes]]:
    """(task, manifest) of the tasks that are open or paused."""
    rows = await connection.execute(
        sa.select(tasks.c.task, tasks.c.manifest).where(tasks.c.state != "finished")
    )
    return [(row.task, row.manifest) for row in rows]


async def versions_and_states(connection: Connection) -> dict[str, tuple[int, str]]:
    """Task -> (version, state)."""
    rows = await connection.execute(sa.select(tasks.c.task, tasks.c.version, tasks.c.state))
    return {row.task: (row.version, row.state) for row in rows}


# -- versions -----------------------------------------------------------------------------------


async def insert_version(
    connection: Connection,
    task: str,
    version: int,
    model: Stored,
    optimiser: bytes | None,
    opened_at: float,
    leaf_index: int,
) -> None:
    """``leaf_index``: of the ledger's record that makes this version."""
    await connection.execute(
        sa.insert(versions).values(
            task=task,
            version=version,
            digest=model.digest.hex(),
            size_bytes=model.size_bytes,
            optimiser_digest=optimiser.hex() if optimiser else None,
            opened_at=opened_at,
            leaf_index=leaf_index,
        )
    )


@dataclass(frozen=True)
class Version:
    """``model``, ``optimiser``: digests of its files."""

    number: int
    model: bytes
    optimiser: bytes | None


async def present_version(database: Database, task: str) -> Version:
    """The version that the next release starts from."""
    (row,) = await database.rows(
        sa.select(versions)
        .join(tasks, (tasks.c.task == versions.c.task) & (tasks.c.version == versions.c.version))
        .where(tasks.c.task == task)
    )
    digest = row.optimiser_digest
    return Version(
        row.version, bytes.fromhex(row.digest), bytes.fromhex(digest) if digest else None
    )


@dataclass(frozen=True)
class TrainedOn:
    """``state``, ``version``: of the task now. ``digest``: hex, of the model of the version that
    was asked for; None if there is none."""

    state: TaskState
    version: int
    digest: str | None


async def trained_on(connection: Connection, task: str, version: int) -> TrainedOn:
    """A task, and the version that a device says it trained on."""
    found = await connection.execute(
        sa.select(tasks.c.state, tasks.c.version, versions.c.digest)
        .outerjoin(versions, (versions.c.task == tasks.c.task) & (versions.c.version == version))
        .where(tasks.c.task == task)
    )
    return TrainedOn(**found.one()._mapping)


_KEPT_BACK = VERSIONS_BACK_MAX  # versions that a cohort may admit; deltas look back less far


@dataclass(frozen=True)
class Old:
    """Versions that nobody can need any more: (task, number), and the digests, hex, of files that
    no other version has."""

    versions: tuple[tuple[str, int], ...]
    models: frozenset[str]
    optimisers: frozenset[str]


async def old_versions(database: Database) -> Old:
    """Those behind the newest 65 of each task."""
    behind = tasks.c.version - versions.c.version
    query = sa.select(
        versions.c.task,
        versions.c.version,
        versions.c.digest,
        versions.c.optimiser_digest,
        (behind > _KEPT_BACK).label("old"),
    ).join(tasks, tasks.c.task == versions.c.task)
    rows = await database.rows(query)
    old, kept = [row for row in rows if row.old], [row for row in rows if not row.old]
    return Old(
        tuple((row.task, row.version) for row in old),
        frozenset(row.digest for row in old) - {row.digest for row in kept},
        frozenset(row.optimiser_digest for row in old if row.optimiser_digest)
        - {row.optimiser_digest for row in kept},
    )


async def forget_versions(connection: Connection, old: Old) -> None:
    """Call it once their files are gone."""
    for task, version in old.versions:
        await connection.execute(
            sa.delete(versions).where(versions.c.task == task, versions.c.version == version)
        )


# -- its one open cohort ------------------------------------------------------------------------


@dataclass(frozen=True)
class Forming:
    """``cohort``: the open one, which must end before the next is formed. ``account``: JSON."""

    state: TaskState
    version: int
    cohort: str | None
    account: str


async def forming(connection: Connection, task: str) -> Forming:
    """What says whether a task may form a cohort, and of which version."""
    found = await connection.execute(
        sa.select(tasks.c.state, tasks.c.version, tasks.c.cohort, tasks.c.account).where(
            tasks.c.task == task
        )
    )
    return Forming(**found.one()._mapping)


async def claim(connection: Connection, task: str, version: int, cohort: str) -> None:
    """Make this cohort the task's open one.

    Raises:
        Conflict: it has one, has another version, or is not open.
    """
    await expect_one(
        connection,
        sa.update(tasks)
        .where(tasks.c.task == task, tasks.c.cohort.is_(None))
        .where(tasks.c.version == version, tasks.c.state == "open")
        .values(cohort=cohort),
    )


async def advance(connection: Connection, task: str, cohort: str) -> int:
    """Bring a task to its next version, by its open cohort; returns the number.

    Raises:
        Conflict: another cohort is its open one.
    """
    found = await connection.execute(sa.select(tasks.c.version).where(tasks.c.task == task))
    version: int = found.scalar_one() + 1
    await expect_one(
        connection,
        sa.update(tasks)
        .where(tasks.c.task == task, tasks.c.cohort == cohort)
        .values(version=version),
    )
    return version
