"""Files that people write: read with or without a mark, and told by what they are if not."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from aggregator.keys import load_keys, private_text
from aggregator.settings.options import Settings
from client_sdk.enrolment import (
    create_bundle,
    load_bundle,
    load_partner_key,
    new_partner_key,
)
from dp.tlog.notes import verifier_key
from secagg.errors import ConfigurationError, SecaggError
from secagg.files import text as text_files
from secagg.files.text import TextFile
from secagg.secret import Secret
from secagg_cli.audit.ledger_files import read_key
from secagg_cli.operator.client import read_token
from secagg_cli.operator.task import read_spec
from secagg_cli.state.session import read_passphrase
from secagg_cli.witness.command import _seed

PARTNER = new_partner_key()
VERIFIER = verifier_key("ledger.test", PARTNER.key)
BUNDLE = create_bundle("https://agg.example", PARTNER.key, VERIFIER, PARTNER.seed, 2_000_000_000)


def task_key(path: Path) -> bytes:
    path.rename(path.with_name("task.key"))
    return load_keys(path.parent).task.reveal()


def passphrase(path: Path) -> str | None:
    return read_passphrase(path)


def witness_seed(path: Path) -> bytes:
    return _seed(path).reveal()


@dataclass(frozen=True)
class Kind:
    """One kind of file: its name, text, what reads it, and the reasons of its errors."""

    name: str
    text: str
    read: Callable[[Path], Any]
    missing: str
    malformed: str


KINDS = {
    "task as TOML": Kind(
        "t.toml", "task = 'a'\n[budget]\nreleases_max = 2\n", read_spec, "spec-missing",
        "spec-malformed",
    ),
    "task as JSON": Kind(
        "t.JSON", '{"task":\n"a"}\n', read_spec, "spec-missing", "spec-malformed"
    ),
    "settings": Kind(
        "s.toml", "port = 7\n[witnesses]\na = 'b'\n", lambda path: Settings.load(path).port,
        "settings-missing", "settings-malformed",
    ),
    "bundle": Kind(
        "b.json", msgspec.json.format(msgspec.json.encode(BUNDLE)).decode(), load_bundle,
        "bundle-unreadable", "bundle-malformed",
    ),
    "partner's key": Kind(
        "p.key", base64.b64encode(PARTNER.seed.reveal()).decode() + "\n",
        lambda path: load_partner_key(path).key, "partner-key-unreadable", "partner-key-malformed",
    ),
    "verifier key": Kind(
        "v.key", VERIFIER + "\n", lambda path: read_key(str(path)), "key-missing", "verifier-key"
    ),
    "operator's token": Kind(
        "o.token", "abc-DEF\n", read_token, "operator-token", "operator-token"
    ),
    "passphrase": Kind(
        "pass", "correct horse\n", passphrase, "passphrase-unreadable", "passphrase-unreadable"
    ),
    "service's token": Kind(
        "operator.token", "abc\n", lambda path: private_text(path, str), "", "key-malformed"
    ),
    "service's key": Kind("a.key", "ab" * 32 + "\n", task_key, "", "key-malformed"),
    "witness's key": Kind("w.key", "cd" * 32 + "\n", witness_seed, "", "witness-key"),
}  # fmt: skip
EVERY = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
WRONG = {
    "it is UTF-16": [b"\xff\xfew\0\r\0", b"\xfe\xff\0w", b"w\0o\0r\0d\0", b"\xff\xfe"],
    "it is UTF-32": ["word".encode("utf-32"), b"\0\0\xfe\xff\0\0\0w"],
    "it is not utf-8, perhaps Latin-1: byte 0xfc in line 2": [b"#\ngr\xfcn = 'x'\r\n"],
    "it is binary data": [b"\x1f\x8b\x08\x00\x00abcd", b"PK\x03\x04\xff\xff", b"\x89PNG\r\n\x1a\n"],
    "it is empty": [b"", b"\xef\xbb\xbf", b" \r\n\n"],
}  # fmt: skip
CASES = [(found, content) for found, contents in WRONG.items() for content in contents]


def laid(folder: Path, kind: Kind, content: bytes) -> Path:
    file = folder / kind.name
    file.write_bytes(content)
    file.chmod(0o600)
    return file


@EVERY
def test_a_mark_and_line_ends_of_windows_are_read(tmp_path: Path, kind: Kind) -> None:
    plain = kind.read(laid(tmp_path, kind, kind.text.encode()))
    text = kind.text.replace("\n", "\r\n").encode()
    for content in (b"\xef\xbb\xbf" + text, text, b"\xef\xbb\xbf" + kind.text.encode()):
        assert kind.read(laid(tmp_path, kind, content)) == plain


@EVERY
@pytest.mark.parametrize(("found", "content"), CASES)
def test_what_is_no_text_is_told_with_its_file(
    tmp_path: Path, kind: Kind, found: str, content: bytes
) -> None:
    with pytest.raises(SecaggError) as caught:
        kind.read(laid(tmp_path, kind, content))
    assert caught.value.reason == kind.malformed
    assert found in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert caught.value.remedy


@EVERY
def test_a_folder_and_what_may_not_be_read_are_told(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / kind.name
    place.mkdir()
    with pytest.raises(SecaggError, match="it is a folder") as caught:
        kind.read(place)
    assert caught.value.reason in (kind.missing, kind.malformed, "key-unreadable")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", _denied)
        with pytest.raises(SecaggError, match="may not read it"):
            kind.read(place if place.exists() else tmp_path / "task.key")


def _denied(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("kind", [k for k in KINDS.values() if k.missing], ids=lambda k: k.name)
def test_a_file_that_is_not_there_is_told(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(SecaggError) as caught:
        kind.read(tmp_path / kind.name)
    assert caught.value.reason == kind.missing
    assert str(tmp_path / kind.name) in caught.value.message
    assert caught.value.remedy


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigurationError, match="larger than 4,096 bytes"):
        TextFile("file", ConfigurationError, "a", "b", 4_096).read(Path("/dev/zero"))


@pytest.mark.parametrize("text", ["[" * 100_000, "a = " + "[" * 100_000])
@pytest.mark.parametrize("name", ["t.json", "t.toml"])
def test_nests_without_end_are_malformed(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SecaggError) as caught:
        read_spec(tmp_path / name)
    assert caught.value.reason == "spec-malformed"


@pytest.mark.parametrize("text", ["zz" * 32, "ab" * 31, "ab" * 33])
def test_a_key_of_another_form_is_told(tmp_path: Path, text: str) -> None:
    for kind in (KINDS["service's key"], KINDS["witness's key"]):
        with pytest.raises(SecaggError) as caught:
            kind.read(laid(tmp_path, kind, text.encode()))
        assert caught.value.reason == kind.malformed
        (tmp_path / "task.key").unlink(missing_ok=True)


@pytest.mark.parametrize("token", ["two words", "gr\xfcn", "two\nlines"])
def test_a_token_that_no_request_can_carry_is_told(tmp_path: Path, token: str) -> None:
    (tmp_path / "t").write_text(token)
    with pytest.raises(SecaggError, match="not a token"):
        read_token(tmp_path / "t")


# -- who may read a secret --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "own", "read_only", "open_"),
    [
        (0o600, True, False, False),
        (0o400, True, False, False),
        (0o440, True, False, True),
        (0o440, False, False, False),  # a mounted secret of root's, for a user of its group
        (0o440, True, True, False),  # the same for root: nobody can change the mode
        (0o640, False, True, False),
        (0o660, False, False, True),  # others could put a key of theirs in its place
        (0o450, False, True, True),
        (0o444, False, True, True),
        (0o604, True, False, True),
    ],
)
def test_a_group_may_read_what_this_user_cannot_change(
    tmp_path: Path,
    mode: int,
    own: bool,
    read_only: bool,
    open_: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "secret"
    file.write_text("x")
    file.chmod(mode)
    flags = os.ST_RDONLY if read_only else 0
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_flag=flags))
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + (not own))
    with file.open() as opened:
        assert (text_files.open_to_others(opened.fileno()) == mode) is open_


@pytest.mark.parametrize("name", ["bundle", "partner's key", "service's key", "witness's key"])
def test_a_secret_that_others_may_read_is_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    file = laid(tmp_path, kind, kind.text.encode())
    file.chmod(0o644)
    with pytest.raises(SecaggError, match="mode 0644") as caught:
        kind.read(file)
    remedy = caught.value.remedy or ""
    assert "chmod 600" in remedy
    assert "defaultMode: 0400" in remedy


def test_a_pipe_has_no_mode_to_demand() -> None:
    reading, writing = os.pipe()
    assert stat.S_ISFIFO(os.fstat(reading).st_mode)
    try:
        assert text_files.open_to_others(reading) is None
    finally:
        os.close(reading)
        os.close(writing)


def test_a_secret_is_read_where_it_was_laid_by_a_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes: a link to a file of mode 0440, root's, in a folder that is mounted read-only."""
    file = tmp_path / "task.key"
    file.write_text("ab" * 32)
    file.chmod(0o440)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "task.key").symlink_to(file)
    (tmp_path / "keys" / "ledger.key").symlink_to(file)
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    assert isinstance(load_keys(tmp_path / "keys").task, Secret)
