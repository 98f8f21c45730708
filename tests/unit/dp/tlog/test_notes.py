"""Signed notes and checkpoints, against notes and keys that others published."""

from __future__ import annotations

import base64
import hashlib

import pytest

from dp.errors import LedgerError
from dp.tlog import notes, witness
from dp.tlog.notes import (
    Checkpoint,
    checkpoint_body,
    key_id,
    open_checkpoint,
    parse_checkpoint,
    parse_signatures,
    parse_verifier,
    sign_checkpoint,
    sign_note,
    verifier_key,
    verify_note,
)
from secagg.keys import identity_public_key
from secagg.secret import Secret
from tests.kits.nine_leaves import HEAD, LOG, SIGNED
from tests.kits.said import Case, refused
from tests.kits.tasks import LEDGER_SEED, ORIGIN, VERIFIER

# The worked example of Go's golang.org/x/mod/sumdb/note: key, seed and signed note.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
NOTE = (
    f"{TEXT}\n\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgK"
    "vqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()


def reason(call, *arguments) -> str:
    with pytest.raises(LedgerError) as caught:
        call(*arguments)
    return caught.value.reason


def test_published_note_verifies_and_is_signed_alike() -> None:
    assert verify_note(NOTE, parse_verifier(PETER)) == TEXT
    assert sign_note(TEXT, "PeterNeumann", Secret(PETER_SEED)) == NOTE


def test_published_verifier_keys_parse() -> None:
    for key in (
        PETER,
        "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8",
    ):
        parsed = parse_verifier(key)
        assert verifier_key(parsed.name, parsed.public_key) == key
        assert parse_verifier(key + "\n") == parsed


@pytest.mark.parametrize(
    "key",
    [
        "",
        "PeterNeumann",
        "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+AhpC2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy",
        "PeterNeumann+c74f20a3+%%%%",
        "Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ],
)
def test_broken_verifier_keys_are_refused(key: str) -> None:
    assert reason(parse_verifier, key) == "verifier-key"


def test_other_signatures_are_ignored_but_ours_must_hold() -> None:
    key = parse_verifier(PETER)
    other = sign_note(TEXT, "Enoch", Secret(bytes(32))).split(b"\n\n")[1]
    assert verify_note(NOTE + other, key) == TEXT
    assert reason(verify_note, TEXT.encode() + b"\n" + other, key) == "note-unsigned"
    forged = NOTE.replace(b"answer", b"enigma")
    assert reason(verify_note, forged, key) == "note-signature"
    assert reason(verify_note, forged + other, key) == "note-signature"


@pytest.mark.parametrize(
    "note",
    [
        b"",
        TEXT.encode(),
        TEXT.encode() + b"\n",
        NOTE[:-1],
        NOTE.replace("\u2014".encode(), b"-"),
        NOTE.replace(b"PeterNeumann ", b"PeterNeumann"),
        NOTE.replace(b"x08go/", b"x08go!"),
        NOTE.replace(b"problem,", b"problem\x00"),
        NOTE.replace(b"JnAM=", b"JnAN="),
        b"\xff" + NOTE,
        NOTE + "\u2014 Enoch AAAA\n".encode() * 64,
        b"x" * (1 << 20) + NOTE,
        TEXT.encode() + "\n\u2014 PeterNeumann AAAA\n".encode(),
    ],
)
def test_malformed_notes_are_refused(note: bytes) -> None:
    assert reason(verify_note, note, parse_verifier(PETER)) == "note-malformed"


def test_names_with_plus_or_space_cannot_sign() -> None:
    for name in ("", "a b", "a+b", "a\u00a0b", "a\nb"):
        assert reason(sign_note, TEXT, name, Secret(bytes(32))) == "key-name"
        assert reason(verifier_key, name, bytes(32)) == "key-name"
    assert reason(sign_note, "no newline", "a", Secret(bytes(32))) == "note-malformed"
    assert reason(verifier_key, "a", bytes(31)) == "verifier-key"


def test_checkpoint_body_is_the_specification_s() -> None:
    root = base64.b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
    body = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    checkpoint = Checkpoint("example.com/behind-the-sofa", 20_852_163, root)
    assert checkpoint_body(checkpoint) == body
    assert parse_checkpoint(body) == checkpoint
    assert parse_checkpoint(body + "an extension\n") == checkpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n",
        "origin\n5\n",
        "origin\n05\n" + "A" * 43 + "=\n",
        "origin\n-5\n" + "A" * 43 + "=\n",
        "origin\n\u0665\n" + "A" * 43 + "=\n",
        "origin\n5\nAAAA\n",
        "origin\n5\n%\n",
        "\n5\n" + "A" * 43 + "=\n",
        "origin\n5\n" + "A" * 43 + "=\n\nx\n",
        "origin\n" + "9" * 19 + "\n" + "A" * 43 + "=\n",
    ],
)
def test_malformed_checkpoints_are_refused(text: str) -> None:
    assert reason(parse_checkpoint, text) == "checkpoint-malformed"


def test_a_checkpoint_of_another_log_is_refused() -> None:
    mine = Checkpoint(ORIGIN, 3, bytes(32))
    key = parse_verifier(VERIFIER)
    assert open_checkpoint(sign_checkpoint(mine, Secret(LEDGER_SEED)), key) == mine
    foreign = sign_note(
        checkpoint_body(mine._replace(origin="other.example")), ORIGIN, Secret(LEDGER_SEED)
    )
    assert reason(open_checkpoint, foreign, key) == "checkpoint-origin"
    wrong_key = sign_checkpoint(mine, Secret(bytes(32)))
    assert reason(open_checkpoint, wrong_key, key) == "note-unsigned"


def test_notes_and_checkpoints_at_their_limits() -> None:
    seed, key = Secret(LEDGER_SEED), parse_verifier(VERIFIER)
    body = "x" * ((1 << 20) - len(sign_note("\n", ORIGIN, seed))) + "\n"
    largest = sign_note(body, ORIGIN, seed)
    assert len(largest) == 1 << 20
    assert verify_note(largest, key) == body
    with pytest.raises(LedgerError, match="note-malformed"):
        verify_note(sign_note("x" + body, ORIGIN, seed), key)
    assert verify_note(sign_note("a\n\nb\n", ORIGIN, seed), key) == "a\n\nb\n"
    root = base64.b64encode(bytes(32)).decode()
    assert parse_checkpoint(f"a\n{'9' * 18}\n{root}\n").size == 10**18 - 1
    assert parse_checkpoint(f"a\n0\n{root}\n") == Checkpoint("a", 0, bytes(32))
    assert parse_verifier(f" {VERIFIER}\n") == key
    assert key.key_id == hashlib.sha256(ORIGIN.encode() + b"\n\x01" + key.public_key).digest()[:4]
    signed = sign_checkpoint(Checkpoint(ORIGIN, 0, bytes(32)), seed)
    (line,) = parse_signatures(signed.decode().rpartition("\n\n")[2])
    assert (line.name, line.key_id, len(line.signature)) == (ORIGIN, key.key_id, 64)


def test_a_key_of_another_length_is_refused_though_its_hash_is_right() -> None:
    for short in (bytes(31), bytes(33)):
        encoded = base64.b64encode(b"\x01" + short).decode()
        assert reason(parse_verifier, f"a+{key_id('a', short).hex()}+{encoded}") == "verifier-key"
    assert reason(parse_signatures, "\u2014 a b AAAAAAA=\n") == "note-malformed"
    assert parse_signatures("\u2014 a AAAAAAA=\n")[0].signature == b"\x00"
    for control in ("a\x1fb", "a\x00"):
        assert reason(verifier_key, control, bytes(32)) == "key-name"


def test_our_signature_may_stand_after_another() -> None:
    other = sign_note(TEXT, "Enoch", Secret(bytes(32))).decode().rpartition("\n\n")[2]
    ours = NOTE.decode().rpartition("\n\n")[2]
    assert verify_note(f"{TEXT}\n{other}{ours}".encode(), parse_verifier(PETER)) == TEXT


WITNESS = witness.witness_key("w.example", identity_public_key(Secret(bytes(32))))


REFUSED = {
    "a key's name": Case(lambda: notes.verifier_key("a+b", bytes(32)), "key-name", None, "a+b"),
    "a key too short": Case(lambda: notes.verifier_key("a", bytes(31)), "verifier-key", 32, 31),
    "a key in two parts": Case(lambda: parse_verifier("a+b"), "verifier-key"),
    "a key of no base64": Case(lambda: parse_verifier("a+00000000+%"), "verifier-key"),
    "a witness's key for a log": Case(lambda: parse_verifier(WITNESS), "verifier-key"),
    "a key's hash": Case(lambda: parse_verifier(VERIFIER.replace("+", "+0", 1)), "verifier-key"),
    "a note without a newline": Case(
        lambda: sign_note("text", "a", Secret(bytes(32))), "note-malformed"
    ),
    "65 signatures": Case(
        lambda: notes.parse_signatures("\u2014 a AAAAAAA=\n" * 65), "note-malformed"
    ),
    "a signature of no base64": Case(
        lambda: notes.parse_signatures("\u2014 a %\n"), "note-malformed"
    ),
    "a signature without a dash": Case(
        lambda: notes.parse_signatures("- a AAAAAAA=\n"), "note-malformed"
    ),
    "a note too large": Case(lambda: notes.split_note(b"x" * ((1 << 20) + 1)), "note-malformed"),
    "a note of no text": Case(lambda: notes.split_note(b"\xff"), "note-malformed"),
    "a note without signatures": Case(lambda: notes.split_note(b"text\n"), "note-malformed"),
    "a forged note": Case(
        lambda: notes.verify_note(SIGNED.replace(b"\n9\n", b"\n8\n"), LOG),
        "note-signature",
        None,
        ORIGIN,
    ),
    "a note by another key": Case(
        lambda: notes.verify_note(sign_checkpoint(HEAD, Secret(bytes(32))), LOG),
        "note-unsigned",
        f"{ORIGIN}+{LOG.key_id.hex()}",
        f"{ORIGIN}+{notes.key_id(ORIGIN, identity_public_key(Secret(bytes(32)))).hex()}",
    ),
    "no checkpoint": Case(lambda: notes.parse_checkpoint("a\n"), "checkpoint-malformed"),
    "another log's checkpoint": Case(
        lambda: notes.open_checkpoint(
            sign_note(
                notes.checkpoint_body(HEAD._replace(origin="b")), ORIGIN, Secret(LEDGER_SEED)
            ),
            LOG,
        ),
        "checkpoint-origin",
        ORIGIN,
        "b",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], LedgerError)


def test_signature_lines_are_read_strictly() -> None:
    data = base64.b64encode(b"keyid" + bytes(3)).decode()
    (line,) = notes.parse_signatures(f"\u2014 a {data}\n")
    assert line == ("a", b"keyi", b"d" + bytes(3))
    assert len(notes.parse_signatures("\u2014 a AAAAAAA=\n" * 64)) == 64
    for broken in (
        f"\u2014 a {data}",
        f"\u2014  {data}\n",
        "\u2014 a AAAAAA==\n",  # a key ID without a signature
        "\u2014 a AAAAAAB=\n",  # a second spelling of five zero bytes
        "\u2014 a AAAA AAA=\n",
        "\n",
    ):
        with pytest.raises(LedgerError, match="note-malformed"):
            notes.parse_signatures(broken)
