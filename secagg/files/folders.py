"""Folders that a user names for what a program keeps: others' files in them stay as they are."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
from collections.abc import Collection
from pathlib import Path

from secagg.errors import SecaggError

_OF_FILE_SYSTEMS = frozenset(("lost+found",))  # in a volume that is new and empty
_SHOWN = 3


def demand_own_folder(
    folder: Path,
    what: str,
    marks: Collection[str],
    names: Collection[str],
    error: type[SecaggError],
    reason: str,
) -> None:
    """Return if ``folder`` is new, empty, or ours already; writes nothing.

    Args:
        what: its name in a sentence, such as ``state folder``.
        marks: names of files of which one lies in every such folder.
        names: patterns of what a start that was cut off may have left before the first mark.

    Raises:
        error: ``reason``, with the first names of what lies there.
    """
    try:
        held = sorted(os.listdir(folder))
    except (OSError, ValueError):
        return  # who makes or opens it says what is wrong
    if set(marks).intersection(held):
        return
    others = [
        name
        for name in held
        if name not in _OF_FILE_SYSTEMS and not any(fnmatch.fnmatchcase(name, n) for n in names)
    ]
    if others:
        shown = ", ".join(map(repr, others[:_SHOWN])) + (", ..." if len(others) > _SHOWN else "")
        raise error(
            reason,
            f"{folder} is not a {what}, and holds other things: {shown}.",
            remedy="Name a new or an empty folder. Nothing was changed.",
        )


def remove_files(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the plain files in ``folder`` that have such names, then the folder if it is empty.

    Everything else stays, and a link to a folder is not followed. What cannot be removed stays too.
    """
    if folder.is_symlink():
        return
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if names.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)
        folder.rmdir()


def file_in_the_way(folder: Path) -> Path | None:
    """What is not a folder where ``folder`` or a parent of it should be; None without."""
    for place in (folder, *folder.parents):
        try:
            if place.is_dir():
                return None
            if os.path.lexists(place):
                return place
        except (OSError, ValueError):
            return None
    return None
