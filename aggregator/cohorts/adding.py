"""Adding vectors into the running partial sum, durably, each at most once.

Every adder has a *shard* of its own: one array, written as a whole blob per *group* of vectors
under the next generation number. One transaction then commits the generation and its blob's digest,
the unique claim (cohort, device) of every member, and their ``VectorAdded`` events. A crash
before it leaves an orphaned blob that no row names; the parts of the vectors are still there and
are added again. So a vector costs O(d), a group one write of O(d), and nobody is counted twice.
A vector that the store is slow to give goes into a later group and holds up nobody else's.
After a failure nobody knows which generation counts, or will once a lost commit or write arrives:
the adder begins another shard, and never writes to a name again whose bytes may count.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from aggregator.cohorts.actor import Cohort, CohortOver, Unchanged
from aggregator.cohorts.uploads import Uploads
from aggregator.core import Core
from aggregator.errors import conflict
from aggregator.logs import get_logger
from aggregator.store import sums
from aggregator.store.database import Conflict, Connection
from aggregator.store.sums import Partial
from secagg.errors import RemoteProtocolError, SecaggError
from secagg.ring import add_packed, lane_dtype, payload_length
from secagg.server import VectorAdded

_log = get_logger("adding")
_T = TypeVar("_T")
_TRIES = 5
_READ_S = 0.25  # a vector that takes longer goes into a later group
_LATE_MAX = 2  # of a cohort that are read meanwhile, since each is in memory whole
# Shard and generation; the longer form is what a crash leaves of a write.
SUMS = re.compile(r"[0-9a-f]{16}-[0-9]+|\.[0-9a-f]{16}-[0-9]+\.[0-9a-f]{16}")


def blob_name(cohort: str, shard: str, generation: int) -> str:
    return f"partial/{cohort}/{shard}-{generation}"


@dataclass(eq=False)
class _Job:
    """``reading``: its vector on the way from the store. ``late``: it has left its group and comes
    back when it is there."""

    index: int
    done: asyncio.Future[None] = field(default_factory=asyncio.Future)
    reading: asyncio.Task[memoryview] | None = None
    late: bool = False

    def __post_init__(self) -> None:
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True)
class _Group:
    """Jobs, the shard's sum with their vectors in it, and as what it is written."""

    jobs: list[_Job]
    total: NDArray[np.unsignedinteger]
    partial: Partial


class Adder:
    """Adds the finished uploads of one cohort on one replica."""

    def __init__(self, core: Core, cohort: Cohort, uploads: Uploads) -> None:
        manifest = cohort.task.manifest
        self._core = core
        self._cohort = cohort
        self._uploads = uploads
        self._bits = manifest.encoding.ring_bits
        self._length = payload_length(manifest.data_length, manifest.encoding.slice_length)
        self._sum: NDArray[np.unsignedinteger] | None = None  # of generation self._generation
        self._begin_shard()
        self._jobs: dict[int, _Job] = {}
        self._late = 0  # jobs
        self._queue: asyncio.Queue[_Job] = asyncio.Queue()
        self._worker = asyncio.create_task(self._work(), name=f"adder-{cohort.id[:8]}")

    async def add(self, index: int) -> None:
        """Returns when the device's complete upload is durably in the sum.

        Raises:
            SecaggError: the vector or its time was wrong; it is not in the sum.
            CohortOver: the cohort has ended, or this replica serves it no more.
        """
        if self._uploads.added(index):
            return
        if self._worker.done():
            raise CohortOver
        job = self._jobs.get(index)
        if job is None or job.done.done():  # a failed one may still be in a group under way
            job = self._jobs[index] = _Job(index)
            self._queue.put_nowait(job)
        await asyncio.shield(job.done)

    async def close(self) -> None:
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        for job in self._jobs.values():
            job.fail(CohortOver())
            if job.reading is not None:
                job.reading.cancel()
        self._sum = None

    def _begin_shard(self) -> None:
        self._shard = secrets.token_hex(8)
        self._sum = None
        self._generation = 0

    async def _work(self) -> None:
        while True:
            group = [await self._queue.get()]
            while not self._queue.empty():
                group.append(self._queue.get_nowait())
            group = list({id(job): job for job in group}.values())  # late twice, queued twice
            try:
                await self._add_group(group)
            except Exception as error:
                self._begin_shard()
                if not isinstance(error, CohortOver | SecaggError):
                    self._cohort.work_failed()
                    _log.exception(
                        "add-failed",
                        cohort=self._cohort.id,
                        task=self._cohort.task.name,
                        phase=self._cohort.state.phase,
                    )
                for job in group:
                    if not job.late:
                        job.fail(error)
            finally:
                for job in group:
                    if self._jobs.get(job.index) is job and job.done.done():
                        del self._jobs[job.index]

    async def _add_group(self, group: list[_Job]) -> None:
        for _ in range(_TRIES):
            group = [job for job in group if await self._still_wanted(job)]
            if not group:
                return
            summed = await self._sum_with(group)
            if summed is None or await self._commit(summed):
                return
            self._begin_shard()  # the name has bytes of another group
        raise Conflict("the group never became durable")

    async def _still_wanted(self, job: _Job) -> bool:
        if job.done.done() or job.late:
            return False
        if self._uploads.added(job.index):
            job.done.set_result(None)
            return False
        try:
            self._uploads.ticket(job.index)
        except SecaggError as error:
            job.fail(error)
            return False
        return True

    async def _all_wanted(self, jobs: list[_Job]) -> bool:
        return all([await self._still_wanted(job) for job in jobs])

    async def _sum_with(self, group: list[_Job]) -> _Group | None:
        """The shard's sum plus the group's vectors, in a new array, and written."""
        total = await self._compute(self._present)
        added = []
        for job in group:
            try:
                packed = await self._read(job)
                if packed is None:
                    continue
                await self._compute(add_packed, total, packed, self._bits)
            except (SecaggError, OSError) as error:
                if isinstance(error, RemoteProtocolError):
                    await self._uploads.ask(self._uploads.drop, job.index)
                job.fail(error)
            else:
                added.append(job)
            packed = None
        if not added:
            return None
        data = total.data.cast("B")
        digest = await self._compute(lambda: hashlib.sha256(data).digest())
        partial = Partial(self._shard, self._generation + 1, digest)
        name = blob_name(self._cohort.id, partial.shard, partial.generation)
        await self._uploads.ask(self._core.blobs.put, name, data)
        return _Group(added, total, partial)

    def _present(self) -> NDArray[np.unsignedinteger]:
        if self._sum is None:
            return np.zeros(self._length, lane_dtype(self._bits))
        return self._sum.copy()

    async def _compute(self, work: Callable[..., _T], *arguments: object) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._core.pool, work, *arguments)

    async def _read(self, job: _Job) -> memoryview | None:
        """The job's vector; None: the store is slow, and the job comes back."""
        if job.reading is None:
            job.reading = asyncio.create_task(self._uploads.ask(self._uploads.packed, job.index))
        reading = job.reading
        await asyncio.wait({reading}, timeout=_READ_S if self._late < _LATE_MAX else None)
        if reading.done():
            job.reading = None
            return reading.result()
        self._late += 1
        job.late = True
        reading.add_done_callback(lambda _: self._back(job))
        return None

    def _back(self, job: _Job) -> None:
        self._late -= 1
        job.late = False
        self._queue.put_nowait(job)

    async def _commit(self, group: _Group) -> bool:
        """Make the group durable; False if the group has to be formed anew.

        The shard is this adder's own: what others commit first does not change its sum, and the
        same group is submitted again after it.
        """
        jobs, partial = group.jobs, group.partial
        now = self._core.clock()
        events = [VectorAdded(job.index, now) for job in jobs]

        async def claim(connection: Connection) -> None:
            await self._claim(connection, group)

        while True:
            seen = self._cohort.replay.seq
            try:
                await self._cohort.submit(*events, also=claim, must_change=True)
                break
            except Exception as error:
                await self._cohort.refresh()
                if await self._is_durable(group):
                    break
                if not isinstance(error, Conflict | Unchanged | SecaggError):
                    raise
                await self._fail_late(jobs, events)
                overtaken = isinstance(error, Conflict) and self._cohort.replay.seq > seen
                if not overtaken or not await self._all_wanted(jobs):
                    return False
        self._sum, self._generation = group.total, partial.generation
        await self._uploads.ask(self._tidy, group)
        for job in jobs:
            if not job.done.done():
                job.done.set_result(None)
        return True

    def _tidy(self, group: _Group) -> None:
        """Remove what the new sum holds. Runs in a thread; what stays goes at the cohort's end."""
        before = group.partial.generation - 1
        try:
            if before:
                name = blob_name(self._cohort.id, group.partial.shard, before)
                self._core.blobs.delete(name)
            for job in group.jobs:
                self._uploads.drop(job.index)
        except OSError:
            _log.exception("parts-not-removed", cohort=self._cohort.id)

    async def _is_durable(self, group: _Group) -> bool:
        """Whether a commit whose answer was lost has happened all the same."""
        identities = self._identities(group)
        async with self._core.database.read() as connection:
            return await sums.counts(connection, self._cohort.id, group.partial, identities)

    async def _fail_late(self, jobs: list[_Job], events: list[VectorAdded]) -> None:
        for job, event in zip(jobs, events, strict=True):
            if not self._uploads.added(job.index) and not await self._cohort.probe(event):
                job.fail(conflict("upload-late", "The cohort has gone on without this vector."))

    async def _claim(self, connection: Connection, group: _Group) -> None:
        identities = self._identities(group)
        await sums.add_group(connection, self._cohort.id, group.partial, identities)

    def _identities(self, group: _Group) -> list[bytes]:
        roster = self._cohort.state.roster
        return [roster[job.index].identity_key for job in group.jobs]
