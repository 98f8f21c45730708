"""One secret batch serves one cohort that reached masking; before that it may serve another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk import Event, PrivacyPolicy, RunResult
from client_sdk.contribution import TrainingJob, zero_contribution
from dp.accounting.statements import headline, lines
from dp.contracts import BudgetSpec, CohortSpec, DeadlineSpec, TaskSpec
from tests.kits.device import fedsgd_spec
from tests.kits.world import TASK, Killed, World, kill_at, plain_spec

NOISY = PrivacyPolicy(min_cohort=3, min_corrupt=0, max_epsilon=1e6, max_total_epsilon=1e6)


def secret_batches(**deadlines: float) -> TaskSpec:
    """Distributed noise with four devices of which three must survive, and short steps."""
    return fedsgd_spec(
        task=TASK,
        cohort=CohortSpec(size_min=4, size_max=4, survivors_min=3),
        deadlines=DeadlineSpec(**{"report_s": 60.0} | deadlines),
        budget=BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=10),
    )


class Batches:
    """Counts the batches it drew."""

    def __init__(self, fail: bool = False) -> None:
        self.drawn = 0
        self.fail = fail

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        self.drawn += 1
        if self.fail:
            raise MemoryError("the batch was too large")
        return zero_contribution(job.manifest)


async def a_round_after_an_abort(world: World, kind: str) -> tuple[list[Batches], list[RunResult]]:
    """Two of four devices die at ``kind``, so the cohort ends; then all four do one round."""
    contributors = [Batches() for _ in range(4)]
    aborted = [asyncio.Event() for _ in range(4)]

    def run(
        n: int, on_event: Callable[[Event], None] | None = None
    ) -> Coroutine[Any, Any, RunResult]:
        device = world.device(f"d{n}", on_event, policy=NOISY)
        return device.run_async(contributors[n], task=TASK, rounds=1)

    def staying(n: int) -> Callable[[Event], None]:
        return lambda event: aborted[n].set() if event.kind == "aborted" else None

    first = [asyncio.create_task(run(n, staying(n))) for n in (0, 1)]
    died = await asyncio.gather(*(run(n, kill_at(kind)) for n in (2, 3)), return_exceptions=True)
    assert [type(error) for error in died] == [Killed, Killed]
    await asyncio.gather(aborted[0].wait(), aborted[1].wait())
    results = await asyncio.gather(*first, run(2), run(3))
    assert all(len(result.releases) == 1 for result in results)
    return contributors, results


# After an abort a session is kept until its report has expired.
SHORT = {"report_s": 15.0, "share_s": 2.0, "check_s": 2.0, "masked_input_s": 2.0}


@pytest.mark.parametrize(("kind", "batches", "charged"), [("roster", 1, 0), ("masking", 2, 1)])
async def test_a_batch_is_drawn_anew_only_after_masking(
    tmp_path: Path, kind: str, batches: int, charged: int
) -> None:
    """An abort before step 3 costs nothing; one after it is charged, here and in the ledger."""
    async with World(tmp_path, secret_batches(**SHORT)) as world:
        contributors, results = await a_round_after_an_abort(world, kind)
        releases = (await world.view())["releases"]
        assert [contributor.drawn for contributor in contributors[:2]] == [batches] * 2
        assert [entry["outcome"] for entry in releases] == ["charged"] * charged + ["released"]
        assert world.audit().verified
        for result in results:  # a device counts every charge at the fewest survivors
            charges = charged + 1
            assert result.epsilon == pytest.approx(
                headline(lines(world.manifest(), charges)), rel=1e-9
            )
            assert result.epsilon >= releases[-1]["epsilon"]


async def test_a_failing_batch_is_in_the_cohort_like_any_other(tmp_path: Path) -> None:
    async with World(tmp_path, secret_batches()) as world:
        contributors = [Batches(fail=n == 0) for n in range(4)]
        events: list[Event] = []
        results = await asyncio.gather(
            *(
                world.device(f"d{n}", events.append if n == 0 else None, policy=NOISY).run_async(
                    contributors[n], task=TASK, rounds=1
                )
                for n in range(4)
            )
        )
        assert all(len(result.releases) == 1 for result in results)
        (trained,) = [event for event in events if event.kind == "trained"]
        assert "MemoryError" in str(trained.detail["failed"])
        assert results[0].failed == (trained.detail["failed"],)
        assert results[0].releases[0].failed == trained.detail["failed"]
        assert [result.failed for result in results[1:]] == [()] * 3


@pytest.mark.parametrize("kind", ["trained", "reported", "masking"])
async def test_a_failure_is_told_after_a_restart_too(tmp_path: Path, kind: str) -> None:
    """Zeros of an earlier process serve this one: as a contribution, or as a session."""
    async with World(tmp_path, secret_batches()) as world:
        contributors = [Batches(fail=n == 0) for n in range(4)]
        events: list[Event] = []

        def run(n: int, on_event: Callable[[Event], None] | None = None) -> Any:
            device = world.device(f"d{n}", on_event, policy=NOISY)
            return device.run_async(contributors[n], task=TASK, rounds=1)

        others = [asyncio.create_task(run(n)) for n in range(1, 4)]
        with pytest.raises(Killed):
            await run(0, kill_at(kind))
        result = await run(0, events.append)
        await asyncio.gather(*others)
        assert contributors[0].drawn == 1
        (failed,) = result.failed
        assert "MemoryError" in failed
        told = {event.kind: event.detail.get("failed") for event in events}
        assert told["trained" if kind == "trained" else "resumed"] == failed


async def test_a_failing_contributor_without_noise_stays_away(tmp_path: Path) -> None:
    """The error is told to the app, nothing is posted, and the third failure in a row is final."""
    async with World(tmp_path, plain_spec()) as world:
        events: list[Event] = []

        def watch(event: Event) -> None:
            events.append(event)
            if event.kind == "aborted":
                raise Killed

        with pytest.raises(Killed):
            await world.device("d0", watch).run_async(Batches(fail=True), task=TASK, rounds=1)
        assert [event.kind for event in events] == ["checked-in", "training", "aborted"]
        assert events[-1].detail["reason"] == "contribution-failed"
        assert "MemoryError" in str(events[-1].detail["message"])
        assert (await world.view())["waiting"] == 0
