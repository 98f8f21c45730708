"""Strikes, bans and removals where two tasks or two acts meet."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from nacl.signing import SigningKey

from aggregator.store.schema import strikes
from dp.contracts import DeadlineSpec
from secagg.secret import Secret
from tests.http.test_bans import Spoiler, rows
from tests.service_kit import PARTNER, Device, Served, finished, one_hot, run, served, spec


async def test_a_spoiler_in_many_tasks_at_once_holds_nobody_back(tmp_path: Path) -> None:
    """Each task has failed once: its devices may go on at once, in these tasks and in others."""
    deadlines = DeadlineSpec(
        report_s=1, share_s=60, check_s=60, masked_input_s=60, confirm_s=60, unmask_s=60
    )
    names = ["one", "two", "three"]
    seeds = [Secret(os.urandom(32)) for _ in range(5)]

    def fleet(server: Served, task: str, kind: type[Device], last: int) -> list[Device]:
        honest = [Device(server, n, one_hot(n), seed=seeds[n], task=task) for n in range(3)]
        return [*honest, kind(server, 3, one_hot(3), seed=seeds[last], task=task)]

    async with served(tmp_path) as server:
        for name in names:
            await server.set_up(spec(task=name, deadlines=deadlines))
        await asyncio.gather(*(run(fleet(server, name, Spoiler, 3)) for name in names))
        assert len(await rows(server, strikes)) == 12
        again = (device.run() for device in fleet(server, "one", Device, 4))
        assert finished(await asyncio.wait_for(asyncio.gather(*again), 20.0)) == 4
        weights = sorted(row.weight for row in await rows(server, strikes))
        assert weights == [0.5] * 3 + [1.0] * 9  # a release forgives in its task


async def test_a_cohort_goes_on_with_the_devices_of_a_partner_that_was_removed_meanwhile(
    tmp_path: Path,
) -> None:
    """S is fixed: all have charged themselves, and the others count on those devices."""
    other = Secret(os.urandom(32))
    key = bytes(SigningKey(other.reveal()).verify_key)
    removed: list[int] = []
    lock = asyncio.Lock()
    async with served(tmp_path) as server:
        await server.operator("POST", "/partners", {"name": "other", "key": key})
        await server.set_up(spec())

        async def hold(name: str) -> None:
            async with lock:
                if name == "header" and not removed:
                    status, _ = await server.operator("POST", f"/partners/{key.hex()}/remove")
                    removed.append(status)

        fleet = [
            Device(server, n, one_hot(n), partner=PARTNER if n < 2 else other, hold=hold)
            for n in range(4)
        ]
        outcomes = await asyncio.wait_for(asyncio.gather(*(d.run() for d in fleet)), 20.0)
        assert (removed, finished(outcomes)) == ([200], 4)
        await server.until(lambda view: view["cohort"] is None)
        await server.service.partners.load()
        assert server.service.partners.admitted == server.service.partners.keys != {key}
        assert key not in server.service.partners.admitted  # the cohort has ended
