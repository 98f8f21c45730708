"""A whole log in memory, built as tiles, for benchmarks and tests.

The service keeps its leaves in a database and renders them with :mod:`aggregator.ledger.log`. Both
write the files that :func:`dp.tlog.tiles.files` yields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dp.tlog import merkle, tiles
from dp.tlog.notes import Checkpoint, checkpoint_body


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
        yield from tiles.files(self._tree.subtree, self._entries, old_size, self.size)
