"""Forming cohorts and driving the aggregator's machine in memory, for one task.

Everything here runs in one event loop and between two awaits, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from client_sdk.testing.books import Books
from dp.accounting.statements import ReleaseFacts
from dp.encoding import decode
from dp.noise.removable import removable_part, remove_parts
from secagg import ring, server
from secagg.context import advert_digest
from secagg.errors import LocalProtocolError, SecaggError
from secagg.unmasking import UnmaskingPlan, check_sum, unmask_slice


class Refused(SecaggError):
    """A request that the aggregator refuses, with the status of its answer."""

    def __init__(self, status: int, reason: str, message: str, **values: object) -> None:
        self.status = status
        super().__init__(reason, message, **values)  # type: ignore[arg-type]


@dataclass
class Session:
    """One advert: its device, and its mailbox once it is in a cohort."""

    id: str
    identity: bytes
    advert: bytes
    version: int
    expires_at: float
    received_at: float
    cohort: Cohort | None = None
    index: int = -1
    mail: list[bytes] = field(default_factory=list)
    stale: bool = False


class Cohort:
    """One exchange, and what came of it."""

    def __init__(
        self,
        books: Books,
        sessions: list[Session],
        attempt: int,
        clock: Callable[[], float],
        lost: set[bytes],
        changed: Callable[[], None],
    ) -> None:
        self._books = books
        self._clock = clock
        self._lost = lost
        self._changed = changed
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.name = os.urandom(32)
        self.ended: server.Ended | None = None
        self.tickets: dict[int, server.AcceptUpload] = {}
        self.received: dict[int, bytearray] = {}
        encoding = books.manifest.encoding
        length = ring.payload_length(books.manifest.data_length, encoding.slice_length)
        self._sum = np.zeros(length, ring.lane_dtype(encoding.ring_bits))
        self.state: server.State
        self.state, effects = server.open_cohort(
            books.config,
            cohort=self.name,
            attempt=attempt,
            adverts=[session.advert for session in sessions],
            now_s=clock(),
        )
        by_identity = {session.identity: session for session in sessions}
        self.sessions = [by_identity[entry.identity_key] for entry in self.state.roster]
        for index, session in enumerate(self.sessions):
            session.cohort, session.index = self, index
        self._perform(effects)

    def receive(self, index: int, message: bytes) -> None:
        """
        Raises:
            RemoteProtocolError: the message breaks a rule.
        """
        self._step(server.Received(index, message, self._clock()))
        self.hurry()

    def exclude(self, index: int) -> None:
        """Go on without a device that has left.

        Raises:
            Refused: ``withdraw-late``.
        """
        with contextlib.suppress(LocalProtocolError):  # the masking set is fixed
            self._step(server.Exclude(index, self._clock()))
        if index in server.masking_set_of(self.state):
            raise Refused(409, "withdraw-late", "The masking set is fixed, with this device.")
        self.hurry()

    def added(self, index: int) -> bool:
        """Whether a device's vector is in the sum."""
        if isinstance(self.state, server.Masking):
            return index in self.state.added
        return index in server.survivors_of(self.state)

    def append(self, index: int, offset: int, chunk: bytes) -> None:
        """Add to a device's vector; the last byte adds it to the sum.

        Raises:
            Refused: ``upload-offset`` or ``vector-digest``.
        """
        ticket, have = self.tickets[index], self.received.setdefault(index, bytearray())
        if self.added(index):
            return
        if offset != len(have) or offset + len(chunk) > ticket.size_bytes:
            raise Refused(
                409,
                "upload-offset",
                "The chunk does not continue what is there.",
                expected=len(have),
                found=offset,
            )
        have += chunk
        if len(have) < ticket.size_bytes:
            return
        if hashlib.sha256(have).digest() != ticket.vector_digest:
            have.clear()
            raise Refused(422, "vector-digest", "The vector is not the one that was announced.")
        bits = self._books.manifest.encoding.ring_bits
        try:
            after, effects = server.step(
                self._books.config, self.state, server.VectorAdded(index, self._clock())
            )
        except LocalProtocolError:
            raise Refused(409, "cohort-ended", "The vector comes too late.") from None
        ring.add_into(self._sum, ring.unpack(bytes(have), len(self._sum), bits), bits)
        self._enter(after, effects)
        self.hurry()

    def hurry(self) -> None:
        """End a phase at once that waits for lost devices alone."""
        while self.ended is None and (due := self._due()):
            if not due <= {i for i, s in enumerate(self.sessions) if s.identity in self._lost}:
                return
            self._step(server.Tick(self.state.deadline_s))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _due(self) -> set[int]:
        """Devices for which the present phase waits."""
        state = self.state
        match state:
            case server.Sharing():
                return set(range(state.facts.size)) - set(state.dealt) - state.gone
            case server.Checking():
                return set(state.dealers) - state.answered
            case server.Masking():
                return set(state.masking_set) - state.added
            case server.Confirming():
                return set(state.survivors) - set(state.confirmations)
            case server.Unmasking():
                return set(state.survivors) - set(state.shares)
        return set()

    def _step(self, event: server.Event) -> None:
        self._enter(*server.step(self._books.config, self.state, event))

    def _enter(self, state: server.State, effects: tuple[server.Effect, ...]) -> None:
        """Charge what the move costs, then do what it asks."""
        before, self.state = self.state, state
        books, name = self._books, self.name.hex()
        if not server.masking_set_of(before) and server.masking_set_of(state):
            books.account = books.account.reserve(name, books.manifest)
        if isinstance(state, server.UnmaskingSum):
            books.account = books.account.spend(name, books.manifest, facts_of(state))
        self._perform(effects)

    def _perform(self, effects: tuple[server.Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case server.Deliver(index, message):
                    self.sessions[index].mail.append(message)
                case server.AcceptUpload(index):
                    self.tickets[index] = effect
                case server.RemoveMasks(plan):
                    self._unmask(plan)
                case server.Wake(at_s):
                    self.close()
                    wait_s = max(0.0, at_s - self._clock())
                    self._timer = self._loop.call_later(wait_s, self._tick)
                case server.Ended():
                    self._end(effect)
        self._changed()

    def _tick(self) -> None:
        if self.ended is None:
            self._step(server.Tick(max(self._clock(), self.state.deadline_s)))
            self.hurry()

    def _unmask(self, plan: UnmaskingPlan) -> None:
        """Take off masks and noise that nobody needs; release the sum."""
        manifest, state, now = self._books.manifest, self.state, self._clock()
        total = self._sum
        try:
            unmask_slice(plan, total, 0, plan.length)
            members = len(server.masking_set_of(state))
            parts = [
                removable_part(manifest, members, part.level, part.seed, state.ctx)
                for part in plan.noise_seeds
            ]
            if parts:
                remove_parts(total, parts, plan.ring_bits, 0, plan.length)
            survivors = len(server.survivors_of(state))
            check_sum(manifest, total, survivors)
            sums = decode(manifest, total, survivors=survivors, rotation_seed=state.ctx)
        except SecaggError as error:
            self._step(server.SumRefused(error.reason, now))
            return
        release = self._books.release(state, total, sums)
        self._step(server.SumUnmasked(now))
        self._step(server.ReleaseCommitted(release.number, release.leaf_index, now))

    def _end(self, ended: server.Ended) -> None:
        self.ended = ended
        self.close()
        books, name, state = self._books, self.name.hex(), self.state
        if ended.reason is not None and books.account.entry(name) is not None:
            books.account = books.account.spend(name, books.manifest, None)
            books.charge(state, ended.reason)


def facts_of(state: server.State) -> ReleaseFacts:
    return ReleaseFacts(
        survivors=len(server.survivors_of(state)),
        masking_set_size=len(server.masking_set_of(state)),
    )


class Formation:
    """Adverts wait here until they make a cohort; one is open at a time.

    It closes when ``size_max`` devices wait, or when ``size_min`` do and ``report_s`` has passed
    since the first, or nobody else is there to wait for. Where too many are lost, or sit this
    version out, for any cohort, the task is finished, so that nobody waits for ever.
    """

    def __init__(self, books: Books, clock: Callable[[], float]) -> None:
        self.books = books
        self._clock = clock
        self.sessions: dict[str, Session] = {}
        self.present: set[bytes] = set()  # here, or expected
        self.lost: set[bytes] = set()
        self._running: set[bytes] = set()  # of these somebody waits for the end
        self._sitting_out: set[bytes] = set()  # until the next version
        self.cohorts: list[Cohort] = []
        self.finished = False
        self._attempts: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._news = asyncio.Event()

    async def news(self, timeout_s: float) -> None:
        """Wait until something may have changed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            pass

    def report_in(self, identity: bytes, signed: bytes) -> Session:
        """
        Raises:
            Refused: ``advert-not-yours``, ``task-finished`` or ``advert-stale``.
            RemoteProtocolError: as :func:`secagg.server.check_advert`.
        """
        name = advert_digest(signed).hex()
        if (known := self.sessions.get(name)) is not None and known.identity == identity:
            return known
        now = self._clock()
        advert = server.check_advert(self.books.config, signed, int(now))
        if advert.certificate.identity_key != identity:
            raise Refused(403, "advert-not-yours", "The advert is another device's.")
        if self.finished:
            raise Refused(409, "task-finished", "The task is finished.")
        model = self.books.model
        if (advert.model_version, advert.model_digest) != (model.version, model.digest):
            raise Refused(
                409,
                "advert-stale",
                "The advert is for another version of the model.",
                expected=model.version,
                found=advert.model_version,
            )
        for other in self._waiting():
            other.stale = other.identity == identity
        session = Session(name, identity, signed, model.version, advert.expires_at, now)
        self.sessions[name] = session
        self._sitting_out.discard(identity)
        self.consider()
        return session

    def withdraw(self, session: Session) -> None:
        """Let a device go.

        Raises:
            Refused: ``withdraw-late``.
        """
        session.stale = session.cohort is None
        if session.cohort is not None:
            session.cohort.exclude(session.index)
        self.consider()

    def seen(self, identity: bytes) -> None:
        """A device is there."""
        self.present.add(identity)
        self.lost.discard(identity)

    def expect(self, identity: bytes) -> None:
        """A device that a test runs comes."""
        self.seen(identity)
        self._running.add(identity)

    def forget(self, identity: bytes) -> None:
        """A test runs a device no more."""
        for known in (self.present, self.lost, self._running, self._sitting_out):
            known.discard(identity)

    def sit_out(self, identity: bytes) -> None:
        """A device that waits for a newer model, and is in no cohort, gives nothing to this one:
        its contributor failed, or it gave before."""
        own = [s for s in self.sessions.values() if s.identity == identity]
        busy = any(
            not self.is_stale(s) if s.cohort is None else s.cohort.ended is None for s in own
        )
        if identity in self._running and identity not in self._sitting_out and not busy:
            self._sitting_out.add(identity)
            self.consider()

    def lose(self, identity: bytes) -> None:
        """Wait no longer for a device; it counts again with its next request."""
        self.present.discard(identity)
        self.lost.add(identity)
        for session in self._waiting():
            session.stale |= session.identity == identity
        for cohort in self.cohorts:
            cohort.hurry()
        self.consider()

    def consider(self) -> None:
        """Form a cohort if it is time; finish a task that can form none."""
        rules, now, waiting = self.books.manifest.cohort, self._clock(), self._waiting()
        if self.finished or any(cohort.ended is None for cohort in self.cohorts):
            return
        here = self.present - self._sitting_out
        hopeless = bool(self.lost or self._sitting_out) and len(here) < rules.size_min
        stuck = bool(waiting or self._sitting_out) and hopeless
        if not self.books.affordable or stuck:
            self.finish()
            return
        if len(waiting) < rules.size_min:
            return
        everybody = {session.identity for session in waiting} >= here
        due = min(s.received_at for s in waiting) + self.books.manifest.deadlines.report_s
        if len(waiting) < rules.size_max and not everybody and now < due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(due - now, self.consider)
            return
        version = self.books.model.version
        attempt = self._attempts.get(version, 0)
        self._attempts[version] = attempt + 1
        chosen = waiting[: rules.size_max]
        cohort = Cohort(self.books, chosen, attempt, self._clock, self.lost, self._changed)
        self.cohorts.append(cohort)
        cohort.hurry()

    def finish(self) -> None:
        """End the task: devices that wait for a cohort or a model stop."""
        self.finished = True
        self._changed()

    def close(self) -> None:
        self.finish()
        if self._timer is not None:
            self._timer.cancel()
        for cohort in self.cohorts:
            cohort.close()

    def is_stale(self, session: Session) -> bool:
        """Whether a session waits, but can never be in a cohort."""
        return session.cohort is None and (
            session.stale
            or session.version != self.books.model.version
            or session.expires_at <= self._clock()
        )

    def _waiting(self) -> list[Session]:
        return [s for s in self.sessions.values() if s.cohort is None and not self.is_stale(s)]

    def _changed(self) -> None:
        """Wake who waits; what has just ended leaves room for a next cohort."""
        self._news.set()
        self._news = asyncio.Event()
        if self.cohorts and isinstance(self.cohorts[-1].state, server.Released):
            self._sitting_out.clear()
        if self.cohorts and self.cohorts[-1].ended is not None and not self.books.affordable:
            self.finished = True
