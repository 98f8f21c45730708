"""What a state folder has used in the present period: bytes, training time, and new charges.

A record of its own, sealed. It is ahead of what happens: a block is written down before it is used,
so a kill leaves at most a block too much in it and never anything out. Its time is the
aggregator's, as far as the device believes it, and never goes back: while it stands still, nothing
that was used grows old.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import msgspec

from client_sdk.accounts.period_limits import PeriodLimits, period_refusal, span
from client_sdk.network.server_time import ServerTime
from client_sdk.state.journal import Journal
from client_sdk.threads import finish_in_thread

NAME = "usage"
BLOCK_BYTES = 64 << 10
BLOCK_S = 30.0
_STEPS = 64  # of a period


class _Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was used from ``at`` on, for a 64th of a period. ``at``: 0 before any time was known."""

    at: float
    bytes: int = 0
    seconds: float = 0.0


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``latest``: time of the last note. ``charged``: cohort (hex) -> when its charge was first
    seen. ``trained``: task -> seconds that its last training took."""

    version: int = 1
    latest: float = 0.0
    steps: tuple[_Step, ...] = ()
    charged: dict[str, float] = {}
    trained: dict[str, float] = {}


class Usage:
    """The record in a journal, for one set of limits; one object at a time uses it."""

    def __init__(self, journal: Journal, limits: PeriodLimits, time: ServerTime) -> None:
        """Raises: StateError: ``state-damaged``."""
        self.limits = limits
        self._journal = journal
        self._time = time
        self._record = journal.load_record(NAME, _Record) or _Record()
        self._bytes_ahead = 0  # on disk, and not used yet
        self._lock = asyncio.Lock()

    # ---- what was used

    def now(self) -> float:
        """Unix seconds, never before a time at which something was noted; 0: nobody knows."""
        return max(self._record.latest, self._time.believed() or 0.0)

    def bytes(self) -> int:
        """Sent and received in the period."""
        return sum(step.bytes for step in self._recent())

    def training_s(self) -> float:
        """Seconds of training in the period."""
        return math.fsum(step.seconds for step in self._recent())

    def training_left_s(self) -> float:
        """Seconds that the contributor may still take; infinite without a limit."""
        most = self.limits.max_training_s
        return math.inf if most is None else max(0.0, most - self.training_s())

    def charged(self) -> dict[str, float]:
        """Cohorts (hex) whose charges are of the period, and when each was first seen."""
        since = self.now() - self.limits.period_s
        charged = self._record.charged.items()
        return {cohort: at for cohort, at in charged if at > since or at == 0.0}

    # ---- may more be used?

    def demand_bytes(self, count: int) -> None:
        """Return if so many bytes more fit into the period.

        Raises:
            PolicyRefusal: ``bytes-of-period``.
        """
        most, used = self.limits.max_bytes, self.bytes()
        if most is None or used + count <= most:
            return
        raise period_refusal(
            "bytes-of-period",
            "The device would send and receive more than its policy gives to a period.",
            expected=f"at most {most} bytes in {span(self.limits.period_s)}",
            found=f"{used} used and {count} more",
            again_at=self._again([step.bytes for step in self._recent()], most - count),
            raised="max_bytes",
        )

    def demand_training(self, task: str) -> None:
        """Return if the training of one more round fits, if it takes as long as the task's last.

        Raises:
            PolicyRefusal: ``training-of-period``.
        """
        most, used = self.limits.max_training_s, self.training_s()
        needed = self._record.trained.get(task, 0.0)
        if most is None or (used < most and used + needed <= most):
            return
        raise period_refusal(
            "training-of-period",
            "The device would train for longer than its policy gives to a period.",
            expected=f"at most {most:g} s in {span(self.limits.period_s)}",
            found=f"{used:.1f} s used and {needed:.1f} s more",
            again_at=self._again([step.seconds for step in self._recent()], most - needed),
            raised="max_training_s",
        )

    # ---- using it

    async def spend(self, count: int) -> None:
        """Count bytes that are about to pass; on disk when it returns.

        Raises:
            PolicyRefusal: ``bytes-of-period``; nothing was counted.
            StateError: ``state-unwritable``.
        """
        async with self._lock:
            self.demand_bytes(count)
            self._add(bytes=count)
            self._bytes_ahead -= count
            if self._bytes_ahead < 0:
                await self._save(bytes=BLOCK_BYTES)
                self._bytes_ahead = BLOCK_BYTES

    def give_back(self, count: int) -> None:
        """Bytes that were counted and did not pass after all; negative: that passed beyond them."""
        last = self._record.steps[-1] if self._record.steps else _Step(at=0.0)
        count = min(count, last.bytes)
        self._add(bytes=-count)
        self._bytes_ahead += count

    async def close(self) -> None:
        """Write down what was used, and no more."""
        async with self._lock:
            if self._bytes_ahead:
                await self._save()
                self._bytes_ahead = 0

    @asynccontextmanager
    async def training(self, task: str) -> AsyncIterator[None]:
        """Count the time inside, a block ahead.

        Raises:
            StateError: ``state-unwritable``.
        """
        began_s, counted_s = self._time.steady(), 0.0
        least_s = self._record.trained.get(task, 0.0)  # unless it comes to its end

        async def count(ahead_s: float) -> None:
            nonlocal counted_s
            passed_s = self._time.steady() - began_s
            async with self._lock:
                self._add(seconds=passed_s - counted_s)
                counted_s = passed_s
                await self._save(bytes=max(0, self._bytes_ahead), seconds=ahead_s)

        async def keep_counting() -> None:
            while True:
                await asyncio.sleep(BLOCK_S / 2)
                await count(BLOCK_S)

        await count(BLOCK_S)
        counting = asyncio.create_task(keep_counting())
        try:
            yield
            least_s = 0.0
        finally:
            counting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await counting
            took_s = max(least_s, self._time.steady() - began_s)
            self._record = msgspec.structs.replace(
                self._record, trained={**self._record.trained, task: took_s}
            )
            await count(0.0)

    def note_charges(self, cohorts: Iterable[str]) -> None:
        """Date the charges (cohorts, hex) that have no date: they are no older than this look.

        Raises:
            StateError: ``state-unwritable``.
        """
        now_s, known = self.now(), self._record.charged
        new = {cohort: now_s for cohort in cohorts if known.get(cohort, 0.0) == 0.0}
        new = {cohort: at for cohort, at in new.items() if known.get(cohort) != at}
        if new:
            self._record = msgspec.structs.replace(
                self._record, latest=now_s, charged={**self._record.charged, **new}
            )
            self._write(self._ahead(self._record, max(0, self._bytes_ahead), 0.0))

    # ---- the record

    def _recent(self) -> list[_Step]:
        return [step for step in self._record.steps if self._ends(step) > self.now()]

    def _ends(self, step: _Step) -> float:
        """When all that was used in a step is a period ago."""
        return math.inf if step.at == 0.0 else step.at + self.limits.period_s * (1 + 1 / _STEPS)

    def _again(self, amounts: list[int] | list[float], room: float) -> float | None:
        """When so little is left that it leaves ``room``; None: never."""
        if room < 0:
            return None
        left, again = float(sum(amounts)), math.inf
        for step, amount in zip(self._recent(), amounts, strict=True):
            if left <= room:
                break
            left -= amount
            again = self._ends(step)
        return again if math.isfinite(again) else None

    def _add(self, *, bytes: int = 0, seconds: float = 0.0) -> None:
        now_s, steps = self.now(), list(self._record.steps)
        if now_s:  # what was used before anybody knew the time is as old as this
            steps = [s if s.at else msgspec.structs.replace(s, at=now_s) for s in steps]
        steps = [step for step in steps if self._ends(step) > now_s]
        if not steps or now_s - steps[-1].at >= self.limits.period_s / _STEPS:
            steps.append(_Step(at=now_s))
        steps[-1] = msgspec.structs.replace(
            steps[-1], bytes=steps[-1].bytes + bytes, seconds=steps[-1].seconds + seconds
        )
        self._record = msgspec.structs.replace(
            self._record, latest=max(self._record.latest, now_s), steps=tuple(steps)
        )

    @staticmethod
    def _ahead(record: _Record, bytes: int, seconds: float) -> _Record:
        if not record.steps:
            return record
        *before, last = record.steps
        last = msgspec.structs.replace(
            last, bytes=last.bytes + bytes, seconds=last.seconds + seconds
        )
        return msgspec.structs.replace(record, steps=(*before, last))

    async def _save(self, *, bytes: int = 0, seconds: float = 0.0) -> None:
        await finish_in_thread(self._write, self._ahead(self._record, bytes, seconds))

    def _write(self, record: _Record) -> None:
        self._journal.save_blob(NAME, msgspec.msgpack.encode(record))
