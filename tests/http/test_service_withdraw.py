"""A device that leaves is waited for by nobody; one that the masking set has cannot leave."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import pytest

from secagg import client
from tests.kits.service import QUIET_S, Device, Gone, devices, finished, served, spec


def leaving(fleet: list[Device], point: str) -> list[tuple[int, bytes]]:
    """Let the first device of the fleet ask to leave before this message; what it is told."""
    told: list[tuple[int, bytes]] = []

    async def hold(name: str) -> None:
        if name == point and not told:
            told.append(await fleet[0].request("DELETE", fleet[0].session))
            if told[0][0] == 204:
                raise Gone

    fleet[0].hold = hold
    return told


async def all_of(fleet: list[Device]) -> list[object]:
    """Their ends; the deadlines of the cohort are longer than this waits."""
    async with asyncio.timeout(QUIET_S):
        return list(await asyncio.gather(*(device.run() for device in fleet)))


@pytest.mark.parametrize("point", ["deals", "ready"])
async def test_a_cohort_goes_on_at_once_without_a_device_that_leaves(
    tmp_path: Path, point: str
) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        told = leaving(fleet, point)
        outcomes = await all_of(fleet)
        assert [status for status, _ in told] == [204]
        assert finished(outcomes) == 3
        assert (await server.view())["releases"][0]["survivors"] == 3


async def test_a_cohort_that_too_many_leave_ends_at_once_and_blames_nobody(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        for device in fleet[:2]:
            leaving([device], "deals")
        outcomes = await all_of(fleet)
        assert outcomes[:2] == [None, None]
        assert all(isinstance(outcome, client.Failed) for outcome in outcomes[2:])
        assert "too-few-left" in str(outcomes[2])
        view = await server.view()
        assert view["releases"] == []
        blamed = (await server.operator("GET", "/devices"))[1]
        assert blamed == {"bans": [], "strikes": [], "never_deal": []}


async def test_a_device_that_the_masking_set_has_is_told_so_and_stays(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        told = leaving(fleet, "header")
        outcomes = await all_of(fleet)
        ((status, body),) = told
        assert (status, msgspec.json.decode(body)["reason"]) == (409, "withdraw-late")
        assert finished(outcomes) == 4


async def test_an_advert_is_taken_back_by_its_own_device_alone(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        first, other = devices(server, 2)
        await _reported(first)
        other.http = first.http
        status, body = await other.request("DELETE", first.session)
        assert (status, msgspec.json.decode(body)["reason"]) == (403, "session-not-yours")
        assert (await server.view())["waiting"] == 1
        assert (await first.request("DELETE", first.session))[0] == 204
        assert (await server.view())["waiting"] == 0
        assert (await first.request("DELETE", first.session))[0] == 404
        assert first.http is not None
        await first.http.close()


async def _reported(device: Device) -> None:
    device.http = aiohttp.ClientSession()
    await device.report_in()
