"""Sessions that go wrong: garbage, a server that forgets, a second process, tasks that end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from client_sdk import Event, LedgerRefusal, StateError, TransportError
from dp.contracts import BudgetSpec
from secagg.http_api import Mail
from tests.kits.world import QUICK, TASK, OneHot, World, at_once, plain_spec, run_all

IMPATIENT = replace(QUICK, patience_s=0.2, poll_s=0.2)


@pytest.mark.parametrize("what", ["/offer", "/messages", "/v1/adverts", "/vector", "/ledger/"])
async def test_a_server_that_talks_garbage_is_survived(tmp_path: Path, what: str) -> None:
    """Typed error, pending session kept; the same device ends the round when sense returns."""
    async with World(tmp_path, plain_spec()) as world:

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            mine = request.headers["User-Agent"] == "d0"
            return web.Response(body=b"\xff<html>") if mine and what in request.path else None

        world.gate = gate
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        transport = replace(IMPATIENT, user_agent="d0")
        device = world.device("d0", transport=transport, sleep=at_once)
        with pytest.raises((TransportError, LedgerRefusal)) as caught:
            await device.run_async(OneHot(0), task=TASK, rounds=1)
        assert caught.value.reason in ("response-malformed", "note-malformed")
        world.gate = None
        result = await world.device("d0").run_async(OneHot(0), task=TASK, rounds=1)
        await asyncio.gather(*others)
        assert len(result.releases) == 1
        assert (await world.sums()).tolist()[:4] == [1.0] * 4


async def test_a_server_that_sends_only_garbage_is_left(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec()) as world:

        async def gate(request: web.Request, body: bytes) -> bytes | None:
            if request.path.endswith("/messages") and request.method == "GET":
                return msgspec.json.encode(Mail(messages=(bytes(200),) * 10))
            return None

        world.gate = gate
        events: list[Event] = []

        def on_event(event: Event) -> None:
            events.append(event)
            if event.kind == "aborted":
                raise EnoughError

        with pytest.raises(EnoughError):
            await world.device("d0", on_event, transport=replace(QUICK, poll_s=0.05)).run_async(
                OneHot(0), task=TASK, rounds=1
            )
        assert events[-1].detail["reason"] == "server-misbehaves"


class EnoughError(Exception):
    """The test has seen what it waited for."""


async def test_a_session_that_the_server_forgot_is_aborted_and_the_next_one_works(
    tmp_path: Path,
) -> None:
    async with World(tmp_path, plain_spec()) as world:
        lost, aborted = True, asyncio.Event()

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            nonlocal lost
            if lost and request.path.endswith("/messages"):
                lost = False
                return web.Response(status=404, body=b'{"reason":"not-found","message":"Gone."}')
            return None

        def on_event(event: Event) -> None:
            if event.kind == "aborted":
                assert event.detail["reason"] == "session-lost"
                aborted.set()

        world.gate = gate
        contributor = OneHot(0)
        first = asyncio.create_task(
            world.device("d0", on_event, transport=replace(QUICK, poll_s=0.1)).run_async(
                contributor, task=TASK, rounds=1
            )
        )
        await aborted.wait()
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        result = await first
        await asyncio.gather(*others)
        assert (result.aborted, len(result.releases), len(contributor.jobs)) == (1, 1, 1)
        assert (await world.sums()).tolist()[:4] == [1.0] * 4


async def test_two_processes_cannot_be_one_device(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec()) as world:
        async for event in world.device("d0").participate(OneHot(0), task=TASK):
            assert event.kind == "checked-in"
            with pytest.raises(StateError) as caught:
                await world.device("d0").run_async(OneHot(0), task=TASK)
            assert caught.value.reason == "state-in-use"
            break


async def test_a_task_that_is_not_there_is_told(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec()) as world:
        with pytest.raises(TransportError) as caught:
            await world.device("d0").run_async(OneHot(0), task="no-such/task")
        assert (caught.value.reason, caught.value.status) == ("not-found", 404)
        assert "no-such/task" in str(caught.value.remedy)


async def test_a_paused_task_is_waited_for(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec()) as world:
        await world.post(f"/v1/operator/tasks/{TASK}/pause")
        events: list[Event] = []
        waited = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waited.set()
            await asyncio.sleep(0.01)

        device = world.device("d0", events.append, sleep=sleep)
        running = asyncio.create_task(device.run_async(OneHot(0), task=TASK, rounds=1))
        await waited.wait()
        assert events[-1].kind == "waiting"
        await world.post(f"/v1/operator/tasks/{TASK}/resume")
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        assert len((await running).releases) == 1
        await asyncio.gather(*others)


async def test_a_task_that_has_spent_its_releases_is_finished(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(budget=BudgetSpec(releases_max=2))) as world:
        results = await run_all(world, rounds=None)  # type: ignore[arg-type]
        assert [(r.finished, len(r.releases)) for r in results] == [(True, 2)] * 4
