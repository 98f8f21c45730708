"""Three replicas over one PostgreSQL, behind a balancer that sends each request to the next one."""

import asyncio
from contextlib import AsyncExitStack

import aiohttp
import msgspec
import numpy as np

from client_sdk import Client, TransportSettings
from client_sdk.enrolment import create_bundle, new_partner_key
from dp.contracts import SegmentSpec
from tests.kits.round_robin import RoundRobin
from tests.kits.service import TASK, current_sum, served, spec
from tests.kits.world import POLICY


def sdk_device(url, info, partner, folder, number, told):
    key = msgspec.convert(info["task_key"], type=bytes)
    bundle = create_bundle(url, key, info["ledger_verifier"], partner.seed, 4_000_000_000)
    quick = TransportSettings(patience_s=60.0, request_s=10.0, backoff_max_s=0.5, jitter_s=0.05)
    return Client.from_bundle(
        bundle, policy=POLICY, state_dir=folder / f"d{number}", on_event=told, transport=quick
    )


class Bit:
    """Device n sends 2**n, so that a sum names whom it holds."""

    def __init__(self, number):
        self.number = number

    def contribute(self, job):
        return {"values": np.full(job.manifest.data_length, 2.0**self.number)}


async def test_three_replicas_behind_a_balancer_lose_no_cohort_when_one_dies(
    tmp_path, postgres_url
):
    shared = {
        "database_url": postgres_url,
        "blob_dir": tmp_path / "blobs",
        "keys_dir": tmp_path / "keys",
    }
    length, partner = 330_000, new_partner_key()
    async with AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(served(tmp_path / str(n), **shared)) for n in range(3)
        ]
        balancer = RoundRobin([replica.url for replica in replicas])
        await stack.enter_async_context(balancer.serving())
        one = replicas[0]
        body = {"name": "p", "key": partner.key}
        assert (await one.operator("POST", "/partners", body))[0] == 200
        segment = SegmentSpec(name="values", length=length, clip=1e4)
        status, view = await one.operator("POST", "/tasks", spec(segments=(segment,)))
        assert status == 200, view
        async with aiohttp.ClientSession() as http, http.get(f"{one.url}/v1/server") as answer:
            info = await answer.json()
        dies = asyncio.Event()

        def told(event):
            if event.kind == "uploading":
                dies.set()

        async def die_and_come_back():
            await dies.wait()
            await asyncio.sleep(0.2)
            await replicas[1].stop()
            await replicas[1].start()

        clients = [sdk_device(balancer.url, info, partner, tmp_path, n, told) for n in range(4)]
        runs = (c.run_async(Bit(n), task=TASK, rounds=1) for n, c in enumerate(clients))
        results = await asyncio.gather(*runs, die_and_come_back())
        assert [len(result.releases) for result in results[:4]] == [1] * 4
        view = await one.view()
        assert [(r["outcome"], r["survivors"]) for r in view["releases"]] == [("released", 4)]
        assert view["charges"] == 1
        found = await current_sum(one)
        assert np.allclose(found, 15.0, atol=0.2)  # rounding; a device is 1 or more
        # The one that died may have been away for all of the uploads.
        assert all(balancer.sent[replica.url, "PUT"] for replica in (replicas[0], replicas[2]))
        await one.until(lambda _: not list((tmp_path / "blobs" / "uploads").rglob("*-*")))
