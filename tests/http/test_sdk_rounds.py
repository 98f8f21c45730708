"""Whole rounds over HTTP against the real service: exact sums, whatever happens to devices."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aggregator.cohorts import releasing
from client_sdk import RunResult
from client_sdk.training.dataset import Cut, LeftOut
from dp.contracts import DeadlineSpec
from dp.ledger.records import ReleaseEntry
from tests.kits.world import TASK, Killed, NoContributor, OneHot, World, kill_at, plain_spec

DEVICES = 4


def one_hot(*numbers: int) -> list[float]:
    return [float(n in numbers) for n in range(16)]


async def run(world: World, number: int, rounds: int = 1) -> RunResult:
    device = world.device(f"d{number}")
    return await device.run_async(OneHot(number), task=TASK, rounds=rounds)


async def test_two_rounds_sum_exactly_and_every_receipt_is_proven(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(DEVICES)) as world:
        results = await asyncio.gather(*(run(world, n, rounds=2) for n in range(DEVICES)))
        assert (await world.sums()).tolist() == one_hot(0, 1, 2, 3)
        for result in results:
            assert [r.release for r in result.releases] == [1, 2]
            assert [r.model_version for r in result.releases] == [0, 1]
            assert (result.aborted, result.refusals) == (0, ())
        audit = world.audit()
        assert (audit.verified, audit.releases) == (True, 2)


async def test_a_record_with_other_sets_than_were_confirmed_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An aggregator that writes a larger masking set would claim more noise than there is."""
    honest = releasing.entry_of

    def lying(*arguments: Any) -> ReleaseEntry:
        entry = honest(*arguments)
        return msgspec.structs.replace(entry, masking_set_size=entry.masking_set_size + 1)

    monkeypatch.setattr(releasing, "entry_of", lying)
    async with World(tmp_path, plain_spec(DEVICES)) as world:
        found = await asyncio.gather(
            *(run(world, n) for n in range(DEVICES)), return_exceptions=True
        )
    assert [getattr(error, "reason", error) for error in found] == ["release-mismatch"] * DEVICES


async def test_events_come_in_order_and_the_app_sees_each_before_the_next(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(DEVICES)) as world:
        others = [asyncio.create_task(run(world, n)) for n in range(1, DEVICES)]
        kinds = []
        async for event in world.device("d0").participate(OneHot(0), task=TASK, rounds=1):
            kinds.append(event.kind)
            assert event.to_json().startswith('{"event": "' + event.kind)
        await asyncio.gather(*others)
    assert kinds == [
        "checked-in",
        "training",
        "trained",
        "reported",
        "roster",
        "shared",
        "checked",
        "masking",
        "uploading",
        "uploaded",
        "confirmed",
        "unmasked",
        "released",
    ]


EVERY_STEP = [
    "checked-in",
    "training",
    "trained",
    "reported",
    "roster",
    "shared",
    "checked",
    "masking",
    "uploading",
    "uploaded",
    "confirmed",
    "unmasked",
    "released",
]


@pytest.mark.parametrize("kind", EVERY_STEP)
async def test_a_device_killed_at_any_step_goes_on_in_another_process(
    tmp_path: Path, kind: str
) -> None:
    """It is counted exactly once, and what was computed is not computed again."""
    async with World(tmp_path, plain_spec(DEVICES)) as world:
        others = [asyncio.create_task(run(world, n)) for n in range(1, DEVICES)]
        with pytest.raises(Killed):
            await world.device("d0", kill_at(kind)).run_async(OneHot(0), task=TASK, rounds=1)
        again = world.device("d0")
        pending = kind not in ("checked-in", "training", "trained", "released")
        assert again.has_pending() == pending
        if kind == "released":
            result = RunResult()
        elif kind in ("checked-in", "training"):
            result = await again.run_async(OneHot(0), task=TASK, rounds=1)
        else:
            result = await again.run_async(NoContributor(), task=TASK, rounds=1)
        await asyncio.gather(*others)
        assert (await world.sums()).tolist() == one_hot(0, 1, 2, 3)
        assert len(result.releases) == (kind != "released")
        assert not again.has_pending()
        assert world.audit().verified


@pytest.mark.parametrize("kind", ["reported", "masking", "confirmed"])
async def test_a_pending_session_is_finished_without_a_contributor(
    tmp_path: Path, kind: str
) -> None:
    async with World(tmp_path, plain_spec(DEVICES)) as world:
        others = [asyncio.create_task(run(world, n)) for n in range(1, DEVICES)]
        with pytest.raises(Killed):
            await world.device("d0", kill_at(kind)).run_async(OneHot(0), task=TASK, rounds=1)
        result = await world.device("d0").resume_async()
        await asyncio.gather(*others)
        assert len(result.releases) == 1
        assert (await world.sums()).tolist() == one_hot(0, 1, 2, 3)


async def test_a_device_killed_at_every_step_in_turn_is_counted_once(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(DEVICES)) as world:
        others = [asyncio.create_task(run(world, n)) for n in range(1, DEVICES)]
        for kind in EVERY_STEP[:-1]:
            with pytest.raises(Killed):
                await world.device("d0", kill_at(kind)).run_async(OneHot(0), task=TASK, rounds=1)
        result = await world.device("d0").resume_async()
        await asyncio.gather(*others)
        assert len(result.releases) == 1
        assert (await world.sums()).tolist() == one_hot(0, 1, 2, 3)


async def test_nothing_pending_is_nothing_to_resume(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(DEVICES)) as world:
        device = world.device("d0")
        assert not device.has_pending()
        assert await device.resume_async() == RunResult()


async def test_leaving_the_loop_is_a_clean_stop(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(DEVICES)) as world:
        device = world.device("d0")
        stream = device.participate(OneHot(0), task=TASK, rounds=1)
        async for event in stream:
            if event.kind == "reported":
                break
        await stream.aclose()
        assert device.has_pending()
        others = [asyncio.create_task(run(world, n)) for n in range(1, DEVICES)]
        result = await world.device("d0").resume_async()
        await asyncio.gather(*others)
        assert len(result.releases) == 1


async def test_the_sum_is_that_of_the_survivors(tmp_path: Path) -> None:
    """One device dies with its vector unsent and stays away; the others' sum is exact."""
    spec = plain_spec(DEVICES, deadlines=DeadlineSpec(report_s=60.0, masked_input_s=2.0))
    async with World(tmp_path, spec) as world:
        others = [asyncio.create_task(run(world, n)) for n in range(1, DEVICES)]
        with pytest.raises(Killed):
            await world.device("d0", kill_at("uploading")).run_async(OneHot(0), task=TASK, rounds=1)
        results = await asyncio.gather(*others)
        assert (await world.sums()).tolist() == one_hot(1, 2, 3)
        assert all(len(result.releases) == 1 for result in results)
        left_out = await world.device("d0").resume_async()
        assert (left_out.aborted, left_out.releases) == (1, ())


async def test_examples_that_count_as_zero_are_told_to_the_app_and_to_nobody_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Leaves(OneHot):
        left_out = (LeftOut(3, "example-label", "The model has no such class."),)
        cut = (Cut(2, 987_654_321, 64),)

    async with World(tmp_path, plain_spec(DEVICES)) as world:
        others = [asyncio.create_task(run(world, n)) for n in range(1, DEVICES)]
        result = await world.device("d0").run_async(Leaves(0), task=TASK, rounds=1)
        assert (result.left_out, result.cut) == (Leaves.left_out, Leaves.cut)
        for other in others:
            finished = await other
            assert (finished.left_out, finished.cut, finished.used) == ((), (), None)
    kept = [path.read_bytes() for path in (tmp_path / "service").rglob("*") if path.is_file()]
    logged = capfd.readouterr()
    assert any(TASK.encode() in part for part in kept)
    assert "cohort-ended" in logged.out + logged.err
    for secret in (b"example-label", b"987654321", (987_654_321).to_bytes(4, "big")):
        assert not any(secret in part for part in [*kept, str(logged).encode()])
