"""All open cohorts on one replica: loading, committing, unmasking, ending.

After a start every open cohort is replayed from its log; deadlines, accepted uploads and a due
unmasking follow from the replay, so a crash needs no clean-up of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec

from aggregator.cohorts import refusals
from aggregator.cohorts.actor import Cohort, CohortOver
from aggregator.cohorts.adding import SUMS, Adder
from aggregator.cohorts.charging import Charging, entry_of, facts_of
from aggregator.cohorts.ending import Ending
from aggregator.cohorts.log import OPENED, RECEIVED, CohortFormed, Replay, begin, catch_up
from aggregator.cohorts.releasing import Releaser
from aggregator.cohorts.unmasking import claim_lease, renewed_lease, unmasked_sum
from aggregator.cohorts.uploads import Uploads
from aggregator.cohorts.wakeups import Wakeups
from aggregator.core import Core
from aggregator.disk import full
from aggregator.errors import DatabaseAway, LeftToOthers, not_found
from aggregator.logs import get_logger
from aggregator.store import cohorts, mail, sessions
from aggregator.store.blobs import BlobDamaged, BlobMissing, store_failed
from aggregator.store.database import Conflict, Connection
from aggregator.store.sealing import CELL_MOVED, CellRefused
from aggregator.tasks import Task, Tasks
from secagg.errors import SecaggError
from secagg.server import (
    Aborted,
    Effect,
    Ended,
    Refused,
    State,
    SumRefused,
    UnmaskingSum,
    masking_set_of,
)

_log = get_logger("driver")
_T = TypeVar("_T")
_UNMASKING_TRIES = 3
_STORE_AGAIN_S = 1.0
_STORE_S = 15.0  # a store that hangs holds no cohort's worker, and so no replica's clock
_LEFT_TO_OTHERS_S = 60.0  # after a deadline: then none of them is there
_SETTLE_S = 10.0  # for vectors that came before their deadline
_MISSING_MAX_S = 300.0  # a store that lags shows a file by then; one that lost it never does
_UNREADABLE = [(RECEIVED, b"")]  # a log of which nothing can be said, not even who had sent


@dataclass(frozen=True)
class Member:
    """What never changes about the session of a device in an open cohort."""

    identity: bytes
    task: str
    cohort: str
    index: int


class Live:
    """One open cohort with what serves it on this replica."""

    def __init__(self, core: Core, cohort: Cohort) -> None:
        self.cohort = cohort
        self.uploads = Uploads(core, cohort)
        self.adder = Adder(core, cohort, self.uploads)
        self._unmasking: asyncio.Task[None] | None = None
        self._missing_since_s: float | None = None
        self._waits_for: tuple[object, ...] | None = None

    def members(self) -> dict[str, Member]:
        """By session."""
        cohort = self.cohort
        return {
            session: Member(entry.identity_key, cohort.task.name, cohort.id, index)
            for index, (session, entry) in enumerate(
                zip(cohort.sessions, cohort.state.roster, strict=True)
            )
        }

    @property
    def unmasking_due(self) -> bool:
        """Whether the masks can be removed and nothing removes them yet."""
        cohort = self.cohort
        idle = self._unmasking is None or self._unmasking.done()
        return idle and isinstance(cohort.state, UnmaskingSum) and cohort.replay.plan is not None

    def unmasked_by(self, work: asyncio.Task[None]) -> None:
        """``work`` removes the masks; it ends with this cohort."""
        self._unmasking = work

    def missing_for_s(self, now: float) -> float:
        """A file that is needed for the sum is not in the store, or not as it was written.

        Returns:
            For how many seconds this has been so, as this replica has seen.
        """
        if self._missing_since_s is None:
            self._missing_since_s = now
        return now - self._missing_since_s

    def missing_no_more(self) -> None:
        """Another outcome came between."""
        self._missing_since_s = None

    def waits_anew(self, error: Exception) -> bool:
        """Whether its opening has not waited for this kind of failure just before."""
        kind = (type(error), getattr(error, "reason", None), getattr(error, "errno", None))
        before, self._waits_for = self._waits_for, kind
        return kind != before

    async def close(self) -> None:
        await self.adder.close()
        if self._unmasking is not None and self._unmasking is not asyncio.current_task():
            self._unmasking.cancel()
            await asyncio.gather(self._unmasking, return_exceptions=True)
        await self.cohort.close()


class Driver:
    """The open cohorts of one replica, and everything that runs for them in the background."""

    def __init__(
        self,
        core: Core,
        tasks_: Tasks,
        charging: Charging,
        releaser: Releaser,
        ending: Ending,
        wakeups: Wakeups,
    ) -> None:
        self._core = core
        self._tasks = tasks_
        self._charging = charging
        self._releaser = releaser
        self._ending = ending
        self._wakeups = wakeups
        self._live: dict[str, Live] = {}
        self._members: dict[str, Member] = {}  # of the cohorts in _live
        self._loading = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop everything where it is; a start goes on from the database.

        A commit that was under way may still end its cohort, which spawns more: go on until
        nothing is left, or the event loop would end under what is.
        """
        while self._background or self._live:
            for task in tuple(self._background):
                task.cancel()
            await asyncio.gather(*self._background, return_exceptions=True)
            for live in tuple(self._live.values()):
                await live.close()
                self._forget(live)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run in the background until it ends or the driver closes."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._finished)
        return task

    async def to_its_end(self, work: Coroutine[Any, Any, _T], name: str) -> _T:
        """Go on with it though its caller leaves; the close of the driver ends it too."""
        outcome: list[_T] = []

        async def run() -> None:
            outcome.append(await work)

        await asyncio.shield(self.spawn(run(), name))
        return outcome[0]

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("background-failed", work=task.get_name(), exc_info=task.exception())

    # -- what routes use --------------------------------------------------------------------

    @property
    def live(self) -> dict[str, Live]:
        return self._live

    def member(self, session: str) -> Member | None:
        """The session, if its cohort is served here; else the database knows."""
        return self._members.get(session)

    async def get(self, cohort: str) -> Live:
        """
        Raises:
            CohortOver: the cohort has ended.
            Refusal: ``not-found``.
        """
        live = self._live.get(cohort) or await self._load(cohort)
        if live is None:
            raise CohortOver
        return live

    async def letter(self, cohort: str, index: int, number: int) -> bytes | None:
        """A roster or an inbox from the cohort's log; None once nobody can need it."""
        try:
            actor = (await self.get(cohort)).cohort
        except CohortOver:
            return None
        if actor.replay.mail.get(index, 0) < number:
            await actor.refresh()  # another replica has delivered it
        found = actor.replay.letter(index, number)
        return None if found is None else await asyncio.to_thread(found.make)

    # -- loading ------------------------------------------------------------------------------

    async def _load(self, cohort: str) -> Live | None:
        """Replay a cohort from its log; None if it has ended."""
        async with self._loading:
            if cohort in self._live:
                return self._live[cohort]
            async with self._core.database.read() as connection:
                stored = await cohorts.progress(connection, cohort)
                if stored is None:
                    raise not_found("cohort")
                if stored.state != "open":
                    return None
                events = await _log_of(connection, cohort)
                members = await sessions.members(connection, cohort)
            task = await self._tasks.get(stored.task)
            try:
                replay = await asyncio.to_thread(_replay, task, events)
            except MemoryError:
                raise
            except Exception:  # whatever it is, it would be so again
                _log.exception("log-unreadable", cohort=cohort, task=task.name)
                await self._abandon(task, cohort, events, members)
                return None
            return self.adopt(task, cohort, replay, members)

    def adopt(self, task: Task, cohort: str, replay: Replay, members: Sequence[str]) -> Live:
        """Serve a cohort from now on; one that is served already stays as it is.

        Whoever forms a cohort and whoever finds it in the database may both come here.
        """
        if (served := self._live.get(cohort)) is not None:
            return served
        actor = Cohort(
            self._core,
            task,
            cohort,
            replay,
            members,
            self._before_commit,
            self._commit_more,
            self._committed,
        )
        live = self._live[cohort] = Live(self._core, actor)
        self._members.update(live.members())
        # Who waits here for what another replica has committed would miss it otherwise.
        self._core.signals.notify(*(f"session:{session}" for session in members))
        self.maybe_unmask(live)
        if replay.uploads:
            self.spawn(self._add_complete(live), f"add-{cohort[:8]}")
        self._wakeups.kick()
        return live

    async def _abandon(
        self, task: Task, cohort: str, log: Sequence[tuple[str, bytes]], members: Sequence[str]
    ) -> None:
        with contextlib.suppress(Conflict):  # another replica was first
            await self._ending.abandon(task, cohort, log)
        await self._core.ask_blobs(self._core.blobs.clear, f"partial/{cohort}", SUMS)
        self._core.signals.notify(*(f"session:{session}" for session in members))
        self._wakeups.consider(task.name)

    async def _add_complete(self, live: Live) -> None:
        """Add vectors that were whole before a crash, but not yet in the sum."""
        adding = (live.adder.add(index) for index in await live.uploads.complete())
        await asyncio.gather(*adding, return_exceptions=True)  # their devices hear when they ask

    async def settle(self, live: Live) -> None:
        """Before a deadline passes: a vector that is whole in the store has come in time. It is
        added, or its being late is the service's failure."""
        try:
            async with asyncio.timeout(_SETTLE_S):
                await self._add_complete(live)
        except (TimeoutError, OSError):
            live.cohort.work_failed()

    async def take_up(self, cohort: str) -> None:
        """Serve a cohort that another replica, or an earlier run, has opened."""
        await self._load(cohort)

    # -- what a commit brings ---------------------------------------------------------------

    async def _before_commit(self, cohort: Cohort, state: State) -> None:
        """What asks a disk or the blob store, before the transaction, which holds up every other
        writer.

        Raises:
            Refusal: ``disk-low``: nothing is debited, and the cohort ends.
            LeftToOthers: the same of this replica's own disk, as long as another may go on.
            OSError: the store failed, or hangs: the step is tried again.
        """
        async with asyncio.timeout(_STORE_S):
            if isinstance(state, Aborted):
                await cohort.look_for_failure()
                if masking_set_of(state):
                    await self._charging.keep_list(entry_of(state, 0, 0.0, None, None))
            if fixes_masking_set(cohort.state, state):
                await self._demand_space(cohort)

    async def _demand_space(self, cohort: Cohort) -> None:
        """Raises: as :meth:`_before_commit`."""
        ask, settings = self._core.ask_blobs, self._core.settings
        if (low := await ask(full, settings)) is None:
            return
        late_s = self._core.clock() - cohort.state.deadline_s
        if late_s < _LEFT_TO_OTHERS_S and await ask(partial(full, settings, shared=True)) is None:
            raise LeftToOthers(low.refusal(again_s=1))  # a balancer may choose another replica
        raise low.refusal()

    async def _commit_more(
        self,
        cohort: Cohort,
        connection: Connection,
        state: State,
        effects: Sequence[Effect],
    ) -> None:
        """Decisions in the transaction of the events: the debit, and the cohort's end."""
        if fixes_masking_set(cohort.state, state):
            await self._charging.reserve(connection, cohort)
        if isinstance(state, UnmaskingSum) and not isinstance(cohort.state, UnmaskingSum):
            await self._charging.spend(connection, cohort.task, cohort.id, facts_of(state))
        for effect in effects:
            if isinstance(effect, Refused):
                await refusals.keep(connection, cohort.task.name, state, effect, self._core.clock())
            elif isinstance(effect, Ended):
                await self._ending.end(connection, cohort, state, effect)

    def _committed(self, cohort: Cohort, before: str, effects: Sequence[Effect]) -> None:
        live = self._live.get(cohort.id)
        if live is None:
            return
        for effect in effects:
            if isinstance(effect, Refused):
                self._tell_refused(cohort, effect)
        if cohort.state.phase != before:
            _log.info("phase", cohort=cohort.id, task=cohort.task.name, phase=cohort.state.phase)
        if cohort.over:
            self.spawn(self._ended(live), f"end-{cohort.id[:8]}")
        else:
            self.maybe_unmask(live)
            self._wakeups.kick()

    def _tell_refused(self, cohort: Cohort, refused: Refused) -> None:
        facts, entry = cohort.state.facts, refused.entry
        _log.warning(
            "roster-refused",
            cohort=cohort.id,
            task=cohort.task.name,
            reason=refused.reason,
            device=self._core.pseudonyms.device(facts.identity(refused.index)),
            because_of=self._core.pseudonyms.device(facts.identity(entry)) if entry >= 0 else None,
        )
        reason = refused.reason if refused.reason in refusals.REASONS else "other"
        self._core.metrics.roster_refusals.labels(cohort.task.name, reason).inc()

    def _forget(self, live: Live) -> None:
        if self._live.pop(live.cohort.id, None) is not None:
            for session in live.cohort.sessions:
                self._members.pop(session, None)

    async def _ended(self, live: Live) -> None:
        """What fails keeps nothing else from being done. The blob store comes last: it may hang,
        and others wait for the next cohort."""
        cohort = live.cohort
        self._forget(live)
        for step in (
            live.close,
            partial(self._ending.published, cohort, mine=not cohort.ended_elsewhere),
            partial(self._forget_mail, cohort),
            self._core.database.checkpoint,
            partial(self.wake_task, cohort.task.name),
            partial(self._remove_files, live),
        ):
            try:
                await step()
            except Exception:
                _log.exception("end-failed", cohort=cohort.id, task=cohort.task.name)

    async def _forget_mail(self, cohort: Cohort) -> None:
        async with self._core.database.write() as connection:
            await mail.forget_bulk(connection, cohort.id)

    async def _remove_files(self, live: Live) -> None:
        cohort = live.cohort
        try:
            await live.uploads.close()
            await self._core.ask_blobs(self._core.blobs.clear, f"partial/{cohort.id}", SUMS)
        except OSError:
            _log.exception("parts-not-removed", cohort=cohort.id)  # the janitor tries again

    async def wake_task(self, task: str) -> None:
        """Wake offers and waiting sessions of a task, and try to form its next cohort."""
        self._core.signals.notify(f"task:{task}")
        self._wakeups.consider(task)
        async with self._core.database.read() as connection:
            waiting = await sessions.waiting_names(connection, task)
        self._core.signals.notify(*(f"session:{session}" for session in waiting))

    # -- unmasking ----------------------------------------------------------------------------

    def maybe_unmask(self, live: Live) -> None:
        if live.unmasking_due:
            live.unmasked_by(self.spawn(self._unmask(live), f"open-{live.cohort.id[:8]}"))

    async def _unmask(self, live: Live) -> None:
        cohort = live.cohort
        plan = cohort.replay.plan
        assert plan is not None  # noqa: S101  maybe_unmask has looked
        reason = "release-failed"
        for attempt in range(_UNMASKING_TRIES):
            try:
                if not await claim_lease(self._core, cohort.id):
                    live.missing_no_more()
                    return  # another replica unmasks; the poller looks again
                async with renewed_lease(self._core, cohort.id):
                    unmasked = await unmasked_sum(self._core, cohort, plan)
                    await self._releaser.release(cohort, unmasked)
                return
            except (CohortOver, asyncio.CancelledError):
                raise
            except (BlobMissing, BlobDamaged) as error:
                cohort.work_failed()
                if live.missing_for_s(self._core.clock()) <= _MISSING_MAX_S:
                    await self._wait_for_store(live, error)
                    return
                _log.exception("sum-refused", cohort=cohort.id, reason=error.reason)
                reason = error.reason
                break
            except SecaggError as error:
                _log.warning("sum-refused", cohort=cohort.id, reason=error.reason)
                reason = error.reason
                break
            except Exception as error:
                cohort.work_failed()
                live.missing_no_more()
                if isinstance(error, DatabaseAway) or store_failed(error):
                    await self._wait_for_store(live, error)
                    return
                _log.exception(
                    "opening-failed",
                    cohort=cohort.id,
                    task=cohort.task.name,
                    phase=cohort.state.phase,
                    attempt=attempt,
                )
        with contextlib.suppress(CohortOver, SecaggError):
            await cohort.submit(SumRefused(reason, self._core.clock()))

    async def _wait_for_store(self, live: Live, error: Exception) -> None:
        """The sum may be right at the poller's next look. A database that is away is told once, by
        itself."""
        if live.waits_anew(error) and not isinstance(error, DatabaseAway):
            _log.exception("opening-waits", cohort=live.cohort.id, task=live.cohort.task.name)
        await asyncio.sleep(_STORE_AGAIN_S)


def fixes_masking_set(before: State, after: State) -> bool:
    """Whether the steps from ``before`` to ``after`` fixed S: from now on a device may send. A
    cohort that ended in the same commit has told its devices S as well."""
    return not masking_set_of(before) and bool(masking_set_of(after))


async def _log_of(connection: Connection, cohort: str) -> list[tuple[str, bytes]]:
    try:
        return await cohorts.events_after(connection, cohort, -1)
    except CellRefused as error:
        if error.reason != CELL_MOVED:
            raise
        _log.exception("cell-moved", cohort=cohort)
        return _UNREADABLE


def _replay(task: Task, events: Sequence[tuple[str, bytes]]) -> Replay:
    kind, payload = events[0]
    assert kind == OPENED  # noqa: S101  event 0 by construction
    replay, _ = begin(task.config, msgspec.msgpack.decode(payload, type=CohortFormed))
    catch_up(task.config, replay, events[1:])
    return replay
