"""The storage key: what it seals opens again, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import nacl.pwhash.argon2id as argon2id
import pytest

from client_sdk.errors import StateError
from client_sdk.state.keystore import StorageKey, open_storage_key
from secagg.secret import Secret

CHEAP = {"operations": argon2id.OPSLIMIT_MIN, "memory_bytes": argon2id.MEMLIMIT_MIN}


def reason_of(caught: pytest.ExceptionInfo[StateError]) -> str:
    return caught.value.reason


def test_what_is_sealed_opens_under_its_name_after_a_restart(tmp_path: Path) -> None:
    sealed = open_storage_key(tmp_path).seal("session", b"mask secret")
    assert b"mask secret" not in sealed
    assert open_storage_key(tmp_path).open("session", sealed) == b"mask secret"


@pytest.mark.parametrize("position", [0, 23, 24, -1])
def test_a_changed_byte_does_not_open(position: int) -> None:
    key = StorageKey(Secret(os.urandom(32)))
    sealed = bytearray(key.seal("session", b"text"))
    sealed[position] ^= 1
    with pytest.raises(StateError) as caught:
        key.open("session", bytes(sealed))
    assert reason_of(caught) == "state-damaged"


@pytest.mark.parametrize("sealed", [b"", b"short", bytes(24), bytes(39)])
def test_a_truncated_blob_gets_its_typed_error(sealed: bytes) -> None:
    with pytest.raises(StateError) as caught:
        StorageKey(Secret(os.urandom(32))).open("session", sealed)
    assert reason_of(caught) == "state-damaged"


def test_blobs_cannot_be_swapped() -> None:
    key = StorageKey(Secret(os.urandom(32)))
    with pytest.raises(StateError):
        key.open("account", key.seal("session", b"text"))


def test_the_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    open_storage_key(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    path = tmp_path / "state" / "storage.key"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(StateError) as caught:
        open_storage_key(tmp_path / "state")
    assert reason_of(caught) == "keystore-open"
    assert "chmod 600" in str(caught.value)


def test_a_passphrase_opens_and_a_wrong_one_is_told_at_once(tmp_path: Path) -> None:
    sealed = open_storage_key(tmp_path, "correct horse", **CHEAP).seal("a", b"text")
    assert open_storage_key(tmp_path, "correct horse").open("a", sealed) == b"text"
    with pytest.raises(StateError) as caught:
        open_storage_key(tmp_path, "battery staple")
    assert reason_of(caught) == "passphrase-wrong"


def test_the_passphrase_file_holds_no_key(tmp_path: Path) -> None:
    open_storage_key(tmp_path, "correct horse", **CHEAP)
    assert b'"key":""' in (tmp_path / "storage.key").read_bytes()


@pytest.mark.parametrize(("made", "opened"), [(None, "words"), ("words", None)])
def test_the_way_of_sealing_cannot_change_silently(
    tmp_path: Path, made: str | None, opened: str | None
) -> None:
    open_storage_key(tmp_path, made, **CHEAP)
    with pytest.raises(StateError) as caught:
        open_storage_key(tmp_path, opened)
    assert reason_of(caught) == "keystore-kind"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b'{"version":2,"kind":"file"}',
        b'{"kind":"file","key":"AAAA"}',
        b'{"kind":"file","key":"AAAA","extra":1}',
    ],
)
def test_a_damaged_key_file_gets_its_typed_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "storage.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StateError) as caught:
        open_storage_key(tmp_path)
    assert reason_of(caught) == "keystore-damaged"


def test_a_key_file_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    open_storage_key(tmp_path, "words", **CHEAP)
    path = tmp_path / "storage.key"
    limit = str(argon2id.MEMLIMIT_MIN).encode()
    path.write_bytes(path.read_bytes().replace(limit, b"99999999999"))
    with pytest.raises(StateError) as caught:
        open_storage_key(tmp_path, "words")
    assert reason_of(caught) == "keystore-damaged"
