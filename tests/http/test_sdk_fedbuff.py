"""FedBuff over HTTP: slow and fast devices in one sum, each update by the age of its model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk import Event, RunResult
from client_sdk.contribution import TrainingJob
from dp.contracts import BudgetSpec, CohortSpec, TaskSpec
from tests.kits.quadratics import LENGTH, quadratic_spec
from tests.kits.world import TASK, Killed, NoContributor, World, kill_at

COHORT = CohortSpec(size_min=4, size_max=4, survivors_min=3, versions_back=2, model_min=2)


def spec(**changes: Any) -> TaskSpec:
    return quadratic_spec("fedbuff", **{"cohort": COHORT, **changes})


class Slow:
    """Sends ``value`` in place 0 once it is let go; remembers which versions it trained on."""

    def __init__(self, value: float, ready: bool = True) -> None:
        self.value = value
        self.go = threading.Event()
        self.called = threading.Event()
        self.versions: list[int] = []
        if ready:
            self.go.set()

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        self.versions.append(job.version)
        self.called.set()
        assert self.go.wait(60)
        delta = np.zeros(LENGTH)
        delta[0] = self.value
        return {"delta": delta, "loss": np.zeros(1)}


async def run(world: World, name: str, contributor: Any, rounds: int = 1) -> RunResult:
    return await world.device(name).run_async(contributor, task=TASK, rounds=rounds)


async def until_training(*contributors: Slow) -> None:
    for contributor in contributors:
        assert await asyncio.to_thread(contributor.called.wait, 30)


async def test_a_slow_device_blocks_nobody_and_counts_by_its_age(tmp_path: Path) -> None:
    """Two slow devices train on version 0 until there is a version 2."""
    async with World(tmp_path, spec()) as world:
        slow = [Slow(8.0, ready=False) for _ in range(2)]
        waiting = [
            asyncio.create_task(run(world, f"slow{n}", device)) for n, device in enumerate(slow)
        ]
        await until_training(*slow)
        fast = [Slow(1.0) for _ in range(4)]
        await asyncio.gather(*(run(world, f"fast{n}", f, 2) for n, f in enumerate(fast)))
        assert (await world.sums())[0] == pytest.approx(2.0, abs=1e-3)  # nobody waited
        for device in slow:
            device.go.set()
        again = [Slow(1.0) for _ in range(2)]
        await asyncio.gather(*(run(world, f"again{n}", a) for n, a in enumerate(again)))
        results = await asyncio.gather(*waiting)
        assert [len(result.releases) for result in results] == [1, 1]
        assert [device.versions for device in slow] == [[0], [0]]
        expected = 2.0 + (2 * 1.0 + 2 * 8.0 / np.sqrt(3)) / 4
        assert (await world.sums())[0] == pytest.approx(expected, abs=1e-3)
        audit = world.audit()
        assert audit.verified
        entries = [release.entry for release in audit.tasks[0].releases]
        assert [entry.model_versions for entry in entries] == [(0,), (1,), (0, 2)]
        models = [entry.new_model_digest for entry in entries]
        assert entries[2].model_digests == (entries[0].model_digests[0], models[1])


async def test_the_weight_is_given_after_the_clip(tmp_path: Path) -> None:
    """An update far beyond the clip counts s times the clip, not the whole of it."""
    async with World(tmp_path, spec(update_clip=2.0)) as world:
        slow = [Slow(100.0, ready=False) for _ in range(2)]
        waiting = [asyncio.create_task(run(world, f"s{n}", s)) for n, s in enumerate(slow)]
        await until_training(*slow)
        fast = [Slow(0.0) for _ in range(4)]
        await asyncio.gather(*(run(world, f"fast{n}", f) for n, f in enumerate(fast)))
        for device in slow:
            device.go.set()
        await asyncio.gather(*waiting, *(run(world, f"again{n}", Slow(0.0)) for n in range(2)))
        expected = 2 * 2.0 / np.sqrt(2) / 4
        assert (await world.sums())[0] == pytest.approx(expected, rel=2e-3)


async def test_an_update_that_is_too_old_is_computed_anew(tmp_path: Path) -> None:
    async with World(tmp_path, spec()) as world:
        late = [Slow(0.0, ready=False), Slow(0.0, ready=False)]
        waiting = [asyncio.create_task(run(world, f"late{n}", d)) for n, d in enumerate(late)]
        await until_training(*late)
        fast = [Slow(0.0) for _ in range(4)]
        await asyncio.gather(*(run(world, f"fast{n}", f, 3) for n, f in enumerate(fast)))
        for device in late:
            device.go.set()
        others = [asyncio.create_task(run(world, f"more{n}", Slow(0.0))) for n in range(2)]
        results = await asyncio.gather(*waiting)
        await asyncio.gather(*others)
        assert [device.versions for device in late] == [[0, 3], [0, 3]]
        assert [(len(r.releases), r.aborted) for r in results] == [(1, 1), (1, 1)]


@pytest.mark.parametrize("kind", ["reported", "masking", "uploading", "confirmed"])
async def test_a_killed_device_repeats_its_weighed_update(tmp_path: Path, kind: str) -> None:
    async with World(tmp_path, spec()) as world:
        slow = [Slow(8.0, ready=False) for _ in range(2)]
        dying = world.device("s0", kill_at(kind))
        doomed = asyncio.create_task(dying.run_async(slow[0], task=TASK, rounds=1))
        waiting = asyncio.create_task(run(world, "s1", slow[1]))
        await until_training(*slow)
        fast = [Slow(0.0) for _ in range(4)]
        await asyncio.gather(*(run(world, f"fast{n}", f) for n, f in enumerate(fast)))
        for device in slow:
            device.go.set()
        others = [asyncio.create_task(run(world, f"again{n}", Slow(0.0))) for n in range(2)]
        with pytest.raises(Killed):
            await doomed
        await run(world, "s0", NoContributor())
        await asyncio.gather(waiting, *others)
        expected = 2 * 8.0 / np.sqrt(2) / 4
        assert (await world.sums())[0] == pytest.approx(expected, abs=1e-3)


async def test_a_model_that_was_never_released_is_refused_by_those_who_are_shown_it(
    tmp_path: Path,
) -> None:
    """Two of four devices are offered a crafted model under the present version's number."""
    import hashlib

    import safetensors.numpy
    import sqlalchemy as sa

    from aggregator.http.app import SERVICE
    from aggregator.store.schema import versions

    crafted = safetensors.numpy.save({"vector": np.ones(LENGTH, np.float32)})
    digest = hashlib.sha256(crafted).digest()
    async with World(tmp_path, spec()) as world:
        first = [Slow(0.0) for _ in range(4)]
        await asyncio.gather(*(run(world, f"first{n}", f) for n, f in enumerate(first)))
        core = world.app[SERVICE].core
        core.blobs.put_digest("models", crafted)
        async with core.database.write() as connection:  # version 1 becomes another model
            await connection.execute(
                sa.update(versions)
                .where(versions.c.task == TASK, versions.c.version == 1)
                .values(digest=digest.hex(), size_bytes=len(crafted))
            )
        events: list[Any] = []
        refused = asyncio.Event()

        def on_event(event: Event) -> None:
            events.append(event)
            if event.kind == "aborted":
                refused.set()

        tasks = [
            asyncio.create_task(c.run_async(Slow(0.0), task=TASK, rounds=1))
            for c in (world.device("d0", on_event), *(world.device(f"d{n}") for n in range(1, 4)))
        ]
        await asyncio.wait_for(refused.wait(), 60)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        aborted = next(event for event in events if event.kind == "aborted")
        assert aborted.detail["reason"] == "model-not-in-ledger"
        kinds = [event.kind for event in events]
        assert "uploading" not in kinds[: kinds.index("aborted")]


async def test_an_update_that_no_cohort_took_serves_a_later_one_and_is_not_computed_anew(
    tmp_path: Path,
) -> None:
    """The device dies when it has trained, and comes back when there is another version."""
    async with World(tmp_path, spec()) as world:
        peer = Slow(8.0, ready=False)
        waiting = asyncio.create_task(run(world, "peer", peer))
        with pytest.raises(Killed):
            await world.device("slow", kill_at("trained")).run_async(Slow(8.0), task=TASK, rounds=1)
        await until_training(peer)
        await asyncio.gather(*(run(world, f"fast{n}", Slow(0.0)) for n in range(4)))
        peer.go.set()
        others = [asyncio.create_task(run(world, f"again{n}", Slow(0.0))) for n in range(2)]
        result = await run(world, "slow", NoContributor())
        await asyncio.gather(waiting, *others)
        assert [release.model_version for release in result.releases] == [0]
        assert (await world.sums())[0] == pytest.approx(2 * 8.0 / np.sqrt(2) / 4, abs=1e-3)


async def test_waiting_updates_survive_a_restart_of_the_service(tmp_path: Path) -> None:
    async with World(tmp_path, spec()) as world:
        slow = [Slow(8.0, ready=False) for _ in range(2)]
        reported = asyncio.Event()

        def on_event(event: Event) -> None:
            if event.kind == "reported":
                reported.set()

        devices = [world.device("s0", on_event), world.device("s1")]
        waiting = [
            asyncio.create_task(d.run_async(s, task=TASK, rounds=1))
            for d, s in zip(devices, slow, strict=True)
        ]
        await until_training(*slow)
        await asyncio.gather(*(run(world, f"fast{n}", Slow(0.0)) for n in range(4)))
        slow[0].go.set()
        await asyncio.wait_for(reported.wait(), 60)
        await world.restart()
        slow[1].go.set()
        await asyncio.gather(*waiting, *(run(world, f"again{n}", Slow(0.0)) for n in range(2)))
        assert [device.versions for device in slow] == [[0], [0]]
        assert (await world.sums())[0] == pytest.approx(2 * 8.0 / np.sqrt(2) / 4, abs=1e-3)
        assert world.audit().verified


async def test_a_buffer_under_device_level_noise_is_accounted_like_any_release(
    tmp_path: Path,
) -> None:
    budget = BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=2)
    noisy = spec(device_noise_multiplier=8.0, budget=budget)

    class Noisy(Slow):
        def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
            return {"delta": super().contribute(job)["delta"]}

    async with World(tmp_path, noisy) as world:
        slow = [Noisy(1.0, ready=False) for _ in range(2)]
        waiting = [asyncio.create_task(run(world, f"s{n}", s)) for n, s in enumerate(slow)]
        await until_training(*slow)
        await asyncio.gather(*(run(world, f"fast{n}", Noisy(1.0)) for n in range(4)))
        for device in slow:
            device.go.set()
        await asyncio.gather(*waiting, *(run(world, f"again{n}", Noisy(1.0)) for n in range(2)))
        audit = world.audit()
        assert audit.verified
        assert [r.entry.model_versions for r in audit.tasks[0].releases] == [(0,), (0, 1)]
        assert audit.epsilon is not None
