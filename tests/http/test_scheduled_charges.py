"""In a task with a schedule, what a device may have counted is a charge, whoever was at fault.

A device debits before its first byte. Were such a cohort left out of the ledger, its part would
come round sooner than ceil(charges / period) says.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from aggregator.store.schema import cohort_events
from dp.contracts import BudgetSpec
from secagg import client
from tests.kits.quadratics import quadratic_spec
from tests.kits.sealed import replace_event
from tests.kits.service import TASK, Device, Gone, Served, one_hot, served
from tests.kits.spoilers import rows
from tests.kits.upgrades import audited


class Debited(Device):
    """Vanishes between its debit and its first byte."""

    async def perform(self, effect: client.Effect) -> None:
        if isinstance(effect, client.ProvideVector):
            raise Gone
        await super().perform(effect)


def task(period: int) -> Any:
    return quadratic_spec(
        "fedsgd",
        task=TASK,
        privacy="distributed",
        period=period,
        sampling_rate=1.0,
        noise_multiplier=10.0,
        removable_noise=False,
        budget=BudgetSpec(max_epsilon=None, releases_max=4),
        training={"local_steps": 1, "batch_size": 5},
    )


async def debited(server: Served) -> None:
    fleet = [Debited(server, number, one_hot(number)) for number in range(4)]
    await asyncio.gather(*(device.run() for device in fleet))
    assert all(device.gone for device in fleet)


@pytest.mark.parametrize("period", [1, 2])
async def test_a_cohort_of_which_nobody_sent_is_charged_under_a_schedule(
    tmp_path: Path, period: int
) -> None:
    async with served(tmp_path, task(period)) as server:
        await debited(server)
        await server.stop()
        server.ahead_s += 180.0
        await server.start()
        view = await server.until(lambda view: view["cohort"] is None)
        found = await audited(server)
        assert (view["releases_max"], view["sums_max"]) == (4, 4 // period)
        assert view["charges"] == len(found.releases) == (period > 1)
        assert len(found.policies) == (period == 1)
        if period > 1:
            (release,) = found.releases
            assert (release.entry.outcome, release.entry.survivors) == ("charged", 0)
            assert (release.entry.fault, release.entry.cause) == ("service", "too-few-vectors")


@pytest.mark.parametrize("period", [1, 2])
async def test_so_is_one_whose_log_does_not_replay(tmp_path: Path, period: int) -> None:
    async with served(tmp_path, task(period)) as server:
        await debited(server)
        (opened,) = [row for row in await rows(server, cohort_events) if row.seq == 0]
        await replace_event(server, opened.cohort, 0, b"\xc1")
        await server.restart()
        view = await server.until(lambda view: view["cohort"] is None)
        found = await audited(server)
        assert view["charges"] == (period > 1)
        assert len(found.policies) == (period == 1)
        assert [r.entry.outcome for r in found.releases] == ["charged"] * (period > 1)
