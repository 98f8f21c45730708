"""The folder ``models`` of a state folder: one model, or the parts that have come of the next one.

A model's file has its digest as its name, 64 hex digits, and a part has ``.part`` behind it; the
part of a delta has the delta's digest. Only plain files of such names are removed or written. What
else lies there is the user's and stays.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection
from pathlib import Path

from client_sdk.errors import StateError
from client_sdk.state.durable_files import make_private_folder, unwritable

_OURS = re.compile(r"[0-9a-f]{64}(\.part)?")


def models_folder(state_folder: Path) -> Path:
    """The folder, made if it is missing.

    Raises:
        StateError: ``state-folder-taken``: a link or a file has its name; ``state-unwritable``.
    """
    folder = state_folder / "models"
    kind = _kind(folder)
    if kind is not None and not stat.S_ISDIR(kind):
        what = "a link" if stat.S_ISLNK(kind) else "no folder"
        raise StateError(
            "state-folder-taken",
            f"{folder} is {what}, and models are kept in a folder there.",
            remedy=f"Move {folder} away. To keep models on another disk, move the whole state "
            "folder there. Nothing was changed.",
        )
    make_private_folder(folder)
    return folder


def part_of(model: Path) -> Path:
    """Where a model's transfer is kept until it is whole."""
    return model.with_suffix(".part")


def demand_plain(*paths: Path) -> None:
    """Return if each is a plain file or not there.

    Raises:
        StateError: ``state-folder-taken``.
    """
    for path in paths:
        kind = _kind(path)
        if kind is not None and not stat.S_ISREG(kind):
            raise StateError(
                "state-folder-taken",
                f"{path} is not a plain file, and a model is to be kept there.",
                remedy=f"Move {path} away. Nothing was changed.",
            )


def held_beside(model: Path) -> tuple[Path | None, Path | None]:
    """The newest other model in the folder of ``model``, and the newest part of a delta.

    Raises:
        StateError: as :func:`models_folder`.
    """
    folder = models_folder(model.parent.parent)
    try:
        own = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)]
        others = [path for path in own if path not in (model, part_of(model))]
        plain = [path for path in others if stat.S_ISREG(_kind(path) or 0)]
        plain.sort(key=lambda path: path.lstat().st_mtime_ns)
    except OSError as error:
        raise unwritable(folder, error) from error
    models = [path for path in plain if not path.suffix]
    parts = [path for path in plain if path.suffix]
    return models[-1] if models else None, parts[-1] if parts else None


def forget_models(
    folder: Path, *, keep: Path | None = None, also: Collection[Path | None] = ()
) -> None:
    """Remove every model and part of one from ``folder`` but ``keep``, its part, and ``also``.

    Raises:
        StateError: as :func:`models_folder`.
    """
    kept = (*also, *(() if keep is None else (keep, part_of(keep))))
    try:
        for path in models_folder(folder.parent).iterdir():
            if path not in kept and _OURS.fullmatch(path.name):
                remove_model(path)
    except OSError as error:
        raise unwritable(folder, error) from error


def remove_model(path: Path) -> None:
    """Remove a model or a part, if it is there and a plain file.

    Raises:
        StateError: ``state-unwritable``.
    """
    try:
        if stat.S_ISREG(_kind(path) or 0):
            path.unlink()
    except OSError as error:
        raise unwritable(path, error) from error


def _kind(path: Path) -> int | None:
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unwritable(path, error) from error
