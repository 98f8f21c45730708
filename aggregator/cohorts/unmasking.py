"""Removing masks and needless noise from a sum, slice by slice, never on the event loop: in the
pool that the settings choose (:mod:`aggregator.compute`). The partial sums of all shards add up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aggregator.cohorts.actor import Cohort, end_write
from aggregator.cohorts.adding import blob_name
from aggregator.compute.opening import Opening
from aggregator.core import Core
from aggregator.logs import get_logger
from aggregator.store import cohorts, sums
from aggregator.store.sums import Partial
from dp.noise.removable import RemovablePart, Removed, removable_part
from secagg.ring import add_into, lane_dtype
from secagg.server import masking_set_of, survivors_of
from secagg.unmasking import UnmaskingPlan, check_sum

_log = get_logger("opening")
_RENEWALS = 3  # within the length of a lease: one may be late and one be lost


async def claim_lease(core: Core, cohort: str) -> bool:
    """Whether this replica may unmask: nobody holds an unexpired lease, or this one does.

    A lease only saves work. Two replicas that unmask the same sum get the same numbers, and only
    one of them can commit. Claimed again by its holder, it runs from now.
    """
    now = core.clock()
    async with core.database.write() as connection:
        until = now + core.settings.opening_lease_s
        return await cohorts.take_lease(connection, cohort, core.replica, now, until)


@asynccontextmanager
async def renewed_lease(core: Core, cohort: str) -> AsyncIterator[None]:
    """Renew this replica's lease while the block runs: a large sum takes longer than a lease.

    How long a lease is then says how soon another replica takes over from one that died, whatever
    the size of the task. Renewing ends by itself where the lease was lost or the cohort is over.
    """
    over = asyncio.Event()

    async def renew() -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), core.settings.opening_lease_s / _RENEWALS)
            if over.is_set():
                return
            try:
                if not await claim_lease(core, cohort):
                    return
            except Exception:  # the database may be away for a moment; the next turn tries again
                _log.exception("lease-not-renewed", cohort=cohort)

    renewing = asyncio.create_task(renew(), name=f"lease-{cohort[:8]}")
    try:
        yield
    finally:
        over.set()  # and not cancel(): a write that has begun has time to end
        await end_write(renewing)


@dataclass(frozen=True)
class UnmaskedSum:
    """``payload``: unmasked, lanes[p], without the noise that nobody needs. ``removed``: what that
    noise was; None if all of it was needed."""

    payload: NDArray[np.unsignedinteger]
    removed: Removed | None


async def unmasked_sum(core: Core, cohort: Cohort, plan: UnmaskingPlan) -> UnmaskedSum:
    """Unmask the sum of a cohort and verify its check coordinates.

    Raises:
        RemoteProtocolError: ``check-coordinates``.
        BlobMissing, BlobDamaged: of a partial sum.
    """
    async with core.database.read() as connection:
        partials = await sums.partials(connection, cohort.id)
    loop = asyncio.get_running_loop()
    with core.metrics.opening_seconds.time():
        total = await _load(core, cohort.id, partials, plan)
        parts = await loop.run_in_executor(core.pool, _needless_noise, cohort, plan)
        opening = Opening(plan.ring_bits, plan.terms, parts)
        products = await core.compute.take_off(opening, total)
    removed = Removed(sum(part.variance for part in parts), sum(products)) if parts else None
    survivors = len(survivors_of(cohort.state))
    await asyncio.to_thread(check_sum, cohort.task.manifest, total, survivors)
    return UnmaskedSum(total, removed)


def _needless_noise(cohort: Cohort, plan: UnmaskingPlan) -> tuple[RemovablePart, ...]:
    """The parts of the survivors' noise whose seeds were reconstructed."""
    members = len(masking_set_of(cohort.state))
    return tuple(
        removable_part(cohort.task.manifest, members, part.level, part.seed, cohort.state.ctx)
        for part in plan.noise_seeds
    )


async def _load(
    core: Core, cohort: str, partials: list[Partial], plan: UnmaskingPlan
) -> NDArray[np.unsignedinteger]:
    dtype, loop = lane_dtype(plan.ring_bits), asyncio.get_running_loop()
    total = np.zeros(plan.length, dtype)
    for partial in partials:
        name = blob_name(cohort, partial.shard, partial.generation)
        if partial.digest is None:
            data = await core.ask_blobs(core.blobs.get, name)
        else:
            data = await core.ask_blobs(core.blobs.get_verified, name, partial.digest)
        lanes = np.frombuffer(data, dtype)
        await loop.run_in_executor(core.pool, add_into, total, lanes, plan.ring_bits)
    return total
