"""What a replica demands before it serves: its data folder for itself, and the database of its
own service."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

from nacl.signing import SigningKey

from aggregator.keys import Keys
from aggregator.store import identity
from aggregator.store.database import Conflict, Database
from dp.tlog import notes
from secagg.errors import ConfigurationError, SecaggError
from secagg.files.locks import lock_file
from secagg.hashing import digest
from secagg.manifest import decode_manifest

LOCK = "service.lock"
_TRIES = 10
_TASK_KEY, _LEDGER_KEY, _LEDGER_NAME = "task-key", "ledger-key", "ledger-name"


class DataFolder:
    """Exclusive use of a data folder. The kernel frees it with the process, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """
        Raises:
            ConfigurationError: ``data-dir-in-use``.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        file = os.fdopen(descriptor, "r+b")
        try:
            lock_file(file)
        except OSError as error:
            holder = file.read(20).decode("ascii", "replace").strip()
            file.close()
            raise ConfigurationError(
                "data-dir-in-use",
                f"Another process works in the folder {self._path.parent}.",
                expected="one process for each data folder",
                found=f"process {holder}" if holder else None,
                remedy="Stop it first, or name another folder with --data-dir: each replica has "
                "one of its own.",
            ) from error
        file.truncate()
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def fingerprint(public_key: bytes) -> str:
    """What an operator compares of a key: 32 hex digits."""
    return digest("key fingerprint", public_key).hex()[:32]


def facts_of(keys: Keys, ledger_name: str) -> dict[str, str]:
    """What the database is told of its service, by name."""
    ledger_public = bytes(SigningKey(keys.ledger.reveal()).verify_key)
    return {
        _TASK_KEY: fingerprint(keys.task_public),
        _LEDGER_KEY: fingerprint(ledger_public),
        _LEDGER_NAME: ledger_name,
    }


async def demand_own_database(
    database: Database, keys: Keys, ledger_name: str, *, enter: bool = True
) -> None:
    """
    Args:
        enter: whether a database that does not know yet is told whose it is.

    Raises:
        ConfigurationError: ``keys-of-another-service``, ``ledger-name-differs`` or
            ``sealing-key-missing``.
    """
    own = facts_of(keys, ledger_name)
    known = await identity.read(database)
    if not known.keys() >= own.keys():
        _compare(own, await _told_before(database, keys))
        if enter:
            known = await identity.enter(database, own)
    _compare(own, known)
    await _demand_sealing_keys(database, known, enter=enter)


async def _demand_sealing_keys(database: Database, known: dict[str, str], *, enter: bool) -> None:
    cells = database.cells
    in_use = known.get(identity.SEALING_KEYS, "").split()
    if enter:
        in_use = await _sealing_key_entered(database)
    missing = [each for each in dict.fromkeys(in_use) if each not in cells.ids]
    if missing:
        raise ConfigurationError(
            "sealing-key-missing",
            "The database has cells under a key that this replica's sealing.keys does not have.",
            expected=", ".join(dict.fromkeys(in_use)),
            found=", ".join(cells.ids),
            remedy="Name the folder of keys that all replicas share with SECAGG_KEYS_DIR, or put "
            "the key back into sealing.keys. It may go once `secagg db reseal` ran.",
        )


async def _sealing_key_entered(database: Database) -> list[str]:
    """As ``identity.enter_sealing_key``, also where replicas with keys of their own start at once.

    Raises:
        Conflict: others were first, time and again.
    """
    cells = database.cells
    for _ in range(_TRIES):
        with contextlib.suppress(Conflict):
            return await identity.enter_sealing_key(database, cells.ids, cells.sealing)
    return await identity.enter_sealing_key(database, cells.ids, cells.sealing)


async def _told_before(database: Database, keys: Keys) -> dict[str, str]:
    """What ledger and manifests of a database of before say of its service."""
    checkpoint, manifest = await identity.signed_before(database)
    told: dict[str, str] = {}
    if manifest is not None:
        told[_TASK_KEY] = fingerprint(decode_manifest(manifest).task_key)
    if checkpoint is not None:
        told[_LEDGER_NAME] = checkpoint.partition("\n")[0]
        if not _signed_by(checkpoint.encode(), told[_LEDGER_NAME], keys):
            told[_LEDGER_KEY] = "another key"
    return told


def _signed_by(checkpoint: bytes, name: str, keys: Keys) -> bool:
    public = bytes(SigningKey(keys.ledger.reveal()).verify_key)
    with contextlib.suppress(SecaggError, ValueError):
        verifier = notes.parse_verifier(notes.verifier_key(name, public))
        notes.open_checkpoint(checkpoint, verifier)
        return True
    return False


def _compare(own: dict[str, str], known: dict[str, str]) -> None:
    for name, file in ((_TASK_KEY, "task.key"), (_LEDGER_KEY, "ledger.key")):
        if known.get(name, own[name]) != own[name]:
            raise ConfigurationError(
                "keys-of-another-service",
                f"The {file} of this replica is not the one of the service whose database this is.",
                expected=known[name],
                found=own[name],
                remedy="Name the folder of keys that all replicas share with SECAGG_KEYS_DIR, or "
                "restore the keys that belong to this database. A service of its own has a "
                "database of its own.",
            )
    if known.get(_LEDGER_NAME, own[_LEDGER_NAME]) != own[_LEDGER_NAME]:
        raise ConfigurationError(
            "ledger-name-differs",
            "The ledger of this database has another name than this replica's settings give.",
            expected=known[_LEDGER_NAME],
            found=own[_LEDGER_NAME],
            remedy=f"Set ledger_name = {known[_LEDGER_NAME]!r}. Devices know a ledger by its name.",
        )
