"""From the bytes of a leaf to a record, or a refusal."""

from __future__ import annotations

import binascii
import json
import math
import re
import zlib
from typing import Any

import rfc8785

from dp.errors import LedgerError
from dp.ledger.contributors import (
    by_identity,
    inline_members,
    listed,
)
from dp.ledger.forms import VARIANCE_DIGITS_MAX, check_moment, unbase64, unhex
from dp.ledger.records import RECORD_VERSION, RELEASE_VERSION, ClipMove, Fault, Record, ReleaseEntry
from secagg.errors import RemoteProtocolError
from secagg.limits import DIGEST_BYTES, MANIFEST_BYTES_MAX
from secagg.manifest import Manifest, decode_manifest, manifest_digest

_VERSIONS = {"release": (1, RELEASE_VERSION)}
_REASON = re.compile(r"[a-z0-9-]{1,64}")
NESTING_MAX = 8


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
    if "version" not in record or not is_known_version(record):
        raise LedgerError(
            "record-version",
            "A record has an unknown version.",
            expected=_VERSIONS.get(record["type"], (RECORD_VERSION,))[-1],
            found=record.get("version"),
        )
    return record


def is_known_version(record: Record) -> bool:
    """Whether this software reads records of this version; the first ones may lack the number."""
    version = record.get("version", RECORD_VERSION)
    known = _VERSIONS.get(str(record.get("type")), (RECORD_VERSION,))
    return type(version) is int and version in known  # True equals 1 in Python, and not in JSON


def is_later_version(record: Record) -> bool:
    """Whether a later software may read records of this version."""
    version = record.get("version")
    known = _VERSIONS.get(str(record.get("type")), (RECORD_VERSION,))
    return type(version) is int and version > max(known)


def model_of(record: Record) -> object:
    """The digest of the model that a record vouches for, hex; None if it is about none.

    What it says is not parsed.
    """
    if not is_known_version(record):
        return None
    if record.get("type") == "task":
        return record.get("model_digest")
    if record.get("type") == "release" and record.get("outcome") == "released":
        return record.get("new_model_digest")
    return None


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
        raise LedgerError("record-malformed", "A task record's model is not a digest.") from error


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
        raise LedgerError("record-malformed", "A release record's clip is not a number.") from error
    if not (isinstance(text, str) and math.isfinite(clip) and repr(clip) == text):
        raise LedgerError("record-malformed", "A release record's clip is not finite.")
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
            raise ValueError(f"{name} is not a count")
        return value

    def interval() -> tuple[int, int] | None:
        ends = record["measured_variance"]
        if not isinstance(ends, list) or len(ends) not in (0, 2):
            raise ValueError("measured_variance is not an interval")
        if any(type(end) is not str or len(end) > VARIANCE_DIGITS_MAX for end in ends):
            raise ValueError("measured_variance is not an interval")
        values = [int(end) for end in ends]
        if (
            [str(value) for value in values] != ends
            or values != sorted(values)
            or min(values, default=0) < 0
        ):
            raise ValueError("measured_variance is not an interval")
        return (values[0], values[1]) if ends else None

    def versions() -> tuple[int, ...]:
        if "model_versions" not in record:  # a ledger of before FedBuff
            return ()
        found = record["model_versions"]
        if type(found) is not list or len(found) != len(record["model_digests"]):
            raise ValueError("model_versions are not those of the models")
        if any(type(version) is not int or version < 0 for version in found):
            raise ValueError("model_versions are not versions")
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
