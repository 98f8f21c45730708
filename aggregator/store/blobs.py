"""A folder of files that appear whole or not at all.

Models and optimiser states are named by their SHA-256, so that writing one twice is harmless and
a torn file cannot be taken for a whole one. Partial sums are named by cohort, shard and
generation, and are valid only when a row of the database says so.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

from secagg.errors import SecaggError
from secagg.files.folders import remove_files


class BlobMissing(SecaggError):
    """A blob that the database names is not in the store."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "blob-missing",
            "A stored file is missing.",
            expected=name,
            remedy="Restore the blob folder from the backup that belongs to the database.",
        )


class BlobStore:
    """Blobs under one folder. Methods block; call them in a thread for anything large."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self._root / name

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write atomically and durably: temporary file, fsync, rename, fsync of the folder."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)

    def put_digest(self, folder: str, data: bytes) -> bytes:
        """Write under the data's own SHA-256; returns the 32-byte digest."""
        digest = hashlib.sha256(data).digest()
        name = f"{folder}/{digest.hex()}"
        if not self.path(name).exists():
            self.put(name, data)
        return digest

    def get(self, name: str) -> bytes:
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            raise BlobMissing(name) from None

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def delete_files(self, folder: str, names: re.Pattern[str]) -> None:
        """As :func:`secagg.files.folders.remove_files`."""
        remove_files(self.path(folder), names)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
