"""Devices with wrong clocks, and a server that lies about time: real clients, a real service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from aggregator.http.app import SERVICE
from client_sdk import Client, ClockError, Event
from client_sdk.network.server_time import CLOCK_WRONG_S
from client_sdk.state.journal import Journal
from dp.contracts import DeadlineSpec
from secagg.http_api import Mail, Offer
from tests.kits.world import TASK, Killed, OneHot, World, kill_at, plain_spec

HOUR, DAY, YEAR = 3_600.0, 86_400.0, 31_557_600.0


class Clocks:
    """A device's own clock and its steady one, each off by as much as a test says."""

    def __init__(self, wrong_s: float = 0.0) -> None:
        self.wrong_s = wrong_s
        self.slept_s = 0.0

    def own(self) -> float:
        return time.time() + self.wrong_s

    def steady(self) -> float:
        return time.monotonic() + self.slept_s


def device(world: World, number: int, clocks: Clocks, on_event=None) -> Client:
    return world.device(f"d{number}", on_event, clock=clocks.own, steady=clocks.steady)


async def take_part(client: Client, number: int, rounds: int = 1):
    return await asyncio.wait_for(client.run_async(OneHot(number), task=TASK, rounds=rounds), 30)


def requests_of(world: World) -> list[tuple[str, str]]:
    """The device requests that reach the service from now on."""
    seen: list[tuple[str, str]] = []

    async def gate(request: web.Request, body: bytes) -> None:
        if not request.path.startswith("/v1/operator"):
            seen.append((request.method, request.path))

    world.gate = gate
    return seen


@pytest.mark.parametrize("wrong_s", [2 * HOUR, -2 * HOUR, 3 * DAY, -3 * DAY, 2 * YEAR, -2 * YEAR])
async def test_a_device_whose_clock_is_wrong_says_so_and_spoils_no_cohort(
    tmp_path: Path, wrong_s: float
) -> None:
    async with World(tmp_path, plain_spec(3, 3)) as world:
        asked = requests_of(world)
        with pytest.raises(ClockError) as caught:
            await take_part(device(world, 3, Clocks(wrong_s)), 3)
        assert caught.value.reason == "clock-wrong"
        assert ("ahead of" if wrong_s > 0 else "behind") in caught.value.message
        assert all(method == "GET" for method, _ in asked)  # nothing was said, least of all
        offers = [path for _, path in asked if path.endswith("/offer")]
        assert len(offers) <= 2  # an advert; and nothing was tried again
        others = [device(world, n, Clocks()) for n in range(3)]
        results = await asyncio.gather(*(take_part(o, n) for n, o in enumerate(others)))
        assert [len(result.releases) for result in results] == [1, 1, 1]
        assert [result.aborted for result in results] == [0, 0, 0]


async def test_devices_ahead_and_behind_within_the_skew_make_one_sum(tmp_path: Path) -> None:
    within_s = CLOCK_WRONG_S - 60
    async with World(tmp_path, plain_spec(4, 4)) as world:
        fleet = [
            device(world, number, Clocks(wrong_s))
            for number, wrong_s in enumerate((600.0, -600.0, within_s, -within_s))
        ]
        results = await asyncio.gather(*(take_part(c, n, rounds=2) for n, c in enumerate(fleet)))
        assert [len(result.releases) for result in results] == [2] * 4
        assert [result.aborted for result in results] == [0] * 4


@pytest.mark.parametrize("jump_s", [DAY, -DAY])
@pytest.mark.parametrize("at", ["checked-in", "reported", "shared", "masking", "uploaded"])
async def test_a_clock_that_jumps_later_harms_nobody_and_is_told_before_the_next_round(
    tmp_path: Path, at: str, jump_s: float
) -> None:
    clocks = Clocks()

    def jump(event: Event) -> None:
        if event.kind == at:
            clocks.wrong_s = jump_s

    async with World(tmp_path, plain_spec(3, 3)) as world:
        others = [asyncio.create_task(take_part(device(world, n, Clocks()), n)) for n in (0, 1)]
        with pytest.raises(ClockError) as caught:
            await take_part(device(world, 2, clocks, jump), 2, rounds=2)
        assert caught.value.reason == "clock-wrong"
        results = await asyncio.gather(*others)
        assert [(len(r.releases), r.aborted) for r in results] == [(1, 0), (1, 0)]
        assert (await world.sums())[:4].tolist() == [1, 1, 1, 0]
        assert (await world.view())["waiting"] == 0


async def test_a_session_goes_on_in_another_process_once_the_clock_is_right(tmp_path: Path) -> None:
    clocks = Clocks()
    async with World(tmp_path, plain_spec(3, 3)) as world:
        others = [asyncio.create_task(take_part(device(world, n, Clocks()), n)) for n in (0, 1)]
        with pytest.raises(Killed):
            await take_part(device(world, 2, clocks, kill_at("shared")), 2)
        clocks.wrong_s = -DAY
        with pytest.raises(ClockError):
            await device(world, 2, clocks).resume_async()
        assert Journal.has_session(tmp_path / "d2")
        clocks.wrong_s = 600.0
        result = await asyncio.wait_for(device(world, 2, clocks).resume_async(), 30)
        assert len(result.releases) == 1
        await asyncio.gather(*others)


async def test_a_resumed_session_is_not_given_up_by_the_devices_own_clock(tmp_path: Path) -> None:
    """Five minutes ahead, where all its deadlines come to less: no token is rejected for it."""
    clocks, silent = Clocks(), False

    async def gate(request: web.Request, body: bytes) -> bytes | None:
        nonlocal silent
        if not silent or session not in request.path or request.method != "GET":
            return None
        silent = False
        return msgspec.json.encode(Mail(messages=()))

    session = ""

    def on_event(event: Event) -> None:
        nonlocal session
        session = event.session or session
        if event.kind == "shared":
            raise Killed

    short = DeadlineSpec(
        report_s=60, share_s=20, check_s=20, masked_input_s=20, confirm_s=20, unmask_s=20
    )
    async with World(tmp_path, plain_spec(3, 3, deadlines=short)) as world:
        world.gate = gate
        others = [asyncio.create_task(take_part(device(world, n, Clocks()), n)) for n in (0, 1)]
        with pytest.raises(Killed):
            await take_part(device(world, 2, clocks, on_event), 2)
        clocks.wrong_s, silent = 290.0, True
        result = await asyncio.wait_for(device(world, 2, clocks).resume_async(), 30)
        assert (len(result.releases), result.aborted) == (1, 0)
        await asyncio.gather(*others)


async def test_time_that_passes_in_a_session_is_remembered(tmp_path: Path) -> None:
    clocks = Clocks()

    def on_event(event: Event) -> None:
        if event.kind == "reported":
            clocks.slept_s = HOUR / 2
        if event.kind == "shared":
            raise Killed

    async with World(tmp_path, plain_spec(3, 3)) as world:
        world.app[SERVICE].access._clock = lambda: time.time() + clocks.slept_s
        there = [asyncio.Event(), asyncio.Event()]

        def arriving(n: int) -> Callable[[Event], None]:
            return lambda event: there[n].set() if event.kind == "reported" else None

        others = [
            asyncio.create_task(take_part(device(world, n, Clocks(), arriving(n)), n))
            for n in (0, 1)
        ]
        for arrived in there:  # before their tokens have ended
            await arrived.wait()
        with pytest.raises(Killed):
            await take_part(device(world, 2, clocks, on_event), 2)
        with pytest.raises(ClockError) as caught:  # the aggregator says that no time has passed
            await device(world, 2, clocks).resume_async()
        assert caught.value.reason == "server-time-back"
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def saying(world: World, off_s: float) -> None:
    """The server's word about time is off from now on; its tokens' are not."""

    async def gate(request: web.Request, body: bytes) -> bytes | None:
        if not request.path.endswith("/offer"):
            return None
        offer = msgspec.json.decode(body, type=Offer)
        return msgspec.json.encode(msgspec.structs.replace(offer, now=offer.now + off_s))

    world.gate = gate


@pytest.mark.parametrize("off_s", [10 * YEAR, -10 * YEAR, 2 * HOUR, -2 * HOUR])
async def test_a_server_that_lies_by_hours_or_years_gets_no_advert(
    tmp_path: Path, off_s: float
) -> None:
    async with World(tmp_path, plain_spec(3, 3)) as world:
        saying(world, off_s)
        with pytest.raises(ClockError) as caught:
            await take_part(device(world, 0, Clocks()), 0)
        assert caught.value.reason == "clock-wrong"
        assert (await world.view())["waiting"] == 0


async def test_a_server_whose_time_goes_back_is_not_followed_over_restarts(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(3, 3)) as world:
        fleet = [device(world, n, Clocks()) for n in range(3)]
        await asyncio.gather(*(take_part(client, n) for n, client in enumerate(fleet)))
        saying(world, -3_000.0)  # within what its own clock would admit
        with pytest.raises(ClockError) as caught:
            await take_part(device(world, 0, Clocks()), 0)
        assert caught.value.reason == "server-time-back"


async def test_replicas_that_differ_by_seconds_are_one_service(tmp_path: Path) -> None:
    asked = 0

    async def gate(request: web.Request, body: bytes) -> bytes | None:
        nonlocal asked
        if not request.path.endswith("/offer"):
            return None
        asked += 1
        offer = msgspec.json.decode(body, type=Offer)
        return msgspec.json.encode(
            msgspec.structs.replace(offer, now=offer.now + (20.0 if asked % 2 else -20.0))
        )

    async with World(tmp_path, plain_spec(3, 3)) as world:
        world.gate = gate
        fleet = [device(world, n, Clocks()) for n in range(3)]
        results = await asyncio.gather(*(take_part(c, n, rounds=2) for n, c in enumerate(fleet)))
        assert [len(result.releases) for result in results] == [2] * 3


@pytest.mark.parametrize("set_back_s", [0.0, -DAY])
async def test_a_device_gives_a_silent_cohort_up_by_its_steady_clock(
    tmp_path: Path, set_back_s: float
) -> None:
    """Nothing that is said about time, or set, holds it in a cohort past its deadlines."""
    clocks, reasons = Clocks(), []

    def on_event(event: Event) -> None:
        if event.kind == "shared":
            clocks.wrong_s, clocks.slept_s = set_back_s, 2 * HOUR
        if event.kind == "aborted":
            reasons.append(event.detail["reason"])
            raise Killed

    async with World(tmp_path, plain_spec(4, 3)) as world:

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            silent = clocks.slept_s and request.path.endswith("/messages")
            if silent and request.method == "GET" and held in request.path:
                return web.Response(body=msgspec.json.encode(Mail(messages=())))
            return None

        held = ""

        def first(event: Event) -> None:
            nonlocal held
            held = event.session or held
            on_event(event)

        world.gate = gate
        others = [asyncio.create_task(take_part(device(world, n, Clocks()), n)) for n in (0, 1, 2)]
        with pytest.raises(Killed):
            await take_part(device(world, 3, clocks, first), 3)
        assert reasons == ["session-deadline"]
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_an_advert_ends_for_a_device_that_slept_through_it(tmp_path: Path) -> None:
    clocks, ended = Clocks(), []

    def on_event(event: Event) -> None:
        if event.kind == "reported":
            clocks.slept_s = 2 * HOUR  # and its own clock does not show it
        if event.kind == "aborted":
            ended.append(event.detail["reason"])
            raise Killed

    async with World(tmp_path, plain_spec(3, 3), long_poll_max_s=0.1) as world:
        world.app[SERVICE].access._clock = lambda: time.time() + clocks.slept_s
        with pytest.raises(Killed):
            await take_part(device(world, 0, clocks, on_event), 0)
        assert ended == ["advert-expired"]
