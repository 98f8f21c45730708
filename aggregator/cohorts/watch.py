"""What happens without a request: deadlines pass, cohorts become due, other replicas commit.

Nothing here is remembered: deadlines come from the cohorts' replays, and a task is looked at
whenever something about it may have changed. A failure is logged and tried again a second later;
that the database is away it tells itself, once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from aggregator.cohorts import formation
from aggregator.cohorts.actor import CohortOver
from aggregator.cohorts.alarms import Stuck
from aggregator.cohorts.driver import Driver, Live
from aggregator.cohorts.standing import barred_members
from aggregator.cohorts.wakeups import Wakeups
from aggregator.core import Core
from aggregator.errors import DatabaseAway, LeftToOthers
from aggregator.ledger.log import Ledger
from aggregator.logs import get_logger
from aggregator.operator_tokens import OperatorTokens
from aggregator.partners import Partners
from aggregator.store import cohorts, tasks
from aggregator.tasks import Tasks
from secagg.errors import SecaggError
from secagg.server import Exclude, Tick

_log = get_logger("watch")
_AGAIN_S = 1.0
_PAUSE_MIN_S = 0.005
_LEDGER = "ledger/"  # beside names of tasks, which have no slash


class Watch:
    """The clock and the poller of one replica."""

    def __init__(
        self,
        core: Core,
        tasks_: Tasks,
        driver: Driver,
        kept: Sequence[Partners | OperatorTokens],
        ledger: Ledger,
        wakeups: Wakeups,
    ) -> None:
        """``kept``: what is at hand for every request, and read anew at each look."""
        self._core = core
        self._ledger = ledger
        self._tasks = tasks_
        self._driver = driver
        self._kept = kept
        self._wakeups = wakeups
        self._stuck = Stuck(core.clock)
        self._seen: dict[str, tuple[int, str]] = {}  # task -> version and state
        self._busy: set[str] = set()  # what something is being done about

    async def start(self) -> None:
        """Take up every open cohort, then go on in the background."""
        await self._poll()
        self._driver.spawn(self._run(), "watch")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        polled = loop.time()
        while True:
            self._wakeups.clear()
            self._look_at_clock()
            if loop.time() - polled >= self._core.settings.poll_s:
                try:
                    await self._poll()
                except Exception as error:
                    self._core.metrics.poll_failures.inc()
                    if not isinstance(error, DatabaseAway):
                        _log.exception("poll-failed")
                self._stuck.look([live.cohort for live in self._driver.live.values()])
                polled = loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wakeups.wait()

    def _pause_s(self) -> float:
        now = self._core.clock()
        wakes = [live.cohort.replay.wake_at_s for live in self._driver.live.values()]
        times = [wake for wake in wakes if wake is not None] + list(self._wakeups.form_at.values())
        next_s = min((at - now for at in times), default=float("inf"))
        return max(_PAUSE_MIN_S, min(self._core.settings.poll_s, next_s))

    def _look_at_clock(self) -> None:
        now = self._core.clock()
        for cohort, live in self._driver.live.items():
            wake = live.cohort.replay.wake_at_s
            if wake is not None and wake <= now and not live.cohort.over:
                self._once(cohort, partial(self._tick, live, wake))
        for task in [name for name, at in self._wakeups.form_at.items() if at <= now]:
            if task not in self._busy:
                del self._wakeups.form_at[task]
                self._once(task, partial(self._form, task))

    def _once(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do it in the background, unless something is being done about the same thing."""
        if what in self._busy:
            return
        self._busy.add(what)

        async def done() -> None:
            try:
                await work()
            finally:
                self._busy.discard(what)
                self._wakeups.kick()

        self._driver.spawn(done(), f"watch-{what[:16]}")

    async def _tick(self, live: Live, wake: float) -> None:
        replay = live.cohort.replay
        again: float | None = None
        try:
            await self._driver.settle(live)
            await live.cohort.submit(Tick(self._core.clock()))
        except (CohortOver, SecaggError):
            pass  # it has ended, or has no deadline any more
        except LeftToOthers:
            again = self._core.clock() + _AGAIN_S
        except Exception as error:
            if not isinstance(error, DatabaseAway):
                _log.exception(
                    "tick-failed",
                    cohort=live.cohort.id,
                    task=live.cohort.task.name,
                    phase=live.cohort.state.phase,
                )
            again = self._core.clock() + _AGAIN_S
        replay.woken(wake, again)

    async def _form(self, name: str) -> None:
        try:
            task = await self._tasks.get(name)
            formed = await formation.try_form(self._core, task)
        except Exception as error:
            if not isinstance(error, DatabaseAway):
                _log.exception("forming-failed", task=name)
            self._wakeups.consider_at(name, self._core.clock() + _AGAIN_S)
            return
        if isinstance(formed, formation.Formed):
            self._driver.adopt(task, formed.cohort, formed.replay, formed.sessions)
        elif formed.again_s is not None:
            self._wakeups.consider_at(name, formed.again_s)

    async def _poll(self) -> None:
        """See what other replicas have committed, and render what they put into the ledger."""
        self._once(_LEDGER, self._ledger.publish)
        for kept in self._kept:  # first: what follows may wait for a store
            await kept.load()
        async with self._core.database.read() as connection:
            open_now = await cohorts.open_now(connection)
            seen = await tasks.versions_and_states(connection)
        for cohort, seq in open_now.items():
            try:  # no cohort keeps the others waiting, or the service from starting
                await self._look_at(cohort, seq)
            except DatabaseAway:
                raise
            except Exception:
                _log.exception("poll-failed", cohort=cohort)
                self._core.metrics.poll_failures.inc()
        for cohort, live in tuple(self._driver.live.items()):
            if cohort not in open_now and not live.cohort.over:
                await live.cohort.refresh()
        await self._exclude_barred()
        for task, now in seen.items():
            if self._seen.get(task) != now:
                await self._driver.wake_task(task)
        self._seen = seen

    async def _look_at(self, cohort: str, seq: int) -> None:
        """``seq``: of the last event that is committed."""
        live = self._driver.live.get(cohort)
        if live is None:
            await self._driver.take_up(cohort)
        elif live.cohort.replay.seq < seq:
            await live.cohort.refresh()
        else:
            self._driver.maybe_unmask(live)

    async def _exclude_barred(self) -> None:
        """Leave devices that were banned since out of cohorts that have not fixed S."""
        if not self._driver.live:
            return
        for cohort, indices in (await barred_members(self._core)).items():
            live = self._driver.live.get(cohort)
            if live is None:
                continue
            for index in set(indices) - live.cohort.state.excluded:
                # It has gone on meanwhile, or this replica has no room for it.
                with contextlib.suppress(CohortOver, SecaggError, LeftToOthers):
                    await live.cohort.submit(Exclude(index, self._core.clock()))
