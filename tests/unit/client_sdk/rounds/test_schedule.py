"""A device's count: moved by debits alone, carried by contributions, found again after a loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from client_sdk.accounts.device_account import DeviceAccount, Found
from client_sdk.accounts.recovery import plan_second_look
from client_sdk.contribution import TrainingJob, check_contributor
from client_sdk.errors import ContributionError, PolicyRefusal, TaskRefusal
from client_sdk.rounds.checkin import CheckIn
from client_sdk.rounds.contributing import Training
from client_sdk.rounds.examples_told import ExamplesTold
from client_sdk.rounds.result import Tally
from client_sdk.rounds.schedule import count_of, demand_count, part_at
from client_sdk.state.journal import Contribution
from client_sdk.training.dataset import Cut, LeftOut, reasons_of
from client_sdk.training.trainer import LoraTrainer
from dp.contracts import BudgetSpec
from dp.schedule import places_of, schedule_of
from secagg.manifest import Manifest
from secagg_cli.join.trainer import LazyTrainer
from tests.kits.contributing import OPENED, Runs, Setting, checkin_of
from tests.kits.data_accounts import Folder
from tests.kits.device import digest_of, fedsgd_spec, journal_in, make_manifest
from tests.kits.quadratics import local_spec
from tests.kits.scheduled import LOCAL, SCHEDULED, VERIFIER

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))


class Scheduled(Runs):
    """A contributor that keeps to a schedule."""

    schedules_examples = True
    adds_local_noise = True


def ones(job: TrainingJob) -> dict[str, np.ndarray]:
    return {"gradient": np.ones(12, np.int64)}


def fails(job: TrainingJob) -> dict[str, np.ndarray]:
    raise MemoryError("one example was too long")


def checked_in(setting: Setting, manifest: Manifest = SCHEDULED, version: int = 0) -> CheckIn:
    count = count_of(setting.device, manifest)
    return dataclasses.replace(checkin_of(manifest, version=version), count=count)


def made(count: int | None, manifest: Manifest = SCHEDULED) -> Contribution:
    return Contribution.of(digest_of(manifest), bytes(32), {}, None, count=count)


class TestTheCount:
    def test_it_is_the_number_of_charges_of_this_schedule(self, tmp_path: Path) -> None:
        setting = Setting(tmp_path)
        account = setting.device.account
        other = make_manifest(
            fedsgd_spec(sampling_rate=1.0, period=3, budget=BudgetSpec(max_epsilon=None)), VERIFIER
        )
        assert (count_of(setting.device, SCHEDULED), count_of(setting.device, other)) == (0, 0)
        account.debit(SCHEDULED, A, "a", part=0)
        account.debit(other, B, "b", part=0)
        account.debit(SCHEDULED, A, "a", part=0)  # again after a kill
        assert (count_of(setting.device, SCHEDULED), count_of(setting.device, other)) == (1, 1)
        account.debit(SCHEDULED, C, "c", part=1)
        assert count_of(Setting(tmp_path).device, SCHEDULED) == 2
        assert account.charged(schedule_of(SCHEDULED), but=C) == 1

    def test_a_task_without_a_schedule_has_none(self, tmp_path: Path) -> None:
        device = Setting(tmp_path).device
        plain = make_manifest(fedsgd_spec(), VERIFIER)
        plan_second_look(device.journal, OPENED + 60)
        assert count_of(device, plain) is None
        assert part_at(plain, None) is None
        demand_count(device, plain, made(None, plain), A)

    def test_parts_follow_each_other(self) -> None:
        parts = [part_at(SCHEDULED, count) for count in range(9)]
        assert parts == [0, 1, 2, 3, 0, 1, 2, 3, 0]

    def test_what_the_ledger_shows_counts(self, tmp_path: Path) -> None:
        device = Setting(tmp_path).device
        device.account.restore([Found(ctx=A, manifest=SCHEDULED, models=())])
        assert count_of(device, SCHEDULED) == 1

    def test_what_another_identity_spent_of_the_data_counts(self, tmp_path: Path) -> None:
        first, second = Folder(tmp_path / "first"), Folder(tmp_path / "second")
        first.open().debit(SCHEDULED, A, "a", part=0)
        account = second.open()
        assert account.charged(schedule_of(SCHEDULED)) == 1
        account.debit(SCHEDULED, B, "b", part=1)
        assert first.open().charged(schedule_of(SCHEDULED)) == 2


class TestTheDebit:
    def test_a_contribution_pays_for_its_own_count_alone(self, tmp_path: Path) -> None:
        device = Setting(tmp_path).device
        demand_count(device, SCHEDULED, made(0), A)
        device.account.debit(SCHEDULED, A, "a", part=0)
        demand_count(device, SCHEDULED, made(0), A)  # again, after a kill
        demand_count(device, SCHEDULED, made(1), B)
        for contribution, ctx in ((made(0), B), (made(1), A), (made(2), B), (made(None), B)):
            with pytest.raises(ContributionError) as caught:
                demand_count(device, SCHEDULED, contribution, ctx)
            assert caught.value.reason == "contribution-count"
            assert caught.value.found == contribution.count
            assert "after" in str(caught.value.expected)

    def test_a_charge_that_another_process_wrote_first_is_seen(self, tmp_path: Path) -> None:
        """Two identities over one data set: the second looked before the first paid."""
        first = Folder(tmp_path / "first").open()
        device = Setting(tmp_path / "device").device
        device.account = Folder(tmp_path / "second").open()
        with device.account.locked():
            demand_count(device, SCHEDULED, made(0), B)
        first.debit(SCHEDULED, A, "a", part=0)
        with device.account.locked(), pytest.raises(ContributionError, match="contribution-count"):
            demand_count(device, SCHEDULED, made(0), B)

    def test_a_charge_that_reached_the_shared_record_alone_counts(self, tmp_path: Path) -> None:
        """A kill between the two writes of one debit: the contribution is of a spent count."""
        folder = Folder(tmp_path / "device")
        folder.open().debit(SCHEDULED, A, "a", part=0)
        (tmp_path / "device" / "account").unlink()
        again = folder.open()
        assert again.cohorts() == ()
        assert again.served("a") is None
        assert again.charged(schedule_of(SCHEDULED)) == 1
        assert again.charged(schedule_of(SCHEDULED), but=A) == 0


class TestContributions:
    async def test_the_job_has_the_part_and_the_journal_the_count(self, tmp_path: Path) -> None:
        setting, contributor = Setting(tmp_path), Scheduled(ones)
        setting.device.account.debit(SCHEDULED, A, "a", part=0)
        contribution = await Training(setting.device, contributor).contribution(checked_in(setting))
        (job,) = contributor.jobs
        assert job.part == contribution.count == 1
        seed = bytes.fromhex(schedule_of(SCHEDULED))
        assert job.places(40).tolist() == places_of(1, 40, 4, 64, seed).tolist()
        stored = setting.device.journal.load_contribution()
        assert stored is not None
        assert stored.count == 1
        training = setting.events[0]
        assert (training.kind, training.detail["part"], training.detail["period"]) == (
            "training",
            1,
            4,
        )

    async def test_before_the_debit_it_may_serve_again_and_after_it_never(
        self, tmp_path: Path
    ) -> None:
        setting, contributor = Setting(tmp_path), Scheduled(ones)
        training = Training(setting.device, contributor)
        first = await training.contribution(checked_in(setting))
        again = await training.contribution(checked_in(setting))
        assert again.name == first.name
        setting.device.account.debit(SCHEDULED, A, first.name, part=0)
        second = await training.contribution(checked_in(setting))
        assert (second.count, [job.part for job in contributor.jobs]) == (1, [0, 1])

    async def test_one_of_another_count_is_dropped(self, tmp_path: Path) -> None:
        """Somebody else paid meanwhile: it reached no masking, but its turn is over."""
        setting, contributor = Setting(tmp_path), Scheduled(ones)
        training = Training(setting.device, contributor)
        await training.contribution(checked_in(setting))
        setting.device.account.debit(SCHEDULED, A, "of another process", part=0)
        second = await training.contribution(checked_in(setting))
        assert (second.count, [job.part for job in contributor.jobs]) == (1, [0, 1])

    @pytest.mark.parametrize("manifest", [SCHEDULED, LOCAL])
    async def test_training_that_fails_sends_zeros_of_its_count(
        self, tmp_path: Path, manifest: Manifest
    ) -> None:
        """Or an example that makes one training fail would move all later parts of the device to
        other sums. With local noise too, where a task without a schedule sends nothing."""
        setting, contributor = Setting(tmp_path), Scheduled(fails)
        training = Training(setting.device, contributor)
        contribution = await training.contribution(checked_in(setting, manifest))
        assert contribution.count == 0
        assert "MemoryError" in str(contribution.failed)
        assert not any(array.any() for array in contribution.values().values())
        setting.device.account.debit(manifest, A, contribution.name, part=0)
        again = await training.contribution(checked_in(setting, manifest, version=1))
        assert (again.count, [job.part for job in contributor.jobs]) == (1, [0, 1])

    async def test_without_a_schedule_local_training_that_fails_sends_nothing(
        self, tmp_path: Path
    ) -> None:
        manifest = make_manifest(local_spec(), VERIFIER)
        setting = Setting(tmp_path)
        with pytest.raises(ContributionError, match="contribution-failed"):
            await Training(setting.device, Scheduled(fails)).contribution(checkin_of(manifest))

    async def test_a_list_that_moved_is_refused_before_anything_is_journalled(
        self, tmp_path: Path
    ) -> None:
        setting, lists = Setting(tmp_path), [[b"a", b"b"], [b"b", b"a"]]

        def looks(job: TrainingJob) -> dict[str, np.ndarray]:
            job.check_list(lists.pop(0))
            return ones(job)

        training = Training(setting.device, Scheduled(looks))
        first = await training.contribution(checked_in(setting))
        setting.device.account.debit(SCHEDULED, A, first.name, part=0)
        with pytest.raises(PolicyRefusal, match="data-moved"):
            await training.contribution(checked_in(setting))
        assert setting.device.journal.load_contribution() is None

    async def test_an_older_model_serves_for_the_same_count_alone(self, tmp_path: Path) -> None:
        """A buffer takes updates of older versions, not parts whose turn is over."""
        buffer = make_manifest(local_spec(period=2), VERIFIER)
        buffer = replace(buffer, cohort=replace(buffer.cohort, versions_back=2))
        setting, contributor = Setting(tmp_path), Scheduled(lambda job: {"delta": np.ones(6)})
        training = Training(setting.device, contributor)
        first = await training.contribution(checked_in(setting, buffer))
        assert (await training.contribution(checked_in(setting, buffer, version=1))) == first
        setting.device.account.debit(buffer, A, "of another process", part=0)
        later = await training.contribution(checked_in(setting, buffer, version=2))
        assert (later.count, later.model_version) == (1, 2)


class TestExamplesWithoutATurn:
    """``SCHEDULED`` has 4 parts, and 64 examples of a device at most are in a sum."""

    async def told(self, folder: Path, manifest: Manifest, examples: int) -> tuple[Setting, Tally]:
        setting, contributor = Setting(folder), Scheduled(ones)
        contributor.examples = examples  # type: ignore[attr-defined]
        contributor.left_out = (LeftOut(1, "example-cut", "Its answers begin late."),)  # type: ignore[attr-defined]
        contributor.cut = (Cut(2, 90, 64), Cut(256, 90, 64))  # type: ignore[attr-defined]
        training = Training(setting.device, contributor)
        await training.contribution(checked_in(setting, manifest))
        return setting, Tally(told=training.told)

    async def test_they_are_told_with_their_number_and_the_way_out(self, tmp_path: Path) -> None:
        setting, tally = await self.told(tmp_path, SCHEDULED, 259)
        result = tally.result(setting.device.account, SCHEDULED.task, tmp_path)
        assert [one.index for one in result.left_out] == [1, 256, 257, 258]
        assert reasons_of(result.left_out) == {"example-without-turn": 3, "example-cut": 1}
        assert (result.examples, result.used) == (259, 255)
        assert [one.index for one in result.cut] == [2]
        (told,) = (e.detail for e in setting.events if e.kind == "examples-left-out")
        assert (told["examples"], told["reasons"]) == (4, reasons_of(result.left_out))
        sentence = result.left_out[1].sentence
        for word in ("first 256", "period 4", "64 in one sum", "another task", "examples_max"):
            assert word in sentence
        stored = setting.device.journal.load_contribution()
        assert stored is not None
        assert ExamplesTold.of_contribution(stored).left_out.keys() == {1, 256, 257, 258}

    def test_what_else_was_told_stays(self) -> None:
        told = ExamplesTold(259, owned=7).with_turnless(SCHEDULED)
        assert (told.owned, told.left_out.keys()) == (7, {256, 257, 258})

    def test_where_persons_are_protected_the_places_are_theirs(self) -> None:
        privacy = SCHEDULED.example_privacy
        assert privacy is not None
        persons = replace(SCHEDULED, example_privacy=replace(privacy, unit="person"))
        assert ExamplesTold(259).with_turnless(persons) == ExamplesTold(259)

    async def test_all_places_serve_where_they_fit_or_nothing_limits_a_sum(
        self, tmp_path: Path
    ) -> None:
        for manifest, examples in ((SCHEDULED, 256), (LOCAL, 5_000)):
            setting, tally = await self.told(tmp_path / manifest.task / "d", manifest, examples)
            result = tally.result(setting.device.account, manifest.task, tmp_path)
            assert [one.index for one in result.left_out] == [1]


class TestARestoredFolder:
    def test_it_stays_out_until_what_was_open_has_ended(self, tmp_path: Path) -> None:
        device = Setting(tmp_path).device
        plan_second_look(device.journal, OPENED + 60)
        with pytest.raises(PolicyRefusal) as caught:
            count_of(device, SCHEDULED)
        assert caught.value.reason == "second-look"
        assert caught.value.expected == "a start after 1970-01-12T13:47:40+00:00"
        assert caught.value.found == "1970-01-12T13:46:40+00:00"
        plan_second_look(device.journal, 0.0)
        assert count_of(device, SCHEDULED) == 0

    def test_a_new_one_does_not(self, tmp_path: Path) -> None:
        device = Setting(tmp_path).device
        plan_second_look(device.journal, OPENED + 60, restored=False)
        assert count_of(device, SCHEDULED) == 0


class TestDeclarations:
    @pytest.mark.parametrize("declared", [None, False, 1, "yes"])
    def test_a_contributor_that_does_not_say_so_is_refused(self, declared: object) -> None:
        contributor = Runs(ones)
        if declared is not None:
            contributor.schedules_examples = declared  # type: ignore[attr-defined]
        with pytest.raises(PolicyRefusal) as caught:
            check_contributor(SCHEDULED, contributor)
        assert caught.value.reason == "schedule-undeclared"
        check_contributor(make_manifest(fedsgd_spec(), VERIFIER), contributor)

    def test_the_trainer_says_so_in_an_app_and_in_the_command(self) -> None:
        check_contributor(SCHEDULED, LazyTrainer([], None))
        check_contributor(SCHEDULED, LoraTrainer)
        assert LoraTrainer.schedules_examples is LazyTrainer.schedules_examples is True

    def test_local_noise_is_declared_besides(self) -> None:
        contributor = Scheduled(ones)
        check_contributor(LOCAL, contributor)
        contributor.adds_local_noise = False
        with pytest.raises(PolicyRefusal, match="local-noise-undeclared"):
            check_contributor(LOCAL, contributor)

    def test_a_job_without_a_part_gives_no_places(self) -> None:
        job = TrainingJob(SCHEDULED, 0, np.zeros(12, np.float32), 0)
        with pytest.raises(TaskRefusal, match="part-missing"):
            job.places(10)
        plain = dataclasses.replace(job, manifest=make_manifest(fedsgd_spec(), VERIFIER))
        assert plain.places(5).tolist() == [0, 1, 2, 3, 4]
        plain.check_list([b"one"])

    def test_local_noise_has_room_for_every_example_of_a_part(self) -> None:
        job = TrainingJob(LOCAL, 0, np.zeros(6, np.float32), 0, part=1)
        assert len(job.places(4_000)) == 1_000
        distributed = dataclasses.replace(job, manifest=SCHEDULED)
        assert len(distributed.places(4_000)) == 64


def test_an_account_of_before_has_no_schedule(tmp_path: Path) -> None:
    """And a contribution of before no count."""
    account = DeviceAccount(journal_in(tmp_path), 1e-5)
    account.debit(make_manifest(fedsgd_spec(), VERIFIER), A, "a")
    assert account.charged(schedule_of(SCHEDULED)) == 0
