"""Forgetting a device: what goes, what stays, what cannot be undone, and a kill in between."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from client_sdk import Client, StateError, forgetting
from client_sdk.accounts import data_door, registry
from client_sdk.enrolment import save_bundle
from client_sdk.state import durable_files, keystore
from client_sdk.state.journal import Lock
from secagg.http_api import EnrolmentBundle
from tests.kits.data_accounts import NOW_S, ONE, new_bundle

STORED = Path(__file__).parents[2] / "vectors" / "stored-0453a63"
OLD = msgspec.json.decode((STORED / "bundle.json").read_bytes(), type=EnrolmentBundle)


class Killed(BaseException):
    pass


class Phone:
    """Where a user's devices lie."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def device(
        self,
        name: str = "device",
        *,
        folder: str | None = None,
        data_id: str | None = "journal",
        again: bool = False,
    ) -> Client:
        bundle = self.home / f"{name}.json"
        if not again:
            save_bundle(bundle, new_bundle())
        return Client.from_bundle(
            bundle,
            state_dir=self.home / (folder or name),
            data_id=data_id,
            registry_dir=self.home / "registry",
            clock=lambda: NOW_S,
        )


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    return Phone(tmp_path)


def spend(client: Client, ctx: bytes = bytes(32)) -> None:
    with client._opened() as (journal, account):
        account.debit(ONE, ctx, "contribution")
        journal.save_blob("checkpoint-x", b"checkpoint")
        for name in ("places-x", "server-time", "control-x", "revocations-x", "usage", "failing"):
            journal.save_blob(name, b"content")
        journal.save_open("evidence-x", b"{}")
        (journal.models / ("0" * 64)).write_bytes(b"model")


def charges(client: Client) -> int:
    with client._opened() as (_, account):
        return account.charges("one")


def test_identity_journal_and_models_go_and_the_account_of_the_data_stays(phone: Phone) -> None:
    client = phone.device()
    spend(client)
    forgotten = client.forget()
    assert not (phone.home / "device").exists()
    assert not (phone.home / "device.json").exists()
    assert (forgotten.account, forgotten.kept, forgotten.charges) == ("data", (), {"one": 1})
    assert charges(phone.device("new")) == 1


def test_what_cannot_be_undone_is_said(phone: Phone) -> None:
    client = phone.device()
    spend(client)
    text = client.forget().text()
    for said in ("cannot be undone", "released", "ledger keeps for ever", "one: 1", "still counts"):
        assert said in text


def test_the_account_of_a_folder_that_counts_alone_stays_in_it(phone: Phone) -> None:
    client = phone.device(data_id=None)
    spend(client)
    forgotten = client.forget()
    assert forgotten.account == "folder"
    folder = phone.home / "device"
    names = {"account", "checkpoint-x", "places-x", "storage.key", "usage"}
    assert {path.name for path in forgotten.kept} == names
    assert {path.name for path in folder.rglob("*") if path.is_file()} == names | {"lock"}
    assert charges(phone.device("new", folder="device", data_id=None)) == 1


def test_a_device_that_spent_nothing_leaves_nothing(phone: Phone) -> None:
    assert phone.device(data_id=None).forget().account == "empty"
    assert not (phone.home / "device").exists()


def test_the_second_word_forgets_the_account_too(phone: Phone) -> None:
    client = phone.device()
    spend(client)
    forgotten = client.forget(also_account=True)
    assert forgotten.account == "gone"
    assert "spent again" in forgotten.text()
    assert charges(phone.device("new")) == 0


@pytest.mark.parametrize("data_id", ["journal", None])
def test_the_second_word_holds_for_a_folder_that_counts_alone(
    phone: Phone, data_id: str | None
) -> None:
    client = phone.device(data_id=data_id)
    spend(client)
    client.forget(also_account=True)
    assert not (phone.home / "device").exists()
    assert charges(phone.device("new", folder="device", data_id=data_id)) == 0


def test_an_account_on_which_others_count_is_not_forgotten(phone: Phone) -> None:
    first, second = phone.device("first"), phone.device("second")
    spend(first)
    spend(second, b"2" * 32)
    with pytest.raises(StateError) as caught:
        first.forget(also_account=True)
    assert caught.value.reason == "account-shared"
    assert caught.value.found == [str(phone.home / "second")]
    assert charges(first) == 2  # nothing was removed
    second.forget()
    assert first.forget(also_account=True).account == "gone"


def test_a_client_does_nothing_more_afterwards(phone: Phone) -> None:
    client = phone.device()
    client.forget()
    for use in (client.forget, client.renew_data_account):
        with pytest.raises(StateError, match="forgotten"):
            use()
    assert not (phone.home / "device").exists()


def test_a_device_that_runs_is_not_forgotten(phone: Phone) -> None:
    client = phone.device()
    with Lock(phone.home / "device"), pytest.raises(StateError, match="state-in-use"):
        client.forget()
    assert (phone.home / "device.json").exists()


def test_a_bundle_that_the_app_holds_is_named(phone: Phone) -> None:
    client = Client.from_bundle(new_bundle(), state_dir=phone.home / "x", clock=lambda: NOW_S)
    forgotten = client.forget()
    assert not forgotten.identity
    assert "the app holds" in forgotten.text()


def test_files_of_others_stay(phone: Phone) -> None:
    client = phone.device()
    note = phone.home / "device" / "notes.txt"
    note.write_text("mine")
    assert client.forget().kept == (note,)
    assert note.read_text() == "mine"


@pytest.mark.parametrize("phase", ["uploading", "confirmed"])
def test_a_vector_that_is_on_its_way_is_waited_for_unless_told(tmp_path: Path, phase: str) -> None:
    folder = shutil.copytree(STORED / f"state-{phase}", tmp_path / phase)
    (folder / "storage.key").chmod(0o600)

    def client() -> Client:
        return Client.from_bundle(OLD, state_dir=folder, clock=lambda: 1_800_000_000.0)

    with pytest.raises(StateError) as caught:
        client().forget()
    assert (caught.value.reason, caught.value.found) == ("session-pending", phase)
    assert client().has_pending()
    assert client().forget(end_session=True).account == "folder"
    assert not (folder / "session").exists()


@pytest.mark.parametrize("state", ["idle", "reported"])
def test_an_advert_is_dropped_without_a_word(tmp_path: Path, state: str) -> None:
    folder = shutil.copytree(STORED / f"state-{state}", tmp_path / state)
    (folder / "storage.key").chmod(0o600)
    client = Client.from_bundle(OLD, state_dir=folder, clock=lambda: 1_800_000_000.0)
    client.forget()
    assert not (folder / "session").exists()


# ---- kills


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Dies before the removal number ``step``, from 0; the files that were removed before."""
    removed: list[Path] = []

    def remove(path: Path) -> None:
        if len(removed) == step:
            raise Killed
        durable_files.remove_durably(path)
        removed.append(path)

    for module in (forgetting, keystore, registry):
        monkeypatch.setattr(module, "remove_durably", remove)
    return removed


@pytest.mark.parametrize("also_account", [False, True])
@pytest.mark.parametrize("data_id", ["journal", None])
def test_a_kill_between_two_deletions_is_made_up_for(
    phone: Phone, monkeypatch: pytest.MonkeyPatch, data_id: str | None, also_account: bool
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    ended = False
    step = 0
    while not ended:
        name = f"device{step}"
        client = phone.device(name, data_id=data_id)
        spend(client, bytes((step,)) * 32)
        before = 1 if data_id is None else charges(client)
        with monkeypatch.context() as patch:
            killed_at(step, patch)
            try:
                client.forget(also_account=also_account)
                ended = True
            except Killed:
                pass
        if not ended and (phone.home / f"{name}.json").exists():
            again = phone.device(name, data_id=data_id, again=True)
            with pytest.raises(StateError) as caught:
                charges(again)
            assert caught.value.reason == "forget-unfinished"
            again.forget()
        assert not (phone.home / f"{name}.json").exists()
        successor = phone.device("new" + name, folder=name, data_id=data_id)
        assert charges(successor) == (0 if also_account else before), step
        successor.forget()
        step += 1
    assert step > 6


def test_the_account_is_safe_before_anything_is_removed(
    phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = phone.device(data_id=None)
    spend(client)
    named = phone.device(data_id="journal", again=True)
    (phone.home / "registry").mkdir()

    def no_room(*_: object) -> None:
        raise StateError("state-unwritable", "The disk is full.")

    monkeypatch.setattr(data_door.DataAccount, "register", no_room)
    with pytest.raises(StateError, match="state-unwritable"):
        named.forget()
    assert (phone.home / "device.json").exists()
    assert (phone.home / "device" / "account").exists()


def test_an_old_copy_of_a_forgotten_folder_begins_no_new_account(phone: Phone) -> None:
    client = phone.device()
    spend(client)
    shutil.copytree(phone.home / "device", phone.home / "copy")
    shutil.copy(phone.home / "device.json", phone.home / "copy.json")
    client.forget(also_account=True)
    restored = phone.device("copy", again=True)
    with pytest.raises(StateError, match="data-account-missing"):
        charges(restored)
    shutil.rmtree(phone.home / "registry")
