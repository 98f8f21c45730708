"""A state folder serves the device that it belongs to, whatever is asked of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import nacl.signing
import pytest

from client_sdk import Client, StateError
from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.enrolment import create_bundle, new_partner_key
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.tlog.notes import verifier_key
from secagg.http_api import EnrolmentBundle

KEY = bytes(nacl.signing.SigningKey(bytes(range(32))).verify_key)
STORED = Path(__file__).parents[3] / "vectors" / "stored-0453a63"
OLD = msgspec.json.decode((STORED / "bundle.json").read_bytes(), type=EnrolmentBundle)
USES: dict[str, Callable[[Client], Any]] = {
    "run": lambda client: client.run(None, task="stats"),  # type: ignore[arg-type]
    "recover_account": lambda client: client.recover_account(),
    "reset_session": lambda client: client.reset_session(),
    "quarantined": lambda client: client.quarantined(),
    "release_quarantine": lambda client: client.release_quarantine("stats"),
}


def new_bundle() -> EnrolmentBundle:
    verifier = verifier_key("ledger.test", KEY)
    return create_bundle(
        "http://127.0.0.1:9", KEY, verifier, new_partner_key().seed, not_after=4_000_000_000
    )


def client_of(bundle: EnrolmentBundle, folder: Path) -> Client:
    return Client.from_bundle(bundle, state_dir=folder, clock=lambda: 1_800_000_000.0)


def old_folder(name: str, tmp_path: Path) -> Path:
    folder = shutil.copytree(STORED / f"state-{name}", tmp_path / name)
    (folder / "storage.key").chmod(0o600)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name != "lock"
    }


def refused(client: Client, use: Callable[[Client], Any]) -> StateError:
    with pytest.raises(StateError) as caught:
        use(client)
    assert caught.value.reason == "state-of-another-device"
    return caught.value


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
def test_another_device_s_folder_is_refused_and_stays_as_it_is(
    use: Callable[[Client], Any], tmp_path: Path
) -> None:
    own, other = new_bundle(), new_bundle()
    folder = tmp_path / "device"
    client_of(own, folder).quarantined()
    before = content(folder)
    error = refused(client_of(other, folder), use)
    assert error.expected == other.certificate.identity_key.hex()
    assert error.found == own.certificate.identity_key.hex()
    assert content(folder) == before
    assert client_of(own, folder).quarantined() == ()


@pytest.mark.parametrize("use", [*USES.values(), Client.resume], ids=[*USES, "resume"])
@pytest.mark.parametrize("name", ["reported", "uploading", "confirmed"])
def test_an_old_folder_belongs_to_the_device_of_its_session(
    use: Callable[[Client], Any], name: str, tmp_path: Path
) -> None:
    folder = old_folder(name, tmp_path)
    before = content(folder)
    error = refused(client_of(new_bundle(), folder), use)
    assert error.found == OLD.certificate.identity_key.hex()
    assert content(folder) == before
    client_of(OLD, folder).reset_session()
    refused(client_of(new_bundle(), folder), Client.quarantined)  # without the session too


def test_an_old_folder_without_a_session_belongs_to_who_opens_it_first(tmp_path: Path) -> None:
    folder = old_folder("idle", tmp_path)
    client_of(OLD, folder).quarantined()
    refused(client_of(new_bundle(), folder), Client.recover_account)
    assert DeviceAccount(Journal(folder, open_storage_key(folder)), 1e-5).charges("stats") == 2


def test_an_unreadable_session_tells_nobody_s_name_and_can_be_reset(tmp_path: Path) -> None:
    folder = old_folder("reported", tmp_path)
    (folder / "session").write_bytes(b"?")
    assert client_of(OLD, folder).reset_session()
    refused(client_of(new_bundle(), folder), Client.reset_session)
