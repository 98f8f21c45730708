"""The budget of a task: what a cohort reserves, spends or gets back, and the record of the charge.

The budget is reserved in the transaction that fixes S (from then on a device may send), and spent
in the one that makes the secrets of the sum complete, so before anything is unmasked; an abort in
between spends it too. The ledger's leaf, the operator's row and the debit are one commit.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from aggregator.algorithms import Step
from aggregator.cohorts.actor import Cohort
from aggregator.cohorts.faults import (
    Fault,
)
from aggregator.core import Core
from aggregator.ledger.log import Ledger
from aggregator.store import charges, models, tasks
from aggregator.store.database import Conflict, Connection
from aggregator.tasks import Task
from aggregator.views import ReleaseView
from dp.accounting.budget import Account
from dp.accounting.statements import PrivacyStatement, ReleaseFacts, headline, lines
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


@dataclass(frozen=True)
class _Listed:
    """The devices of a charge under the names in its record. ``attempt``: None in records of
    version 1, which name survivors alone."""

    contributors: tuple[bytes, ...]
    not_in_sum: tuple[bytes, ...] = ()
    attempt: int | None = None


class Charging:
    """Every method but :meth:`keep_list` works in its caller's transaction."""

    def __init__(self, core: Core, ledger: Ledger) -> None:
        self._core = core
        self._ledger = ledger

    async def reserve(self, connection: Connection, cohort: Cohort) -> None:
        """Set aside what a release of this cohort costs, and number the charge."""
        task = cohort.task
        account, before = await charges.locked_account(connection, task.name)
        account = account.reserve(cohort.id, task.manifest)
        await charges.reserve(connection, task.name, cohort.id, before + 1, account)

    async def spend(
        self, connection: Connection, task: Task, cohort: str, facts: ReleaseFacts | None
    ) -> None:
        """Debit for good; doing it twice changes nothing. None: at the fewest survivors."""
        account, _ = await charges.locked_account(connection, task.name)
        await charges.spend(connection, task.name, account.spend(cohort, task.manifest, facts))

    async def give_back(
        self,
        connection: Connection,
        task: Task,
        cohort: str,
        fault: Fault,
        reason: str,
        now: float,
    ) -> None:
        """Undo the reservation of a cohort that the service failed, or may have failed, before any
        device sent."""
        account, before = await charges.locked_account(connection, task.name)
        account = account.cancel(cohort)
        await charges.give_back(connection, task.name, cohort, before - 1, account)
        whose = "fault of the service" if fault == "service" else "fault unknown"
        detail = f"cohort {cohort}: {whose}, {reason[:64]}; nobody had sent"
        await self._ledger.append(
            connection, [policy_record(task.name, "charge-given-back", int(now), detail)]
        )

    async def keep_list(self, entry: ReleaseEntry) -> None:
        """The file of devices that are too many to stand in the entry's record: before the
        transaction that records it, which holds up every other writer."""
        if is_apart(entry):
            await self._core.ask_blobs(self._core.blobs.put_digest, CONTRIBUTORS, list_file(entry))

    async def record(
        self,
        connection: Connection,
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
        number of the task. Its list is kept already."""
        facts = await charges.facts(connection, task.name)
        now = max(now, await _recorded_until(connection, task))
        entry = msgspec.structs.replace(entry, release=len(facts) + 1, released_at=int(now))
        cohort = entry.cohort.hex()
        encoded, statements = await asyncio.to_thread(_account_for, task, facts, entry)
        leaf = await self._ledger.append(connection, [encoded])
        if expected_leaf is not None and leaf != expected_leaf:
            raise Conflict("the ledger grew")
        charged = await charges.charged(connection, cohort)
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
            version=charged.version,
            leaf_index=leaf,
            opened_at=charged.opened_at,
            released_at=now,
            seconds=now - charged.opened_at,
        )
        await charges.record(connection, task.name, view, entry.facts(task.manifest))
        if not affordable(charged.account, task.manifest):
            await tasks.set_state(connection, task.name, "finished")


async def _recorded_until(connection: Connection, task: Task) -> float:
    """Time of the task's last record: the next one is not dated before it, even if this replica's
    clock is behind, or was set back."""
    last = await charges.newest(connection, task.name)
    return float(task.manifest.created_at) if last is None else last.released_at


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
    listed = _listed(state, masking_set, survivors)
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
        attempt=listed.attempt,
        contributors=listed.contributors,
        not_in_sum=listed.not_in_sum,
    )


def _listed(state: State, masking_set: Sequence[int], survivors: Sequence[int]) -> _Listed:
    """Who is listed. A cohort that an older software has checked has no pseudonyms."""
    names = state.pseudonyms
    if not names.keys() >= set(masking_set):
        facts = state.facts
        return _Listed(tuple(identity_digest(facts.identity(i)) for i in survivors))
    rest = sorted(set(masking_set) - set(survivors))
    return _Listed(
        contributors=tuple(names[index] for index in survivors),
        not_in_sum=tuple(names[index] for index in rest),
        attempt=state.facts.attempt,
    )


def _account_for(
    task: Task, facts: Sequence[ReleaseFacts], entry: ReleaseEntry
) -> tuple[bytes, tuple[PrivacyStatement, ...]]:
    """The record as it goes into the ledger, and the privacy statements in it. Runs in a thread."""
    statements = lines(task.manifest, [*facts, entry.facts(task.manifest)])
    record = release_record(task.manifest, task.digest, facts, entry, statements=statements)
    return record, statements
