"""Whom a charge lists: the masking set of its cohort, those in the released sum marked.

Every device of the masking set owes a vector and charges itself, so each is listed, by a pseudonym
of 32 bytes that only it can make and that it uses in this cohort alone
(:func:`secagg.context.pseudonym`). A record has two lists, each sorted by pseudonym:
``contributors`` are in the released sum, ``not_in_sum`` are not. A cohort that was charged without
a release has no contributors.

An entry of the ledger holds at most 64 KiB. Up to :data:`INLINE_MAX` pseudonyms stand in the
record; beyond, both lists are empty and ``masking_set_file`` is the SHA-256 of a file: for each
device its pseudonym and one byte, 1 in the sum and 0 not, sorted, none twice. The file lies beside
the tiles, is named by its digest, and counts only if it matches.

Records of version 1 list the devices in the sum alone, by ``H(identity, key)``, which is the same
in every cohort; ``contributors_digest`` names their file, without marks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from dp.errors import LedgerError

INLINE_MAX = 256
CONTRIBUTORS = "contributors"  # folder below the ledger's prefix
PSEUDONYM_BYTES = 32
MARKED_BYTES = PSEUDONYM_BYTES + 1
_SINCE_2 = frozenset({"attempt", "not_in_sum", "masking_set_file"})
_COUNT_MAX = 1_000_000  # 33 MB of marked pseudonyms


class Members(NamedTuple):
    """Pseudonyms of a masking set, 32 bytes each: in the released sum, and not in it."""

    contributors: tuple[bytes, ...]
    not_in_sum: tuple[bytes, ...] = ()

    @property
    def all(self) -> tuple[bytes, ...]:
        return self.contributors + self.not_in_sum


def members_file(contributors: Iterable[bytes], not_in_sum: Iterable[bytes] = ()) -> bytes:
    """The file of a masking set, 33 bytes a device; any order gives the same file."""
    marked = [name + b"\x01" for name in contributors] + [name + b"\x00" for name in not_in_sum]
    return b"".join(sorted(marked))


def contributors_file(digests: Iterable[bytes]) -> bytes:
    """The file of a list of version 1, 32 bytes each; any order gives the same file."""
    return b"".join(sorted(digests))


def contributors_path(digest: bytes) -> str:
    """Where the file of a list lies below the ledger's prefix."""
    return f"{CONTRIBUTORS}/{digest.hex()}"


def listed(record: Mapping[str, Any]) -> bytes | None:
    """The digest of the file that a release record refers to; None if it lists its devices.

    Raises:
        LedgerError: ``record-malformed``.
    """
    if by_identity(record) and not _SINCE_2.isdisjoint(record):
        raise LedgerError("record-malformed", "A record of version 1 has fields of version 2.")
    text = record.get("contributors_digest" if by_identity(record) else "masking_set_file")
    if text is None:
        return None
    try:
        digest = bytes.fromhex(text)
    except (TypeError, ValueError) as error:
        raise LedgerError("record-malformed", "The digest of a list does not parse.") from error
    inline = record.get("contributors") != [] or record.get("not_in_sum", []) != []
    if len(digest) != 32 or digest.hex() != text or inline:
        raise LedgerError("record-malformed", "A record lists its devices once.")
    return digest


def by_identity(record: Mapping[str, Any]) -> bool:
    """Whether a release record is of version 1, which names devices by their identity."""
    version = record.get("version", 1)
    return type(version) is int and version == 1  # True equals 1 in Python, and not in JSON


def parse_contributors(data: bytes | None, digest: bytes) -> tuple[bytes, ...]:
    """The identity digests in a file of version 1, sorted, none twice.

    Raises:
        LedgerError: ``contributors-missing``, ``contributors-digest`` or
            ``contributors-malformed``.
    """
    return _rows(data, digest, PSEUDONYM_BYTES)


def parse_members(data: bytes | None, digest: bytes) -> Members:
    """The marked pseudonyms in a file, sorted, none twice.

    Raises:
        LedgerError: as :func:`parse_contributors`.
    """
    rows = _rows(data, digest, MARKED_BYTES)
    members = Members(
        tuple(row[:-1] for row in rows if row[-1] == 1),
        tuple(row[:-1] for row in rows if row[-1] == 0),
    )
    if len(members.all) != len(rows) or len({row[:-1] for row in rows}) != len(rows):
        raise LedgerError("contributors-malformed", "The list marks each device once, by 0 or 1.")
    return members


def _rows(data: bytes | None, digest: bytes, row_bytes: int) -> tuple[bytes, ...]:
    if data is None:
        raise LedgerError(
            "contributors-missing", "The list of devices is not there.", expected=digest.hex()
        )
    found = hashlib.sha256(data).digest()
    if found != digest:
        raise LedgerError(
            "contributors-digest",
            "The list of devices is not the one that the record names.",
            expected=digest.hex(),
            found=found.hex(),
        )
    count, rest = divmod(len(data), row_bytes)
    rows = tuple(data[at : at + row_bytes] for at in range(0, count * row_bytes, row_bytes))
    if rest or not 0 < count <= _COUNT_MAX or list(rows) != sorted(set(rows)):
        raise LedgerError("contributors-malformed", "The list of devices is not a sorted set.")
    return rows


def inline_members(record: Mapping[str, Any]) -> Members:
    """The lists in a release record itself.

    Raises:
        LedgerError: ``record-malformed``: not lower-case hex of 32 bytes each.
    """
    lists = [record.get("contributors"), record.get("not_in_sum", [])]
    if not all(isinstance(names, list) for names in lists):
        raise LedgerError("record-malformed", "A record's devices are not a list.")
    return Members(*(tuple(_pseudonym(name) for name in names or ()) for names in lists))


def _pseudonym(text: object) -> bytes:
    try:
        name = bytes.fromhex(text)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise LedgerError("record-malformed", "A device's pseudonym does not parse.") from error
    if len(name) != PSEUDONYM_BYTES or name.hex() != text:
        raise LedgerError(
            "record-malformed",
            "A device's pseudonym is not lower-case hex of its size.",
            expected=f"{PSEUDONYM_BYTES} bytes",
            found=text,
        )
    return name


def members_of(record: Mapping[str, Any], read: Callable[[str], bytes | None]) -> Members:
    """The devices that a release record lists, wherever they stand.

    Raises:
        LedgerError: as :func:`listed`, :func:`parse_members` and :func:`inline_members`.
    """
    digest = listed(record)
    if digest is None:
        return inline_members(record)
    data = read(contributors_path(digest))
    if by_identity(record):
        return Members(parse_contributors(data, digest))
    return parse_members(data, digest)
