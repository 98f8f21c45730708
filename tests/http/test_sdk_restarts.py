"""The service stops and starts in the middle of a round; devices notice nothing but a wait."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from client_sdk import Event, TransportError
from tests.kits.world import QUICK, TASK, Killed, NoContributor, OneHot, World, kill_at, plain_spec

STEPS = ["trained", "reported", "shared", "checked", "masking", "uploaded", "confirmed", "unmasked"]


@pytest.mark.parametrize("kind", STEPS)
async def test_a_restart_of_the_service_at_any_step_loses_no_round(
    tmp_path: Path, kind: str
) -> None:
    async with World(tmp_path, plain_spec()) as world:
        restarted = False

        def on_event(event: Event) -> None:
            nonlocal restarted
            if event.kind == kind and not restarted:
                restarted = True
                world.restart_soon()

        results = await asyncio.gather(
            *(
                world.device(f"d{n}", on_event if n == 0 else None).run_async(
                    OneHot(n), task=TASK, rounds=1
                )
                for n in range(4)
            )
        )
        assert restarted
        assert (await world.sums()).tolist() == [1.0] * 4 + [0.0] * 12
        assert all(len(result.releases) == 1 for result in results)
        assert world.audit().verified


async def test_device_and_service_die_together_and_the_round_ends(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec()) as world:
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        with pytest.raises(Killed):
            await world.device("d0", kill_at("uploading")).run_async(OneHot(0), task=TASK, rounds=1)
        await world.stop()
        resumed = asyncio.create_task(
            world.device("d0").run_async(NoContributor(), task=TASK, rounds=1)
        )
        await asyncio.wait({resumed}, timeout=0.3)
        assert not resumed.done()
        await world.start()
        assert len((await resumed).releases) == 1
        await asyncio.gather(*others)
        assert (await world.sums()).tolist() == [1.0] * 4 + [0.0] * 12


async def test_a_service_that_stays_away_is_told_and_the_session_kept(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec()) as world:
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        loop = asyncio.get_running_loop()

        def on_event(event: Event) -> None:
            if event.kind == "masking":
                stops.append(loop.create_task(world.stop()))

        stops: list[asyncio.Task[None]] = []
        impatient = replace(QUICK, patience_s=0.3)
        device = world.device("d0", on_event, transport=impatient)
        with pytest.raises(TransportError) as caught:
            await device.run_async(OneHot(0), task=TASK, rounds=1)
        assert caught.value.reason == "unreachable"
        assert device.has_pending()
        await asyncio.gather(*stops)
        await world.start()
        assert len((await world.device("d0").resume_async()).releases) == 1
        await asyncio.gather(*others)
