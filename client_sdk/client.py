"""The client of a partner's app: it joins a task, takes part round by round, survives a restart."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from client_sdk import forgetting
from client_sdk.accounts.data_door import DataChoice, DataDoor, default_root
from client_sdk.accounts.device_account import DeviceAccount, whole_account
from client_sdk.accounts.recovery import LEAVES_MAX, Recovered
from client_sdk.contribution import Contributor
from client_sdk.enrolment import check_bundle, load_bundle
from client_sdk.errors import PolicyRefusal, StateError
from client_sdk.events import Event, OnEvent
from client_sdk.forgetting import Forgotten
from client_sdk.ledger.evidence import Quarantined
from client_sdk.maintenance import StateFolder
from client_sdk.network.http import TransportSettings
from client_sdk.network.server_time import steady_clock
from client_sdk.policy import PrivacyPolicy
from client_sdk.rounds.contributing import Training
from client_sdk.rounds.device import ParticipantSettings, RunningDevice
from client_sdk.rounds.failing import FailingTask
from client_sdk.rounds.missing_charges import recover_charges
from client_sdk.rounds.pending import finish_pending
from client_sdk.rounds.result import RunResult, Tally
from client_sdk.rounds.running import running_device
from client_sdk.rounds.steering import Interrupted, Steering, StopSignal
from client_sdk.rounds.taking_part import take_part
from client_sdk.state.journal import Journal, Lock
from client_sdk.state.keystore import StorageKey, open_storage_key
from client_sdk.state.owner import own_journal
from client_sdk.threads import demand_no_loop
from secagg.http_api import EnrolmentBundle

if TYPE_CHECKING:
    from client_sdk.explanation import Explanation

_Deliver = Callable[[Event], Awaitable[None]]


class Client:
    """One enrolled device.

    A client uses its state folder alone: two at once, in one process or in two, are refused
    (``StateError``, reason ``state-in-use``).
    """

    def __init__(
        self,
        bundle: EnrolmentBundle,
        policy: PrivacyPolicy,
        state_dir: Path,
        key: StorageKey,
        *,
        on_event: OnEvent | None = None,
        transport: TransportSettings | None = None,
        settings: ParticipantSettings | None = None,
        data: DataChoice | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        bundle_file: Path | None = None,
    ) -> None:
        """``clock`` is Unix seconds on this device, ``steady`` seconds that nobody sets.

        ``data``: None: the account counts this folder alone, and the app knows it.
        ``bundle_file``: where the bundle lies, for :meth:`forget`; None: in no file.
        """
        self.policy = policy
        self._bundle = bundle
        self._identity_key = bundle.certificate.identity_key
        self._folder = state_dir
        self._key = key
        self._on_event = on_event
        self._transport = transport or TransportSettings()
        self._settings = settings or ParticipantSettings()
        self._data = data
        self._clock = clock
        self._steady = steady
        self._sleep = sleep
        self._bundle_file = bundle_file
        self._forgotten = False
        self._pause = threading.Event()
        self._under_way = False

    @classmethod
    def from_bundle(
        cls,
        bundle: EnrolmentBundle | str | Path,
        *,
        policy: PrivacyPolicy | None = None,
        state_dir: str | Path | None = None,
        passphrase: str | None = None,
        keyring: bool = False,
        data_id: str | None = None,
        registry_dir: str | Path | None = None,
        on_event: OnEvent | None = None,
        transport: TransportSettings | None = None,
        settings: ParticipantSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Client:
        """A client from an enrolment bundle or the path of one.

        Args:
            policy: this device's veto; the default refuses tasks without noise.
            state_dir: this device's own folder; by default in the user's state folder, by identity.
            passphrase: seals the state under Argon2id; None: under a key file of mode 0600.
            keyring: keep the key of a new folder in the operating system's keyring (extra
                ``keyring``) in place of that file; a folder that has it there is opened anyway.
            data_id: the app's own stable name of the data set that the contributor works on. All
                identities and folders of this user that name the same one share one account: its
                limits hold for them together. None: folders in the user's state folder count as
                one data set, and a folder that the app names itself counts alone.
            registry_dir: where the accounts of data sets lie; by default in the user's state
                folder. Keep it on the disk that keeps the state folder.
            on_event: called with every event, in the event loop's thread, before the participant
                goes on; what it raises ends the run.
            transport: patience, deadlines and sizes of HTTP, proxies and roots of trust.
            settings: lifetimes and waits of the exchange.
            clock: Unix seconds on this device.

        Raises:
            EnrolmentError: the bundle is unreadable, damaged or has ended.
            StateError: the state folder does not open; ``data-id``: an empty or a long one.
        """
        bundle_file = None if isinstance(bundle, EnrolmentBundle) else Path(bundle)
        if not isinstance(bundle, EnrolmentBundle):
            bundle = load_bundle(Path(bundle))
        check_bundle(bundle, clock())
        data = DataChoice(
            data_id,
            None if registry_dir is None else Path(registry_dir),
            default_root() if state_dir is None else None,
        )
        if state_dir is None:
            state_dir = default_root() / bundle.certificate.identity_key.hex()[:16]
        folder = Path(state_dir)
        return cls(
            bundle,
            policy or PrivacyPolicy(),
            folder,
            open_storage_key(folder, passphrase, keyring=keyring),
            on_event=on_event,
            transport=transport,
            settings=settings,
            data=data,
            clock=clock,
            bundle_file=bundle_file,
        )

    @property
    def state_dir(self) -> Path:
        """This device's own folder."""
        return self._folder

    def has_pending(self) -> bool:
        """Whether a session of an earlier process is unfinished. One look at the folder: cheap."""
        return Journal.has_session(self._folder)

    def reset_session(self) -> bool:
        """End the unfinished session and touch nothing else; whether there was one.

        For a session that cannot go on and does not end by itself. Account, checkpoints and the
        record of what was given stay (:mod:`client_sdk.maintenance`).

        Raises:
            StateError: ``state-in-use``.
        """
        return StateFolder(self._folder, self._key, self._identity_key).reset_session()

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Tasks that this device refuses, since the ledger contradicted it.

        Raises:
            StateError: ``state-in-use``, ``state-damaged``.
        """
        return StateFolder(self._folder, self._key, self._identity_key).quarantined()

    def release_quarantine(self, task: str) -> tuple[Quarantined, ...]:
        """Take part in a task again; the entries that were lifted. The evidence files stay.

        Raises:
            StateError: ``state-in-use``, ``state-damaged``.
        """
        return StateFolder(self._folder, self._key, self._identity_key).release_quarantine(task)

    def failing(self) -> tuple[FailingTask, ...]:
        """Tasks in which training failed, how often in a row, and the last failure of each.

        Raises:
            StateError: ``state-in-use``, ``state-damaged``.
        """
        return StateFolder(self._folder, self._key, self._identity_key).failing()

    def try_again(self, task: str) -> bool:
        """Take part again in a task from which training that failed keeps this device away.

        For when the app has mended what the failures say; whether any failure was counted.

        Raises:
            StateError: ``state-in-use``, ``state-damaged``.
        """
        return StateFolder(self._folder, self._key, self._identity_key).try_again(task)

    def run(
        self,
        contributor: Contributor,
        *,
        task: str,
        rounds: int | None = None,
        stop: StopSignal | None = None,
    ) -> RunResult:
        """Take part until ``rounds`` releases hold this device's contribution, or the task ends.

        Blocks; runs an event loop of its own. A pending session is finished first. While nothing
        was charged for it the present policy holds for it too: it is dropped (``aborted``, with the
        policy's reason) if the policy refuses its task, or has other terms (``policy-changed``).
        One of another task is dropped too (``other-task``), unless a cohort counts on this device
        already: then the event ``waiting`` says for how many seconds at most.

        Args:
            rounds: None: until the task ends.
            stop: ends the run once its ``is_set()`` says so: a ``threading.Event``, set from any
                thread. Training ends within one micro-batch, and a cohort that does not count on
                this device yet is left. One that does is finished within ``stop_wait_s`` of the
                settings; after that the session stays in the journal (``pending`` of the result).

        Raises:
            RunningLoopError: ``loop-running``: called inside an event loop.
            TransportError: the aggregator was out of reach for longer than the patience, or
                refused this device. The journal keeps what is pending.
            LedgerRefusal: the ledger forked, was rolled back, or does not show what it must;
                ``ledger-quarantined`` in every run of the task once a record of it has
                contradicted this device. The operator's fault; other tasks go on.
            RemoteProtocolError: an offer that the aggregator's key did not sign.
            ClockError: this device's clock is wrong by more than 90 minutes, or the aggregator's
                went back. The journal keeps what is pending.
            ContributionError: the contributor failed three times where no noise hides failures.
            StateError: the state folder is in use, damaged, or another device's; or
                ``data-account-missing``, ``data-of-another``
                (:meth:`client_sdk.accounts.data_door.DataDoor.open`).
        """
        demand_no_loop("client.run")
        return asyncio.run(self.run_async(contributor, task=task, rounds=rounds, stop=stop))

    async def run_async(
        self,
        contributor: Contributor,
        *,
        task: str,
        rounds: int | None = None,
        stop: StopSignal | None = None,
    ) -> RunResult:
        """As :meth:`run`, inside an event loop."""
        return await self._take_part(contributor, task, rounds, stop, self._deliver)

    async def participate(
        self,
        contributor: Contributor,
        *,
        task: str,
        rounds: int | None = None,
        stop: StopSignal | None = None,
    ) -> AsyncGenerator[Event, None]:
        """As :meth:`run`, yielding every event; the participant waits while the app looks at one.

        Leaving the loop stops at that event; what is pending stays in the journal.
        """
        handed: asyncio.Queue[tuple[Event, asyncio.Future[None]]] = asyncio.Queue()

        async def deliver(event: Event) -> None:
            await self._deliver(event)
            seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            handed.put_nowait((event, seen))
            await seen

        work = asyncio.create_task(self._take_part(contributor, task, rounds, stop, deliver))
        get = asyncio.create_task(handed.get())
        try:
            while True:
                await asyncio.wait({get, work}, return_when=asyncio.FIRST_COMPLETED)
                if not get.done():
                    await work
                    return
                event, seen = get.result()
                yield event
                get = asyncio.create_task(handed.get())
                if not seen.done():  # cancelled, perhaps by a deadline
                    seen.set_result(None)
        finally:
            work.cancel()
            get.cancel()
            await asyncio.gather(work, get, return_exceptions=True)

    def pause(self) -> None:
        """Let this client's run rest until :meth:`resume`, or one that is yet to begin.

        From any thread; returns at once. Training ends within one micro-batch and begins anew
        afterwards. A cohort that does not count on this device yet is left, and joined again later;
        one that does is finished first. The event ``paused`` says that nothing goes on any more.
        A pause is not kept on disk: a new client has none.
        """
        self._pause.set()

    def resume(self, *, stop: StopSignal | None = None) -> RunResult:
        """Lift a pause; else finish a pending session, without a contributor.

        After :meth:`pause`, or while a run of this client is under way, it returns at once and may
        be called from any thread. Otherwise it blocks until the session that an earlier process
        left is finished; nothing to do without one. ``refusals`` of the result says why the
        present policy dropped it, as :meth:`run` does, or which limit of a period keeps it from
        going on now: then it is still pending.

        Raises:
            RunningLoopError: ``loop-running``: called inside an event loop, where it would block.
            TransportError, LedgerRefusal, ClockError, StateError: as :meth:`run`.
        """
        if self._lift_pause():
            return RunResult()
        demand_no_loop("client.resume")
        return asyncio.run(self.resume_async(stop=stop))

    def _lift_pause(self) -> bool:
        """Whether that is what :meth:`resume` is for now."""
        lifted = self._pause.is_set() or self._under_way
        self._pause.clear()
        return lifted

    async def resume_async(self, *, stop: StopSignal | None = None) -> RunResult:
        """As :meth:`resume`, inside an event loop."""
        if self._lift_pause() or not self.has_pending():
            return RunResult()
        tally = Tally()
        with self._opened() as (journal, account), self._runs():
            async with self._running(journal, account, self._deliver, stop) as device:
                if account.is_new:
                    await recover_charges(device)
                try:
                    outcome = await finish_pending(device)
                except PolicyRefusal as refusal:
                    return RunResult(refusals=(refusal,))
                except Interrupted as wish:
                    pending = self.has_pending()
                    return RunResult(stopped=wish.reason == "stopped", pending=pending)
            if outcome is None:
                return RunResult()
            tally.add(outcome)
            if outcome.refusal is not None:
                tally.refusals.append(outcome.refusal)
            if outcome.fault is not None:
                raise outcome.fault
            return tally.result(account, outcome.task, self._folder)

    def recover_account(self, leaves_max: int = LEAVES_MAX) -> Recovered:
        """Find this device's charges in the ledger, and add those that its account lacks.

        A client with a new state folder does so by itself, before anything else; this is for a
        ledger that is longer than it reads then, and for cohorts that ended since.

        Raises:
            LedgerRefusal, BudgetError: as :func:`client_sdk.accounts.recovery.recover`.
            TransportError, StateError: as :meth:`run`.
        """
        demand_no_loop("client.recover_account")
        return asyncio.run(self.recover_account_async(leaves_max))

    async def recover_account_async(self, leaves_max: int = LEAVES_MAX) -> Recovered:
        """As :meth:`recover_account`, inside an event loop."""
        with self._opened() as (journal, account):
            async with self._running(journal, account, self._deliver) as device:
                return await recover_charges(device, leaves_max)

    def explain(self, task: str, contributor: Contributor | None = None) -> Explanation:
        """What taking part in a task means for this device now, for its user to decide.

        With the checks of a check-in: the manifest is signed by the aggregator that this device was
        enrolled with, and the ledger bears it out. No model is fetched, and nothing is given. What
        the policy would refuse is in ``refusals`` of the result.

        Args:
            contributor: for what training takes of memory, and what it does not declare.

        Raises:
            PolicyRefusal: ``manifest-unsound``: the manifest does not hold what it promises.
            RemoteProtocolError, ClockError, LedgerRefusal, StateError, TransportError: as
                :meth:`run`.
        """
        demand_no_loop("client.explain")
        return asyncio.run(self.explain_async(task, contributor))

    async def explain_async(self, task: str, contributor: Contributor | None = None) -> Explanation:
        """As :meth:`explain`, inside an event loop."""
        from client_sdk.rounds.explaining import explain  # with the words of reports

        with self._opened() as (journal, account):
            async with self._running(journal, account, self._deliver) as device:
                return await explain(device, task, contributor)

    def renew_data_account(self) -> int:
        """The app's word to begin the data's account anew, where it was lost; how often it was.

        Nothing changes where it is there. The new one has what this state folder has and remembers
        that it was begun anew; :meth:`recover_account` adds what the ledger shows. What other
        folders spent counts again when each of them has done the same.

        Raises:
            StateError: as :meth:`run`.
        """
        with self._opened(renew=True) as (_, account):
            return 0 if account.data is None else account.data.renewed

    def forget(self, *, also_account: bool = False, end_session: bool = False) -> Forgotten:
        """Delete this device: identity, journal, models and what else its state folder holds.

        What was spent of the data stays and counts on, in the record of the data set or, where the
        folder counts alone, in the folder with its key. A process that is killed in here leaves a
        folder that no client runs with; the next call goes on. Afterwards this client does nothing
        more. Works without a network.

        Args:
            also_account: the app's second word: forget what was spent too. The same data may then
                be spent again.
            end_session: also while a masked vector is on its way. Its cohort goes on without this
                device, and the charge stays.

        Raises:
            StateError: ``state-in-use``; ``session-pending``: a masked vector is on its way;
                ``account-shared``: other folders count on the account; ``data-account-missing``:
                the account that is to stay is not there; ``state-damaged``; ``forgotten``: it is.
        """
        self._demand_remembered()
        with Lock(self._folder):
            forgotten = forgetting.forget(
                self._folder,
                self._key,
                self._identity_key,
                self._door,
                bundle_file=self._bundle_file,
                also_account=also_account,
                end_session=end_session,
                delta=self.policy.max_delta,
            )
        self._forgotten = True
        return replace(forgotten, kept=forgetting.sweep(self._folder))

    def _demand_remembered(self) -> None:
        """Raises: StateError: ``forgotten``."""
        if self._forgotten:
            raise StateError(
                "forgotten",
                "This device was forgotten.",
                remedy="Enrol a new device, and make a client from its bundle.",
            )

    @contextmanager
    def _opened(self, *, renew: bool = False) -> Iterator[tuple[Journal, DeviceAccount]]:
        """This device's folder under its lock, and its account with what shares it."""
        self._demand_remembered()
        with Lock(self._folder):
            forgetting.demand_not_forgotten(self._folder, self._key, self._identity_key)
            journal = own_journal(self._folder, self._key, self._identity_key)
            account = whole_account(journal, self.policy.max_delta)
            if self._data is not None:
                data = self._door(journal).open(account, renew=renew)
                if data is not None:
                    account.share(data)
            yield journal, account

    def _door(self, journal: Journal) -> DataDoor:
        return DataDoor(
            journal,
            self._folder,
            self._data or DataChoice(),
            self._bundle,
            self._clock(),
        )

    async def _tell_account(self, device: RunningDevice, task: str) -> None:
        """Say once what the account counts."""
        if self._data is None:
            return
        door, data = self._door(device.journal), device.account.data
        if not door.told:
            shown = {} if data is None else data.shown()
            await device.deliver(Event("account", task, detail={"counts": "folder"} | shown))
            door.tell()

    async def _take_part(
        self,
        contributor: Contributor,
        task: str,
        rounds: int | None,
        stop: StopSignal | None,
        deliver: _Deliver,
    ) -> RunResult:
        with self._opened() as (journal, account), self._runs():
            async with self._running(journal, account, deliver, stop) as device:
                await self._tell_account(device, task)
                training = Training(device, contributor)
                tally = await take_part(device, training, task, rounds)
            await training.settled()  # after the network is gone: nobody sees how long it takes
            tally.pending = self.has_pending()
            if tally.stopped:
                await device.emit("stopped", task, pending=tally.pending)
            return tally.result(account, task, self._folder)

    @contextmanager
    def _runs(self) -> Iterator[None]:
        self._under_way = True
        try:
            yield
        finally:
            self._under_way = False

    def _running(
        self,
        journal: Journal,
        account: DeviceAccount,
        deliver: _Deliver,
        stop: StopSignal | None = None,
    ) -> AbstractAsyncContextManager[RunningDevice]:
        return running_device(
            self._bundle,
            self.policy,
            journal,
            account,
            deliver,
            Steering(stop, self._pause, self.policy.demand_now),
            transport=self._transport,
            settings=self._settings,
            clock=self._clock,
            steady=self._steady,
            sleep=self._sleep,
        )

    async def _deliver(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
