"""Whether the database's log extends what the ledger folder shows, which others have verified."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nacl.signing import SigningKey

from aggregator.store import records as stored
from aggregator.store.database import Database
from dp.errors import LogForked, LogShrank
from dp.ledger.trusted_log import verify_growth
from dp.tlog import merkle, notes
from dp.tlog.merkle import Tree, leaf_hash
from secagg.errors import ConfigurationError, SecaggError
from secagg.secret import Secret


async def demand_extension(
    database: Database, folder: Path, name: str, key: Secret, tree: Tree
) -> None:
    """
    Args:
        folder: the ledger's.
        name: the ledger's.
        key: ``ledger.key``.
        tree: over the first leaves of the database; grows by the others.

    Raises:
        ConfigurationError: ``ledger-folder-taken`` by a ledger of another key;
            ``ledger-rolled-back`` or ``ledger-forked``: the database's log does not extend the
            checkpoint in the folder.
    """
    published = await asyncio.to_thread(_published, folder / "checkpoint", key)
    if published is None:  # read before the database, which may grow
        return
    async with database.read() as connection:
        head = await stored.head(connection)
        size = 0 if head is None else head.size
        for record in await stored.leaves(connection, tree.size, size):
            tree.append(leaf_hash(record))
    stored_now = notes.Checkpoint(name, size, merkle.root(tree.subtree, size))
    try:
        verify_growth(tree.subtree, published, stored_now)
    except (LogShrank, LogForked) as error:  # devices and witnesses refuse the same for good
        shrank = isinstance(error, LogShrank)
        raise ConfigurationError(
            "ledger-rolled-back" if shrank else "ledger-forked",
            f"The database's log does not extend {folder / 'checkpoint'}, which this "
            "service has published.",
            expected=f"{published.size} leaves under {published.root.hex()}, or more",
            found=f"{size} leaves under {stored_now.root.hex()}",
            remedy="Name the database that belongs to this data_dir, or restore its newest "
            "state. Devices that saw the published checkpoint refuse any other log. Nothing "
            "was changed.",
        ) from error


def _published(path: Path, key: Secret) -> notes.Checkpoint | None:
    """The checkpoint in the folder, signed by this service, by whatever name; None: nothing."""
    if not path.exists():
        return None
    try:
        origin = path.read_text("utf-8").partition("\n")[0]
        public = bytes(SigningKey(key.reveal()).verify_key)
        verifier = notes.parse_verifier(notes.verifier_key(origin, public))
        return notes.open_checkpoint(path.read_bytes(), verifier)
    except (SecaggError, ValueError) as error:
        raise ConfigurationError(
            "ledger-folder-taken",
            f"{path} is not signed by this service's ledger.key: {error}.",
            remedy="Name another data_dir, or restore the keys that belong to this ledger. "
            "Nothing was changed.",
        ) from error
