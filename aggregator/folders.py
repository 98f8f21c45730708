"""Who may read what the service keeps: a data folder of before is closed to others at the start."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

from aggregator.logs import get_logger
from secagg.errors import ConfigurationError

_log = get_logger("folders")
_OTHERS = 0o077
_WORLD = 0o007


def close_to_others(path: Path) -> None:
    """Take group and others off a folder or file of this user; the log says so.

    Of what is somebody else's, such as a volume with a group of its own, the group may stay, as
    for secret files (ADR 19).

    Raises:
        ConfigurationError: ``data-permissions``, with the chmod to type.
    """
    if sys.platform == "win32":
        return
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(found.st_mode)
    own = found.st_uid == os.geteuid()
    if not mode & (_OTHERS if own else _WORLD):
        return
    closed = mode & ~_OTHERS
    try:
        path.chmod(closed)
    except OSError as error:
        if path.is_dir() and not own:
            return  # its files are looked at one by one
        raise ConfigurationError(
            "data-permissions",
            f"Others can read {path}, which holds mail and shares of cohorts under way.",
            expected=f"mode {closed:04o}",
            found=f"mode {mode:04o}",
            remedy=f"chmod {closed:o} {path}, as its owner.",
        ) from error
    _log.warning("permissions-tightened", path=str(path), before=f"{mode:04o}", now=f"{closed:04o}")


def close_database(file: Path) -> None:
    """Close a SQLite file and what lies beside it; a new one is made so that it is closed.

    Raises:
        ConfigurationError: as :func:`close_to_others`.
    """
    with contextlib.suppress(OSError):  # it is there already; or who opens it says what is wrong
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    for path in (file, *(file.with_name(f"{file.name}{end}") for end in ("-wal", "-shm"))):
        close_to_others(path)
