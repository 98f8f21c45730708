"""Strikes, bans and removals where two tasks or two acts meet."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import aiohttp
import pytest
from nacl.signing import SigningKey

from aggregator.cohorts import standing
from aggregator.cohorts.formation import NotYet, try_form
from aggregator.store.database import Conflict
from aggregator.store.schema import sessions, strikes
from dp.contracts import CohortSpec, DeadlineSpec
from secagg.secret import Secret
from tests.kits.service import (
    PARTNER,
    Device,
    Served,
    devices,
    finished,
    one_hot,
    run,
    served,
    spec,
)
from tests.kits.spoilers import Spoiler, again, rows


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
        honest = (device.run() for device in fleet(server, "one", Device, 4))
        assert finished(await asyncio.wait_for(asyncio.gather(*honest), 20.0)) == 4
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


async def test_a_device_that_reports_in_anew_while_it_waits_keeps_its_place(
    tmp_path: Path,
) -> None:
    """Else whoever is passed over would have to train anew after each release, and start last:
    for ever, where others are always before it."""
    async with served(tmp_path, spec()) as server:
        device, other = Device(server, 0, one_hot(0)), Device(server, 1, one_hot(1))

        async def waiting() -> dict[str, tuple[float, float]]:
            found = await rows(server, sessions)
            return {row.identity: (row.waiting_since, row.received_at) for row in found}

        async def report(which: Device) -> None:
            async with aiohttp.ClientSession() as which.http:
                await which.report_in()

        await report(device)
        ((began, received),) = (await waiting()).values()
        assert began == received
        server.ahead_s += 30.0
        await report(other)
        server.ahead_s += 30.0
        await report(device)
        found = await waiting()
        assert len(found) == 2
        first = min(found.values())
        assert first[0] == began  # before the other
        assert first[1] >= began + 60.0  # a cohort waits for others from its present advert on
        fleet = [Device(server, n, one_hot(n)) for n in (2, 3)]
        both = [device, other]
        ends = [asyncio.create_task(d.run()) for d in (*fleet, *(again(d) for d in both))]
        assert finished(await asyncio.wait_for(asyncio.gather(*ends), 20.0)) == 4
        await report(again(device))
        (later,) = [row.waiting_since for row in await rows(server, sessions) if row.cohort is None]
        assert later >= began + 60.0  # a cohort took it, so it begins anew


async def test_a_cohort_is_due_by_its_devices_present_adverts(tmp_path: Path) -> None:
    """A device that kept its place does not cut short the time that others have to report in."""
    cohort = CohortSpec(size_min=3, size_max=4, survivors_min=3, corrupt_max=0)
    async with served(tmp_path, spec(cohort=cohort)) as server:
        early = Device(server, 0, one_hot(0))
        async with aiohttp.ClientSession() as early.http:
            await early.report_in()
            server.ahead_s += 61.0  # longer than a cohort waits for more devices
            await early.report_in()
        fleet = [Device(server, n, one_hot(n)) for n in (1, 2)]
        for device in fleet:
            async with aiohttp.ClientSession() as device.http:
                await device.report_in()
        task = await server.service.tasks.get("statistics")
        found = await try_form(server.service.core, task)
        assert isinstance(found, NotYet)
        assert found.again_s is not None
        assert found.again_s > server.clock() + 50.0


async def test_two_adverts_of_one_device_that_crossed_stop_no_task(tmp_path: Path) -> None:
    """On PostgreSQL both stay. A roster holds a device once; it is the newer advert that counts."""
    async with served(tmp_path, spec()) as server:
        twice = Device(server, 0, one_hot(0))
        async with aiohttp.ClientSession() as twice.http:
            await twice.report_in()
        (first,) = await server.service.core.database.rows(sessions.select())
        newer = again(twice)
        running = [asyncio.create_task(newer.run())]
        await server.until(lambda view: view["waiting"] == 1 and newer.session != "")
        async with server.service.core.database.write() as connection:
            await connection.execute(sessions.insert().values(**first._mapping))
        assert len(await rows(server, sessions)) == 2
        running += [asyncio.create_task(d.run()) for d in devices(server, 4)[1:]]
        assert finished(await asyncio.wait_for(asyncio.gather(*running), 20.0)) == 4


async def test_a_request_that_lost_a_race_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not a failure of the service: an advert whose repeat crossed it, two bans at once."""

    async def first(*_: object) -> None:
        raise Conflict("another writer was first")

    async with served(tmp_path, spec()) as server:
        monkeypatch.setattr(standing, "insert_ban", first)
        status, problem = await server.operator("POST", f"/devices/{'ab' * 32}/ban", {})
        assert (status, problem["reason"]) == (503, "busy")
