"""The service's own process is killed with SIGKILL in the middle of a cohort and started again."""

import asyncio
import json
import os
import signal
import sys
import time

import aiohttp
import msgspec
import pytest

from secagg import api, client
from tests.service_kit import TOKEN, Device, Served, one_hot, spec


class Process(Served):
    """``python -m aggregator.main`` instead of an app in this process."""

    async def start(self) -> None:
        environment = {
            **os.environ,
            "SECAGG_DATA_DIR": str(self.settings.data_dir),
            "SECAGG_OPERATOR_TOKEN": TOKEN,
            "SECAGG_PORT": str(self._port),
            "SECAGG_ADMIN_PORT": "0",
        }
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aggregator.main", env=environment, stdout=-1, stderr=-3
        )
        line = json.loads(await self.process.stdout.readline())
        self.url, self._port = line["listening"]["url"], line["port"]

    async def stop(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


class Remote(Device):
    """Asks the service for its task key, as an enrolment bundle would tell it."""

    async def token(self) -> str:
        from secagg.access import issue_access_token

        info = await key_of(self.server)
        return issue_access_token(self.seed, self.certificate, info.task_key, time.time())


_keys: dict[str, api.ServerInfo] = {}


async def key_of(server: Process) -> api.ServerInfo:
    if server.url not in _keys:
        async with aiohttp.ClientSession() as http, http.get(f"{server.url}/v1/server") as answer:
            _keys[server.url] = msgspec.json.decode(await answer.read(), type=api.ServerInfo)
    return _keys[server.url]


@pytest.mark.parametrize("points", [("ready", "vector"), ("half-vector", "unmask")])
async def test_sigkill_twice_in_a_cohort_still_ends_in_the_exact_sum(tmp_path, points):
    server = Process(tmp_path)
    await server.start()
    try:
        await server.set_up(spec())
        await key_of(server)
        lock, left = asyncio.Lock(), list(points)

        async def hold(name):
            async with lock:
                if left and name == left[0]:
                    left.pop(0)
                    await server.stop()
                    await server.start()

        fleet = [Remote(server, n, one_hot(n), hold=hold, chunk=40) for n in range(4)]
        outcomes = await asyncio.gather(*(device.run() for device in fleet))
        assert not left
        assert all(isinstance(outcome, client.Finished) for outcome in outcomes), outcomes
        view = await server.view()
        assert [release["outcome"] for release in view["releases"]] == ["released"]
        assert (view["version"], view["charges"]) == (1, 1)
        assert view["releases"][0]["sum_norm"] == pytest.approx(2.0)
        assert await server.end() == 0
    finally:
        if server.process.returncode is None:
            await server.stop()
