"""What the app wants of a run reaches its contributor within one pass, and the slot shows none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk import Client, Conditions, PrivacyPolicy, RunningLoopError
from client_sdk.contribution import TrainingJob, zero_contribution
from client_sdk.enrolment import create_bundle
from client_sdk.errors import ContributionError, PolicyRefusal
from client_sdk.rounds import progress, steering
from client_sdk.rounds.contributing import Training
from client_sdk.rounds.steering import Interrupted, Steering
from client_sdk.threads import beside
from tests.kits.contributing import Runs, Setting, checkin_of
from tests.kits.device import PARTNER, TASK_KEY, fedsgd_spec, make_manifest, sum_spec

VERIFIER = "ledger.test+b311a02c+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
PLAIN = make_manifest(sum_spec(), VERIFIER)
SLOTTED = make_manifest(fedsgd_spec(report_slot_s=60.0), VERIFIER)


class Passes:
    """A contributor of many passes that looks at ``job.stop`` before each, as LoraTrainer does."""

    def __init__(self) -> None:
        self.done = 0
        self.after = 0  # passes that began after the stop
        self.ended = threading.Event()
        self.at: dict[int, Callable[[], object]] = {}  # pass -> what happens while it is at work

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        try:
            for number in range(10_000):
                if job.stop.is_set():
                    raise ContributionError("training-stopped", "The result is no longer wanted.")
                if number in self.at:
                    self.at[number]()
                    assert job.stop.wait(20)  # a pass is long: the word comes while it is at work
                job.progress(number, 10_000)
                self.done += 1
        finally:
            self.ended.set()
        return zero_contribution(job.manifest)


async def interrupted(setting: Setting, training: Training, error: type[Exception]) -> Any:
    work = setting.device.steering.free(training.contribution(checkin_of(PLAIN)), conditions=True)
    with pytest.raises(error) as caught:
        await work
    await training.settled()
    return caught.value


@pytest.mark.parametrize("wish", ["stopped", "paused"])
async def test_training_ends_within_the_pass_in_which_the_app_says_so(
    tmp_path: Path, wish: str
) -> None:
    setting, passes, said = Setting(tmp_path), Passes(), threading.Event()
    passes.at[3] = said.set
    own = {"stop": said} if wish == "stopped" else {"pause": said}
    setting.device.steering = Steering(**own)  # type: ignore[arg-type]
    error = await interrupted(setting, Training(setting.device, passes), Interrupted)
    assert error.reason == wish
    assert passes.ended.is_set()
    assert passes.done == 4
    assert setting.device.journal.load_contribution() is None


async def test_a_condition_that_fails_in_training_ends_it_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "CONDITIONS_S", 0.0)
    plugged = threading.Event()
    plugged.set()
    conditions = Conditions(charging=plugged.is_set, cool=lambda: True)
    setting, passes = Setting(tmp_path, may_train=conditions), Passes()
    setting.device.steering = Steering(demand_now=setting.device.policy.demand_now)
    passes.at[3] = plugged.clear
    refusal = await interrupted(setting, Training(setting.device, passes), PolicyRefusal)
    assert (refusal.reason, refusal.found) == ("not-now", "charging")
    assert passes.done == 4


def test_conditions_that_nobody_gave_are_not_asked() -> None:
    assert Conditions()()
    assert Conditions(idle=lambda: False, unmetered=lambda: False).missed == ("unmetered", "idle")
    with pytest.raises(PolicyRefusal, match="not-now"):
        PrivacyPolicy(may_train=Conditions(idle=lambda: False)).demand_now()


@pytest.mark.parametrize("ready", [True, False])
async def test_what_a_pause_or_a_kill_meets_before_its_slot_is_forgotten_whether_ready_or_not(
    tmp_path: Path, ready: bool
) -> None:
    """Else either would let small batches through and have large ones drawn anew."""
    setting, reached = Setting(tmp_path), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def sleep(seconds: float) -> None:
        reached.set()
        await asyncio.sleep(20)

    def work(job: TrainingJob) -> Mapping[str, np.ndarray]:
        if not ready:
            loop.call_soon_threadsafe(reached.set)
            assert job.stop.wait(20)
        return zero_contribution(job.manifest)

    setting.device.sleep = sleep
    training = Training(setting.device, Runs(work))
    reporting = asyncio.create_task(training.contribution(checkin_of(SLOTTED)))
    await reached.wait()
    assert setting.device.journal.load_contribution() is None  # what a kill would leave
    reporting.cancel()
    await asyncio.gather(reporting, return_exceptions=True)
    await training.settled()
    assert setting.device.journal.load_contribution() is None


async def test_what_is_reported_at_its_slot_is_journalled(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    training = Training(setting.device, Runs(lambda job: zero_contribution(job.manifest)))
    found = await training.contribution(checkin_of(SLOTTED))
    kept = setting.device.journal.load_contribution()
    assert kept is not None
    assert kept.name == found.name


async def test_progress_is_told_at_a_bounded_rate_with_the_seconds_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.02)
    setting = Setting(tmp_path)
    told = asyncio.Event()
    deliver = setting.device.deliver

    async def telling(event: Any) -> None:
        await deliver(event)
        told.set()

    setting.device.deliver = telling
    meter = progress.Progress(setting.device, "upload", "stats", "ab")

    async def work() -> str:
        for done in range(1, 1_001):
            setting.clock.now += 0.5
            meter.note(done, 4_000)
        await told.wait()
        return "done"

    assert await meter.during(work()) == "done"
    assert [(event.kind, event.session, dict(event.detail)) for event in setting.events] == [
        (
            "progress",
            "ab",
            {"what": "upload", "done": 1_000, "total": 4_000, "seconds_left": 1_500.0},
        )
    ]


@pytest.mark.parametrize("quick", [True, False])
async def test_a_bar_that_has_begun_comes_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.01)
    setting = Setting(tmp_path)
    begun = asyncio.Event()
    deliver = setting.device.deliver

    async def telling(event: Any) -> None:
        await deliver(event)
        begun.set()

    setting.device.deliver = telling
    meter = progress.Progress(setting.device, "training", "stats")

    async def work() -> None:
        meter.note(1, 3)
        if not quick:
            await begun.wait()
        meter.note(3, 3)

    await meter.during(work())
    told = [(event.detail["done"], event.detail["total"]) for event in setting.events]
    assert told == ([] if quick else [(1, 3), (3, 3)])


async def test_what_the_app_raises_at_a_progress_event_ends_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.001)
    setting = Setting(tmp_path)

    async def deliver(event: Any) -> None:
        raise KeyError(event.kind)

    setting.device.deliver = deliver
    meter = progress.Progress(setting.device, "download", "stats")
    meter.note(1, 2)
    with pytest.raises(KeyError, match="progress"):
        await meter.during(asyncio.sleep(20))


async def test_a_result_that_is_there_when_the_watch_ends_the_work_is_not_lost() -> None:
    async def work() -> int:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            return 7
        return 0

    async def watch() -> None:
        raise Interrupted("stopped")

    assert await beside(work(), watch()) == 7


async def test_a_call_that_blocks_names_the_one_to_await(tmp_path: Path) -> None:
    bundle = create_bundle("http://127.0.0.1:9", TASK_KEY, VERIFIER, PARTNER.seed, 4_000_000_000)
    client = Client.from_bundle(bundle, state_dir=tmp_path)
    for call, arguments in ((client.run, {"task": "t"}), (client.recover_account, {})):
        with pytest.raises(RunningLoopError) as caught:
            call(*((object(),) if arguments else ()), **arguments)  # type: ignore[arg-type,operator]
        assert caught.value.reason == "loop-running"
        assert f"{call.__name__}_async" in str(caught.value.remedy)
    client.pause()
    assert client.resume().releases == ()  # lifts the pause, from any thread
    with pytest.raises(RunningLoopError, match="loop-running"):
        client.resume()
