"""Files that a transfer grows into."""

from __future__ import annotations

import os
from pathlib import Path

from client_sdk.errors import StateError


def size_of(part: Path) -> int:
    """Bytes of it; 0 if it is not there."""
    return os.path.getsize(part) if os.path.exists(part) else 0


def truncate(part: Path) -> None:
    """Raises: StateError: ``disk``."""
    _write(part, b"", "wb")


def append(part: Path, piece: bytes) -> None:
    """Raises: StateError: ``disk``."""
    _write(part, piece, "ab")


def _write(part: Path, piece: bytes, mode: str) -> None:
    try:
        with open(part, mode) as file:
            file.write(piece)
    except OSError as error:
        raise StateError(
            "disk", f"The model cannot be written: {error}.", remedy="Make room on the disk."
        ) from error
