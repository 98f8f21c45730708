"""The storage key in the system's keyring: found again, and gone when a device is forgotten."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from keyring.backends import fail, null

from client_sdk import Client, StateError, forgetting
from client_sdk.enrolment import save_bundle
from client_sdk.state import keystore
from client_sdk.state.keystore import open_storage_key
from tests.kits.data_accounts import NOW_S, ONE, new_bundle
from tests.kits.keyrings import FileKeyring, chosen


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[FileKeyring]:
    backend = FileKeyring(tmp_path / "ring.json")
    with chosen(backend):
        yield backend


def refused(folder: Path, **how: object) -> StateError:
    with pytest.raises(StateError) as caught:
        open_storage_key(folder, **how)  # type: ignore[arg-type]
    return caught.value


def test_the_key_is_in_the_keyring_and_not_among_the_files(
    ring: FileKeyring, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    sealed = open_storage_key(folder, keyring=True).seal("session", b"secret")
    ((name, key),) = ring.entries.items()
    assert name.startswith("secagg/")
    assert len(bytes.fromhex(key)) == 32
    stored = (folder / "storage.key").read_bytes()
    assert key.encode() not in stored
    for how in ({"keyring": True}, {}):  # the folder knows where its key is
        assert open_storage_key(folder, **how).open("session", sealed) == b"secret"


def test_a_copy_of_the_folder_opens_for_nobody_else(ring: FileKeyring, tmp_path: Path) -> None:
    open_storage_key(tmp_path / "state", keyring=True)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    with chosen(FileKeyring(tmp_path / "other.json")):
        error = refused(tmp_path / "copy", keyring=True)
    assert error.reason == "keyring-entry-gone"
    assert "secagg" in str(error.found)


def test_another_key_under_the_entry_is_told_at_once(ring: FileKeyring, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    open_storage_key(folder, keyring=True)
    (name,) = ring.entries
    service, _, entry = name.partition("/")
    ring.set_password(service, entry, "00" * 32)
    assert refused(folder).reason == "state-damaged"
    ring.set_password(service, entry, "00")
    assert refused(folder).reason == "keyring-entry-gone"
    ring.set_password(service, entry, "no hex")
    assert refused(folder).reason == "keystore-damaged"


def test_a_folder_is_sealed_in_one_way(ring: FileKeyring, tmp_path: Path) -> None:
    assert refused(tmp_path / "a", passphrase="p", keyring=True).reason == "keystore-kind"
    open_storage_key(tmp_path / "file")
    assert refused(tmp_path / "file", keyring=True).reason == "keystore-kind"
    open_storage_key(tmp_path / "ring", keyring=True)
    assert refused(tmp_path / "ring", passphrase="p").reason == "keystore-kind"


def test_a_keyring_that_is_not_there_or_keeps_nothing_seals_nothing(tmp_path: Path) -> None:
    for backend, reason in (
        (fail.Keyring(), "keyring-unavailable"),
        (null.Keyring(), "keyring-forgets"),
    ):
        with chosen(backend):
            error = refused(tmp_path / reason, keyring=True)
        assert error.reason == reason
        assert error.remedy
        assert not (tmp_path / reason / "storage.key").exists()


def test_without_the_extra_it_says_what_to_install_and_nothing_else_needs_it(
    tmp_path: Path,
) -> None:
    code = """
import sys
sys.modules["keyring"] = None
from pathlib import Path
from client_sdk import StateError
from client_sdk.client import Client
from client_sdk.state.keystore import open_storage_key
open_storage_key(Path(sys.argv[1]) / "file")
try:
    open_storage_key(Path(sys.argv[1]) / "ring", keyring=True)
except StateError as error:
    print(error.reason, error.remedy)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "package-missing pip install 'secagg[keyring]'"


# ---- the account, and forgetting


def device(home: Path, name: str, *, again: bool = False) -> Client:
    if not again:
        save_bundle(home / f"{name}.json", new_bundle())
    return Client.from_bundle(
        home / f"{name}.json",
        state_dir=home / name,
        keyring=True,
        data_id="journal",
        registry_dir=home / "registry",
        clock=lambda: NOW_S,
    )


def charges(client: Client) -> int:
    with client._opened() as (_, account):
        return account.charges("one")


def spend(client: Client) -> None:
    with client._opened() as (journal, account):
        account.debit(ONE, bytes(32), "c")
        journal.save_blob("checkpoint-x", b"as beside any charge")


def test_the_account_is_the_data_s_whatever_the_identity_and_its_keyring(
    ring: FileKeyring, tmp_path: Path
) -> None:
    spend(device(tmp_path, "first"))
    with chosen(FileKeyring(tmp_path / "other.json")):  # another keyring, another identity
        assert charges(device(tmp_path, "second")) == 1


def test_forgetting_takes_the_key_out_of_the_keyring(ring: FileKeyring, tmp_path: Path) -> None:
    client = device(tmp_path, "first")
    spend(client)
    assert len(ring.entries) == 1
    assert client.forget().account == "data"
    assert ring.entries == {}
    assert charges(device(tmp_path, "second")) == 1


def test_a_keyring_that_is_away_while_a_device_is_forgotten_costs_no_account(
    ring: FileKeyring, tmp_path: Path
) -> None:
    """A key that is not found is not a key that is gone."""
    client = device(tmp_path, "first")
    spend(client)
    folder = tmp_path / "first"
    (folder / "forgetting").write_bytes(b"begun")
    before = (folder / "storage.key").read_bytes()
    with chosen(FileKeyring(tmp_path / "other.json")):
        assert refused(folder, keyring=True).reason == "keyring-entry-gone"
    assert (folder / "storage.key").read_bytes() == before


@pytest.mark.parametrize("step", range(3))
def test_a_kill_while_the_key_goes_is_made_up_for(
    ring: FileKeyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    class Killed(BaseException):
        pass

    client = device(tmp_path, "first")
    spend(client)
    steps = 0
    remove = keystore.remove_durably

    def dying(path: Path) -> None:
        nonlocal steps
        if path.name.startswith("storage.key") or path.name == "forgetting":
            if steps == step:
                raise Killed
            steps += 1
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(keystore, "remove_durably", dying)
        patch.setattr(forgetting, "remove_durably", dying)
        with pytest.raises(Killed):
            client.forget()
    assert not (tmp_path / "first.json").exists()
    save_bundle(tmp_path / "first.json", new_bundle())  # a new device on the same folder
    assert charges(device(tmp_path, "first", again=True)) == 1
    assert len(ring.entries) == 1
