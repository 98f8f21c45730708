"""What cohorts cost their tasks: accounts, numbered charges, and the operator's rows of them.

Every function works in its caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from aggregator.store.database import Connection, expect_one
from aggregator.store.schema import cohorts, releases, tasks
from aggregator.views import ReleaseView
from dp.accounting.budget import Account
from dp.accounting.statements import ReleaseFacts


async def locked_account(connection: Connection, task: str) -> tuple[Account, int]:
    """(account, number of charges) of a task; on PostgreSQL locked to the transaction's end."""
    found = await connection.execute(
        sa.select(tasks.c.account, tasks.c.charges).where(tasks.c.task == task).with_for_update()
    )
    row = found.one()
    return Account.from_json(row.account.encode()), row.charges


async def reserve(
    connection: Connection, task: str, cohort: str, charge: int, account: Account
) -> None:
    """Give a cohort the charge with the number ``charge``, and store the account with it.

    Raises:
        Conflict: another cohort took that number.
    """
    await expect_one(
        connection,
        sa.update(tasks)
        .where(tasks.c.task == task, tasks.c.charges == charge - 1)
        .values(charges=charge, account=account.to_json().decode()),
    )
    await connection.execute(
        sa.update(cohorts).where(cohorts.c.cohort == cohort).values(charge=charge)
    )


async def spend(connection: Connection, task: str, account: Account) -> None:
    """Store the account of a task that has spent what was reserved."""
    await connection.execute(
        sa.update(tasks).where(tasks.c.task == task).values(account=account.to_json().decode())
    )


async def give_back(
    connection: Connection, task: str, cohort: str, charges: int, account: Account
) -> None:
    """Take a cohort's charge from it: ``charges`` and the account are those without it."""
    await connection.execute(
        sa.update(tasks)
        .where(tasks.c.task == task)
        .values(charges=charges, account=account.to_json().decode())
    )
    await connection.execute(
        sa.update(cohorts).where(cohorts.c.cohort == cohort).values(charge=None)
    )


async def charge_of(connection: Connection, cohort: str) -> int | None:
    """The number of a cohort's charge; None while it costs nothing."""
    charge: int | None = await connection.scalar(
        sa.select(cohorts.c.charge).where(cohorts.c.cohort == cohort)
    )
    return charge


@dataclass(frozen=True)
class Charged:
    """``opened_at``: Unix seconds, of the cohort. ``version``, ``account``: of its task."""

    opened_at: float
    version: int
    account: Account


async def charged(connection: Connection, cohort: str) -> Charged:
    """A cohort with its task, after what the transaction has written so far."""
    found = await connection.execute(
        sa.select(cohorts.c.opened_at, tasks.c.version, tasks.c.account)
        .join(tasks, tasks.c.task == cohorts.c.task)
        .where(cohorts.c.cohort == cohort)
    )
    row = found.one()
    return Charged(row.opened_at, row.version, Account.from_json(row.account.encode()))


async def record(
    connection: Connection, task: str, view: ReleaseView, counted: ReleaseFacts
) -> None:
    """Insert the operator's row of a charge. ``counted``: what accounting counts of it."""
    await connection.execute(
        sa.insert(releases).values(
            task=task,
            release=view.release,
            cohort=view.cohort,
            outcome=view.outcome,
            survivors=counted.survivors,
            masking_set_size=counted.masking_set_size,
            leaf_index=view.leaf_index,
            view=msgspec.json.encode(view).decode(),
        )
    )


async def newest(connection: Connection, task: str) -> ReleaseView | None:
    """A task's last charge; None before the first."""
    view = await connection.scalar(
        sa.select(releases.c.view)
        .where(releases.c.task == task)
        .order_by(releases.c.release.desc())
        .limit(1)
    )
    return None if view is None else msgspec.json.decode(view, type=ReleaseView)


async def facts(connection: Connection, task: str) -> list[ReleaseFacts]:
    """What accounting counts of a task's charges, in order."""
    rows = await connection.execute(
        sa.select(releases.c.survivors, releases.c.masking_set_size)
        .where(releases.c.task == task)
        .order_by(releases.c.release)
    )
    return [
        ReleaseFacts(survivors=row.survivors, masking_set_size=row.masking_set_size) for row in rows
    ]
