"""After a cohort that reached masking: no value serves again, and without noise no model does."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from aggregator.store import models
from client_sdk import Event, RunResult
from client_sdk.contribution import TrainingJob
from dp.contracts import BudgetSpec, DeadlineSpec, TaskSpec
from tests.kits.quadratics import local_spec, quadratic_spec
from tests.kits.world import POLICY, TASK, Killed, World, kill_at, plain_spec

STRICT = dataclasses.replace(POLICY, repeat_without_noise=False)
SHORT = DeadlineSpec(report_s=60.0, masked_input_s=2.0)


class Zeros:
    """A contributor in any task of the quadratics; counts its calls, and adds no noise."""

    adds_local_noise = True

    def __init__(self) -> None:
        self.versions: list[int] = []

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        self.versions.append(job.version)
        values = {segment.name: np.zeros(segment.length) for segment in job.manifest.segments}
        if "weight" in values:
            values["weight"][:] = 1.0
        if "delta" in values:
            values["delta"][0] = 0.5  # so that each version is another model
        return values


class Fleet:
    """Devices of one world, with what each was told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.people: dict[str, Zeros] = {}
        self.events: dict[str, list[Event]] = {}
        self.seen = asyncio.Event()

    def run(
        self, name: str, *, task: str = TASK, rounds: int = 1, died: Callable[[Event], None] | None
    ) -> asyncio.Task[RunResult]:
        person = self.people.setdefault(name, Zeros())
        events = self.events.setdefault(name, [])

        def on_event(event: Event) -> None:
            events.append(event)
            self.seen.set()
            if died is not None:
                died(event)

        device = self.world.device(name, on_event, policy=STRICT)
        return asyncio.create_task(device.run_async(person, task=task, rounds=rounds))

    async def told(self, name: str, kind: str) -> Event:
        """Wait for an event of a device."""
        while True:
            for event in self.events.get(name, []):
                if event.kind == kind:
                    return event
            self.seen.clear()
            try:
                await asyncio.wait_for(self.seen.wait(), 10)
            except TimeoutError:
                raise AssertionError(self.events.get(name)) from None


async def aborted_cohort(fleet: Fleet) -> list[asyncio.Task[RunResult]]:
    """Of four devices two die before they mask: the cohort of the others is charged, and ends."""
    staying = [fleet.run(name, died=None) for name in ("d0", "d1")]
    dying = [fleet.run(name, died=kill_at("masking")) for name in ("d2", "d3")]
    assert [type(e) for e in await asyncio.gather(*dying, return_exceptions=True)] == [Killed] * 2
    for name in ("d0", "d1"):
        await fleet.told(name, "aborted")
    return staying


WITHOUT_NOISE = {
    "none": quadratic_spec("fedavg", deadlines=SHORT),
    "local": local_spec(deadlines=SHORT),
}


@pytest.mark.parametrize("mode", WITHOUT_NOISE)
async def test_without_noise_in_the_sum_a_device_gives_one_vector_per_model(
    tmp_path: Path, mode: str
) -> None:
    """It waits for the next version, told once and without asking all the time, and joins that."""
    async with World(tmp_path, WITHOUT_NOISE[mode]) as world:
        fleet = Fleet(world)
        staying = await aborted_cohort(fleet)
        assert not (tmp_path / "d0" / "contribution").exists()
        offers: list[str] = []

        async def gate(request: web.Request, body: bytes) -> None:
            if request.path.endswith("/offer"):
                offers.append(request.path)

        world.gate = gate
        waiting = [await fleet.told(name, "waiting") for name in ("d0", "d1")]
        assert [event.detail["reason"] for event in waiting] == ["model-given"] * 2
        fresh = [fleet.run(f"fresh{n}", rounds=2 if n < 2 else 1, died=None) for n in range(4)]
        results = await asyncio.gather(*staying, *fresh)
        assert [r.model_version for result in results[:2] for r in result.releases] == [1, 1]
        assert fleet.people["d0"].versions == [0, 1]
        assert sum(event.kind == "waiting" for event in fleet.events["d0"]) == 1
        assert len(offers) < 60
        outcomes = [release["outcome"] for release in (await world.view())["releases"]]
        assert outcomes == ["charged", "released", "released"]


async def test_a_task_that_ends_meanwhile_ends_the_run(tmp_path: Path) -> None:
    """The charged cohort was the last one: nobody waits for a version that never comes."""
    budget = BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=1)
    async with World(tmp_path, local_spec(deadlines=SHORT, budget=budget)) as world:
        fleet = Fleet(world)
        results = await asyncio.gather(*await aborted_cohort(fleet))
        assert [(r.finished, r.aborted, r.releases) for r in results] == [(True, 1, ())] * 2


async def test_with_noise_in_the_sum_a_new_contribution_is_computed_for_the_retry(
    tmp_path: Path,
) -> None:
    noisy = plain_spec(
        device_noise_multiplier=8.0,
        deadlines=DeadlineSpec(report_s=15.0, masked_input_s=3.0),  # the retry waits for it
        budget=BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=10),
    )
    async with World(tmp_path, noisy) as world:
        fleet = Fleet(world)
        staying = await aborted_cohort(fleet)
        more = [fleet.run(name, died=None) for name in ("d2", "d3")]
        await asyncio.gather(*staying, *more)
        assert [fleet.people[name].versions for name in ("d0", "d1")] == [[0, 0]] * 2


def other_task(**changes: Any) -> TaskSpec:
    return quadratic_spec("fedavg", task="other", **changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"training": {"local_learning_rate": 0.2}}, {"privacy": "local"}],
    ids=["same terms", "another rate", "another mode"],
)
async def test_the_same_model_in_another_task_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """A model file names its task; an aggregator may open another task on the same file."""
    store, first = models.store, []

    def same(blobs: Any, task: str, version: int, *rest: Any) -> models.Stored:
        stored = store(blobs, task, version, *rest)
        if version == 0:
            first.append(stored)
            return first[0]
        return stored

    monkeypatch.setattr(models, "store", same)
    async with World(tmp_path, quadratic_spec("fedavg")) as world:
        fleet = Fleet(world)
        await asyncio.gather(*(fleet.run(f"d{n}", died=None) for n in range(4)))
        if changes.get("privacy"):
            changes = {"noise_multiplier": 10.0, **changes}
            changes["budget"] = BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=4)
        await world.post("/v1/operator/tasks", other_task(**changes))
        again = fleet.run("d0", task="other", died=None)
        event = await fleet.told("d0", "waiting")
        assert (event.task, event.detail["reason"]) == ("other", "model-given")
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        assert fleet.people["d0"].versions == [0]


async def test_a_reset_of_the_session_forgets_no_given_model(tmp_path: Path) -> None:
    async with World(tmp_path, local_spec(deadlines=SHORT)) as world:
        fleet = Fleet(world)
        others = [fleet.run(f"d{n}", died=None) for n in (1, 2, 3)]
        with pytest.raises(Killed):
            await fleet.run("d0", died=kill_at("uploading"))
        device = world.device("d0", policy=STRICT)
        assert device.has_pending()
        assert device.reset_session()
        assert not device.has_pending()
        again = fleet.run("d0", died=None)
        assert (await fleet.told("d0", "waiting")).detail["reason"] == "model-given"
        await asyncio.gather(*others)
        more = [fleet.run(f"c{n}", died=None) for n in (1, 2, 3)]
        assert [release.model_version for release in (await again).releases] == [1]
        await asyncio.gather(*more)
        assert fleet.people["d0"].versions == [0, 1]
