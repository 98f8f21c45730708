"""The journal: durable, sealed, one owner; effects come back as they were."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from client_sdk.errors import StateError
from client_sdk.maintenance import StateFolder
from client_sdk.state import durable_files
from client_sdk.state.journal import (
    Contribution,
    Journal,
    Lock,
    SessionRecord,
    StoredEffect,
    load_effect,
    store_effects,
)
from client_sdk.state.keystore import StorageKey, open_storage_key
from secagg.client import Effect, Failed, Finished, ProvideVector, Send, Upload
from secagg.secret import Secret


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state", StorageKey(Secret(bytes(32))))


def record(**changes: object) -> SessionRecord:
    fields: dict[str, object] = {
        "identity_key": bytes(32),
        "task": "t",
        "session": "ab" * 32,
        "manifest": b"manifest",
        "model_version": 3,
        "model_digest": bytes(32),
        "survivors_min": 4,
        "partner_keys": (bytes(32),),
        "contribution": "c0",
        "state": b"state with mask secret",
        "effects": store_effects((Send(b"deals"),)),
        "cursor": 2,
    }
    return SessionRecord(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "effect",
    [
        Send(b"message"),
        ProvideVector(bytes(32), 6),
        Upload(b"header", b"payload"),
        Finished(2, 17),
        Failed("cohort-aborted", "ended", bytes(32)),
        Failed("cohort-aborted", "ended", None),
    ],
)
def test_an_effect_comes_back_as_it_was(effect: Effect) -> None:
    (stored,) = store_effects((effect,))
    assert load_effect(stored, b"payload") == effect


@pytest.mark.parametrize(
    "stored", [StoredEffect(kind="Send"), StoredEffect(kind="Nothing", blobs=(b"",))]
)
def test_an_unknown_effect_is_refused(stored: StoredEffect) -> None:
    with pytest.raises(StateError, match="state-damaged"):
        load_effect(stored, None)


def test_an_upload_without_its_payload_is_refused() -> None:
    (stored,) = store_effects((Upload(b"header", b"payload"),))
    with pytest.raises(StateError, match="state-damaged"):
        load_effect(stored, None)


def test_a_session_survives_and_is_forgotten_when_it_ends(journal: Journal, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert journal.load_session() is None
    assert not Journal.has_session(folder)
    digest = journal.save_payload(b"masked")
    journal.save_session(record(payload_digest=digest))

    again = Journal(folder, StorageKey(Secret(bytes(32))))
    assert again.load_session() == record(payload_digest=digest)
    assert again.load_payload(digest) == b"masked"
    assert Journal.has_session(folder)

    again.end_session()
    assert not Journal.has_session(folder)
    assert not (folder / "vector").exists()


def test_another_payload_than_the_sessions_is_refused(journal: Journal) -> None:
    journal.save_payload(b"masked")
    with pytest.raises(StateError, match="state-damaged"):
        journal.load_payload(hashlib.sha256(b"other").digest())


def test_nothing_secret_lies_open_on_disk(journal: Journal, tmp_path: Path) -> None:
    journal.save_session(record())
    journal.save_payload(b"the masked payload")
    journal.save_contribution(
        Contribution.of(b"m", b"v", {"gradient": np.full(4, 0x4142434445464748)}, None)
    )
    for path in (tmp_path / "state").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert path.stat().st_mode & 0o077 == 0
            for secret in (b"mask secret", b"masked payload", b"HGFEDCBA", b"gradient"):
                assert secret not in content


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_a_contribution_comes_back_exactly(journal: Journal, dtype: type) -> None:
    values = {"delta": np.array([1, -2, 3], dtype), "weight": np.array([5], dtype)}
    journal.save_contribution(Contribution.of(b"m", b"v", values, "late"))
    loaded = journal.load_contribution()
    assert loaded is not None
    assert loaded.failed == "late"
    for name, array in loaded.values().items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, values[name])


def test_a_second_owner_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with Lock(tmp_path):
        with pytest.raises(StateError, match="state-in-use"), Lock(tmp_path):
            pass
        with pytest.raises(StateError, match="state-in-use"), Lock(tmp_path):
            pass
    with Lock(tmp_path):
        pass


def test_a_kill_while_writing_leaves_the_old_record(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.save_session(record(cursor=1))

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(durable_files.os, step, die)
            with pytest.raises(Killed):
                journal.save_session(record(cursor=2))
        loaded = journal.load_session()
        assert loaded is not None
        assert loaded.cursor == 1


def test_file_and_folder_are_synced_before_a_write_returns(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((name, (tmp_path / "state" / "session").exists()))
        fsync(descriptor)

    monkeypatch.setattr(durable_files.os, "fsync", watch)
    journal.save_session(record())
    folder = str(tmp_path / "state")
    assert synced == [(f"{folder}/session.new", False), (folder, True)]


def test_a_record_of_another_version_is_refused_with_a_remedy(journal: Journal) -> None:
    journal.save_blob("session", b"\x81\xa1x\x01")
    with pytest.raises(StateError, match="state-damaged"):
        journal.load_session()


def test_a_full_disk_is_a_typed_error_and_keeps_the_old_record(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.save_session(record(cursor=1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable_files.os, "fsync", full)
        with pytest.raises(StateError, match="state-unwritable"):
            journal.save_session(record(cursor=2))
    loaded = journal.load_session()
    assert loaded is not None
    assert loaded.cursor == 1


def test_only_the_newest_records_of_a_kind_are_kept(journal: Journal, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    journal.save_blob("other", b"x")
    for number in range(6):
        journal.save_blob(f"control-{number:032x}", b"x")
        os.utime(folder / f"control-{number:032x}", ns=(number, number))
    journal.keep_newest("control-", 4)
    left = sorted(path.name for path in folder.iterdir() if path.is_file())
    assert left == [*(f"control-{number:032x}" for number in range(2, 6)), "other"]
    journal.keep_newest("none-", 4)


def test_an_effect_of_before_several_models_has_no_staleness() -> None:
    stored = StoredEffect(kind="ProvideVector", blobs=(b"x" * 32,), numbers=(5,))
    assert load_effect(stored, None) == ProvideVector(b"x" * 32, 5, (), (), 0)


def test_a_lock_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(StateError, match="lock cannot be written") as caught, Lock(tmp_path):
        pass
    assert caught.value.reason == "state-unwritable"
    assert "read-only" in str(caught.value.remedy)


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "state"):
        with pytest.raises(StateError) as caught:
            open_storage_key(folder)
        assert caught.value.reason == "state-unwritable"


@pytest.mark.parametrize("name", ["storage.key", "account"])
def test_a_file_that_cannot_be_read_is_a_typed_error(tmp_path: Path, name: str) -> None:
    if name != "storage.key":
        open_storage_key(tmp_path)
    (tmp_path / name).mkdir(mode=0o700)
    with pytest.raises(StateError) as caught:
        Journal(tmp_path, open_storage_key(tmp_path)).load_blob(name)
    assert caught.value.reason == "state-unreadable"


def test_a_session_that_cannot_be_removed_is_a_typed_error(journal: Journal) -> None:
    journal.path("session").mkdir()
    with pytest.raises(StateError) as caught:
        journal.end_session()
    assert caught.value.reason == "state-unwritable"


def test_a_look_at_a_folder_writes_nothing(tmp_path: Path) -> None:
    """So that it can be had of a copy, and of a disk that has become read-only."""
    key = open_storage_key(tmp_path)
    Journal(tmp_path, key).save_session(record())

    def listed() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())}

    before = listed()
    state = StateFolder.open(tmp_path)
    assert state.pending() is not None
    assert state.quarantined() == ()
    assert listed() == before
    with Lock(tmp_path), pytest.raises(StateError, match="state-in-use"):
        state.pending()
