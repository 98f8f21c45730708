"""Files that survive a kill at any moment: written beside, synced, renamed, folder synced."""

from __future__ import annotations

import os
from pathlib import Path

from client_sdk.errors import StateError
from secagg.files.folders import file_in_the_way

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)


def make_private_folder(path: Path) -> None:
    """Create the folder and its parents, if it is missing; a new one is for its owner alone (0700).

    One that is there keeps its permissions, and new parents have those that the umask leaves. The
    files in it are private all the same (0600).

    Raises:
        StateError: ``state-unwritable``.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if file := file_in_the_way(path):
            raise StateError(
                "state-unwritable",
                f"{file} is a file, and a folder is needed there.",
                remedy="Name a new or an empty folder, or move the file away. Nothing was changed.",
            ) from error
        raise unwritable(path, error) from error


def write_durably(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` (mode 0600), whole or not at all, and on disk when it returns.

    The caller must be the only writer of ``path``.

    Raises:
        StateError: ``state-unwritable``; ``path`` is as it was.
    """
    beside = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(beside, _NEW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def read_state(path: Path) -> bytes | None:
    """The content of a file; None if there is none.

    Raises:
        StateError: ``state-unreadable``.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(
            "state-unreadable",
            f"{path} cannot be read: {error}.",
            remedy="Check that the folder and what is in it are this user's.",
        ) from error


def remove_durably(path: Path) -> None:
    """Remove ``path`` if it is there; gone from the disk's directory when it returns.

    Raises:
        StateError: ``state-unwritable``.
    """
    try:
        if path.exists():
            path.unlink()
            sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> StateError:
    return StateError(
        "state-unwritable",
        f"{path} cannot be written: {error}.",
        remedy="Make room on the disk, and check that the folder is this user's and not read-only.",
    )


def sync_folder(path: Path) -> None:
    if os.name == "nt":  # Windows has no handle to sync a folder with
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
