"""Whole cohorts over HTTP: the sum is exact, drop-outs and retries included."""

import asyncio

import pytest

from secagg import client
from tests.service_kit import current_sum, devices, served, spec


async def test_the_released_sum_is_the_sum_of_the_listed_contributors(tmp_path):
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        outcomes = await asyncio.gather(*(device.run() for device in fleet))
        assert all(isinstance(outcome, client.Finished) for outcome in outcomes), outcomes
        view = await server.view()
        assert (await current_sum(server))[:6].tolist() == [1, 1, 1, 1, 0, 0]
        (release,) = view["releases"]
        assert release["outcome"] == "released"
        assert (release["cohort_size"], release["survivors"], release["dropped"]) == (4, 4, 0)
        assert release["sum_norm"] == pytest.approx(2.0)
        assert view["version"] == 1
        assert view["cohort"] is None
