"""Locks of files: one process at a time, or several that share. The kernel frees a lock with the
process that has it."""

from __future__ import annotations

import sys
from typing import IO


def lock_file(file: IO[bytes]) -> None:
    """Raises: OSError: somebody else has it. Closing the file frees it, and so does the kernel."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def share_file(file: IO[bytes]) -> None:
    """Hold a lock with others that share it; Windows has none.

    Raises:
        OSError: somebody has it alone.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
