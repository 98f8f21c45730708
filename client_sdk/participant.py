"""One exchange of secure aggregation, driven over HTTP from the journal.

The machine (``secagg.client``) decides; this driver journals what it decided, does it, and asks
for the next message. A process that is killed anywhere in here goes on in another one with
:meth:`Exchange.resume`, sends the same bytes again, and needs no contributor for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from client_sdk.contribution import hides_failures, is_batch_secret, zero_contribution
from client_sdk.device import Device
from client_sdk.errors import StateError, TransportError
from client_sdk.events import EventKind
from client_sdk.journal import Contribution, SessionRecord, load_effect, store_effects
from client_sdk.threads import finish_in_thread
from client_sdk.transport import is_transient
from dp.errors import MechanismError
from dp.mechanisms import encode
from secagg.client import (
    Advertised,
    AwaitingVector,
    Cancel,
    Checked,
    ClientConfig,
    Confirmed,
    Effect,
    Event,
    Failed,
    Finished,
    ProvideVector,
    Received,
    Send,
    Shared,
    State,
    Unmasked,
    Upload,
    Uploading,
    VectorReady,
    advertise,
    restore,
    snapshot,
    step,
)
from secagg.context import advert_digest
from secagg.errors import LocalProtocolError, RemoteProtocolError, SecaggError
from secagg.keys import hpke_seal
from secagg.manifest import Manifest, decode_manifest, manifest_digest
from secagg.ring import Lanes
from secagg.secret import Secret
from secagg.tools import Tools

_BAD_MESSAGES_MAX = 16
_RELEASE_FACTS = ("cohort_size", "survivors", "epsilon_micro")  # of the ledger's record
JOINED = (Shared, Checked, AwaitingVector, Uploading, Confirmed, Unmasked)
_TOOLS = Tools(random_bytes=os.urandom, seal=hpke_seal)

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

    ``ends_by_s``: Unix seconds by which the cohort will have ended, with or without this device.
    """

    task: str
    model_version: int
    reason: str | None
    release: int = 0
    leaf_index: int = 0
    ends_by_s: float = 0.0


class Exchange:
    """One session from its advert to its end."""

    def __init__(
        self, device: Device, manifest: Manifest, record: SessionRecord, state: State
    ) -> None:
        self._device = device
        self._record = record
        self._state = state
        self._payload = device.journal.load_payload(record.payload_digest)
        self._bad_messages = 0
        self._superseded = False
        self._config = ClientConfig(
            identity=Secret(device.bundle.identity_seed),
            certificate=device.bundle.certificate,
            manifest=manifest,
            manifest_digest=manifest_digest(record.manifest),
            survivors_min=record.survivors_min,
            partner_keys=frozenset(record.partner_keys),
        )

    @classmethod
    def begin(
        cls,
        device: Device,
        encoded_manifest: bytes,
        *,
        model_version: int,
        model_digest: bytes,
        contribution: Contribution,
    ) -> Exchange:
        """Journal a fresh advert for a contribution that is already journalled."""
        manifest = decode_manifest(encoded_manifest)
        record = SessionRecord(
            identity_key=device.bundle.certificate.identity_key,
            task=manifest.task,
            session="",
            manifest=encoded_manifest,
            model_version=model_version,
            model_digest=model_digest,
            survivors_min=max(manifest.cohort.survivors_min, device.policy.min_cohort),
            partner_keys=tuple(sorted(device.partner_keys)),
            contribution=contribution.name,
            state=b"",
            effects=(),
            cursor=0,
        )
        exchange = cls(device, manifest, record, Failed("not-begun", "The exchange has no state."))
        state, effects = advertise(
            exchange._config,
            model_version=model_version,
            model_digest=model_digest,
            now_s=int(device.clock()),
            lifetime_s=int(device.settings.advert_lifetime_s),
            tools=_TOOLS,
        )
        exchange._record = replace(record, session=advert_digest(state.advert).hex())
        exchange._commit(state, effects)
        return exchange

    @classmethod
    def resume(cls, device: Device) -> Exchange | None:
        """The journal's unfinished exchange; None if there is none."""
        record = device.journal.load_session()
        if record is None:
            return None
        own = device.bundle.certificate.identity_key
        if record.identity_key != own:
            raise StateError(
                "state-of-another-device",
                "The state folder holds a session of another device.",
                expected=own.hex(),
                found=record.identity_key.hex(),
                remedy="Give every device a state folder of its own.",
            )
        manifest = decode_manifest(record.manifest)
        try:
            return cls(device, manifest, record, restore(record.state))
        except LocalProtocolError as error:  # journalled by another version of this software
            failed = Failed(error.reason, str(error))
            exchange = cls(device, manifest, record, failed)
            exchange._commit(failed, (failed,))
            return exchange

    @property
    def task(self) -> str:
        return self._record.task

    @property
    def session(self) -> str:
        return self._record.session

    @property
    def phase(self) -> str:
        """Name of the machine's phase, e.g. ``uploading``."""
        return self._state.phase

    @property
    def _ends_by_s(self) -> float:
        """Unix seconds by which an honest cohort has ended: all its steps and the opening."""
        deadlines = self._config.manifest.deadlines
        return (
            self._record.joined_at
            + deadlines.share_s
            + deadlines.check_s
            + deadlines.masked_input_s
            + deadlines.confirm_s
            + deadlines.unmask_s
            + self._device.settings.opening_s
        )

    async def run(self) -> Outcome:
        """Drive the machine to its end.

        Raises:
            TransportError: the aggregator stayed out of reach; the journal keeps the session.
            LedgerError: released, says the aggregator, but the ledger does not hold it.
        """
        while True:
            outcome = await self._perform()
            if outcome is not None:
                return outcome
            await self._receive()

    # ---- effects

    async def _perform(self) -> Outcome | None:
        """Do what the journal says is to be done; the outcome if that was the end."""
        while True:
            state = self._state
            before, after = _TOLD.get(state.phase, (None, None))
            effects = [load_effect(stored, self._payload) for stored in self._record.effects]
            if before is not None and effects:
                await self._tell(before, **self._numbers())
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
                if self._state is not state:
                    break  # the machine moved on: its new effects are journalled
            else:
                if after is not None and effects:
                    await self._tell(after, **self._numbers())
                return None

    async def _send(self, effect: Send | Upload) -> bool:
        """Send a message or vector; whether the server took it.

        A refusal of an advert ends the exchange. After that the end is the mailbox's to tell: the
        cohort may have gone on without this device, or ended.
        """
        transport = self._device.transport
        try:
            match effect:
                case Send(message) if isinstance(self._state, Advertised):
                    accepted = await transport.post_advert(message)
                    if accepted.session != self.session:
                        raise TransportError(
                            "session-mismatch",
                            "The server names the session otherwise.",
                            expected=self.session,
                            found=accepted.session,
                        )
                case Send(message):
                    await transport.post_message(self.session, message)
                case Upload(header, payload):
                    await transport.post_message(self.session, header)
                    await transport.upload(self.session, payload)
        except TransportError as error:
            if is_transient(error) or error.status in (None, 401, 403):
                raise
            if isinstance(self._state, Advertised):
                await self._cancel(error.reason, error.message)
            else:
                await self._tell("waiting", reason=error.reason, status=error.status)
            return False
        return True

    async def _mask(self, effect: ProvideVector) -> None:
        """Debit, then encode for this cohort alone, then mask; nothing has left yet.

        A kill between here and the journalled upload makes another vector under the same keys,
        but the first one has never left this process.
        """
        device, manifest = self._device, self._config.manifest
        contribution = device.journal.load_contribution()
        if contribution is None or contribution.name != self._record.contribution:
            await self._cancel("contribution-gone", "The session's contribution is gone.")
            return
        served = device.account.served(contribution.name)
        if is_batch_secret(manifest) and served not in (None, effect.ctx):
            await self._cancel("contribution-spent", "The secret batch has served another cohort.")
            return
        try:
            device.account.debit(manifest, effect.ctx, contribution.name)
            vector = await finish_in_thread(self._encode, contribution.values(), effect.ctx)
        except SecaggError as error:
            await self._cancel(error.reason, str(error))
            return
        await self._apply(VectorReady(vector))

    def _encode(self, values: Mapping[str, np.ndarray], ctx: bytes) -> Lanes:
        """The payload; where noise hides failures, values that do not fit count as zeros."""
        manifest = self._config.manifest
        try:
            return encode(manifest, values, rotation_seed=ctx, random_bytes=os.urandom)
        except MechanismError:
            if not hides_failures(manifest):
                raise
        zeros = zero_contribution(manifest)
        return encode(manifest, zeros, rotation_seed=ctx, random_bytes=os.urandom)

    async def _finish(self, effect: Finished) -> Outcome:
        record = self._record
        proven = await self._device.ledger.verify_release(
            effect.leaf_index,
            task=record.task,
            release=effect.release,
            ctx=record.ctx,
            manifest_digest=self._config.manifest_digest,
            identity_key=self._config.certificate.identity_key,
        )
        self._end(released=True)
        await self._tell(
            "released",
            release=effect.release,
            leaf_index=effect.leaf_index,
            model_version=record.model_version,
            **{key: proven[key] for key in _RELEASE_FACTS if key in proven},
        )
        return Outcome(record.task, record.model_version, None, effect.release, effect.leaf_index)

    async def _fail(self, effect: Failed) -> Outcome:
        self._end(released=False)
        await self._tell(
            "aborted",
            reason=effect.reason,
            message=effect.message,
            culprit=effect.culprit.hex() if effect.culprit else None,
        )
        return Outcome(
            self.task, self._record.model_version, effect.reason, ends_by_s=self._ends_by_s
        )

    def _end(self, *, released: bool) -> None:
        """Forget the exchange, and its contribution if that may not serve again."""
        journal, account = self._device.journal, self._device.account
        spent = account.served(self._record.contribution) is not None
        if released or (spent and is_batch_secret(self._config.manifest)):
            journal.drop_contribution()
        journal.end_session()

    # ---- events

    async def _receive(self) -> None:
        """Wait for the next message that moves the machine, and journal where it led."""
        while True:
            try:
                messages = await self._wait_for_mail()
            except TransportError as error:
                if error.status == 409:  # the advert waits, but can never be in a cohort
                    await self._cancel(error.reason, error.message)
                elif error.status in (404, 410):
                    await self._cancel("session-lost", "The server no longer knows this session.")
                else:
                    raise
                return
            for message in messages:
                if await self._take(message):
                    return
            if await self._give_up():
                return

    async def _wait_for_mail(self) -> tuple[bytes, ...]:
        """The next messages, or none if the wait was long or the model moved on meanwhile."""
        transport, cursor = self._device.transport, self._record.cursor
        poll_s = transport.settings.poll_s
        if not isinstance(self._state, Advertised):
            return await transport.messages(self.session, cursor, poll_s)
        mail = asyncio.create_task(transport.messages(self.session, cursor, poll_s))
        offer = asyncio.create_task(transport.offer(self.task, self._record.model_version, poll_s))
        try:
            await asyncio.wait({mail, offer}, return_when=asyncio.FIRST_COMPLETED)
            if not mail.done():
                current = await offer
                self._superseded = (
                    current.state == "finished"
                    or current.model.version > self._record.model_version
                )
                if self._superseded:  # unless a roster was sent before
                    return await transport.messages(self.session, cursor, 0)
            return await mail
        finally:
            mail.cancel()
            offer.cancel()
            await asyncio.gather(mail, offer, return_exceptions=True)

    async def _take(self, message: bytes) -> bool:
        """Feed one message; whether the machine moved."""
        before = self._state
        self._record = replace(self._record, cursor=self._record.cursor + 1)
        try:
            await self._apply(Received(message, int(self._device.clock())))
        except RemoteProtocolError as error:
            self._bad_messages += 1
            if self._bad_messages > _BAD_MESSAGES_MAX:
                await self._cancel("server-misbehaves", f"Too many bad messages, at last: {error}")
        return self._state is not before

    async def _give_up(self) -> bool:
        """End a session that no honest server would leave open; whether it did."""
        now_s = self._device.clock()
        if not isinstance(self._state, Advertised):
            if now_s > self._ends_by_s:
                await self._cancel("session-deadline", "The cohort outlived its own deadlines.")
                return True
            return False
        if now_s > self._state.expires_at:
            await self._cancel("advert-expired", "No cohort formed while the advert held.")
            return True
        if self._superseded:
            await self._cancel("model-superseded", "The model moved on without this device.")
            return True
        return False

    async def _cancel(self, reason: str, message: str) -> None:
        await self._apply(Cancel(reason, message))

    async def _apply(self, event: Event) -> None:
        await finish_in_thread(self._advance, event)

    def _advance(self, event: Event) -> None:
        """One step of the machine, journalled before anything of it is performed."""
        state, effects = step(self._config, self._state, event, _TOOLS)
        if state is self._state and not effects:
            return
        if isinstance(self._state, Advertised) and isinstance(state, Shared):
            self._record = replace(
                self._record, joined_at=self._device.clock(), ctx=state.session.ctx
            )
        self._commit(state, effects)

    def _commit(self, state: State, effects: tuple[Effect, ...]) -> None:
        """Journal (state, effects): an upload's payload first, then the record that names it."""
        journal, digest = self._device.journal, self._record.payload_digest
        for effect in effects:
            if isinstance(effect, Upload):
                self._payload = effect.payload
                digest = journal.save_payload(effect.payload)
        if not isinstance(state, Uploading):
            self._payload, digest = None, b""
        self._record = replace(
            self._record,
            state=snapshot(state),
            effects=store_effects(effects),
            payload_digest=digest,
        )
        journal.save_session(self._record)
        self._state = state

    def _numbers(self) -> dict[str, object]:
        """What an event may say about the cohort at this point."""
        state = self._state
        numbers: dict[str, object] = {"model_version": self._record.model_version}
        if isinstance(state, JOINED):
            numbers["cohort_size"] = len(state.session.identity_keys)
        if isinstance(state, AwaitingVector | Uploading | Confirmed):
            numbers["masking_set"] = len(state.masking_set)
        if isinstance(state, Confirmed):
            numbers["survivors"] = len(state.survivors)
        return numbers

    async def _tell(self, kind: EventKind, **detail: object) -> None:
        await self._device.emit(kind, self.task, self.session, **detail)
