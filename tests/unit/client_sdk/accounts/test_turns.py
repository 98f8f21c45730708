"""How often an example has served, as an account shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from client_sdk.accounts.device_account import Found
from client_sdk.accounts.turns import Turns
from dp.schedule import participations
from tests.kits.commands import invoke
from tests.kits.contributing import Setting
from tests.kits.data_accounts import ONE, Folder
from tests.kits.device import make_manifest
from tests.kits.scheduled import SCHEDULED, VERIFIER, scheduled_spec


def ctx(number: int) -> bytes:
    return bytes([number]) * 32


@pytest.mark.parametrize("charges", range(1, 10))
def test_charges_in_a_row(tmp_path: Path, charges: int) -> None:
    account = Setting(tmp_path).device.account
    for number in range(charges):
        account.debit(SCHEDULED, ctx(number), f"{number}", part=number % 4)
    often = participations(charges, 4)
    assert account.turns(SCHEDULED.task) == (Turns(4, charges, often, 4 * often - charges),)


def test_charges_that_the_ledger_showed_are_of_a_count_that_goes_on(tmp_path: Path) -> None:
    account = Setting(tmp_path).device.account
    account.restore([Found(ctx=ctx(n), manifest=SCHEDULED, models=()) for n in range(6)])
    assert account.turns(SCHEDULED.task) == (Turns(4, 6, 2, 2),)


def test_a_charge_whose_part_is_not_known_may_be_of_any(tmp_path: Path) -> None:
    account = Setting(tmp_path).device.account
    account.debit(SCHEDULED, ctx(0), "0", part=0)
    account.debit(SCHEDULED, ctx(1), "1")
    assert account.turns(SCHEDULED.task) == (Turns(4, 2, 2, 2),)  # of parts 2 and 3
    account.debit(SCHEDULED, ctx(2), "2", part=2)
    account.debit(SCHEDULED, ctx(3), "3", part=3)
    assert account.turns(SCHEDULED.task) == (Turns(4, 4, 2, 0),)  # part 0 is next


def test_folders_that_counted_apart_fill_a_part_twice(tmp_path: Path) -> None:
    first, second = Folder(tmp_path / "first", None), Folder(tmp_path / "second", None)
    first.open().debit(SCHEDULED, ctx(1), "1", part=0)
    second.open().debit(SCHEDULED, ctx(2), "2", part=0)
    Folder(tmp_path / "first", "photos").open()
    account = Folder(tmp_path / "second", "photos").open()
    assert account.turns(SCHEDULED.task) == (Turns(4, 2, 2, 2),)  # parts 2 and 3 are next


def test_two_identities_in_one_cohort_are_one_charge(tmp_path: Path) -> None:
    first, second = Folder(tmp_path / "first", None), Folder(tmp_path / "second", None)
    for folder in (first, second):
        folder.open().debit(SCHEDULED, ctx(1), "1", part=0)
    Folder(first.path, "photos", bundle=first.bundle).open()
    account = Folder(second.path, "photos", bundle=second.bundle).open()
    assert account.turns(SCHEDULED.task) == (Turns(4, 1, 1, 3),)


def test_a_charge_of_a_person_and_its_rows_is_one(tmp_path: Path) -> None:
    persons = make_manifest(scheduled_spec(unit="person"), VERIFIER)
    account = Setting(tmp_path).device.account
    for number in range(6):
        account.debit(persons, ctx(number), f"{number}", part=number % 4)
    assert account.turns(persons.task) == (Turns(4, 6, 2, 2, "person"),)


def test_the_command_shows_them(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "device", None)
    account = folder.open()
    account.debit(ONE, ctx(9), "9")
    assert account.turns("one") == ()
    folder.journal.save_blob("checkpoint-x", b"as beside any charge")

    def shown() -> dict[str, object]:
        return invoke("account", "show", str(folder.path))["tasks"]  # type: ignore[no-any-return]

    for number in range(5):
        account.debit(SCHEDULED, ctx(number), f"{number}", part=number % 4)
    tasks = shown()
    assert tasks["one"]["schedules"] == []  # type: ignore[index]
    assert tasks[SCHEDULED.task]["schedules"] == [  # type: ignore[index]
        {"period": 4, "charges": 5, "participations": 2, "left": 3, "unit": "example"}
    ]
