"""A device under way meets a box that answers in the aggregator's place, and is not lost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from client_sdk import Event
from client_sdk.rounds import phases
from dp.contracts import DeadlineSpec
from tests.kits.boxes import LOGIN_PAGE
from tests.kits.fault_proxy import FaultProxy, Once, Schedule, faulty
from tests.kits.world import QUICK, TASK, OneHot, World, plain_spec, run_all


@pytest.mark.parametrize("status", [200, 302, 401, 403, 404, 409, 410, 502])
async def test_a_session_outlives_the_pages_of_a_portal(tmp_path: Path, status: int) -> None:
    """The first device sees pages alone from its report on, and keeps its session."""
    async with World(tmp_path, plain_spec(4)) as world:
        closed: list[Event] = []

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            if not closed or request.headers.get("User-Agent") != "d0":
                return None
            headers = {"Content-Type": "text/html", "Location": "https://login.example/"}
            return web.Response(status=status, body=LOGIN_PAGE, headers=headers)

        def close(event: Event) -> None:
            if event.kind == "reported":
                closed.append(event)

        world.gate = gate
        mine: Any = dataclasses.replace(QUICK, user_agent="d0", patience_s=0.2)
        device = world.device("d0", transport=mine, on_event=close)
        with pytest.raises(Exception, match="answer-foreign"):
            await device.run_async(OneHot(0), task=TASK, rounds=1)
        assert world.device("d0").has_pending()
        for _ in range(2):
            with pytest.raises(Exception, match="answer-foreign"):
                await world.device("d0", transport=mine).resume_async()
            assert world.device("d0").has_pending()


async def released_all_but_disturbed(world: World, schedule: Schedule) -> FaultProxy:
    """Four devices release together, of which one meets the schedule's faults."""
    async with faulty(("127.0.0.1", world.port), schedule) as proxy:
        world.reroute("d0", proxy.port)
        results = await run_all(world)
    assert all(len(result.releases) == 1 and not result.aborted for result in results), results
    return proxy


@pytest.mark.parametrize("fault", ["portal", "empty"])
async def test_one_answer_of_a_portal_to_a_message_ends_no_cohort(
    tmp_path: Path, fault: str
) -> None:
    """Status 200 is not the aggregator's word that it has the message: it says 204."""
    async with World(tmp_path, plain_spec(4, survivors=4)) as world:
        proxy = await released_all_but_disturbed(world, Once((fault,), begins="POST /v1/sessions"))
    assert proxy.met[fault] == 1


@pytest.mark.parametrize("begins", ["POST /v1/sessions", "GET /v1/sessions"])
async def test_a_request_that_stalls_is_repeated_within_its_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    """A message, and a poll: nobody waits for either as long as for other requests."""
    monkeypatch.setattr(phases, "PARTS", (0.02, 0.02))  # of 60 s
    slow = {f"{step}_s": 60.0 for step in ("share", "check", "masked_input", "confirm", "unmask")}
    deadlines = DeadlineSpec(report_s=60.0, **slow)
    async with World(tmp_path, plain_spec(4, survivors=4, deadlines=deadlines)) as world:
        proxy = await released_all_but_disturbed(world, Once(("stall",), begins=begins))
    assert 0 < proxy.stalled_s < QUICK.request_s / 2
