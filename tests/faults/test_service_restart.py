"""The service stops at any point of a cohort and starts again on the same data."""

import asyncio

import numpy as np
import pytest

from aggregator.cohorts import driver
from aggregator.cohorts.adding import Adder
from aggregator.cohorts.releasing import Releaser
from aggregator.store.blobs import BlobsUnavailable
from secagg import client
from tests.kits.service import current_sum, devices, finished, served, spec

POINTS = ("advert", "deals", "ready", "header", "vector", "half-vector", "confirmation", "unmask")


def once_at(server, point):
    """A hold that restarts the service when the first device reaches the point."""
    lock, done = asyncio.Lock(), []

    async def hold(name):
        if name != point:
            return
        async with lock:
            if not done:
                done.append(name)
                await server.restart()

    return hold


@pytest.mark.parametrize("point", POINTS)
async def test_a_restart_before_any_message_still_releases_the_exact_sum(tmp_path, point):
    async with served(tmp_path, spec()) as server:
        hold = once_at(server, point)
        fleet = devices(server, 4, hold=hold, chunk=40)
        assert finished(await asyncio.gather(*(device.run() for device in fleet))) == 4
        assert (await current_sum(server))[:6].tolist() == [1, 1, 1, 1, 0, 0]
        assert len((await server.view())["releases"]) == 1


@pytest.mark.parametrize("last", [0, 3])
async def test_a_restart_after_a_vector_was_added_keeps_it_and_adds_it_once(tmp_path, last):
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        others_in = asyncio.Event()

        async def wait_for_others(name):
            if name == "vector":
                await others_in.wait()

        fleet[last].hold = wait_for_others
        running = [asyncio.create_task(device.run()) for device in fleet]
        await server.until(lambda view: added(server) == 3)
        await server.restart()
        assert added(server) == 3
        others_in.set()
        assert all(
            isinstance(outcome, client.Finished) for outcome in await asyncio.gather(*running)
        )
        assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]


def added(server):
    live = list(server.service.driver.live.values())
    return len(getattr(live[0].cohort.state, "added", ())) if live else 0


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (driver, "unmasked_sum"),
        (Releaser, "_compute"),
        (Releaser, "_write_release"),
        (Adder, "_claim"),
    ],
)
async def test_a_crash_between_any_two_durable_steps_is_repeated_not_doubled(
    tmp_path, database_url, monkeypatch, owner, name
):
    """The step starts and never ends, as when the process dies in it; then all starts again."""
    reached, real = asyncio.Event(), getattr(owner, name)
    loop = asyncio.get_running_loop()

    async def dies(*_, **__):
        reached.set()
        await asyncio.Event().wait()

    def dies_in_thread(*_, **__):
        loop.call_soon_threadsafe(reached.set)
        raise BlobsUnavailable("read a model", "the disk went away", "Mount it.")

    async with served(tmp_path, spec(), database_url=database_url) as server:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies_in_thread if name == "_compute" else dies)
            running = [asyncio.create_task(device.run()) for device in devices(server, 4)]
            await reached.wait()
            await server.stop()
        assert getattr(owner, name) is real
        await server.start()
        assert finished(await asyncio.gather(*running)) == 4
        assert np.array_equal((await current_sum(server))[:5], [1, 1, 1, 1, 0])
        view = await server.view()
        assert [release["outcome"] for release in view["releases"]] == ["released"]
        assert view["charges"] == 1


async def test_a_whole_upload_outlives_the_service_and_its_device(tmp_path, monkeypatch):
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        reached = asyncio.Event()

        async def dies(*_):
            reached.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(Adder, "_add_group", dies)
            for device in fleet[1:]:
                device.stop_before = "vector"
            running = [asyncio.create_task(device.run()) for device in fleet]
            await reached.wait()
            running[0].cancel()  # its bytes are there; it will never ask again
            await server.stop()
        await server.start()
        await server.until(lambda _: added(server) == 1)
        await server.until(lambda _: not list((tmp_path / "blobs" / "uploads").rglob("*-*")))
        await asyncio.gather(*running, return_exceptions=True)
