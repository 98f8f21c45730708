"""The service's own keys: files with mode 0600, drawn on first start.

``task.key`` signs manifests and the aggregator's protocol messages, ``ledger.key`` the ledger's
checkpoints. Both are Ed25519 seeds in hex. ``sealing.keys`` seals cells of the database: 32 bytes
in hex a line; the first line seals, all of them open. Replicas share the folder.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nacl.signing import SigningKey

from aggregator.store.sealing import Cells
from secagg.errors import ConfigurationError
from secagg.files.text import TextFile
from secagg.hashing import derive
from secagg.limits import SEED_BYTES
from secagg.secret import Secret

_SECRET = TextFile(
    "secret file", ConfigurationError, "key-unreadable", "key-malformed", 4_096, "key-permissions"
)


@dataclass(frozen=True)
class Keys:
    task: Secret  # Ed25519 seed
    ledger: Secret  # Ed25519 seed
    task_public: bytes
    sealing: tuple[Secret, ...]  # none: nothing can be sealed or opened

    @property
    def cells(self) -> Cells:
        """What seals the database. Names of devices keep their hash for the service's life."""
        return Cells(self.sealing, Secret(derive(self.task.reveal(), "names of devices")))


SEALING = "sealing.keys"


def load_keys(folder: Path) -> Keys:
    """Read the keys, creating what is missing."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return _keys_of(folder, _sealing_keys(folder / SEALING))


def load_without_sealing(folder: Path) -> Keys:
    """As :func:`load_keys`, but for ``sealing.keys``: none is drawn where none is. A database that
    is sealed has its key somewhere, and one that is drawn hides that it is missing."""
    path = folder / SEALING
    return _keys_of(folder, _sealing_keys(path) if path.exists() else ())


def _keys_of(folder: Path, sealing: tuple[Secret, ...]) -> Keys:
    task, ledger = _seed(folder / "task.key"), _seed(folder / "ledger.key")
    public = bytes(SigningKey(task.reveal()).verify_key)
    return Keys(task=task, ledger=ledger, task_public=public, sealing=sealing)


def _seed(path: Path) -> Secret:
    return _parsed(path, private_text(path, _drawn), "A new key is a new service to every device.")


def _sealing_keys(path: Path) -> tuple[Secret, ...]:
    lines = private_text(path, _drawn).split()
    keys = [_parsed(path, line, "Without it the database does not open.") for line in lines]
    return tuple(keys) or (_parsed(path, "", "Without it the database does not open."),)


def _drawn() -> str:
    return secrets.token_hex(SEED_BYTES)


def _parsed(path: Path, text: str, loss: str) -> Secret:
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise ConfigurationError(
            "key-malformed",
            f"{path} does not hold {SEED_BYTES} bytes in hex in each line.",
            remedy=f"Restore the file from a backup. {loss}",
        )
    return Secret(seed)


def private_text(path: Path, make: Callable[[], str]) -> str:
    """The text of a file that only its owner may read; made once, also if replicas race.

    Raises:
        ConfigurationError: ``key-permissions`` if others can read the file;
            ``key-unreadable``, ``key-malformed``; ``key-unwritable`` if it is not there and
            cannot be made.
    """
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigurationError(
                "key-unwritable",
                f"There is no {path}, and it cannot be made: {error.strerror}.",
                remedy="Put it there: `openssl rand -hex 32` prints a key. Replicas share it.",
            ) from error
        with os.fdopen(descriptor, "w") as file:
            file.write(make() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # fails if another replica was first: its file counts
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return _SECRET.read(path).strip()
