"""One data set has one account, however many identities, folders and processes spend of it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from client_sdk.accounts.data_door import MARK, DataChoice, DataDoor, Mark
from client_sdk.accounts.device_account import DeviceAccount, Found
from client_sdk.accounts.registry import DataRecord, Member, Registry
from client_sdk.client import Client
from client_sdk.errors import PolicyRefusal, StateError
from client_sdk.policy import PrivacyPolicy
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.accounting.budget import charges_of
from dp.accounting.statements import epsilon_of, headline, lines, slack_log2
from secagg.http_api import EnrolmentBundle
from secagg.manifest import Manifest
from tests.kits.data_accounts import NOW_S, ONE, TWO, VERIFIER, A, B, Folder, new_bundle
from tests.kits.device import PARTNER, make_manifest, sum_spec

STORED = Path(__file__).parents[3] / "vectors" / "stored-0453a63"
BARE = make_manifest(sum_spec(task="bare", device_noise_multiplier=0.0), VERIFIER)
POLICY = PrivacyPolicy(  # limits are for devices, which these tasks protect
    min_cohort=2, min_corrupt=0, max_epsilon=1e6, max_total_epsilon=1e6, units="device"
)


def admits(
    account: DeviceAccount, manifest: Manifest = TWO, policy: PrivacyPolicy = POLICY
) -> None:
    policy.admit_terms(manifest, own_partner=PARTNER.key, account=account)


def refusal(
    account: DeviceAccount, manifest: Manifest = TWO, policy: PrivacyPolicy = POLICY
) -> str:
    with pytest.raises(PolicyRefusal) as caught:
        admits(account, manifest, policy)
    return caught.value.reason


def total(account: DeviceAccount) -> float:
    """Of a device, over all tasks."""
    return account.total("device").stated or 0.0


def pay(account: DeviceAccount, manifest: Manifest, ctx: bytes, policy: PrivacyPolicy) -> None:
    """As a participant does."""
    with account.locked():
        admits(account, manifest, policy)
        account.debit(manifest, ctx, "c")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Folder, Folder]:
    """Two bundles in two folders over the same data."""
    return Folder(tmp_path / "first"), Folder(tmp_path / "second")


# ---- one budget


def test_a_second_bundle_spends_of_the_first_one_s_budget(pair: tuple[Folder, Folder]) -> None:
    first, second = pair
    first.open().debit(ONE, A, "c")
    account = second.open()
    assert total(account) == total(first.open())
    account.debit(TWO, B, "c")
    assert total(account) == pytest.approx(headline(lines(ONE, 2)), rel=1e-9)
    assert total(first.open()) == total(account)
    assert account.epsilon("two") == headline(lines(TWO, 1))  # a task's own cost stays its own
    assert (account.charges("one"), account.cohorts()) == (1, (B.hex(),))


def test_the_policy_counts_what_another_bundle_spent(pair: tuple[Folder, Folder]) -> None:
    first, second = pair
    one = headline(lines(ONE, 1))
    policy = replace(POLICY, max_total_epsilon=one * 1.01)
    admits(second.open(), TWO, policy)
    first.open().debit(ONE, A, "c")
    assert refusal(second.open(), TWO, policy) == "own-total-budget"


def test_other_data_has_an_account_of_its_own(tmp_path: Path) -> None:
    Folder(tmp_path / "first").open().debit(ONE, A, "c")
    assert total(Folder(tmp_path / "second", "photos").open()) == 0


def test_who_looked_before_another_one_paid_is_refused_at_the_debit(
    pair: tuple[Folder, Folder],
) -> None:
    """Both policies said yes; the second debit sees the first, under one lock."""
    first, second = (folder.open() for folder in pair)
    policy = replace(POLICY, max_total_epsilon=headline(lines(ONE, 1)) * 1.01)
    admits(first, ONE, policy)
    admits(second, TWO, policy)
    pay(first, ONE, A, policy)
    with pytest.raises(PolicyRefusal, match="own-total-budget"):
        pay(second, TWO, B, policy)
    for folder in pair:
        assert total(folder.open()) == total(first)


def test_nobody_else_writes_between_the_look_and_the_charge(
    pair: tuple[Folder, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client_sdk.accounts.registry._LOCK_WAIT_S", 0.0)
    first, second = (folder.open() for folder in pair)
    with first.locked():
        admits(first, ONE)
        with pytest.raises(StateError, match="state-in-use"):
            second.debit(TWO, B, "c")
        first.debit(ONE, A, "c")
    second.debit(TWO, B, "c")
    assert total(pair[0].open()) == pytest.approx(headline(lines(ONE, 2)), rel=1e-9)


def _spend(path: str, encoded: bytes, task: str, limit: float, results: object) -> None:
    """A process that spends until its policy refuses."""
    bundle = msgspec.json.decode(encoded, type=EnrolmentBundle)
    account = Folder(Path(path), bundle=bundle).open()
    manifest = {"one": ONE, "two": TWO}[task]
    policy = replace(POLICY, max_total_epsilon=limit)
    charged = 0
    try:
        while charged < 20:
            ctx = task.encode() + bytes((charged,)) * 29
            pay(account, manifest, ctx, policy)
            charged += 1
    except PolicyRefusal as refusal:
        results.put((charged, refusal.reason))  # type: ignore[attr-defined]


def test_two_processes_cannot_overspend(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results, limit = context.Queue(), headline(lines(ONE, 8)) * 1.0001
    processes = [
        context.Process(
            target=_spend,
            args=(str(tmp_path / task), msgspec.json.encode(new_bundle()), task, limit, results),
        )
        for task in ("one", "two")
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert sum(charged for charged, _ in found) == 8
    assert {reason for _, reason in found} == {"own-total-budget"}


def test_a_task_of_the_same_name_at_another_aggregator_is_another_task(tmp_path: Path) -> None:
    elsewhere = Folder(tmp_path / "first", bundle=new_bundle(bytes(range(1, 33))))
    elsewhere.open().debit(TWO, A, "c")
    account = Folder(tmp_path / "second").open()
    assert (account.charges("two"), account.epsilon("two")) == (0, 0.0)
    assert total(account) == headline(lines(TWO, 1))
    admits(account, TWO)


def test_a_bare_vector_of_another_identity_is_one_of_the_same_data(
    pair: tuple[Folder, Folder],
) -> None:
    first, second = pair
    first.open().debit(BARE, A, "c", b"m" * 32)
    account = second.open()
    assert account.given(b"m" * 32) == A
    assert account.given(b"n" * 32) is None


# ---- two identities in one task


def test_a_task_takes_one_identity_for_each_data_set(pair: tuple[Folder, Folder]) -> None:
    first, second = pair
    admits(second.open(), ONE)
    first.open().debit(ONE, A, "c")
    assert refusal(second.open(), ONE) == "data-in-task"
    admits(first.open(), ONE)
    admits(second.open(), TWO)


def test_an_identity_whose_folder_is_gone_makes_room_for_the_next(
    pair: tuple[Folder, Folder],
) -> None:
    first, second = pair
    first.open().debit(ONE, A, "c")
    away = first.path.rename(first.path.with_name("away"))
    account = second.open()
    admits(account, ONE)
    assert account.charges("one") == 1
    account.debit(ONE, B, "c")
    assert account.epsilon("one") == headline(lines(ONE, 2))
    back = Folder(away, bundle=first.bundle)
    assert refusal(back.open(), ONE) == "data-in-task"  # it came back: the last one has the task
    admits(second.open(), ONE)


def test_an_identity_whose_certificate_has_ended_makes_room_too(tmp_path: Path) -> None:
    first = Folder(tmp_path / "first", bundle=new_bundle(not_after=int(NOW_S) + 10))
    first.open().debit(ONE, A, "c")
    bundle = new_bundle()
    in_time = Folder(tmp_path / "second", bundle=bundle, now_s=NOW_S + 10)
    assert refusal(in_time.open(), ONE) == "data-in-task"
    admits(Folder(tmp_path / "second", bundle=bundle, now_s=NOW_S + 11).open(), ONE)


def test_two_identities_never_pay_for_the_same_cohort(pair: tuple[Folder, Folder]) -> None:
    """Whatever a policy saw: their values would move one sum by two clips."""
    first, second = (folder.open() for folder in pair)
    first.debit(ONE, A, "c")
    with pytest.raises(PolicyRefusal, match="data-in-task"):
        second.debit(ONE, A, "c")
    assert pair[1].open().cohorts() == ()


def test_a_cohort_that_two_identities_paid_for_before_they_were_known_counts_as_a_group(
    tmp_path: Path,
) -> None:
    alone = [Folder(tmp_path / name, None) for name in ("first", "second")]
    for folder in alone:
        folder.open().debit(ONE, A, "c")
    named = [Folder(folder.path, bundle=folder.bundle) for folder in alone]
    totals = {named[0].open(): None, named[1].open(): None, named[0].open(): None}
    (charge,) = (c for c in charges_of(ONE) if c.unit == "device")
    double = msgspec.structs.replace(
        charge, l2_squared=str(4 * int(charge.l2_squared)), l1=str(2 * int(charge.l1))
    )
    once, *twice = [total(account) for account in totals]
    exact = epsilon_of(double.event(), 1e-5, slack_log2(2 * charge.draws))
    assert once == headline(lines(ONE, 1))
    assert twice == [pytest.approx(exact, rel=1e-9)] * 2
    assert exact > headline(lines(ONE, 2))


# ---- folders come and go


def test_what_a_removed_folder_spent_stays_spent(pair: tuple[Folder, Folder]) -> None:
    first, second = pair
    second.open()
    first.open().debit(ONE, A, "c")  # and it is never opened again
    spent = headline(lines(ONE, 1))
    shutil.rmtree(first.path)
    assert total(second.open()) == spent
    again = Folder(first.path, bundle=first.bundle).open()
    assert total(again) == spent
    assert total(Folder(first.path.with_name("new"), bundle=new_bundle()).open()) == spent


def test_an_old_copy_of_a_folder_does_not_give_its_budget_back(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "first")
    folder.open().debit(ONE, A, "c")
    copy = shutil.copytree(folder.path, tmp_path / "copy")
    folder.open().debit(ONE, B, "c")
    spent = total(folder.open())
    restored = Folder(copy, bundle=folder.bundle).open()
    assert (total(restored), restored.charges("one")) == (spent, 2)


def test_a_renamed_folder_is_the_same_one(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "first")
    folder.open().debit(ONE, A, "c")
    moved = Folder(folder.path.rename(tmp_path / "moved"), bundle=folder.bundle).open()
    assert moved.data is not None
    assert moved.data.folders == (tmp_path / "moved",)
    assert moved.charges("one") == 1


def test_a_folder_that_moved_makes_room_for_another_one_in_its_place(tmp_path: Path) -> None:
    """Also of two containers with one registry, in which the state lies at the same path."""
    first, second = Folder(tmp_path / "state"), Folder(tmp_path / "state")
    first.open().debit(ONE, A, "c")
    first.path.rename(tmp_path / "away")
    assert second.open().charges("one") == 1
    assert second.open().data is not None
    again = Folder(tmp_path / "away", bundle=first.bundle).open()
    assert again.data is not None
    assert (again.charges("one"), again.data.renewed) == (1, 0)
    assert set(again.data.folders) == {tmp_path / "state", tmp_path / "away"}


def test_a_folder_of_an_earlier_version_brings_its_charges(tmp_path: Path) -> None:
    path = shutil.copytree(STORED / "state-idle", tmp_path / "old")
    (path / "storage.key").chmod(0o600)
    bundle = msgspec.json.decode((STORED / "bundle.json").read_bytes(), type=EnrolmentBundle)
    before = DeviceAccount(Journal(path, open_storage_key(path)), 1e-5)
    assert total(Folder(path, bundle=bundle).open()) == total(before)
    other = Folder(tmp_path / "new").open()
    assert (before.charges("stats"), total(other)) == (2, total(before))


def test_what_the_ledger_showed_counts_for_the_data(pair: tuple[Folder, Folder]) -> None:
    first, second = pair
    assert first.open().restore([Found(ctx=A, manifest=ONE, models=())]) == 1
    assert total(second.open()) == headline(lines(ONE, 1))


# ---- kills


class Killed(BaseException):
    pass


def killed_when_it_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Journal.save_blob

    def dying(journal: Journal, written: str, content: bytes) -> None:
        if written == name:
            raise Killed
        save(journal, written, content)

    monkeypatch.setattr(Journal, "save_blob", dying)


def test_a_kill_between_the_two_accounts_leaves_one_charge(
    pair: tuple[Folder, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    account = first.open()
    with monkeypatch.context() as patched:
        killed_when_it_writes("account", patched)
        with pytest.raises(Killed):
            account.debit(ONE, A, "c")
    spent = headline(lines(ONE, 1))
    assert total(second.open()) == spent  # it may have left
    again = first.open()
    assert (total(again), again.charges("one")) == (spent, 1)
    assert again.has_charged(A)  # so the policy is not asked again
    again.debit(ONE, A, "c")
    assert (total(first.open()), first.open().cohorts()) == (spent, (A.hex(),))


def test_a_kill_between_registration_and_the_folder_s_own_mark_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path / "first")
    with monkeypatch.context() as patched:
        killed_when_it_writes(MARK, patched)
        with pytest.raises(Killed):
            folder.open()
    account = folder.open()
    assert account.data is not None
    assert account.data.folders == (folder.path,)
    account.debit(ONE, A, "c")
    assert total(Folder(tmp_path / "second").open()) == total(account)


# ---- a registry that is lost


def spent_twice(pair: tuple[Folder, Folder]) -> float:
    pair[0].open().debit(ONE, A, "c")
    account = pair[1].open()
    account.debit(TWO, B, "c")
    pair[0].open()
    return total(account)


def record_of(folder: Folder) -> Path:
    (record,) = (folder.path.parent / "registry").glob("[0-9a-f]" * 32)
    return record


def removed(registry: Path, record: Path, old: bytes) -> None:
    shutil.rmtree(registry)


def without_key(registry: Path, record: Path, old: bytes) -> None:
    (registry / "storage.key").unlink()


def with_a_torn_key(registry: Path, record: Path, old: bytes) -> None:
    (registry / "storage.key").write_bytes(b"{")


def without_record(registry: Path, record: Path, old: bytes) -> None:
    record.unlink()


def with_a_torn_record(registry: Path, record: Path, old: bytes) -> None:
    record.write_bytes(record.read_bytes()[:-1])


def put_back_from_before(registry: Path, record: Path, old: bytes) -> None:
    record.write_bytes(old)


LOSSES = [
    removed,
    without_key,
    with_a_torn_key,
    without_record,
    with_a_torn_record,
    put_back_from_before,
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_lost_registry_is_no_new_budget(
    loss: object, pair: tuple[Folder, Folder], tmp_path: Path
) -> None:
    first = pair[0]
    first.open()
    old = record_of(first).read_bytes()
    spent = spent_twice(pair)
    kept = shutil.copytree(tmp_path / "registry", tmp_path / "kept")
    loss(tmp_path / "registry", record_of(first), old)  # type: ignore[operator]
    error = first.refused()
    assert error.reason == "data-account-missing"
    assert str(tmp_path / "registry") in str(error)
    assert "secagg account renew" in (error.remedy or "")
    shutil.rmtree(tmp_path / "registry", ignore_errors=True)
    kept.rename(tmp_path / "registry")
    assert total(first.open()) == spent


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_the_app_s_word_begins_anew_and_is_remembered(
    loss: object, pair: tuple[Folder, Folder], tmp_path: Path
) -> None:
    first, second = pair
    first.open()
    old = record_of(first).read_bytes()
    spent = spent_twice(pair)
    loss(tmp_path / "registry", record_of(first), old)  # type: ignore[operator]
    account = first.open(renew=True)
    assert account.data is not None
    assert account.data.renewed == 1
    assert total(account) == headline(lines(ONE, 1))
    assert total(first.open()) == total(account)  # and without the word now
    assert second.refused().reason == "data-account-missing"
    second.open(renew=True)
    assert total(first.open()) == pytest.approx(spent, rel=1e-9)


def test_the_word_changes_nothing_where_nothing_is_lost(pair: tuple[Folder, Folder]) -> None:
    spent = spent_twice(pair)
    account = pair[0].open(renew=True)
    assert account.data is not None
    assert (total(account), account.data.renewed) == (spent, 0)


@pytest.mark.parametrize("loss", [without_key, with_a_torn_key, with_a_torn_record])
def test_a_new_folder_is_no_way_around_a_damaged_registry(loss: object, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "first")
    folder.open().debit(ONE, A, "c")
    loss(tmp_path / "registry", record_of(folder), b"")  # type: ignore[operator]
    assert Folder(tmp_path / "second").refused().reason == "data-account-missing"


def test_a_registry_that_goes_while_a_device_runs_ends_its_debits(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "first")
    account = folder.open()
    record_of(folder).unlink()
    with pytest.raises(StateError, match="data-account-missing"):
        account.debit(ONE, A, "c")
    with pytest.raises(StateError, match="data-account-missing"):
        account.refresh()
    assert account.cohorts() == ()


def test_a_registry_may_move(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "first")
    folder.open().debit(ONE, A, "c")
    moved = (tmp_path / "registry").rename(tmp_path / "elsewhere")
    assert folder.refused().reason == "data-account-missing"
    account = Folder(folder.path, bundle=folder.bundle, registry=moved).open()
    assert account.charges("one") == 1
    unnamed = Folder(folder.path, None, folder.bundle)
    unnamed.choice = DataChoice()
    assert unnamed.open().data is not None  # it remembers where


# ---- names


def test_a_folder_serves_one_data_set(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "first")
    folder.open()
    assert Folder(folder.path, "photos", folder.bundle).refused().reason == "data-of-another"
    assert Folder(folder.path, None, folder.bundle).open().data is not None


def test_one_name_has_one_spelling() -> None:
    """Keyboards and file systems write an accent in two ways; they would be two budgets."""
    composed, decomposed = (DataChoice(name) for name in ("caf\u00e9", "cafe\u0301"))
    assert composed == decomposed
    assert DataChoice("CAF\u00c9") != composed


@pytest.mark.parametrize("data_id", ["", "x" * 1_025, "of a terminal \udcff"])
def test_a_data_id_is_a_name(data_id: str) -> None:
    with pytest.raises(StateError, match="data-id"):
        DataChoice(data_id)


def test_to_begin_anew_needs_the_name(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "first")
    folder.open()
    shutil.rmtree(tmp_path / "registry")
    assert Folder(folder.path, None, folder.bundle).refused(renew=True).reason == "data-id"


def test_neither_the_id_nor_a_task_nor_an_identity_stands_on_the_disk(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "first", "my-secret-diary")
    folder.open().debit(ONE, A, "c")
    secrets = (b"diary", b"one", A.hex().encode(), folder.bundle.certificate.identity_key)
    for file in tmp_path.rglob("*"):
        content = file.read_bytes() if file.is_file() and file.name != "storage.key" else b""
        for secret in secrets:
            assert secret not in content, file
        assert "diary" not in file.name
    assert (tmp_path / "registry" / "storage.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "registry").stat().st_mode & 0o777 == 0o700


def test_two_registries_give_one_id_two_names(tmp_path: Path) -> None:
    tags = {Registry(tmp_path / name).tag("journal") for name in ("a", "b")}
    assert len(tags) == 2


# ---- no word about the data


def test_a_folder_that_an_app_names_without_its_data_counts_alone(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "first", None)
    account = folder.open()
    assert account.data is None
    account.debit(ONE, A, "c")
    assert total(Folder(tmp_path / "second", None).open()) == 0
    assert not (tmp_path / "registry").exists()


def in_root(tmp_path: Path, name: str, data_id: str | None = None) -> Folder:
    return Folder(tmp_path / name, data_id, root=tmp_path)


def test_folders_that_no_app_named_share_one_account(tmp_path: Path) -> None:
    in_root(tmp_path, "first").open().debit(ONE, A, "c")
    second = in_root(tmp_path, "second").open()
    assert total(second) == headline(lines(ONE, 1))
    assert second.data is not None
    assert second.data.shown() == {
        "counts": "user",
        "folders": 2,
        "charges_of_others": 1,
        "renewed": 0,
    }


def test_who_is_refused_for_what_other_unnamed_data_spent_is_told_the_way_out(
    tmp_path: Path,
) -> None:
    policy = replace(POLICY, max_total_epsilon=headline(lines(ONE, 1)) * 1.01)
    in_root(tmp_path, "first").open().debit(ONE, A, "c")
    second = in_root(tmp_path, "second")
    with pytest.raises(PolicyRefusal, match="own-total-budget") as caught:
        admits(second.open(), TWO, policy)
    for way_out in ("data_id", "max_total_epsilon"):
        assert way_out in (caught.value.remedy or "")
    named = Folder(second.path, "photos", second.bundle, root=tmp_path).open()
    admits(named, TWO, policy)
    assert named.data is not None
    assert named.data.shown()["counts"] == "data"


def test_a_folder_beside_of_an_earlier_version_counts_before_its_device_came(
    tmp_path: Path,
) -> None:
    old = Folder(tmp_path / "old", None)
    old.open().debit(ONE, A, "c")  # without a mark, as every folder was
    spent = total(old.open())
    assert total(in_root(tmp_path, "new").open()) == spent
    back = in_root(tmp_path, "moved")
    back.bundle = old.bundle
    old.path.rename(back.path)
    assert (total(back.open()), back.open().charges("one")) == (spent, 1)
    assert total(in_root(tmp_path, "third").open()) == spent


def test_a_folder_beside_that_cannot_be_read_is_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / "old"
    key = open_storage_key(path, "a passphrase", operations=1, memory_bytes=8_192)
    DeviceAccount(Journal(path, key), 1e-5).debit(ONE, A, "c")
    error = in_root(tmp_path, "new").refused()
    assert error.reason == "data-account-missing"
    assert str(path) in str(error)
    assert total(in_root(tmp_path, "named", "journal").open()) == 0


def test_a_folder_beside_of_another_user_is_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that a run as root left: nobody else may look into it."""
    closed = tmp_path / "closed"
    closed.mkdir()
    stat = Path.stat

    def refusing(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.parent == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    folder = in_root(tmp_path, "first")
    monkeypatch.setattr(Path, "stat", refusing)
    error = folder.refused()
    assert error.reason == "data-account-missing"
    assert str(closed) in str(error)
    assert total(in_root(tmp_path, "named", "journal").open()) == 0


def test_folders_that_cannot_read_each_other_do_not_lock_each_other_out(tmp_path: Path) -> None:
    """Both are of an earlier version and under passphrases; neither is new."""
    for name, manifest, ctx in (("first", ONE, A), ("second", TWO, B)):
        key = open_storage_key(tmp_path / name, name, operations=1, memory_bytes=8_192)
        DeviceAccount(Journal(tmp_path / name, key), 1e-5).debit(manifest, ctx, "c")
    for name, charges in (("first", 1), ("second", 2)):
        journal = Journal(tmp_path / name, open_storage_key(tmp_path / name, name))
        choice = DataChoice(None, tmp_path / "registry", tmp_path)
        door = DataDoor(journal, tmp_path / name, choice, new_bundle(), NOW_S)
        data = door.open(DeviceAccount(journal, 1e-5))
        assert data is not None
        assert data.charges == charges
    assert total(in_root(tmp_path, "third").open()) > headline(lines(ONE, 1))


def test_an_app_may_name_its_data_later(tmp_path: Path) -> None:
    """Its folder brings what it spent itself; the others stay where they are."""
    in_root(tmp_path, "other").open().debit(TWO, B, "c")
    folder = in_root(tmp_path, "first")
    folder.open().debit(ONE, A, "c")
    named = Folder(folder.path, "journal", folder.bundle, root=tmp_path)
    assert total(named.open()) == headline(lines(ONE, 1))
    assert total(in_root(tmp_path, "third").open()) > headline(lines(ONE, 1))


# ---- what the app is told


def test_a_door_says_once_what_counts(tmp_path: Path) -> None:
    for data_id in ("journal", None):
        folder = Folder(tmp_path / str(data_id), data_id)
        folder.open()
        assert not folder.door().told
        folder.door().tell()
        assert folder.door().told
        folder.open()
        assert folder.door().told


def test_a_begun_account_is_said_again(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "first")
    folder.open()
    folder.door().tell()
    shutil.rmtree(tmp_path / "registry")
    folder.open(renew=True)
    assert not folder.door().told


# ---- the client


def test_a_client_opens_the_data_that_it_is_told(tmp_path: Path) -> None:
    """From the bundle to the record: both of two clients see one account."""
    registry = tmp_path / "registry"
    clients = [
        Client.from_bundle(
            new_bundle(),
            state_dir=tmp_path / name,
            data_id="journal",
            registry_dir=registry,
            clock=lambda: NOW_S,
        )
        for name in ("first", "second")
    ]
    with clients[0]._opened() as (_, account):
        account.debit(ONE, A, "c")
    with clients[1]._opened() as (_, other):
        assert total(other) == headline(lines(ONE, 1))
        assert other.data is not None
        assert other.data.folders == (tmp_path / "first", tmp_path / "second")
    shutil.rmtree(registry)
    with pytest.raises(StateError, match="data-account-missing"), clients[1]._opened():
        pass
    clients[1].renew_data_account()
    with clients[1]._opened() as (_, other):
        assert other.data is not None
        assert other.data.renewed == 1


def test_clients_of_the_user_s_state_folder_share_one_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    first, second = (Client.from_bundle(new_bundle(), clock=lambda: NOW_S) for _ in range(2))
    with first._opened() as (_, account):
        account.debit(ONE, A, "c")
    with second._opened() as (_, other):
        assert total(other) == headline(lines(ONE, 1))
    assert (tmp_path / "secagg" / "data" / "storage.key").is_file()


def test_a_record_holds_a_folder_once() -> None:
    first = Member(id="1", path="/a", identity="x")
    record = DataRecord().with_member(first).with_member(Member(id="1", path="/b", identity="x"))
    assert [member.path for member in record.members] == ["/b"]
    record = record.with_member(Member(id="2", path="/b", identity="x"))
    assert [(member.id, member.path) for member in record.members] == [("1", ""), ("2", "/b")]


def test_a_mark_of_this_version_is_read_by_the_next() -> None:
    """New fields come last and have defaults."""
    encoded = msgspec.msgpack.encode(Mark(tag="1"))
    assert msgspec.msgpack.decode(encoded, type=Mark) == Mark(tag="1")
