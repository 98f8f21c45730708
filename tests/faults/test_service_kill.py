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
import safetensors.numpy

from dp.contracts import AdaptiveClipSpec
from dp.encoding import encode
from dp.ledger.verification import verify_ledger
from dp.noise.adaptive_clip import with_below
from secagg import client, http_api
from secagg.manifest import BaseModel
from tests.kits.quadratics import ADAPTER, LENGTH
from tests.kits.service import TASK, TOKEN, Device, Served, one_hot, spec


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
        from secagg.access_token import issue_access_token

        info = await key_of(self.server)
        return issue_access_token(self.seed, self.certificate, info.task_key, time.time())


_keys: dict[str, http_api.ServerInfo] = {}


async def key_of(server: Process) -> http_api.ServerInfo:
    if server.url not in _keys:
        async with aiohttp.ClientSession() as http, http.get(f"{server.url}/v1/server") as answer:
            _keys[server.url] = msgspec.json.decode(await answer.read(), type=http_api.ServerInfo)
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


class Clipped(Remote):
    """An update of length 2 under an adaptive clip; ``clip``: of the present model."""

    clip = 1.0

    async def perform(self, effect):
        if not isinstance(effect, client.ProvideVector):
            await super().perform(effect)
            return
        manifest = self.config.manifest
        values = with_below(manifest, {"delta": 2.0 * self.value}, self.clip)
        lanes = encode(
            manifest,
            values,
            rotation_seed=effect.ctx,
            random_bytes=self.tools.random_bytes,
            masking_set_size=effect.masking_set_size,
            noise_seeds=effect.noise_seeds,
        )
        await self.feed(client.VectorReady(lanes))


async def clip_of(server: Process) -> float:
    """Of the service's present model."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"{server.url}/v1/operator/tasks/{TASK}/model"
    async with aiohttp.ClientSession(headers=headers) as http, http.get(url) as answer:
        return float(safetensors.numpy.load(await answer.read())["clip"][0])


async def test_an_adaptive_clip_survives_sigkill_in_a_cohort_and_after_its_release(tmp_path):
    task = spec(
        algorithm="fedavg",
        segments=(),
        device_noise_multiplier=3.0,
        adaptive_clip=AdaptiveClipSpec(learning_rate=0.1, clip_min=1e-4, clip_max=1e4),
        adapter=ADAPTER,
        base_model=BaseModel(name="quadratic", fingerprint=bytes(32)),
    )
    server = Process(tmp_path)
    await server.start()
    try:
        await server.set_up(task)
        await key_of(server)
        lock, left, clips = asyncio.Lock(), ["vector", "unmask"], [1.0]

        async def hold(name):
            async with lock:
                if left and name == left[0]:
                    left.pop(0)
                    await server.stop()
                    await server.start()

        for release in range(2):
            fleet = [Clipped(server, n, one_hot(n, LENGTH), hold=hold) for n in range(4)]
            for device in fleet:
                device.clip = clips[-1]
            outcomes = await asyncio.gather(*(device.run() for device in fleet))
            assert all(isinstance(outcome, client.Finished) for outcome in outcomes), outcomes
            moved = await clip_of(server)
            await server.stop()
            await server.start()
            assert await clip_of(server) == moved != clips[-1]
            view = await server.view()
            assert view["releases"][release]["metrics"]["clip"] == moved
            clips.append(moved)
        assert not left
        folder = server.settings.data_dir / "ledger"

        def read(path: str) -> bytes | None:
            return (folder / path).read_bytes() if (folder / path).is_file() else None

        audit = verify_ledger(read, (await key_of(server)).ledger_verifier)
        assert audit.problems == ()
        assert [release.entry.clip.clip for release in audit.tasks[0].releases] == clips[1:]
    finally:
        if server.process.returncode is None:
            await server.stop()
