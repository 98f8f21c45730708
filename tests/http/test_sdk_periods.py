"""Limits per period with a real aggregator: what passed is counted, and what would pass is not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from client_sdk import Event, PeriodLimits, TrainingJob
from client_sdk.accounts.period_limits import OTHER_BYTES
from client_sdk.accounts.usage import BLOCK_BYTES, Usage
from client_sdk.network.server_time import ServerTime
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.contracts import SegmentSpec
from dp.transfer_sizes import messages_size, upload_size
from tests.kits.world import POLICY, TASK, Killed, OneHot, World, kill_at, plain_spec

LENGTH = 60_000
SPEC = plain_spec(4, segments=(SegmentSpec(name="seen", length=LENGTH, clip=4.0),))
WIDE = PeriodLimits(max_bytes=1 << 30, max_training_s=1e3)


def limited(limits: PeriodLimits = WIDE) -> Any:
    return replace(POLICY, per_period=limits)


def usage_of(folder: Path) -> Usage:
    journal = Journal(folder, open_storage_key(folder))
    return Usage(journal, WIDE, ServerTime(journal))


def others_of(world: World) -> list[asyncio.Task[Any]]:
    return [
        asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
        for n in (1, 2, 3)
    ]


async def test_the_bytes_of_a_round_are_counted_over_kills(tmp_path: Path) -> None:
    passed = 0

    async def count(request: web.Request, body: bytes) -> None:
        nonlocal passed
        if request.headers.get("User-Agent") == "counted":
            passed += (request.content_length or 0) + len(body)

    async with World(tmp_path, SPEC) as world:
        world.gate = count
        transport = replace(world.device("d1")._transport, user_agent="counted")
        others = others_of(world)
        for kind in ("trained", "masking", "uploading"):
            with pytest.raises(Killed):
                await world.device(
                    "d0", kill_at(kind), policy=limited(), transport=transport
                ).run_async(OneHot(0), task=TASK, rounds=1)
        device = world.device("d0", policy=limited(), transport=transport)
        result = await device.run_async(OneHot(0), task=TASK, rounds=1)
        await asyncio.gather(*others)
    assert len(result.releases) == 1
    counted = usage_of(tmp_path / "d0").bytes()
    assert passed > LENGTH  # the vector has more than a byte a number
    assert passed < counted < 1.5 * passed + 4 * BLOCK_BYTES


async def test_a_limit_that_is_reached_in_a_cohort_stops_the_traffic_and_keeps_the_session(
    tmp_path: Path,
) -> None:
    told: list[Event] = []
    async with World(tmp_path, SPEC) as world:
        with pytest.raises(Killed):
            await world.device("d0", kill_at("reported"), policy=limited()).run_async(
                OneHot(0), task=TASK, rounds=1
            )
        used = usage_of(tmp_path / "d0").bytes()
        others = others_of(world)
        tight = limited(PeriodLimits(max_bytes=used + 60_000))
        device = world.device("d0", told.append, policy=tight)
        result = await device.run_async(OneHot(0), task=TASK, rounds=1)
        assert [refusal.reason for refusal in result.refusals] == ["bytes-of-period"]
        assert result.refusals[0].again_at is not None
        assert told[-1].kind == "refused"
        assert device.has_pending()
        assert usage_of(tmp_path / "d0").bytes() <= used + 60_000
        refusals = (await world.device("d0", policy=tight).resume_async()).refusals
        assert [refusal.reason for refusal in refusals] == ["bytes-of-period"]
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_a_limit_without_room_for_the_messages_refuses_before_a_cohort(
    tmp_path: Path,
) -> None:
    sent: list[str] = []

    async def note(request: web.Request, body: bytes) -> None:
        if request.method == "POST":
            sent.append(request.path)

    async with World(tmp_path, SPEC) as world:
        world.gate = note
        manifest = world.manifest()
        most = upload_size(manifest) + OTHER_BYTES + sum(messages_size(manifest)) - 1
        device = world.device("d0", policy=limited(PeriodLimits(max_bytes=most)))
        async with asyncio.timeout(10.0):
            result = await device.run_async(OneHot(0), task=TASK, rounds=1)
    assert [refusal.reason for refusal in result.refusals] == ["bytes-of-period"]
    assert sent == []
    assert not device.has_pending()


async def test_training_is_written_down_before_it_begins(tmp_path: Path) -> None:
    class Looking(OneHot):
        def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
            self.seen = usage_of(tmp_path / "d0").training_s()
            return super().contribute(job)

    async with World(tmp_path, SPEC) as world:
        contributor = Looking(0)
        others = others_of(world)
        device = world.device("d0", policy=limited())
        await device.run_async(contributor, task=TASK, rounds=1)
        await asyncio.gather(*others)
    assert 30.0 <= contributor.seen < 40.0  # what a kill would have left
    assert usage_of(tmp_path / "d0").training_s() < 30.0
