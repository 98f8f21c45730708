"""What a release's record must say to a device that took part, before it believes its receipt.

The record was proven by steps 1 to 7 of :mod:`dp.ledger.trusted_log`. Then:

9. The record is of a version that this software reads, and every field that the device knows says
   what it knows (:func:`demand_fields`). One of a later version is not read; it is not a lie.
10. The devices stand in the record, or in the file that it names by its digest
    (:func:`dp.ledger.contributors.members_of`).
11. The device is among them once, by the name that it has in this cohort, and is marked as in the
    sum where it was (:func:`in_sum`). Records of version 1 list those in the sum alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dp.errors import NotListed, RecordMismatch
from dp.ledger.contributors import Members, by_identity
from dp.ledger.parsing import is_known_version, is_later_version
from dp.ledger.records import RELEASE_VERSION, identity_digest
from secagg.context import pseudonym
from secagg.secret import Secret

_REMEDY = "Ask the operator; the evidence shows what its ledger says."


def demand_fields(record: Mapping[str, Any], known: Mapping[str, object]) -> None:
    """Step 9: the record is of a known version, and each of these fields is what is known.

    Raises:
        RecordMismatch: ``release-mismatch``; ``record-version`` for one of a later version, of
            which this software can say nothing.
    """
    if is_later_version(record):  # 9
        raise RecordMismatch(
            "record-version",
            "The ledger's record is of a later version than this software reads.",
            expected=RELEASE_VERSION,
            found=record["version"],
            remedy="Update this device's software.",
        )
    if not is_known_version(record):  # 9
        raise RecordMismatch(
            "release-mismatch",
            "The ledger's record is of a version that no software reads.",
            found=record.get("version"),
            remedy=_REMEDY,
        )
    found = {key: record.get(key) for key in known}
    wrong = [key for key in known if not _same(found[key], known[key])]
    if wrong:
        raise RecordMismatch(
            "release-mismatch",
            "The ledger's record is not that of this device's release.",
            expected={key: known[key] for key in wrong},
            found={key: found[key] for key in wrong},
            remedy=_REMEDY,
        )


def _same(found: object, known: object) -> bool:
    """As JSON: in Python True equals 1."""
    return msgspec.json.encode(found) == msgspec.json.encode(known)


def own_name(record: Mapping[str, Any], identity_key: bytes, identity: Secret | None) -> bytes:
    """The name by which a release record lists a device, if it does, 32 bytes.

    Args:
        identity: seed of the device's identity; None: only records of version 1 are of use.

    Raises:
        RecordMismatch: ``release-mismatch``: the record's context does not parse.
    """
    if by_identity(record) or identity is None:
        return identity_digest(identity_key)
    try:
        return pseudonym(identity, bytes.fromhex(str(record.get("ctx"))))
    except ValueError as error:
        raise RecordMismatch("release-mismatch", "The record's context is not hex.") from error


def in_sum(record: Mapping[str, Any], members: Members, own: bytes, *, demanded: bool) -> bool:
    """Step 11: whether a record of a cohort in which a device masked lists it in the released sum.

    Args:
        members: of the record (step 10).
        own: the device's name in it (:func:`own_name`).
        demanded: the device is known to be in the sum.

    Raises:
        NotListed: ``contributor-missing``: it is not listed once, or not in the sum although that
            is ``demanded``.
    """
    marked = members.contributors.count(own)
    lists_all = not by_identity(record)
    if members.all.count(own) > 1 or (lists_all and own not in members.all):  # 11
        message = "The ledger does not list this device in the cohort's masking set, once."
    elif demanded and not marked:
        message = "The ledger does not list this device among the release's contributors."
    else:
        return record.get("outcome") == "released" and marked == 1
    raise NotListed("contributor-missing", message, expected=own.hex())
