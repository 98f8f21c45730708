"""The list of a release's contributors, where it is too long for its record.

An entry of the ledger holds at most 64 KiB, about 950 pseudonyms. Up to :data:`INLINE_MAX` they
stand in the record; beyond, the record holds the digest of a file that holds them, sorted, 32
bytes each. The file lies beside the tiles, is named by its digest, and counts only if it matches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dp.errors import LedgerError

INLINE_MAX = 256
CONTRIBUTORS = "contributors"  # folder below the ledger's prefix
_ENTRY_BYTES = 32
_COUNT_MAX = 1 << 20  # 32 MiB of pseudonyms


def contributors_file(digests: Iterable[bytes]) -> bytes:
    """The file of a list of identity digests, 32 bytes each; any order gives the same file."""
    return b"".join(sorted(digests))


def contributors_digest(digests: Iterable[bytes]) -> bytes:
    """SHA-256 of :func:`contributors_file`."""
    return hashlib.sha256(contributors_file(digests)).digest()


def contributors_path(digest: bytes) -> str:
    """Where the file lies below the ledger's prefix."""
    return f"{CONTRIBUTORS}/{digest.hex()}"


def listed(record: Mapping[str, Any]) -> bytes | None:
    """The digest of the file that a release record refers to; None if it lists its contributors.

    Raises:
        LedgerError: ``record-malformed``.
    """
    text = record.get("contributors_digest")
    if text is None:
        return None
    try:
        digest = bytes.fromhex(text)
    except (TypeError, ValueError) as error:
        raise LedgerError("record-malformed", "The contributors' digest does not parse.") from error
    if len(digest) != 32 or digest.hex() != text or record.get("contributors") != []:
        raise LedgerError("record-malformed", "A record lists its contributors once.")
    return digest


def parse_contributors(data: bytes | None, digest: bytes) -> tuple[bytes, ...]:
    """The identity digests in a file, sorted, none twice.

    Raises:
        LedgerError: ``contributors-missing``, ``contributors-digest`` or
            ``contributors-malformed``.
    """
    if data is None:
        raise LedgerError(
            "contributors-missing", "The list of contributors is not there.", expected=digest.hex()
        )
    found = hashlib.sha256(data).digest()
    if found != digest:
        raise LedgerError(
            "contributors-digest",
            "The list of contributors is not the one that the record names.",
            expected=digest.hex(),
            found=found.hex(),
        )
    count, rest = divmod(len(data), _ENTRY_BYTES)
    entries = tuple(data[at : at + _ENTRY_BYTES] for at in range(0, count * _ENTRY_BYTES, 32))
    if rest or not 0 < count <= _COUNT_MAX or list(entries) != sorted(set(entries)):
        raise LedgerError("contributors-malformed", "The list of contributors is not a sorted set.")
    return entries


def contributors_of(
    record: Mapping[str, Any], read: Callable[[str], bytes | None]
) -> tuple[bytes, ...]:
    """The contributors of a release record, wherever they stand.

    Raises:
        LedgerError: as :func:`listed` and :func:`parse_contributors`, or ``record-malformed``.
    """
    digest = listed(record)
    if digest is not None:
        return parse_contributors(read(contributors_path(digest)), digest)
    try:
        return tuple(bytes.fromhex(value) for value in record["contributors"])
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError("record-malformed", "The contributors do not parse.") from error
