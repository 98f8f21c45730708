"""From an opened sum to a release: the debit, the step, the ledger, the end of the cohort.

The budget is reserved in the transaction that fixes S (from then on a device may send), and spent
in the one that makes the secrets of the sum complete, so before anything is opened; an abort in
between spends it too. Blobs are written before the transaction that names them: model version,
optimiser state, ledger leaf, checkpoint, receipts and the end of the cohort are one commit.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.ext.asyncio import AsyncConnection

from aggregator import models, standing
from aggregator.algorithms import Step, StepInput, server_step
from aggregator.algorithms.clipping import real_sums
from aggregator.cohorts.abandoning import UNREADABLE, may_have_sent, tell_abandoned, told_in
from aggregator.cohorts.actor import Cohort
from aggregator.cohorts.faults import (
    Fault,
    any_byte_sent,
    fault_of,
    in_question,
    lacking,
    vectors_of,
)
from aggregator.cohorts.log import OPENED, RECEIVED, Opened, decode_event
from aggregator.core import Core
from aggregator.ledger import Ledger
from aggregator.logs import get_logger
from aggregator.store.database import Conflict, expect_one
from aggregator.store.schema import (
    cohort_events,
    cohorts,
    contributions,
    partial_sums,
    releases,
    tasks,
    versions,
)
from aggregator.tasks import Task, insert_version
from aggregator.views import ReleaseView
from dp.accounting import PrivacyLine, ReleaseFacts, headline, lines
from dp.budget import Account
from dp.contributors import CONTRIBUTORS
from dp.errors import BudgetError, MechanismError
from dp.mechanisms import decode
from dp.meter import NoiseInterval, noise_interval
from dp.records import (
    ReleaseEntry,
    identity_digest,
    is_apart,
    list_file,
    policy_record,
    release_record,
)
from secagg.context import roster_digest
from secagg.errors import RemoteProtocolError
from secagg.evidence import KINDS as CONVICTED
from secagg.evidence import verify_evidence
from secagg.manifest import Manifest
from secagg.server import (
    Aborted,
    Ended,
    Finding,
    Received,
    ReleaseCommitted,
    State,
    SumOpened,
    masking_set_of,
    survivors_of,
)
from secagg.server.convicting import gather_evidence, wanted

_log = get_logger("release")
_TRIES = 5
_LOG_BATCH = 64  # events of a cohort's log that are read at a time


@dataclass(frozen=True)
class Computed:
    """What follows from an opened sum, blobs stored."""

    step: Step
    model: models.Stored
    optimiser: bytes | None
    sum_digest: bytes
    sum_norm: float


class Releaser:
    def __init__(self, core: Core, ledger: Ledger) -> None:
        self._core = core
        self._ledger = ledger

    # -- the budget -----------------------------------------------------------------------

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

    # -- the release ------------------------------------------------------------------------

    async def release(self, cohort: Cohort, opened: NDArray[Any]) -> None:
        """Compute and commit the release of an opened, checked sum.

        Raises:
            SecaggError: the sum cannot be released; the caller ends the cohort with the reason.
            CohortOver: another replica has released it.
        """
        row = await self._current(cohort.task)
        computed = await asyncio.get_running_loop().run_in_executor(
            self._core.pool, self._compute, cohort, opened, row
        )
        for _ in range(_TRIES):
            now = self._core.clock()
            leaf = await self._ledger.size()
            charge = await self._charge(cohort)

            async def write(
                connection: AsyncConnection, now: float = now, leaf: int = leaf
            ) -> None:
                await self._write_release(connection, cohort, computed, leaf, now)

            try:
                await cohort.submit(
                    SumOpened(now),
                    ReleaseCommitted(charge, leaf, now),
                    also=write,
                    must_change=True,
                )
                return
            except Conflict:
                continue
        raise Conflict("the release never became durable")

    async def _current(self, task: Task) -> Any:
        async with self._core.database.read() as connection:
            return (
                await connection.execute(
                    sa.select(versions)
                    .join(
                        tasks,
                        (tasks.c.task == versions.c.task) & (tasks.c.version == versions.c.version),
                    )
                    .where(tasks.c.task == task.name)
                )
            ).one()

    async def _charge(self, cohort: Cohort) -> int:
        async with self._core.database.read() as connection:
            return int(
                (
                    await connection.execute(
                        sa.select(cohorts.c.charge).where(cohorts.c.cohort == cohort.id)
                    )
                ).scalar_one()
            )

    def _compute(self, cohort: Cohort, opened: NDArray[Any], row: Any) -> Computed:
        """Decode, step, store. Runs in a thread."""
        manifest, blobs, state = cohort.task.manifest, self._core.blobs, cohort.state
        counted = facts_of(state)
        cohort.measured = noise_interval(manifest, opened, counted, cohort.removed)
        _demand_noise(cohort.measured)
        sums = decode(manifest, opened, survivors=counted.survivors, rotation_seed=state.ctx)
        model, digest = bytes.fromhex(row.digest), row.optimiser_digest
        kept = models.load_state(blobs, model, bytes.fromhex(digest) if digest else None)
        before = models.load(blobs, model)
        step = server_step(
            StepInput(
                manifest,
                before,
                kept,
                sums,
                version=row.version,
                survivors=counted.survivors,
                masking_set_size=counted.masking_set_size,
                lag=row.version - state.facts.models[-1].version,
            )
        )
        in_real_units, _ = real_sums(manifest, sums, kept)
        return Computed(
            step=step,
            model=models.store(blobs, manifest.task, row.version + 1, step.vector, step.optimiser),
            optimiser=models.store_optimiser(blobs, step.optimiser),
            sum_digest=hashlib.sha256(opened.tobytes()).digest(),
            sum_norm=float(np.sqrt(sum(float(np.dot(v, v)) for v in in_real_units.values()))),
        )

    async def _write_release(
        self,
        connection: AsyncConnection,
        cohort: Cohort,
        computed: Computed,
        leaf: int,
        now: float,
    ) -> None:
        task, state = cohort.task, cohort.state
        found = await connection.execute(
            sa.select(tasks.c.version).where(tasks.c.task == task.name)
        )
        version = found.scalar_one()
        await expect_one(
            connection,
            sa.update(tasks)
            .where(tasks.c.task == task.name, tasks.c.cohort == cohort.id)
            .values(version=version + 1),
        )
        await insert_version(
            connection, task.name, version + 1, computed.model, computed.optimiser, now, leaf
        )
        entry = _entry(state, 0, now, computed, cohort.measured)
        await self._record(
            connection,
            task,
            entry,
            now,
            computed=computed,
            measured=cohort.measured,
            expected_leaf=leaf,
        )

    async def _record(
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
        facts = await self._facts(connection, task)
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

    async def _facts(self, connection: AsyncConnection, task: Task) -> list[ReleaseFacts]:
        rows = await connection.execute(
            sa.select(releases.c.survivors, releases.c.masking_set_size)
            .where(releases.c.task == task.name)
            .order_by(releases.c.release)
        )
        return [
            ReleaseFacts(survivors=row.survivors, masking_set_size=row.masking_set_size)
            for row in rows
        ]

    # -- the end ----------------------------------------------------------------------------

    async def end(
        self, connection: AsyncConnection, cohort: Cohort, state: State, ended: Ended
    ) -> None:
        """Decisions of a terminal transaction: the charge of an abort, whom it convicts or puts
        in question, and erasure."""
        now = self._core.clock()
        row = (
            await connection.execute(
                sa.select(cohorts.c.charge, cohorts.c.opened_at).where(
                    cohorts.c.cohort == cohort.id
                )
            )
        ).one()
        if isinstance(state, Aborted) and row.charge is not None:
            fault = fault_of(
                state.reason,
                late_s=now - cohort.state.deadline_s,
                failed=cohort.failed,
                restarted=row.opened_at < self._core.started_at,
            )
            if fault != "devices" and not any_byte_sent(state):
                await self._give_back(connection, cohort.task, cohort.id, fault, state.reason, now)
            else:
                await self.spend(connection, cohort.task, cohort.id, None)
                entry = _entry(state, 0, now, None, cohort.measured)
                entry = msgspec.structs.replace(entry, fault=fault, cause=state.reason[:64])
                await self._record(
                    connection,
                    cohort.task,
                    entry,
                    now,
                    reason=state.reason,
                    measured=cohort.measured,
                    vectors=vectors_of(state),
                    missed=lacking(state, cohort.task.manifest.cohort.survivors_min),
                )
            if fault == "devices" and state.reason not in CONVICTED:
                await self._strike(connection, state, in_question(state), state.reason, now)
        await self._convict(connection, cohort, state, now)
        if ended.reason is None:
            survivors = [state.facts.identity(index) for index in survivors_of(state)]
            await standing.forgive(connection, cohort.task.name, survivors)
        await _close(connection, cohort.task, cohort.id, ended.reason, now)

    async def abandon(self, task: Task, cohort: str, log: Sequence[tuple[str, bytes]]) -> None:
        """End a cohort whose log this software does not replay, such as one of an older version.

        It is the service's fault. What the ledger says comes from the cohort's mail, since a
        device judges by what it was told. The devices hear that it is over.

        Args:
            log: (kind, payload) of its events.
        """
        now = self._core.clock()
        async with self._core.database.write() as connection:
            await expect_one(
                connection,
                sa.update(cohorts)
                .where(cohorts.c.cohort == cohort, cohorts.c.state == "open")
                .values(phase=Aborted.phase),
            )
            told = await told_in(connection, cohort)
            charge = await connection.scalar(
                sa.select(cohorts.c.charge).where(cohorts.c.cohort == cohort)
            )
            if charge is not None and not may_have_sent(log):
                await self._give_back(connection, task, cohort, "service", UNREADABLE, now)
            elif charge is not None:
                await self.spend(connection, task, cohort, None)
                entry = msgspec.structs.replace(
                    told.entry(task.name, now), fault="service", cause=UNREADABLE
                )
                await self._record(connection, task, entry, now, reason=UNREADABLE)
            await tell_abandoned(connection, self._core.keys.task, told)
            await _close(connection, task, cohort, UNREADABLE, now)
        await self._ledger.publish()

    async def _give_back(
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

    async def _strike(
        self,
        connection: AsyncConnection,
        state: State,
        indices: Iterable[int],
        kind: str,
        now: float,
    ) -> None:
        devices = [
            (advert.certificate.identity_key, advert.certificate.partner_key)
            for advert in (state.facts.adverts[index] for index in indices)
        ]
        struck = await standing.strike(connection, state.facts.cohort, kind, devices, now)
        if struck:
            self._core.metrics.strikes.labels(kind).inc(struck)
            _log.info(
                "devices-struck", cohort=state.facts.cohort.hex(), reason=kind, devices=struck
            )

    async def _convict(
        self, connection: AsyncConnection, cohort: Cohort, state: State, now: float
    ) -> None:
        """Ban whom evidence convicts; who is named without any is struck."""
        if not state.culprits:
            return
        convicted: set[bytes] = set()
        for finding, data in await self._evidence(connection, cohort, state):
            try:
                verdict = await asyncio.to_thread(
                    verify_evidence, data, delivered=True, mask_secret=finding.opening
                )
            except RemoteProtocolError as error:
                _log.error("evidence-refused", cohort=cohort.id, reason=error.reason)
                continue
            convicted.add(verdict.identity)
            ban = standing.Ban(
                verdict.identity,
                verdict.partner,
                verdict.kind,
                state.pseudonyms.get(finding.device) or secrets.token_bytes(32),
                task=verdict.task,
                cohort=verdict.cohort,
                evidence=data,
                transferable=verdict.transferable,
            )
            record = await standing.insert_ban(connection, ban, now)
            if record is not None:
                await self._ledger.append(connection, [record])
                self._core.metrics.bans.labels(verdict.kind).inc()
                _log.info("device-banned", kind=verdict.kind, cohort=cohort.id)
        roster = {entry.identity_key: index for index, entry in enumerate(state.roster)}
        named = [roster[culprit] for culprit in state.culprits if culprit not in convicted]
        await self._strike(connection, state, named, "named-without-evidence", now)

    async def _evidence(
        self, connection: AsyncConnection, cohort: Cohort, state: State
    ) -> list[tuple[Finding, bytes]]:
        """Evidence from the cohort's log, which is about to be erased."""
        if not state.findings:
            return []
        needed = wanted(state.findings)
        adverts: Sequence[bytes] = ()
        received: list[tuple[int, bytes]] = []
        seq = -1
        while True:
            rows = (
                await connection.execute(
                    sa.select(cohort_events.c.seq, cohort_events.c.kind, cohort_events.c.payload)
                    .where(cohort_events.c.cohort == cohort.id, cohort_events.c.seq > seq)
                    .order_by(cohort_events.c.seq)
                    .limit(_LOG_BATCH)
                )
            ).all()
            if not rows:
                break
            seq = rows[-1].seq
            for row in rows:
                if row.kind == OPENED:
                    adverts = msgspec.msgpack.decode(row.payload, type=Opened).adverts
                elif row.kind == RECEIVED:
                    event = decode_event(row.kind, row.payload)
                    if isinstance(event, Received) and event.index in needed:
                        received.append((event.index, event.message))
        return await asyncio.to_thread(
            gather_evidence, state, cohort.task.encoded, adverts, received
        )

    async def published(self, cohort: Cohort, *, mine: bool) -> None:
        """After the terminal commit: files of the ledger, metrics, log.

        ``mine``: this replica made the commit; counters and the log tell a cohort once.
        """
        await self._ledger.publish()
        state, task, metrics = cohort.state, cohort.task.name, self._core.metrics
        async with self._core.database.read() as connection:
            facts = await self._facts(connection, cohort.task)
        metrics.releases.labels(task).set(len(facts))
        spent = await asyncio.to_thread(_headline, cohort.task, facts)
        without_noise = math.inf if facts else 0.0
        metrics.epsilon.labels(task).set(without_noise if spent is None else spent)
        if not mine:
            return
        survivors = len(survivors_of(state))
        metrics.cohorts.labels(task, state.phase).inc()
        metrics.devices.labels(task, "survived").inc(survivors)
        metrics.devices.labels(task, "dropped").inc(len(state.roster) - survivors)
        _log.info(
            "cohort-ended",
            task=task,
            cohort=cohort.id,
            outcome=state.phase,
            reason=state.reason if isinstance(state, Aborted) else None,
            lacking=lacking(state, cohort.task.manifest.cohort.survivors_min)
            if isinstance(state, Aborted)
            else None,
            size=len(state.roster),
            survivors=survivors,
            culprits=[culprit.hex()[:16] for culprit in state.culprits],
        )


async def _close(
    connection: AsyncConnection, task: Task, cohort: str, reason: str | None, now: float
) -> None:
    """A cohort is over: its task is free, and what its log and sums held is erased."""
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
        sa.update(tasks)
        .where(tasks.c.task == task.name, tasks.c.cohort == cohort)
        .values(cohort=None)
    )
    await connection.execute(
        sa.update(cohort_events).where(cohort_events.c.cohort == cohort).values(payload=b"")
    )
    for table in (contributions, partial_sums):
        await connection.execute(sa.delete(table).where(table.c.cohort == cohort))


def facts_of(state: State) -> ReleaseFacts:
    """What accounting counts in a cohort whose survivors are confirmed."""
    return ReleaseFacts(
        survivors=len(survivors_of(state)), masking_set_size=len(masking_set_of(state))
    )


def affordable(account: Account, manifest: Manifest) -> bool:
    """Whether the budget has room for one more release."""
    try:
        account.reserve("the next cohort", manifest)
    except BudgetError:
        return False
    return True


def _headline(task: Task, facts: Sequence[ReleaseFacts]) -> float | None:
    return headline(lines(task.manifest, facts)) if facts else None


def _demand_noise(measured: NoiseInterval | None) -> None:
    """Refuse a sum whose own numbers show that noise is missing; what was seen stays charged.

    Raises:
        MechanismError: ``noise-measured-missing``.
    """
    if measured is not None and measured.missing:
        raise MechanismError(
            "noise-measured-missing",
            "The opened sum holds less noise than its survivors guarantee.",
            expected=f"variance >= {measured.guaranteed}",
            found=f"{measured.low} to {measured.high}",
            remedy="Devices left their noise out: raise silent_max, or exclude the partner's app.",
        )


def _entry(
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
