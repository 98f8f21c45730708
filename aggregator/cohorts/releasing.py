"""From an unmasked sum to a release: the server's step, and the commit.

Blobs are written before the transaction that names them: model version, optimiser state, ledger
leaf, checkpoint, receipts and the end of the cohort are one commit.
"""

import asyncio
import hashlib
from dataclasses import replace

import numpy as np

from aggregator.algorithms import StepInput, server_step
from aggregator.algorithms.clipping import real_sums
from aggregator.algorithms.rounding import rounded
from aggregator.cohorts.actor import Cohort
from aggregator.cohorts.charging import Charging, Computed, entry_of, facts_of
from aggregator.cohorts.unmasking import UnmaskedSum
from aggregator.core import Core
from aggregator.ledger.log import Ledger
from aggregator.store import charges, models, tasks
from aggregator.store.database import Conflict, Connection
from aggregator.store.tasks import Version
from dp.encoding import decode
from dp.errors import MechanismError
from dp.noise_meter import NoiseInterval, noise_interval
from secagg.server import (
    ReleaseCommitted,
    SumUnmasked,
)

_TRIES = 5


class Releaser:
    def __init__(self, core: Core, ledger: Ledger, charging: Charging) -> None:
        self._core = core
        self._ledger = ledger
        self._charging = charging

    async def release(self, cohort: Cohort, unmasked: UnmaskedSum) -> None:
        """Compute and commit the release of an unmasked, checked sum.

        Raises:
            SecaggError: the sum cannot be released; the caller ends the cohort with the reason.
            CohortOver: another replica has released it.
        """
        before = await tasks.present_version(self._core.database, cohort.task.name)
        computed = await asyncio.get_running_loop().run_in_executor(
            self._core.pool, self._compute, cohort, unmasked, before
        )
        await self._charging.keep_list(entry_of(cohort.state, 0, 0.0, computed, None))
        for _ in range(_TRIES):
            now = self._core.clock()
            leaf = await self._ledger.size()
            charge = await self._charge(cohort)

            async def write(connection: Connection, now: float = now, leaf: int = leaf) -> None:
                await self._write_release(connection, cohort, computed, leaf, now)

            try:
                await cohort.submit(
                    SumUnmasked(now),
                    ReleaseCommitted(charge, leaf, now),
                    also=write,
                    must_change=True,
                )
                return
            except Conflict:
                continue
        raise Conflict("the release never became durable")

    async def _charge(self, cohort: Cohort) -> int:
        async with self._core.database.read() as connection:
            charge = await charges.charge_of(connection, cohort.id)
        assert charge is not None  # noqa: S101  reserved before any device sent
        return charge

    def _compute(self, cohort: Cohort, unmasked: UnmaskedSum, before: Version) -> Computed:
        """Decode, step, store. Runs in a thread."""
        manifest, blobs, state = cohort.task.manifest, self._core.blobs, cohort.state
        counted = facts_of(state)
        payload = unmasked.payload
        measured = noise_interval(manifest, payload, counted, unmasked.removed)
        cohort.noise_measured(measured)
        _demand_noise(measured)
        sums = decode(manifest, payload, survivors=counted.survivors, rotation_seed=state.ctx)
        kept = models.load_state(blobs, before.model, before.optimiser)
        vector = models.load(blobs, before.model)
        step = server_step(
            StepInput(
                manifest,
                vector,
                kept,
                sums,
                version=before.number,
                survivors=counted.survivors,
                masking_set_size=counted.masking_set_size,
                lag=before.number - state.facts.models[-1].version,
            )
        )
        step = replace(step, vector=rounded(manifest, vector, step.vector))
        in_real_units, _ = real_sums(manifest, sums, kept)
        return Computed(
            step=step,
            model=models.store(
                blobs, manifest.task, before.number + 1, step.vector, step.optimiser
            ),
            optimiser=models.store_optimiser(
                blobs, manifest.task, before.number + 1, step.optimiser
            ),
            sum_digest=hashlib.sha256(payload.data).digest(),
            sum_norm=float(np.sqrt(sum(float(np.dot(v, v)) for v in in_real_units.values()))),
        )

    async def _write_release(
        self,
        connection: Connection,
        cohort: Cohort,
        computed: Computed,
        leaf: int,
        now: float,
    ) -> None:
        task, state = cohort.task, cohort.state
        version = await tasks.advance(connection, task.name, cohort.id)
        await tasks.insert_version(
            connection, task.name, version, computed.model, computed.optimiser, now, leaf
        )
        entry = entry_of(state, 0, now, computed, cohort.measured)
        await self._charging.record(
            connection,
            task,
            entry,
            now,
            computed=computed,
            measured=cohort.measured,
            expected_leaf=leaf,
        )


def _demand_noise(measured: NoiseInterval | None) -> None:
    """Refuse a sum whose own numbers show that noise is missing; what was seen stays charged.

    Raises:
        MechanismError: ``noise-measured-missing``.
    """
    if measured is not None and measured.missing:
        raise MechanismError(
            "noise-measured-missing",
            "The unmasked sum holds less noise than its survivors guarantee.",
            expected=f"variance >= {measured.guaranteed}",
            found=f"{measured.low} to {measured.high}",
            remedy="Devices left their noise out: raise silent_max, or exclude the partner's app.",
        )
