"""C2SP signed notes, checkpoints and verifier keys, Ed25519 only (signature type 0x01).

Formats: c2sp.org/signed-note and c2sp.org/tlog-checkpoint. A verifier key is one line,
``name+hash+base64(0x01 || public key)``; hash is the key ID in hex,
SHA-256(name || 0x0A || 0x01 || public key)[:4].
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import NamedTuple

import nacl.exceptions
import nacl.signing

from dp.errors import LedgerError
from secagg.secret import Secret

ED25519 = b"\x01"
COSIGNATURE_V1 = b"\x04"  # c2sp.org/tlog-cosignature
_NOTE_BYTES_MAX = 1 << 20
_SIGNATURES_MAX = 64  # the specification asks for at least 16


class Verifier(NamedTuple):
    """A parsed verifier key. ``name``: of the key, and the origin of the log's checkpoints."""

    name: str
    key_id: bytes
    public_key: bytes


class Checkpoint(NamedTuple):
    """A tree head: origin, number of leaves, root hash (32 bytes)."""

    origin: str
    size: int
    root: bytes


def _unbase64(text: str) -> bytes:
    """Strict: one text for each value, so that a note has no second spelling."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("base64 with stray bits")
    return data


def _check_name(name: str) -> None:
    if not name or "+" in name or any(c.isspace() or ord(c) < 0x20 for c in name):
        raise LedgerError(
            "key-name",
            "A key's name is not empty and holds no space, control character or '+'.",
            found=name,
        )


def key_id(name: str, public_key: bytes, kind: bytes = ED25519) -> bytes:
    """The four bytes that name a key in a signature line; ``kind``: the signature type."""
    return hashlib.sha256(name.encode() + b"\n" + kind + public_key).digest()[:4]


def verifier_key(name: str, public_key: bytes, kind: bytes = ED25519) -> str:
    """The verifier key of an Ed25519 public key (32 bytes).

    Args:
        kind: :data:`ED25519` for a log, :data:`COSIGNATURE_V1` for a witness.

    Raises:
        LedgerError: ``key-name`` or ``verifier-key``.
    """
    _check_name(name)
    if len(public_key) != 32:
        raise LedgerError("verifier-key", "No Ed25519 key.", expected=32, found=len(public_key))
    encoded = base64.b64encode(kind + public_key).decode()
    return f"{name}+{key_id(name, public_key, kind).hex()}+{encoded}"


def parse_verifier(verifier: str, kind: bytes = ED25519) -> Verifier:
    """Parse a verifier key of one kind strictly.

    Raises:
        LedgerError: ``verifier-key``.
    """

    def fail(message: str) -> LedgerError:
        return LedgerError(
            "verifier-key", message, remedy="A verifier key reads name+hash+base64, on one line."
        )

    parts = verifier.strip().split("+", 2)
    if len(parts) != 3:
        raise fail("The verifier key does not parse.")
    name, hashed, encoded = parts
    try:
        _check_name(name)
        key = _unbase64(encoded)
    except (LedgerError, binascii.Error, ValueError) as error:
        raise fail("The verifier key does not parse.") from error
    if len(key) != 33 or key[:1] != kind:
        raise fail(f"The verifier key is not of type 0x{kind.hex()}.")
    if key_id(name, key[1:], kind).hex() != hashed:
        raise fail("The verifier key's hash does not match its key.")
    return Verifier(name, bytes.fromhex(hashed), key[1:])


def sign_note(text: str, name: str, seed: Secret) -> bytes:
    """A signed note.

    Args:
        text: ends in a newline, no control characters but newlines.
        name: of the key.
        seed: the Ed25519 seed, 32 bytes.

    Raises:
        LedgerError: ``note-malformed`` or ``key-name``.
    """
    _check_name(name)
    _check_text(text)
    key = nacl.signing.SigningKey(seed.reveal())
    signature = key.sign(text.encode()).signature
    row = signature_line(name, key_id(name, bytes(key.verify_key)), signature)
    return f"{text}\n{row}".encode()


def signature_line(name: str, key: bytes, signature: bytes) -> str:
    """One line of a note's signatures, with its newline; ``key``: the key ID."""
    return f"\u2014 {name} {base64.b64encode(key + signature).decode()}\n"


def _check_text(text: str) -> None:
    if not text.endswith("\n") or any(ord(c) < 0x20 and c != "\n" for c in text):
        raise LedgerError(
            "note-malformed", "A note's text ends in a newline and holds no control characters."
        )


class Signature(NamedTuple):
    """One signature line of a note, not verified."""

    name: str
    key_id: bytes
    signature: bytes


def parse_signatures(rows: str) -> tuple[Signature, ...]:
    """Signature lines, each ending in a newline.

    Raises:
        LedgerError: ``note-malformed``.
    """
    lines = rows[:-1].split("\n")
    if not rows.endswith("\n") or len(lines) > _SIGNATURES_MAX:
        raise LedgerError("note-malformed", "The note has too many signatures, or a broken one.")
    found = []
    for line in lines:
        mark, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        try:
            data = _unbase64(encoded)
        except (binascii.Error, ValueError) as error:
            raise LedgerError("note-malformed", "A signature line does not parse.") from error
        if mark != "\u2014" or not name or len(data) < 5:
            raise LedgerError("note-malformed", "A signature line does not parse.")
        found.append(Signature(name, data[:4], data[4:]))
    return tuple(found)


def split_note(note: bytes) -> tuple[str, tuple[Signature, ...]]:
    """A note's text and its signatures, none of them verified.

    Raises:
        LedgerError: ``note-malformed``.
    """

    def malformed(message: str) -> LedgerError:
        return LedgerError("note-malformed", message)

    if len(note) > _NOTE_BYTES_MAX:
        raise malformed("The note is too large.")
    try:
        whole = note.decode()
    except UnicodeDecodeError as error:
        raise malformed("The note is not UTF-8.") from error
    head, separator, tail = whole.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise malformed("The note has no signatures.")
    text = head + "\n"
    _check_text(text)
    return text, parse_signatures(tail)


def verify_note(note: bytes, verifier: Verifier) -> str:
    """The text of a note, after checking this verifier's signature; unknown signers are ignored.

    Raises:
        LedgerError: ``note-malformed``, ``note-unsigned`` (no signature by this key) or
            ``note-signature``.
    """
    text, signatures = split_note(note)
    verified = False
    for signature in signatures:
        if (signature.name, signature.key_id) != (verifier.name, verifier.key_id):
            continue
        if not is_signed(text.encode(), verifier.public_key, signature.signature):
            raise LedgerError(
                "note-signature", "The note's signature does not verify.", found=signature.name
            )
        verified = True
    if not verified:
        raise LedgerError(
            "note-unsigned",
            "The note is not signed by the expected key.",
            expected=f"{verifier.name}+{verifier.key_id.hex()}",
            found=", ".join(f"{row.name}+{row.key_id.hex()}" for row in signatures),
            remedy="Check that the key belongs to this ledger.",
        )
    return text


def is_signed(message: bytes, public_key: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature verifies."""
    try:
        nacl.signing.VerifyKey(public_key).verify(message, signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        return False
    return True


def checkpoint_body(checkpoint: Checkpoint) -> str:
    """The text of a checkpoint: origin, size, base64 root, each on a line."""
    root = base64.b64encode(checkpoint.root).decode()
    return f"{checkpoint.origin}\n{checkpoint.size}\n{root}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Parse a checkpoint's text strictly; extension lines are ignored.

    Raises:
        LedgerError: ``checkpoint-malformed``.
    """
    lines = text.split("\n")
    try:
        origin, size, encoded = lines[:3]
        root = _unbase64(encoded)
        if (
            not origin
            or not size.isascii()
            or not size.isdecimal()
            or size != str(int(size))
            or len(size) > 18
            or len(root) != 32
            or not all(lines[:-1])
        ):
            raise ValueError
    except (ValueError, binascii.Error) as error:
        raise LedgerError("checkpoint-malformed", "The checkpoint does not parse.") from error
    return Checkpoint(origin, int(size), root)


def sign_checkpoint(checkpoint: Checkpoint, seed: Secret) -> bytes:
    """The checkpoint as a note signed under its origin's name."""
    return sign_note(checkpoint_body(checkpoint), checkpoint.origin, seed)


def open_checkpoint(note: bytes, verifier: Verifier) -> Checkpoint:
    """Verify and parse a signed checkpoint of the verifier's log.

    Raises:
        LedgerError: as :func:`verify_note` and :func:`parse_checkpoint`, or ``checkpoint-origin``.
    """
    checkpoint = parse_checkpoint(verify_note(note, verifier))
    if checkpoint.origin != verifier.name:
        raise LedgerError(
            "checkpoint-origin",
            "The checkpoint belongs to another log.",
            expected=verifier.name,
            found=checkpoint.origin,
        )
    return checkpoint
