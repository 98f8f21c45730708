"""One open cohort on one replica: step, commit, deliver.

Whatever happens to a cohort is a batch of events. A single worker takes the waiting batches,
steps the pure machine in a thread, and commits events, outgoing mail and decisions in one
transaction. The primary key (cohort, seq) makes it optimistic: if another replica was first, the
worker replays what it missed and steps again. Nothing is delivered before it is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aggregator.cohorts.log import Replay, catch_up, encode_event
from aggregator.core import Core
from aggregator.errors import LeftToOthers
from aggregator.logs import get_logger
from aggregator.store import cohorts, mail
from aggregator.store.database import Conflict, Connection
from aggregator.tasks import Task
from dp.noise_meter import NoiseInterval
from secagg.errors import SecaggError
from secagg.server import Cancel, Deliver, Effect, Event, State, step

_log = get_logger("cohort")
Also = Callable[[Connection], Awaitable[None]]
TERMINAL = ("released", "aborted")
_LAST_WRITE_S = 2.0
_NOTE_S = 5.0
UPLOADS = "uploads"  # folder of the blob store; in it one for each cohort
FAILURE = "failed"  # blob there: some replica's work failed while the database was away


class CohortOver(Exception):
    """The cohort has ended; nothing more can be submitted to it."""


class Unchanged(Exception):
    """An event that had to change the state did not."""


@dataclass
class Batch:
    """Events that are committed together or not at all, with what else must be written.

    A batch with ``also`` is never retried by the worker: on a conflict its submitter decides.
    A batch without events only catches up with other replicas.
    """

    events: Sequence[Event]
    also: Also | None = None
    must_change: bool = False
    done: asyncio.Future[None] = field(default_factory=asyncio.Future)

    def __post_init__(self) -> None:
        # Its submitter may have gone away; then nobody else would retrieve the exception.
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())


@dataclass
class _Stepped:
    state: State
    effects: list[Effect]
    events: list[Event]
    batches: list[Batch]
    refused: list[tuple[Batch, Exception]]


class Cohort:
    """``demand``: refuses a step before its transaction begins; ``commit_more``: decisions that go
    into the same transaction when the phase changes; ``committed``: called after it with the old
    phase and the new effects."""

    def __init__(
        self,
        core: Core,
        task: Task,
        cohort: str,
        replay: Replay,
        session_ids: Sequence[str],
        demand: Callable[[Cohort, State], Awaitable[None]],
        commit_more: Callable[[Cohort, Connection, State, Sequence[Effect]], Awaitable[None]],
        committed: Callable[[Cohort, str, Sequence[Effect]], None],
    ) -> None:
        self.core = core
        self.task = task
        self.id = cohort
        self.replay = replay
        self.sessions = tuple(session_ids)
        self._demand = demand
        self._commit_more = commit_more
        self._committed = committed
        self._measured: NoiseInterval | None = None
        self._failed = False
        self._unnoted = False
        self._phase_since_s = core.clock()
        self.ended_elsewhere = False  # by another replica
        self._loop = asyncio.get_running_loop()
        self._telling: asyncio.Task[None] | None = None
        self._queue: asyncio.Queue[Batch] = asyncio.Queue()
        self._worker = asyncio.create_task(self._work(), name=f"cohort-{cohort[:8]}")

    @property
    def state(self) -> State:
        return self.replay.state

    @property
    def over(self) -> bool:
        return self.ended_elsewhere or self.state.phase in TERMINAL

    @property
    def phase_since_s(self) -> float:
        """Since when this replica has seen the phase, Unix seconds."""
        return self._phase_since_s

    @property
    def _named(self) -> dict[str, str]:
        """What the log says of where a failure was."""
        return {"cohort": self.id, "task": self.task.name, "phase": self.state.phase}

    @property
    def measured(self) -> NoiseInterval | None:
        """The noise that the sum which this replica unmasked showed."""
        return self._measured

    def noise_measured(self, found: NoiseInterval | None) -> None:
        """This replica has unmasked the sum, and its numbers show so much noise."""
        self._measured = found

    @property
    def failed(self) -> bool:
        """Whether work of this replica for the cohort has failed, which weighs on whose fault an
        end is."""
        return self._failed

    def work_failed(self) -> None:
        """Work of this replica for the cohort has failed; it may yet succeed. The database knows it
        soon, since another replica may end the cohort. From any thread."""
        if not self._failed:
            self._failed = True
            self._loop.call_soon_threadsafe(self._tell_failure)

    def _tell_failure(self) -> None:
        self._telling = asyncio.create_task(self._note_failure(), name=f"failed-{self.id[:8]}")

    async def _note_failure(self) -> None:
        try:
            async with self.core.database.write() as connection:
                await cohorts.work_failed(connection, self.id)
        except Exception:  # the next commit notes it; should there be none, the blob store knows
            self._unnoted = True
            _log.exception("failure-not-noted", **self._named)
            with contextlib.suppress(OSError):
                await self.core.ask_blobs(self.core.blobs.put, self._failure, b"")

    @property
    def _failure(self) -> str:
        return f"{UPLOADS}/{self.id}/{FAILURE}"

    async def look_for_failure(self) -> None:
        """See what a replica noted that died while the database was away."""
        try:
            async with asyncio.timeout(_NOTE_S):
                found = await self.core.ask_blobs(self.core.blobs.exists, self._failure)
        except OSError:  # or its time is over: it fails now
            found = True
        if found:
            self.work_failed()

    async def submit(
        self, *events: Event, also: Also | None = None, must_change: bool = False
    ) -> None:
        """Commit events; returns when they are durable.

        Raises:
            SecaggError: the machine refused one of them; none was committed.
            Unchanged, Conflict: see :class:`Batch`.
            CohortOver: the cohort ended first.
        """
        batch = Batch(events, also, must_change)
        if self._worker.done():
            raise CohortOver
        self._queue.put_nowait(batch)
        await asyncio.shield(batch.done)

    async def probe(self, event: Event) -> bool:
        """Whether the machine would accept the event now and change its state."""
        state = self.state
        try:
            after, _ = await asyncio.to_thread(step, self.task.config, state, event)
        except SecaggError:
            return False
        return after is not state

    async def close(self) -> None:
        """Stop the worker; what is not committed is lost, as in a crash."""
        if self._telling is not None:
            await end_write(self._telling)
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        self._fail_waiting(CohortOver())

    async def refresh(self) -> None:
        """See other replicas' commits."""
        with contextlib.suppress(CohortOver):
            await self.submit()

    # -- the worker -----------------------------------------------------------------------

    async def _work(self) -> None:
        while not self.over:
            batches = [await self._queue.get()]
            while not self._queue.empty():
                batches.append(self._queue.get_nowait())
            try:
                with self.core.metrics.commit_seconds.time():
                    await self._process(batches)
            except asyncio.CancelledError:
                self._fail(batches, CohortOver())
                raise
            except LeftToOthers as error:
                _log.warning("left-to-others", **self._named, reason=error.refusal.reason)
                self._fail(batches, error)
            except Exception as error:
                self.work_failed()
                self._fail(batches, error)
                _log.exception("commit-failed", **self._named)
                others = any(not isinstance(e, Cancel) for b in batches for e in b.events)
                if isinstance(error, SecaggError) and others:  # the decision is impossible
                    self._queue.put_nowait(Batch([Cancel(error.reason, self.core.clock())]))
        self._fail_waiting(CohortOver())

    async def _process(self, batches: list[Batch]) -> None:
        if any(not batch.events for batch in batches):
            await self._catch_up()
        while batches and not self.over:
            stepped = await asyncio.to_thread(self._step, batches)
            if stepped.refused and await self._behind():
                await self._catch_up()  # what looks wrong here may be right by now
                continue
            for batch, error in stepped.refused:
                self._fail([batch], error)
            if not stepped.events:
                self._succeed(stepped.batches)
                return
            before = self.state.phase
            try:
                await self._commit(stepped)
            except Conflict:
                await self._catch_up()
                for batch in stepped.batches:
                    if batch.also is not None and not batch.done.done():
                        batch.done.set_exception(Conflict("the cohort moved on"))
                batches = [batch for batch in stepped.batches if not batch.done.done()]
                continue
            self.replay.state = stepped.state
            self.replay.seq += len(stepped.events)
            self.replay.absorb(stepped.effects)
            self._deliver(stepped.effects)
            self._succeed(stepped.batches)
            self._tell(before, stepped.effects)
            return
        self._fail(batches, CohortOver())

    def _step(self, batches: Sequence[Batch]) -> _Stepped:
        """Step all batches; one that is refused leaves no trace. Runs in a thread."""
        config = self.task.config
        stepped = _Stepped(self.state, [], [], [], [])
        for batch in batches:
            state = stepped.state
            effects: list[Effect] = []
            events: list[Event] = []
            try:
                for event in batch.events:
                    after, more = step(config, state, event)
                    if after is state and not more:
                        if batch.must_change:
                            raise Unchanged
                        continue
                    state = after
                    effects += more
                    events.append(event)
            except Exception as error:
                if not isinstance(error, SecaggError | Unchanged):
                    _log.exception("step-failed", **self._named)
                stepped.refused.append((batch, error))
                continue
            stepped.state = state
            stepped.effects += effects
            stepped.events += events
            stepped.batches.append(batch)
        return stepped

    async def _behind(self) -> bool:
        """Whether another replica has committed something that this one has not seen."""
        async with self.core.database.read() as connection:
            stored = await cohorts.progress(connection, self.id)
        return stored != cohorts.Progress(self.task.name, self.replay.seq, "open")

    async def _commit(self, stepped: _Stepped) -> None:
        seq, phase = self.replay.seq, stepped.state.phase
        events = [encode_event(event) for event in stepped.events]
        await self._demand(self, stepped.state)
        async with self.core.database.write() as connection:
            await cohorts.advance(connection, self.id, seq, phase, events)
            if self._unnoted:
                await cohorts.work_failed(connection, self.id)
            await put_mail(connection, self.sessions, self.replay.mail, stepped.effects)
            for batch in stepped.batches:
                if batch.also is not None:
                    await batch.also(connection)
            await self._commit_more(self, connection, stepped.state, stepped.effects)

    def _deliver(self, effects: Sequence[Effect]) -> None:
        self.core.signals.notify(
            *{f"session:{self.sessions[e.index]}" for e in effects if isinstance(e, Deliver)}
        )

    async def _catch_up(self) -> None:
        """Replay what other replicas committed."""
        replay = self.replay
        async with self.core.database.read() as connection:
            missed = await cohorts.events_after(connection, self.id, replay.seq)
            stored = await cohorts.progress(connection, self.id)
        before = replay.state.phase
        if stored is None or stored.state != "open":  # another replica ended it and erased the log
            self.ended_elsewhere = True
        else:
            await asyncio.to_thread(catch_up, self.task.config, replay, missed)
        self.core.signals.notify(*(f"session:{session}" for session in self.sessions))
        self._tell(before, ())

    def _tell(self, before: str, effects: Sequence[Effect]) -> None:
        if self.state.phase != before:
            self._phase_since_s = self.core.clock()
        self._committed(self, before, effects)

    def _succeed(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            if not batch.done.done():
                batch.done.set_result(None)

    def _fail(self, batches: Sequence[Batch], error: Exception) -> None:
        for batch in batches:
            if not batch.done.done():
                batch.done.set_exception(error)

    def _fail_waiting(self, error: Exception) -> None:
        waiting = []
        while not self._queue.empty():
            waiting.append(self._queue.get_nowait())
        self._fail(waiting, error)


async def end_write(writing: asyncio.Task[None]) -> None:
    """Wait until a write ends, or cancel one that has long waited for its turn: a stop holds the
    turn itself while it asks (``Database.quiet``)."""
    _, waiting = await asyncio.wait({writing}, timeout=_LAST_WRITE_S)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def put_mail(
    connection: Connection,
    session_ids: Sequence[str],
    delivered: Mapping[int, int],
    effects: Sequence[Effect],
) -> None:
    """Insert the messages of ``Deliver`` effects behind those already ``delivered`` per index.

    Of rosters and inboxes the number alone is kept, except the first device's roster: it tells
    what a cohort was, should a newer software not replay its log.
    """
    if any(isinstance(effect, Deliver) for effect in effects):
        letters = await asyncio.to_thread(_letters, session_ids, delivered, effects)
        await mail.put(connection, letters)


def _letters(
    session_ids: Sequence[str], delivered: Mapping[int, int], effects: Sequence[Effect]
) -> list[tuple[str, int, bytes]]:
    """Signs the messages that are stored: in a thread."""
    counts = dict(delivered)
    letters = []
    for effect in effects:
        if isinstance(effect, Deliver):
            counts[effect.index] = number = counts.get(effect.index, 0) + 1
            is_told_again = effect.large and (effect.index, number) != (0, 1)
            message = mail.MADE_ANEW if is_told_again else effect.message
            letters.append((session_ids[effect.index], number, message))
    return letters
