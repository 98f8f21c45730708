"""Examples that serve in turn, through the real device and a real aggregator.

Every example of the device ``d0`` has a coordinate of its own, so what is masked tells which of
them are in a sum.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.cohorts import strikes
from client_sdk import Event, PrivacyPolicy, RunResult
from client_sdk.accounts.data_door import DataChoice
from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.accounts.recovery import LedgerRead, plan_second_look
from client_sdk.contribution import TrainingJob, zero_contribution
from client_sdk.errors import LedgerRefusal
from client_sdk.rounds import checkin, participant
from client_sdk.rounds.contributing import Training
from client_sdk.state.journal import Contribution, Journal
from client_sdk.state.keystore import open_storage_key
from dp.contracts import DeadlineSpec
from dp.example_sum import ExampleSum
from dp.schedule import participations, schedule_of
from tests.kits.quadratics import Quadratic, local_spec
from tests.kits.scheduled import scheduled_spec
from tests.kits.world import TASK, Killed, World, kill_at

pytestmark = pytest.mark.slow
DEVICES, PERIOD, EXAMPLES = 4, 4, 12
NOISY = PrivacyPolicy(min_cohort=3, min_corrupt=0, max_epsilon=1e6, max_total_epsilon=1e6)
DEADLINES = DeadlineSpec(report_s=60.0, masked_input_s=60.0)


class Canaries:
    """Clips and sums the examples of the job's part; example i is along coordinate i."""

    schedules_examples = True

    def __init__(self) -> None:
        self.jobs: list[TrainingJob] = []

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        self.jobs.append(job)
        job.check_list([b"example %d" % place for place in range(EXAMPLES)])
        total = ExampleSum(job.manifest, np.random.default_rng(0).bytes)
        for place in job.places(EXAMPLES):
            total.add(np.eye(EXAMPLES)[place])
        return total.values()

    @property
    def parts(self) -> list[int | None]:
        return [job.part for job in self.jobs]


class Persons(Canaries):
    """Each of six persons has two rows, and their order is another one in each job."""

    groups_units = True

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        owners = [place // 2 for place in range(EXAMPLES)]
        rows = owners[len(self.jobs) :] + owners[: len(self.jobs)]
        self.jobs.append(job)
        total = ExampleSum(job.manifest, np.random.default_rng(0).bytes)
        for summed in self.summed(job, rows):
            total.add(sum(np.eye(EXAMPLES)[person] for person in summed) + np.zeros(EXAMPLES))
        return total.values()

    def summed(self, job: TrainingJob, rows: list[int]) -> list[list[int]]:
        """Of each row that is summed its person, those of one clip together."""
        groups = job.groups([f"person {person}" for person in rows])
        return [[rows[row] for row in groups[place]] for place in job.places(len(groups))]


class RowsApart(Persons):
    """The weaker device: each row has a part and a clip of its own."""

    def summed(self, job: TrainingJob, rows: list[int]) -> list[list[int]]:
        return [[rows[place]] for place in job.places(len(rows))]


class Others:
    """Devices whose examples are of no interest."""

    schedules_examples = groups_units = True

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        return zero_contribution(job.manifest)


@pytest.fixture(autouse=True)
def no_strikes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service holds nobody back for the cohorts that are made to fail here."""
    monkeypatch.setattr(strikes, "score", lambda *_: 0.0)


@pytest.fixture
def masked(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, set[int]]:
    """By cohort, the examples that were encoded for it: nothing else is added to its sum."""
    found: dict[bytes, set[int]] = {}
    real = participant.encoded

    def encoded(manifest: Any, values: Any, *, ctx: bytes, **rest: Any) -> Any:
        examples = set(np.flatnonzero(values["gradient"]).tolist())
        if examples:
            found.setdefault(ctx, set()).update(examples)
        return real(manifest, values, ctx=ctx, **rest)

    monkeypatch.setattr(participant, "encoded", encoded)
    return found


def most_sums(masked: Mapping[bytes, set[int]]) -> int:
    """Sums that hold the example that is in most of them."""
    return max(Counter(place for places in masked.values() for place in places).values())


def spec(**changes: Any) -> Any:
    return scheduled_spec(DEVICES, task=TASK, deadlines=DEADLINES, **changes)


class Uploads:
    """Waits until so many vectors have come."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.done = asyncio.Event()

    def count(self, event: Event) -> None:
        if event.kind == "uploaded":
            self.left -= 1
            if self.left == 0:
                self.done.set()


class Fleet:
    """``d0`` with the canaries, and three others; each run of one is a new process."""

    def __init__(self, world: World, canaries: Canaries | None = None) -> None:
        self.world = world
        self.canaries = canaries or Canaries()

    async def run(
        self,
        number: int,
        on_event: Callable[[Event], None] | None = None,
        rounds: int | None = 1,
        **parts: Any,
    ) -> RunResult:
        device = self.world.device(f"d{number}", on_event, policy=NOISY, **parts)
        contributor = self.canaries if number == 0 else Others()
        return await device.run_async(contributor, task=TASK, rounds=rounds)

    async def release(self) -> list[RunResult]:
        return await asyncio.gather(*(self.run(number) for number in range(DEVICES)))

    async def abort(self) -> None:
        """A charge without a release: two devices die when they have paid and masked."""
        for number in (2, 3):  # what they left before has ended
            await self.world.device(f"d{number}", policy=NOISY).resume_async()
        sent = Uploads(2)

        def stay(event: Event) -> None:
            sent.count(event)
            if event.kind == "aborted":
                raise Killed

        runs = [asyncio.create_task(self.run(n, stay)) for n in (0, 1)]
        runs += [asyncio.create_task(self.run(n, kill_at("uploading"))) for n in (2, 3)]
        await asyncio.wait(runs[2:])
        await sent.done.wait()
        self.pass_deadline()
        died = await asyncio.gather(*runs, return_exceptions=True)
        assert [type(error) for error in died] == [Killed] * DEVICES

    def pass_deadline(self) -> None:
        """Who has not sent is late."""
        self.world.ahead_s += DEADLINES.masked_input_s + 1

    async def charged(self) -> int:
        return len((await self.world.view())["releases"])

    def journal(self, number: int = 0) -> Journal:
        folder = self.world.folder / f"d{number}"
        return Journal(folder, open_storage_key(folder))

    def count(self, number: int = 0) -> int:
        account = DeviceAccount(self.journal(number), NOISY.max_delta)
        return account.charged(schedule_of(self.world.manifest()))


async def test_a_canary_is_in_no_more_sums_than_are_counted(
    tmp_path: Path, masked: dict[bytes, set[int]]
) -> None:
    """Eight charges, three of them without a release."""
    async with World(tmp_path, spec()) as world:
        fleet = Fleet(world)
        for number, released in enumerate((1, 0, 1, 1, 0, 0, 1, 1), 1):
            await (fleet.release() if released else fleet.abort())
            assert await fleet.charged() == fleet.count() == number == len(masked)
            assert most_sums(masked) == participations(number, PERIOD)
        assert fleet.canaries.parts == [0, 1, 2, 3] * 2
        held = Counter(place for places in masked.values() for place in places)
        assert held == dict.fromkeys(range(EXAMPLES), 2)
        assert world.audit().verified


async def test_all_rows_of_a_person_are_in_no_more_sums_than_are_counted(
    tmp_path: Path, masked: dict[bytes, set[int]]
) -> None:
    """Each charge by a new process, over rows in another order; one charge without a release."""
    async with World(tmp_path, spec(unit="person", unit_rows_max=2)) as world:
        fleet = Fleet(world, Persons())
        for number, released in enumerate((1, 0, 1, 1, 1), 1):
            await (fleet.release() if released else fleet.abort())
            assert await fleet.charged() == fleet.count() == number
            assert most_sums(masked) == participations(number, PERIOD)
        assert set().union(*masked.values()) == set(range(EXAMPLES // 2))
        (result,) = world.audit().tasks
        assert {statement.unit for statement in result.lines} == {"person"}


async def test_rows_of_a_person_that_are_scheduled_apart_exceed_the_bound(
    tmp_path: Path, masked: dict[bytes, set[int]]
) -> None:
    async with World(tmp_path, spec(unit="person", unit_rows_max=2)) as world:
        fleet = Fleet(world, RowsApart())
        for _ in range(PERIOD):
            await fleet.release()
        assert most_sums(masked) > participations(PERIOD, PERIOD)


async def test_a_count_that_moves_on_success_alone_exceeds_the_bound(
    tmp_path: Path, masked: dict[bytes, set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above would see of a device that retries the part of an aborted cohort."""

    async with World(tmp_path, spec()) as world:
        fleet = Fleet(world)
        released = 0
        monkeypatch.setattr(checkin, "count_of", lambda device, manifest: released)
        monkeypatch.setattr(participant, "demand_count", lambda *_: None)
        await fleet.abort()
        await fleet.release()
        assert await fleet.charged() == 2
        assert most_sums(masked) == 2 > participations(2, PERIOD)


async def test_a_retry_that_is_not_counted_exceeds_the_bound(
    tmp_path: Path, masked: dict[bytes, set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that gives the contribution of an aborted cohort once more."""

    def kept(training: Training, _: object) -> Contribution | None:
        return training._device.journal.load_contribution()

    async with World(tmp_path, spec()) as world:
        fleet = Fleet(world)
        monkeypatch.setattr(Training, "reusable", kept)
        monkeypatch.setattr(Journal, "drop_contribution", lambda self: None)
        monkeypatch.setattr(participant, "demand_count", lambda *_: None)
        monkeypatch.setattr(DeviceAccount, "served", lambda *_: None)
        await fleet.abort()
        await fleet.release()
        assert await fleet.charged() == 2
        assert len(fleet.canaries.jobs) == 1
        assert most_sums(masked) == 2 > participations(2, PERIOD)


@pytest.mark.parametrize(
    "kind",
    [
        "training",  # before the contributor is called
        "trained",  # its contribution is journalled
        "reported",
        "checked",
        "masking",  # before the debit
        "uploading",  # after it
    ],
)
async def test_a_kill_moves_no_count(
    tmp_path: Path, masked: dict[bytes, set[int]], kind: str
) -> None:
    """The same cohort takes the device back: it paid once, and goes on with the next part."""
    async with World(tmp_path, spec()) as world:
        fleet = Fleet(world)
        others = [asyncio.create_task(fleet.run(number)) for number in (1, 2, 3)]
        with pytest.raises(Killed):
            await fleet.run(0, kill_at(kind))
        result = await fleet.run(0)
        await asyncio.gather(*others)
        assert [release.part for release in result.releases] == [0]
        again = (await fleet.release())[0]
        assert [release.part for release in again.releases] == [1]
        assert fleet.canaries.parts == [0, 1]
        assert (fleet.count(), most_sums(masked)) == (2, 1)


async def test_a_kill_between_debit_and_mask_pays_once(
    tmp_path: Path, masked: dict[bytes, set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(tmp_path, spec()) as world:
        fleet = Fleet(world)
        real, killed = participant.Participant._encode, [True]

        def encode(self: Any, *arguments: Any) -> Any:
            if self._device.bundle is world.bundle("d0") and killed and killed.pop():
                raise Killed
            return real(self, *arguments)

        monkeypatch.setattr(participant.Participant, "_encode", encode)
        others = [asyncio.create_task(fleet.run(number)) for number in (1, 2, 3)]
        with pytest.raises(Killed):
            await fleet.run(0)
        assert (fleet.count(), masked) == (1, {})
        result = await fleet.run(0)
        await asyncio.gather(*others)
        assert [release.part for release in result.releases] == [0]
        await fleet.release()
        assert fleet.canaries.parts == [0, 1]
        assert (fleet.count(), most_sums(masked)) == (2, 1)


async def test_what_was_debited_never_serves_again_though_nothing_was_sent(
    tmp_path: Path, masked: dict[bytes, set[int]]
) -> None:
    """The device dies when it has paid; the others' cohort ends without it."""
    async with World(tmp_path, spec()) as world:
        fleet, sent = Fleet(world), Uploads(3)
        others = [asyncio.create_task(fleet.run(number, sent.count)) for number in (1, 2, 3)]
        with pytest.raises(Killed):
            await fleet.run(0, kill_at("uploading"))
        await sent.done.wait()
        fleet.pass_deadline()
        assert all(len(result.releases) == 1 for result in await asyncio.gather(*others))
        results = await fleet.release()
        assert [release.part for release in results[0].releases] == [1]
        assert fleet.canaries.parts == [0, 1]
        assert (fleet.count(), most_sums(masked)) == (2, 1)


class Back:
    """What a device tells that begins anew beside an open cohort."""

    def __init__(self) -> None:
        self.reported = asyncio.Event()
        self.aborts: list[object] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "reported":
            self.reported.set()
        if event.kind == "aborted":
            self.aborts.append(event.detail["reason"])


async def test_a_folder_that_is_lost_while_its_first_cohort_is_open_counts_that_one(
    tmp_path: Path, masked: dict[bytes, set[int]]
) -> None:
    """It looks like a new device: no record names it yet. At its next debit one does."""
    async with World(tmp_path, spec()) as world:
        fleet, first, second, back = Fleet(world), Uploads(2), Uploads(5), Back()
        aborted = asyncio.Event()

        def other(event: Event) -> None:
            first.count(event)
            second.count(event)
            if event.kind == "aborted":
                aborted.set()

        others = [asyncio.create_task(fleet.run(n, other, rounds=None)) for n in (2, 3)]
        died = [fleet.run(n, kill_at("uploading")) for n in (0, 1)]
        ended = await asyncio.gather(*died, return_exceptions=True)
        assert [type(error) for error in ended] == [Killed] * 2
        shutil.rmtree(tmp_path / "d0")
        await first.done.wait()
        again = asyncio.create_task(fleet.run(0, back))
        await back.reported.wait()
        fleet.pass_deadline()  # the first cohort ends without a release: the advert is still good
        await aborted.wait()
        others.append(asyncio.create_task(fleet.run(1, other, rounds=None)))
        await second.done.wait()
        fleet.pass_deadline()  # the next one goes on without the device, which stepped back
        result = await again
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert back.aborts.count("contribution-count") == 1
        assert [release.part for release in result.releases] == [1]
        assert fleet.canaries.parts[:3] == [0, 0, 1]
        assert set(fleet.canaries.parts[3:]) <= {1}  # again, if a release came in between
        assert (fleet.count(), most_sums(masked)) == (2, 1)


async def test_a_lost_folder_that_checks_in_again_counts_its_first_cohort_before_it_joins(
    tmp_path: Path, masked: dict[bytes, set[int]]
) -> None:
    """A release makes its advert stale; it looks at the next check-in, and no cohort loses it."""
    async with World(tmp_path, spec()) as world:
        fleet, first, back = Fleet(world), Uploads(3), Back()
        others = [asyncio.create_task(fleet.run(n, first.count, rounds=2)) for n in (1, 2, 3)]
        with pytest.raises(Killed):
            await fleet.run(0, kill_at("uploading"))
        shutil.rmtree(tmp_path / "d0")
        await first.done.wait()
        again = asyncio.create_task(fleet.run(0, back))
        await back.reported.wait()
        fleet.pass_deadline()  # the first cohort is released
        result, *results = await asyncio.gather(again, *others)
        assert [len(other.releases) for other in results] == [2] * 3
        assert "contribution-count" not in back.aborts
        assert [release.part for release in result.releases] == [1]
        assert fleet.canaries.parts == [0, 0, 1]
        assert (fleet.count(), most_sums(masked)) == (2, 1)
        assert await fleet.charged() == 2


async def test_a_folder_that_was_restored_goes_on_from_the_ledger(
    tmp_path: Path, masked: dict[bytes, set[int]]
) -> None:
    """After what was open at the loss has ended; until then it stays out, and says until when."""
    async with World(tmp_path, spec()) as world:
        fleet = Fleet(world)
        await fleet.abort()
        await fleet.release()
        shutil.rmtree(tmp_path / "d0")
        events: list[Event] = []
        refused = await fleet.run(0, events.append)
        assert [refusal.reason for refusal in refused.refusals] == ["second-look"]
        assert [event.kind for event in events] == ["recovered", "refused"]
        assert refused.releases == ()
        plan_second_look(fleet.journal(), time.time() - 1)
        result = (await fleet.release())[0]
        assert [release.part for release in result.releases] == [2]
        assert (fleet.count(), most_sums(masked)) == (3, 1)


async def test_a_look_that_is_refused_ends_the_run_before_training(tmp_path: Path) -> None:
    """A cohort that the device joins and leaves is charged, for it and for the others."""
    async with World(tmp_path, spec()) as world:
        fleet = Fleet(world)
        await fleet.release()
        ledger = world.info["ledger_verifier"]
        other = LedgerRead(ledger=ledger, size=1, hashes=(b"another ledger's task, and its hash",))
        plan_second_look(fleet.journal(), time.time() + 600, restored=False, read=other)
        events: list[Event] = []

        def tell(event: Event) -> None:
            events.append(event)
            if event.kind == "training":
                raise Killed  # it would wait for a cohort

        with pytest.raises(LedgerRefusal, match="ledger-forked"):
            await fleet.run(0, tell)
        assert [event.kind for event in events] == ["aborted"]
        assert fleet.canaries.parts == [0]
        assert (await world.view())["waiting"] == 0


async def test_a_new_identity_over_the_same_data_goes_on_with_the_count(
    tmp_path: Path, masked: dict[bytes, set[int]]
) -> None:
    """While the first one's folder is there the second one is refused; then it takes over."""
    data = DataChoice("journal", tmp_path / "registry")
    async with World(tmp_path, spec()) as world:
        fleet = Fleet(world)
        await asyncio.gather(fleet.run(0, data=data), *(fleet.run(n) for n in (1, 2, 3)))

        async def twin() -> RunResult:
            device = world.device("twin", policy=NOISY, data=data)
            return await device.run_async(fleet.canaries, task=TASK, rounds=1)

        refused = await twin()
        assert [refusal.reason for refusal in refused.refusals] == ["data-in-task"]
        shutil.rmtree(tmp_path / "d0")
        result, *_ = await asyncio.gather(twin(), *(fleet.run(n) for n in (1, 2, 3)))
        assert [release.part for release in result.releases] == [1]
        assert most_sums(masked) == 1


async def test_a_list_that_moved_ends_the_run_before_an_advert(tmp_path: Path) -> None:
    class Shuffled(Canaries):
        def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
            job.check_list([b"example %d" % place for place in reversed(range(EXAMPLES))])
            raise AssertionError("nothing is trained of a list that moved")

    async with World(tmp_path, spec()) as world:
        fleet = Fleet(world)
        await fleet.release()
        fleet.canaries = Shuffled()
        events: list[Event] = []
        result = await fleet.run(0, events.append)
        assert [refusal.reason for refusal in result.refusals] == ["data-moved"]
        assert [event.kind for event in events] == ["checked-in", "training", "refused"]
        assert (await world.view())["waiting"] == 0
        assert fleet.count() == 1


async def test_local_training_that_fails_is_paid_like_any_other(tmp_path: Path) -> None:
    """So the device's later parts are in the releases that they would be in without the failure."""

    class Failing(Quadratic):
        schedules_examples = True

        def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
            values = super().contribute(job)
            if self.number == 0 and len(self.jobs) == 1:
                raise MemoryError("one example was too long")
            return values

    local = local_spec(period=2)
    async with World(tmp_path, local) as world:
        contributors = [Failing(number) for number in range(DEVICES)]
        results = await asyncio.gather(
            *(
                world.device(f"d{number}").run_async(contributor, task=TASK, rounds=2)
                for number, contributor in enumerate(contributors)
            )
        )
        assert all(not result.aborted for result in results)
        for contributor, result in zip(contributors, results, strict=True):
            assert [job.part for job in contributor.jobs] == [0, 1]
            assert [release.part for release in result.releases] == [0, 1]
        assert "MemoryError" in results[0].failed[0]
        assert [release.failed for release in results[0].releases] == [results[0].failed[0], None]
        assert world.audit().verified
