"""The service's own keys: files with mode 0600, drawn on first start.

``task.key`` signs manifests and the aggregator's protocol messages, ``ledger.key`` the ledger's
checkpoints. Both are Ed25519 seeds in hex. Replicas share the folder.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nacl.signing import SigningKey

from secagg.errors import ConfigurationError
from secagg.files.text import TextFile
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


def load_keys(folder: Path) -> Keys:
    """Read the keys, creating what is missing."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    task, ledger = _seed(folder / "task.key"), _seed(folder / "ledger.key")
    public = bytes(SigningKey(task.reveal()).verify_key)
    return Keys(task=task, ledger=ledger, task_public=public)


def _seed(path: Path) -> Secret:
    text = private_text(path, lambda: secrets.token_hex(SEED_BYTES))
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise ConfigurationError(
            "key-malformed",
            f"{path} is not a key: {SEED_BYTES} bytes in hex.",
            remedy="Restore the file from a backup. A new key is a new service to every device.",
        )
    return Secret(seed)


def private_text(path: Path, make: Callable[[], str]) -> str:
    """The text of a file that only its owner may read; made once, also if replicas race.

    Raises:
        ConfigurationError: ``key-permissions`` if others can read the file;
            ``key-unreadable``, ``key-malformed``.
    """
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
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
