"""The end of a task by its operator.

A closed task forms no cohort. Its open cohort goes on to its end; then the task is finished, which
the ledger says after the cohort's own record, and its devices hear that the task is over.
"""

from __future__ import annotations

from aggregator.ledger.log import Ledger
from aggregator.store import tasks
from aggregator.store.database import Connection
from dp.ledger.records import policy_record


async def finish(connection: Connection, ledger: Ledger, task: str, now: float) -> None:
    """In the caller's transaction. No cohort of the task is open."""
    await tasks.set_state(connection, task, "finished")
    record = policy_record(task, "finished", int(now), "closed by its operator")
    await ledger.append(connection, [record])


async def finish_if_closed(connection: Connection, ledger: Ledger, task: str, now: float) -> None:
    """After the end of a cohort, in its transaction."""
    if await tasks.closed_at(connection, task) is not None:
        await finish(connection, ledger, task, now)
