"""The one verification of a log: that it only grew, and that an entry is in it.

Device, service and auditor use it, and so do the tests. It reads no file and asks nobody: notes
and the contents of tiles come in, and verified values come out.

Who reads a log brings its key and names the witnesses that it demands; it keeps the last
checkpoint that it verified. Each number below stands in the code where the step is done.

A checkpoint, before anything else is read (:meth:`TrustedLog.open`):

1. The note is signed by the log's key, and names the log that the key is for.
2. As many of the named witnesses as the reader demands have cosigned it.
3. It is not of fewer leaves than the last one that the reader verified.
4. It has, and grew by, no more leaves than a log can.

Its growth (:meth:`TrustedLog.extend`, :func:`verify_growth`):

5. The leaves of the last checkpoint are a prefix (RFC 6962 consistency proof). Who has seen
   nothing yet has seen the empty log.

A leaf (:meth:`TrustedLog.leaf`):

6. The entry is at its index under the verified checkpoint (RFC 6962 audit path).
7. Its bytes have one reading (canonical JSON), and that is the record.

All leaves (:class:`WholeLog`), or all since a reader was here (:class:`LogEntries`), in the place
of 6:

8. The entries, in order and after those before, give the root that the checkpoint signs.

What a record must say to whom it concerns: :mod:`dp.ledger.receipts` (a device) and
:mod:`dp.ledger.verification` (an auditor).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dp.errors import LogShrank, LogTooLarge, RootMismatch
from dp.ledger.parsing import canonical_object
from dp.tlog import merkle, tiles
from dp.tlog.notes import Checkpoint, Verifier, open_checkpoint
from dp.tlog.witness import WitnessPolicy

LEAVES_MAX = 1 << 32
"""Leaves of a log, in all: a century of a release a second."""
GROWTH_MAX = 1 << 24
"""Leaves by which a log may have grown between two visits: half a year of the same."""


def verify_growth(subtree: merkle.SubtreeReader, older: Checkpoint, newer: Checkpoint) -> None:
    """The newer log extends the older one; both checkpoints are of one log.

    Args:
        subtree: hashes of the newer log's tree; they need not be right.

    Raises:
        LogShrank: ``consistency-proof``.
        LogForked: ``consistency-proof``.
        LedgerError: of what is read, as ``tile-missing``.
    """
    _check_not_shorter(older, newer)  # 3
    proof = merkle.consistency_proof(subtree, older.size, newer.size)
    merkle.verify_consistency(older.size, newer.size, older.root, newer.root, proof)  # 5


def _check_not_shorter(older: Checkpoint, newer: Checkpoint) -> None:
    if older.size > newer.size:
        raise LogShrank(
            "consistency-proof",
            "The log became shorter.",
            expected=f">= {older.size}",
            found=newer.size,
        )


@dataclass(frozen=True)
class Leaf:
    """An entry, and what proves that it is leaf ``index`` of the log.

    ``proof``: RFC 6962 audit path.
    """

    index: int
    entry: bytes
    proof: tuple[bytes, ...]

    def record(self) -> dict[str, Any]:
        """The entry in its only reading.

        Raises:
            LedgerError: ``record-malformed``.
        """
        return canonical_object(self.entry)  # 7


@dataclass(frozen=True)
class TrustedLog:
    """A log as far as one reader has verified it.

    ``key``: of the log, from outside of it. ``witnesses``: whose cosignatures every checkpoint must
    carry; None: nobody's. ``last``: the last verified checkpoint; None: nothing was seen yet.
    """

    key: Verifier
    witnesses: WitnessPolicy | None = None
    last: Checkpoint | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The last verified checkpoint, or that of the empty log."""
        return self.last or Checkpoint(self.key.name, 0, merkle.EMPTY_ROOT)

    def open(self, note: bytes) -> Checkpoint:
        """Steps 1 to 4: a signed checkpoint that may follow; :meth:`extend` trusts it.

        Raises:
            LogShrank: ``consistency-proof``.
            LogTooLarge: ``ledger-too-large``.
            LedgerError: of the note, or ``witnesses-missing``.
        """
        checkpoint = open_checkpoint(note, self.key)  # 1
        if self.witnesses is not None:
            self.witnesses.check(note)  # 2
        _check_not_shorter(self.checkpoint, checkpoint)  # 3
        self._check_size(checkpoint.size)  # 4
        return checkpoint

    def _check_size(self, size: int) -> None:
        old = self.checkpoint.size
        most = LEAVES_MAX if self.last is None else min(LEAVES_MAX, old + GROWTH_MAX)
        if size > most:
            raise LogTooLarge(
                "ledger-too-large",
                "The ledger has more leaves than a log can have, or grew by more since the last "
                "visit.",
                expected=f"at most {most} leaves, {old} were seen before",
                found=size,
                remedy="Ask the operator: its key signed this size.",
            )

    def growth_paths(self, newer: Checkpoint) -> list[str]:
        """The files that :meth:`extend` reads."""
        return tiles.proof_paths(newer.size, old_size=self.checkpoint.size)

    def extend(self, read: tiles.Read, newer: Checkpoint) -> TrustedLog:
        """Step 5: the same log, verified up to a checkpoint that :meth:`open` returned.

        Raises:
            LogForked: ``consistency-proof``.
            LedgerError: of what is read, as ``tile-missing``.
        """
        verify_growth(tiles.TileTree(read, newer.size).subtree, self.checkpoint, newer)  # 5
        return replace(self, last=newer)

    def leaf_paths(self, index: int) -> list[str]:
        """The files that :meth:`leaf` reads.

        Raises:
            LedgerError: ``proof-range``.
        """
        return tiles.proof_paths(self.checkpoint.size, index=index)

    def leaf(self, read: tiles.Read, index: int) -> Leaf:
        """Step 6: the entry at an index of the verified checkpoint.

        Raises:
            LeafUnproven: ``inclusion-proof``.
            LedgerError: ``proof-range``, or of what is read, as ``tile-missing``.
        """
        log = self.checkpoint
        entry = tiles.read_entry(read, index, log.size)
        proof = tiles.inclusion_proof(read, index, log.size)
        merkle.verify_inclusion(merkle.leaf_hash(entry), index, log.size, proof, log.root)  # 6
        return Leaf(index, entry, tuple(proof))


class LogEntries:
    """The entries of a log, bundle by bundle, after those of a frontier; proven by :meth:`finish`.

    ``frontier``: of the entries so far. It is moved: give a copy.
    """

    def __init__(self, frontier: merkle.Frontier | None = None) -> None:
        """``frontier``: of entries that were proven before; None: none were."""
        self.frontier = frontier or merkle.Frontier()

    def bundles(self, size: int) -> Iterator[tiles.Tile]:
        """What is to be taken of a log of ``size`` leaves, in order."""
        if size > self.frontier.size:
            first = self.frontier.size // tiles.TILE_WIDTH
            for number in range(first, -(-size // tiles.TILE_WIDTH)):
                yield tiles.bundle_at(number, size)

    def take(self, read: tiles.Read, bundle: tiles.Tile) -> list[bytes]:
        """The new entries of the next bundle; they are not proven yet.

        Raises:
            LedgerError: ``tile-missing`` or ``bundle-malformed``.
        """
        known = self.frontier.size - bundle.number * tiles.TILE_WIDTH
        entries = tiles.parse_bundle(tiles.fetch(read, bundle), bundle.width)[known:]
        for entry in entries:
            self._add(merkle.leaf_hash(entry))
        return entries

    def _add(self, hashed: bytes) -> None:
        self.frontier.append(hashed)

    def finish(self, checkpoint: Checkpoint) -> None:
        """Step 8: with what was taken it is the log that the checkpoint signs, and all of it.

        Raises:
            RootMismatch: ``root-mismatch``.
        """
        found = self.frontier.root()
        if (self.frontier.size, found) != (checkpoint.size, checkpoint.root):  # 8
            raise RootMismatch(
                "root-mismatch",
                "The entries do not give the signed root: something was edited, removed or "
                "reordered.",
                expected=checkpoint.root.hex(),
                found=found.hex(),
            )


class WholeLog(LogEntries):
    """All entries of a log, from the first on. ``tree``: of the entries so far."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = merkle.Tree()

    def _add(self, hashed: bytes) -> None:
        super()._add(hashed)
        self.tree.append(hashed)
