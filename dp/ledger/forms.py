"""Forms of the ledger's records beyond their types: which fields there are, times, free text.

An operator writes the records, and whoever verifies a ledger shows them to people. So every field
is known, every time lies in bounds that calendars have, and free text is short; who shows it
escapes and quotes it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from dp.errors import LedgerError

TIME_MAX_S = (1 << 32) - 1
"""Unix seconds, in 2106: 32 bits without a sign."""
TEXT_MAX = 512
"""Characters of free text in a record."""
VARIANCE_DIGITS_MAX = 40
"""Decimal digits of a measured variance: squares of 62 bits have 38."""

_QUOTED_MAX = 120  # characters of an error that may quote the record
_ALL = frozenset({"type", "version"})
_RELEASE = _ALL | {
    *("task", "release", "outcome", "cohort", "ctx", "manifest_digest", "roster_digest"),
    *("cohort_size", "masking_set_size", "survivors", "contributors", "model_digests"),
    *("sum_digest", "new_model_digest", "noise_variance", "measured_variance", "epsilon_micro"),
    *("lines", "released_at", "model_versions", "clip", "below_units", "fault", "cause"),
}
_FIELDS: dict[tuple[str, int], frozenset[str]] = {
    ("task", 1): _ALL
    | {"task", "created_at", "manifest_digest", "manifest", "manifest_signature", "model_digest"},
    ("policy", 1): _ALL | {"task", "action", "detail", "at"},
    ("membership", 1): _ALL
    | {"action", "cause", "at", "task", "cohort", "device", "partner", "number", "digest"},
    ("key-rotation", 1): _ALL | {"old_verifier", "new_verifier", "at"},
    ("release", 1): _RELEASE | {"contributors_digest"},
    ("release", 2): _RELEASE | {"attempt", "not_in_sum", "masking_set_file"},
}


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A decision about a task. ``at``: Unix seconds; ``detail``: the operator's words."""

    task: str
    action: Literal["paused", "resumed", "finished", "charge-given-back"]
    at: int
    detail: str = ""

    def check(self) -> None:
        """Raises: ValueError."""
        check_moment(self.at)
        check_text(self.detail)


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """From here on checkpoints carry a signature by ``new_verifier`` too; Unix seconds."""

    old_verifier: str
    new_verifier: str
    at: int

    def check(self) -> None:
        """Raises: ValueError."""
        check_moment(self.at)
        check_text(self.old_verifier)
        check_text(self.new_verifier)


_Record = TypeVar("_Record", Policy, Rotation)


def check_fields(record: Mapping[str, Any]) -> None:
    """Refuse what nobody has checked: a field that this version does not know.

    Args:
        record: of a known type and version.

    Raises:
        LedgerError: ``record-field-unknown``.
    """
    known = _FIELDS[record["type"], record["version"]]
    unknown = sorted(record.keys() - known)
    if unknown:
        raise LedgerError(
            "record-field-unknown",
            "A record has fields that this version does not know, so nobody checks them.",
            found=[name[:64] for name in unknown[:8]],
            remedy="If the ledger was written by a later version, verify it with that version.",
        )


def check_moment(seconds: object) -> int:
    """
    Raises:
        ValueError: no whole Unix seconds from 1970 to 2106.
    """
    if type(seconds) is not int or not 0 <= seconds <= TIME_MAX_S:
        raise ValueError(f"a time is whole Unix seconds from 0 to {TIME_MAX_S}")
    return seconds


def check_text(text: object) -> str:
    """
    Raises:
        ValueError: no text of at most :data:`TEXT_MAX` characters.
    """
    if type(text) is not str or len(text) > TEXT_MAX:
        raise ValueError(f"text has at most {TEXT_MAX} characters")
    return text


def unhex(text: object, size_bytes: int | None = None) -> bytes:
    """
    Raises:
        ValueError: no lower-case hexadecimal, or not of this size.
    """
    data = bytes.fromhex(text) if type(text) is str else b""
    if data.hex() != text or size_bytes not in (None, len(data)):
        raise ValueError(f"not lower-case hexadecimal of {size_bytes or 'any number of'} bytes")
    return data


def unbase64(text: object) -> bytes:
    """
    Raises:
        ValueError: no base64, or a second spelling of it.
    """
    data = base64.b64decode(text, validate=True) if type(text) is str else b""
    if base64.b64encode(data).decode() != text:
        raise ValueError("base64 with stray bits")
    return data


def parse_policy(record: Mapping[str, Any]) -> Policy:
    """
    Raises:
        LedgerError: ``record-malformed``.
    """
    return _parsed(record, Policy, "policy")


def parse_rotation(record: Mapping[str, Any]) -> Rotation:
    """
    Raises:
        LedgerError: ``record-malformed``.
    """
    return _parsed(record, Rotation, "key-rotation")


def _parsed(record: Mapping[str, Any], kind: type[_Record], named: str) -> _Record:
    try:
        found = msgspec.convert(dict(record), kind, strict=True)
        found.check()
    except (msgspec.MsgspecError, ValueError) as error:
        raise LedgerError(
            "record-malformed", f"A {named} record does not parse: {str(error)[:_QUOTED_MAX]}."
        ) from error
    return found
