"""A service that stops leaves nothing running behind, whatever was under way."""

import asyncio

from aggregator.cohorts import formation
from aggregator.cohorts.actor import Cohort
from aggregator.cohorts.adding import Adder
from aggregator.cohorts.driver import Driver
from aggregator.cohorts.ending import Ending
from tests.kits.service import devices, finished, served, spec


def of_cohorts():
    """Names of the tasks that serve cohorts in this event loop."""
    names = [task.get_name() for task in asyncio.all_tasks() if not task.done()]
    return sorted(name for name in names if name.startswith(("end-", "cohort-", "adder-")))


async def test_a_cohort_that_ends_while_the_service_stops_does_not_outlive_it(
    tmp_path, monkeypatch
):
    """Its last commit is durable, its worker not yet told, when the service begins to stop."""
    committed, go = asyncio.Event(), asyncio.Event()
    commit, close = Cohort._commit, Adder.close

    async def slow_commit(cohort, stepped):
        await commit(cohort, stepped)
        if stepped.state.phase == "released":
            committed.set()
            await go.wait()

    async def slow_close(adder):
        go.set()
        for _ in range(20):
            await asyncio.sleep(0)  # the worker goes on first
        await close(adder)

    async def never(*_, **__):
        await asyncio.Event().wait()

    async with served(tmp_path, spec()) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Cohort, "_commit", slow_commit)
            patch.setattr(Adder, "close", slow_close)
            patch.setattr(Ending, "published", never)
            running = [asyncio.create_task(device.run()) for device in devices(server, 4)]
            await committed.wait()
            await server.stop()
            assert of_cohorts() == []
        await server.start()
        assert finished(await asyncio.gather(*running)) == 4


async def test_a_cohort_that_two_find_at_once_is_served_once(tmp_path, monkeypatch):
    """The poller sees it in the database before the one that formed it has taken it up."""
    form, adopt, serving = formation.try_form, Driver.adopt, []

    async def overtaken(core, task):
        formed = await form(core, task)
        if isinstance(formed, formation.Formed):
            await server.service.driver.take_up(formed.cohort)
        return formed

    def counted(*arguments):
        live = adopt(*arguments)
        serving.append((live, of_cohorts()))
        return live

    monkeypatch.setattr(formation, "try_form", overtaken)
    monkeypatch.setattr(Driver, "adopt", counted)
    async with served(tmp_path, spec()) as server:
        running = [asyncio.create_task(device.run()) for device in devices(server, 4)]
        assert finished(await asyncio.gather(*running)) == 4
    (first, before), (second, after) = serving
    assert first is second
    assert before == after
    assert len(after) == 2, "one worker and one adder"
    assert of_cohorts() == []
