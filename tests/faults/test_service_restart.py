"""The service stops at any point of a cohort and starts again on the same data."""

import asyncio

import numpy as np
import pytest

from aggregator.cohorts import driver
from aggregator.cohorts.adding import Adder
from aggregator.cohorts.releasing import Releaser
from secagg import client
from tests.service_kit import current_sum, devices, served, spec

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
        outcomes = await asyncio.gather(*(device.run() for device in fleet))
        assert all(isinstance(outcome, client.Finished) for outcome in outcomes), outcomes
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
        (driver, "opened_sum"),
        (Releaser, "_compute"),
        (Releaser, "_write_release"),
        (Adder, "_claim"),
    ],
)
async def test_a_crash_between_any_two_durable_steps_is_repeated_not_doubled(
    tmp_path, monkeypatch, owner, name
):
    """The step starts and never ends, as when the process dies in it; then all starts again."""
    reached, real = asyncio.Event(), getattr(owner, name)
    loop = asyncio.get_running_loop()

    async def dies(*_, **__):
        reached.set()
        await asyncio.Event().wait()

    def dies_in_thread(*_, **__):
        loop.call_soon_threadsafe(reached.set)
        raise OSError("the disk went away")

    async with served(tmp_path, spec()) as server:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies_in_thread if name == "_compute" else dies)
            running = [asyncio.create_task(device.run()) for device in devices(server, 4)]
            await reached.wait()
            await server.stop()
        assert getattr(owner, name) is real
        await server.start()
        outcomes = await asyncio.gather(*running)
        assert all(isinstance(outcome, client.Finished) for outcome in outcomes), outcomes
        assert np.array_equal((await current_sum(server))[:5], [1, 1, 1, 1, 0])
        view = await server.view()
        assert [release["outcome"] for release in view["releases"]] == ["released"]
        assert view["charges"] == 1


async def test_a_deadline_that_passed_while_the_service_was_down_ends_the_phase_at_once(tmp_path):
    deadlines = spec().deadlines
    task = spec(
        deadlines=type(deadlines)(
            report_s=5, share_s=0.5, check_s=5, masked_input_s=5, confirm_s=5, unmask_s=5
        )
    )
    async with served(tmp_path, task) as server:
        fleet = devices(server, 4)
        fleet[2].stop_before = "deals"
        shared = asyncio.Event()

        async def note(name):
            if name == "ready":
                shared.set()

        fleet[0].hold = note
        running = [asyncio.create_task(device.run()) for device in fleet]
        await server.until(lambda view: view["cohort"] is not None)
        await server.stop()
        await server.start()
        outcomes = await asyncio.gather(*running)
        assert sum(isinstance(outcome, client.Finished) for outcome in outcomes) == 3
        assert (await current_sum(server))[:5].tolist() == [1, 1, 0, 1, 0]
        assert shared.is_set()
