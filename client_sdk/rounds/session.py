"""The machine of one exchange with its journal: every step is on disk before anyone acts on it.

``secagg.client`` decides, this module remembers, :mod:`client_sdk.rounds.participant` performs.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from msgspec.structs import replace

from client_sdk.errors import StateError
from client_sdk.rounds.revocations import revoked_by
from client_sdk.state.journal import Journal, SessionRecord, load_effect, store_effects
from client_sdk.threads import finish_in_thread
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
    Shared,
    State,
    Unmasked,
    Upload,
    Uploading,
    advertise,
    restore,
    snapshot,
    step,
)
from secagg.context import advert_digest
from secagg.errors import LocalProtocolError, RemoteProtocolError, SecaggError
from secagg.http_api import EnrolmentBundle
from secagg.manifest import Manifest, decode_manifest, manifest_digest
from secagg.sealing import hpke_seal
from secagg.secret import Secret
from secagg.tools import Tools

_JOINED = (Shared, Checked, AwaitingVector, Uploading, Confirmed, Unmasked)
_TOOLS = Tools(random_bytes=os.urandom, seal=hpke_seal)


class Session:
    """One exchange from its advert to its end, as the journal has it."""

    def __init__(
        self,
        journal: Journal,
        bundle: EnrolmentBundle,
        record: SessionRecord,
        state: State,
        clock: Callable[[], float],
    ) -> None:
        """``clock``: the server's time, :meth:`client_sdk.network.server_time.ServerTime.now`."""
        self._journal = journal
        self._clock = clock
        self._payload = journal.load_payload(record.payload_digest)
        self.record = record
        self.state = state
        self.config = ClientConfig(
            identity=Secret(bundle.identity_seed),
            certificate=bundle.certificate,
            manifest=decode_manifest(record.manifest),
            manifest_digest=manifest_digest(record.manifest),
            survivors_min=record.survivors_min,
            partner_keys=frozenset(record.partner_keys),
            revoked=revoked_by(journal, record.partner_keys),
        )

    @classmethod
    def begin(
        cls,
        journal: Journal,
        bundle: EnrolmentBundle,
        encoded_manifest: bytes,
        *,
        model_version: int,
        model_digest: bytes,
        contribution: str,
        survivors_min: int,
        partner_keys: frozenset[bytes],
        lifetime_s: float,
        clock: Callable[[], float],
    ) -> Session:
        """Draw keys and journal a fresh advert for a contribution that is journalled already.

        Args:
            contribution: its name.
            survivors_min: this device's own minimum; it never weakens the manifest's.
            lifetime_s: how long the advert may wait for its cohort.
        """
        manifest = decode_manifest(encoded_manifest)
        record = SessionRecord(
            identity_key=bundle.certificate.identity_key,
            task=manifest.task,
            session="",
            manifest=encoded_manifest,
            model_version=model_version,
            model_digest=model_digest,
            survivors_min=survivors_min,
            partner_keys=tuple(sorted(partner_keys)),
            contribution=contribution,
            state=b"",
            effects=(),
            cursor=0,
        )
        begun = cls(journal, bundle, record, Failed("not-begun", "There is no advert."), clock)
        state, effects = advertise(
            begun.config,
            model_version=model_version,
            model_digest=model_digest,
            now_s=int(clock()),
            lifetime_s=int(lifetime_s),
            tools=_TOOLS,
        )
        begun.record = replace(record, session=advert_digest(state.advert).hex())
        begun._commit(state, effects)
        return begun

    @classmethod
    def resume(
        cls, journal: Journal, bundle: EnrolmentBundle, clock: Callable[[], float]
    ) -> Session | None:
        """The journal's unfinished session; None if there is none.

        One that cannot go on (journalled by another version, or its payload is gone) is failed, for
        its driver to end.

        Raises:
            StateError: ``session-unreadable``: its record or manifest does not decode, and the
                session was ended: a later run goes on without it.
        """
        try:
            record = journal.load_session()
        except StateError as error:
            raise _unreadable(journal, error) from error
        if record is None:
            return None
        try:
            decode_manifest(record.manifest)
        except RemoteProtocolError as error:
            raise _unreadable(journal, error) from error
        try:
            resumed = cls(journal, bundle, record, restore(record.state), clock)
            resumed.effects  # noqa: B018  refuses what cannot be performed
            return resumed
        except (LocalProtocolError, StateError) as error:
            failed = Failed(error.reason, str(error))
            without_payload = replace(record, payload_digest=b"")
            resumed = cls(journal, bundle, without_payload, failed, clock)
            resumed._commit(failed, (failed,))
            return resumed

    @property
    def manifest(self) -> Manifest:
        return self.config.manifest

    @property
    def id(self) -> str:
        """The session's name at the aggregator, hex."""
        return self.record.session

    @property
    def effects(self) -> list[Effect]:
        """What is to be done, possibly again."""
        return [load_effect(stored, self._payload) for stored in self.record.effects]

    @property
    def may_leave(self) -> bool:
        """Whether the masking set is not fixed yet, as far as this device knows."""
        return isinstance(self.state, Advertised | Shared | Checked)

    @property
    def ends_by_s(self) -> float:
        """The server's time by which an honest cohort has taken all its steps."""
        deadlines = self.manifest.deadlines
        return (
            self.record.joined_at
            + deadlines.share_s
            + deadlines.check_s
            + deadlines.masked_input_s
            + deadlines.confirm_s
            + deadlines.unmask_s
        )

    def numbers(self) -> dict[str, object]:
        """What an event may say about the cohort at this point."""
        state = self.state
        numbers: dict[str, object] = {"model_version": self.record.model_version}
        if isinstance(state, _JOINED):
            numbers["cohort_size"] = len(state.session.identity_keys)
        if isinstance(state, AwaitingVector | Uploading | Confirmed):
            numbers["masking_set_size"] = len(state.masking_set)
        if isinstance(state, Confirmed):
            numbers["survivors"] = len(state.survivors)
        return numbers

    def take_message(self) -> None:
        """Count one message of the mailbox as taken; journalled with the next step."""
        self.record = replace(self.record, cursor=self.record.cursor + 1)

    async def apply(self, event: Event) -> None:
        """One step of the machine, journalled; raises as ``secagg.client.step``."""
        await finish_in_thread(self._advance, event)

    async def count_ledger_failure(self) -> None:
        """Journal that the ledger failed to prove what this session waits for."""
        self.record = replace(self.record, ledger_failures=self.record.ledger_failures + 1)
        await finish_in_thread(self._journal.save_session, self.record)

    async def cancel(self, reason: str, message: str) -> None:
        await self.apply(Cancel(reason, message))

    def end(self) -> None:
        """Forget the session and its secrets."""
        self._journal.end_session()

    def _advance(self, event: Event) -> None:
        state, effects = step(self.config, self.state, event, _TOOLS)
        if state is self.state and not effects:
            return
        if isinstance(self.state, Advertised) and isinstance(state, Shared):
            self.record = replace(self.record, joined_at=self._clock(), ctx=state.session.ctx)
        self._note_facts(self.state)  # of a session that an older software journalled
        self._note_facts(state)
        self._commit(state, effects)

    def _note_facts(self, state: State) -> None:
        """Keep what a release's record will be compared with; the last states do not have it."""
        if isinstance(state, _JOINED):
            session = state.session
            self.record = replace(
                self.record,
                cohort=session.cohort,
                cohort_size=len(session.identity_keys),
                roster_digest=session.order_seed,
                models=tuple((model.version, model.digest) for model in session.models),
            )
        if isinstance(state, Confirmed):
            self.record = replace(
                self.record, masking_set_size=len(state.masking_set), survivors=len(state.survivors)
            )

    def _commit(self, state: State, effects: tuple[Effect, ...]) -> None:
        """Journal (state, effects): an upload's payload first, then the record that names it."""
        digest = self.record.payload_digest
        for effect in effects:
            if isinstance(effect, Upload):
                self._payload = effect.payload
                digest = self._journal.save_payload(effect.payload)
        if not isinstance(state, Uploading):
            self._payload, digest = None, b""
        self.record = replace(
            self.record,
            state=snapshot(state),
            effects=store_effects(effects),
            payload_digest=digest,
        )
        self._journal.save_session(self.record)
        self.state = state


def _unreadable(journal: Journal, error: SecaggError) -> StateError:
    """End a session that nobody can go on with: without its secrets there is none."""
    journal.end_session()
    return StateError(
        "session-unreadable",
        f"The unfinished session does not decode: {error} It was ended.",
        remedy="Run again. Finish sessions with the version that began them.",
    )
