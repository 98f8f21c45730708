"""The app stops, pauses and resumes its device at every step, from any thread: nobody waits, no
vector is given twice, and what was joined ends released."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from client_sdk import Client, Event, ParticipantSettings
from client_sdk.rounds import progress
from dp.contracts import BudgetSpec, DeadlineSpec, SegmentSpec
from tests.kits.world import TASK, Killed, NoContributor, OneHot, World, kill_at, plain_spec

LEFT = ("checked-in", "training", "trained", "reported", "roster", "shared")
EITHER = ("checked",)  # the masking set may be fixed before the word that the device leaves
COUNTED = ("masking", "uploading", "uploaded", "confirmed", "unmasked")
OTHER = "other"
LONG = DeadlineSpec(share_s=300, check_s=300, masked_input_s=300, confirm_s=300, unmask_s=300)
PATIENT = ParticipantSettings(abort_wait_first_s=0.05, opening_s=20.0, stop_wait_s=60.0)
QUIET_S = 100.0  # a cohort that waits for a deadline has failed its test


@asynccontextmanager
async def among_others(tmp_path: Path, **changes: Any) -> AsyncIterator[World]:
    """A task in which three more devices take part all the time; a released sum needs three."""
    spec = plain_spec(budget=BudgetSpec(releases_max=60), deadlines=LONG, **changes)
    async with asyncio.timeout(QUIET_S), World(tmp_path, spec) as world:
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK))
            for n in (1, 2, 3)
        ]
        try:
            yield world
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        assert world.audit().verified


def when(kind: str, act: Callable[[], object]) -> Callable[[Event], None]:
    """Act at the first event of this kind."""
    done = False

    def on_event(event: Event) -> None:
        nonlocal done
        if event.kind == kind and not done:
            done = True
            act()

    return on_event


async def released(client: Client, contributor: Any, **arguments: Any) -> None:
    result = await client.run_async(contributor, task=TASK, rounds=1, **arguments)
    assert (len(result.releases), result.stopped, result.pending) == (1, False, False)


async def test_a_stop_at_any_step_leaves_a_cohort_that_can_do_without_and_ends_one_that_cannot(
    tmp_path: Path,
) -> None:
    """Deadlines are minutes: a cohort that waited for the device that left would not end here."""
    async with among_others(tmp_path) as world:
        for kind in LEFT + EITHER + COUNTED:
            stop = threading.Event()
            device = world.device("d0", when(kind, stop.set), settings=PATIENT)
            result = await device.run_async(OneHot(0), task=TASK, stop=stop)
            assert (result.stopped, result.pending) == (True, False), kind
            assert kind in EITHER or len(result.releases) == (kind in COUNTED), kind
            if result.releases:
                assert (await world.sums()).tolist() == [1.0] * 4 + [0.0] * 12
        await released(world.device("d0"), OneHot(0))


class Pausing:
    """A device whose app pauses it at an event, and lifts the pause from a thread once it rests."""

    def __init__(self, world: World, kind: str, at_rest: Callable[[Event], None]) -> None:
        self.told: list[str] = []
        self.client = world.device("d0", self._on_event)
        self._pause = when(kind, self.client.pause)
        self._at_rest = at_rest

    def _on_event(self, event: Event) -> None:
        self.told.append(event.kind)
        self._pause(event)
        if event.kind == "paused":
            self._at_rest(event)
            threading.Thread(target=self.client.resume).start()


async def test_a_pause_rests_until_it_is_lifted_from_another_thread(tmp_path: Path) -> None:
    async with among_others(tmp_path) as world:
        for kind in (*LEFT[1:6:2], *EITHER, *COUNTED[1::2]):
            device = Pausing(world, kind, lambda event: None)
            result = await device.client.run_async(OneHot(0), task=TASK, rounds=1)
            assert len(result.releases) == 1, kind
            rested = "paused" in device.told
            assert kind in EITHER or rested == (kind in LEFT), kind
            if rested:
                assert device.told[device.told.index("paused") + 1] == "continued"
            assert (await world.sums()).tolist() == [1.0] * 4 + [0.0] * 12


@pytest.mark.parametrize("kind", ["training", "shared"])
async def test_a_device_that_is_killed_while_it_is_paused_ends_released(
    tmp_path: Path, kind: str
) -> None:
    async with among_others(tmp_path) as world:
        device = Pausing(world, kind, kill_at("paused"))
        with pytest.raises(Killed):
            await device.client.run_async(OneHot(0), task=TASK)
        await released(world.device("d0"), OneHot(0))


async def test_a_device_that_is_killed_after_a_pause_in_its_upload_is_resumed_and_released(
    tmp_path: Path,
) -> None:
    """It pauses once the cohort has ended; the kill comes before."""
    async with among_others(tmp_path) as world:
        kill = kill_at("uploaded")

        def on_event(event: Event) -> None:
            pause(event)
            kill(event)

        client = world.device("d0", on_event)
        pause = when("uploading", client.pause)
        with pytest.raises(Killed):
            await client.run_async(OneHot(0), task=TASK)
        again = world.device("d0")
        assert again.has_pending()
        assert len((await again.resume_async()).releases) == 1
        assert (await world.sums()).tolist() == [1.0] * 4 + [0.0] * 12


async def test_an_upload_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    events: list[Event] = []
    vector = (SegmentSpec(name="seen", length=60_000, clip=4.0),)
    async with World(tmp_path, plain_spec(2, 2, segments=vector)) as world:
        await asyncio.gather(
            world.device("d0", events.append).run_async(OneHot(0), task=TASK, rounds=1),
            world.device("d1").run_async(OneHot(1), task=TASK, rounds=1),
        )
    told = [event for event in events if event.kind == "progress"]
    steps = [event.detail for event in told if event.detail["what"] == "upload"]
    assert len(steps) >= 3
    done = [int(str(step["done"])) for step in steps]
    assert done == sorted(set(done))
    assert {step["total"] for step in steps} == {max(int(str(s["total"])) for s in steps)}
    assert all(event.session for event in told)
    assert done[-1] <= int(str(steps[-1]["total"]))


async def test_a_stop_that_cannot_wait_leaves_the_vector_to_a_later_run(tmp_path: Path) -> None:
    settings = ParticipantSettings(stop_wait_s=0.0, opening_s=20.0)
    async with among_others(tmp_path) as world:
        stop = threading.Event()
        events: list[Event] = []
        at_upload = when("uploading", stop.set)

        def on_event(event: Event) -> None:
            events.append(event)
            at_upload(event)

        device = world.device("d0", on_event, settings=settings)
        result = await device.run_async(OneHot(0), task=TASK, stop=stop)
        assert (result.stopped, result.pending) == (True, True)
        assert (events[-1].kind, events[-1].detail["pending"]) == ("stopped", True)
        assert len((await world.device("d0").resume_async()).releases) == 1
        assert (await world.sums()).tolist() == [1.0] * 4 + [0.0] * 12


async def test_a_run_that_is_stopped_or_paused_before_it_begins_asks_for_nothing(
    tmp_path: Path,
) -> None:
    async with World(tmp_path, plain_spec()) as world:
        asked: list[str] = []

        async def gate(request: web.Request, body: bytes) -> None:
            asked.append(request.path)

        world.gate = gate
        stop = threading.Event()
        events: list[str] = []

        def on_event(event: Event) -> None:
            events.append(event.kind)
            stop.set()

        client = world.device("d0", on_event)
        client.pause()

        def run() -> bool:
            return client.run(NoContributor(), task=TASK, stop=stop).stopped

        assert await asyncio.to_thread(run)
        assert await asyncio.to_thread(run)
        assert asked == []
        assert events == ["paused", "stopped", "stopped"]


async def test_a_session_of_another_task_gives_way_or_its_wait_is_told(tmp_path: Path) -> None:
    """Killed with its advert out, the device leaves for the other task. Once it counts, it says for
    how long that task may hold it."""
    for kind in ("reported", "uploading"):
        async with World(tmp_path / kind, plain_spec()) as world:
            await world.post("/v1/operator/tasks", plain_spec(1 + 1, 2, task=OTHER))
            first = [
                asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK))
                for n in ((1, 2, 3) if kind == "uploading" else ())
            ]
            with pytest.raises(Killed):
                await world.device("d0", kill_at(kind)).run_async(OneHot(0), task=TASK)
            told: list[Event] = []
            results = await asyncio.gather(
                world.device("d0", told.append).run_async(OneHot(0), task=OTHER, rounds=1),
                world.device("d4").run_async(OneHot(4), task=OTHER, rounds=1),
            )
            assert [len(result.releases) for result in results] == [1, 1]
            said = {event.kind: event for event in told if event.kind in ("aborted", "waiting")}
            if kind == "reported":
                assert said["aborted"].detail["reason"] == "other-task"
                assert (await world.view())["waiting"] == 0
            else:
                detail = said["waiting"].detail
                assert (detail["reason"], detail["pending"]) == ("other-task", TASK)
                assert 0 < int(str(detail["seconds"])) <= 5 * 120 + 20
            for task in first:
                task.cancel()
            await asyncio.gather(*first, return_exceptions=True)


async def test_a_device_leaves_only_once_its_advert_has_arrived(tmp_path: Path) -> None:
    """Stopped while the answer to its advert is on its way: nothing of it stays behind."""
    async with World(tmp_path, plain_spec()) as world:
        stop = threading.Event()

        async def gate(request: web.Request, body: bytes) -> None:
            if request.path == "/v1/adverts":
                stop.set()
                await asyncio.sleep(0.3)  # longer than until the stop is seen
            asked.append((request.method, request.path.count("/")))

        asked: list[tuple[str, int]] = []
        world.gate = gate
        result = await world.device("d0").run_async(OneHot(0), task=TASK, stop=stop)
        assert (result.stopped, result.pending) == (True, False)
        assert asked.index(("POST", 2)) < asked.index(("DELETE", 3))
        assert (await world.view())["waiting"] == 0
