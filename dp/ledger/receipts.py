"""The append-only ledger: building it as tiles, and checking it as a device does.

A device remembers the last checkpoint that it saw. With each receipt it checks that the log only
grew since, that its release is in it, and that the record names its cohort and itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from dp.errors import LedgerError
from dp.ledger.contributors import members_of
from dp.ledger.parsing import parse_record
from dp.tlog import merkle, tiles
from dp.tlog.notes import Checkpoint, checkpoint_body, open_checkpoint, parse_verifier


class LedgerBuilder:
    """The log in memory: its leaves, its tree, and the files that serve it.

    Args:
        origin: the log's name, as in its verifier key.
        entries: leaves so far, in order.
    """

    def __init__(self, origin: str, entries: Iterable[bytes] = ()) -> None:
        self.origin = origin
        self._entries: list[bytes] = []
        self._tree = merkle.Tree()
        for entry in entries:
            self.append(entry)

    @property
    def size(self) -> int:
        return len(self._entries)

    def append(self, entry: bytes) -> tuple[int, str]:
        """Add a record; returns its leaf index and the text of the new checkpoint, to be signed.

        Raises:
            LedgerError: ``record-too-large``.
        """
        tiles.bundle_bytes([entry])
        self._entries.append(entry)
        index = self._tree.append(merkle.leaf_hash(entry))
        return index, checkpoint_body(self.checkpoint())

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.origin, self.size, merkle.root(self._tree.subtree, self.size))

    def files(self, old_size: int = 0) -> Iterator[tuple[str, bytes]]:
        """(path, contents) of all tiles and bundles that a log of ``old_size`` lacks.

        Write them before the checkpoint that needs them.
        """
        for tile in tiles.changed(old_size, self.size):
            if tile.level < 0:
                first = tile.number * tiles.TILE_WIDTH
                yield tile.path, tiles.bundle_bytes(self._entries[first : first + tile.width])
            else:
                yield tile.path, tiles.tile_bytes(self._tree.subtree, tile)


def check_growth(read: tiles.Read, older: Checkpoint, newer: Checkpoint) -> None:
    """The newer log extends the older one.

    Raises:
        LedgerError: ``consistency-proof``, ``tile-missing`` ...
    """
    if older.size > newer.size:
        raise LedgerError(
            "consistency-proof",
            "The log became shorter.",
            expected=f">= {older.size}",
            found=newer.size,
        )
    proof = tiles.consistency_proof(read, older.size, newer.size)
    merkle.verify_consistency(older.size, newer.size, older.root, newer.root, proof)


def included_entry(read: tiles.Read, checkpoint: Checkpoint, leaf_index: int) -> bytes:
    """The entry at ``leaf_index``, verified against the checkpoint's root.

    Raises:
        LedgerError: ``inclusion-proof``, ``tile-missing`` ...
    """
    entry = tiles.read_entry(read, leaf_index, checkpoint.size)
    proof = tiles.inclusion_proof(read, leaf_index, checkpoint.size)
    merkle.verify_inclusion(
        merkle.leaf_hash(entry), leaf_index, checkpoint.size, proof, checkpoint.root
    )
    return entry


def receipt_paths(
    note: bytes, verifier: str, leaf_index: int, remembered: bytes | None
) -> list[str]:
    """What :func:`check_receipt` will read besides the checkpoint, so it can be fetched first."""
    key = parse_verifier(verifier)
    checkpoint = open_checkpoint(note, key)
    old = None if remembered is None else open_checkpoint(remembered, key).size
    if not 0 <= leaf_index < checkpoint.size or (old is not None and old > checkpoint.size):
        return []
    return tiles.proof_paths(checkpoint.size, index=leaf_index, old_size=old)


def check_receipt(
    read: tiles.Read,
    note: bytes,
    verifier: str,
    *,
    leaf_index: int,
    remembered: bytes | None,
    ctx: bytes,
    contributor: bytes,
) -> dict[str, Any]:
    """A device's check of its receipt; returns the release's record. Remember ``note`` afterwards.

    Args:
        read: files of the log.
        note: the current signed checkpoint.
        verifier: the log's verifier key, from the enrolment bundle.
        leaf_index: from the receipt.
        remembered: the last signed checkpoint that this device saw, if any.
        ctx: the cohort's context, 32 bytes.
        contributor: this device's pseudonym in this cohort
            (:func:`secagg.context.pseudonym`); for a record of version 1
            :func:`dp.ledger.records.identity_digest` of it.

    Raises:
        LedgerError: of the note, the proofs, or ``receipt-mismatch``.
    """
    key = parse_verifier(verifier)
    checkpoint = open_checkpoint(note, key)
    if remembered is not None:
        check_growth(read, open_checkpoint(remembered, key), checkpoint)
    record = parse_record(included_entry(read, checkpoint, leaf_index))
    if record["type"] != "release" or record.get("ctx") != ctx.hex():
        raise LedgerError(
            "receipt-mismatch",
            "The receipt points at another record.",
            expected=ctx.hex(),
            found=record.get("ctx"),
        )
    if members_of(record, read).contributors.count(contributor) != 1:
        raise LedgerError(
            "receipt-mismatch",
            "The ledger does not list this device among the contributors, once.",
            expected=contributor.hex(),
        )
    return record
