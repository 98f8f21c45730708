"""All open cohorts on one replica: forming, waking, opening, ending, and starting again.

After a start every open cohort is replayed from its log; deadlines, accepted uploads and a due
opening follow from the replay, so a crash needs no clean-up of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from aggregator.cohorts import formation
from aggregator.cohorts.actor import Cohort, CohortOver
from aggregator.cohorts.adding import Adder
from aggregator.cohorts.log import OPENED, Opened, Replay, begin, catch_up, survivors_of
from aggregator.cohorts.opening import claim_lease, opened_sum
from aggregator.cohorts.releasing import Releaser
from aggregator.cohorts.uploads import Uploads
from aggregator.core import Core
from aggregator.logs import get_logger
from aggregator.partners import Partners
from aggregator.problems import not_found
from aggregator.store.schema import cohort_events, cohorts, sessions, tasks
from aggregator.tasks import Task, Tasks
from secagg.errors import SecaggError
from secagg.server import Effect, Ended, State, SumRefused, Tick

_log = get_logger("driver")
_OPENING_TRIES = 3


class Live:
    """One open cohort with what serves it on this replica."""

    def __init__(self, core: Core, cohort: Cohort) -> None:
        self.cohort = cohort
        self.uploads = Uploads(core, cohort)
        self.adder = Adder(core, cohort, self.uploads)
        self.opening: asyncio.Task[None] | None = None

    async def close(self, *, ended: bool) -> None:
        await self.adder.close()
        if self.opening is not None and self.opening is not asyncio.current_task():
            self.opening.cancel()
            await asyncio.gather(self.opening, return_exceptions=True)
        await self.cohort.close()
        if ended:
            self.uploads.close()


class Driver:
    def __init__(self, core: Core, tasks_: Tasks, releaser: Releaser, partners: Partners) -> None:
        self._core = core
        self._partners = partners
        self._tasks = tasks_
        self._releaser = releaser
        self._live: dict[str, Live] = {}
        self._loading = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._form_at: dict[str, float] = {}
        self._versions: dict[str, tuple[int, str]] = {}
        self._kick = asyncio.Event()

    # -- life -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Replay every open cohort and begin to watch clocks and other replicas."""
        await self._poll()
        async with self._core.database.read() as connection:
            names = (await connection.execute(sa.select(tasks.c.task))).scalars().all()
        for name in names:
            self._form_at[name] = 0.0
        self._spawn(self._watch(), "watch")

    async def close(self) -> None:
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for live in tuple(self._live.values()):
            await live.close(ended=False)
        self._live.clear()

    def _spawn(self, work, name: str) -> asyncio.Task[None]:  # type: ignore[no-untyped-def]
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # -- what routes use --------------------------------------------------------------------

    @property
    def live(self) -> dict[str, Live]:
        return self._live

    def consider(self, task: str) -> None:
        """Look soon whether the task can form a cohort."""
        self._form_at[task] = 0.0
        self._kick.set()

    async def get(self, cohort: str) -> Live:
        """
        Raises:
            CohortOver: the cohort has ended.
            Refusal: 404 ``not-found``.
        """
        live = self._live.get(cohort) or await self._load(cohort)
        if live is None:
            raise CohortOver
        return live

    # -- loading ------------------------------------------------------------------------------

    async def _load(self, cohort: str) -> Live | None:
        """Replay a cohort from its log; None if it has ended."""
        async with self._loading:
            if cohort in self._live:
                return self._live[cohort]
            async with self._core.database.read() as connection:
                row = (
                    await connection.execute(
                        sa.select(cohorts.c.task, cohorts.c.state).where(cohorts.c.cohort == cohort)
                    )
                ).first()
                if row is None:
                    raise not_found("cohort")
                if row.state != "open":
                    return None
                events = [
                    (e.kind, e.payload)
                    for e in await connection.execute(
                        sa.select(cohort_events.c.kind, cohort_events.c.payload)
                        .where(cohort_events.c.cohort == cohort)
                        .order_by(cohort_events.c.seq)
                    )
                ]
                members = (
                    (
                        await connection.execute(
                            sa.select(sessions.c.session)
                            .where(sessions.c.cohort == cohort)
                            .order_by(sessions.c.roster_index)
                        )
                    )
                    .scalars()
                    .all()
                )
            task = await self._tasks.get(row.task)
            replay = await asyncio.to_thread(_replay, task, events)
            return self._adopt(task, cohort, replay, members)

    def _adopt(self, task: Task, cohort: str, replay: Replay, members: Sequence[str]) -> Live:
        actor = Cohort(
            self._core, task, cohort, replay, members, self._commit_more, self._committed
        )
        live = self._live[cohort] = Live(self._core, actor)
        self._core.metrics.open_cohorts.set(len(self._live))
        self._maybe_open(live)
        self._kick.set()
        return live

    # -- what a commit brings ---------------------------------------------------------------

    async def _commit_more(
        self,
        cohort: Cohort,
        connection: AsyncConnection,
        state: State,
        effects: Sequence[Effect],
    ) -> None:
        """Decisions in the transaction of the events: the debit, and the cohort's end."""
        if fixes_masking_set(cohort.state, state):
            await self._releaser.reserve(connection, cohort)
        if state.phase == "opening" and cohort.state.phase != "opening":
            await self._releaser.spend(connection, cohort, len(survivors_of(state)))
        for effect in effects:
            if isinstance(effect, Ended):
                await self._releaser.end(connection, cohort, state, effect)

    def _committed(self, cohort: Cohort, before: str, effects: Sequence[Effect]) -> None:
        live = self._live.get(cohort.id)
        if live is None:
            return
        if cohort.state.phase != before:
            _log.info("phase", cohort=cohort.id, phase=cohort.state.phase)
        if cohort.over:
            self._spawn(self._ended(live), f"end-{cohort.id[:8]}")
        else:
            self._maybe_open(live)
            self._kick.set()

    async def _ended(self, live: Live) -> None:
        cohort = live.cohort
        self._live.pop(cohort.id, None)
        self._core.metrics.open_cohorts.set(len(self._live))
        await live.close(ended=True)
        await asyncio.to_thread(self._core.blobs.delete_folder, f"partial/{cohort.id}")
        await self._releaser.published(cohort, mine=not cohort.ended_elsewhere)
        await self._core.database.checkpoint()
        await self._wake_task(cohort.task.name)

    async def _wake_task(self, task: str) -> None:
        """Wake offers and waiting sessions of a task, and try to form its next cohort."""
        async with self._core.database.read() as connection:
            waiting = await connection.execute(
                sa.select(sessions.c.session).where(
                    sessions.c.task == task, sessions.c.cohort.is_(None)
                )
            )
            names = [f"session:{row.session}" for row in waiting]
        self._core.signals.notify(f"task:{task}", *names)
        self.consider(task)

    # -- opening ------------------------------------------------------------------------------

    def _maybe_open(self, live: Live) -> None:
        due = live.cohort.state.phase == "opening" and live.cohort.replay.plan is not None
        if due and (live.opening is None or live.opening.done()):
            live.opening = self._spawn(self._open(live), f"open-{live.cohort.id[:8]}")

    async def _open(self, live: Live) -> None:
        cohort = live.cohort
        plan = cohort.replay.plan
        assert plan is not None  # noqa: S101  _maybe_open has looked
        reason = "release-failed"
        for attempt in range(_OPENING_TRIES):
            try:
                if not await claim_lease(self._core, cohort.id):
                    return  # another replica opens; the poller looks again
                opened = await opened_sum(self._core, cohort, plan)
                await self._releaser.release(cohort, opened)
                return
            except (CohortOver, asyncio.CancelledError):
                raise
            except SecaggError as error:
                _log.warning("sum-refused", cohort=cohort.id, reason=error.reason)
                reason = error.reason
                break
            except Exception:
                _log.exception("opening-failed", cohort=cohort.id, attempt=attempt)
        with contextlib.suppress(CohortOver, SecaggError):
            await cohort.submit(SumRefused(reason, self._core.clock()))

    # -- clocks and other replicas ------------------------------------------------------------

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        polled = loop.time()
        while True:
            self._kick.clear()
            try:
                await self._tick()
                if loop.time() - polled >= self._core.settings.poll_s:
                    await self._poll()
                    polled = loop.time()
            except Exception:
                _log.exception("watch-failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._kick.wait()

    def _pause_s(self) -> float:
        now = self._core.clock()
        times = [
            live.cohort.replay.wake_at_s
            for live in self._live.values()
            if live.cohort.replay.wake_at_s is not None
        ]
        times += self._form_at.values()
        return max(0.005, min(self._core.settings.poll_s, *(t - now for t in times), 3600.0))

    async def _tick(self) -> None:
        now = self._core.clock()
        for live in tuple(self._live.values()):
            wake = live.cohort.replay.wake_at_s
            if wake is not None and wake <= now and not live.cohort.over:
                live.cohort.replay.wake_at_s = None
                with contextlib.suppress(CohortOver, SecaggError):
                    await live.cohort.submit(Tick(now))
        for name in [name for name, at in self._form_at.items() if at <= now]:
            del self._form_at[name]
            task = await self._tasks.get(name)
            formed = await formation.try_form(self._core, task)
            if isinstance(formed, formation.Formed):
                self._adopt(task, formed.cohort, formed.replay, formed.sessions)
            elif formed.again_s is not None:
                self._form_at[name] = formed.again_s

    async def _poll(self) -> None:
        """See what other replicas have committed."""
        async with self._core.database.read() as connection:
            rows = await connection.execute(
                sa.select(cohorts.c.cohort, cohorts.c.seq).where(cohorts.c.state == "open")
            )
            open_now = {row.cohort: row.seq for row in rows}
            rows = await connection.execute(sa.select(tasks.c.task, tasks.c.version, tasks.c.state))
            versions = {row.task: (row.version, row.state) for row in rows}
        for cohort, seq in open_now.items():
            live = self._live.get(cohort)
            if live is None:
                live = await self._load(cohort)
                if live is not None:
                    names = live.cohort.sessions
                    self._core.signals.notify(*(f"session:{name}" for name in names))
            elif live.cohort.replay.seq < seq:
                await live.cohort.refresh()
            else:
                self._maybe_open(live)
        for cohort, live in tuple(self._live.items()):
            if cohort not in open_now and not live.cohort.over:
                await live.cohort.refresh()
        for task, seen in versions.items():
            if self._versions.get(task) != seen:
                await self._wake_task(task)
        self._versions = versions
        await self._partners.load()


def fixes_masking_set(before: State, after: State) -> bool:
    """Whether the step from ``before`` to ``after`` fixed S: from now on a device may send."""
    return not hasattr(before, "masking_set") and hasattr(after, "masking_set")


def _replay(task: Task, events: Sequence[tuple[str, bytes]]) -> Replay:
    kind, payload = events[0]
    assert kind == OPENED  # noqa: S101  event 0 by construction
    replay, _ = begin(task.config, msgspec.msgpack.decode(payload, type=Opened))
    catch_up(task.config, replay, events[1:])
    return replay
