"""What a device's account charges a schedule: the fullest part, in whatever way it filled."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from client_sdk.accounts.device_account import DeviceAccount, Found
from client_sdk.policy import PrivacyPolicy
from dp.accounting.budget import cost_of
from dp.accounting.charges import charges_of, compose
from dp.contracts import BudgetSpec
from dp.schedule import schedule_of
from tests.kits.contributing import Setting
from tests.kits.data_accounts import Folder
from tests.kits.device import PARTNER, make_manifest
from tests.kits.scheduled import SCHEDULED, VERIFIER, scheduled_spec

EVERY = make_manifest(scheduled_spec(period=1), VERIFIER)  # whose examples are in every release


def ctx(number: int) -> bytes:
    return bytes([number]) * 32


def found(*numbers: int) -> list[Found]:
    return [Found(ctx=ctx(number), manifest=SCHEDULED, models=()) for number in numbers]


def debit(account: DeviceAccount, *numbers: int) -> None:
    """Charges to one cohort after the other, as the count goes."""
    for number in numbers:
        part = account.charged(schedule_of(SCHEDULED)) % 4
        account.debit(SCHEDULED, ctx(number), f"{number}", part=part)


def epsilon(account: DeviceAccount) -> float:
    return account.total("example").bounded


def planned(sums: int) -> float:
    """Of an example that is in so many sums."""
    return cost_of("example", EVERY, sums)


def test_before_each_round_the_account_knows_what_it_will_cost(tmp_path: Path) -> None:
    account = Setting(tmp_path).device.account
    for number in range(9):
        task, every = account.after(SCHEDULED, "example")
        debit(account, number)
        assert task.epsilon == every.epsilon == epsilon(account)
        assert epsilon(account) == pytest.approx(planned(-(-(number + 1) // 4)), rel=1e-6)


def test_a_policy_admits_a_task_to_its_last_release(tmp_path: Path) -> None:
    """One part of a pass after the other, at a limit that a second participation would exceed."""
    manifest = make_manifest(
        scheduled_spec(budget=BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=4)),
        VERIFIER,
    )
    account = Setting(tmp_path).device.account
    whole = cost_of("example", manifest, 4)
    policy = PrivacyPolicy(
        min_cohort=3, min_corrupt=0, max_epsilon=whole, max_total_epsilon=whole, max_delta=1e-5
    )
    for number in range(4):
        policy.admit(manifest, own_partner=PARTNER.key, account=account)
        account.debit(manifest, ctx(number), f"{number}", part=number)


@pytest.mark.parametrize("charges", [1, 3, 4, 6])
def test_a_restored_folder_costs_what_it_did(tmp_path: Path, charges: int) -> None:
    account = Setting(tmp_path).device.account
    account.restore(found(*range(charges)))
    assert epsilon(account) == pytest.approx(planned(-(-charges // 4)), rel=1e-6)
    task, _ = account.after(SCHEDULED, "example")
    assert task.epsilon == pytest.approx(planned(-(-(charges + 1) // 4)), rel=1e-6)
    debit(account, charges)
    assert epsilon(account) == task.epsilon
    assert account.restore(found(*range(charges + 1))) == 0
    assert epsilon(account) == task.epsilon


def test_what_is_known_of_a_restored_folder_is_not_counted_twice(tmp_path: Path) -> None:
    """Else the charges that follow would be of later parts, and one part would be in two sums."""
    account = Setting(tmp_path).device.account
    account.restore(found(0))
    assert account.restore(found(0, 1, 2, 3)) == 3
    assert epsilon(account) == pytest.approx(planned(1), rel=1e-6)


def test_two_parts_are_told_apart(tmp_path: Path) -> None:
    manifest = make_manifest(scheduled_spec(period=2), VERIFIER)
    account = Setting(tmp_path).device.account
    account.debit(manifest, ctx(0), "0", part=0)
    task, _ = account.after(manifest, "example")
    assert task.epsilon == pytest.approx(cost_of("example", EVERY, 1), rel=1e-6)


def test_folders_that_counted_apart_are_charged_for_both_counts(tmp_path: Path) -> None:
    """Each began with part 0 before its app named the data: ceil(2 / 4) would be 1."""
    first, second = Folder(tmp_path / "first", None), Folder(tmp_path / "second", None)
    debit(first.open(), 1)
    debit(second.open(), 2)
    alone = epsilon(first.open())
    Folder(tmp_path / "first", "photos").open()
    account = Folder(tmp_path / "second", "photos").open()
    assert account.charged(schedule_of(SCHEDULED)) == 2
    assert epsilon(account) == pytest.approx(planned(2), rel=1e-6)
    assert epsilon(account) > alone
    debit(account, 3, 4)  # parts 2 and 3, of which nothing was charged yet
    assert epsilon(account) == pytest.approx(planned(2), rel=1e-6)
    debit(account, 5)
    assert epsilon(account) == pytest.approx(planned(3), rel=1e-6)


def test_a_cohort_to_which_folders_gave_different_parts_counts_for_each(tmp_path: Path) -> None:
    """An example of part 0 was in it by the third folder, beside two clips in the cohort before."""
    folders = [Folder(tmp_path / name, None) for name in ("first", "second", "third")]
    accounts = [folder.open() for folder in folders]
    debit(accounts[0], 1, 2)  # parts 0 and 1
    debit(accounts[1], 1)
    debit(accounts[2], 2)
    for folder in reversed(folders):
        account = Folder(folder.path, "photos", bundle=folder.bundle).open()
    (clip,) = (charge for charge in charges_of(EVERY) if charge.unit == "example")
    two_clips = msgspec.structs.replace(
        clip, l2_squared=str(4 * int(clip.l2_squared)), l1=str(2 * int(clip.l1))
    )
    assert account.charged(schedule_of(SCHEDULED)) == 2
    assert epsilon(account) >= compose([two_clips, clip], EVERY.budget.delta) * (1 - 1e-6)
    assert epsilon(account) < compose([two_clips, two_clips], EVERY.budget.delta) * (1 + 1e-6)


def test_a_folder_that_is_lost_gets_its_parts_back_from_the_record_of_the_data(
    tmp_path: Path,
) -> None:
    """By their order alone its charges would be of parts 0, 1 and 2, and cost one participation
    less."""
    first, second = Folder(tmp_path / "first", None), Folder(tmp_path / "second", None)
    debit(first.open(), 1)
    debit(second.open(), 2)
    Folder(tmp_path / "second", "photos").open()
    joined = Folder(tmp_path / "first", "photos", bundle=first.bundle)
    account = joined.open()
    debit(account, 3, 4, 5)  # parts 2, 3 and 0
    before = epsilon(account)
    assert before == pytest.approx(planned(3), rel=1e-6)
    (tmp_path / "first" / "account").unlink()
    again = Folder(tmp_path / "first", "photos", bundle=first.bundle).open()
    again.restore(found(1, 3, 4, 5))
    assert epsilon(again) == before
