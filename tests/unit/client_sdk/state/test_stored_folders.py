"""State folders that the first version wrote are read, and go on with the right effects."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import msgspec
import pytest

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.client import Client
from client_sdk.errors import StateError
from client_sdk.ledger.watch import LedgerWatch
from client_sdk.policy import PrivacyPolicy
from client_sdk.rounds.participant import note_given
from client_sdk.rounds.session import Session
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.ledger.verification import verify_ledger
from secagg.client import Send, Upload
from secagg.http_api import EnrolmentBundle
from secagg.messages import KINDS, Confirmation, MaskedInput, peek

STORED = Path(__file__).parents[3] / "vectors" / "stored-0453a63"
BUNDLE = msgspec.json.decode((STORED / "bundle.json").read_bytes(), type=EnrolmentBundle)
TASK = "stats"


def folder_of(name: str, tmp_path: Path) -> Path:
    folder = tmp_path / name
    shutil.copytree(STORED / f"state-{name}", folder)
    (folder / "storage.key").chmod(0o600)
    return folder


def journal_of(name: str, tmp_path: Path) -> Journal:
    folder = folder_of(name, tmp_path)
    return Journal(folder, open_storage_key(folder))


@pytest.mark.parametrize(
    ("name", "charges"), [("idle", 2), ("reported", 1), ("uploading", 2), ("confirmed", 2)]
)
def test_account_and_checkpoint_are_read(tmp_path: Path, name: str, charges: int) -> None:
    journal = journal_of(name, tmp_path)
    assert DeviceAccount(journal, 1e-5).charges(TASK) == charges
    ledger = LedgerWatch(None, journal, BUNDLE.ledger_verifier)  # type: ignore[arg-type]
    remembered = ledger.remembered()
    assert remembered is not None
    assert remembered.size >= 1


def test_a_stored_account_is_judged_by_the_rules_of_now(tmp_path: Path) -> None:
    """The first version stored no charge for a task without noise: it was not free."""
    account = DeviceAccount(journal_of("idle", tmp_path), 1e-5)
    assert account.epsilon(TASK) == math.inf
    assert [(total.epsilon, total.unbounded) for total in account.totals()] == [
        (math.inf, (TASK,))
    ] * 2


@pytest.mark.parametrize(
    ("name", "phase", "kind"),
    [
        ("reported", "advertised", Send),
        ("uploading", "uploading", Upload),
        ("confirmed", "confirmed", Send),
    ],
)
def test_a_session_resumes_with_its_effects(
    tmp_path: Path, name: str, phase: str, kind: type
) -> None:
    session = Session.resume(journal_of(name, tmp_path), BUNDLE, lambda: 0.0)
    assert session is not None
    assert session.state.phase == phase
    (effect,) = session.effects
    assert isinstance(effect, kind)
    if isinstance(effect, Upload):
        assert isinstance(peek(effect.header, *KINDS)[0], MaskedInput)
        assert effect.payload
    if phase == "confirmed" and isinstance(effect, Send):
        assert isinstance(peek(effect.message, *KINDS)[0], Confirmation)


@pytest.mark.parametrize("name", ["uploading", "confirmed"])
def test_a_contribution_whose_vector_left_is_spent(tmp_path: Path, name: str) -> None:
    journal = journal_of(name, tmp_path)
    contribution, session = journal.load_contribution(), journal.load_session()
    assert contribution is not None
    assert session is not None
    account = DeviceAccount(journal, 1e-5)
    assert account.served(contribution.name) == session.ctx
    assert account.given(session.model_digest) is None  # the first version did not write it down
    resumed = Session.resume(journal, BUNDLE, lambda: 0.0)
    assert resumed is not None
    note_given(account, resumed)
    assert DeviceAccount(journal, 1e-5).given(session.model_digest) == session.ctx
    assert DeviceAccount(journal, 1e-5).charges(TASK) == 2


def test_a_contribution_that_was_only_reported_is_not(tmp_path: Path) -> None:
    journal = journal_of("reported", tmp_path)
    contribution = journal.load_contribution()
    assert contribution is not None
    assert DeviceAccount(journal, 1e-5).served(contribution.name) is None


def test_a_client_sees_what_is_pending(tmp_path: Path) -> None:
    for name, pending in (("idle", False), ("confirmed", True)):
        folder = folder_of(name, tmp_path)
        client = Client(BUNDLE, PrivacyPolicy(), folder, open_storage_key(folder))
        assert client.has_pending() == pending


def test_the_ledger_verifies() -> None:
    def read(path: str) -> bytes | None:
        file = STORED / "ledger" / path
        return file.read_bytes() if file.is_file() else None

    found = verify_ledger(read, (STORED / "verifier.key").read_text().strip())
    assert found.verified, found.problems


def test_deleted_checkpoints_beside_charges_are_noticed(tmp_path: Path) -> None:
    """A roll-back of the ledger would not be noticed without them."""
    folder = folder_of("idle", tmp_path)
    for checkpoint in folder.glob("checkpoint-*"):
        checkpoint.unlink()
    client = Client(BUNDLE, PrivacyPolicy(), folder, open_storage_key(folder))
    with pytest.raises(StateError) as caught:
        client.run(None, task=TASK)  # type: ignore[arg-type]
    assert caught.value.reason == "state-missing"
