"""The budget of a task: what a cohort reserves, spends or gets back, and the record of the charge.

The budget is reserved in the transaction that fixes S (from then on a device may send), and spent
in the one that makes the secrets of the sum complete, so before anything is unmasked; an abort in
between spends it too. The ledger's leaf, the operator's row and the debit are one commit.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from aggregator.algorithms import Step
from aggregator.cohorts.actor import Cohort
from aggregator.cohorts.faults import (
    Fault,
)
from aggregator.core import Core
from aggregator.ledger.log import Ledger
from aggregator.store import models
from aggregator.store.database import Conflict, expect_one
from aggregator.store.schema import (
    cohorts,
    releases,
    tasks,
)
from aggregator.tasks import Task
from aggregator.views import ReleaseView
from dp.accounting.budget import Account
from dp.accounting.statements import PrivacyLine, ReleaseFacts, headline, lines
from dp.errors import BudgetError
from dp.ledger.contributors import CONTRIBUTORS
from dp.ledger.records import (
    ReleaseEntry,
    identity_digest,
    is_apart,
    list_file,
    policy_record,
    release_record,
)
from dp.noise_meter import NoiseInterval
from dp.schedule import period_of
from secagg.context import roster_digest
from secagg.manifest import Manifest
from secagg.server import (
    State,
    masking_set_of,
    survivors_of,
)


@dataclass(frozen=True)
class Computed:
    """What a release adds to its charge: all that follows from the unmasked sum, blobs stored."""

    step: Step
    model: models.Stored
    optimiser: bytes | None
    sum_digest: bytes
    sum_norm: float


class Charging:
    """Every method works in its caller's transaction."""

    def __init__(self, core: Core, ledger: Ledger) -> None:
        self._core = core
        self._ledger = ledger

    async def reserve(self, connection: AsyncConnection, cohort: Cohort) -> None:
        """Set aside what a release of this cohort costs, and number the charge."""
        account, charges = await self._account(connection, cohort.task)
        account = account.reserve(cohort.id, cohort.task.manifest)
        await expect_one(
            connection,
            sa.update(tasks)
            .where(tasks.c.task == cohort.task.name, tasks.c.charges == charges)
            .values(charges=charges + 1, account=account.to_json().decode()),
        )
        await connection.execute(
            sa.update(cohorts).where(cohorts.c.cohort == cohort.id).values(charge=charges + 1)
        )

    async def spend(
        self, connection: AsyncConnection, task: Task, cohort: str, facts: ReleaseFacts | None
    ) -> None:
        """Debit for good; doing it twice changes nothing. None: at the fewest survivors."""
        account, _ = await self._account(connection, task)
        account = account.spend(cohort, task.manifest, facts)
        await connection.execute(
            sa.update(tasks)
            .where(tasks.c.task == task.name)
            .values(account=account.to_json().decode())
        )

    async def _account(self, connection: AsyncConnection, task: Task) -> tuple[Account, int]:
        row = (
            await connection.execute(
                sa.select(tasks.c.account, tasks.c.charges)
                .where(tasks.c.task == task.name)
                .with_for_update()
            )
        ).one()
        return Account.from_json(row.account.encode()), row.charges

    async def give_back(
        self,
        connection: AsyncConnection,
        task: Task,
        cohort: str,
        fault: Fault,
        reason: str,
        now: float,
    ) -> None:
        """Undo the reservation of a cohort that the service failed, or may have failed, before any
        device sent."""
        account, charges = await self._account(connection, task)
        await connection.execute(
            sa.update(tasks)
            .where(tasks.c.task == task.name)
            .values(charges=charges - 1, account=account.cancel(cohort).to_json().decode())
        )
        await connection.execute(
            sa.update(cohorts).where(cohorts.c.cohort == cohort).values(charge=None)
        )
        whose = "fault of the service" if fault == "service" else "fault unknown"
        detail = f"cohort {cohort}: {whose}, {reason[:64]}; nobody had sent"
        await self._ledger.append(
            connection, [policy_record(task.name, "charge-given-back", int(now), detail)]
        )

    async def record(
        self,
        connection: AsyncConnection,
        task: Task,
        entry: ReleaseEntry,
        now: float,
        *,
        reason: str | None = None,
        vectors: int | None = None,
        missed: str | None = None,
        computed: Computed | None = None,
        measured: NoiseInterval | None = None,
        expected_leaf: int | None = None,
    ) -> None:
        """The ledger's leaf and the operator's row of a release or a charged abort, with the next
        number of the task."""
        facts = await self.facts(connection, task)
        now = max(now, await self._recorded_until(connection, task))
        entry = msgspec.structs.replace(entry, release=len(facts) + 1, released_at=int(now))
        cohort = entry.cohort.hex()
        encoded, statements = await asyncio.to_thread(_account_for, task, facts, entry)
        if is_apart(entry):
            await asyncio.to_thread(self._core.blobs.put_digest, CONTRIBUTORS, list_file(entry))
        leaf = await self._ledger.append(connection, [encoded])
        if expected_leaf is not None and leaf != expected_leaf:
            raise Conflict("the ledger grew")
        row = (
            await connection.execute(
                sa.select(cohorts.c.opened_at, tasks.c.version, tasks.c.account)
                .join(tasks, tasks.c.task == cohorts.c.task)
                .where(cohorts.c.cohort == cohort)
            )
        ).one()
        view = ReleaseView(
            release=entry.release,
            cohort=cohort,
            outcome=entry.outcome,
            reason=reason,
            fault=entry.fault,
            cohort_size=entry.cohort_size,
            survivors=entry.survivors,
            vectors=vectors,
            lacking=missed,
            dropped=entry.cohort_size - (entry.survivors if vectors is None else vectors),
            sum_norm=computed.sum_norm if computed else None,
            metrics=computed.step.metrics if computed else {},
            epsilon=headline(statements),
            privacy=statements,
            noise=measured,
            version=row.version,
            leaf_index=leaf,
            opened_at=row.opened_at,
            released_at=now,
            seconds=now - row.opened_at,
        )
        counted = entry.facts(task.manifest)
        await connection.execute(
            sa.insert(releases).values(
                task=task.name,
                release=entry.release,
                cohort=cohort,
                outcome=entry.outcome,
                survivors=counted.survivors,
                masking_set_size=counted.masking_set_size,
                leaf_index=leaf,
                view=msgspec.json.encode(view).decode(),
            )
        )
        if not affordable(Account.from_json(row.account.encode()), task.manifest):
            await connection.execute(
                sa.update(tasks).where(tasks.c.task == task.name).values(state="finished")
            )

    async def _recorded_until(self, connection: AsyncConnection, task: Task) -> float:
        """Time of the task's last record: the next one is not dated before it, even if this
        replica's clock is behind, or was set back."""
        view = await connection.scalar(
            sa.select(releases.c.view)
            .where(releases.c.task == task.name)
            .order_by(releases.c.release.desc())
            .limit(1)
        )
        if view is None:
            return float(task.manifest.created_at)
        return msgspec.json.decode(view, type=ReleaseView).released_at

    async def facts(self, connection: AsyncConnection, task: Task) -> list[ReleaseFacts]:
        rows = await connection.execute(
            sa.select(releases.c.survivors, releases.c.masking_set_size)
            .where(releases.c.task == task.name)
            .order_by(releases.c.release)
        )
        return [
            ReleaseFacts(survivors=row.survivors, masking_set_size=row.masking_set_size)
            for row in rows
        ]


def facts_of(state: State) -> ReleaseFacts:
    """What accounting counts in a cohort whose survivors are confirmed."""
    return ReleaseFacts(
        survivors=len(survivors_of(state)), masking_set_size=len(masking_set_of(state))
    )


def refundable(manifest: Manifest) -> bool:
    """Whether a cohort of which nobody has sent costs its task nothing.

    Not where batches are scheduled: its devices have counted their debits, so their parts come
    round sooner than a ledger without that charge would say.
    """
    return period_of(manifest) == 1


def affordable(account: Account, manifest: Manifest) -> bool:
    """Whether the budget has room for one more release."""
    try:
        account.reserve("the next cohort", manifest)
    except BudgetError:
        return False
    return True


def entry_of(
    state: State,
    number: int,
    now: float,
    computed: Computed | None,
    measured: NoiseInterval | None,
) -> ReleaseEntry:
    facts = state.facts
    masking_set = masking_set_of(state)
    survivors = survivors_of(state) if computed else ()
    return ReleaseEntry(
        release=number,
        cohort=facts.cohort,
        ctx=facts.ctx,
        roster_digest=roster_digest(facts.roster),
        cohort_size=facts.size,
        masking_set_size=len(masking_set),
        survivors=len(survivors),
        model_digests=tuple(model.digest for model in facts.models),
        model_versions=tuple(model.version for model in facts.models),
        sum_digest=computed.sum_digest if computed else b"",
        new_model_digest=computed.model.digest if computed else b"",
        released_at=int(now),
        outcome="released" if computed else "charged",
        measured_variance=(measured.low, measured.high) if measured else None,
        clip=computed.step.clip if computed else None,
        **_members(state, masking_set, survivors),
    )


def _members(state: State, masking_set: Sequence[int], survivors: Sequence[int]) -> dict[str, Any]:
    """Who is listed. A cohort that an older software has checked has no pseudonyms."""
    names = state.pseudonyms
    if not names.keys() >= set(masking_set):
        facts = state.facts
        return {"contributors": tuple(identity_digest(facts.identity(i)) for i in survivors)}
    rest = sorted(set(masking_set) - set(survivors))
    return {
        "attempt": state.facts.attempt,
        "contributors": tuple(names[index] for index in survivors),
        "not_in_sum": tuple(names[index] for index in rest),
    }


def _account_for(
    task: Task, facts: Sequence[ReleaseFacts], entry: ReleaseEntry
) -> tuple[bytes, tuple[PrivacyLine, ...]]:
    """The record as it goes into the ledger, and the lines in it. Runs in a thread."""
    record = release_record(task.manifest, task.digest, facts, entry)
    return record, lines(task.manifest, [*facts, entry.facts(task.manifest)])
