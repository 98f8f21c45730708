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
from secagg.secret import Secret


@dataclass(frozen=True)
class Keys:
    task: Secret  # Ed25519 seed
    ledger: Secret  # Ed25519 seed
    task_public: bytes


def load_keys(folder: Path) -> Keys:
    """Read the keys, creating what is missing."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    task = Secret(bytes.fromhex(private_text(folder / "task.key", lambda: secrets.token_hex(32))))
    ledger = private_text(folder / "ledger.key", lambda: secrets.token_hex(32))
    public = bytes(SigningKey(task.reveal()).verify_key)
    return Keys(task=task, ledger=Secret(bytes.fromhex(ledger)), task_public=public)


def private_text(path: Path, make: Callable[[], str]) -> str:
    """The text of a file that only its owner may read; made once, also if replicas race.

    Raises:
        ConfigurationError: ``key-permissions`` if others can read the file.
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
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(
            "key-permissions",
            f"{path.name} can be read by others.",
            expected="0600",
            found=oct(path.stat().st_mode & 0o777),
            remedy=f"chmod 600 {path}",
        )
    return path.read_text().strip()
