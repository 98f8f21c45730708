"""When a device comes back: after it was left out, after an abort, at its public slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from client_sdk import Event, PrivacyPolicy, RunResult
from client_sdk.contribution import TrainingJob, zero_contribution
from dp.contracts import BudgetSpec, CohortSpec, DeadlineSpec
from secagg.context import LEFT_OUT
from tests.kits.device import fedsgd_spec
from tests.kits.world import TASK, Killed, OneHot, World, kill_at, plain_spec


async def run(
    world: World,
    number: int,
    rounds: int = 1,
    on_event: Callable[[Event], None] | None = None,
) -> RunResult:
    device = world.device(f"d{number}", on_event)
    return await device.run_async(OneHot(number), task=TASK, rounds=rounds)


async def test_a_device_that_was_away_for_a_round_is_in_the_next(tmp_path: Path) -> None:
    """It hears that it was left out, costs nobody anything, and trains on the new version."""
    spec = plain_spec(deadlines=DeadlineSpec(report_s=60.0, masked_input_s=2.0))
    async with World(tmp_path, spec) as world:
        others = [asyncio.create_task(run(world, n, rounds=2)) for n in (1, 2, 3)]
        with pytest.raises(Killed):
            await world.device("d0", kill_at("uploading")).run_async(OneHot(0), task=TASK)
        events: list[Event] = []
        await world.get_offer("d0", after_version=0)
        contributor = OneHot(0)
        device = world.device("d0", events.append)
        result = await device.run_async(contributor, task=TASK, rounds=1)
        await asyncio.gather(*others)
        assert (result.aborted, [r.release for r in result.releases]) == (1, [2])
        assert [job.version for job in contributor.jobs] == [1]
        aborted = next(event for event in events if event.kind == "aborted")
        assert aborted.detail["reason"] == LEFT_OUT
        assert (await world.sums()).tolist() == [1.0] * 4 + [0.0] * 12


async def test_a_slow_device_that_is_left_out_waits_for_the_version_to_come(
    tmp_path: Path,
) -> None:
    """The release is seconds away: training on the old version would be work for nothing."""
    spec = plain_spec(deadlines=DeadlineSpec(report_s=60.0, masked_input_s=2.0))
    async with World(tmp_path, spec) as world:
        went_on = asyncio.Event()

        def on_event(event: Event) -> None:
            if event.kind == "confirmed":
                went_on.set()

        others = [asyncio.create_task(run(world, n, 2, on_event)) for n in (1, 2, 3)]
        contributor, kinds = OneHot(0), []
        async for event in world.device("d0").participate(contributor, task=TASK, rounds=1):
            kinds.append(event.kind)
            if event.kind == "masking":
                await went_on.wait()  # a phone that goes to sleep
            if event.kind == "aborted":
                assert event.detail["reason"] == LEFT_OUT
        await asyncio.gather(*others)
        assert kinds.count("aborted") == 1
        assert [job.version for job in contributor.jobs] == [0, 1]
        assert kinds.count("released") == 1
        assert (await world.sums()).tolist() == [1.0] * 4 + [0.0] * 12


async def test_a_waiting_advert_is_given_up_when_the_model_moves_on(tmp_path: Path) -> None:
    """A device reports in while a cohort is under way, and is not in it."""
    spec = plain_spec(
        cohort=CohortSpec(size_min=3, size_max=4, survivors_min=3),
        deadlines=DeadlineSpec(report_s=1.0),
        budget=BudgetSpec(releases_max=50),
    )
    async with World(tmp_path, spec) as world:
        events: list[Event] = []
        reported = asyncio.Event()

        def late(event: Event) -> None:
            events.append(event)
            if event.kind == "reported":
                reported.set()

        late_run: asyncio.Task[RunResult] | None = None
        others = [asyncio.create_task(run(world, n, 50)) for n in (1, 2)]
        async for event in world.device("d0").participate(OneHot(0), task=TASK, rounds=50):
            if event.kind == "masking" and late_run is None:
                late_run = asyncio.create_task(run(world, 3, 1, late))
                await reported.wait()
            if late_run is not None and late_run.done():
                break
        assert late_run is not None
        result = await late_run
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        aborted = next(event for event in events if event.kind == "aborted")
        assert aborted.detail["reason"] in ("model-superseded", "session-stale")
        assert result.releases[0].release >= 2


async def test_report_in_happens_at_the_public_slot(tmp_path: Path) -> None:
    """Whoever trained for no time at all reports no earlier than the slot."""
    spec = fedsgd_spec(
        task=TASK,
        report_slot_s=1.0,
        cohort=CohortSpec(size_min=4, size_max=4, survivors_min=3),
        budget=BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=10),
    )
    policy = PrivacyPolicy(min_cohort=3, min_corrupt=0, max_epsilon=1e6, max_total_epsilon=1e6)

    class Instant:
        def contribute(self, job: TrainingJob) -> object:
            return zero_contribution(job.manifest)

    async with World(tmp_path, spec) as world:
        opened_at = (await world.get_offer("d0")).model.opened_at
        trained: list[float] = []
        reported: list[float] = []

        def on_event(event: Event) -> None:
            if event.kind == "trained":
                trained.append(time.time() - opened_at)
            if event.kind == "reported":
                reported.append(time.time() - opened_at)

        await asyncio.gather(
            *(
                world.device(f"d{n}", on_event, policy=policy).run_async(
                    Instant(), task=TASK, rounds=1
                )
                for n in range(4)
            )
        )
        assert len(trained) == len(reported) == 4
        assert all(at >= 1.0 for at in reported)
