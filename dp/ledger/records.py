"""The ledger's records: canonical JSON (RFC 8785), integers, strings and booleans, no floats.

A record says what an auditor needs to compute its privacy cost again. Integers beyond 2^53 are
decimal strings, digests and keys lower-case hex, probabilities the shortest decimal that reads
back as the same float.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import rfc8785

from dp.accounting.statements import (
    PrivacyLine,
    ReleaseFacts,
    adversaries,
    fewest,
    guaranteed_variance,
    headline,
    lines,
)
from dp.errors import LedgerError
from dp.ledger.contributors import (
    INLINE_MAX,
    by_identity,
    contributors_file,
    inline_members,
    listed,
    members_file,
)
from dp.ledger.forms import VARIANCE_DIGITS_MAX, check_moment, check_text, unbase64, unhex
from dp.tlog.tiles import ENTRY_BYTES_MAX
from secagg.errors import RemoteProtocolError
from secagg.hashing import digest
from secagg.limits import DIGEST_BYTES, MANIFEST_BYTES_MAX
from secagg.manifest import Manifest, decode_manifest, manifest_digest

RECORD_VERSION = 1
RELEASE_VERSION = 2  # of release records; 1 named devices by their identity
_VERSIONS = {"release": (1, RELEASE_VERSION)}
_REASON = re.compile(r"[a-z0-9-]{1,64}")
NESTING_MAX = 8
"""Levels of lists and objects in a record; records have three."""
Outcome = Literal["released", "charged"]
Fault = Literal["service", "devices", "unknown"]
Record = Mapping[str, Any]


class ClipMove(msgspec.Struct, frozen=True, kw_only=True):
    """Of a release where the clip adapts: ``clip`` of the model that it made, and the opened sum
    that it follows from, in integer units (:func:`dp.noise.adaptive_clip.next_clip`). Both are
    post-processing of the release."""

    clip: float
    below_units: int


class ReleaseEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in one cohort whose members reached step 3.

    ``release``: number of this charge within its task, from 1. ``survivors``, ``contributors``,
    ``sum_digest`` and ``new_model_digest`` are empty (0) for a cohort that was ``charged`` without
    a release. ``contributors`` and ``not_in_sum``: pseudonyms of the masking set, 32 bytes each, in
    any order (:mod:`dp.ledger.contributors`). ``attempt``: of the roster; with the other fields it
    gives ``ctx``. None: an entry of version 1, whose ``contributors`` are :func:`identity_digest`
    of the devices in the sum and whose other devices are not listed.
    ``model_digests``: of the models that its members trained on, by version; ``model_versions``:
    those versions. ``released_at``: Unix seconds. ``measured_variance``: ends of the noise meter's
    interval (:mod:`dp.noise_meter`), where there is one. ``clip``: how an adaptive clip moved.
    ``fault``, ``cause``: of a charged cohort, whose fault it was as far as the aggregator can tell,
    and its stable reason; None and empty in records of before.
    """

    release: int
    cohort: bytes
    ctx: bytes
    roster_digest: bytes
    cohort_size: int
    masking_set_size: int
    survivors: int
    contributors: tuple[bytes, ...]
    model_digests: tuple[bytes, ...]
    sum_digest: bytes
    new_model_digest: bytes
    released_at: int
    outcome: Outcome
    measured_variance: tuple[int, int] | None = None
    model_versions: tuple[int, ...] = ()
    clip: ClipMove | None = None
    attempt: int | None = None
    not_in_sum: tuple[bytes, ...] = ()
    fault: Fault | None = None
    cause: str = ""

    def facts(self, manifest: Manifest) -> ReleaseFacts:
        """What accounting sees; a charged cohort costs what its fewest survivors would."""
        if self.outcome == "charged":
            return fewest(manifest)
        return ReleaseFacts(survivors=self.survivors, masking_set_size=self.masking_set_size)


def identity_digest(identity_key: bytes) -> bytes:
    """How records of version 1 name a device: digest of its Ed25519 key, 32 bytes.

    Whoever knows the key can look for it, and one device's releases can be linked.
    """
    return digest("identity", identity_key)


def epsilon_micro(epsilon: float | None) -> int | None:
    """Millionths, rounded up; None without privacy.

    Raises:
        LedgerError: ``epsilon-infinite``.
    """
    if epsilon is None:
        return None
    if not math.isfinite(epsilon):
        raise LedgerError("epsilon-infinite", "A release without a finite cost is not recorded.")
    return math.ceil(epsilon * 1_000_000)


def _canonical(record: Record) -> bytes:
    try:
        encoded = rfc8785.dumps(dict(record))
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise LedgerError("record-malformed", f"The record has no canonical form: {error}.") from (
            error
        )
    if len(encoded) > ENTRY_BYTES_MAX:
        raise LedgerError(
            "record-too-large",
            "The record does not fit into the ledger.",
            expected=f"<= {ENTRY_BYTES_MAX} bytes",
            found=len(encoded),
            remedy="Adapt fewer modules, or form smaller cohorts.",
        )
    return encoded


def task_record(
    manifest_bytes: bytes, manifest_signature: bytes, model_digest: bytes = b""
) -> bytes:
    """A task was created. The manifest is stored whole (zlib, base64): it is what auditors trust.

    Args:
        manifest_bytes: as signed and sent to devices.
        manifest_signature: Ed25519 by the task key over ``encode_parts("manifest", bytes)``.
        model_digest: of version 0; empty where it is not told.

    Raises:
        LedgerError: ``record-too-large``.
    """
    manifest = decode_manifest(manifest_bytes)
    return _canonical(
        {
            "type": "task",
            "version": RECORD_VERSION,
            "task": manifest.task,
            "created_at": manifest.created_at,
            "manifest_digest": manifest_digest(manifest_bytes).hex(),
            "manifest": base64.b64encode(zlib.compress(manifest_bytes, 9)).decode(),
            "manifest_signature": manifest_signature.hex(),
        }
        | ({"model_digest": model_digest.hex()} if model_digest else {})
    )


def line_record(line: PrivacyLine) -> dict[str, Any]:
    return {
        "mode": line.mode,
        "unit": line.unit,
        "adversary": line.adversary,
        "adjacency": line.adjacency,
        "amplified": line.amplified,
        "accountant": line.accountant,
        "epsilon_micro": epsilon_micro(line.epsilon),
        "delta": repr(line.delta),
    }


def same_terms(record: Mapping[str, Any], manifest: Manifest, line: PrivacyLine) -> bool:
    """Whether a record's line is this one, its epsilon aside (which may be infinite in ``line``).

    As bytes: in Python True equals 1, in JSON it does not.
    """
    terms = line_record(msgspec.structs.replace(line, epsilon=0.0))
    found = rfc8785.dumps({**record, "epsilon_micro": terms["epsilon_micro"]})
    return any(
        found == rfc8785.dumps({**terms, "adversary": words})
        for words in adversaries(manifest, line)
    )


def release_record(
    manifest: Manifest,
    digest_of_manifest: bytes,
    previous: Sequence[ReleaseFacts],
    entry: ReleaseEntry,
) -> bytes:
    """A cohort reached step 3: what was released, by how many, and what the task cost so far.

    Of more than ``INLINE_MAX`` devices the record holds the digest of their list, which the log
    serves beside its tiles (:func:`list_file`).

    Args:
        previous: facts of the task's earlier charges, in order.

    Raises:
        LedgerError: ``release-number`` unless ``entry.release`` is the next one.
        AccountingError: the release breaks the manifest.
    """
    if entry.release != len(previous) + 1:
        raise LedgerError(
            "release-number",
            "Releases are numbered one after the other.",
            expected=len(previous) + 1,
            found=entry.release,
        )
    facts = entry.facts(manifest)
    statements = lines(manifest, [*previous, facts])
    variance = 0 if manifest.noise is None else guaranteed_variance(manifest, facts)
    apart = is_apart(entry)
    inline = () if apart else sorted(entry.contributors)
    return _canonical(
        {
            "type": "release",
            "version": 1 if entry.attempt is None else RELEASE_VERSION,
            "task": manifest.task,
            "release": entry.release,
            "outcome": entry.outcome,
            "cohort": entry.cohort.hex(),
            "ctx": entry.ctx.hex(),
            "manifest_digest": digest_of_manifest.hex(),
            "roster_digest": entry.roster_digest.hex(),
            "cohort_size": entry.cohort_size,
            "masking_set_size": entry.masking_set_size,
            "survivors": entry.survivors,
            "contributors": [contributor.hex() for contributor in inline],
            "model_digests": [model.hex() for model in entry.model_digests],
            "sum_digest": entry.sum_digest.hex(),
            "new_model_digest": entry.new_model_digest.hex(),
            "noise_variance": str(variance),
            "measured_variance": [str(end) for end in entry.measured_variance or ()],
            "epsilon_micro": epsilon_micro(headline(statements)),
            "lines": [line_record(line) for line in statements],
            "released_at": entry.released_at,
        }
        | _list_record(entry)
        | ({"model_versions": list(entry.model_versions)} if entry.model_versions else {})
        | _clip_record(entry.clip)
        | ({"fault": entry.fault, "cause": entry.cause} if entry.fault else {})
    )


def is_apart(entry: ReleaseEntry) -> bool:
    """Whether an entry's devices are too many to stand in its record."""
    return len(entry.contributors) + len(entry.not_in_sum) > INLINE_MAX


def list_file(entry: ReleaseEntry) -> bytes:
    """The file of an entry's devices, to be served as ``contributors/<SHA-256>``."""
    if entry.attempt is None:
        return contributors_file(entry.contributors)
    return members_file(entry.contributors, entry.not_in_sum)


def _list_record(entry: ReleaseEntry) -> dict[str, Any]:
    apart = is_apart(entry)
    named = hashlib.sha256(list_file(entry)).hexdigest() if apart else ""
    if entry.attempt is None:
        return {"contributors_digest": named} if apart else {}
    rest = [] if apart else [name.hex() for name in sorted(entry.not_in_sum)]
    fields: dict[str, Any] = {"attempt": entry.attempt, "not_in_sum": rest}
    return fields | ({"masking_set_file": named} if apart else {})


def _clip_record(move: ClipMove | None) -> dict[str, str]:
    if move is None:
        return {}
    return {"clip": repr(move.clip), "below_units": str(move.below_units)}


def policy_record(task: str, action: str, at: int, detail: str = "") -> bytes:
    """An operator's decision about a task: ``paused``, ``resumed``, ``finished``; Unix seconds."""
    return _canonical(
        {
            "type": "policy",
            "version": RECORD_VERSION,
            "task": task,
            "action": action,
            "detail": detail,
            "at": at,
        }
    )


def membership_record(
    action: str,
    at: int,
    *,
    cause: str = "",
    task: str = "",
    cohort: bytes = b"",
    device: bytes = b"",
    partner: bytes = b"",
    number: int = 0,
    digest: bytes = b"",
) -> bytes:
    """Who may take part changed; Unix seconds.

    ``action``: ``banned``, ``unbanned``, ``partner-removed``, ``partner-added`` (a removed one is
    back) or ``revoked``. ``device``: its pseudonym in ``cohort``, or a random handle; never its
    lasting name. ``number`` and ``digest``: of the partner's revocation list.

    Raises:
        LedgerError: ``record-malformed``.
    """
    record: dict[str, Any] = {
        "type": "membership",
        "version": RECORD_VERSION,
        "action": action,
        "cause": cause,
        "at": at,
        "task": task,
        "cohort": cohort.hex(),
        "device": device.hex(),
        "partner": partner.hex(),
        "number": number,
        "digest": digest.hex(),
    }
    parse_membership(record)
    return _canonical(record)


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """As :func:`membership_record` was told."""

    action: Literal["banned", "unbanned", "partner-removed", "partner-added", "revoked"]
    cause: str
    at: int
    task: str
    cohort: str
    device: str
    partner: str
    number: int
    digest: str


def parse_membership(record: Record) -> Membership:
    """
    Raises:
        LedgerError: ``record-malformed``.
    """
    try:
        found = msgspec.convert(dict(record), Membership, strict=True)
        for value in (found.cohort, found.device, found.partner, found.digest):
            if value and (len(value) != 2 * DIGEST_BYTES or bytes.fromhex(value).hex() != value):
                raise ValueError("names and digests are 32 bytes, lower-case hex")
        check_text(found.cause)
        check_text(found.task)
        check_moment(found.at)
        of_device = found.action in ("banned", "unbanned")
        if bool(found.device) != of_device or bool(found.partner) == of_device:
            raise ValueError("a ban is of a device, the rest of a partner")
        if (found.number > 0) != (found.action == "revoked") or not 0 <= found.number < 1 << 53:
            raise ValueError("a revocation list has a number, from 1")
    except (msgspec.MsgspecError, ValueError) as error:
        raise LedgerError(
            "record-malformed", f"A membership record does not parse: {error}."
        ) from error
    return found


def key_rotation_record(old_verifier: str, new_verifier: str, at: int) -> bytes:
    """From here on checkpoints carry a signature by the new key too; Unix seconds."""
    return _canonical(
        {
            "type": "key-rotation",
            "version": RECORD_VERSION,
            "old_verifier": old_verifier,
            "new_verifier": new_verifier,
            "at": at,
        }
    )


def canonical_object(data: bytes) -> dict[str, Any]:
    """An object in canonical JSON without floats: bytes that have one reading.

    It nests no deeper than what is done with it later can follow.

    Raises:
        LedgerError: ``record-malformed``.
    """
    try:
        record = json.loads(data)
        _check_nesting(record)
        canonical = isinstance(record, dict) and rfc8785.dumps(record) == data
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise LedgerError("record-malformed", "A record is not canonical JSON.") from error
    if not canonical or _has_float(record):
        raise LedgerError("record-malformed", "A record is not canonical JSON without floats.")
    return dict(record)


def parse_record(data: bytes) -> dict[str, Any]:
    """Parse an entry: canonical JSON, an object with a known type and version.

    Raises:
        LedgerError: ``record-malformed``, ``record-type`` or ``record-version``.
    """
    record = canonical_object(data)
    if record.get("type") not in ("task", "release", "policy", "membership", "key-rotation"):
        raise LedgerError("record-type", "A record has an unknown type.", found=record.get("type"))
    versions = _VERSIONS.get(record["type"], (RECORD_VERSION,))
    if type(record.get("version")) is not int or record["version"] not in versions:
        raise LedgerError(
            "record-version",
            "A record has an unknown version.",
            expected=versions[-1],
            found=record.get("version"),
        )
    return record


def _check_nesting(record: object) -> None:
    level = [record]
    for _ in range(NESTING_MAX):
        level = [part for value in level for part in _parts(value)]
    if level:
        raise LedgerError(
            "record-malformed",
            "A record nests too deeply.",
            expected=f"at most {NESTING_MAX} levels",
        )


def _parts(value: object) -> list[object]:
    match value:
        case dict():
            return list(value.values())
        case list():
            return value
    return []


def _has_float(value: object) -> bool:
    if isinstance(value, float):
        return True
    if isinstance(value, dict):
        return any(_has_float(inner) for inner in value.values())
    if isinstance(value, list):
        return any(_has_float(inner) for inner in value)
    return False


def parse_task(record: Record) -> tuple[bytes, Manifest, bytes]:
    """(manifest bytes, manifest, its signature) of a task record.

    Raises:
        LedgerError: ``record-malformed``, ``manifest-not-canonical`` or ``manifest-digest``.
    """
    try:
        unpacker = zlib.decompressobj()
        packed = unbase64(record["manifest"])
        encoded = unpacker.decompress(packed, MANIFEST_BYTES_MAX + 1)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("the compression is broken")
        manifest = decode_manifest(encoded)
        expected = unhex(record["manifest_digest"], DIGEST_BYTES)
        signature = unhex(record["manifest_signature"])
        check_moment(record["created_at"])
    except RemoteProtocolError as error:
        kept = error.reason == "manifest-not-canonical"
        raise LedgerError(error.reason if kept else "record-malformed", error.message) from error
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise LedgerError(
            "record-malformed", f"A task record does not parse: {type(error).__name__}."
        ) from error
    if manifest_digest(encoded) != expected:
        raise LedgerError(
            "manifest-digest",
            "The manifest in the ledger is not the one that its digest names.",
            expected=expected.hex(),
            found=manifest_digest(encoded).hex(),
        )
    return encoded, manifest, signature


def parse_first_model(record: Record) -> bytes | None:
    """Digest of a task's version 0; None where its record does not tell.

    Raises:
        LedgerError: ``record-malformed``.
    """
    if "model_digest" not in record:
        return None
    try:
        return unhex(record["model_digest"], DIGEST_BYTES)
    except ValueError as error:
        raise LedgerError("record-malformed", "A task record's model is no digest.") from error


def clip_of(record: Record) -> float | None:
    """The clip of the model that a release made; None where its record names none.

    Raises:
        LedgerError: ``record-malformed``.
    """
    text = record.get("clip")
    if text is None:
        return None
    try:
        clip = float(text)
    except (TypeError, ValueError, OverflowError) as error:
        raise LedgerError("record-malformed", "A release record's clip is no number.") from error
    if not (isinstance(text, str) and math.isfinite(clip) and repr(clip) == text):
        raise LedgerError("record-malformed", "A release record's clip is no finite number.")
    return clip


def parse_release(record: Record) -> ReleaseEntry:
    """The facts of a release record; its devices are missing where they stand in a file.

    Raises:
        LedgerError: ``record-malformed``.
    """

    def digest_of(name: str, *, may_lack: bool = False) -> bytes:
        return b"" if may_lack and record[name] == "" else unhex(record[name], DIGEST_BYTES)

    def count(name: str) -> int:
        value = record[name]
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} is no count")
        return value

    def interval() -> tuple[int, int] | None:
        ends = record["measured_variance"]
        if not isinstance(ends, list) or len(ends) not in (0, 2):
            raise ValueError("measured_variance is no interval")
        if any(type(end) is not str or len(end) > VARIANCE_DIGITS_MAX for end in ends):
            raise ValueError("measured_variance is no interval")
        values = [int(end) for end in ends]
        if (
            [str(value) for value in values] != ends
            or values != sorted(values)
            or min(values, default=0) < 0
        ):
            raise ValueError("measured_variance is no interval")
        return (values[0], values[1]) if ends else None

    def versions() -> tuple[int, ...]:
        if "model_versions" not in record:  # a ledger of before FedBuff
            return ()
        found = record["model_versions"]
        if type(found) is not list or len(found) != len(record["model_digests"]):
            raise ValueError("model_versions are not those of the models")
        if any(type(version) is not int or version < 0 for version in found):
            raise ValueError("model_versions are no versions")
        return tuple(found)

    def move() -> ClipMove | None:
        clip, below = clip_of(record), record.get("below_units")
        if clip is None and below is None:
            return None
        if clip is None or type(below) is not str or len(below) > 40 or str(int(below)) != below:
            raise ValueError("clip and below_units belong together")
        return ClipMove(clip=clip, below_units=int(below))

    def blamed() -> tuple[Fault | None, str]:
        fault, cause = record.get("fault"), record.get("cause", "")
        if fault not in (None, "service", "devices", "unknown"):
            raise ValueError("unknown fault")
        if type(cause) is not str or bool(cause) != (fault is not None):
            raise ValueError("fault and cause belong together")
        if fault is not None and not _REASON.fullmatch(cause):
            raise ValueError("a cause is a reason: 64 small letters, digits and hyphens at most")
        return fault, cause

    try:
        fault, cause = blamed()
        listed(record)
        members = inline_members(record)
        if record["outcome"] not in ("released", "charged"):
            raise ValueError("unknown outcome")
        return ReleaseEntry(
            release=count("release"),
            cohort=digest_of("cohort"),
            ctx=digest_of("ctx"),
            roster_digest=digest_of("roster_digest"),
            cohort_size=count("cohort_size"),
            masking_set_size=count("masking_set_size"),
            survivors=count("survivors"),
            contributors=members.contributors,
            not_in_sum=members.not_in_sum,
            attempt=None if by_identity(record) else count("attempt"),
            model_digests=tuple(unhex(value, DIGEST_BYTES) for value in record["model_digests"]),
            model_versions=versions(),
            sum_digest=digest_of("sum_digest", may_lack=True),
            new_model_digest=digest_of("new_model_digest", may_lack=True),
            released_at=check_moment(record["released_at"]),
            outcome=record["outcome"],
            measured_variance=interval(),
            clip=move(),
            fault=fault,
            cause=cause,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            "record-malformed", f"A release record does not parse: {error}."
        ) from error
