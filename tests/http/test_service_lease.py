"""An opening that takes longer than its lease keeps it; one that ended lets go."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa

from aggregator.cohorts import driver
from aggregator.cohorts.unmasking import claim_lease
from aggregator.store.schema import cohorts
from tests.kits.service import QUIET_S, Device, current_sum, finished, one_hot, served, spec

LEASE_S = 0.3
LATER_S = 20.0  # far beyond the lease, within every deadline of the task


class Held:
    """Openings wait for ``go``; ``begun`` says that one waits."""

    def __init__(self) -> None:
        self.begun, self.go, self.openings = asyncio.Event(), asyncio.Event(), 0
        self._real = driver.unmasked_sum

    async def unmasked_sum(self, core, cohort, plan):
        self.openings += 1
        self.cohort = cohort.id
        self.begun.set()
        await self.go.wait()
        return await self._real(core, cohort, plan)


async def leased_until(core, cohort: str) -> float:
    async with core.database.read() as connection:
        query = sa.select(cohorts.c.opener_until).where(cohorts.c.cohort == cohort)
        return await connection.scalar(query)


async def renewed_past_now(core, cohort: str) -> None:
    end = time.monotonic() + QUIET_S
    while time.monotonic() < end:
        if await leased_until(core, cohort) > core.clock():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the lease was never renewed")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held()
    monkeypatch.setattr(driver, "unmasked_sum", held.unmasked_sum)
    return held


async def test_an_opening_that_outlasts_its_lease_is_not_taken_over(tmp_path, held):
    async with served(tmp_path, spec(), opening_lease_s=LEASE_S) as server:
        core = server.service.core
        other = replace(core, replica="another")
        running = [
            asyncio.create_task(Device(server, number, one_hot(number)).run())
            for number in range(4)
        ]
        await asyncio.wait_for(held.begun.wait(), QUIET_S)
        server.ahead_s += LATER_S
        await renewed_past_now(core, held.cohort)
        assert not await claim_lease(other, held.cohort)
        held.go.set()
        assert finished(await asyncio.gather(*running)) == 4
        assert held.openings == 1
        assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]


async def test_a_lease_that_nobody_renews_any_more_runs_out(tmp_path, held):
    async with served(tmp_path, spec(), opening_lease_s=60.0) as server:
        core = server.service.core
        other = replace(core, replica="another")
        running = [
            asyncio.create_task(Device(server, number, one_hot(number)).run())
            for number in range(4)
        ]
        await asyncio.wait_for(held.begun.wait(), QUIET_S)
        assert not await claim_lease(other, held.cohort)
        server.ahead_s += 61.0  # before the first renewal, as if this replica had died
        assert await claim_lease(other, held.cohort)
        held.go.set()
        assert finished(await asyncio.gather(*running)) == 4
