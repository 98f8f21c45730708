"""Witnesses of the ledger: C2SP cosignatures and the add-checkpoint exchange, without any I/O.

A witness signs a log's checkpoint only after a proof that it extends the last one it signed
(c2sp.org/tlog-witness), so a log that shows different histories to different people gets no second
cosignature. Cosignatures are Ed25519 with a timestamp (c2sp.org/tlog-cosignature, type 0x04). A
device or an auditor demands m of the n witnesses that it trusts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import nacl.signing

from dp.errors import LedgerError
from dp.tlog import merkle
from dp.tlog.notes import (
    COSIGNATURE_V1,
    Checkpoint,
    Verifier,
    is_signed,
    key_id,
    open_checkpoint,
    parse_checkpoint,
    parse_signatures,
    parse_verifier,
    signature_line,
    split_note,
    verifier_key,
)
from secagg.secret import Secret

REQUEST_BYTES_MAX = 64 << 10  # 63 hashes of 45 bytes and a note with all its signatures
_PROOF_LINES_MAX = 63
_TIMESTAMP_MAX = 2**63 - 1


def witness_key(name: str, public_key: bytes) -> str:
    """A witness's verifier key, from its Ed25519 public key (32 bytes)."""
    return verifier_key(name, public_key, COSIGNATURE_V1)


def parse_witness(verifier: str) -> Verifier:
    """Parse a witness's verifier key.

    Raises:
        LedgerError: ``verifier-key``; the key of a log is not a witness's.
    """
    return parse_verifier(verifier, COSIGNATURE_V1)


def _message(text: str, at_s: int) -> bytes:
    return f"cosignature/v1\ntime {at_s}\n{text}".encode()


def cosign(text: str, name: str, seed: Secret, at_s: int) -> str:
    """A signature line over a checkpoint's text.

    Args:
        text: of the checkpoint, without signatures.
        name: of the witness.
        seed: its Ed25519 seed, 32 bytes; used by no other witness and no log.
        at_s: Unix seconds.
    """
    parse_checkpoint(text)
    key = nacl.signing.SigningKey(seed.reveal())
    signature = at_s.to_bytes(8, "big") + key.sign(_message(text, at_s)).signature
    return signature_line(name, key_id(name, bytes(key.verify_key), COSIGNATURE_V1), signature)


def cosigned_at(note: bytes, witnesses: Iterable[Verifier]) -> dict[Verifier, int]:
    """Which of the witnesses cosigned a note, and when (Unix seconds, the latest).

    A signature that does not verify counts as none, so that a broken witness cannot stop a log
    that enough others have signed.

    Raises:
        LedgerError: ``note-malformed``.
    """
    text, signatures = split_note(note)
    found: dict[Verifier, int] = {}
    for witness in witnesses:
        for name, key, signature in signatures:
            if (name, key) != (witness.name, witness.key_id) or len(signature) != 72:
                continue
            at_s = int.from_bytes(signature[:8], "big")
            if at_s <= _TIMESTAMP_MAX and is_signed(
                _message(text, at_s), witness.public_key, signature[8:]
            ):
                found[witness] = max(at_s, found.get(witness, 0))
    return found


def add_cosignatures(note: bytes, answer: str, witnesses: Iterable[Verifier]) -> bytes:
    """The note with the valid cosignatures of a witness's answer; what it has already stays.

    Raises:
        LedgerError: ``note-malformed``.
    """
    text, _ = split_note(note)
    whole = f"{text}\n".encode() + answer.encode()
    known = {(witness.name, witness.key_id): witness for witness in witnesses}
    present = cosigned_at(note, known.values())
    for line in parse_signatures(answer):
        witness = known.get((line.name, line.key_id))
        if witness is None or witness in present or witness not in cosigned_at(whole, (witness,)):
            continue
        note += signature_line(*line).encode()
        present |= cosigned_at(note, (witness,))
    return note


@dataclass(frozen=True)
class WitnessPolicy:
    """At least ``needed`` of ``keys`` must have cosigned."""

    keys: tuple[Verifier, ...]
    needed: int

    @classmethod
    def of(cls, verifiers: Sequence[str], needed: int | None = None) -> WitnessPolicy:
        """Parse the verifier keys; ``needed`` None: all of them.

        Raises:
            LedgerError: ``verifier-key``, or ``witness-policy`` where the policy asks for fewer
                than one or more than there are, or a key counts twice.
        """
        keys = tuple(parse_witness(verifier) for verifier in verifiers)
        count = len(keys) if needed is None else needed
        if len({key.public_key for key in keys}) != len(keys):
            raise LedgerError("witness-policy", "A witness's key is listed twice.")
        if not 1 <= count <= len(keys):
            raise LedgerError(
                "witness-policy",
                "A policy demands at least one witness, and no more than it lists.",
                expected=f"1 to {len(keys)}",
                found=count,
            )
        return cls(keys, count)

    def check(self, note: bytes) -> None:
        """Return if enough witnesses cosigned.

        Raises:
            LedgerError: ``witnesses-missing`` or ``note-malformed``.
        """
        found = cosigned_at(note, self.keys)
        if len(found) < self.needed:
            raise LedgerError(
                "witnesses-missing",
                "Too few of the trusted witnesses cosigned the ledger's checkpoint.",
                expected=f"{self.needed} of {[key.name for key in self.keys]}",
                found=[key.name for key in found],
                remedy="Wait until the witnesses answer; if they refuse, the log has forked.",
            )


class AddCheckpoint(NamedTuple):
    """A request to a witness."""

    old_size: int
    proof: tuple[bytes, ...]
    note: bytes


def encode_request(request: AddCheckpoint) -> bytes:
    """The body of an ``add-checkpoint`` request."""
    rows = [f"old {request.old_size}", *(base64.b64encode(h).decode() for h in request.proof)]
    return "\n".join([*rows, "", ""]).encode() + request.note


def parse_request(body: bytes) -> AddCheckpoint:
    """Parse the body of an ``add-checkpoint`` request strictly.

    Raises:
        LedgerError: ``request-malformed``.
    """
    head, separator, note = body.partition(b"\n\n")
    try:
        first, *rows = head.decode("ascii").split("\n")
        word, _, size = first.partition(" ")
        proof = tuple(base64.b64decode(row, validate=True) for row in rows)
        if (
            not separator
            or len(body) > REQUEST_BYTES_MAX
            or word != "old"
            or not size.isdecimal()
            or len(size) > 18
            or size != str(int(size))
            or len(proof) > _PROOF_LINES_MAX
            or any(len(hashed) != merkle.HASH_BYTES for hashed in proof)
        ):
            raise ValueError
    except (ValueError, binascii.Error) as error:
        raise LedgerError("request-malformed", "The add-checkpoint request does not parse.") from (
            error
        )
    return AddCheckpoint(int(size), proof, note)


class WitnessRefusal(LedgerError):
    """A witness does not cosign. ``status``: of the HTTP answer."""

    status = 400


def _refusal(
    status: int, reason: str, message: str, *, expected: object = None, found: object = None
) -> WitnessRefusal:
    refusal = WitnessRefusal(reason, message, expected=expected, found=found)
    refusal.status = status
    return refusal


def named_origin(request: AddCheckpoint) -> str:
    """The log that a request claims to speak for; nothing is verified yet.

    Raises:
        WitnessRefusal: 400.
    """
    try:
        return parse_checkpoint(split_note(request.note)[0]).origin
    except LedgerError as error:
        raise _refusal(400, error.reason, "The checkpoint does not parse.") from error


def consider(
    request: AddCheckpoint, logs: Mapping[str, Sequence[Verifier]], last: Checkpoint | None
) -> Checkpoint:
    """The checkpoint to cosign and remember, durably and before answering.

    Args:
        logs: the trusted keys of each log, by origin.
        last: the latest checkpoint of this origin that was cosigned.

    Raises:
        WitnessRefusal: with the status that c2sp.org/tlog-witness demands.
    """
    origin = named_origin(request)
    if origin not in logs:
        raise _refusal(404, "log-unknown", "This witness does not watch the log.", found=origin)
    new = _opened(request.note, logs[origin])
    if request.old_size > new.size:
        raise _refusal(
            400,
            "log-rolled-back",
            "The checkpoint is smaller than the one it claims to extend.",
            expected=request.old_size,
            found=new.size,
        )
    before = last or Checkpoint(origin, 0, merkle.EMPTY_ROOT)
    if request.old_size != before.size:
        raise _refusal(
            409,
            "old-size",
            "The request does not extend the latest checkpoint that this witness cosigned.",
            expected=before.size,
            found=request.old_size,
        )
    if before.size == new.size and before.root != new.root:
        raise _refusal(
            409,
            "log-forked",
            "Two checkpoints of the same size differ.",
            expected=before.root.hex(),
            found=new.root.hex(),
        )
    try:
        merkle.verify_consistency(before.size, new.size, before.root, new.root, request.proof)
    except LedgerError as error:
        raise _refusal(422, "log-forked", str(error)) from error
    return new


def _opened(note: bytes, keys: Sequence[Verifier]) -> Checkpoint:
    for key in keys:
        try:
            return open_checkpoint(note, key)
        except LedgerError:
            continue
    raise _refusal(403, "log-signature", "No trusted key of the log signed the checkpoint.")
