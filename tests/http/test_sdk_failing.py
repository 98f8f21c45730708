"""A device whose trainer cannot serve a task: each run says so, and after three it stays away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from client_sdk import Event, RunResult, TaskRefusal
from client_sdk.contribution import TrainingJob
from client_sdk.maintenance import StateFolder
from tests.kits.world import TASK, World, plain_spec


class WrongModel:
    """Of another model than the task's: whatever its data, it cannot serve."""

    def contribute(self, job: TrainingJob) -> Any:
        raise TaskRefusal("base-model", "It is another one.", remedy="Load it.").at(tensor="a.b")


async def test_a_wrong_model_is_told_by_each_run_and_keeps_the_device_away(tmp_path: Path) -> None:
    events: list[Event] = []
    async with World(tmp_path, plain_spec()) as world:

        async def run() -> RunResult:
            events.clear()
            device = world.device("d0", events.append)
            return await device.run_async(WrongModel(), task=TASK)

        for _ in range(3):
            result = await run()
            (failure,) = result.failures
            assert (failure.reason, failure.tensor) == ("base-model", "a.b")
            assert (failure.given, failure.version) == ("nothing", 0)
            assert [refusal.reason for refusal in result.refusals] == ["base-model"]
            assert events[-1].kind == "refused"
            assert events[-1].detail["failure"] == "base-model"
            assert events[-1].detail["tensor"] == "a.b"
        stays = await run()
        assert [refusal.reason for refusal in stays.refusals] == ["training-failing"]
        assert stays.failures == ()
        assert [event.kind for event in events] == ["refused"]  # nothing was asked for
        device = world.device("d0")
        (failing,) = device.failing()
        assert (failing.task, failing.count, failing.last.reason) == (TASK, 3, "base-model")
        assert StateFolder.open(device.state_dir).try_again(TASK)
        assert not device.try_again(TASK)
        assert (await run()).failures[0].reason == "base-model"
        assert (await world.view())["waiting"] == 0
