"""A device under way meets a box that answers in the aggregator's place, and is not lost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from client_sdk import Event
from tests.kits.boxes import LOGIN_PAGE
from tests.kits.world import QUICK, TASK, OneHot, World, plain_spec


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
