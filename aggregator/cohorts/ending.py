"""The end of a cohort: what it is charged, whom it convicts or puts in question, and erasure."""

import asyncio
import secrets
from collections.abc import Iterable, Sequence

import msgspec

from aggregator.closing import finish_if_closed
from aggregator.cohorts import drop_outs, standing
from aggregator.cohorts.abandoning import UNREADABLE, may_have_sent, tell_abandoned, told_in
from aggregator.cohorts.actor import Cohort
from aggregator.cohorts.charging import Charging, entry_of, refundable
from aggregator.cohorts.faults import (
    any_byte_sent,
    fault_of,
    in_question,
    lacking,
    vectors_of,
)
from aggregator.cohorts.log import OPENED, RECEIVED, CohortFormed, decode_event
from aggregator.core import Core
from aggregator.ledger.log import Ledger
from aggregator.logs import get_logger
from aggregator.store import charges, cohorts, replicas
from aggregator.store.database import Connection
from aggregator.store.standing import Ban
from aggregator.tasks import Task
from secagg.errors import RemoteProtocolError
from secagg.evidence import KINDS as CONVICTED
from secagg.evidence import verify_evidence
from secagg.server import (
    Aborted,
    Ended,
    Finding,
    Received,
    Released,
    State,
    survivors_of,
)
from secagg.server.convicting import gather_evidence, wanted

_log = get_logger("release")
_LOG_BATCH = 64  # events of a cohort's log that are read at a time


class Ending:
    def __init__(self, core: Core, ledger: Ledger, charging: Charging) -> None:
        self._core = core
        self._ledger = ledger
        self._charging = charging

    async def end(self, connection: Connection, cohort: Cohort, state: State, ended: Ended) -> None:
        """Decisions of a terminal transaction: the charge of an abort, whom it convicts or puts
        in question, and erasure."""
        now = self._core.clock()
        charge = await charges.charge_of(connection, cohort.id)
        if isinstance(state, Aborted) and charge is not None:
            opened_at = await cohorts.opened_at(connection, cohort.id)
            fault = fault_of(
                state.reason,
                late_s=now - cohort.state.deadline_s,
                failed=cohort.failed or await cohorts.has_failed(connection, cohort.id),
                restarted=await replicas.any_started_since(connection, opened_at),
            )
            free = fault != "devices" and not any_byte_sent(state)
            if free and refundable(cohort.task.manifest):
                await self._charging.give_back(
                    connection, cohort.task, cohort.id, fault, state.reason, now
                )
            else:
                await self._charging.spend(connection, cohort.task, cohort.id, None)
                entry = entry_of(state, 0, now, None, cohort.measured)
                entry = msgspec.structs.replace(entry, fault=fault, cause=state.reason[:64])
                await self._charging.record(
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
        if isinstance(state, Aborted | Released):
            await drop_outs.keep(connection, self._core, cohort.task.name, state, now)
        await cohorts.close(connection, cohort.task.name, cohort.id, ended.reason, now)
        await finish_if_closed(connection, self._ledger, cohort.task.name, now)

    async def abandon(self, task: Task, cohort: str, log: Sequence[tuple[str, bytes]]) -> None:
        """End a cohort whose log this software does not replay, such as one of an older version.

        It is the service's fault. What the ledger says comes from the cohort's mail, since a
        device judges by what it was told. The devices hear that it is over.

        Args:
            log: (kind, payload) of its events.
        """
        now = self._core.clock()
        async with self._core.database.write() as connection:
            await cohorts.abandon(connection, cohort, Aborted.phase)
            told = await told_in(connection, cohort)
            charge = await charges.charge_of(connection, cohort)
            free = refundable(task.manifest) and not may_have_sent(log)
            if charge is not None and free:
                await self._charging.give_back(connection, task, cohort, "service", UNREADABLE, now)
            elif charge is not None:
                await self._charging.spend(connection, task, cohort, None)
                entry = msgspec.structs.replace(
                    told.entry(task.name, now), fault="service", cause=UNREADABLE
                )
                await self._charging.record(connection, task, entry, now, reason=UNREADABLE)
            await tell_abandoned(connection, self._core.keys.task, told)
            await cohorts.close(connection, task.name, cohort, UNREADABLE, now)
            await finish_if_closed(connection, self._ledger, task.name, now)
        await self._ledger.publish()

    async def _strike(
        self,
        connection: Connection,
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
        self, connection: Connection, cohort: Cohort, state: State, now: float
    ) -> None:
        """Ban whom evidence convicts; who is named without any is struck."""
        if not state.culprits:
            return
        convicted: set[bytes] = set()
        for finding, data in await self._evidence(connection, cohort, state):
            try:
                verdict = await asyncio.to_thread(
                    verify_evidence, data, delivered=True, mask_secret=finding.mask_secret
                )
            except RemoteProtocolError as error:
                _log.error("evidence-refused", cohort=cohort.id, reason=error.reason)
                continue
            convicted.add(verdict.identity)
            ban = Ban(
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
        self, connection: Connection, cohort: Cohort, state: State
    ) -> list[tuple[Finding, bytes]]:
        """Evidence from the cohort's log, which is about to be erased."""
        if not state.findings:
            return []
        needed = wanted(state.findings)
        adverts: Sequence[bytes] = ()
        received: list[tuple[int, bytes]] = []
        seq = -1
        while rows := await cohorts.events_after(connection, cohort.id, seq, _LOG_BATCH):
            seq += len(rows)
            for kind, payload in rows:
                if kind == OPENED:
                    adverts = msgspec.msgpack.decode(payload, type=CohortFormed).adverts
                elif kind == RECEIVED:
                    event = decode_event(kind, payload)
                    if isinstance(event, Received) and event.index in needed:
                        received.append((event.index, event.message))
        return await asyncio.to_thread(
            gather_evidence, state, cohort.task.encoded, adverts, received
        )

    async def published(self, cohort: Cohort, *, mine: bool) -> None:
        """After the terminal commit: files of the ledger, log.

        ``mine``: this replica made the commit; the log tells a cohort once.
        """
        await self._ledger.publish()
        state, task = cohort.state, cohort.task.name
        if not mine:
            return
        survivors = len(survivors_of(state))
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
            culprits=[self._core.pseudonyms.device(culprit) for culprit in state.culprits],
        )
