"""A whole service over an S3-compatible store, which is away at times."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import safetensors.numpy

from aggregator.cohorts import driver
from aggregator.cohorts.adding import Adder
from aggregator.store.blobs import Arriving, BlobsUnavailable
from aggregator.store.database import Conflict
from tests.kits.objects import Door, s3_server
from tests.kits.service import TASK, TOKEN, Served, current_sum, devices, finished, served, spec


@pytest.fixture(scope="module")
def s3() -> Iterator[Door]:
    with s3_server() as door:
        yield door


async def test_a_cohort_over_objects_leaves_its_model_alone(tmp_path: Path, s3: Door) -> None:
    bucket = s3.bucket()
    async with served(tmp_path, spec(), blob_url=bucket) as server:
        fleet = devices(server, 4, chunk=40)

        async def busy(name: str) -> None:
            if name == "half-vector":
                s3.refusals = 2

        fleet[0].hold = busy
        assert finished(await asyncio.gather(*(device.run() for device in fleet))) == 4
        assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]
        await server.restart()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = f"{server.url}/v1/operator/tasks/{TASK}/model"
        async with aiohttp.ClientSession(headers=headers) as http:
            async with http.get(url) as answer:
                whole = await answer.read()
            async with http.get(url, headers={"Range": "bytes=10-"}) as answer:
                assert (answer.status, await answer.read()) == (206, whole[10:])
        assert np.array_equal(
            safetensors.numpy.load(whole)["vector"][:5], np.array([1, 1, 1, 1, 0])
        )
        await server.until(lambda _: not _under_way(s3, bucket))
    assert not (tmp_path / "blobs").exists()


def _under_way(s3: Door, bucket: str) -> list[str]:
    return [key for key in s3.keys(bucket) if key.startswith(("uploads/", "partial/"))]


async def test_a_sum_waits_for_a_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three failures in a row would have ended the cohort; the store's are no such failures."""
    away, real = [0], driver.unmasked_sum
    monkeypatch.setattr(driver, "_STORE_AGAIN_S", 0.01)

    async def unmasked(*arguments: object) -> object:
        if away[0] < 5:
            away[0] += 1
            raise BlobsUnavailable("read partial", "status 503", "It is tried again.")
        return await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "unmasked_sum", unmasked)
    async with served(tmp_path, spec()) as server:
        assert finished(await asyncio.gather(*(d.run() for d in devices(server, 4)))) == 4
        (release,) = (await server.view())["releases"]
        assert (release["outcome"], away) == ("released", [5])


async def test_a_store_that_is_away_until_the_deadline_strikes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where another replica ends the cohort, which met no failure itself."""

    asked = []

    class Away(Arriving):
        def write(self, data: bytes | bytearray) -> None:
            asked.append(data)
            raise BlobsUnavailable("write uploads", "no connection", "")

        def keep(self, name: str) -> None:
            raise AssertionError

        def close(self) -> None:
            pass

    async with served(tmp_path, spec()) as server:
        monkeypatch.setattr(server.service.core.blobs, "arriving", lambda _: Away())
        runs = [asyncio.create_task(device.run()) for device in devices(server, 4)]
        await server.until(lambda _: len(asked) == 4 and _failures(server) == 1)
        (live,) = server.service.driver.live.values()
        live.cohort._failed = False
        server.ahead_s += 61.0
        await asyncio.gather(*runs)
        (release,) = (await server.view())["releases"]
        assert (release["reason"], release["fault"]) == ("too-few-vectors", "unknown")
        assert (await server.operator("GET", "/devices"))[1]["strikes"] == []
        assert _failures(server) == 0


def _failures(server: Served) -> int:
    with sqlite3.connect(server.settings.data_dir / "secagg.db") as connection:
        query = "SELECT count(*) FROM service_facts WHERE name LIKE 'failed-%'"
        return int(connection.execute(query).fetchone()[0])


async def test_a_vector_that_was_whole_before_its_deadline_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, missed = Adder.add, [0]

    async def late(self: Adder, index: int) -> None:
        if missed[0] < 4:
            missed[0] += 1
            raise Conflict("the service did not come to add it")
        await add(self, index)

    monkeypatch.setattr(Adder, "add", late)
    async with served(tmp_path, spec()) as server:
        runs = [asyncio.create_task(device.run()) for device in devices(server, 4)]
        await server.until(lambda _: missed[0] == 4)
        server.ahead_s += 61.0
        assert finished(await asyncio.gather(*runs)) == 4
