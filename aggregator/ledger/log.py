"""The ledger of one service: leaves and head in the database, rendered as C2SP tlog-tiles.

A leaf is appended inside the transaction of what it records, so a release is in the ledger or it
is not a release. The folder is written after the commit and repaired at every start; devices and
auditors read the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from nacl.signing import SigningKey

from aggregator.core import Core
from aggregator.errors import DatabaseAway
from aggregator.ledger.extension import demand_extension
from aggregator.ledger.witnesses import Witnesses, WitnessNow
from aggregator.logs import get_logger
from aggregator.store import records as stored
from aggregator.store.blobs import BlobMissing
from aggregator.store.database import Conflict, Connection
from dp.ledger.contributors import contributors_path, listed
from dp.ledger.parsing import parse_record
from dp.tlog import merkle, notes, tiles
from dp.tlog.merkle import Tree, leaf_hash, node_hash
from secagg.files.folders import remove_files

_log = get_logger("ledger")
# A width; the longer form is what a crash leaves of a write.
_NARROW = re.compile(r"[0-9]{1,3}|\.[0-9]{1,3}\.[0-9a-f]{16}")


class Ledger:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._name = core.settings.ledger_name
        self._folder = core.settings.data_dir / "ledger"
        self._tree = Tree()  # committed leaves only
        self._rendered = 0
        self._publishing = asyncio.Lock()
        settings = core.settings
        self._witnesses = Witnesses(settings.witnesses, settings.witness_timeout_s)
        self._lacking = False  # the published checkpoint lacks a witness's cosignature
        self._asked_at = 0.0
        public = bytes(SigningKey(core.keys.ledger.reveal()).verify_key)
        self.verifier = notes.verifier_key(self._name, public)

    @property
    def folder(self) -> Path:
        return self._folder

    async def start(self) -> None:
        """Create an empty log on first start, then render what is committed.

        Raises:
            ConfigurationError: as :func:`demand_extension`.
        """
        key = self._core.keys.ledger
        await demand_extension(self._core.database, self._folder, self._name, key, self._tree)
        with contextlib.suppress(Conflict):  # of replicas that start at once one begins it
            async with self._core.database.write() as connection:
                if await stored.head(connection) is None:
                    await stored.begin(connection, self._sign(0, merkle.EMPTY_ROOT))
        await self.demand_published(everything=True)

    def witnesses(self, size: int) -> list[WitnessNow]:
        """What each witness has cosigned of the first ``size`` leaves, as this replica knows."""
        return self._witnesses.standing(size)

    async def size(self) -> int:
        return await stored.present_size(self._core.database)

    def _sign(self, size: int, root: bytes) -> str:
        checkpoint = notes.Checkpoint(self._name, size, root)
        return notes.sign_checkpoint(checkpoint, self._core.keys.ledger).decode()

    async def append(self, connection: Connection, records: Sequence[bytes]) -> int:
        """Append leaves in the caller's transaction; returns the first one's index."""
        size = await stored.locked_size(connection)
        tree, known = self._tree, self._tree.size
        since = await stored.leaves(connection, known, size)
        hashes = [leaf_hash(record) for record in (*since, *records)]

        def subtree(level: int, index: int) -> bytes:
            """Hashes of the tree with the leaves that were appended since, some of which only
            this transaction sees: it may append more than once, and may yet roll back."""
            if (index + 1) << level <= known:
                return tree.subtree(level, index)
            if level == 0:
                return hashes[index - known]
            return node_hash(subtree(level - 1, 2 * index), subtree(level - 1, 2 * index + 1))

        grown = size + len(records)
        checkpoint = self._sign(grown, merkle.root(subtree, grown))
        await stored.append(connection, size, records, checkpoint)
        return size

    async def _committed(self, connection: Connection, size: int) -> Tree:
        """The tree over at least the first ``size`` leaves, all committed before."""
        for record in await stored.leaves(connection, self._tree.size, size):
            self._tree.append(leaf_hash(record))
        return self._tree

    async def publish(self) -> None:
        """As :meth:`demand_published`, after what is committed and stays so: where the folder
        cannot be written now, the log says it and the poller tries again."""
        try:
            await self.demand_published()
        except (OSError, DatabaseAway, BlobMissing):
            _log.exception(
                "ledger-not-published",
                remedy="The act itself stands. Check the disk of data_dir and the blob store.",
            )

    async def demand_published(self, *, everything: bool = False) -> None:
        """Write the tiles that are new, then the checkpoint; each file whole or not at all.

        Called before anybody is shown something that a leaf vouches for, so it is cheap when
        nothing is new. It renders other replicas' leaves as well, and asks witnesses again.

        Raises:
            OSError, DatabaseAway: it cannot be done now.
        """
        async with self._publishing:
            size = await self.size()
            if size == self._rendered and not everything and not self._may_ask_again():
                return
            async with self._core.database.read() as connection:
                head = await stored.head(connection)
                assert head is not None  # noqa: S101  from the first start
                rendered = 0 if everything else self._rendered
                first = rendered - rendered % tiles.TILE_WIDTH
                records = await stored.leaves(connection, first, head.size)
                tree = await self._committed(connection, head.size)
            note = await self._cosigned(head.checkpoint.encode(), head.size, tree)
            await asyncio.to_thread(self._write, tree, rendered, head.size, first, records, note)
            self._rendered = head.size

    def _may_ask_again(self) -> bool:
        waited_s = self._core.clock() - self._asked_at
        return self._lacking and waited_s >= self._core.settings.witness_retry_s

    async def _cosigned(self, note: bytes, size: int, tree: Tree) -> bytes:
        """The checkpoint with every cosignature to be had now, or had before a restart."""
        self._asked_at = self._core.clock()
        path = self._folder / "checkpoint"
        before = await asyncio.to_thread(path.read_bytes) if path.is_file() else b""
        note = self._witnesses.carry_over(before, note)
        note = await self._witnesses.cosign(note, size, tree.subtree)
        self._witnesses.saw(note, size)
        self._lacking = bool(self._witnesses.lacking(note))
        return note

    async def close(self) -> None:
        await self._witnesses.close()

    def _write(
        self,
        tree: Tree,
        rendered: int,
        size: int,
        first: int,
        records: Sequence[bytes],
        note: bytes,
    ) -> None:
        for path, data in tiles.files(tree.subtree, records, rendered, size, first):
            _replace(self._folder / path, data)
        for record in records:
            self._write_contributors(record)
        _replace(self._folder / "checkpoint", note)
        for tile in tiles.changed(rendered, size):
            if tile.width == tiles.TILE_WIDTH:  # who asks for a narrower form takes the full one
                remove_files(self._folder / f"{tile.path}.p", _NARROW)

    def _write_contributors(self, record: bytes) -> None:
        """The list that a record names, from the store: it was there before the record was."""
        if b'"contributors_digest"' not in record and b'"masking_set_file"' not in record:
            return
        digest = listed(parse_record(record))
        if digest is not None and not (self._folder / contributors_path(digest)).exists():
            path = contributors_path(digest)
            _replace(self._folder / path, self._core.blobs.get(path))


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    temporary.write_bytes(data)
    temporary.replace(path)
