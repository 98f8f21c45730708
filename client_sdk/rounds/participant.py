"""One exchange of secure aggregation over HTTP: perform what is journalled, wait for news, repeat.

A process that is killed anywhere in here goes on in another one: the journalled effects are
performed again, with the same bytes, and no contributor is needed for it.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.errors import LedgerRefusal, PolicyRefusal, StateError, TransportError
from client_sdk.events import EventKind
from client_sdk.failures import TrainingFailure
from client_sdk.ledger.evidence import QUARANTINED_FOR, Quarantine, Quarantined
from client_sdk.ledger.files import unreadable
from client_sdk.ledger.receipts import check_release
from client_sdk.network.http import is_transient
from client_sdk.network.uploads import CONFLICT
from client_sdk.payload import encoded
from client_sdk.rounds import faults
from client_sdk.rounds.device import RunningDevice
from client_sdk.rounds.examples_told import ExamplesTold
from client_sdk.rounds.phases import answer_within_s, news_within_s
from client_sdk.rounds.progress import Progress
from client_sdk.rounds.scaffold_control import DeviceControl
from client_sdk.rounds.schedule import demand_count, look_again, part_at
from client_sdk.rounds.session import Session
from client_sdk.state.journal import Contribution
from client_sdk.threads import finish_in_thread
from dp.contracts.algorithms.registry import has_control
from dp.errors import BudgetError
from secagg.client import (
    Advertised,
    Failed,
    Finished,
    ProvideVector,
    Received,
    Send,
    Upload,
    VectorReady,
)
from secagg.errors import RemoteProtocolError, SecaggError
from secagg.ring import Lanes

_T = TypeVar("_T")
_BAD_MESSAGES_MAX = 16
_RELEASE_FACTS = ("cohort_size", "survivors", "epsilon_micro")  # of the ledger's record

# What the app is told before and after the effects of a new phase.
_TOLD: dict[str, tuple[EventKind | None, EventKind | None]] = {
    "advertised": (None, "reported"),
    "shared": ("roster", "shared"),
    "checked": (None, "checked"),
    "awaiting-vector": ("masking", None),
    "uploading": ("uploading", "uploaded"),
    "confirmed": (None, "confirmed"),
    "unmasked": (None, "unmasked"),
}


@dataclass(frozen=True)
class Outcome:
    """How an exchange ended. ``reason`` is None when it was released.

    ``ends_by_s``: the server's time by which the cohort will have ended, with this device or not.
    ``evidence``: what the ledger showed, where that ended the exchange; ``fault``: the error, where
    the ledger's record contradicts what the device knows. ``refusal``: why the policy dropped it.
    ``failed``: why zeros took the contribution's place; None: it was the contributor's.
    ``failure``: why nothing of the examples was in the contribution of an earlier process.
    ``told``: of the examples in the contribution of an earlier process. ``part``: of the examples,
    the one that the contribution was of, from 0; None: of all, the task has no schedule.
    """

    task: str
    model_version: int
    reason: str | None
    release: int = 0
    leaf_index: int = 0
    ends_by_s: float = 0.0
    evidence: Path | None = None
    fault: LedgerRefusal | None = None
    refusal: PolicyRefusal | None = None
    failed: str | None = None
    failure: TrainingFailure | None = None
    told: ExamplesTold | None = None
    part: int | None = None


def note_given(account: DeviceAccount, session: Session) -> None:
    """Write down what a vector of this session was computed from, if an older software did not."""
    record = session.record
    if record.ctx and account.served(record.contribution) == record.ctx:
        account.debit(session.manifest, record.ctx, record.contribution, record.model_digest)


class Participant:
    """Drives one session to its end."""

    def __init__(self, device: RunningDevice, session: Session) -> None:
        self._device = device
        self._session = session
        self.waits = False  # for mail: what there was to send has been sent
        self._bad_messages = 0
        self._superseded = False
        self._unsent = False  # a vector whose upload the server did not let on
        self._evidence: Path | None = None

    async def run(self) -> Outcome:
        """Perform, receive, repeat.

        Raises:
            TransportError: the aggregator stayed out of reach; the journal keeps the session.
            LedgerRefusal: the ledger does not show what it must, and a later look may mend that:
                the journal keeps the session, once.
        """
        while True:
            transport, self.waits = self._device.transport, False
            with transport.within(answer_within_s(self._session)):
                outcome = await self._perform()
            if outcome is not None:
                return outcome
            self.waits = True
            self._device.steering.look()
            with transport.within(news_within_s(self._session)):
                await self._receive()

    # ---- effects

    async def _perform(self) -> Outcome | None:
        """Do what the journal says is to be done; the outcome if that was the end."""
        session = self._session
        while True:
            state, effects = session.state, session.effects
            before, after = _TOLD.get(state.phase, (None, None))
            if before is not None and effects:
                await self._tell(before, **session.numbers())
            for effect in effects:
                match effect:
                    case Finished():
                        return await self._finish(effect)
                    case Failed():
                        return await self._fail(effect)
                    case ProvideVector():
                        await self._mask(effect)
                    case Send() | Upload():
                        if not await self._send(effect):
                            after = None
                if session.state is not state:
                    break  # the machine moved on: its new effects are journalled
            else:
                if after is not None and effects:
                    await self._tell(after, **session.numbers())
                return None

    async def _send(self, effect: Send | Upload) -> bool:
        """Send a message or vector; whether the server took it.

        A refusal of an advert ends the exchange. After that the end is the mailbox's to tell: the
        cohort may have gone on without this device, or ended. Why this device refuses a roster is
        said once, while the server can be reached.
        """
        transport, session = self._device.transport, self._session
        try:
            match effect:
                case Send(message) if isinstance(session.state, Advertised):
                    accepted = await transport.post_advert(message)
                    if accepted.session != session.id:
                        await session.cancel(
                            "session-mismatch", "The server gives the session another name."
                        )
                        return False
                case Send(message):
                    await transport.post_message(session.id, message)
                case Upload(header, payload):
                    await transport.post_message(session.id, header)
                    progress = Progress(self._device, "upload", session.record.task, session.id)
                    await progress.during(transport.upload(session.id, payload, progress.note))
        except TransportError as error:
            if self.may_come_later(error):
                raise
            if isinstance(session.state, Failed):
                return False
            if error.status in (401, 403) and not self.is_over():
                raise
            if isinstance(session.state, Advertised) or self.is_over():
                await session.cancel(error.reason, error.message)
            else:
                self._unsent = isinstance(effect, Upload) and error.reason == CONFLICT
                await self._tell("waiting", reason=error.reason, status=error.status)
            return False
        self._unsent = False
        return True

    async def _mask(self, effect: ProvideVector) -> None:
        """Debit, then encode for this cohort alone, then mask; nothing has left yet.

        A kill between here and the journalled upload makes another vector under the same keys,
        but the first one has never left this process.
        """
        device, session = self._device, self._session
        try:
            contribution = device.journal.load_contribution()
        except StateError:
            contribution = None
        if contribution is None or contribution.name != session.record.contribution:
            await session.cancel("contribution-gone", "The session's contribution is gone.")
            return
        if device.account.served(contribution.name) not in (None, effect.ctx):
            await session.cancel("contribution-spent", "The contribution served another cohort.")
            return
        if device.gave(session.manifest, session.record.model_digest) not in (None, effect.ctx):
            await session.cancel("model-given", "Another cohort has a vector from this model.")
            return
        try:
            await self._demand_models(effect)
            await self._from_ledger(look_again(device, session.manifest, debits=True))
        except LedgerRefusal as error:
            if error.reason != "model-not-in-ledger":
                await self._demand_lasting(error)
            if error.evidence:
                self._evidence = await faults.keep(device, error, session.record)
            await session.cancel(error.reason, str(error))
            return
        except BudgetError as error:
            await session.cancel(error.reason, str(error))
            return
        try:
            await finish_in_thread(self._pay, effect, contribution)
            vector = await finish_in_thread(self._encode, contribution, effect)
            if has_control(session.manifest):
                seen = device.ledger.remembered()
                since = 0 if seen is None else seen.size
                control = self._control()
                await finish_in_thread(control.expect, effect.ctx, contribution, vector, since)
        except SecaggError as error:
            await session.cancel(error.reason, str(error))
            return
        await session.apply(VectorReady(vector))

    def _pay(self, effect: ProvideVector, contribution: Contribution) -> None:
        """Debit, if what was admitted still is after what others have spent of the same data.

        Raises:
            ContributionError: as :func:`client_sdk.rounds.schedule.demand_count`.
            PolicyRefusal: the policy's reason, ``data-in-task`` or ``model-given``.
            BudgetError, StateError: as
            :meth:`client_sdk.accounts.device_account.DeviceAccount.debit`.
        """
        device, session = self._device, self._session
        account, model = device.account, session.record.model_digest
        with account.locked():
            demand_count(device, session.manifest, contribution, effect.ctx)
            if account.data is not None and not account.has_charged(effect.ctx):
                device.admit_again(session.manifest)
                if device.gave(session.manifest, model) is not None:
                    raise PolicyRefusal("model-given", "Another cohort has a vector of this model.")
            part = part_at(session.manifest, contribution.count)
            account.debit(session.manifest, effect.ctx, contribution.name, model, part)

    async def _demand_models(self, effect: ProvideVector) -> None:
        """Every model that the cohort admits is one that the ledger has released.

        So no vector is given for a model of which no trace would be left. That each has enough
        devices behind it the roster has shown (``secagg.client.checks``).

        Raises:
            LedgerRefusal: ``model-not-in-ledger``; or the ledger itself does not verify.
        """
        config = self._session.config
        await self._from_ledger(
            self._device.ledger.verify_models(
                frozenset(model.digest for model in effect.models),
                task=config.manifest.task,
                manifest_digest=config.manifest_digest,
            )
        )

    async def _from_ledger(self, answer: Awaitable[_T]) -> _T:
        """What the ledger says.

        Raises:
            LedgerRefusal: also ``ledger-unreadable``, for a server that answers with its own
                failure beyond the cohort's end: it would do so in every later run too.
        """
        try:
            return await answer
        except TransportError as error:
            if error.status is None or not self.is_over():
                raise
            raise unreadable(error) from error

    def _control(self) -> DeviceControl:
        config = self._session.config
        return DeviceControl(self._device.journal, config.manifest, config.manifest_digest)

    def _encode(self, contribution: Contribution, effect: ProvideVector) -> Lanes:
        return encoded(
            self._session.manifest,
            contribution.values(),
            ctx=effect.ctx,
            staleness=effect.staleness,
            masking_set_size=effect.masking_set_size,
            noise_seeds=effect.noise_seeds,
            random_bytes=os.urandom,
        )

    async def _finish(self, effect: Finished) -> Outcome:
        record, config = self._session.record, self._session.config
        try:
            proven = await self._from_ledger(
                self._device.ledger.verify_release(
                    effect.leaf_index,
                    task=record.task,
                    release=effect.release,
                    ctx=record.ctx,
                    manifest_digest=config.manifest_digest,
                    identity_key=config.certificate.identity_key,
                    masking_set_size=record.masking_set_size,
                    survivors=record.survivors,
                    check=lambda shown: check_release(shown, record, config.manifest),
                )
            )
        except LedgerRefusal as error:
            await self._demand_lasting(error)
            return await self._accuse(error)
        if has_control(config.manifest):
            try:
                await finish_in_thread(self._control().add, record.ctx)
            except StateError as error:
                if error.reason == "state-damaged":  # doing it again would not mend it
                    self._end(released=True)
                raise
        self._end(released=True)
        await self._tell(
            "released",
            release=effect.release,
            leaf_index=effect.leaf_index,
            model_version=record.model_version,
            **{key: proven[key] for key in _RELEASE_FACTS if key in proven},
        )
        return Outcome(record.task, record.model_version, None, effect.release, effect.leaf_index)

    async def _demand_lasting(self, error: LedgerRefusal) -> None:
        """Return if the session must end for this; raises it if a later look may mend it, once."""
        if not error.lasting and not self._session.record.ledger_failures:
            await self._session.count_ledger_failure()
            raise error

    async def _accuse(self, error: LedgerRefusal) -> Outcome:
        """A release that the ledger does not bear out: evidence first, then the session's end.

        Charge, account and checkpoint stay. A record that contradicts this device quarantines the
        ledger for this task.
        """
        device, record = self._device, self._session.record
        self._evidence = await faults.keep(device, error, record)
        fault = None
        if error.lasting and error.reason in QUARANTINED_FOR:
            fault = error
            entry = Quarantined.of(
                error,
                ledger=device.ledger.verifier,
                task=record.task,
                evidence=self._evidence.name,
                at=device.time.now(),
            )
            await finish_in_thread(Quarantine(device.journal).add, entry)
        outcome = await self._fail(Failed(error.reason, str(error)))
        return replace(outcome, fault=fault)

    async def _fail(self, effect: Failed) -> Outcome:
        self._end(released=False)
        await self._tell(
            "aborted",
            reason=effect.reason,
            message=effect.message,
            culprit=effect.culprit.hex() if effect.culprit else None,
            **({"evidence": str(self._evidence)} if self._evidence else {}),
        )
        record = self._session.record
        return Outcome(
            record.task,
            record.model_version,
            effect.reason,
            ends_by_s=self._ends_by_s(),
            evidence=self._evidence,
        )

    def _end(self, *, released: bool) -> None:
        """Forget the exchange, and its contribution if that reached masking."""
        device, session = self._device, self._session
        if released or device.account.served(session.record.contribution) is not None:
            device.journal.drop_contribution()
        session.end()

    # ---- news

    async def _receive(self) -> None:
        """Wait for the next message that moves the machine, and journal where it led."""
        session = self._session
        while True:
            try:
                messages = await self._wait_for_mail()
            except TransportError as error:
                if error.own_status == 409:  # the advert waits, but can never be in a cohort
                    await session.cancel(error.reason, error.message)
                elif error.own_status in (404, 410):
                    await session.cancel("session-lost", "The server lost this session.")
                elif error.status is not None and self.is_over():
                    await session.cancel(error.reason, error.message)
                else:
                    raise
                return
            for message in messages:
                if await self._take(message):
                    return
            if await self._give_up() or self._unsent:
                return

    async def _wait_for_mail(self) -> tuple[bytes, ...]:
        """The next messages, or none if the wait was long or the model moved on meanwhile."""
        transport, session = self._device.transport, self._session
        cursor, poll_s = session.record.cursor, transport.settings.poll_s
        if not isinstance(session.state, Advertised):
            return await transport.messages(session.id, cursor, poll_s)
        version = session.record.model_version + session.manifest.cohort.versions_back
        mail = asyncio.create_task(transport.messages(session.id, cursor, poll_s))
        offer = asyncio.create_task(transport.offer(session.record.task, version, poll_s))
        try:
            await asyncio.wait({mail, offer}, return_when=asyncio.FIRST_COMPLETED)
            if not mail.done():
                current = await offer
                self._superseded = current.state == "finished" or current.model.version > version
                if self._superseded:  # unless a roster was sent before
                    return await transport.messages(session.id, cursor, 0)
            return await mail
        finally:
            mail.cancel()
            offer.cancel()
            await asyncio.gather(mail, offer, return_exceptions=True)

    async def _take(self, message: bytes) -> bool:
        """Feed one message; whether the machine moved."""
        session = self._session
        before = session.state
        session.take_message()
        try:
            await session.apply(Received(message, int(self._device.time.now())))
        except RemoteProtocolError as error:
            self._bad_messages += 1
            if self._bad_messages > _BAD_MESSAGES_MAX:
                await session.cancel("server-misbehaves", f"Too many bad messages, last: {error}")
        self._device.time.keep()
        return session.state is not before

    async def _give_up(self) -> bool:
        """End a session that no honest server would leave open; whether it did."""
        session, now_s = self._session, self._device.time.now()
        if not isinstance(session.state, Advertised):
            if now_s <= self._ends_by_s():
                return False
            await session.cancel("session-deadline", "The cohort outlived its own deadlines.")
        elif now_s > session.state.expires_at:
            await session.cancel("advert-expired", "No cohort formed before the advert expired.")
        elif self._superseded:
            await session.cancel("model-superseded", "A newer version was released.")
        else:
            return False
        return True

    def may_come_later(self, error: TransportError) -> bool:
        """Whether nothing was answered; from the session's end on, whether nobody answered.

        Offsets that make no sense are an answer: the mailbox says how the cohort went on, and the
        vector is sent again as long as that says nothing.
        """
        if error.reason == CONFLICT:
            return False
        return error.status is None or (
            (error.unreached or is_transient(error)) and not self.is_over()
        )

    def is_over(self) -> bool:
        """Whether no honest server would still want anything of this session."""
        state, now_s = self._session.state, self._device.time.now()
        return now_s > (state.expires_at if isinstance(state, Advertised) else self._ends_by_s())

    def _ends_by_s(self) -> float:
        return self._session.ends_by_s + self._device.settings.opening_s

    @property
    def seconds_left(self) -> int:
        """Most that the session may still take."""
        state = self._session.state
        end_s = state.expires_at if isinstance(state, Advertised) else self._ends_by_s()
        return max(0, math.ceil(end_s - self._device.time.now()))

    async def _tell(self, kind: EventKind, **detail: object) -> None:
        await self._device.emit(kind, self._session.record.task, self._session.id, **detail)
